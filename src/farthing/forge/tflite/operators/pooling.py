"""Pooling over windows and over whole pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.forge.tflite.builder import Builder, channels_last
from farthing.forge.tflite.layout import Size
from farthing.forge.tflite.net import Node
from farthing.forge.tflite.operators.convolution import result_shape
from farthing.forge.tflite.operators.reduction import reduce
from farthing.forge.tflite.operators.window import (
    Axis,
    Window,
    axes,
    ends,
    margins,
    pad,
    padded,
    picture,
    scheme,
    window,
)

Array = NDArray[Any]


def max_pool(builder: Builder, node: Node) -> None:
    """MAX_POOL_2D; int8 stays int8, because a maximum needs no rounding."""
    sliding = window(node, builder, node.attributes["kernel_shape"])
    if len(node.outputs) > 1 and any(builder.readers.get(name) for name in node.outputs[1:]):
        node.refuse("TFLite does not give the indices of the maxima")
    if max(sliding.height.dilation, sliding.width.dilation) > 1:
        node.refuse("TFLite has no dilated pooling")
    tensor, padding = padded(builder, node, sliding, -np.inf, integer=True)
    _pooled(builder, node, "MAX_POOL_2D", tensor, padding, sliding, node.activation)


def _pooled(
    builder: Builder, node: Node, code: str, tensor: int, padding: str, sliding: Window, activation: str
) -> int:
    """A pooling operator of the type and scale of its input; its result becomes the node's."""
    source = builder.tensors[tensor]
    result = builder.add(
        code,
        [tensor],
        result_shape(builder, node),
        source.dtype,
        source.params,
        "Pool2DOptions",
        padding=padding,
        **sliding.strides,
        filterHeight=sliding.height.kernel,
        filterWidth=sliding.width.kernel,
        fusedActivationFunction=activation,
    )
    builder.put(node.outputs[0], result, channels_last(len(builder.net.shape(node.outputs[0], node))))
    return result


def average_pool(builder: Builder, node: Node) -> None:
    """AVERAGE_POOL_2D, which leaves padding out of the count; where ONNX counts it, it is padded ahead.

    Int8 stays int8 if the result has the input's scale; else the mean would be rounded twice, so it is float.
    """
    sliding = window(node, builder, node.attributes["kernel_shape"])
    if max(sliding.height.dilation, sliding.width.dilation) > 1:
        node.refuse("TFLite has no dilated pooling")
    padding, counted = scheme(builder, node, sliding), bool(node.get("count_include_pad", 0))
    reached = [ends(axis, old, new) - axis.after for axis, old, new in axes(builder, node, sliding)]
    if counted and max(reached) > 0:
        node.refuse("windows that reach beyond padding that is counted (ceil_mode with count_include_pad)")
    direct = padding == "VALID" or (padding == "SAME" and not counted)
    correct = not direct and not counted
    tensor = picture(builder, node, not correct and _same_scale(builder, node))
    if not direct:
        tensor, padding = pad(builder, tensor, margins(builder, node, sliding)), "VALID"
    result = _pooled(
        builder, node, "AVERAGE_POOL_2D", tensor, padding, sliding, "NONE" if correct else node.activation
    )
    if correct:
        _recount(builder, node, sliding, result)


def _same_scale(builder: Builder, node: Node) -> bool:
    """Whether input and result are int8 of one scale."""
    given = builder.params(builder.view(node.inputs[0], node).tensor)
    return given is not None and given == builder.asked(node.outputs[0])


def _recount(builder: Builder, node: Node, sliding: Window, result: int) -> None:
    """Means over whole windows become means over what of them lies inside the picture."""
    builder.net.sizes(node.inputs[0], node, range(2, len(builder.net.shape(node.inputs[0], node))))
    shares = [_share(*axis) for axis in axes(builder, node, sliding)]
    share = np.outer(shares[0] if len(shares) == 2 else np.ones(1), shares[-1])
    inputs = [result, builder.stored(np.asarray(1 / share, np.float32)[:, :, None])]
    shape = builder.tensors[result].shape
    result = builder.add("MUL", inputs, shape, options="MulOptions", fusedActivationFunction=node.activation)
    builder.put(node.outputs[0], result, channels_last(len(builder.net.shape(node.outputs[0], node))))


def _share(axis: Axis, size: Size, result: Size) -> Array:
    """For each window along an axis the share of it that is not padding."""
    start = np.arange(result.first) * axis.stride - axis.before
    inside = np.minimum(start + axis.kernel, size.first) - np.maximum(start, 0)
    return inside / axis.kernel


def global_average_pool(builder: Builder, node: Node) -> None:
    """MEAN over height and width."""
    reduce(builder, node, "MEAN", range(2, len(builder.shape(node.inputs[0], node))), keep=True)


def global_max_pool(builder: Builder, node: Node) -> None:
    """REDUCE_MAX over height and width."""
    reduce(builder, node, "REDUCE_MAX", range(2, len(builder.shape(node.inputs[0], node))), keep=True)
