"""Normalization by statistics of the input itself, written as the means and products it consists of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from farthing.forge.tflite.builder import Builder
from farthing.forge.tflite.layout import ONE
from farthing.forge.tflite.net import Constant, Node
from farthing.forge.tflite.operators.elementwise import combine


def layer(builder: Builder, node: Node) -> None:
    """LayerNormalization over the last axes (Ba et al. 2016, https://arxiv.org/abs/1607.06450)."""
    rank = len(builder.shape(node.inputs[0], node))
    first = int(node.get("axis", -1)) % rank
    if any(builder.readers.get(name) for name in node.outputs[1:]):
        node.refuse("mean and deviation are not given out")
    _normalized(builder, node, range(first, rank))


def instance(builder: Builder, node: Node) -> None:
    """InstanceNormalization over height and width (Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022)."""
    rank = len(builder.shape(node.inputs[0], node))
    for name in node.inputs[1:3]:
        data = builder.constant(name, node).real
        builder.net.constants[f"{name}/{rank}"] = Constant(data.reshape(-1, *[1] * (rank - 2)))
    wide = (node.inputs[0], *(f"{name}/{rank}" for name in node.inputs[1:3]))
    _normalized(builder, Node(node.kind, node.name, wide, node.outputs, node.attributes), range(2, rank))


def _normalized(builder: Builder, node: Node, axes: Sequence[int]) -> None:
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias``."""
    view = builder.float_view(node.inputs[0], node)
    tensor = builder.physical(view)
    shape = builder.tensors[tensor].shape
    places = sorted(i for axis in axes for i in view.axes[axis])
    small = tuple(ONE if i in places else size for i, size in enumerate(shape))
    which = builder.integers(places)
    mean = builder.add("MEAN", [tensor, which], small, options="ReducerOptions", keepDims=True)
    centred = builder.add("SUB", [tensor, mean], shape, options="SubOptions", fusedActivationFunction="NONE")
    square = builder.add(
        "MUL", [centred, centred], shape, options="MulOptions", fusedActivationFunction="NONE"
    )
    variance = builder.add("MEAN", [square, which], small, options="ReducerOptions", keepDims=True)
    epsilon = builder.stored(np.asarray(node.get("epsilon", 1e-5), np.float32))
    above = builder.add(
        "ADD", [variance, epsilon], small, options="AddOptions", fusedActivationFunction="NONE"
    )
    factor = builder.add("RSQRT", [above], small)
    scaled = builder.add(
        "MUL", [centred, factor], shape, options="MulOptions", fusedActivationFunction="NONE"
    )
    name = f"{node.outputs[0]}/normal"
    builder.values[name] = view._replace(tensor=scaled, atoms=shape)
    steps = [("MUL", node.input(1)), ("ADD", node.input(2))]
    steps = [(code, other) for code, other in steps if other]
    for place, (code, other) in enumerate(steps):
        made = node.outputs[0] if place == len(steps) - 1 else f"{node.outputs[0]}/{code}"
        combine(builder, node, code, f"{code.title()}Options", (name, other), (made, view.shape), None)
        name = made
