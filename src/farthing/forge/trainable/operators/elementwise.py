"""Operators that treat each number by itself, or pairs of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from onnx import helper
from torch import Tensor

from farthing.forge.trainable.builder import Builder, Value
from farthing.forge.trainable.node import Node

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Erf": torch.erf,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Not": torch.logical_not,
    "IsNaN": torch.isnan,
}
ARITHMETIC: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
}
COMPARING: dict[str, Callable[..., Tensor]] = {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}
FOLDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Sum": torch.add,
    "Mean": torch.add,
    "Max": torch.maximum,
    "Min": torch.minimum,
}


def unary(builder: Builder, node: Node) -> Value:
    """One number in, one out."""
    return builder.call(UNARY[node.kind], builder.value(node, 0))


def arithmetic(builder: Builder, node: Node) -> Value:
    """Add, Sub, Mul, Div; a stored number for each channel is learnt where a layer comes before it."""
    operands = [_operand(builder, node, place) for place in (0, 1)]
    if node.kind == "Div" and not builder.is_float(builder.value(node, 0)):
        return builder.call(torch.div, *operands, rounding_mode="trunc")
    return builder.call(ARITHMETIC[node.kind], *operands)


def _operand(builder: Builder, node: Node, place: int) -> Any:
    value, other = builder.value(node, place), builder.value(node, 1 - place)
    shape = builder.weights.shape(node.input(place))
    if shape is not None and sum(size != 1 for size in shape) == 1 and (builder.depends_on_training(other)):
        return builder.weight(node, place)
    plain = number(value) if isinstance(value, Tensor) and value.dtype != torch.bool else None
    fits = plain is not None and not isinstance(other, Tensor) and builder.rank(value) <= builder.rank(other)
    return plain if fits and (node.kind in {"Add", "Mul"} or place == 1) else value


def number(value: Tensor) -> float | int | None:
    """A constant of one element as a plain number; None for any other."""
    return value.item() if value.numel() == 1 else None


def power(builder: Builder, node: Node) -> Value:
    """A power; the result has the type of the base."""
    x, exponent = builder.value(node, 0), builder.value(node, 1)
    plain = number(exponent) if isinstance(exponent, Tensor) else None
    fits = plain is not None and builder.is_float(x) and builder.rank(exponent) <= builder.rank(x)
    made = builder.call(torch.pow, x, plain if fits else exponent)
    kind = builder.trial(x)[0].dtype
    return made if builder.trial(made)[0].dtype == kind else builder.call(Tensor.to, made, kind)


def comparing(builder: Builder, node: Node) -> Value:
    """Two numbers in, true or false out."""
    return builder.call(COMPARING[node.kind], builder.value(node, 0), builder.value(node, 1))


def folded(builder: Builder, node: Node) -> Value:
    """Sum, Mean, Max and Min of any number of tensors."""
    made = builder.value(node, 0)
    for place in range(1, len(node.inputs)):
        made = builder.call(FOLDED[node.kind], made, builder.value(node, place))
    return builder.call(torch.div, made, len(node.inputs)) if node.kind == "Mean" else made


def modulo(builder: Builder, node: Node) -> Value:
    """The rest of a division, with the sign of the dividend (fmod) or of the divisor."""
    function = torch.fmod if node.get("fmod", 0) else torch.remainder
    return builder.call(function, builder.value(node, 0), builder.value(node, 1))


def where(builder: Builder, node: Node) -> Value:
    """One of two numbers, as a third says."""
    return builder.call(torch.where, *(builder.value(node, place) for place in range(3)))


def is_inf(builder: Builder, node: Node) -> Value:
    """Whether a number is infinite, either way or one."""
    x = builder.value(node, 0)
    signs = [node.get("detect_negative", 1), node.get("detect_positive", 1)]
    if all(signs):
        return builder.call(torch.isinf, x)
    return builder.call(torch.eq, x, math.inf if signs[1] else -math.inf)


def cast(builder: Builder, node: Node) -> Value:
    """Another element type."""
    return builder.call(Tensor.to, builder.value(node, 0), dtype_of(node, int(node.get("to"))))


def cast_like(builder: Builder, node: Node) -> Value:
    """The element type of another tensor."""
    return builder.call(Tensor.to, builder.value(node, 0), builder.trial(builder.value(node, 1))[0].dtype)


def dtype_of(node: Node, element: int) -> torch.dtype:
    """Torch's name for an ONNX element type."""
    name = helper.tensor_dtype_to_np_dtype(element).name if element else ""
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        node.refuse(f"torch has no element type {name or element}")
    return found


def identity(builder: Builder, node: Node) -> Value:
    """The same again."""
    builder.weights.alias(node.outputs[0], node.inputs[0])
    return builder.value(node, 0)
