"""The float operators of a graph in half precision: their weights stored so, casts where float32 begins and ends."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from farthing.forge import graph

PAIR = ("QuantizeLinear", "DequantizeLinear")
HALF, SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
SINGLE_ONLY = frozenset(
    "Cast CastLike CumSum DynamicQuantizeLinear MatMulNBits Max Min NonMaxSuppression OneHot RandomUniformLike Range "
    "Resize RoiAlign TopK Upsample".split()
)
"""Operators that ONNX defines for float32 alone, in one of their inputs or in older opsets, or that turn types."""


def in_integers(whole: Any) -> set[str]:
    """Names of the nodes that the runtime computes in 8 bits: those between Q/DQ pairs, or with weights in 8 bits."""
    back = {name: node for node in whole.node if node.op_type == "DequantizeLinear" for name in node.output}
    stored = {tensor.name for tensor in whole.initializer}
    quantized = {node.input[0] for node in whole.node if node.op_type == "QuantizeLinear"}
    found = set()
    for node in whole.node:
        given = [back[name] for name in node.input if name in back]
        weights = any(pair.input[0] in stored for pair in given)
        if node.op_type not in PAIR and given and (weights or quantized.issuperset(node.output)):
            found.add(node.name)
    return found


def halve(proto: onnx.ModelProto, keep: Collection[str] = ()) -> int:
    """Let the float operators of a graph compute in float16, in place; inputs and outputs stay float32.

    What computes in 8 bits stays as it is, and so do operators with graphs inside them and those of other domains.

    Args:
        proto: every node with a name of its own.
        keep: types of operators that stay float32.

    Returns:
        How many operators were halved.
    """
    return _Halving(proto, SINGLE_ONLY.union(keep, PAIR)).run()


class _Halving:
    def __init__(self, proto: onnx.ModelProto, blocked: Collection[str]) -> None:
        self._graph = proto.graph
        inferred = graph.inferred(proto).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        self._stored = {tensor.name: tensor for tensor in self._graph.initializer}
        self._single = {value.name for value in values if value.type.tensor_type.elem_type == SINGLE}
        self._single |= {name for name, tensor in self._stored.items() if tensor.data_type == SINGLE}
        self._constants = graph.constants(proto)
        self._blocked, self._integers = blocked, in_integers(self._graph)
        self._halves: set[str] = set()  # tensors that have a twin in float16

    def run(self) -> int:
        chosen = {node.name for node in self._graph.node if self._fits(node)}
        nodes = [
            made
            for node in self._graph.node
            for made in (self._halved(node) if node.name in chosen else [node])
        ]
        used = {name for node in nodes for name in graph.reads(node)}
        used |= {value.name for value in self._graph.output}
        kept = [node for node in nodes if used.intersection(node.output)]
        stored = [tensor for tensor in self._stored.values() if tensor.name in used]
        given = [value for value in self._graph.input if value.name in used or value.name not in self._stored]
        del self._graph.node[:], self._graph.initializer[:], self._graph.value_info[:], self._graph.input[:]
        self._graph.input.extend(given)
        self._graph.node.extend(kept)
        self._graph.initializer.extend(stored)
        return len(chosen)

    def _fits(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes with float32 numbers and may do so with float16 ones."""
        inner = any(item.graphs or item.HasField("g") for item in node.attribute)
        ours = node.domain in {"", "ai.onnx"} and node.op_type not in self._blocked and not inner
        return ours and node.name not in self._integers and bool(self._single.intersection(node.input))

    def _halved(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        fresh = onnx.NodeProto()
        fresh.CopyFrom(node)
        for place, name in enumerate(node.input):
            if name in self._single:
                yield from self._twin(name)
                fresh.input[place] = _half(name)
        results = [name for name in node.output if name in self._single]
        for place, name in enumerate(node.output):
            fresh.output[place] = _half(name) if name in results else name
        yield fresh
        for name in results:
            self._halves.add(name)
            yield helper.make_node("Cast", [_half(name)], [name], name=f"{name}/float32", to=SINGLE)

    def _twin(self, name: str) -> Iterator[onnx.NodeProto]:
        """What makes the twin of a tensor, if it has none yet; of a stored one that is a stored one."""
        if name in self._halves:
            return
        self._halves.add(name)
        tensor = self._stored.get(name, self._constants.get(name))
        if tensor is None:
            yield helper.make_node("Cast", [name], [_half(name)], name=_half(name), to=HALF)
            return
        limits = np.finfo(np.float16)
        numbers = np.clip(numpy_helper.to_array(tensor), limits.min, limits.max)
        self._stored[_half(name)] = numpy_helper.from_array(numbers.astype(np.float16), _half(name))


def _half(name: str) -> str:
    return f"{name}/float16"
