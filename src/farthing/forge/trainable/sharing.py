"""Vectors that exporters store once because they were equal, not because layers share them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx
from onnx import helper

from farthing.forge import graph
from farthing.forge.trainable import stored

Place = tuple[str, int]
"""A node, by its name, and the number of one of its inputs."""
Layer = tuple[str, ...]
"""What stands for a layer: the names of all that it stores, or its own."""


def part(proto: onnx.ModelProto) -> dict[Place, str]:
    """Give nodes vectors of their own, in place, but nodes that share all that they store: one layer used twice.

    Exporters store equal tensors once, such as the zeros that fresh biases begin with; learnt as one they would stay
    equal. Nodes that store vectors alone count as one layer only in graphs where others share matrices.

    Returns:
        What each node read before, where it reads a copy now.
    """
    tensors = graph.constants(proto)
    sources = _aliases(proto, tensors)
    layers = _layers(proto, tensors, sources)
    taken = stored.tensor_names(proto)
    owners: dict[str, Layer] = {}
    copies: dict[tuple[str, Layer], str] = {}
    moved: dict[Place, str] = {}
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            source, layer = sources.get(name, name), layers[node.name]
            if (
                node.op_type == "BatchNormalization"
            ):  # a fresh one has a shift like its mean, a scale like its variance
                layer = (*layer, str(place))
            if node.op_type == "Identity" or _axes(tensors.get(source)) != 1:
                continue
            if owners.setdefault(source, layer) != layer:
                moved[node.name, place] = name
                if (source, layer) not in copies:
                    copies[source, layer] = stored.free_name(f"{source}_{node.name}", taken)
                    proto.graph.initializer.add().CopyFrom(tensors[source])
                    proto.graph.initializer[-1].name = copies[source, layer]
                node.input[place] = copies[source, layer]
    return moved


def _layers(
    proto: onnx.ModelProto, tensors: Mapping[str, onnx.TensorProto], sources: Mapping[str, str]
) -> dict[str, Layer]:
    """What stands for the layer that a node is of, by the node's name: what it stores, or the node itself."""
    read = {
        node.name: tuple(source for name in node.input if (source := sources.get(name, name)) in tensors)
        for node in proto.graph.node
        if node.op_type != "Identity"
    }
    matrices = {name for name, tensor in tensors.items() if _axes(tensor) > 1}
    counts = Counter(name for names in read.values() for name in set(names) & matrices)
    tied = any(count > 1 for count in counts.values())
    own = {name: names if tied or matrices & set(names) else (name,) for name, names in read.items()}
    return {node.name: own.get(node.name, ()) for node in proto.graph.node}


def join(proto: onnx.ModelProto, moved: Mapping[Place, str]) -> None:
    """Let nodes read again what they read before `part`, in place, where that is still what their copies hold."""
    tensors = graph.constants(proto)
    sources = _aliases(proto, tensors)
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            before = moved.get((node.name, place), name)
            if before != name and _same(tensors[name], tensors[sources.get(before, before)]):
                node.input[place] = before


def _aliases(proto: onnx.ModelProto, tensors: Mapping[str, onnx.TensorProto]) -> dict[str, str]:
    """Names that Identity nodes give to stored tensors."""
    found: dict[str, str] = {}
    for node in proto.graph.node:
        if node.op_type == "Identity" and found.get(node.input[0], node.input[0]) in tensors:
            found[node.output[0]] = found.get(node.input[0], node.input[0])
    return found


def _axes(tensor: onnx.TensorProto | None) -> int:
    """How many axes of a stored tensor of floating-point numbers are longer than 1."""
    if tensor is None or helper.tensor_dtype_to_np_dtype(tensor.data_type).kind != "f":
        return 0
    return sum(size != 1 for size in tensor.dims)


def _same(first: onnx.TensorProto, second: onnx.TensorProto) -> bool:
    """Whether two stored tensors hold the same, as they lie."""
    a, b = onnx.TensorProto(), onnx.TensorProto()
    for fresh, tensor in ((a, first), (b, second)):
        fresh.CopyFrom(tensor)
        fresh.ClearField("name")
        fresh.ClearField("doc_string")
    return bool(a == b)
