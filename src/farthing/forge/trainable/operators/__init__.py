"""What each ONNX operator is in torch: one function an operator, in a file by what they do."""

from __future__ import annotations

from collections.abc import Callable

from farthing.errors import UnsupportedError
from farthing.forge.trainable.builder import Builder, Value
from farthing.forge.trainable.node import Node
from farthing.forge.trainable.operators import (
    activations,
    convolutions,
    dense,
    elementwise,
    indexing,
    normalisation,
    pooling,
    recurrent,
    reductions,
    resizing,
    shapes,
)

Form = Callable[[Builder, Node], Value | tuple[Value, ...]]

FORMS: dict[str, Form] = {
    "Conv": convolutions.conv,
    "ConvTranspose": convolutions.conv_transpose,
    "Gemm": dense.gemm,
    "MatMul": dense.matmul,
    "Einsum": dense.einsum,
    "MaxPool": pooling.max_pool,
    "AveragePool": pooling.average_pool,
    "LpPool": pooling.lp_pool,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    "GlobalLpPool": pooling.global_lp_pool,
    **dict.fromkeys(elementwise.UNARY, elementwise.unary),
    **dict.fromkeys(elementwise.ARITHMETIC, elementwise.arithmetic),
    **dict.fromkeys(elementwise.COMPARING, elementwise.comparing),
    **dict.fromkeys(elementwise.FOLDED, elementwise.folded),
    "Pow": elementwise.power,
    "Mod": elementwise.modulo,
    "Where": elementwise.where,
    "IsInf": elementwise.is_inf,
    "Cast": elementwise.cast,
    "CastLike": elementwise.cast_like,
    "Identity": elementwise.identity,
    **dict.fromkeys(activations.SIMPLE, activations.simple),
    "Clip": activations.clip,
    "LeakyRelu": activations.leaky_relu,
    "PRelu": activations.prelu,
    "Elu": activations.elu,
    "Selu": activations.selu,
    "Celu": activations.celu,
    **dict.fromkeys(("Gelu", "com.microsoft.Gelu", "com.microsoft.FastGelu"), activations.gelu),
    "HardSigmoid": activations.hard_sigmoid,
    **dict.fromkeys(("Swish", "com.microsoft.QuickGelu"), activations.swish),
    "ThresholdedRelu": activations.thresholded_relu,
    "Shrink": activations.shrink,
    **dict.fromkeys(("Softmax", "LogSoftmax"), activations.softmax),
    "BatchNormalization": normalisation.batch_norm,
    "LayerNormalization": normalisation.layer_norm,
    "RMSNormalization": normalisation.rms_norm,
    "InstanceNormalization": normalisation.instance_norm,
    "GroupNormalization": normalisation.group_norm,
    "LRN": normalisation.local_response,
    "LpNormalization": normalisation.lp_norm,
    "MeanVarianceNormalization": normalisation.mean_variance,
    "Dropout": normalisation.dropout,
    **dict.fromkeys(recurrent.KINDS, recurrent.recurrent),
    **dict.fromkeys(("Resize", "Upsample"), resizing.resize),
    **dict.fromkeys(reductions.REDUCING, reductions.reduce),
    **dict.fromkeys(reductions.CHOOSING, reductions.choose),
    "CumSum": reductions.cum_sum,
    "TopK": reductions.top_k,
    "Shape": shapes.shape,
    "Size": shapes.size,
    "Reshape": shapes.reshape,
    "Flatten": shapes.flatten,
    "Transpose": shapes.transpose,
    "Squeeze": shapes.squeeze,
    "Unsqueeze": shapes.unsqueeze,
    "Concat": shapes.concat,
    "Split": shapes.split,
    "Expand": shapes.expand,
    "Tile": shapes.tile,
    "ConstantOfShape": shapes.constant_of_shape,
    "Range": shapes.steps,
    "DepthToSpace": shapes.depth_to_space,
    "SpaceToDepth": shapes.space_to_depth,
    "EyeLike": shapes.eye_like,
    "Slice": indexing.slices,
    "Gather": indexing.gather,
    "GatherElements": indexing.gather_elements,
    "GatherND": indexing.gather_nd,
    "ScatterElements": indexing.scatter_elements,
    "ScatterND": indexing.scatter_nd,
    "Pad": indexing.pad,
    "Trilu": indexing.trilu,
    "OneHot": indexing.one_hot,
    "NonZero": indexing.non_zero,
    "GridSample": indexing.grid_sample,
}
"""Operators that have a trainable form. A new one is a function in one of these files, or in its own, and a line."""

QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"}
HOLDING = {"If", "Loop", "Scan"}


def form(builder: Builder, node: Node) -> tuple[Value, ...]:
    """Write one operator into the graph of a module, and return its results.

    Raises:
        UnsupportedError: it has no trainable form; the message names its type, its node and why.
    """
    if node.kind in QUANTIZED:
        raise UnsupportedError(
            f"operator {node.kind} (node {node.name!r}): the model is quantized already; train the float model that it "
            "was made of, and quantize that"
        )
    if node.kind not in FORMS:
        inner = "it holds graphs of its own; export the model without control flow"
        node.refuse(inner if node.kind in HOLDING else "this importer does not know the operator")
    try:
        made = FORMS[node.kind](builder, node)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        node.refuse(f"torch does not compute it so ({type(error).__name__}: {error})")
    return made if isinstance(made, tuple) else (made,)
