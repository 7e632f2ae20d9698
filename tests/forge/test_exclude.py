"""The ranking of operators by the harm that 8 bits do in them."""

from __future__ import annotations

from farthing.bench import evaluate
from farthing.forge import exclude, graph
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
