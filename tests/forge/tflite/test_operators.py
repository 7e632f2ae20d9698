# ruff: noqa: E501 - one case a line reads best
"""Every operator that is written: LiteRT's three sets of kernels against ONNX Runtime, and how many operators it takes."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

Array = NDArray[Any]
PICTURE = ("n", 4, 9, 8)
ABSENT = {"Elu", "Ceil"}  # from LiteRT's set of reference kernels


def w(*shape: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(0.3)


def i(*values: int) -> Array:
    return np.asarray(values, np.int64)


def op(kind: str, *inputs: str, y: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), y.split(), **attributes)


class Case(NamedTuple):
    nodes: list[onnx.NodeProto]
    constants: dict[str, Array] = {}
    shape: tuple[int | str, ...] = PICTURE
    opset: int = 17
    expect: dict[str, int] | None = None
    tolerance: float = 1e-5


def conv(
    shape: tuple[int, ...], expect: dict[str, int], size: tuple[int | str, ...] = PICTURE, **attributes: Any
) -> Case:
    constants = {"w": w(*shape), "b": w(shape[0])}
    return Case([op("Conv", "x", "w", "b", **attributes)], constants, size, expect=expect)


def deconv(
    shape: tuple[int, ...], expect: dict[str, int], size: tuple[int | str, ...] = PICTURE, **attributes: Any
) -> Case:
    constants = {"w": w(*shape), "b": w(shape[1] * attributes.get("group", 1))}
    return Case([op("ConvTranspose", "x", "w", "b", **attributes)], constants, size, expect=expect)


def resized(mode: str, coordinates: str, scale: float, nearest: str = "floor") -> Case:
    node = op(
        "Resize", "x", "", "s", mode=mode, coordinate_transformation_mode=coordinates, nearest_mode=nearest
    )
    code = "RESIZE_NEAREST_NEIGHBOR" if mode == "nearest" else "RESIZE_BILINEAR"
    return Case([node], {"s": np.float32([1, 1, scale, scale])}, expect={code: 1})


CONV = {"CONV_2D": 1}
PADDED = {"PAD": 1, "CONV_2D": 1}
DEPTH = {"DEPTHWISE_CONV_2D": 1}
CASES: dict[str, Case] = {
    "conv 3x3 same": conv((5, 4, 3, 3), CONV, pads=[1, 1, 1, 1]),
    "conv 3x3 valid stride": conv((5, 4, 3, 3), CONV, strides=[2, 2]),
    "conv 1x1 bias none": Case([op("Conv", "x", "w")], {"w": w(6, 4, 1, 1)}, expect=CONV),
    "conv stride 2 padding 1, odd": conv((5, 4, 3, 3), CONV, ("n", 4, 9, 7), strides=[2, 2], pads=[1, 1, 1, 1]),
    "conv stride 2 padding 1, even": conv((5, 4, 3, 3), PADDED, ("n", 4, 8, 8), strides=[2, 2], pads=[1, 1, 1, 1]),
    "conv stride 2 SAME_UPPER": conv((5, 4, 3, 3), CONV, ("n", 4, 8, 8), strides=[2, 2], auto_pad="SAME_UPPER"),
    "conv stride 2 SAME_LOWER": conv((5, 4, 3, 3), PADDED, ("n", 4, 8, 8), strides=[2, 2], auto_pad="SAME_LOWER"),
    "conv asymmetric": conv((5, 4, 3, 3), PADDED, pads=[0, 2, 1, 0]),
    "conv dilated": conv((5, 4, 3, 3), CONV, dilations=[2, 2], pads=[2, 2, 2, 2]),
    "conv kernel 1x5": conv((5, 4, 1, 5), CONV, pads=[0, 2, 0, 2]),
    "conv grouped": conv((6, 2, 3, 3), CONV, group=2, pads=[1, 1, 1, 1]),
    "conv depthwise": conv((4, 1, 3, 3), DEPTH, group=4, pads=[1, 1, 1, 1]),
    "conv depthwise times 2": conv((8, 1, 3, 3), DEPTH, group=4, pads=[1, 1, 1, 1]),
    "conv depthwise dilated stride": conv((4, 1, 3, 3), {**DEPTH, "PAD": 1}, group=4, pads=[2, 2, 2, 2], dilations=[2, 2], strides=[2, 2]),
    "conv one channel": conv((5, 1, 3, 3), CONV, ("n", 1, 9, 8), pads=[1, 1, 1, 1]),
    "deconv 2x2": deconv((4, 3, 2, 2), {"CONV_2D": 1, "DEPTH_TO_SPACE": 1}, strides=[2, 2]),
    "deconv 4x4 stride 2": deconv((4, 3, 4, 4), {"TRANSPOSE_CONV": 1}, (1, 4, 5, 6), strides=[2, 2], pads=[1, 1, 1, 1]),
    "deconv 3x3 output padding": deconv((4, 3, 3, 3), {"TRANSPOSE_CONV": 1, "SLICE": 1}, (1, 4, 5, 6), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    "deconv 3x3 stride 1": deconv((4, 3, 3, 3), {"TRANSPOSE_CONV": 1}, (2, 4, 5, 6), pads=[1, 1, 1, 1]),
    "deconv valid": deconv((4, 3, 3, 3), {"TRANSPOSE_CONV": 1}, (1, 4, 5, 6), strides=[2, 2]),
    "deconv groups": deconv((4, 2, 3, 3), {"TRANSPOSE_CONV": 1}, (1, 4, 5, 6), strides=[2, 2], group=2),
    "deconv free batch": deconv((4, 3, 4, 4), {"TRANSPOSE_CONV": 1, "SHAPE": 1, "STRIDED_SLICE": 1, "CONCATENATION": 1}, strides=[2, 2], pads=[1, 1, 1, 1]),
    "gemm": Case([op("Gemm", "x", "w", "b", transB=1)], {"w": w(5, 7), "b": w(5)}, ("n", 7), expect={"FULLY_CONNECTED": 1}),
    "gemm alpha beta": Case([op("Gemm", "x", "w", "b", alpha=0.5, beta=2.0)], {"w": w(7, 5), "b": w(1, 5)}, ("n", 7), expect={"FULLY_CONNECTED": 1}),
    "gemm transA": Case([op("Gemm", "x", "w", transA=1)], {"w": w(7, 5)}, (7, 3), expect={"TRANSPOSE": 1, "FULLY_CONNECTED": 1}),
    "matmul": Case([op("MatMul", "x", "w")], {"w": w(7, 5)}, ("n", 3, 7), expect={"FULLY_CONNECTED": 1}),
    "matmul bias": Case([op("MatMul", "x", "w", y="a"), op("Add", "b", "a")], {"w": w(7, 5), "b": w(5)}, ("n", 7), expect={"FULLY_CONNECTED": 1}),
    "matmul self": Case([op("Transpose", "x", y="t", perm=[0, 2, 1]), op("MatMul", "x", "t")], {}, ("n", 3, 7), expect={"TRANSPOSE": 1, "BATCH_MATMUL": 1}),
    "max pool": Case([op("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])], expect={"MAX_POOL_2D": 1}),
    "max pool padded": Case([op("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], shape=("n", 4, 8, 8), expect={"PADV2": 1, "MAX_POOL_2D": 1}),
    "max pool ceil": Case([op("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], shape=("n", 4, 8, 8), expect={"MAX_POOL_2D": 1}),
    "average pool": Case([op("AveragePool", "x", kernel_shape=[3, 2], strides=[2, 2])], expect={"AVERAGE_POOL_2D": 1}),
    "average pool padding left out": Case([op("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], expect={"AVERAGE_POOL_2D": 1}),
    "average pool uneven": Case([op("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], shape=("n", 4, 8, 8), expect={"PAD": 1, "AVERAGE_POOL_2D": 1, "MUL": 1}),
    "average pool counted": Case([op("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)], expect={"PAD": 1, "AVERAGE_POOL_2D": 1}),
    "average pool ceil": Case([op("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], shape=("n", 4, 8, 8), expect={"AVERAGE_POOL_2D": 1}),
    "global average": Case([op("GlobalAveragePool", "x")], expect={"MEAN": 1}),
    "global max": Case([op("GlobalMaxPool", "x")], expect={"REDUCE_MAX": 1}),
    "reduce mean": Case([op("ReduceMean", "x", axes=[2, 3], keepdims=0)], expect={"MEAN": 1}),
    "reduce mean channels": Case([op("ReduceMean", "x", axes=[1])], expect={"MEAN": 1}),
    "reduce sum all": Case([op("ReduceSum", "x", keepdims=0)], shape=(2, 3, 4), expect={"SUM": 1}),
    "reduce max": Case([op("ReduceMax", "x", axes=[-1], keepdims=0)], expect={"REDUCE_MAX": 1}),
    "reduce l2": Case([op("ReduceL2", "x", axes=[1])], expect={"MUL": 1, "SUM": 1, "SQRT": 1}),
    "unit length": Case([op("ReduceL2", "x", y="l", axes=[1]), op("Shape", "x", y="s"), op("Expand", "l", "s", y="e"), op("Div", "x", "e")], {}, ("n", 16), expect={"MUL": 1, "SUM": 1, "SQRT": 1, "DIV": 1}),
    "sum": Case([op("Sum", "x", "w", "x")], {"w": w(1, 4, 1, 1)}, expect={"ADD": 2}),
    "reduce min 18": Case([op("ReduceMin", "x", "a", keepdims=0)], {"a": i(1)}, opset=18, expect={"REDUCE_MIN": 1}),
    "reduce prod": Case([op("ReduceProd", "x", axes=[1])], expect={"REDUCE_PROD": 1}),
    "softmax": Case([op("Softmax", "x")], shape=("n", 7), expect={"SOFTMAX": 1}),
    "softmax channels": Case([op("Softmax", "x", axis=1)], expect=None),
    "log softmax": Case([op("LogSoftmax", "x")], shape=("n", 7), expect={"LOG_SOFTMAX": 1}),
    "argmax": Case([op("ArgMax", "x", axis=1, keepdims=0)], shape=("n", 7), expect={"ARG_MAX": 1}),
    "argmin channels": Case([op("ArgMin", "x", axis=1)], expect=None),
    "batch norm": Case([op("BatchNormalization", "x", "g", "b", "m", "v")], {"g": w(4), "b": w(4), "m": w(4), "v": np.abs(w(4)) + np.float32(0.1)}, expect={"MUL": 1, "ADD": 1}),
    "instance norm": Case([op("InstanceNormalization", "x", "g", "b")], {"g": w(4), "b": w(4)}, expect=None),
    "layer norm": Case([op("LayerNormalization", "x", "g", "b", axis=-1)], {"g": w(8), "b": w(8)}, expect=None),
    "relu": Case([op("Relu", "x")], expect={"RELU": 1}),
    "relu6": Case([op("Clip", "x", "a", "b")], {"a": np.float32(0), "b": np.float32(6)}, expect={"RELU6": 1}),
    "clip": Case([op("Clip", "x", "a", "b")], {"a": np.float32(-0.5), "b": np.float32(0.7)}, expect={"MAXIMUM": 1, "MINIMUM": 1}),
    "clip one end": Case([op("Clip", "x", "", "b")], {"b": np.float32(0.7)}, expect={"MINIMUM": 1}),
    "clip 0 1": Case([op("Clip", "x", min=0.0, max=1.0)], opset=10, expect={"RELU_0_TO_1": 1}),
    "leaky relu": Case([op("LeakyRelu", "x", alpha=0.1)], expect={"LEAKY_RELU": 1}),
    "prelu": Case([op("PRelu", "x", "s")], {"s": w(4, 1, 1)}, expect=None),
    "hard swish": Case([op("HardSwish", "x")], expect={"HARD_SWISH": 1}),
    "hard swish by parts": Case([op("HardSigmoid", "x", y="a", alpha=1 / 6), op("Mul", "x", "a")], expect={"HARD_SWISH": 1}),
    "hard sigmoid": Case([op("HardSigmoid", "x", alpha=1 / 6)], expect={"ADD": 1, "MUL": 1}),
    "hard sigmoid 0.2": Case([op("HardSigmoid", "x")], expect={"ADD": 1, "MUL": 1, "RELU_0_TO_1": 1}),
    "sigmoid": Case([op("Sigmoid", "x")], expect={"LOGISTIC": 1}),
    "tanh": Case([op("Tanh", "x")], expect={"TANH": 1}),
    "swish": Case([op("Sigmoid", "x", y="s"), op("Mul", "s", "x")], expect={"LOGISTIC": 1, "MUL": 1}),
    "elu": Case([op("Elu", "x")], expect={"ELU": 1}),
    "softplus": Case([op("Softplus", "x")], expect=None),
    "gelu": Case([op("Gelu", "x")], opset=20, expect={"GELU": 1}),
    "gelu tanh": Case([op("Gelu", "x", approximate="tanh")], opset=20, expect={"GELU": 1}, tolerance=1e-4),
    "gelu by parts": Case([op("Div", "x", "r", y="a"), op("Erf", "a", y="e"), op("Add", "e", "o", y="p"), op("Mul", "x", "p", y="m"), op("Mul", "m", "h")], {"r": np.float32(2**0.5), "o": np.float32(1), "h": np.float32(0.5)}, expect={"GELU": 1}),
    "exp": Case([op("Exp", "x")], expect={"EXP": 1}),
    "abs sqrt": Case([op("Abs", "x", y="a"), op("Sqrt", "a")], expect={"ABS": 1, "SQRT": 1}),
    "log": Case([op("Exp", "x", y="a"), op("Log", "a")], expect={"EXP": 1, "LOG": 1}),
    "neg": Case([op("Neg", "x")], expect={"NEG": 1}),
    "sin cos": Case([op("Sin", "x", y="a"), op("Cos", "a")], expect={"SIN": 1, "COS": 1}),
    "floor ceil round": Case([op("Floor", "x", y="a"), op("Ceil", "x", y="b"), op("Round", "x", y="c"), op("Add", "a", "b", y="d"), op("Add", "d", "c")], expect=None),
    "reciprocal": Case([op("Exp", "x", y="a"), op("Reciprocal", "a")], expect={"EXP": 1, "DIV": 1}),
    "add": Case([op("Add", "x", "w")], {"w": w(4, 1, 1)}, expect=None),
    "sub scalar": Case([op("Sub", "w", "x")], {"w": np.float32(1.5)}, expect={"SUB": 1}),
    "mul self": Case([op("Mul", "x", "x")], expect={"MUL": 1}),
    "div": Case([op("Div", "x", "w")], {"w": np.abs(w(8)) + np.float32(0.5)}, expect={"DIV": 1}),
    "pow": Case([op("Pow", "x", "w")], {"w": np.float32(2)}, expect={"POW": 1}),
    "max of three": Case([op("Max", "x", "w", "v")], {"w": w(1, 4, 1, 1), "v": w(1, 1, 9, 1)}, expect=None),
    "min": Case([op("Min", "x", "w")], {"w": w(9, 8)}, expect={"MINIMUM": 1}),
    "gate": Case([op("GlobalAveragePool", "x", y="p"), op("Conv", "p", "w", y="q"), op("Sigmoid", "q", y="s"), op("Mul", "x", "s")], {"w": w(4, 4, 1, 1)}, expect=None),
    "concat": Case([op("Relu", "x", y="a"), op("Concat", "x", "a", axis=1)], expect={"RELU": 1, "CONCATENATION": 1}),
    "concat constant": Case([op("Concat", "x", "w", axis=2)], {"w": w(1, 4, 2, 8)}, (1, 4, 3, 8), expect={"CONCATENATION": 1}),
    "split": Case([op("Split", "x", y="a b", axis=1), op("Add", "a", "b")], expect=None),
    "split uneven": Case([op("Split", "x", "s", y="a b", axis=2), op("Concat", "b", "a", axis=2)], {"s": i(3, 6)}, expect={"SLICE": 2, "CONCATENATION": 1}),
    "slice": Case([op("Slice", "x", "s", "e", "a")], {"s": i(1, -3), "e": i(1 << 62, -1), "a": i(2, 3)}, expect={"STRIDED_SLICE": 1}),
    "slice steps": Case([op("Slice", "x", "s", "e", "a", "t")], {"s": i(0, 7), "e": i(9, -(1 << 40)), "a": i(2, 3), "t": i(2, -1)}, expect={"STRIDED_SLICE": 1}),
    "gather one": Case([op("Gather", "x", "g", axis=1)], {"g": np.asarray(-1)}, expect={"SLICE": 1, "RESHAPE": 1}),
    "gather some": Case([op("Gather", "x", "g", axis=2)], {"g": i(3, 0, 3)}, expect={"GATHER": 1}),
    "pad": Case([op("Pad", "x", "p")], {"p": i(0, 0, 1, 2, 0, 0, 3, 0)}, expect={"PAD": 1}),
    "pad value": Case([op("Pad", "x", "p", "v")], {"p": i(0, 1, 1, 0, 0, 0, 0, 0), "v": np.float32(1.5)}, expect={"PADV2": 1}),
    "pad reflect": Case([op("Pad", "x", "p", mode="reflect")], {"p": i(0, 0, 1, 2, 0, 0, 3, 0)}, expect={"MIRROR_PAD": 1}),
    "pad conv": Case([op("Pad", "x", "p", y="a"), op("Conv", "a", "w")], {"p": i(0, 0, 0, 0, 0, 0, 1, 1), "w": w(5, 4, 3, 3)}, ("n", 4, 8, 8), expect={"PAD": 1, "CONV_2D": 1}),
    "pad conv same": Case([op("Pad", "x", "p", y="a"), op("Conv", "a", "w", strides=[2, 2])], {"p": i(0, 0, 0, 0, 0, 0, 1, 1), "w": w(5, 4, 3, 3)}, ("n", 4, 8, 8), expect=CONV),
    "depth to space": Case([op("DepthToSpace", "x", blocksize=2)], expect={"DEPTH_TO_SPACE": 1}),
    "depth to space CRD": Case([op("DepthToSpace", "x", blocksize=2, mode="CRD")], expect=None),
    "space to depth": Case([op("SpaceToDepth", "x", blocksize=2)], shape=("n", 3, 8, 6), expect={"SPACE_TO_DEPTH": 1}),
    "expand": Case([op("Expand", "x", "s")], {"s": i(2, 3, 4)}, (1, 3, 1), expect={"BROADCAST_TO": 1}),
    "cast": Case([op("Cast", "x", y="a", to=TensorProto.INT32), op("Cast", "a", to=TensorProto.FLOAT)], expect={"CAST": 2}),
    "where": Case([op("Greater", "x", "o", y="c"), op("Where", "c", "x", "o")], {"o": np.float32(0.2)}, expect={"GREATER": 1, "SELECT_V2": 1}),
    "nearest x2": resized("nearest", "asymmetric", 2),
    "nearest half pixel": resized("nearest", "half_pixel", 2, "round_prefer_floor"),
    "nearest x3": resized("nearest", "half_pixel", 3, "round_prefer_floor"),
    "linear asymmetric": resized("linear", "asymmetric", 2),
    "linear half pixel": resized("linear", "half_pixel", 2),
    "linear pytorch": resized("linear", "pytorch_half_pixel", 2),
    "linear corners": resized("linear", "align_corners", 3),
    "upsample 9": Case([op("Upsample", "x", "s")], {"s": np.float32([1, 1, 2, 2])}, opset=9, expect={"RESIZE_NEAREST_NEIGHBOR": 1}),
    "resize sizes": Case([op("Resize", "x", "", "", "s", mode="linear")], {"s": i(1, 4, 12, 7)}, (1, 4, 9, 8), expect={"RESIZE_BILINEAR": 1}),
    "shuffle": Case([op("Reshape", "x", "a", y="r"), op("Transpose", "r", y="t", perm=[0, 2, 1, 3, 4]), op("Reshape", "t", "b")], {"a": i(0, 2, 2, 9, 8), "b": i(0, 4, 9, 8)}, expect=None),
    "flatten gemm": Case([op("Flatten", "x", y="f"), op("Gemm", "f", "w", transB=1)], {"w": w(5, 288)}, expect={"FULLY_CONNECTED": 1}),
    "conv1d": Case([op("Conv", "x", "w", "b", pads=[2, 2])], {"w": w(5, 4, 5), "b": w(5)}, ("n", 4, 20), expect=None),
    "conv1d depthwise": Case([op("Conv", "x", "w", group=4, strides=[2], pads=[1, 1])], {"w": w(4, 1, 3)}, ("n", 4, 21), expect=None),
    "pools 1d": Case([op("MaxPool", "x", y="a", kernel_shape=[2], strides=[2]), op("AveragePool", "a", y="b", kernel_shape=[3]), op("GlobalAveragePool", "b")], {}, ("n", 4, 21), expect=None),
    "deconv1d": deconv((4, 3, 2), {"CONV_2D": 1, "TRANSPOSE": 2, "RESHAPE": 3}, ("n", 4, 6), strides=[2]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("picture", [False, True], ids=["onnx", "nhwc"])
def test_it_computes_what_onnx_runtime_computes(lab: Any, name: str, picture: bool) -> None:
    case = CASES[name]
    if picture and len(case.shape) != 4:
        pytest.skip("not a picture")
    proto = lab.network(case.nodes, {"x": case.shape}, case.constants, opset=case.opset)
    kernels = [
        kind
        for kind in lab.kernels
        if not ABSENT & {node.op_type for node in case.nodes} or kind != "BUILTIN_REF"
    ]
    front = [op("Conv", "image", "front", y="front/out"), op("Tanh", "front/out", y="x")]
    if picture:
        image = (case.shape[0], 3, *case.shape[2:])
        constants = {**case.constants, "front": w(int(case.shape[1]), 3, 1, 1)}
        proto = lab.network([*front, *case.nodes], {"image": image}, constants, opset=case.opset)
    found = lab.check(proto, picture, case.tolerance, kernels)
    if case.expect is not None and not picture and len(case.shape) != 4:
        assert found == case.expect
    if case.expect is not None and picture:
        # the answer goes back to ONNX's order at the end, if it is a picture still: that is all that may move
        moved = collections.Counter(["TRANSPOSE", "RESHAPE"])
        expected = collections.Counter(case.expect) + collections.Counter(["CONV_2D", "TANH"])
        assert collections.Counter(found) - moved == expected - moved
