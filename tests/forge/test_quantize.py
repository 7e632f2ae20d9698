"""Int8 and float16: what ends up in the file, on which target, and what it costs in accuracy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from farthing.bench import evaluate
from farthing.errors import NotInstalled, TaskError, UnsupportedError
from farthing.forge import graph
from farthing.forge.fuse import Compact, Fuse
from farthing.forge.quantize import calibrate
from farthing.forge.quantize.dynamic import DynamicInt8, pays
from farthing.forge.quantize.float16 import Float16
from farthing.forge.quantize.static import StaticInt8
from farthing.model import Manifest, Model, TensorSpec, checked
from farthing.target import Target
from farthing.task import Split, Task

VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))
OLD = Target(name="old", arch="x86_64", isa=("avx2",))
ARM = Target(name="arm", arch="aarch64", isa=("asimd", "asimddp"))


@pytest.fixture(scope="module")
def fused(cnn: Model, digits_task: Task) -> Model:
    return Fuse()(cnn, VNNI, digits_task)


def accuracy(model: Model, task: Task) -> float:
    return evaluate(model, task, "test")[0].value


def constants(model: Model) -> dict[str, NDArray[Any]]:
    return {t.name: numpy_helper.to_array(t) for t in graph.load(model.file).graph.initializer}


def dequantized_weights(model: Model) -> dict[str, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Operator -> (stored weights, scales, zero points) of its second input."""
    proto, stored = graph.load(model.file), constants(model)
    by_output = {node.output[0]: node for node in proto.graph.node}
    found = {}
    for node in proto.graph.node:
        if node.op_type in {"Conv", "Gemm", "MatMul"} and node.input[1] in by_output:
            found[node.name] = tuple(stored[name] for name in by_output[node.input[1]].input)
    return found  # type: ignore[return-value]


def activation_types(model: Model) -> set[str]:
    proto, stored = graph.load(model.file), constants(model)
    zero_points = [node.input[2] for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    return {stored[name].dtype.name for name in zero_points}


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "entropy"])
def test_static_int8_costs_less_than_a_point(
    calibrator: Any, fused: Model, cnn: Model, digits_task: Task
) -> None:
    quantized = StaticInt8(calibrator=calibrator)(fused, VNNI, digits_task)
    assert accuracy(quantized, digits_task) > accuracy(cnn, digits_task) - 0.01
    assert quantized.manifest.quantization is not None
    assert quantized.manifest.quantization.calibrator == calibrator
    assert quantized.manifest.outputs == cnn.manifest.outputs


def test_calibrators_choose_different_ranges(fused: Model, digits_task: Task) -> None:
    passes = [StaticInt8(calibrator=c) for c in ("minmax", "percentile", "entropy")]
    passes.append(StaticInt8(calibrator="percentile", percentile=90.0))
    passes.append(StaticInt8(samples=16))
    digests = {made(fused, VNNI, digits_task).manifest.files["model.onnx"] for made in passes}
    assert len(digests) == len(passes)


def test_weights_are_int8_with_a_scale_for_each_channel(fused: Model, digits_task: Task) -> None:
    weights = dequantized_weights(StaticInt8()(fused, VNNI, digits_task))
    assert len(weights) == 4
    for stored, scales, zeros in weights.values():
        assert stored.dtype == np.int8
        assert len(scales) in stored.shape
        assert len(set(scales.tolist())) > 1
        assert not zeros.any(), "weights are symmetric"
        assert np.abs(stored.astype(int)).max() == 127
    assert all(
        len(scales) == 1 or scales.ndim == 0
        for _, scales, _ in dequantized_weights(
            StaticInt8(per_channel=False)(fused, VNNI, digits_task)
        ).values()
        for scales in [np.atleast_1d(scales)]
    )


@pytest.mark.parametrize(
    ("target", "activations", "reduced", "requires"),
    [(VNNI, "uint8", False, ("vnni",)), (OLD, "uint8", True, ()), (ARM, "int8", False, ())],
    ids=lambda value: getattr(value, "name", ""),
)
def test_types_follow_the_instruction_set(
    target: Target,
    activations: str,
    reduced: bool,
    requires: Any,
    fused: Model,
    cnn: Model,
    digits_task: Task,
) -> None:
    quantized = StaticInt8()(fused, target, digits_task)
    assert activation_types(quantized) == {activations}
    largest = [
        int(np.abs(stored.astype(int)).max()) for stored, _, _ in dequantized_weights(quantized).values()
    ]
    assert max(largest) <= 64 if reduced else max(largest) == 127, (
        "7 bits where pairs of products may saturate"
    )
    assert quantized.manifest.requires == requires
    assert quantized.manifest.quantization is not None
    assert quantized.manifest.quantization.reduce_range is reduced
    assert quantized.manifest.quantization.activations == activations
    assert accuracy(quantized, digits_task) > accuracy(cnn, digits_task) - 0.01
    operators = {node.op_type for node in graph.load(quantized.file).graph.node}
    assert "Relu" not in operators, "a ReLU is in the range of the convolution's output"


def test_options_given_outrank_the_target(fused: Model, digits_task: Task) -> None:
    quantized = StaticInt8(activations="int8", reduce_range=True)(fused, VNNI, digits_task)
    assert activation_types(quantized) == {"int8"}
    assert max(int(np.abs(w.astype(int)).max()) for w, _, _ in dequantized_weights(quantized).values()) <= 64
    assert quantized.manifest.requires == ()


def test_what_a_model_required_before_is_kept(fused: Model, digits_task: Task) -> None:
    picky = Model.create(checked(fused.manifest, requires=("avx2",)), {"model.onnx": fused.file})
    assert StaticInt8()(picky, VNNI, digits_task).manifest.requires == ("avx2", "vnni")
    assert StaticInt8()(picky, ARM, digits_task).manifest.requires == ("avx2",)


def test_excluded_operators_stay_float(fused: Model, digits_task: Task) -> None:
    proto = graph.load(fused.file)
    graph.name_nodes(proto)
    names = [node.name for node in proto.graph.node if node.op_type == "Conv"]
    quantized = StaticInt8(exclude=(names[1],))(fused, VNNI, digits_task)
    stored = {t.name: t.data_type for t in graph.load(quantized.file).graph.initializer}
    by_name = {node.name: node for node in graph.load(quantized.file).graph.node}
    assert stored[by_name[names[1]].input[1]] == TensorProto.FLOAT
    assert set(dequantized_weights(quantized)) == {names[0], names[2], "/12/Gemm"}
    assert quantized.manifest.quantization is not None
    assert quantized.manifest.quantization.excluded == (names[1],)


def test_excluding_everything_leaves_nothing_to_quantize(fused: Model, digits_task: Task) -> None:
    proto = graph.load(fused.file)
    graph.name_nodes(proto)
    everything = tuple(node.name for node in proto.graph.node)
    with pytest.raises(UnsupportedError, match="no operator that can be quantized"):
        StaticInt8(exclude=everything)(fused, VNNI, digits_task)


def test_a_model_with_a_fixed_batch_is_calibrated_in_its_batch(
    cnn_net: nn.Module, make_model: Any, fused: Model, digits_task: Task
) -> None:
    """128 samples fill the last batch of 3 by repetition: minimum and maximum are those of the free model."""
    fixed = Fuse()(make_model(cnn_net, batch=3), VNNI, digits_task)
    free = constants(StaticInt8()(fused, VNNI, digits_task))
    found = constants(StaticInt8()(fixed, VNNI, digits_task))
    scales = {name: value for name, value in free.items() if name.startswith("image_") and "scale" in name}
    assert scales
    for name, value in scales.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def recurrent() -> Model:
    """A running mean over rows of 4 numbers that keeps a state: out = state_out = 0.5 * state + x @ w."""
    w = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Mul", ["state", "half"], ["s"]),
        helper.make_node("Add", ["p", "s"], ["y"]),
        helper.make_node("Identity", ["y"], ["state_out"]),
    ]
    value = helper.make_tensor_value_info
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [value("x", 1, [1, 4]), value("state", 1, [1, 3])],
            [value("y", 1, [1, 3]), value("state_out", 1, [1, 3])],
            [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.float32(0.5), "half")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )

    def spec(name: str, size: int, role: Any = "data") -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=(1, size), batch_axis=0, role=role)

    manifest = Manifest(
        name="recurrent",
        format="onnx",
        inputs=(spec("x", 4), spec("state", 3, "state")),
        outputs=(spec("y", 3), spec("state_out", 3, "state")),
    )
    return Model.create(manifest, {"model.onnx": proto.SerializeToString()})


def test_a_model_that_keeps_state_is_calibrated_at_the_start_of_a_stream() -> None:
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    model = recurrent()
    task = Task("rows", {"calibration": Split({"x": x}), "test": Split({"x": x})}, "cosine")
    quantized = StaticInt8()(model, VNNI, task)
    assert evaluate(quantized, task, reference=model)[0].value > 0.999


def test_calibration_data_that_drives_the_net_to_infinity_is_refused(make_model: Any, digits: Any) -> None:
    """Finite inputs, and a logarithm of zero inside."""
    nodes = [
        helper.make_node("Neg", ["image"], ["negative"]),
        helper.make_node("Sqrt", ["negative"], ["root"]),
        helper.make_node("Flatten", ["root"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    value = helper.make_tensor_value_info
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [value("image", 1, ["batch", 1, 8, 8])],
            [value("logits", 1, ["batch", 10])],
            [numpy_helper.from_array(np.ones((64, 10), np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    task = Task("d", {"calibration": Split({"": digits[0][:20]}, digits[1][:20])}, "top1")
    with pytest.raises(TaskError, match="is NaN on the calibration data"):
        StaticInt8()(make_model(proto), VNNI, task)


def test_float16_halves_the_file_and_keeps_float_inputs(fused: Model, cnn: Model, digits_task: Task) -> None:
    halved = Float16()(fused, VNNI, digits_task)
    assert halved.size_bytes < 0.55 * fused.size_bytes
    assert halved.manifest.inputs == fused.manifest.inputs
    assert {a.dtype.name for a in constants(halved).values() if a.size > 9} == {"float16"}
    assert accuracy(halved, digits_task) > accuracy(cnn, digits_task) - 0.005
    kept = Float16(keep=("Gemm",))(fused, VNNI, digits_task)
    sizes = {a.dtype.name: a.size for a in constants(kept).values() if a.size > 1000}
    assert set(sizes) == {"float16", "float32"}


def test_dynamic_int8_takes_matrix_products_only(mlp: Model, fused: Model, digits_task: Task) -> None:
    quantized = DynamicInt8()(mlp, VNNI, digits_task)
    assert quantized.size_bytes < 0.3 * mlp.size_bytes
    assert accuracy(quantized, digits_task) > accuracy(mlp, digits_task) - 0.01
    assert quantized.manifest.requires == ("vnni",)
    assert DynamicInt8()(mlp, OLD, digits_task).manifest.requires == ()
    mixed = DynamicInt8()(fused, VNNI, digits_task)
    operators = {node.op_type for node in graph.load(mixed.file).graph.node}
    assert {"Conv", "MatMulInteger"} <= operators
    assert "ConvInteger" not in operators


def test_dynamic_int8_keeps_7_bits_without_vnni(mlp: Model, digits_task: Task) -> None:
    for target, largest in ((VNNI, 127), (OLD, 64)):
        weights = [
            a for a in constants(DynamicInt8()(mlp, target, digits_task)).values() if a.dtype == np.int8
        ]
        assert max(int(np.abs(a.astype(int)).max()) for a in weights if a.size > 100) <= largest


def test_dynamic_int8_pays_where_the_weights_are(cnn: Model, mlp: Model, digits_task: Task) -> None:
    assert pays(graph.load(mlp.file), 0.9)
    assert not pays(graph.load(cnn.file), 0.3)
    only_convolutions = graph.load(cnn.file)
    del only_convolutions.graph.node[-2:]
    assert not pays(only_convolutions)


def test_a_net_without_matrix_products_says_so(make_model: Any, digits_task: Task) -> None:
    node = helper.make_node("Flatten", ["image"], ["logits"])
    value = helper.make_tensor_value_info
    proto = helper.make_model(
        helper.make_graph(
            [node], "g", [value("image", 1, ["batch", 1, 8, 8])], [value("logits", 1, ["batch", 64])]
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    with pytest.raises(UnsupportedError, match="no MatMul, Gemm, LSTM, Attention with weights"):
        DynamicInt8()(make_model(proto), VNNI, digits_task)


@pytest.fixture
def root_messages() -> Iterator[list[logging.LogRecord]]:
    """What reaches the handlers of the root logger."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep()
    logging.getLogger().addHandler(handler)
    yield records
    logging.getLogger().removeHandler(handler)


def test_the_tools_say_nothing(
    fused: Model, mlp: Model, digits_task: Task, capsys: pytest.CaptureFixture[str], root_messages: list[Any]
) -> None:
    """ONNX Runtime's tools print, and give advice on the root logger: a library does neither."""
    filters = list(logging.getLogger().filters)
    StaticInt8(calibrator="entropy", samples=40)(fused, VNNI, digits_task)
    DynamicInt8()(mlp, VNNI, digits_task)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    assert root_messages == []
    assert logging.getLogger().filters == filters


def test_a_missing_tool_names_the_extra(
    fused: Model, digits_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(NotInstalled, match=r"farthing\[forge\]"):
        StaticInt8()(fused, VNNI, digits_task)


def test_quantized_and_compacted_on_every_target(any_target: Target, cnn: Model, digits_task: Task) -> None:
    """The whole chain, as the search runs it."""
    model = cnn
    for made in (Fuse(), StaticInt8(calibrator="entropy"), Compact()):
        model = made(model, any_target, digits_task)
    assert isinstance(graph.load(model.file), onnx.ModelProto)
    assert model.size_bytes < 0.31 * cnn.size_bytes
    assert accuracy(model, digits_task) > accuracy(cnn, digits_task) - 0.01


@pytest.mark.parametrize("half", [64, 1024, 1025, 5000, 40_001])
def test_a_fine_histogram_is_made_coarse_without_losing_a_count(half: int) -> None:
    generator = np.random.default_rng(half)
    counts = generator.integers(0, 50, 2 * half)
    edges = np.linspace(-3.0, 3.0, 2 * half + 1, dtype=np.float32)
    found, ends, low, high, limit = calibrate.coarse((counts, edges, -2.0, 3.0, 3.0))
    assert len(found) <= 2 * calibrate.BINS
    assert len(found) % 2 == 0
    assert found.sum() == counts.sum()
    assert found[: len(found) // 2].sum() == counts[:half].sum(), "zero stays between the same bins"
    assert len(ends) == len(found) + 1
    np.testing.assert_allclose(ends, -ends[::-1], rtol=1e-4, atol=1e-4)
    assert ends[0] <= -2.9999
    assert (low, high, limit) == (-2.0, 3.0, 3.0)
