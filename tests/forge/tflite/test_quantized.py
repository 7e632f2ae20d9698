# ruff: noqa: E501 - one case a line reads best
"""Int8 from the scales of a QDQ file: every operator within two steps of ONNX Runtime, and which of them are int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.fuse import Fuse
from farthing.forge.quantize.static import StaticInt8
from farthing.model import Model
from farthing.target import Target
from farthing.task import Split, Task

Array = NDArray[Any]
X86 = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))
ARM = Target(name="arm", arch="aarch64", isa=("asimd", "asimddp"))
STEPS = {"AUTO": 2.01}  # the others may round the first convolution another way: one more


def w(*shape: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(0.3)


def op(kind: str, *inputs: str, y: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), y.split(), **attributes)


Nodes = list[onnx.NodeProto]
C = {"w": w(5, 4, 3, 3), "b": w(5)}
# what follows a first convolution to (n, 4, 8, 8), and the int8 operators that must come of it
INTEGER: dict[str, tuple[Nodes, dict[str, Array], set[str]]] = {
    "conv": ([op("Conv", "x", "w", "b", pads=[1, 1, 1, 1])], C, {"CONV_2D"}),
    "conv stride 2": ([op("Conv", "x", "w", "b", pads=[1, 1, 1, 1], strides=[2, 2])], C, {"CONV_2D", "PAD"}),
    "conv relu": ([op("Conv", "x", "w", "b", y="a"), op("Relu", "a")], C, {"CONV_2D"}),
    "conv clip": ([op("Conv", "x", "w", "b", y="a"), op("Clip", "a", "l", "h")], {**C, "l": np.float32(0), "h": np.float32(6)}, {"CONV_2D"}),
    "pad conv": ([op("Pad", "x", "p", y="a"), op("Conv", "a", "w", strides=[2, 2])], {**C, "p": np.asarray([0, 0, 0, 0, 0, 0, 1, 1])}, {"CONV_2D"}),
    "grouped": ([op("Conv", "x", "w", group=2)], {"w": w(6, 2, 3, 3)}, {"CONV_2D"}),
    "depthwise": ([op("Conv", "x", "w", group=4)], {"w": w(4, 1, 3, 3)}, {"DEPTHWISE_CONV_2D"}),
    "depthwise times 2": ([op("Conv", "x", "w", group=4)], {"w": w(8, 1, 3, 3)}, {"DEPTHWISE_CONV_2D"}),
    "deconv 2x2": ([op("ConvTranspose", "x", "w", "b", strides=[2, 2])], {"w": w(4, 3, 2, 2), "b": w(3)}, {"CONV_2D", "DEPTH_TO_SPACE"}),
    "deconv 3x3": ([op("ConvTranspose", "x", "w", strides=[2, 2], pads=[1, 1, 1, 1])], {"w": w(4, 3, 3, 3)}, {"TRANSPOSE_CONV"}),
    "flatten gemm": ([op("Flatten", "x", y="f"), op("Gemm", "f", "w", "b", transB=1)], {"w": w(5, 256), "b": w(5)}, {"FULLY_CONNECTED"}),
    "max pool": ([op("MaxPool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], {}, {"MAX_POOL_2D"}),
    "average pool": ([op("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2])], {}, {"AVERAGE_POOL_2D"}),
    "global average": ([op("GlobalAveragePool", "x")], {}, {"MEAN"}),
    "add": ([op("Mul", "x", "x", y="a"), op("Add", "x", "a")], {}, {"ADD", "MUL"}),
    "add constant": ([op("Relu", "x", y="r"), op("Add", "r", "w")], {"w": w(4, 1, 1)}, {"ADD"}),
    "concat": ([op("Mul", "x", "x", y="a"), op("Concat", "x", "a", axis=1)], {}, {"CONCATENATION"}),
    "split": ([op("Split", "x", y="a b", axis=1), op("Add", "a", "b")], {}, {"SPLIT", "ADD"}),
    "leaky relu": ([op("LeakyRelu", "x", alpha=0.1)], {}, {"LEAKY_RELU"}),
    "sigmoid": ([op("Sigmoid", "x")], {}, {"LOGISTIC"}),
    "swish": ([op("Sigmoid", "x", y="s"), op("Mul", "x", "s")], {}, {"LOGISTIC", "MUL"}),
    "hard swish": ([op("HardSigmoid", "x", y="s", alpha=1 / 6), op("Mul", "x", "s")], {}, {"HARD_SWISH"}),
    "softmax": ([op("Softmax", "x", axis=1)], {}, {"SOFTMAX"}),
    "gate": ([op("GlobalAveragePool", "x", y="p"), op("Conv", "p", "w", y="q"), op("Sigmoid", "q", y="s"), op("Mul", "x", "s")], {"w": w(4, 4, 1, 1)}, {"MEAN", "CONV_2D", "LOGISTIC", "MUL"}),
    "nearest": ([op("Resize", "x", "", "s", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")], {"s": np.float32([1, 1, 2, 2])}, {"RESIZE_NEAREST_NEIGHBOR"}),
    "linear": ([op("Resize", "x", "", "s", mode="linear")], {"s": np.float32([1, 1, 2, 2])}, {"RESIZE_BILINEAR"}),
    "pad": ([op("Pad", "x", "p")], {"p": np.asarray([0, 0, 1, 0, 0, 0, 0, 2])}, {"PAD"}),
    "transpose reshape": ([op("Transpose", "x", y="t", perm=[0, 2, 3, 1]), op("Reshape", "t", "s")], {"s": np.asarray([0, 64, 4])}, set()),
    "matmul": ([op("Reshape", "x", "s", y="r"), op("MatMul", "r", "w")], {"s": np.asarray([0, 4, 64]), "w": w(64, 3)}, {"FULLY_CONNECTED"}),
    "matmul self": ([op("Reshape", "x", "s", y="r"), op("Transpose", "r", y="t", perm=[0, 2, 1]), op("MatMul", "r", "t")], {"s": np.asarray([0, 4, 64])}, {"BATCH_MATMUL"}),
}  # fmt: skip


def quantized(lab: Any, nodes: Nodes, constants: dict[str, Array], target: Target) -> tuple[Model, Array]:
    """A first convolution and some nodes in 8 bits, and pictures."""
    front = op("Conv", "image", "front", y="x", pads=[1, 1, 1, 1])
    inputs = {"image": ("n", 3, 8, 8)}
    proto = lab.network([front, *nodes], inputs, {**constants, "front": w(4, 3, 3, 3)})
    pictures = np.random.default_rng(1).standard_normal((32, 3, 8, 8)).astype(np.float32)
    task = Task("random", {"calibration": Split({"": pictures}, np.zeros((32, 1), np.float32))}, "error")
    fused = Fuse()(lab.model(proto, picture=True), target, task)
    return StaticInt8()(fused, target, task), pictures[:4]


def step(proto: onnx.ModelProto) -> float:
    """The scale of the only output."""
    last = next(node for node in proto.graph.node if node.output[0] == proto.graph.output[0].name)
    assert last.op_type == "DequantizeLinear"
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return float(constants[last.input[1]])


@pytest.mark.parametrize("target", [X86, ARM], ids=["u8", "s8"])
@pytest.mark.parametrize("name", INTEGER)
def test_int8_operators_stay_within_two_steps(lab: Any, name: str, target: Target) -> None:
    nodes, constants, expected = INTEGER[name]
    source, pictures = quantized(lab, nodes, constants, target)
    made = lab.export(source)
    found = lab.codes(made)
    assert expected <= set(found)
    assert found["DEQUANTIZE"] == 1, "only the output is float"
    proto = graph.load(source.file)
    want = graph.run(proto, {"image": pictures}, optimise=False)["y"]
    for kernels in lab.kernels:
        got = lab.run(made, lab.laid(made, {"image": pictures}), kernels)["y"]
        assert np.abs(got - want).max() <= STEPS.get(kernels, 3.01) * step(proto), kernels


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_integers_go_in_and_come_out(lab: Any, kind: str) -> None:
    from farthing.ops.scale import real, stored

    nodes, constants, _ = INTEGER["flatten gemm"]
    source, pictures = quantized(lab, nodes, constants, X86)
    made, floating = lab.export(source, io=kind), lab.export(source)
    fed, answered = made.manifest.inputs[0], made.manifest.outputs[0]
    assert (fed.dtype, answered.dtype, fed.shape) == (kind, kind, ("n", 8, 8, 3))
    rows = pictures.transpose(0, 2, 3, 1)
    got = lab.run(made, {"image": stored(rows, fed)})["y"]
    assert got.dtype == kind
    np.testing.assert_array_equal(real(got, answered), lab.run(floating, {"image": rows})["y"])
    operators = lab.codes(made)
    assert "DEQUANTIZE" not in operators
    assert operators.get("QUANTIZE", 0) == (2 if kind == "uint8" else 0)


def test_a_float_model_has_no_integer_inputs(lab: Any) -> None:
    source = lab.model(lab.network([op("Relu", "x")], {"x": ("n", 4)}))
    with pytest.raises(UnsupportedError, match=r"'x' is not quantized.*io"):
        lab.export(source, io="int8")


def qdq(name: str, scale: str, zero: str, made: str) -> Nodes:
    middle = f"{made}/q"
    return [
        op("QuantizeLinear", name, scale, zero, y=middle),
        op("DequantizeLinear", middle, scale, zero, y=made),
    ]


def borders(
    lab: Any, middle: Nodes, constants: dict[str, Array], out: tuple[float, int], **options: Any
) -> dict[str, int]:
    """Nodes from ``a`` to ``b`` between Q/DQ pairs; within one step of ONNX Runtime; the operators written."""
    nodes = [*qdq("x", "s", "z", "a"), *middle, *qdq("b", "t", "u", "y")]
    scales = {"s": np.float32(0.02), "z": np.uint8(120), "t": np.float32(out[0]), "u": np.uint8(out[1])}
    proto = lab.network(nodes, {"x": ("n", 4, 6, 6)}, {**constants, **scales}, **options)
    return lab.check(proto, tolerance=1.01 * out[0], kernels=["AUTO", "BUILTIN_WITHOUT_DEFAULT_DELEGATES"])


def test_another_scale_after_a_pool_is_a_requantization(lab: Any) -> None:
    pool = [op("MaxPool", "a", y="b", kernel_shape=[2, 2])]
    assert borders(lab, pool, {}, (0.02, 120))["QUANTIZE"] == 1
    assert borders(lab, pool, {}, (0.013, 100))["QUANTIZE"] == 2


def test_a_mean_at_another_scale_is_computed_in_float(lab: Any) -> None:
    pool = [op("AveragePool", "a", y="b", kernel_shape=[2, 2])]
    assert borders(lab, pool, {}, (0.02, 120))["DEQUANTIZE"] == 1
    assert borders(lab, pool, {}, (0.004, 100))["DEQUANTIZE"] == 2


def test_a_finer_scale_than_the_kernel_has_is_computed_in_float(lab: Any) -> None:
    sigmoid = [op("Sigmoid", "a", y="b")]
    assert borders(lab, sigmoid, {}, (1 / 255, 0))["DEQUANTIZE"] == 1
    assert borders(lab, sigmoid, {}, (1 / 2550, 0))["DEQUANTIZE"] == 2


def test_an_operator_without_a_scale_after_it_is_float(lab: Any) -> None:
    nodes = [*qdq("x", "s", "z", "a"), op("Conv", "a", "w")]
    constants = {"s": np.float32(0.02), "z": np.uint8(120), "w": w(5, 4, 3, 3)}
    found = lab.check(lab.network(nodes, {"x": ("n", 4, 6, 6)}, constants))
    assert (found["QUANTIZE"], found["DEQUANTIZE"]) == (1, 1)


def test_weights_with_a_zero_point_are_multiplied_out(lab: Any) -> None:
    weights = [op("DequantizeLinear", "w", "ws", "wz", y="v"), op("Conv", "a", "v", y="b")]
    data = np.random.default_rng(0).integers(0, 255, (5, 4, 3, 3)).astype(np.uint8)
    for zero, floating in ((128, 1), (100, 2)):
        constants = {"w": data, "ws": np.float32(0.01), "wz": np.uint8(zero)}
        assert borders(lab, weights, constants, (0.05, 128))["DEQUANTIZE"] == floating


@pytest.mark.parametrize("axis", [0, 1])
def test_scales_along_either_axis_of_weights(lab: Any, axis: int) -> None:
    flat = [op("Flatten", "a", y="f"), op("DequantizeLinear", "w", "ws", "wz", y="v", axis=axis)]
    flat.append(op("Gemm", "f", "v", y="b"))
    data = np.random.default_rng(0).integers(-127, 127, (144, 3)).astype(np.int8)
    count = data.shape[axis]
    scales = np.linspace(0.001, 0.003, count).astype(np.float32)
    constants = {"w": data, "ws": scales, "wz": np.zeros(count, np.int8)}
    found = borders(lab, flat, constants, (0.3, 128))
    assert found["DEQUANTIZE"] == (1 if axis == 1 else 2)


def test_a_transposed_weight_keeps_its_integers(lab: Any) -> None:
    nodes = [op("Flatten", "a", y="f"), op("DequantizeLinear", "w", "ws", "wz", y="v", axis=0)]
    nodes += [op("Transpose", "v", y="vt", perm=[1, 0]), op("MatMul", "f", "vt", y="b")]
    data = np.random.default_rng(0).integers(-127, 127, (3, 144)).astype(np.int8)
    constants = {"w": data, "ws": np.float32([0.001, 0.002, 0.003]), "wz": np.zeros(3, np.int8)}
    assert borders(lab, nodes, constants, (0.3, 128))["DEQUANTIZE"] == 1


def test_one_tensor_may_leave_at_two_scales(lab: Any) -> None:
    nodes = [
        *qdq("x", "s", "z", "a"),
        op("Relu", "a", y="r"),
        *qdq("r", "s", "z", "b"),
        *qdq("r", "t", "z", "c"),
    ]
    nodes.append(op("Add", "b", "c"))
    constants = {"s": np.float32(0.02), "z": np.uint8(120), "t": np.float32(0.005)}
    lab.check(lab.network(nodes, {"x": ("n", 7)}, constants), tolerance=0.021)


@pytest.mark.parametrize("kind", ["int16", "uint16"])
def test_16_bits_are_refused(lab: Any, kind: str) -> None:
    nodes = qdq("x", "s", "z", "y")
    constants = {"s": np.float32(0.02), "z": np.zeros((), kind)}
    source = lab.model(lab.network(nodes, {"x": ("n", 7)}, constants, opset=21))
    with pytest.raises(UnsupportedError, match=f"QuantizeLinear.*{kind}"):
        lab.export(source)


def test_the_instruction_set_that_only_onnx_runtime_needs_is_dropped(lab: Any) -> None:
    source, _ = quantized(lab, *INTEGER["conv"][:2], X86)
    assert source.manifest.requires == ("vnni",)
    made = lab.export(source)
    assert made.manifest.requires == ()
    assert made.manifest.quantization is not None
    assert made.manifest.quantization.activations == "int8"
