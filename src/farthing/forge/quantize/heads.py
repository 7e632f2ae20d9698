"""Detection heads that 8 bits break: numbers of unlike ranges, as boxes and scores, on one scale.

A Concat puts them there, or a decoder does that multiplies some columns of a tensor by hundreds and others by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from farthing.config import Section
from farthing.forge import graph
from farthing.forge.quantize.calibrate import chunk, extremes, model_feeds, ranges
from farthing.forge.quantize.static import StaticInt8, quantizable
from farthing.model import Model
from farthing.task import Task

LEVELS = 255
FEW_VALUES = 16  # of 256: what is left of a tensor is worth 4 bits
LAYERS = {"Conv", "ConvTranspose", "Gemm", "LSTM", "GRU", "RNN", "MatMul"}
"""What has weights: a decoder computes without."""

SCALES = {"Mul", "Div"}
LOOKED_AT = 64  # samples behind the ranges of columns

Array = NDArray[np.float64]
Ranges = Mapping[str, tuple[float, float]]


class Joined(Section, frozen=True, kw_only=True):
    """One of the tensors that meet.

    Attributes:
        tensor: its name; of some columns of a tensor, what they are multiplied by as well.
        low, high: its smallest and largest value on calibration data.
        values: how many of the 256 values that 8 bits have are left for it, under the scale of all.
    """

    tensor: str
    low: float
    high: float
    values: int


class Join(Section, frozen=True, kw_only=True):
    """An operator that gives one tensor of ranges which differ so much that 8 bits lose one of them.

    Attributes:
        node, kind: its name; Concat, or Mul or Div by stored factors.
        step: the distance of neighbouring values in 8 bits, one scale for all.
        parts: what meets there, the widest range first.
        head: operators that int8 would quantize and that do nothing but decode: this one, what follows it, and what
            leads to it alone. Empty where layers with weights follow: then it lies inside the network.
    """

    node: str
    kind: str = "Concat"
    step: float
    parts: tuple[Joined, ...]
    head: tuple[str, ...] = ()

    def __str__(self) -> str:
        widest, least = self.parts[0], min(self.parts, key=lambda part: part.values)
        return (
            f"{self.kind} {self.node} joins the ranges {_span(widest)} ({widest.tensor}) and {_span(least)} "
            f"({least.tensor}): int8 has one scale for both, steps of {self.step:.3g}, and would leave "
            f"{least.values} of 256 values for {least.tensor}"
        )


def _span(part: Joined) -> str:
    return f"{part.low:.4g}..{part.high:.4g}"


def joins(model: Model, task: Task, quantize: StaticInt8) -> list[Join]:
    """The operators of a float model under which int8 would lose a range, by what its calibration finds.

    Raises:
        FarthingError: the model does not run on the task's calibration samples.
    """
    proto = graph.load(model.file)
    graph.name_nodes(proto)
    if not any(node.op_type in {"Concat", *SCALES} for node in proto.graph.node):
        return []
    found = ranges(model, task, quantize.calibrator, quantize.percentile, quantize.samples)
    known = extremes(found)
    split = task.split("calibration")
    picks = np.arange(min(LOOKED_AT, quantize.samples, len(split)))[: chunk(model, task, LOOKED_AT)]
    feeds = model_feeds(model, task, picks)
    found_all = [*unlike(proto, known), *stretched(proto, known, feeds)]
    return [join for join in found_all if join.node not in quantize.exclude]


def unlike(proto: onnx.ModelProto, known: Ranges) -> Iterator[Join]:
    """The Concats of a graph that join unlike ranges.

    Args:
        proto: a float graph, every node with a name of its own.
        known: tensor -> its smallest and largest value.
    """
    flow = _Flow(proto, set(known))
    for node in proto.graph.node:
        if node.op_type == "Concat":
            parts = {name: known[name] for name in node.input if name in known}
            step, shown = _shared(parts)
            if len(shown) > 1 and min(part.values for part in shown) < FEW_VALUES:
                yield Join(node=node.name, step=step, parts=tuple(shown), head=tuple(flow.head(node)))


def _shared(parts: Ranges) -> tuple[float, list[Joined]]:
    """The step of the scale that all share, and what it leaves of each; tensors that never change do not count."""
    ends = [end for low, high in parts.values() for end in (low, high)]
    step = _step(np.asarray([0.0, *ends]))
    if step <= 0:
        return 0.0, []
    shown = [
        Joined(tensor=name, low=low, high=high, values=round(high / step) - round(low / step) + 1)
        for name, (low, high) in parts.items()
        if high > low
    ]
    return step, sorted(shown, key=lambda part: part.low - part.high)


def stretched(
    proto: onnx.ModelProto, known: Ranges, feeds: Mapping[str, NDArray[np.generic]]
) -> Iterator[Join]:
    """The decoders of a graph that stretch some columns of a tensor so far that 8 bits lose the others.

    Those that had few values before are not counted: a score that was always low, say.

    Args:
        proto, known: as for `unlike`.
        feeds: inputs to see the columns on.
    """
    flow, stored = _Flow(proto, set(known)), graph.constants(proto)
    scaled = [
        (node, data, by) for node in proto.graph.node for data, by in _factors(node, stored) if data in known
    ]
    heads = {node.name: head for node, _, _ in scaled if (head := flow.head(node))}
    chosen = [(node, data, by) for node, data, by in scaled if node.name in heads]
    if not chosen:
        return
    inner = {data for _, data, _ in chosen} - {*feeds} - {value.name for value in proto.graph.output}
    seen = {**feeds, **graph.run(proto, feeds, sorted(inner))}
    for node, data, by in chosen:
        step, parts = _columns(data, seen[data].astype(np.float64), by)
        if parts:
            yield Join(
                node=node.name, kind=node.op_type, step=step, parts=parts, head=tuple(heads[node.name])
            )


def _factors(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> Iterator[tuple[str, Array]]:
    """What a node scales, and the unlike stored factors by which it does."""
    places = {"Mul": ((0, 1), (1, 0)), "Div": ((0, 1),)}.get(node.op_type, ())
    for data, by in places:
        tensor = stored.get(node.input[by])
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or node.input[data] in stored:
            continue
        factors = numpy_helper.to_array(tensor).astype(np.float64)
        if factors.size > 1 and np.all(factors) and np.ptp(np.abs(factors)):
            yield node.input[data], factors if node.op_type == "Mul" else 1 / factors


def _columns(name: str, data: Array, factors: Array) -> tuple[float, tuple[Joined, ...]]:
    """The step of the scale of a tensor times its factors, its widest column, and the one of which least is left."""
    extra = data.ndim - factors.ndim
    if extra < 0:
        return 0.0, ()
    factors = factors.reshape((1,) * extra + factors.shape)
    others = tuple(axis for axis, size in enumerate(factors.shape) if size == 1)
    ends = np.stack([data.min(others, keepdims=True), data.max(others, keepdims=True)])
    before, after = _left(ends), _left(ends * factors)
    lost = (before >= FEW_VALUES) & (after < FEW_VALUES)
    if not lost.any():
        return 0.0, ()
    scaled = np.sort(ends * factors, axis=0)
    wide, least = int(np.ptp(scaled, axis=0).argmax()), int(np.where(lost, after, np.inf).argmin())
    every = np.broadcast_to(factors, lost.shape).ravel()
    low, high = scaled.reshape(2, -1).tolist()
    parts = [
        Joined(tensor=f"{name} * {every[at]:.4g}", low=low[at], high=high[at], values=int(after.ravel()[at]))
        for at in (wide, least)
    ]
    return _step(scaled), tuple(parts)


def _step(ends: Array) -> float:
    return float(max(0.0, ends.max()) - min(0.0, ends.min())) / LEVELS


def _left(ends: Array) -> Array:
    """How many values are left of each range, (2, ...), in 8 bits for all of them."""
    low, high = np.round(np.sort(ends, axis=0) / (_step(ends) or 1.0))
    return np.asarray(high - low + 1)


class _Flow:
    """Who reads what in a graph, and which tensors hold numbers that were calibrated."""

    def __init__(self, proto: onnx.ModelProto, numbers: set[str]) -> None:
        self._nodes = list(proto.graph.node)
        self._numbers = numbers
        self._maker = {name: node for node in self._nodes for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for name in graph.reads(node):
                self._readers.setdefault(name, []).append(node)

    def head(self, join: onnx.NodeProto) -> list[str]:
        """The operators around a join that only decode, in the order of the graph."""
        inside = self._after(join)
        if any(node.op_type in LAYERS for node in inside.values()):
            return []
        waiting: Sequence[onnx.NodeProto] = list(inside.values())
        while waiting:
            before = [self._maker[name] for node in waiting for name in node.input if name in self._maker]
            fresh = {node.name: node for node in before if self._decodes(node, inside)}
            waiting = [node for name, node in fresh.items() if name not in inside]
            inside |= fresh
        kinds = set(quantizable())
        return [node.name for node in self._nodes if node.name in inside and self._rounds(node, kinds)]

    def _rounds(self, node: onnx.NodeProto, kinds: set[str]) -> bool:
        """Whether int8 would round what a node makes: numbers that were calibrated, not sizes of tensors."""
        return node.op_type in kinds and not self._numbers.isdisjoint(node.output)

    def _after(self, join: onnx.NodeProto) -> dict[str, onnx.NodeProto]:
        found, waiting = {join.name: join}, [join]
        while waiting:
            node = waiting.pop()
            for reader in (reader for name in node.output for reader in self._readers.get(name, [])):
                if reader.name not in found:
                    found[reader.name] = reader
                    waiting.append(reader)
        return found

    def _decodes(self, node: onnx.NodeProto, inside: Mapping[str, onnx.NodeProto]) -> bool:
        """Whether a node has no weights, and nobody outside needs what it makes."""
        readers = [reader.name for name in node.output for reader in self._readers.get(name, [])]
        return node.op_type not in LAYERS and all(name in inside for name in readers)
