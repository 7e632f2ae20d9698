"""Samples: a task's data as a model takes them, ready to train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farthing.bench.feeding import feeds
from farthing.errors import TaskError, UnsupportedError
from farthing.forge.training.augment import augmented
from farthing.forge.training.schedule import Augment
from farthing.model import Manifest, TensorSpec
from farthing.task import Split, Task

Array = NDArray[Any]
MEMORY = 1 << 29
CHUNK = 256
MEASURED = 512  # samples that statistics are measured on, such as those of batch normalization


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes:
        inputs: one tensor for each data input of the manifest, in its order and of its type.
        labels: one entry a sample along the first axis, int64 or float32; None if the task has none.
        picks: which samples of the split these are, int64.
        plain: whether the inputs are the samples as they are, not augmented.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    picks: Tensor
    plain: bool = True

    def __len__(self) -> int:
        return len(self.picks)


class Samples:
    """A split of a task, prepared for a model: pictures decoded and preprocessed as its manifest says.

    What fits is prepared once and kept in memory; of what does not, each batch is prepared when it is asked for.

    Args:
        task: whose data it is.
        manifest: of the model that takes them.
        split: which split; one to train on unless said otherwise.
        memory: most bytes to keep.

    Attributes:
        task, manifest: as given.

    Raises:
        TaskError: no such split, or one that does not fit the model.
        UnsupportedError: a model without a batch axis, or one that keeps state between calls.
    """

    def __init__(self, task: Task, manifest: Manifest, split: str = "train", *, memory: int = MEMORY) -> None:
        _check(manifest)
        self.task, self.manifest = task, manifest
        self._split = _found(task, split)
        task.check(manifest)
        self._specs = manifest.data_inputs
        labels = self._split.labels
        self.labels = None if labels is None else _as_tensor(labels)
        one = self._prepared(np.zeros(1, np.int64))
        small = sum(part.nbytes for part in one) * len(self) <= memory
        self._kept = self._all(one) if small else None

    @classmethod
    def of_arrays(cls, inputs: Array, labels: Array | None = None) -> Samples:
        """Samples of a network that has no manifest yet and takes one input as it is.

        Args:
            inputs: float32, samples along the first axis.
            labels: one a sample.

        Raises:
            TaskError: they do not fit one another, or are not finite.
        """
        x = np.asarray(inputs, np.float32)
        spec = TensorSpec(name="input", dtype="float32", shape=("batch", *x.shape[1:]), batch_axis=0)
        manifest = Manifest(name="network", format="", inputs=(spec,), outputs=())
        return cls(Task("arrays", {"train": Split({"": x}, labels)}, "agreement"), manifest)

    def __len__(self) -> int:
        return len(self._split)

    @property
    def digest(self) -> str:
        """SHA-256 over the data, as the task has them."""
        return self._split.digest

    @property
    def split(self) -> Split:
        """The samples as the task has them."""
        return self._split

    def batch(
        self, picks: Tensor, augment: Augment = "none", generator: torch.Generator | None = None
    ) -> Batch:
        """Some samples, in the order of ``picks``; augmented with randomness of ``generator``, if asked for.

        Raises:
            TaskError: a picture cannot be read, or these samples cannot be augmented like that.
        """
        rows = self._kept or self._prepared(picks.numpy())
        inputs = [part[picks] for part in rows] if self._kept else list(rows)
        labels = None if self.labels is None else self.labels[picks]
        if augment != "none" and generator is not None:
            _check_movable(augment, labels)
            inputs[0] = augmented(inputs[0], augment, generator, self._specs[0].layout)
        placed = (
            part.movedim(0, spec.batch_axis or 0) for part, spec in zip(inputs, self._specs, strict=True)
        )
        return Batch(tuple(placed), labels, picks, plain=augment == "none")

    def batches(self, size: int = CHUNK) -> Iterator[Batch]:
        """All samples in their order, ``size`` at a time."""
        for picks in torch.split(torch.arange(len(self)), size):
            yield self.batch(picks)

    def spread(self, count: int = MEASURED, size: int = CHUNK) -> Iterator[Batch]:
        """``count`` samples, or all if there are fewer, from all over the split: data are often sorted by class.

        They come in batches of one size, ``size`` at most, but for one sample.
        """
        picks = torch.linspace(0, len(self) - 1, min(count, len(self)), dtype=torch.float64).round().long()
        for part in torch.tensor_split(picks, -(-len(picks) // size)):
            yield self.batch(part)

    def _prepared(self, picks: Array) -> tuple[Tensor, ...]:
        """Samples along the first axis of each input."""
        fed = feeds(self.task, self._split, self.manifest, picks)
        return tuple(
            torch.from_numpy(np.ascontiguousarray(np.moveaxis(fed[spec.name], spec.batch_axis or 0, 0)))
            for spec in self._specs
        )

    def _all(self, one: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        whole = tuple(torch.empty((len(self), *part.shape[1:]), dtype=part.dtype) for part in one)
        for start in range(0, len(self), CHUNK):
            end = min(start + CHUNK, len(self))
            for part, fresh in zip(whole, self._prepared(np.arange(start, end)), strict=True):
                part[start:end] = fresh
        return whole


def _check(manifest: Manifest) -> None:
    if any(spec.role == "state" for spec in manifest.inputs):
        raise UnsupportedError(
            f"{manifest.name} keeps state between calls: training feeds samples that do not follow one another; "
            "train the network before it is exported step by step"
        )
    for spec in manifest.data_inputs:
        if spec.batch_axis is None:
            raise UnsupportedError(
                f"input {spec.name!r} of {manifest.name} has no batch axis: training needs one; export the network "
                "with a batch, or set batch_axis in the manifest"
            )


def _found(task: Task, name: str) -> Split:
    try:
        return task.splits[name]
    except KeyError:
        raise TaskError(
            f"task {task.name} has no {name} split, and training needs one: give it a share in the task file, as in "
            "`splits: {train: 0.6, validation: 0.2, test: 0.2}`, or a Split of that name in Python"
        ) from None


def _as_tensor(labels: Array) -> Tensor:
    kind = np.int64 if labels.dtype.kind in "iub" else np.float32
    return torch.from_numpy(np.ascontiguousarray(labels, kind))


def _check_movable(augment: Augment, labels: Tensor | None) -> None:
    """Labels that lie in the picture would have to move with it."""
    if augment in {"affine", "flip"} and labels is not None and labels.ndim > 1:
        raise TaskError(
            f"`augment: {augment}` moves pictures, but not their labels of shape {list(labels.shape[1:])} each: "
            "train with `augment: none`"
        )
