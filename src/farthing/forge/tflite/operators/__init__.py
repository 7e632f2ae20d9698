"""How each ONNX operator is written: one function an operator, in a file by what they do."""

from __future__ import annotations

from collections.abc import Callable

from farthing.forge.tflite.builder import Builder, Operator
from farthing.forge.tflite.net import Node
from farthing.forge.tflite.operators import (
    activations,
    axes,
    convolution,
    deconvolution,
    dense,
    elementwise,
    normalizing,
    pooling,
    quantization,
    reduction,
    resizing,
)
from farthing.forge.tflite.schema import TYPES

Writer = Callable[[Builder, Node], None]

WRITERS: dict[str, Writer] = {
    "Conv": convolution.conv,
    "ConvTranspose": deconvolution.conv_transpose,
    "Gemm": dense.gemm,
    "MatMul": dense.matmul,
    "MaxPool": pooling.max_pool,
    "AveragePool": pooling.average_pool,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    **dict.fromkeys(reduction.CODES, reduction.reduction),
    "ReduceL2": reduction.length,
    "Softmax": reduction.softmax,
    "LogSoftmax": reduction.softmax,
    "ArgMax": reduction.arg,
    "ArgMin": reduction.arg,
    **dict.fromkeys(elementwise.BINARY, elementwise.binary),
    "BatchNormalization": elementwise.normalize,
    "Relu": elementwise.clip,
    "Clip": elementwise.clip,
    **dict.fromkeys(activations.SIMPLE, activations.simple),
    "Sigmoid": activations.bounded,
    "Tanh": activations.bounded,
    "LeakyRelu": activations.leaky_relu,
    "PRelu": activations.prelu,
    "Elu": activations.elu,
    "HardSwish": activations.hard_swish,
    "HardSigmoid": activations.hard_sigmoid,
    "Gelu": activations.gelu,
    "Softplus": activations.softplus,
    "Reciprocal": activations.reciprocal,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), axes.reshape),
    "Transpose": axes.transpose,
    "Concat": axes.concat,
    "Split": axes.split,
    "Slice": axes.slices,
    "Gather": axes.gather,
    "Pad": axes.pads,
    "DepthToSpace": axes.depth_to_space,
    "SpaceToDepth": axes.space_to_depth,
    "Expand": axes.expand,
    "Resize": resizing.resize,
    "Upsample": resizing.resize,
    "LayerNormalization": normalizing.layer,
    "InstanceNormalization": normalizing.instance,
    "Cast": axes.cast,
    "Where": axes.where,
    "QuantizeLinear": quantization.quantize,
    "DequantizeLinear": quantization.dequantize,
}
UNKNOWN = {"Erf": "TFLite knows it only as part of GELU, x / 2 * (1 + erf(x / sqrt 2)), unquantized inside"}
SMALL = {"int8", "uint8"}
MOVING = frozenset(
    "RESHAPE TRANSPOSE CONCATENATION SLICE STRIDED_SLICE SPLIT GATHER PAD PADV2 MIRROR_PAD BROADCAST_TO DEPTH_TO_SPACE "
    "SPACE_TO_DEPTH SELECT_V2 CAST SHAPE QUANTIZE DEQUANTIZE RESIZE_NEAREST_NEIGHBOR MAXIMUM MINIMUM".split()
)
"""Operators that choose numbers and compute none: what they stand for is all the same."""
LACKING = {("POW", "int64"), ("REDUCE_MAX", "bool"), ("REDUCE_MIN", "bool")}


def write(builder: Builder, node: Node) -> None:
    """Write one operator.

    Raises:
        UnsupportedError: TFLite cannot say it exactly; the message names its type, its node and why.
    """
    if node.kind not in WRITERS:
        node.refuse(UNKNOWN.get(node.kind, "TFLite has no such operator, or this writer does not know it"))
    before = len(builder.operators)
    try:
        WRITERS[node.kind](builder, node)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        node.refuse(f"its inputs or attributes break the rules of ONNX ({type(error).__name__}: {error})")
    for operator in builder.operators[before:]:
        _check_types(builder, operator, node)


def _check_types(builder: Builder, operator: Operator, node: Node) -> None:
    """Refuse element types that LiteRT's kernels lack; some end the process, some take 8 bits for quantized ones."""
    for number in (*operator.inputs, *operator.outputs):
        tensor = builder.tensors[number] if number >= 0 else None
        if tensor is None:
            continue
        if tensor.dtype not in TYPES or (operator.code, tensor.dtype) in LACKING:
            node.refuse(f"TFLite has none for {tensor.dtype}")
        if tensor.dtype in SMALL and tensor.params is None and operator.code not in MOVING:
            node.refuse(
                f"TFLite takes {tensor.dtype} there for quantized numbers; cast them to int32 or float32"
            )
