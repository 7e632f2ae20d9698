"""Losses: what the metric calls for, against torch's own; a task's own; and words where there is none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from farthing.errors import ConfigError, ModelError, TaskError
from farthing.forge.training.losses import CrossEntropy, Loss, loss_of
from farthing.forge.training.samples import Batch
from farthing.metrics import Metric
from farthing.model import Manifest, TensorSpec
from farthing.task import Split, Task, find_task, loss_function

MANIFEST = Manifest(
    name="net",
    format="onnx",
    inputs=(TensorSpec(name="x", dtype="float32", shape=("n", 3), batch_axis=0),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("n", 4), batch_axis=0),),
)
SURE = Manifest(
    name="net", format="onnx", inputs=MANIFEST.inputs, outputs=MANIFEST.outputs, decode="probabilities"
)


def task(metric: Any, labels: Any = (0, 1, 2, 3), **options: Any) -> Task:
    y = None if labels is None else np.array(labels)
    return Task("t", {"train": Split({"": np.zeros((4, 3), np.float32)}, y)}, metric, **options)


def batch(labels: Any, n: int = 4) -> Batch:
    return Batch((torch.zeros(n, 3),), None if labels is None else torch.as_tensor(labels), torch.arange(n))


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


class Known:
    """A reference that always answers the same."""

    def __init__(self, wanted: Tensor) -> None:
        self.wanted = wanted

    def answers(self, batch: Batch) -> tuple[Tensor, ...]:
        return (self.wanted,)


@pytest.mark.parametrize("metric", ["top1", "top5", "macro_f1"])
def test_classes(metric: str) -> None:
    rows, labels = numbers(4, 4), torch.tensor([0, 3, 2, 1])
    loss = loss_of(task(metric), MANIFEST)
    torch.testing.assert_close(loss([rows], batch(labels)), functional.cross_entropy(rows, labels))
    assert isinstance(loss, CrossEntropy)
    assert loss.hits([rows], batch(labels)).tolist() == (rows.argmax(1) == labels).float().tolist()


def test_probabilities_are_not_taken_for_logits() -> None:
    rows, labels = numbers(4, 4), torch.tensor([0, 3, 2, 1])
    wanted = functional.cross_entropy(rows, labels)
    found = loss_of(task("top1"), SURE)([rows.softmax(1)], batch(labels))
    torch.testing.assert_close(found, wanted)


def test_a_probability_of_nothing_gives_a_number() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    assert math.isfinite(CrossEntropy("probabilities")([rows], batch([1, 0], 2)).item())
    single = torch.tensor([[1.0], [0.0]], requires_grad=True)
    assert math.isfinite(CrossEntropy("probabilities")([single], batch([0, 1], 2)).item())


@pytest.mark.parametrize("last", [False, True])
def test_pixels(last: bool) -> None:
    maps, labels = (
        numbers(2, 4, 5, 6),
        torch.randint(0, 4, (2, 5, 6), generator=torch.Generator().manual_seed(1)),
    )
    labels[0, :2] = 255
    given = maps.movedim(1, 3) if last else maps
    loss = loss_of(task("miou", np.zeros((4, 5, 6), int)), MANIFEST)
    wanted = functional.cross_entropy(maps, labels, ignore_index=255)
    torch.testing.assert_close(loss([given], batch(labels, 2)), wanted)
    right = ((maps.argmax(1) == labels) & (labels != 255)).flatten(1).sum(1) / (labels != 255).flatten(1).sum(
        1
    )
    assert isinstance(loss, CrossEntropy)
    torch.testing.assert_close(loss.hits([given], batch(labels, 2)), right)


@pytest.mark.parametrize("shape", [(4, 1), (4,)])
def test_auc_of_one_output_for_two_classes(shape: tuple[int, ...]) -> None:
    rows, labels = numbers(*shape), torch.tensor([0, 1, 1, 0])
    wanted = functional.binary_cross_entropy_with_logits(rows.reshape(-1), labels.float())
    torch.testing.assert_close(loss_of(task("auc", [0, 1, 1, 0]), MANIFEST)([rows], batch(labels)), wanted)
    torch.testing.assert_close(
        loss_of(task("auc", [0, 1, 1, 0]), SURE)([rows.sigmoid()], batch(labels)), wanted
    )


def test_auc_of_a_column_for_each_class() -> None:
    rows, labels = numbers(4, 4), torch.tensor([0, 3, 2, 1])
    found = loss_of(task("auc"), MANIFEST)([rows], batch(labels))
    torch.testing.assert_close(found, functional.cross_entropy(rows, labels))


def test_auc_where_all_to_train_on_is_normal() -> None:
    """An autoencoder's output is its error of reconstruction: that is to be small for what is normal."""
    loss, rows = loss_of(task("auc", [0, 0, 0, 0]), MANIFEST), numbers(4, 1)
    torch.testing.assert_close(loss([rows], batch([0, 0, 0, 0])), rows.mean())
    with pytest.raises(TaskError, match="one anomaly score a sample"):
        loss([numbers(4, 2)], batch([0, 0, 0, 0]))


def test_error() -> None:
    rows, labels = numbers(4, 1), torch.tensor([0.5, 1.0, -1.0, 2.0])
    found = loss_of(task("error", [0.5, 1.0, -1.0, 2.0]), MANIFEST)([rows], batch(labels))
    torch.testing.assert_close(found, (rows[:, 0] - labels).abs().mean())
    with pytest.raises(TaskError, match=r"shape \[4, 2\], but the labels \[4\]"):
        loss_of(task("error", [0.5, 1, 2, 3]), MANIFEST)([numbers(4, 2)], batch(labels))


def test_agreement_is_the_divergence_from_the_reference() -> None:
    rows, wanted = numbers(4, 4), torch.randn(4, 4)
    loss = loss_of(task("agreement", None), MANIFEST, Known(wanted))
    own, other = rows.log_softmax(1), wanted.log_softmax(1)
    by_hand = (other.exp() * (other - own)).sum(1).mean()
    torch.testing.assert_close(loss([rows], batch(None)), by_hand)
    assert float(loss([wanted], batch(None))) == pytest.approx(0, abs=1e-6)


def test_cosine() -> None:
    rows, wanted = numbers(4, 3, 2), torch.randn(4, 3, 2)
    loss = loss_of(task("cosine", None), MANIFEST, Known(wanted))
    a, b = rows.flatten(1), wanted.flatten(1)
    torch.testing.assert_close(
        loss([rows], batch(None)), 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean()
    )


@pytest.mark.parametrize("metric", ["agreement", "cosine"])
def test_what_compares_needs_a_teacher(metric: str) -> None:
    with pytest.raises(TaskError, match=r"training needs it as a teacher \(`teacher: self`\)"):
        loss_of(task(metric, None), MANIFEST)


@pytest.mark.parametrize(
    "metric",
    [
        "map",
        Metric("mine", "labels", per_sample=lambda o, t: t),
        Metric("like", "reference", per_sample=lambda o, t: t),
    ],
    ids=["map", "labels", "reference"],
)
def test_a_metric_without_a_loss_asks_for_one(metric: Any) -> None:
    boxes = np.zeros((4, 1, 5))
    with pytest.raises(TaskError, match=r"no loss is known for metric .*`loss: module:function`"):
        loss_of(task(metric, boxes), MANIFEST)


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ((4, 4), [0, 1, 2, 4], r"label 4 is out of range: the model tells 4 classes apart \(0..3\)"),
        ((4, 4), [0, 1, 2, 255], "label 255 is out of range"),
        ((4, 4), [0, 1, 2, -1], "label -1 is out of range"),
        ((4, 1), [0, 1, 2, 1], r"label 2 is out of range: the model tells 2 classes apart"),
        ((4, 4), [0.5, 1, 2, 3], "whole numbers"),
        ((4, 4), None, "whole numbers as labels, one a sample or pixel, not none"),
        ((4, 4, 3, 3), np.zeros((4, 2, 2), int), r"shape \[4, 4, 3, 3\], the labels \[4, 2, 2\]"),
        ((4, 4, 3, 3), np.full((4, 3, 3), 4), "label 4 is out of range"),
        ((4, 1, 3, 3), np.zeros((4, 3, 3), int), "needs"),
    ],
)
def test_labels_that_cannot_be(rows: tuple[int, ...], labels: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        CrossEntropy()([numbers(*rows)], batch(labels))


def test_a_train_split_without_labels() -> None:
    given = task("agreement", None)
    given.metric = task("top1").metric
    with pytest.raises(TaskError, match="train split of task t has no labels, which a loss for top1 needs"):
        loss_of(given, MANIFEST)


# --- a task's own


def halves(outputs: Any, batch: Batch) -> Tensor:
    total: Tensor = outputs[0].sum() / 2
    return total


def test_a_tasks_own_loss_comes_first() -> None:
    rows = numbers(4, 4)
    found = loss_of(task("top1", loss=halves), MANIFEST)([rows], batch([0, 1, 2, 3]))
    torch.testing.assert_close(found, rows.sum() / 2)


LOSS = """
from torch.nn import functional

def smooth(outputs, batch):
    return functional.cross_entropy(outputs[0], batch.labels, label_smoothing=0.1)

number = 3
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mylosses.py").write_text(LOSS)
    np.savez(tmp_path / "d.npz", x=np.zeros((40, 3), np.float32), y=np.arange(40) % 4)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def from_file(folder: Path, loss: str) -> Loss:
    text = (
        "name: t\nsource: {format: npz, path: d.npz, labels: y}\nmetric: top1\n"
        f"splits: {{train: 0.5, validation: 0.5}}\nloss: '{loss}'\n"
    )
    (folder / "task.yaml").write_text(text)
    return loss_of(find_task(str(folder / "task.yaml")), MANIFEST)


def test_a_task_file_names_its_loss(written: Path) -> None:
    rows, labels = numbers(4, 4), torch.tensor([0, 3, 2, 1])
    found = from_file(written, "mylosses:smooth")([rows], batch(labels))
    torch.testing.assert_close(found, functional.cross_entropy(rows, labels, label_smoothing=0.1))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("mylosses:smoth", r"no loss at 'mylosses:smoth': mylosses has no 'smoth'; did you mean 'smooth'"),
        (
            "mylossis:smooth",
            r"no loss at 'mylossis:smooth': there is no module 'mylossis'; did you mean 'mylosses'",
        ),
        ("mylosses:number", "is no function, but of type int"),
        ("smooth", "loss is module:function, not 'smooth'"),
    ],
)
def test_a_loss_that_is_not_there(loss: str, message: str, written: Path) -> None:
    with pytest.raises(TaskError, match=message):
        from_file(written, loss)


def fails(outputs: Any, batch: Batch) -> Tensor:
    raise ValueError("no such thing")


def says_more(outputs: Any, batch: Batch) -> Tensor:
    raise ModelError("the model is upside down")


@pytest.mark.parametrize(
    ("loss", "kind", "message"),
    [
        (fails, TaskError, "the loss fails of task t ended with ValueError: no such thing"),
        (says_more, ModelError, "upside down"),
        (lambda outputs, batch: 3.0, TaskError, "must give one number as a tensor .* not float"),
        (lambda outputs, batch: outputs[0], TaskError, r"not shape \[4, 4\]"),
        (lambda outputs, batch: outputs[0].sum().detach(), TaskError, "computed from the outputs"),
        (lambda outputs: outputs[0], TaskError, "must take two arguments"),
        (3, TaskError, "is no function, but of type int"),
    ],
    ids=["fails", "ours", "float", "matrix", "no gradient", "one argument", "number"],
)
def test_what_a_users_loss_does_wrong_is_said(loss: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        loss_of(task("top1", loss=loss), MANIFEST)([numbers(4, 4)], batch([0, 1, 2, 3]))


def test_a_task_without_a_loss_of_its_own() -> None:
    assert loss_function(task("top1")) is None


def test_labels_of_pixels_in_a_task() -> None:
    def made(pixels: Any, **options: Any) -> Task:
        split = Split({"": np.zeros((2, 3), np.float32)}, pixels)
        return Task("seg", {"train": split, "validation": split}, "miou", **options)

    with pytest.raises(TaskError, match=r"one a pixel: \(samples, height, width\)"):
        made(np.zeros(2, int))
    with pytest.raises(TaskError, match=r"label 7 is out of range \(0..1\)"):
        made(np.full((2, 4, 4), 7), labels=("a", "b"))
    made(np.full((2, 4, 4), 255), labels=("a", "b"))


def test_config_errors_are_config_errors() -> None:
    from farthing.config import convert
    from farthing.taskfile import TaskFile

    with pytest.raises(ConfigError, match="module:function"):
        convert(
            {"name": "t", "source": {"format": "npz", "path": "p"}, "metric": "top1", "loss": "x"},
            TaskFile,
            "f",
        )
