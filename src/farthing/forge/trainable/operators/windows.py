"""Windows that slide over signals, pictures and volumes: strides, dilations and padding as ONNX states them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from farthing.forge.trainable.builder import Builder, Value
from farthing.forge.trainable.node import Node


class Window(NamedTuple):
    """A window over the axes after the channels; an entry an axis."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    @property
    def symmetric(self) -> bool:
        """Whether it pads alike on both sides."""
        return self.before == self.after and min(self.before, default=0) >= 0


def window(node: Node, kernel: Sequence[int]) -> Window:
    """The window of a Conv or pooling node, without the padding that ``auto_pad`` asks for."""
    count = len(kernel)
    if count not in {1, 2, 3}:
        node.refuse(f"its window has {count} axes, not 1, 2 or 3")
    pads = [int(pad) for pad in node.get("pads", [0] * 2 * count)]
    if node.get("auto_pad", "NOTSET") != "NOTSET":
        pads = [0] * 2 * count
    strides, dilations = (list(node.get(name, [1] * count)) for name in ("strides", "dilations"))
    return Window(list(kernel), strides, dilations, pads[:count], pads[count:])


def padded(builder: Builder, node: Node, x: Value, sliding: Window, fill: float) -> tuple[Value, Window]:
    """The input with the padding that torch's layers cannot state, and the window with what is left of it."""
    auto = node.get("auto_pad", "NOTSET")
    none = [0] * len(sliding.kernel)
    if auto in {"SAME_UPPER", "SAME_LOWER"}:
        lower = auto == "SAME_LOWER"
        x = builder.call(pad_same, x, sliding.kernel, sliding.strides, sliding.dilations, lower, fill)
    elif not sliding.symmetric:
        x = builder.call(pad, x, sliding.before, sliding.after, fill)
    else:
        return x, sliding
    return x, sliding._replace(before=none, after=none)


def pad(x: Tensor, before: Sequence[int], after: Sequence[int], fill: float) -> Tensor:
    """The last axes made longer at both ends; below 0, shorter."""
    amounts = [amount for ends in zip(reversed(before), reversed(after), strict=True) for amount in ends]
    return functional.pad(x, amounts, value=fill)


def pad_same(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    lower: bool,
    fill: float,
) -> Tensor:
    """Padded so that a window gives ``ceil(size / stride)`` results; the odd one of it first if ``lower``."""
    sizes = x.shape[-len(kernel) :]
    totals = [
        max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    before = [(total + lower) // 2 for total in totals]
    return pad(x, before, [total - first for total, first in zip(totals, before, strict=True)], fill)


def crop(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """The last axes made shorter at both ends."""
    start = x.ndim - len(before)
    for axis, (first, last) in enumerate(zip(before, after, strict=True), start):
        x = x.narrow(axis, first, x.shape[axis] - first - last)
    return x
