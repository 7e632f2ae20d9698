"""A lesson: the module to train and the loss to make small, from a task, and from teachers if there are any."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from farthing.errors import TaskError, UnsupportedError
from farthing.forge.trainable import Trainable
from farthing.forge.training.distillation import Distillation
from farthing.forge.training.losses import (
    Answers,
    Loss,
    answers_of,
    classes_second,
    divergence,
    hitting,
    log_probabilities,
    loss_of,
)
from farthing.forge.training.samples import Batch, Samples
from farthing.forge.training.schedule import Schedule
from farthing.forge.training.teacher import Teacher
from farthing.forge.training.transfer import Transfer, tapped
from farthing.model import Model
from farthing.recipe import Listener, ignore
from farthing.task import CLASS_METRICS, PIXEL_METRICS

CLASSES = {*CLASS_METRICS, *PIXEL_METRICS, "auc", "agreement"}


@contextmanager
def lesson(
    student: Trainable | nn.Module,
    samples: Samples,
    schedule: Schedule,
    teachers: Sequence[Model] = (),
    distillation: Distillation | None = None,
    listener: Listener = ignore,
) -> Iterator[tuple[nn.Module, Loss]]:
    """What `farthing.forge.training.loop.train` is to be given; the teachers' engines are open for the ``with`` block.

    Args:
        student: what is to be trained; features are taken out of a Trainable only.
        samples: of the task, as the student takes them.
        schedule: how it will be trained: teachers must know whether samples are augmented.
        teachers: none leaves the task's own loss.
        distillation: what is learned from them; the defaults if None.
        listener: hears that teachers are being asked.

    Yields:
        The module to train, which shares all layers with the student, and the loss.

    Raises:
        TaskError: no loss for the task, teachers that do not fit, or features without one teacher.
        UnsupportedError: features that are not there.
    """
    options = distillation or Distillation()
    task, manifest = samples.task, samples.manifest
    module = student.module if isinstance(student, Trainable) else student
    if not teachers:
        yield module, loss_of(task, manifest)
        return
    if options.features:
        module = _tapped(student, options, len(teachers))
    inner = [feature.teacher or feature.student for feature in options.features]
    augmented = schedule.augment != "none"
    with ExitStack() as stack:
        asked = [
            stack.enter_context(
                Teacher(
                    model,
                    samples,
                    features=inner,
                    augmented=augmented,
                    threads=schedule.threads,
                    listener=listener,
                )
            )
            for model in teachers
        ]
        hard = loss_of(task, manifest, asked[0]) if options.hard else None
        classes = task.metric.name in CLASSES and task.loss is None
        yield module, _taught(module, samples, asked, options, hard, classes)


def _tapped(student: Trainable | nn.Module, options: Distillation, teachers: int) -> nn.Module:
    """The student's module with its features as further outputs."""
    if not isinstance(student, Trainable):
        raise UnsupportedError(
            "features are named as tensors of an ONNX graph, and this student is made anew: leave `features` out, or "
            "train the finished student on with train.finetune.v1"
        )
    if teachers != 1:
        raise TaskError(
            f"features are compared with those of one teacher, and there are {teachers}: give one, or leave "
            "`features` out"
        )
    return tapped(student, [feature.student for feature in options.features])


def _taught(
    module: nn.Module,
    samples: Samples,
    teachers: Sequence[Teacher],
    options: Distillation,
    hard: Loss | None,
    classes: bool,
) -> Taught:
    """The loss of a student; its projections are of the shapes that a first batch shows."""
    few = samples.batch(torch.arange(min(2, len(samples))))
    outputs = _tried(module, few)
    count = len(outputs) - len(options.features)
    for teacher in teachers if options.soft else ():
        for own, other in zip(outputs[:count], teacher.answers(few), strict=False):
            if own.shape != other.shape:
                raise TaskError(
                    f"the teacher {teacher.manifest.name} gives outputs of shape {list(other.shape[1:])}, the student "
                    f"{list(own.shape[1:])}: they must answer the same question"
                )
    pairs = zip(options.features, outputs[count:], teachers[0].features(few), strict=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transfers = [Transfer(feature, own, other) for feature, own, other in pairs]
    classes = classes and outputs[0].ndim > 1 and outputs[0].shape[1] > 1
    answers = answers_of(samples.manifest)
    return Taught(teachers, options, hard, transfers, answers if classes else None)


@torch.no_grad()
def _tried(module: nn.Module, batch: Batch) -> list[Tensor]:
    """Outputs of a module in evaluation mode; its mode is as before afterwards."""
    training = module.training
    module.eval()
    given = module(*batch.inputs)
    module.train(training)
    return [given] if isinstance(given, Tensor) else list(given)


class Taught(nn.Module):
    """The loss of a student: shares of its task's own, of its teachers' outputs, and of features.

    Args:
        teachers: whom it is to come near to.
        options: the shares.
        hard: the task's own loss; None without.
        transfers: one for each feature; the student's features come behind its outputs.
        classes: what the first output is, if it tells classes apart; None if outputs are values.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        options: Distillation,
        hard: Loss | None,
        transfers: Sequence[Transfer],
        classes: Answers | None,
    ) -> None:
        super().__init__()
        self.transfers = nn.ModuleList(transfers)
        self._teachers, self._options, self._hard = teachers, options, hard
        self._classes: Answers | None = classes
        if judge := hitting(hard):
            self.hits = judge.hits

    def forward(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        count = len(outputs) - len(self.transfers)
        own, inner = outputs[:count], outputs[count:]
        parts = []
        if self._hard is not None:
            parts.append(self._options.hard * self._hard(own, batch))
        if self._options.soft:
            soft = self._of_values(own, batch) if self._classes is None else self._of_classes(own, batch)
            parts.append(self._options.soft * soft)
        if len(self.transfers):
            wanted = self._teachers[0].features(batch)
            for feature, transfer, mine, other in zip(
                self._options.features, self.transfers, inner, wanted, strict=True
            ):
                parts.append(feature.weight * transfer(mine, other))
        return torch.stack(parts).sum()

    def _of_classes(self, own: Sequence[Tensor], batch: Batch) -> Tensor:
        """Kullback-Leibler divergence at a temperature, times its square."""
        heat = self._options.temperature
        theirs = [
            log_probabilities(
                classes_second(teacher.answers(batch)[0], batch.labels), answers_of(teacher.manifest), heat
            )
            for teacher in self._teachers
        ]
        wanted = torch.stack(theirs).logsumexp(0) - math.log(len(theirs))
        rows = classes_second(own[0], batch.labels)
        return divergence(log_probabilities(rows, self._classes or "logits", heat), wanted) * heat**2

    def _of_values(self, own: Sequence[Tensor], batch: Batch) -> Tensor:
        answers = [teacher.answers(batch) for teacher in self._teachers]
        gaps = [
            functional.mse_loss(mine, torch.stack(theirs).mean(0))
            for mine, *theirs in zip(own, *answers, strict=False)
        ]
        return torch.stack(gaps).mean()
