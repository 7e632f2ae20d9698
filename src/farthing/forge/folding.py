"""Batch normalization folded into the layer before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from farthing.forge import graph

Array = NDArray[Any]
NORM = "BatchNormalization"
LAYERS = {"Conv", "Gemm", "ConvTranspose"}
OFFICIAL = {"", "ai.onnx"}


def fold(proto: onnx.ModelProto) -> None:
    """Fold batch normalization into what it normalizes, in place: convolutions, dense layers, transposed convolutions.

    It stays where there is no such layer before it, or one whose numbers or result others read as well.
    """
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for layer, norm in [*foldable(proto)]:
        scale, shift, mean, variance = (
            numpy_helper.to_array(stored[name]).astype(np.float64) for name in norm.input[1:5]
        )
        factor = scale / np.sqrt(variance + graph.attribute(norm, "epsilon", 1e-5))
        weight = numpy_helper.to_array(stored[layer.input[1]])
        scaled = (weight * _by_output(layer, weight, factor)).astype(weight.dtype)
        stored[layer.input[1]].CopyFrom(numpy_helper.from_array(scaled, layer.input[1]))
        bias = numpy_helper.to_array(stored[layer.input[2]]) if len(layer.input) > 2 else np.zeros(1)
        folded = ((np.broadcast_to(bias, mean.shape) - mean) * factor + shift).astype(weight.dtype)
        name = f"{norm.output[0]}_bias"
        proto.graph.initializer.append(numpy_helper.from_array(folded, name))
        layer.input[2:] = [name]
        layer.output[0] = norm.output[0]
        proto.graph.node.remove(norm)
    _drop_unused(proto)


def foldable(proto: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Layers, and the batch normalization that can be folded into each."""
    readers = Counter(name for node in proto.graph.node for name in graph.reads(node))
    readers.update(value.name for value in proto.graph.output)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    makers = {name: node for node in proto.graph.node for name in node.output}
    for norm in proto.graph.node:
        layer = makers.get(norm.input[0]) if norm.op_type == NORM and norm.domain in OFFICIAL else None
        if layer is None or layer.op_type not in LAYERS or readers[norm.input[0]] > 1:
            continue
        own = [name for name in layer.input[1:] if name]
        if not stored.keys() >= {*own, *norm.input[1:5]} or readers[layer.input[1]] > 1:
            continue
        if layer.op_type == "Gemm" and not _plain(layer, stored):
            continue
        yield layer, norm


def _plain(layer: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    """Whether a Gemm is a dense layer: its products and its bias, a number for each output, as they are."""
    usual = all(graph.attribute(layer, name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return usual and all(len(stored[name].dims) == 1 for name in layer.input[2:])


def _by_output(layer: onnx.NodeProto, weight: Array, factor: Array) -> Array:
    """A factor of each output of a layer, in a form that broadcasts to its weight."""
    if layer.op_type == "Gemm":
        return factor[:, None] if graph.attribute(layer, "transB", 0) else factor
    rest = (1,) * (weight.ndim - 2)
    if layer.op_type == "Conv":
        return factor.reshape(-1, 1, *rest)
    groups = graph.attribute(layer, "group", 1)  # inputs first, and outputs within each group
    return np.repeat(factor.reshape(groups, -1), len(weight) // groups, axis=0).reshape(
        len(weight), -1, *rest
    )


def _drop_unused(proto: onnx.ModelProto) -> None:
    """Take out stored tensors that nothing reads, in place."""
    used = {name for node in proto.graph.node for name in graph.reads(node)}
    used |= {value.name for value in proto.graph.output}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
