"""Losses: what training makes small, from what the task's metric wants large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor
from torch.nn import functional

from farthing.errors import FarthingError, TaskError
from farthing.forge import graph
from farthing.forge.training.samples import Batch
from farthing.metrics import VOID
from farthing.model import Manifest, Model, checked
from farthing.task import Task, loss_function

Loss = Callable[[Sequence[Tensor], Batch], Tensor]
"""Outputs in the manifest's order, and the batch they answer: a scalar to make small."""

Answers = Literal["logits", "probabilities"]
TINY = 1e-7


@runtime_checkable
class Hitting(Protocol):
    """A loss that can also say which samples were answered right."""

    def hits(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """The share of each sample that is right, 0..1: shape (n,)."""
        ...


def hitting(loss: object) -> Hitting | None:
    """A loss that says which samples were answered right; None if it does not."""
    return loss if isinstance(loss, Hitting) else None


@runtime_checkable
class Reference(Protocol):
    """What knows the outputs that a model should come near to, in its own outputs' order."""

    def answers(self, batch: Batch) -> tuple[Tensor, ...]:
        """The outputs for a batch, float32, no gradient."""
        ...


def loss_of(task: Task, manifest: Manifest, reference: Reference | None = None) -> Loss:
    """The loss that a task's metric calls for, or the task's own.

    ======================== =====================================================================================
    ``top1 top5 macro_f1``   cross-entropy of the first output with the labels
    ``miou``                 the same for each pixel
    ``auc``                  cross-entropy; of one output for two classes the binary one; where all samples to train on
                             are normal (label 0) the mean of the output, an anomaly score
    ``error``                mean absolute error of the first output
    ``agreement``            Kullback-Leibler divergence from the reference outputs' probabilities
    ``cosine``               1 - cosine of the first output with the reference's
    ======================== =====================================================================================

    Args:
        task: its ``loss`` comes first, then its metric.
        manifest: of the model; ``decode: probabilities`` says that its outputs went through a softmax or sigmoid.
        reference: for the metrics that compare with the model as given.

    Raises:
        TaskError: a metric without a loss and no loss of the task's own, a reference that is missing, or labels that
            are missing or out of range.
    """
    if function := loss_function(task):
        return OwnLoss(task, function)
    name = task.metric.name
    answers = answers_of(manifest)
    if task.metric.needs == "reference":
        return _compared(name, task, answers, reference)
    known = task.splits["train"].labels if "train" in task.splits else None
    if known is None:
        raise TaskError(
            f"the train split of task {task.name} has no labels, which a loss for {name} needs: add them, or give "
            "the task a loss of its own"
        )
    makers: dict[str, Callable[[], Loss]] = {
        "top1": lambda: CrossEntropy(answers),
        "top5": lambda: CrossEntropy(answers),
        "macro_f1": lambda: CrossEntropy(answers),
        "miou": lambda: CrossEntropy(answers),
        "auc": lambda: CrossEntropy(answers),
        "error": lambda: absolute_error,
    }
    if name == "auc" and not known.any():
        return mean_score
    if name not in makers:
        raise TaskError(
            f"no loss is known for metric {name!r}: give the task one, as `loss: module:function` in its file or "
            "Task(..., loss=function); it takes the outputs and a batch and gives a scalar tensor"
        )
    return makers[name]()


def answers_of(manifest: Manifest) -> Answers:
    """What the outputs of a model that tells classes apart are."""
    return "probabilities" if manifest.decode == "probabilities" else "logits"


def understood(model: Model) -> Manifest:
    """A model's manifest, where ``decode`` says what its graph shows: that it ends in a softmax or sigmoid."""
    manifest = model.manifest
    if manifest.decode or manifest.format != "onnx":
        return manifest
    makers = {name: node.op_type for node in graph.load(model.file).graph.node for name in node.output}
    last = makers.get(manifest.outputs[0].name)
    return checked(manifest, decode="probabilities") if last in {"Softmax", "Sigmoid"} else manifest


def _compared(name: str, task: Task, answers: Answers, reference: Reference | None) -> Loss:
    if name not in {"agreement", "cosine"}:
        raise TaskError(
            f"no loss is known for metric {name!r}: give task {task.name} one, as `loss: module:function`"
        )
    if reference is None:
        raise TaskError(
            f"metric {name} compares with the model as given: training needs it as a teacher (`teacher: self`)"
        )
    return Divergence(reference, answers) if name == "agreement" else Direction(reference)


class CrossEntropy:
    """Cross-entropy of the first output with whole-number labels: one a sample, or one a pixel.

    Outputs (n, classes) with labels (n,); outputs (n, classes, h, w) with labels (n, h, w), of which 255 is left out
    if there are no so many classes; one output a sample, (n, 1) or (n,), with labels 0 and 1.

    Raises:
        TaskError: labels out of range, or of another shape than the output asks for.
    """

    def __init__(self, answers: Answers = "logits") -> None:
        self._answers = answers

    def __call__(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        rows, labels = self._both(outputs, batch)
        if rows.shape[1] == 1:
            single, truth = rows.reshape(-1), labels.to(rows.dtype)
            if self._answers == "probabilities":
                return functional.binary_cross_entropy(single.clamp(TINY, 1 - TINY), truth)
            return functional.binary_cross_entropy_with_logits(single, truth)
        if self._answers == "probabilities":
            rows = rows.clamp_min(TINY).log()
            return functional.nll_loss(rows, labels, ignore_index=_void(rows.shape[1]))
        return functional.cross_entropy(rows, labels, ignore_index=_void(rows.shape[1]))

    def hits(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Whether the first choice is right; of pixels, the share that are."""
        rows, labels = self._both(outputs, batch)
        if rows.shape[1] == 1:
            edge = 0.5 if self._answers == "probabilities" else 0.0
            return ((rows.reshape(-1) > edge) == (labels == 1)).float()
        right = (rows.argmax(1) == labels).float().reshape(len(labels), -1)
        counted = (labels != _void(rows.shape[1])).float().reshape(len(labels), -1)
        return right.sum(1) / counted.sum(1).clamp_min(1)

    def _both(self, outputs: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """The output with its classes along axis 1, and labels that fit it."""
        rows, labels = outputs[0], _whole(batch.labels)
        rows = rows[:, None] if rows.ndim == 1 else rows
        rows = rows.flatten(1) if labels.ndim == 1 else rows
        rows = classes_second(rows, labels)
        if rows.shape[:1] + rows.shape[2:] != labels.shape or (rows.ndim > 2 and rows.shape[1] < 2):
            raise TaskError(
                f"the output has shape {list(outputs[0].shape)}, the labels {list(labels.shape)}: cross-entropy needs "
                "(samples, classes) with a label each, or (samples, classes, height, width) with one for each pixel"
            )
        _check_range(labels, max(2, rows.shape[1]))
        return rows, labels


def classes_second(rows: Tensor, labels: Tensor | None) -> Tensor:
    """An output with its classes along axis 1; where pixels are labelled they may come last."""
    last = labels is not None and rows.ndim == 4 and rows.shape[1:3] == labels.shape[1:] != rows.shape[2:]
    return rows.movedim(3, 1) if last else rows


def _void(classes: int) -> int:
    """The label of pixels that do not count; no label at all where there are so many classes."""
    return VOID if classes <= VOID else -1


def _whole(labels: Tensor | None) -> Tensor:
    if labels is None or labels.is_floating_point():
        found = "none" if labels is None else str(labels.dtype).removeprefix("torch.")
        raise TaskError(f"cross-entropy needs whole numbers as labels, one a sample or pixel, not {found}")
    return labels


def _check_range(labels: Tensor, classes: int) -> None:
    wrong = (labels < 0) | (labels >= classes)
    if labels.ndim > 1:
        wrong &= labels != _void(classes)
    if bool(wrong.any()):
        raise TaskError(
            f"label {int(labels[wrong][0])} is out of range: the model tells {classes} classes apart "
            f"(0..{classes - 1}); correct the labels, or the size of the model's output"
        )


def mean_score(outputs: Sequence[Tensor], batch: Batch) -> Tensor:
    """The mean of an anomaly score over samples that are all normal."""
    if outputs[0].numel() != len(batch):
        raise TaskError(
            f"all samples to train on are normal (label 0), and the output has shape {list(outputs[0].shape)}: "
            "training then needs one anomaly score a sample; or add samples of other classes"
        )
    return outputs[0].mean()


def absolute_error(outputs: Sequence[Tensor], batch: Batch) -> Tensor:
    """Mean absolute difference of the first output and the labels."""
    found, labels = outputs[0], batch.labels
    if labels is None or labels.numel() != found.numel():
        shape = "none" if labels is None else list(labels.shape)
        raise TaskError(f"the output has shape {list(found.shape)}, but the labels {shape}")
    return functional.l1_loss(found, labels.reshape(found.shape).to(found.dtype))


class Divergence:
    """Kullback-Leibler divergence of the first output's probabilities from the reference's, mean over samples."""

    def __init__(self, reference: Reference, answers: Answers = "logits") -> None:
        self._reference = reference
        self._answers: Answers = answers

    def __call__(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        wanted = self._reference.answers(batch)[0]
        return divergence(*(log_probabilities(part, self._answers) for part in (outputs[0], wanted)))

    def hits(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Whether the first choice is the reference's."""
        return (outputs[0].argmax(1) == self._reference.answers(batch)[0].argmax(1)).float()


class Direction:
    """1 - the cosine of the first output and the reference's, each flattened, mean over samples."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def __call__(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        wanted = self._reference.answers(batch)[0]
        return 1 - functional.cosine_similarity(outputs[0].flatten(1), wanted.flatten(1)).mean()


def divergence(own: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence of log probabilities from those wanted, classes along axis 1; mean over the rest."""
    return functional.kl_div(own, wanted, reduction="none", log_target=True).sum(1).mean()


def log_probabilities(outputs: Tensor, answers: Answers = "logits", temperature: float = 1.0) -> Tensor:
    """Logarithms of class probabilities (classes along axis 1), softened by a temperature."""
    logits = outputs.clamp_min(TINY).log() if answers == "probabilities" else outputs
    return functional.log_softmax(logits / temperature, dim=1)


class OwnLoss:
    """The loss that a task brings.

    Raises:
        TaskError: it fails, or gives anything but one number that depends on the outputs.
    """

    def __init__(self, task: Task, function: Callable[..., object]) -> None:
        self._name = getattr(function, "__name__", type(function).__name__)
        self._task = task.name
        self._function = function

    def __call__(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        try:
            value = self._function(outputs, batch)
        except FarthingError:
            raise
        except Exception as error:  # it is other people's code
            raise TaskError(
                f"the loss {self._name} of task {self._task} ended with {type(error).__name__}: {error}"
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TaskError(
                f"the loss {self._name} of task {self._task} must give one number as a tensor that was computed from "
                f"the outputs, not {found}"
            )
        return value.reshape(())
