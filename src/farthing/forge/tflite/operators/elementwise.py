"""Operators that work number by number: they take any layout, and constants follow it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.forge.tflite.builder import Builder
from farthing.forge.tflite.layout import Shape, View, firsts, whole
from farthing.forge.tflite.net import Constant, Node, Params
from farthing.forge.tflite.rewriting import limits, normalization

Array = NDArray[Any]
BINARY = {
    "Add": ("ADD", "AddOptions"),
    "Sum": ("ADD", "AddOptions"),
    "Sub": ("SUB", "SubOptions"),
    "Mul": ("MUL", "MulOptions"),
    "Div": ("DIV", "DivOptions"),
    "Pow": ("POW", "PowOptions"),
    "Max": ("MAXIMUM", "MaximumMinimumOptions"),
    "Min": ("MINIMUM", "MaximumMinimumOptions"),
    "Equal": ("EQUAL", "EqualOptions"),
    "Greater": ("GREATER", "GreaterOptions"),
    "GreaterOrEqual": ("GREATER_EQUAL", "GreaterEqualOptions"),
    "Less": ("LESS", "LessOptions"),
    "LessOrEqual": ("LESS_EQUAL", "LessEqualOptions"),
    "And": ("LOGICAL_AND", "LogicalAndOptions"),
    "Or": ("LOGICAL_OR", "LogicalOrOptions"),
}
FUSED = {"ADD", "SUB", "MUL", "DIV"}
INT8 = {"ADD", "SUB", "MUL"}  # kernels that take any scales
COMPARING = {"EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGICAL_AND", "LOGICAL_OR"}


def binary(builder: Builder, node: Node) -> None:
    """Two operands, each a tensor or a constant, broadcast as ONNX does it."""
    if len(node.inputs) != 2:
        _variadic(builder, node)
        return
    code, options = BINARY[node.kind]
    asked = builder.asked(node.outputs[0])
    integer = code in INT8 and asked is not None and all(builder.is_int8(name) for name in node.inputs)
    shape = builder.net.shape(node.outputs[0], node)
    combine(builder, node, code, options, node.inputs, (node.outputs[0], shape), asked if integer else None)


def _variadic(builder: Builder, node: Node) -> None:
    """Max, Min and the like of one or many operands, two at a time."""
    code, options = BINARY[node.kind]
    if len(node.inputs) == 1:
        builder.values[node.outputs[0]] = builder.view(node.inputs[0], node)
        return
    so_far = node.inputs[0]
    for place, name in enumerate(node.inputs[1:], start=1):
        made = node.outputs[0] if place == len(node.inputs) - 1 else f"{node.outputs[0]}/{place}"
        sizes = np.broadcast_shapes(firsts(builder.shape(so_far, node)), firsts(builder.shape(name, node)))
        full = builder.net.shape(node.outputs[0], node)
        if len(sizes) != len(full) or any(len(builder.shape(n, node)) != len(full) for n in (so_far, name)):
            node.refuse("several operands of different numbers of axes")
        shape = tuple(
            max(pair) for pair in zip(builder.shape(so_far, node), builder.shape(name, node), strict=True)
        )
        combine(builder, node, code, options, (so_far, name), (made, shape), None)
        so_far = made


def combine(
    builder: Builder,
    node: Node,
    code: str,
    options: str,
    names: Sequence[str],
    result: tuple[str, Shape],
    params: Params | None,
) -> None:
    """Write a broadcasting operator and name its result.

    Args:
        builder: of the graph.
        node: in whose name errors are raised; its activation is applied.
        code, options: the TFLite operator.
        names: ONNX tensors, computed or stored.
        result: name and shape of what it gives.
        params: the result's scale if all is int8; None computes in the operands' own type, int8 as float32.
    """
    name, shape = result
    tensors, view = aligned(builder, node, names, shape, params is not None)
    kinds = {builder.tensors[tensor].dtype for tensor in tensors}
    if len(kinds) > 1:
        node.refuse(f"operands of different types ({', '.join(sorted(kinds))})")
    dtype = "bool" if code in COMPARING else kinds.pop()
    fields: dict[str, Any] = {"fusedActivationFunction": node.activation} if code in FUSED else {}
    stored = view.atoms if view.tensor < 0 else builder.tensors[view.tensor].shape
    made = builder.add(code, tensors, stored, dtype, params, options, **fields)
    made = made if code in FUSED else builder.activated(made, node.activation)
    builder.values[name] = view._replace(tensor=made)


def aligned(
    builder: Builder, node: Node, names: Sequence[str], shape: Shape, integer: bool
) -> tuple[list[int], View]:
    """Operands as tensors that broadcast as ONNX means it, and the view their result will have.

    The view's ``tensor`` is an operand of the result's own shape, -1 if there is none.
    """
    views = {
        name: builder.view(name, node) if integer else builder.float_view(name, node)
        for name in names
        if not builder.is_constant(name)
    }
    if not views:
        views = {names[0]: builder.float_view(names[0], node)}
    lead = _leader(list(views.values()), len(shape))
    alike = all(
        view[1:] == lead[1:] and _shape(builder, view) == _shape(builder, lead) for view in views.values()
    )
    if alike and lead.shape == shape:
        return _beside(builder, node, names, views, lead, integer)
    order = widened(lead, shape).simple()
    tensors = []
    for name in names:
        if name in views:
            tensors.append(builder.place(widened(views[name], shape), [[axis] for axis in order]))
        else:
            tensors.append(_laid(builder, builder.constant(name, node), len(shape), order, integer))
    return tensors, whole(-1, tuple(shape[axis] for axis in order), order)


def _shape(builder: Builder, view: View) -> Shape:
    return builder.tensors[view.tensor].shape


def _beside(
    builder: Builder, node: Node, names: Sequence[str], views: dict[str, View], lead: View, integer: bool
) -> tuple[list[int], View]:
    """Operands of one layout, and constants brought to it: nothing moves."""
    constants = {name: builder.constant(name, node) for name in names if name not in views}
    if any(constant.data.size > 1 for constant in constants.values()):
        views = {name: view._replace(tensor=builder.physical(view)) for name, view in views.items()}
        lead = lead._replace(tensor=builder.physical(lead))
    tensors = []
    for name in names:
        if name in views:
            tensors.append(views[name].tensor)
        else:
            spread_out = along(constants[name].data, lead)
            tensors.append(_put(builder, Constant(spread_out, constants[name].params), integer))
    return tensors, lead


def _put(builder: Builder, constant: Constant, integer: bool) -> int:
    data = constant.data if integer else constant.real
    while data.ndim and data.shape[0] == 1:
        data = data[0]
    return builder.stored(data, constant.params if integer else None)


def _laid(builder: Builder, constant: Constant, rank: int, order: Sequence[int], integer: bool) -> int:
    """A constant with its axes in a given order."""
    data = constant.data.reshape([1] * (rank - constant.data.ndim) + list(constant.data.shape))
    return _put(builder, Constant(data.transpose(order), constant.params), integer)


def _leader(views: Sequence[View], rank: int) -> View:
    """The operand whose layout the others follow: of full rank, the largest, one that is not in ONNX's order."""
    return max(
        views,
        key=lambda view: (
            len(view.shape) == rank,
            math.prod(s.second for s in view.shape),
            not view.straight,
        ),
    )


def widened(view: View, shape: Shape) -> View:
    """A view with axes of size 1 in front, to the rank of a shape."""
    return view._replace(axes=((),) * (len(shape) - len(view.axes)) + view.axes)


def along(data: Array, view: View) -> Array:
    """A constant that broadcasts to a view's ONNX shape, brought to the order and shape of its atoms."""
    data = data.reshape([1] * (len(view.axes) - data.ndim) + list(data.shape))
    sizes: list[int] = []
    atoms: list[int] = []
    for axis, size in zip(view.axes, data.shape, strict=True):
        atoms += axis
        sizes += [1 if size == 1 else view.atoms[i].first for i in axis]
    cube = data.reshape(sizes).transpose(sorted(range(len(atoms)), key=lambda i: atoms[i]))
    places = sorted(atoms)
    shape = [1] * len(view.atoms)
    for place, size in zip(places, cube.shape, strict=True):
        shape[place] = size
    return np.ascontiguousarray(cube.reshape(shape))


def normalize(builder: Builder, node: Node) -> None:
    """BatchNormalization that no convolution took in: a factor and an offset for each channel."""
    factor, offset = normalization(builder.net, node)
    shape = builder.net.shape(node.outputs[0], node)
    constants = builder.net.constants
    for name, values in (("factor", factor), ("offset", offset)):
        spread_out = np.asarray(values, np.float32).reshape(-1, *[1] * (len(shape) - 2))
        constants[f"{node.outputs[0]}/{name}"] = Constant(spread_out)
    middle = f"{node.outputs[0]}/scaled"
    plain = Node(node.kind, node.name, node.inputs, node.outputs)
    names = (node.inputs[0], f"{node.outputs[0]}/factor")
    combine(builder, plain, "MUL", "MulOptions", names, (middle, shape), None)
    names = (middle, f"{node.outputs[0]}/offset")
    combine(builder, node, "ADD", "AddOptions", names, (node.outputs[0], shape), None)


def clip(builder: Builder, node: Node) -> None:
    """Clip: RELU, RELU6, RELU_N1_TO_1 or RELU_0_TO_1 where the limits are theirs, else MAXIMUM and MINIMUM."""
    found = limits(builder.net, node)
    if found is None:
        node.refuse("its limits are computed when it runs")
    known = {
        (0.0, math.inf): "RELU",
        (0.0, 6.0): "RELU6",
        (-1.0, 1.0): "RELU_N1_TO_1",
        (0.0, 1.0): "RELU_0_TO_1",
    }
    if found in known:
        unary(builder, node, known[found])
        return
    shape = builder.net.shape(node.outputs[0], node)
    name = node.inputs[0]
    ends = [("MAXIMUM", found[0]), ("MINIMUM", found[1])]
    ends = [(code, value) for code, value in ends if math.isfinite(value)]
    if not ends:
        builder.values[node.outputs[0]] = builder.view(name, node)
    for place, (code, value) in enumerate(ends):
        made = node.outputs[0] if place == len(ends) - 1 else f"{node.outputs[0]}/{code}"
        limit = f"{node.outputs[0]}/{code}/limit"
        builder.net.constants[limit] = Constant(np.asarray(value, np.float32))
        combine(builder, node, code, "MaximumMinimumOptions", (name, limit), (made, shape), None)
        name = made


def unary(
    builder: Builder, node: Node, code: str, options: str = "", int8: bool = True, **fields: Any
) -> None:
    """An operator on one tensor, wherever its numbers lie; int8 if its kernel can and the result is quantized."""
    asked = builder.asked(node.outputs[0])
    integer = int8 and asked is not None and builder.is_int8(node.inputs[0])
    view = builder.view(node.inputs[0], node) if integer else builder.float_view(node.inputs[0], node)
    source = builder.tensors[view.tensor]
    params = asked if integer else None
    made = builder.add(code, [view.tensor], source.shape, source.dtype, params, options, **fields)
    builder.values[node.outputs[0]] = view._replace(tensor=made)
