"""Stored tensors of an ONNX graph in torch's form, and names that are free in it."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from farthing.errors import UnsupportedError


def is_constant(node: onnx.NodeProto) -> bool:
    """Whether a node only states a tensor."""
    return node.op_type == "Constant" and node.domain in {"", "ai.onnx"}


def stored(proto: onnx.ModelProto) -> dict[str, Tensor]:
    """Stored tensors by name: initializers, and what Constant nodes state.

    Raises:
        UnsupportedError: one that torch cannot hold.
    """
    found = {tensor.name: tensor_of(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if is_constant(node):
            found[node.output[0]] = _stated(node)
    if proto.graph.sparse_initializer:
        raise UnsupportedError("sparse initializers have no trainable form: store them densely")
    return found


def _stated(node: onnx.NodeProto) -> Tensor:
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return tensor_of(value)
    if attribute.name not in {"value_float", "value_floats", "value_int", "value_ints"}:
        raise UnsupportedError(f"constant {node.output[0]!r} is a {attribute.name}, which torch cannot hold")
    return torch.tensor(value, dtype=torch.float32 if "float" in attribute.name else torch.int64)


def tensor_of(proto: onnx.TensorProto) -> Tensor:
    """A stored tensor in torch's form.

    Raises:
        UnsupportedError: text, or a type that torch cannot hold.
    """
    if proto.data_type == onnx.TensorProto.STRING:
        raise UnsupportedError(f"constant {proto.name!r} is text, which torch cannot hold")
    array = numpy_helper.to_array(proto)
    if proto.data_type == onnx.TensorProto.BFLOAT16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        raise UnsupportedError(
            f"constant {proto.name!r} is of type {array.dtype.name}, which torch cannot hold"
        ) from error


def tensor_names(proto: onnx.ModelProto) -> set[str]:
    """The names of all tensors of a graph."""
    made = {name for node in proto.graph.node for name in (*node.input, *node.output)}
    return made | {tensor.name for tensor in proto.graph.initializer}


def free_name(wanted: str, taken: set[str]) -> str:
    """A name that nothing has, and that counts as taken from now on."""
    name, number = wanted, 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    taken.add(name)
    return name
