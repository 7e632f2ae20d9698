"""Gemm and MatMul: linear layers where the weights are stored, products of matrices where they are computed."""

from __future__ import annotations

import torch
from torch import nn

from farthing.forge.trainable.binding import AsStored, Layout, Permuted, Vector
from farthing.forge.trainable.builder import Builder, Value, bare
from farthing.forge.trainable.node import Node


def gemm(builder: Builder, node: Node) -> Value:
    """``alpha A' B' + beta C``."""
    x = builder.value(node, 0)
    if node.get("transA", 0):
        x = builder.call(torch.t, x)
    if (alpha := float(node.get("alpha", 1.0))) != 1.0:
        x = builder.call(torch.mul, x, alpha)
    beta, transposed = float(node.get("beta", 1.0)), bool(node.get("transB", 0))
    layout = _layout(builder, node, transposed)
    if layout is None:
        weight = builder.weight(node, 1)
        y = builder.call(torch.matmul, x, builder.call(torch.t, weight) if transposed else weight)
        return _plus(builder, node, y, beta)
    outputs = builder.sizes(builder.value(node, 1))[0 if transposed else 1][0]
    bias = _vector(builder, node, 2, outputs, 2) if beta == 1.0 else ""
    y = _linear(builder, node, layout, x, bias)
    return y if bias else _plus(builder, node, y, beta)


def _plus(builder: Builder, node: Node, y: Value, beta: float) -> Value:
    if not node.input(2):
        return y
    c = builder.weight(node, 2)
    return builder.call(torch.add, y, c, alpha=beta)


def matmul(builder: Builder, node: Node) -> Value:
    """A product of matrices; an Add of a stored bias that alone reads it becomes part of the layer."""
    layout = _layout(builder, node, transposed=False) if builder.rank(builder.value(node, 0)) > 1 else None
    if layout is None:
        return builder.call(torch.matmul, builder.weight(node, 0), builder.weight(node, 1))
    outputs = builder.sizes(builder.value(node, 1))[1][0]
    add = builder.sole_reader(node.outputs[0], "Add")
    bias = ""
    if add is not None:
        place = 1 - add.inputs.index(node.outputs[0])
        bias = _vector(builder, add, place, outputs, builder.rank(builder.value(node, 0)))
    y = _linear(builder, node, layout, builder.value(node, 0), bias)
    if add is not None and bias:
        builder.done(add, y)
    return y


def _layout(builder: Builder, node: Node, transposed: bool) -> Layout | None:
    """How the weights lie, if they are stored as a matrix and free to be a layer's."""
    shape = builder.weights.shape(node.input(1))
    if shape is None or len(shape) != 2 or builder.weights.shape(node.input(0)) is not None:
        return None
    tensor, order = builder.weights.source(node.input(1))
    layout: Layout = AsStored() if (list(order) == [0, 1]) == transposed else Permuted((1, 0))
    return layout if builder.weights.free(tensor, layout) else None


def _vector(builder: Builder, node: Node, place: int, outputs: int, rank: int) -> str:
    """The stored tensor that is one number for each output; empty if there is none."""
    shape = builder.weights.shape(node.input(place))
    if not shape or len(shape) > rank or shape[-1] != outputs or any(size != 1 for size in shape[:-1]):
        return ""
    tensor = builder.weights.source(node.input(place))[0]
    return tensor if builder.weights.free(tensor, Vector()) else ""


def _linear(builder: Builder, node: Node, layout: Layout, x: Value, bias: str) -> Value:
    first, second = (size for size, _ in builder.sizes(builder.value(node, 1)))
    inputs, outputs = (second, first) if node.kind == "Gemm" and node.get("transB", 0) else (first, second)
    name = builder.add(node, bare(nn.Linear, inputs, outputs, bias=bool(bias)))
    builder.weights.bind(builder.weights.source(node.input(1))[0], layout, name, ["weight"])
    if bias:
        builder.weights.bind(bias, Vector(), name, ["bias"])
    return builder.run(name, x)


def einsum(builder: Builder, node: Node) -> Value:
    """Products and sums as an equation states them."""
    operands = [builder.weight(node, place) for place in range(len(node.inputs))]
    return builder.call(torch.einsum, node.get("equation"), *operands)
