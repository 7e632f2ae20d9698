"""All exits trained together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from farthing.bench import first_feeds
from farthing.forge.exits.branching import branched
from farthing.forge.exits.training import ExitTraining
from farthing.forge.trainable import trainable
from farthing.forge.training.lesson import lesson
from farthing.forge.training.loop import train
from farthing.forge.training.losses import (
    Answers,
    Loss,
    answers_of,
    divergence,
    hitting,
    log_probabilities,
    loss_of,
    understood,
)
from farthing.forge.training.samples import Batch, Samples
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import Progress
from farthing.task import Task

FEW = 4


def trained(options: ExitTraining, model: Model, task: Task, workshop: Workshop) -> Model:
    """The model with exits at the places of the options, trained on; see `ExitTraining`."""
    few = first_feeds(task, "train", model.manifest, FEW)
    extended = branched(options, model, few)
    samples = Samples(task, understood(extended))
    text = f"training {model.manifest.name} with exits behind {', '.join(options.places)}"
    workshop.listener(Progress(stage="train", text=text))
    student = trainable(extended, few)
    if options.norms:
        student.insert_norms(batch.inputs for batch in samples.spread())
    teachers = options.teaching(model, workshop)
    with lesson(student, samples, options.schedule, teachers, options.distillation, workshop.listener) as (
        module,
        whole,
    ):
        loss = Joint(whole, loss_of(task, samples.manifest), options, answers_of(samples.manifest))
        train(module, samples, loss, options.schedule, workshop=workshop)
    return student.to_model()


class Joint(nn.Module):
    """The loss of the last exit, which is the first output, and a part of those of the exits before it.

    Args:
        whole: of the last exit: the task's, or its teachers'.
        own: the task's, for the other exits.
        options: what they weigh, and how much they learn from the last one.
        answers: what exits give.
    """

    def __init__(self, whole: Loss, own: Loss, options: ExitTraining, answers: Answers) -> None:
        super().__init__()
        self._whole, self._own, self._options = whole, own, options
        self._answers: Answers = answers
        if judge := hitting(whole):
            self.hits = judge.hits

    def forward(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        count = len(self._options.places)
        last, exits, features = outputs[0], outputs[1 : 1 + count], outputs[1 + count :]
        error = self._whole([last, *features], batch)
        for scores in exits:
            error = error + self._options.weight * self._of_exit(scores, last.detach(), batch)
        return error

    def _of_exit(self, scores: Tensor, last: Tensor, batch: Batch) -> Tensor:
        share, heat = self._options.from_last, self._options.distillation.temperature
        error = (1 - share) * self._own([scores], batch)
        if share:
            pair = [log_probabilities(part, self._answers, heat) for part in (scores, last)]
            error = error + share * heat**2 * divergence(pair[0], pair[1])
        return error
