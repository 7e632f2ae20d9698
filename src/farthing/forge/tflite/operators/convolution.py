"""Conv and ConvTranspose, of pictures and signals."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from farthing.forge.tflite.builder import Builder, channels_last
from farthing.forge.tflite.layout import Shape, Size
from farthing.forge.tflite.net import Constant, Node, Params
from farthing.forge.tflite.operators.window import Window, padded, window
from farthing.forge.tflite.scales import quantized_bias

Array = NDArray[Any]


class Kernel(NamedTuple):
    """Weights and bias as an operator takes them: tensors, and the scale of its result if it is int8."""

    weights: int
    bias: int
    params: Params | None


def result_shape(builder: Builder, node: Node) -> Shape:
    """The shape of a node's picture or signal with the channels last."""
    shape = builder.net.shape(node.outputs[0], node)
    return (shape[0], shape[2] if len(shape) == 4 else Size(1, 1), shape[-1], shape[1])


def kernel(builder: Builder, node: Node, weights: Constant, axis: int, bias: Constant | None) -> Kernel:
    """Put down weights and bias: int8 and int32 if input, weights and result are quantized, else float.

    Args:
        builder: of the graph.
        node: the operator; its input and result decide about int8.
        weights: in TFLite's order of axes.
        axis: the one that counts the outputs.
        bias: one number an output.
    """
    weights, asked = weights.with_scales(axis), builder.asked(node.outputs[0])
    count = weights.data.shape[axis]
    if bias is not None and bias.data.size != count:
        node.refuse(f"a bias of {bias.data.size} numbers for {count} outputs")
    if asked and builder.is_int8(node.inputs[0]) and _usable(weights):
        stored = _bias(builder, node, weights, bias, count)
        if stored is not None:
            return Kernel(builder.stored(weights.data, weights.params), stored, asked)
    floats = np.zeros(count, np.float32) if bias is None else bias.real.astype(np.float32).ravel()
    return Kernel(builder.weights(weights.real, axis), builder.stored(floats), None)


def bias_of(builder: Builder, node: Node) -> Constant | None:
    """The third input of an operator, a constant; None if it has none."""
    return builder.constant(node.input(2), node) if node.input(2) else None


def _usable(weights: Constant) -> bool:
    """Whether int8 kernels take the weights: zero point 0."""
    return weights.params is not None and weights.params.symmetric and weights.data.dtype == np.int8


def _bias(builder: Builder, node: Node, weights: Constant, bias: Constant | None, count: int) -> int | None:
    """The bias in steps of input scale x weight scale; None if it does not fit 32 bits."""
    given = builder.params(builder.view(node.inputs[0], node).tensor)
    if given is None or weights.params is None:
        return None
    steps = np.broadcast_to(np.asarray(weights.params.scale, np.float64), (count,)) * given.scale[0]
    stored = quantized_bias(bias, steps)
    if stored is None:
        return None
    steps = steps[:1] if weights.params.single else steps
    params = Params(tuple(np.float32(steps).astype(float).tolist()), (0,) * len(steps))
    return builder.stored(stored, params)


def signal(weights: Constant) -> Constant:
    """Weights of a one-dimensional convolution as those of a picture of height 1; others as they are."""
    return Constant(weights.data[:, :, None], weights.params) if weights.data.ndim == 3 else weights


def conv(builder: Builder, node: Node) -> None:
    """CONV_2D, or DEPTHWISE_CONV_2D where each input channel has filters of its own."""
    weights = builder.constant(node.inputs[1], node)
    shape = weights.data.shape
    groups, channels = int(node.get("group", 1)), builder.net.sizes(node.inputs[0], node, [1])[0]
    if len(shape) not in {3, 4} or channels != shape[1] * groups or shape[0] % groups:
        node.refuse(f"weights {list(shape)} in {groups} groups do not fit {channels} channels")
    sliding = window(node, builder, node.get("kernel_shape", shape[2:]))
    depthwise = groups == channels and groups > 1
    order, axis = ((1, 2, 3, 0), 3) if depthwise else ((0, 2, 3, 1), 0)
    made = kernel(builder, node, signal(weights).transposed(order), axis, bias_of(builder, node))
    tensor, padding = padded(builder, node, sliding, integer=made.params is not None)
    _convolved(builder, node, sliding, (tensor, made.weights, made.bias), made.params, padding, depthwise)


def _convolved(
    builder: Builder,
    node: Node,
    sliding: Window,
    inputs: tuple[int, int, int],
    params: Params | None,
    padding: str,
    depthwise: bool,
) -> None:
    fields: dict[str, Any] = {
        "padding": padding,
        **sliding.strides,
        "dilationHFactor": sliding.height.dilation,
        "dilationWFactor": sliding.width.dilation,
        "fusedActivationFunction": node.activation,
    }
    code, options = "CONV_2D", "Conv2DOptions"
    if depthwise:
        code, options = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
        fields["depthMultiplier"] = (
            builder.tensors[inputs[1]].shape[3].first // builder.tensors[inputs[0]].shape[3].first
        )
    result = builder.add(code, inputs, result_shape(builder, node), params=params, options=options, **fields)
    builder.put(node.outputs[0], result, channels_last(len(builder.net.shape(node.outputs[0], node))))
