"""ConvTranspose: TRANSPOSE_CONV, or a 1 x 1 convolution and DEPTH_TO_SPACE where windows do not overlap."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from farthing.forge.tflite.builder import Builder, as_groups, channels_last
from farthing.forge.tflite.layout import ONE, Shape, Size, fixed
from farthing.forge.tflite.net import Constant, Node
from farthing.forge.tflite.operators.convolution import bias_of, kernel, result_shape, signal


class Axis(NamedTuple):
    """One axis of a transposed convolution: ``out`` results from ``before`` on, of all that the windows write."""

    kernel: int
    stride: int
    before: int
    size: Size
    out: Size

    @property
    def full(self) -> int:
        """How far the last window reaches."""
        return (self.size.first - 1) * self.stride + self.kernel

    def schemes(self) -> set[str]:
        """The TFLite schemes that give exactly these results."""
        out, size = self.out.first, self.size.first
        total = max(self.full - out, 0)
        found = {"SAME"} if size == math.ceil(out / self.stride) and self.before == total // 2 else set()
        valid = self.before == 0 and size == math.ceil((out - self.kernel + 1) / self.stride)
        return found | ({"VALID"} if valid else set())


def conv_transpose(builder: Builder, node: Node) -> None:
    """ConvTranspose of pictures and signals; groups become zeros in the weights of one group."""
    given = builder.constant(node.inputs[1], node)
    if given.data.ndim not in {3, 4}:
        node.refuse(f"weights {list(given.data.shape)}: windows have 1 or 2 axes")
    if max(node.get("dilations", [1])) > 1:
        node.refuse("TFLite's TRANSPOSE_CONV has no dilation")
    weights = _one_group(signal(given.with_scales(1)), int(node.get("group", 1)))
    axes = _axes(builder, node, weights.data.shape[2:])
    apart = all(a.kernel == a.stride and a.before == 0 and a.out == _times(a.size, a.stride) for a in axes)
    if apart and (axes[0].kernel in {1, axes[1].kernel}):
        _unfolded(builder, node, weights, axes)
        return
    _transposed(builder, node, weights, axes)


def _times(size: Size, factor: int) -> Size:
    return Size(size.first * factor, size.second * factor)


def _one_group(weights: Constant, groups: int) -> Constant:
    """Weights (inputs, outputs of a group, height, width) of all groups as those of one: zeros between the groups."""
    if groups == 1:
        return weights
    inputs, outputs = weights.data.shape[0] // groups, weights.data.shape[1]
    data = np.zeros((inputs * groups, outputs * groups, *weights.data.shape[2:]), weights.data.dtype)
    for group in range(groups):
        rows = slice(group * inputs, (group + 1) * inputs)
        data[rows, group * outputs : (group + 1) * outputs] = weights.data[rows]
    params = weights.params
    if params is not None and not params.symmetric:
        return _one_group(Constant(weights.real), groups)
    if params is not None and not params.single:
        params = replace(params, scale=params.scale * groups, zero=params.zero * groups)
    return Constant(data, params)


def _axes(builder: Builder, node: Node, sizes: tuple[int, ...]) -> tuple[Axis, Axis]:
    before, after = builder.shape(node.inputs[0], node), builder.net.shape(node.outputs[0], node)
    count = len(before) - 2
    strides, pads = node.get("strides", [1] * count), node.get("pads", [0] * 2 * count)
    found = []
    for i in range(count):
        axis = Axis(sizes[i - count], strides[i], pads[i], before[2 + i], after[2 + i])
        found.append(_placed(node, axis, i))
    return (found[0] if count == 2 else Axis(1, 1, 0, ONE, ONE)), found[-1]


def _placed(node: Node, axis: Axis, place: int) -> Axis:
    """The axis with the padding that ``auto_pad`` or ``output_shape`` leaves to be worked out."""
    auto = node.get("auto_pad", "NOTSET")
    if auto in {"NOTSET", "VALID"} and "output_shape" not in node.attributes:
        return axis if auto == "NOTSET" else axis._replace(before=0)
    total = axis.full + node.get("output_padding", [0, 0])[place] - axis.out.first
    if total % 2 and auto not in {"SAME_UPPER", "SAME_LOWER"}:
        node.refuse("output_shape leaves open on which side the odd row of padding is; give pads")
    total = max(total, 0)
    return axis._replace(before=total // 2 if auto == "SAME_UPPER" else total - total // 2)


def _unfolded(builder: Builder, node: Node, weights: Constant, axes: tuple[Axis, Axis]) -> None:
    """Windows that do not overlap: each input pixel becomes a block of its own."""
    height, width = axes[0].kernel, axes[1].kernel
    inputs, outputs = weights.data.shape[:2]
    count = height * width
    data = weights.data.transpose(2, 3, 1, 0).reshape(count * outputs, 1, 1, inputs)
    params, bias = weights.params, bias_of(builder, node)
    if params is not None:
        repeat = 1 if params.single else count
        params = replace(params, scale=params.scale * repeat, zero=params.zero * repeat, axis=0)
    if bias is not None:
        own = bias.params if bias.params is None or bias.params.single else None
        values = bias.data if own is not None or bias.params is None else bias.real
        bias = Constant(np.tile(values.ravel(), count), own)
    made = kernel(builder, node, Constant(np.ascontiguousarray(data), params), 0, bias)
    view = builder.view(node.inputs[0], node) if made.params else builder.float_view(node.inputs[0], node)
    tensor = builder.place(view, as_groups(channels_last(len(view.shape))))
    shape = (*builder.tensors[tensor].shape[:3], *fixed([count * outputs]))
    fields: dict[str, Any] = {"padding": "VALID", "strideH": 1, "strideW": 1}
    fields["fusedActivationFunction"] = node.activation
    blocks = builder.add(
        "CONV_2D",
        [tensor, made.weights, made.bias],
        shape,
        params=made.params,
        options="Conv2DOptions",
        **fields,
    )
    target = result_shape(builder, node)
    if height == width > 1:
        blocks = builder.add(
            "DEPTH_TO_SPACE",
            [blocks],
            target,
            params=made.params,
            options="DepthToSpaceOptions",
            blockSize=width,
        )
    builder.put(node.outputs[0], builder.reshape(blocks, target), channels_last(len(view.shape)))


def _transposed(builder: Builder, node: Node, weights: Constant, axes: tuple[Axis, Axis]) -> None:
    if any(axis.size.free for axis in axes):
        node.refuse("height and width must be known; fix the inputs' sizes")
    made = kernel(builder, node, weights.transposed((1, 2, 3, 0)), 0, bias_of(builder, node))
    view = builder.view(node.inputs[0], node) if made.params else builder.float_view(node.inputs[0], node)
    tensor = builder.place(view, as_groups(channels_last(len(view.shape))))
    schemes = axes[0].schemes() & axes[1].schemes()
    target = written = result_shape(builder, node)
    if not schemes:
        sizes = [max(axis.full, axis.before + axis.out.first) for axis in axes]
        written = (target[0], *fixed(sizes), target[3])
    result = builder.add(
        "TRANSPOSE_CONV",
        [_sizes(builder, tensor, written), made.weights, tensor, made.bias],
        written,
        params=made.params,
        options="TransposeConvOptions",
        padding=min(schemes, default="VALID"),
        strideH=axes[0].stride,
        strideW=axes[1].stride,
    )
    if not schemes:
        result = _cropped(builder, result, axes, target)
    builder.put(node.outputs[0], builder.activated(result, node.activation), channels_last(len(view.shape)))


def _sizes(builder: Builder, tensor: int, shape: Shape) -> int:
    """The shape of the result as a tensor; with a free batch it is read off the input when it runs."""
    if not any(size.free for size in shape):
        return builder.integers([size.first for size in shape])
    four, one = fixed([4]), fixed([1])
    sizes = builder.add("SHAPE", [tensor], four, "int32", options="ShapeOptions", outType="INT32")
    bounds = [builder.integers([value]) for value in (0, 1, 1)]
    batch = builder.add("STRIDED_SLICE", [sizes, *bounds], one, "int32", options="StridedSliceOptions")
    parts = [batch, builder.integers([size.first for size in shape[1:]])]
    return builder.add(
        "CONCATENATION",
        parts,
        four,
        "int32",
        options="ConcatenationOptions",
        axis=0,
        fusedActivationFunction="NONE",
    )


def _cropped(builder: Builder, tensor: int, axes: tuple[Axis, Axis], target: Shape) -> int:
    """What is wanted of all that the windows wrote."""
    source = builder.tensors[tensor]
    begin = [0, axes[0].before, axes[1].before, 0]
    sizes = [size.signature for size in target]
    inputs = [tensor, builder.integers(begin), builder.integers(sizes)]
    return builder.add("SLICE", inputs, target, source.dtype, source.params, "SliceOptions")
