"""Operators that make one number of many along some axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from farthing.forge.trainable.builder import Builder, Value
from farthing.forge.trainable.node import Node


def product(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """The product along several axes."""
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keepdim)
    return x


def length(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """The square root of the sum of squares; its slope at 0 is 0."""
    made: Tensor = torch.linalg.vector_norm(x, 2, tuple(axes), keepdim=keepdim)
    return made


def absolute(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """The sum of absolute values."""
    return x.abs().sum(tuple(axes), keepdim=keepdim)


def squares(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """The sum of squares."""
    return (x * x).sum(tuple(axes), keepdim=keepdim)


def log_sum(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """The logarithm of the sum."""
    return x.sum(tuple(axes), keepdim=keepdim).log()


REDUCING: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceProd": product,
    "ReduceL1": absolute,
    "ReduceL2": length,
    "ReduceSumSquare": squares,
    "ReduceLogSum": log_sum,
    "ReduceLogSumExp": torch.logsumexp,
}
CHOOSING: dict[str, Callable[..., Tensor]] = {"ArgMax": torch.argmax, "ArgMin": torch.argmin}


def reduce(builder: Builder, node: Node) -> Value:
    """One number of all along some axes, or along all of them."""
    x, axes = builder.value(node, 0), builder.integers(node, 1, "axes")
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            return _single(builder, node, x)
        axes = list(range(builder.rank(x)))
    if not axes:
        return _single(builder, node, x)
    dtype = builder.trial(x)[0].dtype
    made = builder.call(REDUCING[node.kind], x, axes, keepdim=bool(node.get("keepdims", 1)))
    return made if builder.trial(made)[0].dtype == dtype else builder.call(Tensor.to, made, dtype)


def _single(builder: Builder, node: Node, x: Value) -> Value:
    """Of each number by itself."""
    apart = builder.call(torch.unsqueeze, x, 0)
    return builder.call(REDUCING[node.kind], apart, [0], keepdim=False)


def choose(builder: Builder, node: Node) -> Value:
    """Where the largest or smallest lies, the first or last of several."""
    x, axis, keep = builder.value(node, 0), int(node.get("axis", 0)), bool(node.get("keepdims", 1))
    if node.get("select_last_index", 0):
        return builder.call(last, x, axis, keep, node.kind == "ArgMax")
    return builder.call(CHOOSING[node.kind], x, axis, keepdim=keep)


def last(x: Tensor, axis: int, keepdim: bool, largest: bool) -> Tensor:
    """Where the last of the largest or smallest lies."""
    turned = x.flip(axis)
    found = torch.argmax(turned, axis, keepdim) if largest else torch.argmin(turned, axis, keepdim)
    return x.shape[axis] - 1 - found


def cum_sum(builder: Builder, node: Node) -> Value:
    """Sums up to each place."""
    x, axis = builder.value(node, 0), int(builder.constant(node, 1, "axis").item())
    reverse, exclusive = bool(node.get("reverse", 0)), bool(node.get("exclusive", 0))
    return builder.call(running, x, axis, reverse, exclusive)


def running(x: Tensor, axis: int, reverse: bool, exclusive: bool) -> Tensor:
    """See `cum_sum`."""
    x = x.flip(axis) if reverse else x
    sums = x.cumsum(axis, dtype=x.dtype)
    sums = sums - x if exclusive else sums
    return sums.flip(axis) if reverse else sums


def top_k(builder: Builder, node: Node) -> tuple[Value, ...]:
    """The largest or smallest along an axis, and where they lie."""
    x, count = builder.value(node, 0), int(builder.constant(node, 1, "number").item())
    axis, largest = int(node.get("axis", -1)), bool(node.get("largest", 1))
    return builder.items(builder.call(foremost, x, count, axis, largest), 2)


def foremost(x: Tensor, count: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """See `top_k`; of equal numbers the first comes first."""
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)
