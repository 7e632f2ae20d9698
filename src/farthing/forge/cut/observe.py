"""Sizes of the tensors inside a model: seen in runs with batches of different sizes, not inferred."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import onnx

from farthing.bench import random_feeds
from farthing.forge import graph
from farthing.forge.cut.flow import Flow
from farthing.model import DTYPES, TensorSpec

DATA_DEPENDENT = frozenset("NonZero NonMaxSuppression Unique Compress If Loop Scan Range".split())
"""Operators whose results may have another size for another input of the same size."""
FEW, MANY = 1, 3  # samples in the two runs


class Tensor(NamedTuple):
    """A tensor inside a model.

    Attributes:
        spec: as a manifest gives it.
        bytes: of one sample.
    """

    spec: TensorSpec
    bytes: int


def observe(
    proto: onnx.ModelProto, flow: Flow, inputs: Sequence[TensorSpec], feeds: Mapping[str, graph.Array] | None
) -> tuple[dict[str, Tensor], dict[str, graph.Array]]:
    """Run a model to see the tensors inside it.

    Args:
        proto: the model.
        flow: its flow.
        inputs: its inputs as the manifest gives them.
        feeds: what to run it on; None takes random numbers.

    Returns:
        Tensor name -> what was seen, inputs included, values that are no tensors left out; and the feeds of one sample.

    Raises:
        MeasurementError: no numbers can be made up for its inputs: feeds are needed.
        EngineError: it does not run.
    """
    if feeds is None:
        feeds = random_feeds(inputs, FEW, np.random.default_rng(0))
    free = next(
        (str(s.shape[s.batch_axis]) for s in inputs if s.batch_axis is not None and not s.fixed_batch), ""
    )
    one = {spec.name: _samples(feeds[spec.name], spec, FEW) for spec in inputs}
    extra = [name for name in flow.maker if name not in flow.outputs]
    few = one | graph.run(proto, one, extra, optimise=False)
    many = few
    if free:
        more = {spec.name: _samples(feeds[spec.name], spec, MANY) for spec in inputs}
        many = more | graph.run(proto, more, extra, optimise=False)
    loose, scales = _loose(flow), _scales(flow)
    known = {spec.name: spec for spec in inputs}
    seen = {}
    for name, value in few.items():
        dtype = "str" if value.dtype.kind in "OU" else value.dtype.name
        if name in many and many[name].ndim == value.ndim and dtype in DTYPES:
            spec = known.get(name) or _spec(name, dtype, value.shape, many[name].shape, free, name in loose)
            scale, zero = scales.get(name, (None, 0))
            if name not in known and scale is not None and "int" in dtype:
                spec = msgspec.structs.replace(spec, scale=scale, zero_point=zero)
            seen[name] = Tensor(spec, _bytes(value))
    return seen, one


def _samples(array: graph.Array, spec: TensorSpec, count: int) -> graph.Array:
    """So many samples, repeated as need be; all there is if the tensor has no free batch axis."""
    if spec.batch_axis is None or spec.fixed_batch:
        return array
    picks = np.arange(count) % array.shape[spec.batch_axis]
    return np.asarray(np.take(array, picks, axis=spec.batch_axis))


def _bytes(value: graph.Array) -> int:
    return sum(len(str(text)) for text in value.flat) if value.dtype.kind in "OU" else value.nbytes


def _spec(
    name: str, dtype: str, few: tuple[int, ...], many: tuple[int, ...], free: str, loose: bool
) -> TensorSpec:
    """An axis that followed the batch is called as it is there; one that changed otherwise has a name of its own."""
    batch = (
        [axis for axis, sizes in enumerate(zip(few, many, strict=True)) if sizes == (FEW, MANY)]
        if free
        else []
    )
    shape = tuple(
        free if axis in batch[:1] else f"{name}_{axis}" if loose or a != b else a
        for axis, (a, b) in enumerate(zip(few, many, strict=True))
    )
    return TensorSpec(name=name, dtype=dtype, shape=shape, batch_axis=batch[0] if batch else None)


def _loose(flow: Flow) -> set[str]:
    """Tensors whose sizes may depend on what is in the inputs."""
    found: set[str] = set()
    for number in flow.order:
        node = flow.nodes[number]
        if node.op_type in DATA_DEPENDENT or not found.isdisjoint(flow.reads[number]):
            found.update(node.output)
    return found


def _scales(flow: Flow) -> dict[str, tuple[float, int]]:
    """Scale and zero point of each tensor that a QuantizeLinear node with one of each makes."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in flow.proto.graph.initializer}
    found = {}
    for number in flow.order:
        node = flow.nodes[number]
        if node.op_type == "QuantizeLinear" and all(name in stored for name in node.input[1:]):
            values = [numpy_helper.to_array(stored[name]) for name in node.input[1:]]
            if all(math.prod(value.shape) == 1 for value in values):
                zero = int(values[1].item()) if len(values) > 1 else 0
                found[node.output[0]] = (float(values[0].item()), zero)
    return found
