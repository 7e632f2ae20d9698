"""What a graph states of its sizes: read to follow channels through it, and set anew where some are gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from farthing.forge import graph
from farthing.forge.trainable.stored import free_name, is_constant, tensor_names

Array = NDArray[Any]
Left = Callable[[str], list[int | None]]
"""A tensor -> how many places are left along each axis; None where none were followed."""

PLACE = {"Reshape": 1, "Split": 1, "Resize": 3}
"""Operator -> the input in which it states sizes."""


def numbers(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """Stored whole numbers, flat: axes and sizes are of this kind."""
    found = {
        tensor.name: numpy_helper.to_array(tensor).ravel().tolist()
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64
    }
    for node in filter(is_constant, proto.graph.node):
        item = node.attribute[0]
        value = helper.get_attribute_value(item)
        if item.name == "value" and item.t.data_type == onnx.TensorProto.INT64:
            found[node.output[0]] = numpy_helper.to_array(value).ravel().tolist()
        elif item.name in {"value_int", "value_ints"}:
            found[node.output[0]] = np.ravel(value).tolist()
    return found


def restate(proto: onnx.ModelProto, left: Left, computed: Callable[[onnx.NodeProto], list[int]]) -> None:
    """Set anew, in place, what nodes state of sizes that have changed.

    Args:
        proto: the graph, its stored tensors cut.
        left: of each tensor.
        computed: for a Reshape whose shape the graph computes, the shape that it had; -1 for a free batch.
    """
    known = numbers(proto)
    taken = tensor_names(proto)
    for node in proto.graph.node:
        place = PLACE.get(node.op_type, len(node.input))
        if len(node.input) <= place or not node.input[place]:
            continue
        fresh = _sizes(node, left, known.get(node.input[place]), computed)
        if fresh is not None:
            name = free_name(f"{node.output[0]}_sizes", taken)
            proto.graph.initializer.append(numpy_helper.from_array(np.array(fresh, np.int64), name))
            node.input[place] = name


def _sizes(
    node: onnx.NodeProto,
    left: Left,
    stated: list[int] | None,
    computed: Callable[[onnx.NodeProto], list[int]],
) -> list[int] | None:
    """The sizes that a node is to state; None if they may stay as they are.

    Sizes that the graph computes follow by themselves, but for those of a Reshape, in which a width may be stated.
    """
    if stated is None:
        if node.op_type != "Reshape":
            return None
        sizes = computed(node)
        fresh = [was if one is None else one for one, was in zip(left(node.output[0]), sizes, strict=True)]
        return None if fresh == sizes else fresh
    if node.op_type == "Split":
        axis = graph.attribute(node, "axis", 0)
        found = [left(name)[axis] for name in node.output]
    else:
        found = left(node.output[0])
    fresh = [was if one is None or was < 1 else one for one, was in zip(found, stated, strict=True)]
    return None if fresh == stated else fresh
