"""The ranking of operators by the harm that 8 bits do in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from farthing.bench import evaluate
from farthing.errors import UnsupportedError
from farthing.forge import exclude, graph, nets
from farthing.forge.families import Architecture, Stage
from farthing.forge.fuse import Fuse
from farthing.forge.quantize.static import StaticInt8
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))


def accuracy(model: Model, task: Task) -> float:
    return evaluate(model, task, "test")[0].value


def test_the_operators_around_a_tensor_that_8_bits_cannot_hold_come_first(
    scaled: Model, digits_task: Task
) -> None:
    model = Fuse()(scaled, VNNI, digits_task)
    ranking = exclude.ranked(model, StaticInt8(), VNNI, digits_task)
    convolutions = [node.name for node in graph.load(model.file).graph.node if node.op_type == "Conv"]
    assert set(ranking[:2]) == set(convolutions[:2])
    whole = StaticInt8()(model, VNNI, digits_task)
    mended = StaticInt8(exclude=tuple(ranking[:2]))(model, VNNI, digits_task)
    assert accuracy(whole, digits_task) < accuracy(scaled, digits_task) - 0.1
    assert accuracy(mended, digits_task) > accuracy(scaled, digits_task) - 0.01


def test_only_operators_that_8_bits_reach_are_ranked(cnn: Model, digits_task: Task) -> None:
    """Three convolutions and a product; poolings and ReLUs pass on what they get."""
    model = Fuse()(cnn, VNNI, digits_task)
    heard: list[tuple[int, int]] = []
    ranking = exclude.ranked(
        model, StaticInt8(), VNNI, digits_task, lambda done, total: heard.append((done, total))
    )
    kinds = {node.name: node.op_type for node in graph.load(model.file).graph.node}
    assert sorted(kinds[name] for name in ranking) == ["Conv", "Conv", "Conv", "Gemm"]
    assert len(heard) == 4
    assert heard == sorted(heard)
    assert ranking == exclude.ranked(model, StaticInt8(), VNNI, digits_task)


def test_few_calibration_samples_are_enough(cnn: Model, digits_task: Task) -> None:
    few = digits_task.split("calibration").subset(range(3))
    task = Task("few", {"calibration": few}, "top1")
    assert len(exclude.ranked(Fuse()(cnn, VNNI, task), StaticInt8(), VNNI, task)) == 4


asked: list[str] = []


class Counted(StaticInt8, frozen=True, kw_only=True):
    """Static int8 that says how often it was run."""

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        asked.append(model.manifest.name)
        return super().__call__(model, target, task)


def test_the_whole_net_is_quantized_once(cnn: Model, digits_task: Task) -> None:
    asked.clear()
    model = Fuse()(cnn, VNNI, digits_task)
    assert len(exclude.ranked(model, Counted(), VNNI, digits_task)) == 4
    assert len(asked) == 1


def test_one_operator_alone_computes_what_a_model_with_all_others_in_float_does(
    cnn: Model, digits_task: Task
) -> None:
    """The ReLU that a convolution's range absorbs belongs to it."""
    model = Fuse()(cnn, VNNI, digits_task)
    source = graph.load(model.file)
    graph.name_nodes(source)
    feeds = {"image": digits_task.split("calibration").inputs[""][:16]}
    whole = StaticInt8()(model, VNNI, digits_task)
    twins = exclude.Twins(source, graph.load(whole.file))
    known = {**feeds, **graph.run(source, feeds, twins.between(twins.quantized()))}
    for name in twins.quantized():
        node = next(node for node in source.graph.node if node.name == name)
        after = [n.name for n in source.graph.node if n.op_type == "Relu" and n.input[0] == node.output[0]]
        others = tuple(n.name for n in source.graph.node if n.name not in {name, *after})
        expected = StaticInt8(exclude=others)(model, VNNI, digits_task)
        part = twins.alone(name, known)
        found = graph.run(part, {value.name: known[value.name] for value in part.graph.input})
        wanted = graph.run(expected.file.read_bytes(), feeds)
        assert np.abs(found["logits"] - known["logits"]).max() > 0
        np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=1e-4, atol=1e-4)


def test_only_what_follows_an_operator_runs_again(cnn: Model, digits_task: Task) -> None:
    model = Fuse()(cnn, VNNI, digits_task)
    source = graph.load(model.file)
    whole = StaticInt8()(model, VNNI, digits_task)
    twins = exclude.Twins(source, graph.load(whole.file))
    last = twins.quantized()[-1]
    feeds = {"image": digits_task.split("calibration").inputs[""][:4]}
    known = {**feeds, **graph.run(source, feeds, twins.between([last]))}
    part = twins.alone(last, known).graph
    assert [node.op_type for node in part.node if "Linear" not in node.op_type] == ["Gemm"]
    assert len(part.initializer) < 12


def residual(make_model: Callable[..., Model]) -> Model:
    torch.manual_seed(0)
    stages = (Stage(width=8), Stage(width=8, stride=2))
    net = Architecture(family="resnet", stages=stages, pooling="flatten").build((1, 8, 8), 10)
    nets.settle(net, (32, 1, 8, 8))
    return make_model(net.eval())


def test_sums_beside_short_cuts_are_ranked_too(make_model: Callable[..., Model], digits_task: Task) -> None:
    model = Fuse()(residual(make_model), VNNI, digits_task)
    ranking = exclude.ranked(model, StaticInt8(), VNNI, digits_task)
    source = graph.load(model.file)
    graph.name_nodes(source)
    kinds = {node.name: node.op_type for node in source.graph.node}
    assert sorted(kinds[name] for name in ranking) == ["Add", "Add", *["Conv"] * 6, "Gemm"]


def test_what_is_float_already_is_not_ranked(cnn: Model, digits_task: Task) -> None:
    model = Fuse()(cnn, VNNI, digits_task)
    ranking = exclude.ranked(model, StaticInt8(), VNNI, digits_task)
    again = exclude.ranked(model, StaticInt8(exclude=(ranking[0],)), VNNI, digits_task)
    assert set(again) == set(ranking[1:])
    with pytest.raises(UnsupportedError, match="no operator that can be quantized"):
        exclude.ranked(model, StaticInt8(exclude=tuple(ranking)), VNNI, digits_task)


def branched() -> list[Any]:
    """Two products of which the second is read inside an If only, and an output that nothing quantized reaches."""
    value = helper.make_tensor_value_info

    def arm(name: str, *nodes: Any) -> Any:
        return helper.make_graph(list(nodes), name, [], [value(f"{name}_out", TensorProto.FLOAT, None)])

    then = arm("then", helper.make_node("Add", ["second", "second"], ["then_out"]))
    other = arm("other", helper.make_node("Identity", ["second"], ["other_out"]))
    return [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w1"], ["first"], name="one"),
        helper.make_node("MatMul", ["first", "w2"], ["second"], name="two"),
        helper.make_node("ReduceSum", ["second"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["yes"]),
        helper.make_node("If", ["yes"], ["logits"], then_branch=then, else_branch=other),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1]),
    ]


def test_inner_graphs_and_outputs_that_nothing_quantized_reaches(
    make_model: Callable[..., Model], digits_task: Task
) -> None:
    generator = np.random.default_rng(0)
    weights = {"w1": (64, 16), "w2": (16, 10)}
    stored = [
        numpy_helper.from_array(generator.normal(size=s).astype(np.float32), n) for n, s in weights.items()
    ]
    value = helper.make_tensor_value_info
    proto = helper.make_model(
        helper.make_graph(
            branched(),
            "g",
            [value("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
            [
                value("logits", TensorProto.FLOAT, ["batch", 10]),
                value("mean", TensorProto.FLOAT, ["batch", 1]),
            ],
            [*stored, numpy_helper.from_array(np.zeros((), np.float32), "zero")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    ranking = exclude.ranked(make_model(proto, outputs=("logits", "mean")), StaticInt8(), VNNI, digits_task)
    assert sorted(ranking) == ["one", "two"]


def test_a_net_that_passes_on_lists_is_not_ranked(
    make_model: Callable[..., Model], digits_task: Task
) -> None:
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("SequenceConstruct", ["flat"], ["list"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("SequenceInsert", ["list", "product"], ["longer"]),
        helper.make_node("SequenceAt", ["longer", "one"], ["logits"]),
    ]
    w = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    stored = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.array(1), "one")]
    value = helper.make_tensor_value_info
    image, logits = value("image", 1, ["batch", 1, 8, 8]), value("logits", 1, ["batch", 10])
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [image], [logits], stored),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    with pytest.raises(UnsupportedError, match=r"passes on what is no tensor \(list\)"):
        exclude.ranked(make_model(proto), StaticInt8(), VNNI, digits_task)
