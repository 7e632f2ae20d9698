"""Pooling over windows and over everything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from farthing.forge.trainable.builder import Builder, Value
from farthing.forge.trainable.node import Node
from farthing.forge.trainable.operators.windows import Window, pad, padded, window

MAX: dict[int, Any] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
MEAN: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def max_pool(builder: Builder, node: Node) -> Value:
    """The largest of each window."""
    builder.only_first(node)
    x, sliding = padded(
        builder, node, builder.value(node, 0), window(node, node.get("kernel_shape")), -math.inf
    )
    x, sliding = _within(builder, x, sliding, -math.inf)
    ceil = bool(node.get("ceil_mode", 0))
    function = MAX[len(sliding.kernel)]
    return builder.call(function, x, sliding.kernel, sliding.strides, sliding.before, sliding.dilations, ceil)


def _within(builder: Builder, x: Value, sliding: Window, fill: float) -> tuple[Value, Window]:
    """Padding beyond half the window, which torch's pooling refuses, is done ahead."""
    if all(2 * before <= size for before, size in zip(sliding.before, sliding.kernel, strict=True)):
        return x, sliding
    none = [0] * len(sliding.kernel)
    return builder.call(pad, x, sliding.before, sliding.after, fill), sliding._replace(
        before=none, after=none
    )


def average_pool(builder: Builder, node: Node) -> Value:
    """The mean of each window, with or without its padding counted."""
    x, sliding = builder.value(node, 0), window(node, node.get("kernel_shape"))
    if any(step != 1 for step in sliding.dilations):
        node.refuse("its window is dilated")
    counted, ceil = bool(node.get("count_include_pad", 0)), bool(node.get("ceil_mode", 0))
    inside = sliding.symmetric and all(
        2 * b <= k for b, k in zip(sliding.before, sliding.kernel, strict=True)
    )
    if node.get("auto_pad", "NOTSET") in {"NOTSET", "VALID"} and inside:
        function = MEAN[len(sliding.kernel)]
        return builder.call(function, x, sliding.kernel, sliding.strides, sliding.before, ceil, counted)
    if ceil:
        node.refuse("it rounds sizes up and pads unevenly")
    share = None
    if not counted:
        whole = builder.call(torch.ones_like, x)
        share = _mean(builder, node, whole, sliding)
    mean = _mean(builder, node, x, sliding)
    return mean if share is None else builder.call(torch.div, mean, share)


def _mean(builder: Builder, node: Node, x: Value, sliding: Window) -> Value:
    x, left = padded(builder, node, x, sliding, 0.0)
    x, left = _within(builder, x, left, 0.0)
    return builder.call(MEAN[len(left.kernel)], x, left.kernel, left.strides, left.before)


def global_average_pool(builder: Builder, node: Node) -> Value:
    """The mean of each channel."""
    x = builder.value(node, 0)
    return builder.call(torch.mean, x, list(range(2, builder.rank(x))), keepdim=True)


def global_max_pool(builder: Builder, node: Node) -> Value:
    """The largest of each channel."""
    x = builder.value(node, 0)
    return builder.call(torch.amax, x, list(range(2, builder.rank(x))), keepdim=True)


def lp_pool(builder: Builder, node: Node) -> Value:
    """The p-norm of each window."""
    x, sliding = padded(builder, node, builder.value(node, 0), window(node, node.get("kernel_shape")), 0.0)
    x, sliding = (
        (x, sliding)
        if not any(sliding.before)
        else (
            builder.call(pad, x, sliding.before, sliding.after, 0.0),
            sliding._replace(before=[0] * len(sliding.kernel)),
        )
    )
    if any(step != 1 for step in sliding.dilations) or node.get("ceil_mode", 0):
        node.refuse("its window is dilated, or it rounds sizes up")
    return builder.call(power_mean, x, int(node.get("p", 2)), sliding.kernel, sliding.strides)


def power_mean(x: Tensor, p: int, kernel: Sequence[int], strides: Sequence[int]) -> Tensor:
    """The p-norm of each window."""
    mean: Tensor = MEAN[len(kernel)](x.abs() ** p, kernel, strides)
    return (mean * math.prod(kernel)) ** (1 / p)


def global_lp_pool(builder: Builder, node: Node) -> Value:
    """The p-norm of each channel."""
    x = builder.value(node, 0)
    axes = list(range(2, builder.rank(x)))
    return builder.call(torch.linalg.vector_norm, x, int(node.get("p", 2)), axes, keepdim=True)
