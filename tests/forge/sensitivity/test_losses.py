"""What single operators lose in 8 bits, and their ranking by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from farthing.bench import evaluate
from farthing.errors import UnsupportedError
from farthing.forge import graph, nets
from farthing.forge.cache import Cache
from farthing.forge.families import Architecture, Stage
from farthing.forge.fuse import Fuse
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.sensitivity.forms import Twins
from farthing.forge.sensitivity.losses import losses, ranked
from farthing.forge.sensitivity.precisions import Place, source_of
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def ranking(digits_task: Task, cache: Cache) -> Callable[..., list[str]]:
    """The ranking of a model's operators by what they lose in 8 bits."""

    def rank(
        model: Model, quantize: StaticInt8 | None = None, task: Task = digits_task, tick: Any = None
    ) -> list[str]:
        return ranked(losses(model, quantize or StaticInt8(), Place(VNNI, task, cache), tick=tick))

    return rank


Ranking = Callable[..., list[str]]


def accuracy(model: Model, task: Task) -> float:
    return evaluate(model, task, "test")[0].value


def test_the_operators_around_a_tensor_that_8_bits_cannot_hold_come_first(
    scaled: Model, digits_task: Task, ranking: Ranking
) -> None:
    model = Fuse()(scaled, VNNI, digits_task)
    worst = ranking(model)
    convolutions = [node.name for node in graph.load(model.file).graph.node if node.op_type == "Conv"]
    assert set(worst[:2]) == set(convolutions[:2])
    whole = StaticInt8()(model, VNNI, digits_task)
    mended = StaticInt8(exclude=tuple(worst[:2]))(model, VNNI, digits_task)
    assert accuracy(whole, digits_task) < accuracy(scaled, digits_task) - 0.1
    assert accuracy(mended, digits_task) > accuracy(scaled, digits_task) - 0.01


def test_only_operators_that_8_bits_reach_are_ranked(
    cnn: Model, digits_task: Task, ranking: Ranking, cache: Cache
) -> None:
    """Three convolutions and a product; poolings and ReLUs pass on what they get."""
    model = Fuse()(cnn, VNNI, digits_task)
    heard: list[tuple[int, int]] = []
    found = ranking(model, tick=lambda done, total: heard.append((done, total)))
    kinds = {node.name: node.op_type for node in graph.load(model.file).graph.node}
    assert sorted(kinds[name] for name in found) == ["Conv", "Conv", "Conv", "Gemm"]
    assert len(heard) == 4
    assert heard == sorted(heard)
    assert found == ranking(model)
    assert len(heard) == 4, "the second answer comes from the cache"
    cache.clear()
    assert found == ranking(model)


def test_few_calibration_samples_are_enough(cnn: Model, digits_task: Task, ranking: Ranking) -> None:
    few = digits_task.split("calibration").subset(range(3))
    task = Task("few", {"calibration": few}, "top1")
    assert len(ranking(Fuse()(cnn, VNNI, task), task=task)) == 4


def test_the_whole_net_is_quantized_once(
    cnn: Model, digits_task: Task, ranking: Ranking, cache: Cache
) -> None:
    assert len(ranking(Fuse()(cnn, VNNI, digits_task))) == 4
    assert len([*cache.root.glob("models/*/*")]) == 1


def test_one_operator_alone_computes_what_a_model_with_all_others_in_float_does(
    cnn: Model, digits_task: Task
) -> None:
    """The ReLU that a convolution's range absorbs belongs to it."""
    model = Fuse()(cnn, VNNI, digits_task)
    source = source_of(model)
    feeds = {"image": digits_task.split("calibration").inputs[""][:16]}
    quantized = StaticInt8()(model, VNNI, digits_task)
    twins = Twins(source, graph.load(quantized.file))
    known = {**feeds, **graph.run(source.proto, feeds, source.between(twins.operators()))}
    nodes = source.nodes
    for name in twins.operators():
        after = [
            n.name for n in nodes.values() if n.op_type == "Relu" and n.input[0] == nodes[name].output[0]
        ]
        others = tuple(other for other in nodes if other not in {name, *after})
        expected = StaticInt8(exclude=others)(model, VNNI, digits_task)
        part = source.alone(name, twins, known)
        found = graph.run(part, {value.name: known[value.name] for value in part.graph.input})
        wanted = graph.run(expected.file.read_bytes(), feeds)
        assert np.abs(found["logits"] - known["logits"]).max() > 0
        np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=1e-4, atol=1e-4)
        whole = graph.run(source.whole(name, twins), feeds)
        np.testing.assert_allclose(found["logits"], whole["logits"], rtol=1e-4, atol=1e-4)


def test_only_what_follows_an_operator_runs_again(cnn: Model, digits_task: Task) -> None:
    model = Fuse()(cnn, VNNI, digits_task)
    source = source_of(model)
    quantized = StaticInt8()(model, VNNI, digits_task)
    twins = Twins(source, graph.load(quantized.file))
    last = twins.operators()[-1]
    feeds = {"image": digits_task.split("calibration").inputs[""][:4]}
    known = {**feeds, **graph.run(source.proto, feeds, source.between([last]))}
    part = source.alone(last, twins, known).graph
    assert [node.op_type for node in part.node if "Linear" not in node.op_type] == ["Gemm"]
    assert len(part.initializer) < 12


def residual(make_model: Callable[..., Model]) -> Model:
    torch.manual_seed(0)
    stages = (Stage(width=8), Stage(width=8, stride=2))
    net = Architecture(family="resnet", stages=stages, pooling="flatten").build((1, 8, 8), 10)
    nets.settle(net, (32, 1, 8, 8))
    return make_model(net.eval())


def test_sums_beside_short_cuts_are_ranked_too(
    make_model: Callable[..., Model], digits_task: Task, ranking: Ranking
) -> None:
    model = Fuse()(residual(make_model), VNNI, digits_task)
    kinds = {name: node.op_type for name, node in source_of(model).nodes.items()}
    assert sorted(kinds[name] for name in ranking(model)) == ["Add", "Add", *["Conv"] * 6, "Gemm"]


def test_what_is_float_already_is_not_ranked(cnn: Model, digits_task: Task, ranking: Ranking) -> None:
    model = Fuse()(cnn, VNNI, digits_task)
    worst = ranking(model)
    assert set(ranking(model, StaticInt8(exclude=(worst[0],)))) == set(worst[1:])
    with pytest.raises(UnsupportedError, match="no operator that can be quantized"):
        ranking(model, StaticInt8(exclude=tuple(worst)))


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
    make_model: Callable[..., Model], digits_task: Task, ranking: Ranking
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
    assert sorted(ranking(make_model(proto, outputs=("logits", "mean")))) == ["one", "two"]


def test_a_net_that_passes_on_lists_is_not_ranked(make_model: Callable[..., Model], ranking: Ranking) -> None:
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
        ranking(make_model(proto))
