"""Detection heads that 8 bits break: tensors of unlike ranges, as boxes and scores, that a Concat puts on one scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from farthing.config import Section
from farthing.forge import graph
from farthing.forge.quantize.calibrate import ranges
from farthing.forge.quantize.static import StaticInt8, quantizable
from farthing.model import Model
from farthing.task import Task

LEVELS = 255
FEW_VALUES = 16  # of 256: what is left of a tensor is worth 4 bits
LAYERS = {"Conv", "ConvTranspose", "Gemm", "LSTM", "GRU", "RNN", "MatMul"}
"""What has weights: a decoder computes without."""

Ranges = Mapping[str, tuple[float, float]]


class Joined(Section, frozen=True, kw_only=True):
    """One of the tensors that meet.

    Attributes:
        tensor: its name.
        low, high: its smallest and largest value on calibration data.
        values: how many of the 256 values that 8 bits have are left for it, under the scale of all.
    """

    tensor: str
    low: float
    high: float
    values: int


class Join(Section, frozen=True, kw_only=True):
    """A Concat of tensors whose ranges differ so much that 8 bits lose one of them.

    Attributes:
        node: its name.
        step: the distance of neighbouring values in 8 bits, one scale for all.
        parts: what meets there, the widest range first.
        head: operators that int8 would quantize and that do nothing but decode: the Concat, what follows it, and what
            leads to it alone. Empty where layers with weights follow: then it lies inside the network.
    """

    node: str
    step: float
    parts: tuple[Joined, ...]
    head: tuple[str, ...] = ()

    def __str__(self) -> str:
        widest, least = self.parts[0], min(self.parts, key=lambda part: part.values)
        return (
            f"Concat {self.node} joins the ranges {_span(widest)} ({widest.tensor}) and {_span(least)} "
            f"({least.tensor}): int8 has one scale for both, steps of {self.step:.3g}, and would leave "
            f"{least.values} of 256 values for {least.tensor}"
        )


def _span(part: Joined) -> str:
    return f"{part.low:.4g}..{part.high:.4g}"


def joins(model: Model, task: Task, quantize: StaticInt8) -> list[Join]:
    """The Concats of a float model under which int8 would lose a tensor, by the ranges that its calibration finds.

    Raises:
        FarthingError: the model does not run on the task's calibration samples.
    """
    proto = graph.load(model.file)
    graph.name_nodes(proto)
    if not any(node.op_type == "Concat" for node in proto.graph.node):
        return []
    found = ranges(model, task, quantize.calibrator, quantize.percentile, quantize.samples)
    ends = ((name, data.range_value) for name, data in found.items())
    known = {name: (float(np.min(low)), float(np.max(high))) for name, (low, high) in ends}
    return [join for join in unlike(proto, known) if join.node not in quantize.exclude]


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
    step = (max([0.0, *ends]) - min([0.0, *ends])) / LEVELS
    if step <= 0:
        return 0.0, []
    shown = [
        Joined(tensor=name, low=low, high=high, values=round(high / step) - round(low / step) + 1)
        for name, (low, high) in parts.items()
        if high > low
    ]
    return step, sorted(shown, key=lambda part: part.low - part.high)


class _Flow:
    """Who reads what in a graph, and which tensors hold numbers that were calibrated."""

    def __init__(self, proto: onnx.ModelProto, numbers: set[str]) -> None:
        self._nodes = list(proto.graph.node)
        self._numbers = numbers
        self._maker = {name: node for node in self._nodes for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for part in graph.nodes(onnx.GraphProto(node=[node])):
                for name in part.input:
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
