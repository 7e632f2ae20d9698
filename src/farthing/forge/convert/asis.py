"""ONNX taken as it is: loaded, run, and its batch axis tried; nothing in the graph is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.engines.base import BATCH
from farthing.engines.onnxruntime import runtime
from farthing.errors import EngineError, ModelError, UnsupportedError
from farthing.forge import graph
from farthing.forge.convert.describe import manifest_of, with_layouts
from farthing.forge.convert.difference import batch_axes, distance
from farthing.forge.convert.example import (
    SAMPLES,
    Example,
    Pool,
    example_of,
    invented,
    random_like,
    rows_like,
)
from farthing.model import Manifest, Model, TensorSpec
from farthing.ops.scale import stored

Array = NDArray[Any]
Specs = Sequence[TensorSpec]


def take(
    path: Path,
    given: Any,
    samples: Mapping[str, Array] | None,
    tolerance: float,
    name: str,
    level: int | None,
    owner: Manifest | None,
    out: Path | None,
) -> tuple[Model, str, tuple[str, ...]]:
    """Take an ONNX file over. Returns the model, how it was checked, and what was assumed."""
    model = graph.load(path)
    opset = graph.opset(model)
    if level not in {None, opset}:
        raise UnsupportedError(
            f"{path} has opset {opset} and is taken as it is: leave the opset out, or export the model with {level}"
        )
    inputs, outputs = graph.tensor_specs(model)
    inputs = tuple(with_role(spec, owner) for spec in inputs)
    example = example_for(inputs, given, samples)
    trial = Trial(
        graph.Session(model), inputs, outputs, pool_for(inputs, example, samples), tolerance, example
    )
    fed, answered = trial.specs()
    fed, layouts = with_layouts(fed, owner)
    manifest = manifest_of(name, fed, answered, f"convert.onnx.v1 opset {opset}", owner)
    data = graph.read(path)
    content = graph.save_bytes(model) if graph.external(graph.parse(data, str(path))) else data
    checked = f"ONNX Runtime {runtime().__version__} runs it, {trial.checked}"
    return Model.create(manifest, {"model.onnx": content}, out), checked, (*trial.assumptions, *layouts)


def with_role(spec: TensorSpec, owner: Manifest | None) -> TensorSpec:
    """The spec with the role that its owner's manifest gives it."""
    told = next((known for known in owner.inputs if known.name == spec.name), None) if owner else None
    return spec if told is None else msgspec.structs.replace(spec, role=told.role)


def example_for(inputs: Specs, given: Any, samples: Mapping[str, Array] | None) -> Example:
    """What the model is fed: what the caller gives, else zeros of the sizes that the file or the samples have.

    Raises:
        ModelError: it does not fit the inputs, or the file leaves sizes open that nobody states.
    """
    example = example_of(given, None, np.float32)
    if example is None:
        return Example([_zeros(spec, samples or {}, len(inputs)) for spec in inputs], False)
    if len(example.arrays) != len(inputs):
        names = ", ".join(spec.name for spec in inputs)
        raise ModelError(
            f"the model takes {len(inputs)} inputs ({names}), the example has {len(example.arrays)}"
        )
    named = dict(zip(example.names or [spec.name for spec in inputs], example.arrays, strict=True))
    arrays = []
    for spec in inputs:
        array = named.get(spec.name)
        if array is None or array.ndim != len(spec.shape) or not _fits(array.shape, spec.shape):
            shape = "nothing" if array is None else list(array.shape)
            raise ModelError(
                f"the example gives {shape} for input {spec.name!r}, the model takes {list(spec.shape)}"
            )
        arrays.append(array if example.real else array.astype(spec.dtype))
    return Example(arrays, example.real)


def _fits(shape: Sequence[int], declared: Sequence[int | str]) -> bool:
    return all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(shape, declared, strict=True)
    )


def _zeros(spec: TensorSpec, samples: Mapping[str, Array], count: int) -> Array:
    sample = samples.get(spec.name, samples.get("") if count == 1 else None)
    free = [size for size in spec.shape[1:] if isinstance(size, str)]
    if free and sample is None and spec.role != "state":
        raise ModelError(
            f"input {spec.name!r} has the free axes {', '.join(free)}: say what it takes, as in --example 1x3x224x224, "
            "or give --task"
        )
    inner = sample.shape[1:] if free and sample is not None else spec.sized(1)[1:]
    return np.zeros((*spec.sized(1)[:1], *inner), spec.dtype)


def pool_for(inputs: Specs, example: Example, samples: Mapping[str, Array] | None) -> Pool:
    """Rows for the inputs that carry the batch; one array, the same for all calls, for the others."""
    moving = _moving(inputs)
    batch = _fixed(inputs) or 1
    count = max(SAMPLES, 2 * batch)
    words = invented(example, count if moving else 1)
    arrays = rows_like(example, count)
    generator = np.random.default_rng(0)
    for number, spec in enumerate(inputs):
        sample = (samples or {}).get(spec.name, (samples or {}).get("") if len(inputs) == 1 else None)
        if number not in moving:
            arrays[number] = _one(spec, example, number, sample, generator)
        elif sample is not None:
            if not len(sample):
                raise ModelError(f"there are no samples of input {spec.name!r} to check the model on")
            arrays[number] = stored(np.asarray(sample)[np.arange(count) % len(sample)], spec)
            words = f"{min(count, len(sample))} real samples"
    return Pool(arrays, words, set(range(len(inputs))) - moving)


def _one(
    spec: TensorSpec, example: Example, number: int, sample: Array | None, generator: np.random.Generator
) -> Array:
    """What an input without a batch (a scalar, say) is fed in every call: the first sample, or like the example."""
    own = example.arrays[number]
    if sample is not None and len(sample) and np.shape(sample)[1:] == own.shape:
        return np.asarray(sample[0], spec.dtype)
    if example.real or spec.role == "state":
        return own
    return random_like(own, len(own) if own.ndim else 1, generator)


def _moving(inputs: Specs) -> set[int]:
    """Numbers of the inputs whose first axis is taken as the batch: the free ones, else those as long as the first."""
    data = [(i, spec.shape[0]) for i, spec in enumerate(inputs) if spec.shape and spec.role == "data"]
    free = {i for i, size in data if isinstance(size, str)}
    return free or {i for i, size in data if size == data[0][1]}


def _fixed(inputs: Specs) -> int | None:
    """The size of the batch if the file fixes it."""
    sizes = [inputs[i].shape[0] for i in _moving(inputs)]
    return next((size for size in sizes if isinstance(size, int)), None)


class Runs(Protocol):
    """What runs a model for a trial."""

    def run(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        """Outputs by name."""
        ...


class Trial:
    """A model run one by one and in a batch; what that shows.

    Raises:
        ModelError: it gives NaN or infinity.
        EngineError: the runtime fails on single samples.
    """

    def __init__(
        self,
        session: Runs,
        inputs: Specs,
        outputs: Specs,
        pool: Pool,
        tolerance: float,
        example: Example,
    ) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        self._pool = pool
        self._tolerance = tolerance
        self._moving = _moving(inputs)
        self._example = example
        self._batch_axis: int | None = 0
        self.batch = _fixed(inputs)
        self.checked = f"its outputs are finite on {pool.words}"
        step = self.batch or 1
        self._answers = [self._run(start, step) for start in range(0, pool.size - step + 1, step)]
        self._refuse_nan()
        where = " and ".join(repr(inputs[i].name) for i in sorted(self._moving))
        self.assumptions = [f"axis 0 of {where} taken as the batch axis"] if self._moving else []
        self._axes: list[int | None] = [
            0 if array.ndim and len(array) == step and self._moving else None for array in self._answers[0]
        ]
        if self.batch is None and self._moving:
            self._try_batch()
        elif self._moving:
            self.assumptions[0] += f", which the file fixes at {self.batch}"

    def _run(self, start: int, count: int) -> list[Array]:
        inputs = self._pool.take(start, count)
        results = self._session.run({s.name: array for s, array in zip(self._inputs, inputs, strict=True)})
        return [results[spec.name] for spec in self._outputs]

    def _refuse_nan(self) -> None:
        for spec, *arrays in zip(self._outputs, *self._answers, strict=True):
            if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in arrays):
                raise ModelError(
                    f"output {spec.name!r} holds NaN or infinity on {self._pool.words}: give real inputs, "
                    "or mend the model"
                )

    def _try_batch(self) -> None:
        if any(spec.role == "state" for spec in self._inputs):
            self._settle("the model keeps a state")
            return
        try:
            together = self._run(0, self._pool.size)
        except EngineError as error:
            self._settle(f"it fails on a batch of {self._pool.size} ({error})")
            return
        axes = batch_axes(self._answers, together, self._tolerance)
        if axes is None:
            self._settle(f"a batch of {self._pool.size} is not answered as its samples are one by one")
            return
        self._axes = axes
        followed = [i for i, axis in enumerate(axes) if axis == 0]
        gaps = [distance(np.concatenate([a[i] for a in self._answers]), together[i]) for i in followed]
        self.checked += f", a batch of {self._pool.size} equal to single samples within {max(gaps):.1e}"

    def _settle(self, reason: str) -> None:
        """Fix axis 0 at 1; or at the size the example gives it, which then counts no samples."""
        self.batch = max(len(self._example.arrays[i]) for i in self._moving)
        if self.batch == 1:
            self.assumptions.append(f"batch fixed at 1, although the file leaves it free: {reason}")
            return
        self.assumptions = [f"axis 0 kept at {self.batch} and not taken as a batch axis: {reason}"]
        self._batch_axis = None
        self._axes = [None for _ in self._outputs]
        self._answers = [self._run(0, self.batch)]

    def specs(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Inputs and outputs with their batch axes; sizes the file leaves open are filled in where they cannot vary."""
        batch = BATCH if self.batch is None else self.batch
        fed = []
        for number, spec in enumerate(self._inputs):
            if number in self._moving:
                spec = msgspec.structs.replace(
                    spec, shape=(batch, *spec.shape[1:]), batch_axis=self._batch_axis
                )
            fed.append(spec)
        varies = any(isinstance(size, str) for spec in self._inputs for size in spec.shape[1:])
        answered = []
        for spec, array, axis in zip(self._outputs, self._answers[0], self._axes, strict=True):
            inner = spec.shape if varies and len(spec.shape) == array.ndim else array.shape
            shape = tuple(batch if place == axis else size for place, size in enumerate(inner))
            answered.append(msgspec.structs.replace(spec, shape=shape, batch_axis=axis))
        return fed, answered
