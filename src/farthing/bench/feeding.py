"""From samples of a task to a model's input tensors, and from its outputs back to samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.bench.racing import Tick
from farthing.engines.base import Engine, Tensors
from farthing.errors import MeasurementError, TaskError
from farthing.metrics import Outputs
from farthing.model import Manifest, TensorSpec
from farthing.ops.scale import real, stored
from farthing.task import Split, SplitName, Task

Array = NDArray[Any]
EVALUATION_BATCH = 64
OFFLINE_BATCH = 32
MOST_NUMBERS = 1 << 23
"""Numbers fed at once, where we choose the batch: what lies inside a network is tens of times as large."""


def feeds(task: Task, split: Split, manifest: Manifest, picks: Sequence[int] | Array) -> dict[str, Array]:
    """Some samples of a split as the model's input tensors, preprocessed as its manifest says."""
    raw = split.take(picks)
    specs = {spec.name: spec for spec in manifest.data_inputs}
    if task.form == "image":
        from farthing.ops.image import prepare_batch

        task.check(manifest)
        spec = next(iter(specs.values()))
        if manifest.preprocess is None:
            raise TaskError(f"the manifest of {manifest.name} does not say how to preprocess pictures")
        return {spec.name: prepare_batch(next(iter(raw.values())), manifest.preprocess, spec)}
    named = {name or next(iter(specs)): array for name, array in raw.items()}
    return {name: _fed(array, specs[name]) for name, array in named.items() if name in specs}


def _fed(array: Array, spec: TensorSpec) -> Array:
    """Samples along the first axis as one input tensor: along its batch axis, or the only one if it has none."""
    placed = array[0] if spec.batch_axis is None else np.moveaxis(array, 0, spec.batch_axis)
    return stored(placed, spec)


def outputs(
    engine: Engine,
    manifest: Manifest,
    task: Task,
    split: Split,
    picks: Array | None = None,
    tick: Tick | None = None,
) -> Outputs:
    """What a model answers to the samples of a split: output name -> array, samples along the first axis."""
    order = np.arange(len(split)) if picks is None else np.asarray(picks)
    size = fitting_batch(manifest, EVALUATION_BATCH, task, split) if len(order) else 1
    parts: list[dict[str, Array]] = []
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        padded = padded_to_batch(chunk, manifest)
        stream = engine.session() if engine.stateful else engine
        answer = stream.run(feeds(task, split, manifest, padded))
        rows = outputs_by_sample(answer, engine.outputs, len(padded))
        parts.append({name: array[: len(chunk)] for name, array in rows.items()})
        if tick:
            tick(min(start + size, len(order)), len(order))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def outputs_by_sample(answer: Tensors, specs: Sequence[TensorSpec], count: int) -> dict[str, Array]:
    """What a model answered to ``count`` samples, as real numbers with samples along the first axis.

    Raises:
        TaskError: an output has another number of samples.
    """
    return {spec.name: _rows(answer[spec.name], spec, count) for spec in specs}


def _rows(array: Array, spec: TensorSpec, count: int) -> Array:
    """An output with its samples along the first axis; one without a batch axis belongs to a single sample."""
    if spec.batch_axis is not None:
        array = np.moveaxis(array, spec.batch_axis, 0)
    elif array.ndim == 0 or len(array) != count:
        array = array[None]
    if len(array) != count:
        raise TaskError(
            f"output {spec.name!r} answers {count} samples with shape {list(array.shape)}: "
            "set its batch_axis in the manifest, and that of the inputs"
        )
    return real(array, spec)


def padded_to_batch(picks: Array, manifest: Manifest) -> Array:
    """Picks repeated to fill the batch of a model that fixes it; as they are for any other model."""
    return np.resize(picks, batch_size(manifest, 1)) if _fixed(manifest) else picks


def _fixed(manifest: Manifest) -> bool:
    return any(spec.fixed_batch for spec in manifest.data_inputs)


def batch_size(manifest: Manifest, wanted: int) -> int:
    """``wanted``, or what the model fixes: its batch, or 1 for a model that keeps state or has no batch axis."""
    if any(spec.role == "state" for spec in manifest.inputs):
        return 1
    sizes = [spec.fixed_batch for spec in manifest.data_inputs if spec.fixed_batch]
    if sizes:
        return sizes[0]
    return wanted if any(spec.batch_axis is not None for spec in manifest.data_inputs) else 1


def fitting_batch(manifest: Manifest, wanted: int, task: Task, split: Split, most: int = MOST_NUMBERS) -> int:
    """``wanted``, or as many samples as ``most`` numbers are, or what the model fixes."""
    if batch_size(manifest, 0):  # the model decides
        return batch_size(manifest, wanted)
    return max(1, min(wanted, most // max(1, _numbers(manifest, task, split))))


def _numbers(manifest: Manifest, task: Task, split: Split) -> int:
    """How many numbers a sample is: the manifest says so, or the first one does where that leaves sizes open."""
    shapes = [spec.sized(1) for spec in manifest.data_inputs]
    if any(spec.free_axes for spec in manifest.data_inputs):
        shapes = [array.shape for array in feeds(task, split, manifest, [0]).values()]
    return sum(math.prod(shape) for shape in shapes)


def offline_batch(manifest: Manifest, task: Task) -> int:
    """Samples in a batch of the offline scenario, where nobody asked for a number: 32, fewer if they are large."""
    return fitting_batch(manifest, OFFLINE_BATCH, task, task.split("validation"))


def sample_feeds(
    manifest: Manifest, batch: int, task: Task | None = None, split: SplitName = "validation"
) -> list[Tensors]:
    """Up to eight feeds to time with: real samples of the task, or seeded random numbers where there is no task.

    Raises:
        MeasurementError: there is no task, and the manifest leaves sizes open.
    """
    size = batch_size(manifest, batch)
    if task is not None:
        data = task.split(split)
        rows = np.resize(np.arange(len(data)), 8 * size).reshape(8, size)
        return [feeds(task, data, manifest, row) for row in rows]
    return [random_feeds(manifest.data_inputs, size, np.random.default_rng(0))]


def first_feeds(task: Task, split: SplitName, manifest: Manifest, count: int = 1) -> dict[str, Array]:
    """The first samples of a split as one feed: as many as a fixed batch asks for, else at most ``count``."""
    data = task.split(split)
    return feeds(task, data, manifest, padded_to_batch(np.arange(min(count, len(data))), manifest))


def random_feeds(specs: Sequence[TensorSpec], batch: int, generator: np.random.Generator) -> dict[str, Array]:
    """Random numbers for inputs where no data is at hand; an axis 0 of open size is the batch.

    Raises:
        MeasurementError: a data input takes text, or leaves open how large a sample is.
    """
    for spec in specs:
        first = 0 if spec.batch_axis is None else spec.batch_axis
        free = [size for axis, size in enumerate(spec.shape) if isinstance(size, str) and axis != first]
        if free and spec.role == "data":
            raise MeasurementError(
                f"input {spec.name!r} has the free axes {', '.join(free)}: give a task whose samples have sizes, or "
                "write the sizes into the manifest"
            )
        if spec.dtype == "str":
            raise MeasurementError(f"input {spec.name!r} takes text: give a task with samples to run it on")
    return {spec.name: random_array(spec.sized(batch), spec.dtype, generator) for spec in specs}


def random_array(shape: tuple[int, ...], dtype: str, generator: np.random.Generator) -> Array:
    """Random numbers of a type: standard normal, any of 8 bits, else whole numbers 0 and 1."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return np.asarray(generator.standard_normal(shape)).astype(dtype)
    limits = np.iinfo(kind) if kind.itemsize == 1 and kind.kind in "iu" else None
    low, high = (limits.min, limits.max + 1) if limits else (0, 2)
    return np.asarray(generator.integers(low, high, shape)).astype(dtype)
