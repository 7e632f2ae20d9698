"""Means, maxima and sums over axes, softmax along one, and what is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from farthing.forge.tflite.builder import Builder
from farthing.forge.tflite.layout import ONE, View
from farthing.forge.tflite.net import Node, Params

CODES = {
    "ReduceMean": "MEAN",
    "ReduceSum": "SUM",
    "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
}
SELECTING = {"REDUCE_MAX", "REDUCE_MIN"}
SCALING = {"MEAN", "SUM"}  # int8 kernels that take another scale for the result
PROBABILITY = Params((1 / 256,), (-128,))


def reduction(builder: Builder, node: Node) -> None:
    """ReduceMean, ReduceSum, ReduceMax, ReduceMin and ReduceProd."""
    rank = len(builder.shape(node.inputs[0], node))
    axes = node.get("axes", None)
    if axes is None and node.input(1):
        axes = builder.numbers(node.input(1), node)
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            builder.values[node.outputs[0]] = builder.view(node.inputs[0], node)
            return
        axes = range(rank)
    reduce(builder, node, CODES[node.kind], [axis % rank for axis in axes], node.get("keepdims", 1) == 1)


def length(builder: Builder, node: Node) -> None:
    """ReduceL2: the root of the sum of squares."""
    view = builder.float_view(node.inputs[0], node)
    shape = builder.tensors[view.tensor].shape
    names = [f"{node.outputs[0]}/{part}" for part in ("squares", "sum")]
    inputs = [view.tensor, view.tensor]
    squares = builder.add("MUL", inputs, shape, options="MulOptions", fusedActivationFunction="NONE")
    builder.values[names[0]] = view._replace(tensor=squares)
    inner = replace(node, kind="ReduceSum", inputs=(names[0], *node.inputs[1:]), outputs=(names[1],))
    reduction(builder, inner)
    total = builder.values[names[1]]
    root = builder.add("SQRT", [total.tensor], builder.tensors[total.tensor].shape)
    builder.values[node.outputs[0]] = total._replace(tensor=root)


def reduce(builder: Builder, node: Node, code: str, axes: Iterable[int], keep: bool) -> None:
    """Reduce axes wherever they lie; what is left keeps its order.

    Int8 stays int8 where the kernel allows it: always for maxima and minima, for means and sums if the result is
    quantized.
    """
    gone = set(axes)
    asked = builder.asked(node.outputs[0])
    integer = builder.is_int8(node.inputs[0]) and (
        code in SELECTING or (code in SCALING and asked is not None)
    )
    view = builder.view(node.inputs[0], node) if integer else builder.float_view(node.inputs[0], node)
    tensor = builder.physical(view)
    source = builder.tensors[tensor]
    places = sorted(i for axis in gone for i in view.axes[axis])
    params = (asked if code in SCALING else source.params) if integer else None
    kept = [axis for axis in range(len(view.axes)) if keep or axis not in gone]
    shape = tuple(ONE if i in places else size for i, size in enumerate(source.shape))
    left = View(tensor, shape, tuple(() if axis in gone else view.axes[axis] for axis in kept))
    if not keep:
        left = _without(left, places)
    if places:
        inputs = [tensor, builder.integers(places)]
        tensor = builder.add(code, inputs, left.atoms, source.dtype, params, "ReducerOptions", keepDims=keep)
    builder.values[node.outputs[0]] = left._replace(tensor=tensor)


def _without(view: View, places: Sequence[int]) -> View:
    """A view whose atoms at some places are gone."""
    left = [i for i in range(len(view.atoms)) if i not in places]
    axes = tuple(tuple(left.index(i) for i in axis if i in left) for axis in view.axes)
    return View(view.tensor, tuple(view.atoms[i] for i in left), axes)


def last(builder: Builder, view: View, axis: int) -> tuple[int, list[int]]:
    """A tensor with one axis last, the others as they lie, and the axes in their new order."""
    order = [*(i for i in view.simple() if i != axis), axis]
    return builder.place(view, [[i] for i in order]), order


def tells_apart(builder: Builder, node: Node, fixed: Params) -> bool:
    """Whether an int8 kernel whose result has a fixed scale may serve.

    Its result is then rounded again, to the scale that is wanted: by half a step at most if that is no finer than half
    the fixed one. Finer ones are computed in float.
    """
    asked = builder.asked(node.outputs[0])
    return asked is not None and builder.is_int8(node.inputs[0]) and asked.scale[0] >= fixed.scale[0] / 2


def softmax(builder: Builder, node: Node) -> None:
    """SOFTMAX or LOG_SOFTMAX along one axis."""
    name, shape = node.inputs[0], builder.shape(node.inputs[0], node)
    axis = int(node.get("axis", -1 if builder.net.opset >= 13 else 1)) % len(shape)
    if builder.net.opset < 13 and any(size != ONE for size in shape[axis + 1 :]):
        node.refuse(f"before opset 13 it runs over all axes from {axis} together; export with a newer opset")
    code, options = (
        ("SOFTMAX", "SoftmaxOptions") if node.kind == "Softmax" else ("LOG_SOFTMAX", "LogSoftmaxOptions")
    )
    integer = code == "SOFTMAX" and tells_apart(builder, node, PROBABILITY)
    view = builder.view(name, node) if integer else builder.float_view(name, node)
    tensor, order = last(builder, view, axis)
    fields: dict[str, Any] = {"beta": 1.0} if code == "SOFTMAX" else {}
    result = builder.add(
        code,
        [tensor],
        builder.tensors[tensor].shape,
        params=PROBABILITY if integer else None,
        options=options,
        **fields,
    )
    builder.put(node.outputs[0], result, order)


def arg(builder: Builder, node: Node) -> None:
    """ArgMax and ArgMin along one axis, as int64."""
    shape = builder.shape(node.inputs[0], node)
    axis = int(node.get("axis", 0)) % len(shape)
    if node.get("select_last_index", 0):
        node.refuse("TFLite gives the first of equal values, not the last")
    view = builder.view(node.inputs[0], node)
    tensor, order = last(builder, view, axis)
    code = "ARG_MAX" if node.kind == "ArgMax" else "ARG_MIN"
    left = tuple(shape[i] for i in order[:-1])
    inputs = [tensor, builder.integers([len(order) - 1])]
    result = builder.add(
        code,
        inputs,
        left,
        "int64",
        options=f"{'ArgMax' if code == 'ARG_MAX' else 'ArgMin'}Options",
        outputType="INT64",
    )
    view = View(result, left, tuple((order.index(i),) for i in range(len(shape)) if i != axis))
    target = builder.net.shape(node.outputs[0], node)
    builder.values[node.outputs[0]] = builder.reshaped(view, target, node)
