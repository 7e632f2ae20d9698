"""Bias correction: what rounding adds to the mean of a layer's outputs is taken off its bias."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from farthing.engines.base import Tensors
from farthing.forge import graph

LAYERS = {"Conv", "Gemm"}
SAMPLES = 64  # a mean needs fewer than a range


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product in float, its twin in 8 bits, and the twin's stored bias."""

    node: onnx.NodeProto
    twin: onnx.NodeProto
    feeding: tuple[onnx.NodeProto, ...]
    bias: onnx.TensorProto
    scale: NDArray[Any]


def correct_biases(source: onnx.ModelProto, quantized: onnx.ModelProto, batches: Iterable[Tensors]) -> int:
    """Shift the int32 biases of a QDQ graph, in place, so that each layer's outputs keep their mean per channel.

    Each layer is looked at alone: it gets the float input, rounded, and its mean output is compared with the float one
    before any activation ("empirical bias correction", Nagel et al. 2019, section 4.2, https://arxiv.org/abs/1906.04721).

    Args:
        source: the float model, every node with a name of its own.
        quantized: the same with Q/DQ pairs.
        batches: inputs from calibration data.

    Returns:
        How many layers were corrected; those without a bias of their own are left alone.
    """
    layers = list(_layers(source, quantized))
    if not layers:
        return 0
    session = graph.Session(_probing(source, quantized, layers))
    sums: dict[str, NDArray[Any]] = {}
    counts: dict[str, float] = {}
    for feeds in batches:
        for name, value in session.run(feeds).items():
            if name.endswith("/sum"):
                sums[name] = sums.get(name, 0.0) + value.astype(np.float64)
            else:
                counts[name] = counts.get(name, 0.0) + float(value)
    for layer in layers:
        total = sums[f"{layer.node.name}/sum"]
        mean = total / (counts[f"{layer.node.name}/size"] / len(total))
        stored = numpy_helper.to_array(layer.bias)
        limits = np.iinfo(np.int32)
        moved = np.clip(stored + np.round(mean / layer.scale), limits.min, limits.max).astype(np.int32)
        layer.bias.CopyFrom(numpy_helper.from_array(moved, layer.bias.name))
    return len(layers)


def _layers(source: onnx.ModelProto, quantized: onnx.ModelProto) -> Iterator[Layer]:
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    maker = {name: node for node in quantized.graph.node for name in node.output}
    readers: dict[str, int] = {}
    for name in (name for node in quantized.graph.node for name in node.input):
        readers[name] = readers.get(name, 0) + 1
    twins = {node.name: node for node in quantized.graph.node}
    for node in source.graph.node:
        twin = twins.get(node.name)
        if node.op_type not in LAYERS or twin is None or len(twin.input) < 3:
            continue
        backs = [maker.get(name) for name in twin.input]
        given, weights, bias = backs
        if any(back is None or back.op_type != "DequantizeLinear" for back in backs):
            continue
        if given is None or weights is None or bias is None or given.input[0] not in maker:
            continue
        tensor = stored.get(bias.input[0])
        if tensor is not None and readers[tensor.name] == 1 and readers[bias.output[0]] == 1:
            scale = numpy_helper.to_array(stored[bias.input[1]]).astype(np.float64)
            yield Layer(node, twin, (maker[given.input[0]], given, weights, bias), tensor, scale)


def _probing(source: onnx.ModelProto, quantized: onnx.ModelProto, layers: list[Layer]) -> onnx.ModelProto:
    """The float model with a rounded twin beside each layer; its outputs are the sums of their differences."""
    probing = onnx.ModelProto()
    probing.CopyFrom(source)
    own = {tensor.name for tensor in source.graph.initializer}
    probing.graph.initializer.extend(
        tensor for tensor in quantized.graph.initializer if tensor.name not in own
    )
    del probing.graph.output[:]
    for layer in layers:
        probing.graph.node.extend(_probe(layer))
        rank = len(next(t for t in quantized.graph.initializer if t.name == layer.feeding[2].input[0]).dims)
        axes = [axis for axis in range(rank) if axis != 1]
        name = layer.node.name
        probing.graph.initializer.append(numpy_helper.from_array(np.asarray(axes, np.int64), f"{name}/axes"))
        float_type, int_type = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
        probing.graph.output.append(helper.make_tensor_value_info(f"{name}/sum", float_type, [None]))
        probing.graph.output.append(helper.make_tensor_value_info(f"{name}/size", int_type, []))
    return probing


def _probe(layer: Layer) -> Iterator[onnx.NodeProto]:
    """The nodes that compute a layer from its rounded float input and sum up how far it is from the float one."""
    name = layer.node.name
    for number, node in enumerate((*layer.feeding, layer.twin)):
        fresh = onnx.NodeProto()
        fresh.CopyFrom(node)
        fresh.name = f"{name}/probe{number}"
        fresh.output[0] = f"{name}/probe/{node.output[0]}"
        made = {before.output[0] for before in layer.feeding[:number]}
        fresh.input[:] = [f"{name}/probe/{given}" if given in made else given for given in node.input]
        if number == 0:
            fresh.input[0] = layer.node.input[0]
        yield fresh
    found = f"{name}/probe/{layer.twin.output[0]}"
    yield helper.make_node("Sub", [layer.node.output[0], found], [f"{name}/gap"], name=f"{name}/gap")
    yield helper.make_node(
        "ReduceSum", [f"{name}/gap", f"{name}/axes"], [f"{name}/sum"], name=f"{name}/sum", keepdims=0
    )
    yield helper.make_node("Size", [f"{name}/gap"], [f"{name}/size"], name=f"{name}/size")
