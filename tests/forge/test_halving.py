"""Half precision: float operators are halved, what computes in 8 bits stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from farthing.bench import evaluate
from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.fuse import Compact, Fuse
from farthing.forge.ladder import has_half, ladder, with_exclusions, with_half
from farthing.forge.quantize.float16 import Float16
from farthing.forge.quantize.static import StaticInt8
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))
HALF = Target(name="half", arch="x86_64", isa=("avx512_vnni", "avx512_fp16"))


@pytest.fixture(scope="module")
def fused(cnn: Model, digits_task: Task) -> Model:
    return Fuse()(cnn, VNNI, digits_task)


@pytest.fixture(scope="module")
def mixed(fused: Model, digits_task: Task) -> Model:
    """The largest layer in float, the others in 8 bits."""
    return StaticInt8(exclude=("/7/Conv", "/8/Relu"))(fused, VNNI, digits_task)


def stored(model: Model) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in graph.load(model.file).graph.initializer}


def test_only_what_int8_left_in_float_is_halved(fused: Model, mixed: Model, digits_task: Task) -> None:
    halved = Float16()(mixed, VNNI, digits_task)
    before, after = stored(mixed), stored(halved)
    numbers = sum(
        graph.elements(t) for t in before.values() if t.data_type == TensorProto.FLOAT and len(t.dims) > 1
    )
    assert numbers > 9000
    assert mixed.size_bytes - halved.size_bytes > 1.9 * numbers
    kept = [name for name, tensor in before.items() if tensor.data_type != TensorProto.FLOAT]
    assert len(kept) > 10
    for name in kept:
        np.testing.assert_array_equal(numpy_helper.to_array(after[name]), numpy_helper.to_array(before[name]))
    assert halved.manifest.quantization is not None
    assert halved.manifest.quantization.floats == "float16"
    assert halved.manifest.quantization.scheme == "static"
    assert mixed.manifest.quantization is not None
    assert mixed.manifest.quantization.floats == ""
    value, wanted = (evaluate(model, digits_task, "test")[0].value for model in (halved, fused))
    assert value > wanted - 0.01


def test_the_halved_layer_computes_what_float16_weights_give(mixed: Model, digits_task: Task) -> None:
    """Held against the same file in float32 with weights rounded to float16 and back."""
    rounded = graph.load(mixed.file)
    for tensor in rounded.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 4:
            numbers = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
    feeds = {"image": digits_task.split("validation").inputs[""][:64]}
    made = Float16()(mixed, VNNI, digits_task)
    halved = graph.run(made.file.read_bytes(), feeds)["logits"]
    expected = graph.run(rounded, feeds)["logits"]
    step = np.abs(expected).max() / 127
    assert np.abs(halved - expected).max() < 3 * step, (
        "a rounding may fall to the other side of a step of 8 bits"
    )
    assert np.abs(halved - expected).mean() < step / 4


def test_inputs_outputs_and_other_passes_are_as_before(mixed: Model, digits_task: Task) -> None:
    halved = Float16()(mixed, VNNI, digits_task)
    assert halved.digest == Float16()(mixed, VNNI, digits_task).digest
    assert (halved.manifest.inputs, halved.manifest.outputs) == (
        mixed.manifest.inputs,
        mixed.manifest.outputs,
    )
    compact = Compact()(halved, VNNI, digits_task)
    feeds = {"image": digits_task.split("validation").inputs[""][:8]}
    np.testing.assert_array_equal(
        graph.run(compact.file.read_bytes(), feeds)["logits"],
        graph.run(halved.file.read_bytes(), feeds)["logits"],
    )


def test_neighbours_in_float16_hand_on_without_casts(fused: Model, digits_task: Task) -> None:
    names = [node.name for node in graph.load(fused.file).graph.node]
    model = StaticInt8(exclude=tuple(names[2:]))(fused, VNNI, digits_task)
    halved = Float16()(model, VNNI, digits_task)
    kinds = [node.op_type for node in graph.load(halved.file).graph.node]
    assert kinds.count("Cast") == 2, "one where 8 bits end, one at the output"


def test_int8_that_left_nothing_in_float_has_nothing_to_halve(fused: Model, digits_task: Task) -> None:
    with pytest.raises(UnsupportedError, match="int8 left no operator of digits in float"):
        Float16()(StaticInt8()(fused, VNNI, digits_task), VNNI, digits_task)


def test_it_is_tried_where_the_target_computes_in_float16(cnn: Model) -> None:
    assert has_half(HALF)
    assert has_half(Target(name="phone", arch="aarch64", isa=("asimdhp",)))
    assert has_half(Target(name="npu", arch="other", dtypes=("int8", "float16")))
    assert not has_half(VNNI)
    rung = next(rung for rung in ladder(cnn, ["onnxruntime"], HALF) if rung.name == "int8 minmax")
    half = with_half(with_exclusions(rung, ["/7/Conv"]))
    assert half.name == "int8 minmax, 1 operator float16"
    assert [step.use for step in half.steps] == [
        "graph.fuse.v1",
        "quantize.static.v1",
        "quantize.float16.v1",
        "graph.compact.v1",
    ]
    assert "float16" in half.dtypes


def test_a_search_for_such_a_target_tries_it(search: Any, stubborn: Model) -> None:
    result = search(stubborn, target=HALF)
    names = [candidate.name for candidate in result.candidates]
    [half] = [name for name in names if name.endswith("float16") and name != "float16"]
    assert half.removesuffix("16") in names
    sizes = {candidate.name: candidate.figures.size_mb for candidate in result.candidates}
    assert sizes[half] < sizes[half.removesuffix("16")]


def test_numbers_made_of_sizes_constants_and_inner_graphs_keep_their_types(
    make_model: Callable[..., Model], digits_task: Task
) -> None:
    """As attention divides by the root of a size: a cast to float32 stays one, and what follows it is halved."""
    value = helper.make_tensor_value_info
    two = numpy_helper.from_array(np.array(2.0, np.float32))
    doubled = helper.make_node("Add", ["product", "product"], ["then_out"])
    same = helper.make_node("Identity", ["product"], ["else_out"])
    arms = [
        helper.make_graph([node], name, [], [value(node.output[0], TensorProto.FLOAT, None)])
        for name, node in (("then", doubled), ("else", same))
    ]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Shape", ["flat"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "last"], ["size"]),
        helper.make_node("Cast", ["size"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["number"], ["root"]),
        helper.make_node("Constant", [], ["two"], value=two),
        helper.make_node("Mul", ["flat", "two"], ["twice"]),
        helper.make_node("Div", ["twice", "root"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "w"], ["product"]),
        helper.make_node("If", ["yes"], ["logits"], then_branch=arms[0], else_branch=arms[1]),
    ]
    w = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    stored = [
        numpy_helper.from_array(w, "w"),
        numpy_helper.from_array(np.array(1), "last"),
        numpy_helper.from_array(np.array(True), "yes"),
    ]
    weights = value("w", TensorProto.FLOAT, [64, 10])  # older files list weights among the inputs
    image, logits = (
        value("image", TensorProto.FLOAT, ["batch", 1, 8, 8]),
        value("logits", TensorProto.FLOAT, ["batch", 10]),
    )
    graph_ = helper.make_graph(nodes, "g", [image, weights], [logits], stored)
    model = make_model(helper.make_model(graph_, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    halved = Float16()(model, VNNI, digits_task)
    proto = graph.load(halved.file)
    assert [given.name for given in proto.graph.input] == ["image"]
    assert {t.name: t.data_type for t in proto.graph.initializer}["w/float16"] == TensorProto.FLOAT16
    feeds = {"image": digits_task.split("validation").inputs[""][:16]}
    x = feeds["image"].reshape(16, 64)
    found = graph.run(proto, feeds, optimise=False)["logits"]
    np.testing.assert_allclose(found, 2 * (2 * x / 8) @ w, rtol=2e-2, atol=2e-2)


def test_weights_that_float16_cannot_hold_become_its_largest(
    make_model: Callable[..., Model], digits_task: Task
) -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    w = np.zeros((64, 10), np.float32)
    w[0, 0], w[1, 1], w[2, 2] = 1e6, -1e6, 1e-9
    image, logits = (
        value("image", TensorProto.FLOAT, ["batch", 1, 8, 8]),
        value("logits", TensorProto.FLOAT, ["batch", 10]),
    )
    proto = helper.make_graph(nodes, "g", [image], [logits], [numpy_helper.from_array(w, "w")])
    model = make_model(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    made = Float16()(model, VNNI, digits_task)
    half = numpy_helper.to_array(stored(made)["w/float16"])
    assert (half[0, 0], half[1, 1], half[2, 2]) == (65504, -65504, 0)
