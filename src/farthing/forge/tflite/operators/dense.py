"""Gemm and MatMul: FULLY_CONNECTED where the weights are constant, else BATCH_MATMUL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.forge.tflite.builder import Builder
from farthing.forge.tflite.layout import View, firsts
from farthing.forge.tflite.net import Constant, Node, Params
from farthing.forge.tflite.operators.convolution import bias_of, kernel

Array = NDArray[Any]


def gemm(builder: Builder, node: Node) -> None:
    """``alpha A' B' + beta C`` with constant B and C."""
    if node.get("transA", 0):
        name = f"{node.inputs[0]}/transposed/{node.name}"
        builder.values[name] = builder.view(node.inputs[0], node).transposed([1, 0])
        builder.net.shapes[name] = builder.values[name].shape
        node = replace(node, inputs=(name, *node.inputs[1:]))
    weights, axis = builder.constant(node.inputs[1], node), 0 if node.get("transB", 0) else 1
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    if alpha != 1.0:
        weights = Constant(weights.real * np.float32(alpha))
    if node.input(2):
        bias = builder.constant(node.input(2), node)
        if beta != 1.0 or bias.data.size != weights.data.shape[axis]:
            wide = np.broadcast_to(bias.real * np.float32(beta), (1, weights.data.shape[axis]))
            builder.net.constants[f"{node.name}/bias"] = Constant(np.ascontiguousarray(wide[0]))
            node = replace(node, inputs=(*node.inputs[:2], f"{node.name}/bias"))
    connected(builder, node, weights, axis)


def matmul(builder: Builder, node: Node) -> None:
    """A product of matrices; weights that are constant count as such."""
    if builder.is_constant(node.inputs[1]) and not builder.is_constant(node.inputs[0]):
        weights = builder.constant(node.inputs[1], node)
        if weights.data.ndim == 2:
            connected(builder, node, weights, 1)
            return
    _batched(builder, node)


def connected(builder: Builder, node: Node, weights: Constant, axis: int) -> None:
    """FULLY_CONNECTED; weights follow the order in which the input's last axis lies, so that nothing is moved.

    Args:
        builder: of the graph.
        node: input, weights, perhaps bias.
        weights: two axes.
        axis: the one that counts the outputs.
    """
    view = builder.view(node.inputs[0], node)
    shape = builder.net.shape(node.outputs[0], node)
    outputs, inputs = weights.data.shape[axis], weights.data.shape[1 - axis]
    if view.shape[-1].first != inputs or view.shape[-1].free:
        node.refuse(f"{firsts(view.shape)[-1]} inputs do not fit weights for {inputs}")
    if not _leads(view):
        tensor = builder.place(view, [[i] for i in range(len(view.shape))])
        view = View(tensor, view.shape, tuple((i,) for i in range(len(view.shape))))
    weights = weights.with_scales(axis).transposed((axis, 1 - axis))
    arranged = Constant(_arranged(weights.data, view), weights.params)
    made = kernel(builder, node, arranged, 0, bias_of(builder, node))
    source = view if made.params else builder.real(view)
    several = len(shape) != 2
    tensor = source.tensor
    if several:
        tensor = builder.reshape(tensor, view.shape)
    result = builder.add(
        "FULLY_CONNECTED",
        [tensor, made.weights, made.bias],
        shape,
        params=made.params,
        options="FullyConnectedOptions",
        fusedActivationFunction=node.activation,
        keepNumDims=several,
    )
    if shape[-1].first != outputs:
        node.refuse(f"a result of {firsts(shape)[-1]} columns does not fit weights for {outputs}")
    builder.put(node.outputs[0], result, range(len(shape)))


def _leads(view: View) -> bool:
    """Whether the elements lie row after row, in whatever order within a row."""
    rows = view.order([range(len(view.axes) - 1)])
    columns = view.order([[len(view.axes) - 1]])
    return rows == sorted(rows) and max(rows, default=-1) < min(columns, default=1 << 30)


def _arranged(data: Array, view: View) -> Array:
    """Weights (outputs, inputs) with the inputs in the order in which they lie."""
    atoms = view.order([[len(view.axes) - 1]])
    cube = data.reshape(len(data), *(view.atoms[i].first for i in atoms))
    order = sorted(range(len(atoms)), key=lambda i: atoms[i])
    return np.ascontiguousarray(cube.transpose(0, *(i + 1 for i in order)).reshape(data.shape))


def _batched(builder: Builder, node: Node) -> None:
    """BATCH_MATMUL of two tensors in ONNX's order, float or int8."""
    params: Params | None = builder.asked(node.outputs[0])
    integer = params is not None and all(builder.is_int8(name) for name in node.inputs[:2])
    tensors = []
    for name in node.inputs[:2]:
        view = builder.view(name, node) if integer else builder.float_view(name, node)
        if len(view.shape) < 2:
            node.refuse("vectors are not multiplied; give both a second axis")
        tensors.append(builder.place(view, [[i] for i in range(len(view.shape))]))
    shape = builder.net.shape(node.outputs[0], node)
    result = builder.add(
        "BATCH_MATMUL", tensors, shape, params=params if integer else None, options="BatchMatMulOptions"
    )
    builder.put(node.outputs[0], builder.activated(result, node.activation), range(len(shape)))
