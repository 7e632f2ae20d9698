"""Windows that slide over pictures: ONNX's explicit padding in TFLite's terms of SAME, VALID and PAD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from farthing.forge.tflite.builder import Builder, as_groups, channels_last
from farthing.forge.tflite.layout import Size
from farthing.forge.tflite.net import Node


class Axis(NamedTuple):
    """A window along one axis: its size, stride and dilation, and the padding that ONNX asks for."""

    kernel: int
    stride: int
    dilation: int
    before: int
    after: int

    @property
    def extent(self) -> int:
        """From the first to the last element it looks at."""
        return (self.kernel - 1) * self.dilation + 1


class Window(NamedTuple):
    """A window over height and width; a signal has a height of 1."""

    height: Axis
    width: Axis

    @property
    def strides(self) -> dict[str, int]:
        """The strides as TFLite options."""
        return {"strideH": self.height.stride, "strideW": self.width.stride}


def window(node: Node, builder: Builder, kernel: Sequence[int]) -> Window:
    """The window of a Conv or pooling node over pictures (n, c, h, w) or signals (n, c, l)."""
    count = len(kernel)
    if count not in {1, 2}:
        node.refuse(f"windows have 1 or 2 axes, not {count}")
    strides = node.get("strides", [1] * count)
    dilations = node.get("dilations", [1] * count)
    pads = _pads(node, builder, kernel, strides, dilations)
    axes = [Axis(kernel[i], strides[i], dilations[i], pads[i], pads[i + count]) for i in range(count)]
    if min(min(axis[:3]) for axis in axes) < 1 or min(min(axis[3:]) for axis in axes) < 0:
        node.refuse(f"kernel {list(kernel)}, strides {strides}, dilations {dilations}, padding {pads}")
    return Window(axes[0] if count == 2 else Axis(1, 1, 1, 0, 0), axes[-1])


def _pads(
    node: Node, builder: Builder, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Padding before each axis, then after each."""
    auto = node.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return [int(pad) for pad in node.get("pads", [0] * 2 * len(kernel))]
    if auto == "VALID":
        return [0] * 2 * len(kernel)
    sizes = builder.net.sizes(node.inputs[0], node, range(2, 2 + len(kernel)))
    totals = [
        (math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    if min(totals) < -1:
        node.refuse(
            f"{auto} where strides {list(strides)} pass over the picture's border is not well defined"
        )
    totals = [max(total, 0) for total in totals]
    before = [(total + (auto == "SAME_LOWER")) // 2 for total in totals]
    return [*before, *(total - first for total, first in zip(totals, before, strict=True))]


def ends(axis: Axis, size: Size, result: Size) -> int:
    """Padding after an axis that its last window reaches into; below 0 if the last elements are never looked at."""
    if size.free:
        return axis.after
    return (result.first - 1) * axis.stride + axis.extent - size.first - axis.before


def _schemes(axis: Axis, size: Size, result: Size) -> set[str]:
    """The TFLite schemes that pad one axis as wanted."""
    after = ends(axis, size, result)
    found = {"VALID"} if axis.before == 0 and after <= 0 else set()
    if size.free:
        same = axis.stride == 1 and axis.before == axis.after and axis.before + axis.after == axis.extent - 1
    else:
        total = max((result.first - 1) * axis.stride + axis.extent - size.first, 0)
        same = result.first == math.ceil(size.first / axis.stride) and axis.before == total // 2
    return found | ({"SAME"} if same else set())


def axes(builder: Builder, node: Node, sliding: Window) -> list[tuple[Axis, Size, Size]]:
    """The window of a node along height (pictures only) and width, with the sizes before and after."""
    before, after = builder.shape(node.inputs[0], node), builder.net.shape(node.outputs[0], node)
    width = [(sliding.width, before[-1], after[-1])]
    found = [(sliding.height, before[2], after[2]), *width] if len(before) == 4 else width
    for axis, size, result in found:
        if not size.free and (result.first - 1) * axis.stride - axis.before >= size.first:
            node.refuse("its last window lies outside the picture; runtimes differ there")
        if not size.free and axis.extent > size.first + axis.before + axis.after:
            node.refuse("its window is larger than the padded picture")
    return found


def scheme(builder: Builder, node: Node, sliding: Window) -> str:
    """The TFLite scheme that pads as a node wants it, empty if none does."""
    fitting = set.intersection(*(_schemes(*axis) for axis in axes(builder, node, sliding)))
    return "VALID" if "VALID" in fitting else "SAME" if fitting else ""


def margins(builder: Builder, node: Node, sliding: Window) -> list[tuple[int, int]]:
    """What is to be added around a picture, channels last, so that VALID gives the node's result."""
    inner = [(axis.before, max(ends(axis, old, new), 0)) for axis, old, new in axes(builder, node, sliding)]
    return [(0, 0), *([(0, 0)] if len(inner) == 1 else []), *inner, (0, 0)]


def picture(builder: Builder, node: Node, integer: bool) -> int:
    """A node's input with its channels last; as float32 unless int8 may stay."""
    view = builder.view(node.inputs[0], node) if integer else builder.float_view(node.inputs[0], node)
    return builder.place(view, as_groups(channels_last(len(view.shape))))


def padded(
    builder: Builder, node: Node, sliding: Window, value: float = 0.0, integer: bool = False
) -> tuple[int, str]:
    """A node's input channels last, and the scheme to run the window over it; padded ahead where no scheme fits.

    Args:
        builder: of the graph.
        node: the operator; its shapes are looked up.
        sliding: the window.
        value: what to pad with; -inf stands for the least number there is.
        integer: leave int8 as it is; else the result is float32.
    """
    tensor, fitting = picture(builder, node, integer), scheme(builder, node, sliding)
    if fitting:
        return tensor, fitting
    return pad(builder, tensor, margins(builder, node, sliding), value), "VALID"


def pad(builder: Builder, tensor: int, amounts: Sequence[tuple[int, int]], value: float = 0.0) -> int:
    """A tensor with so many elements added before and after each axis."""
    if not any(map(any, amounts)):
        return tensor
    source = builder.tensors[tensor]
    sizes = zip(source.shape, amounts, strict=True)
    shape = tuple(Size(size.first + sum(margin), size.second + sum(margin)) for size, margin in sizes)
    inputs = [tensor, builder.stored(np.asarray(amounts, np.int32))]
    if value == 0.0:
        return builder.add("PAD", inputs, shape, source.dtype, source.params, "PadOptions")
    inputs.append(_filling(builder, tensor, value))
    return builder.add("PADV2", inputs, shape, source.dtype, source.params, "PadV2Options")


def _filling(builder: Builder, tensor: int, value: float) -> int:
    source = builder.tensors[tensor]
    if source.params is None:
        limit = np.finfo(np.float32)
        return builder.stored(np.asarray(np.clip(value, limit.min, limit.max), np.float32))
    stored = np.clip(value / source.params.scale[0] + source.params.zero[0], -128, 127)
    return builder.stored(np.asarray(np.rint(stored), np.int8), source.params)
