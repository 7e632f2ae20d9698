"""Activation functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from farthing.forge.trainable.binding import Vector
from farthing.forge.trainable.builder import Builder, Value, bare
from farthing.forge.trainable.node import Node
from farthing.forge.trainable.operators.elementwise import number

SIMPLE: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": functional.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "HardSwish": functional.hardswish,
    "Mish": functional.mish,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
}


def simple(builder: Builder, node: Node) -> Value:
    """One without settings."""
    return builder.call(SIMPLE[node.kind], builder.value(node, 0))


def clip(builder: Builder, node: Node) -> Value:
    """Limited from below, above or both."""
    x = builder.value(node, 0)
    ends: list[Any] = []
    for place, name in ((1, "min"), (2, "max")):
        end = builder.optional(node, place) if node.input(place) else node.get(name)
        end = number(end) if isinstance(end, Tensor) else end
        ends.append(None if isinstance(end, float) and abs(end) > 3.4e38 else end)
    if ends == [0.0, 6.0]:
        return builder.call(functional.relu6, x)
    if all(end is None or isinstance(end, int | float) for end in ends):
        return builder.call(torch.clamp, x, *ends) if ends != [None, None] else x
    for end, function in zip(ends, (torch.maximum, torch.minimum), strict=True):
        if end is not None:
            tensor = (
                torch.tensor(end, dtype=builder.trial(x)[0].dtype) if isinstance(end, int | float) else end
            )
            x = builder.call(function, x, tensor)
    return x


def leaky_relu(builder: Builder, node: Node) -> Value:
    """A slope below 0."""
    return builder.call(functional.leaky_relu, builder.value(node, 0), float(node.get("alpha", 0.01)))


def prelu(builder: Builder, node: Node) -> Value:
    """A learnt slope below 0: a layer if it is one a channel, or one in all."""
    x, shape = builder.value(node, 0), builder.weights.shape(node.input(1))
    channels = builder.sizes(x)[1][0] if builder.rank(x) > 1 else 1
    if shape is not None and (math.prod(shape) == 1 or _per_channel(shape, builder.rank(x), channels)):
        tensor = builder.weights.source(node.input(1))[0]
        if builder.weights.free(tensor, Vector()):
            name = builder.add(node, bare(nn.PReLU, math.prod(shape)))
            builder.weights.bind(tensor, Vector(), name, ["weight"])
            return builder.run(name, x)
    below = builder.call(torch.mul, builder.call(torch.clamp, x, max=0.0), builder.weight(node, 1))
    return builder.call(torch.add, builder.call(functional.relu, x), below)


def _per_channel(shape: tuple[int, ...], rank: int, channels: int) -> bool:
    """Whether a slope of this shape is one for each index of axis 1."""
    aligned = (1,) * (rank - len(shape)) + shape
    return len(aligned) == rank and all(
        size == (channels if axis == 1 else 1) for axis, size in enumerate(aligned)
    )


def elu(builder: Builder, node: Node) -> Value:
    """Exponential below 0."""
    return builder.call(functional.elu, builder.value(node, 0), float(node.get("alpha", 1.0)))


def selu(builder: Builder, node: Node) -> Value:
    """Exponential below 0, and scaled."""
    alpha, gamma = float(node.get("alpha", 1.6732632)), float(node.get("gamma", 1.050701))
    return builder.call(torch.mul, builder.call(functional.elu, builder.value(node, 0), alpha), gamma)


def celu(builder: Builder, node: Node) -> Value:
    """Exponential below 0, with a continuous slope."""
    return builder.call(functional.celu, builder.value(node, 0), float(node.get("alpha", 1.0)))


def gelu(builder: Builder, node: Node) -> Value:
    """The input times the normal distribution's share below it."""
    approximate = node.get("approximate", "tanh" if node.kind.endswith("FastGelu") else "none")
    return builder.call(functional.gelu, builder.value(node, 0), approximate=approximate)


def hard_sigmoid(builder: Builder, node: Node) -> Value:
    """A line between 0 and 1."""
    alpha, beta = float(node.get("alpha", 0.2)), float(node.get("beta", 0.5))
    line = builder.call(torch.add, builder.call(torch.mul, builder.value(node, 0), alpha), beta)
    return builder.call(torch.clamp, line, 0.0, 1.0)


def swish(builder: Builder, node: Node) -> Value:
    """The input times its sigmoid."""
    x, alpha = builder.value(node, 0), float(node.get("alpha", 1.0))
    if alpha == 1.0:
        return builder.call(functional.silu, x)
    return builder.call(torch.mul, x, builder.call(torch.sigmoid, builder.call(torch.mul, x, alpha)))


def thresholded_relu(builder: Builder, node: Node) -> Value:
    """0 up to a threshold."""
    return builder.call(functional.threshold, builder.value(node, 0), float(node.get("alpha", 1.0)), 0.0)


def shrink(builder: Builder, node: Node) -> Value:
    """0 near 0; what lies beyond comes nearer by a bias."""
    return builder.call(
        shrunk, builder.value(node, 0), float(node.get("lambd", 0.5)), float(node.get("bias", 0.0))
    )


def shrunk(x: Tensor, lambd: float, bias: float) -> Tensor:
    """See `shrink`."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))


def softmax(builder: Builder, node: Node) -> Value:
    """Shares that sum to 1 along an axis; before opset 13 over all axes from one on."""
    function = torch.softmax if node.kind == "Softmax" else torch.log_softmax
    x = builder.value(node, 0)
    if builder.opset >= 13:
        return builder.call(function, x, int(node.get("axis", -1)))
    axis = int(node.get("axis", 1)) % max(builder.rank(x), 1)
    if axis == builder.rank(x) - 1:
        return builder.call(function, x, axis)
    return builder.call(over_the_rest, x, axis, node.kind == "LogSoftmax")


def over_the_rest(x: Tensor, axis: int, log: bool) -> Tensor:
    """Softmax over all axes from one on."""
    flat = x.flatten(axis)
    return (torch.log_softmax(flat, axis) if log else torch.softmax(flat, axis)).reshape(x.shape)
