"""Layers of a float graph beside what they became in a graph with Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from farthing.forge.quantize.columns import Layer, layer_of

Array = NDArray[Any]


class Whole(NamedTuple):
    """Stored whole numbers and what they stand for; ``scale`` and ``zero`` have one entry, or one for each output."""

    numbers: TensorProto
    scale: TensorProto
    zero: TensorProto

    @property
    def real_scale(self) -> Array:
        """The scale as float64."""
        return numpy_helper.to_array(self.scale).astype(np.float64)


@dataclass(frozen=True)
class Twin:
    """A layer in float and in whole numbers.

    Attributes:
        layer: of the float graph.
        data, whole: its input there, and the whole numbers that this becomes; ``scale`` and ``zero`` are of these.
        weights, bias: in the quantized graph, read by nothing else: they may be written to.
        float_weights, float_bias: in the float graph.
    """

    layer: Layer
    data: str
    whole: str
    scale: float
    zero: int
    weights: Whole
    bias: Whole | None
    float_weights: Array
    float_bias: Array | None

    @property
    def name(self) -> str:
        """Of the node, in both graphs."""
        return self.layer.node.name


def twins(source: onnx.ModelProto, quantized: onnx.ModelProto) -> Iterator[Twin]:
    """The layers that compute in 8 bits with weights of their own, in the order of the quantized graph.

    Args:
        source: the float model, every node with a name of its own.
        quantized: the same with Q/DQ pairs.
    """
    floats = {tensor.name: tensor for tensor in source.graph.initializer}
    nodes = {node.name: node for node in source.graph.node}
    behind = _Behind(quantized)
    for node in quantized.graph.node:
        own = nodes.get(node.name)
        layer = layer_of(own, floats) if own else None
        data = behind.data(node.input[0]) if layer else None
        weights = behind.stored(node.input[1]) if layer else None
        bias = behind.stored(node.input[2]) if layer and len(node.input) > 2 else None
        if own is None or layer is None or data is None or weights is None:
            continue
        if len(node.input) > 2 and (bias is None or own.input[2] not in floats):
            continue
        yield Twin(
            layer,
            own.input[0],
            *data,
            weights,
            bias,
            numpy_helper.to_array(floats[own.input[1]]).astype(np.float64),
            numpy_helper.to_array(floats[own.input[2]]).astype(np.float64) if bias else None,
        )


class _Behind:
    """What is behind the DequantizeLinear nodes of a graph."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._stored = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._maker = {name: node for node in proto.graph.node for name in node.output}
        self._readers: dict[str, int] = {}
        for name in (name for node in proto.graph.node for name in node.input):
            self._readers[name] = self._readers.get(name, 0) + 1

    def _numbers(self, name: str) -> tuple[str, TensorProto, TensorProto] | None:
        """Name, scale and zero point of the whole numbers that a tensor is made of."""
        node = self._maker.get(name)
        if node is None or node.op_type != "DequantizeLinear" or len(node.input) < 3:
            return None
        scale, zero = (self._stored.get(part) for part in node.input[1:3])
        return (node.input[0], scale, zero) if scale is not None and zero is not None else None

    def data(self, name: str) -> tuple[str, float, int] | None:
        """The whole numbers of a tensor that is computed, with the one scale and zero point they have."""
        found = self._numbers(name)
        if found is None or found[0] in self._stored or found[1].dims:
            return None
        scale, zero = (numpy_helper.to_array(part).item() for part in found[1:])
        return found[0], float(scale), int(zero)

    def stored(self, name: str) -> Whole | None:
        """The whole numbers of a stored tensor, if nothing else reads them."""
        found = self._numbers(name)
        if found is None or found[0] not in self._stored:
            return None
        alone = self._readers[found[0]] == self._readers[name] == 1
        return Whole(self._stored[found[0]], *found[1:]) if alone else None
