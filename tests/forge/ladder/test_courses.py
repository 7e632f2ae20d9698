from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from torch import nn

from farthing.config import convert
from farthing.errors import ConfigError
from farthing.forge import graph
from farthing.forge.cache import Cache
from farthing.forge.ladder import courses
from farthing.forge.ladder.courses import Courses, Plan
from farthing.forge.replay import replay
from farthing.forge.search.architecture import SearchArchitecture
from farthing.forge.search.estimate import Limits
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import Result, Step
from farthing.target import Budget, Target
from farthing.task import Task

Search = Callable[..., Result]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of three epochs."""
    monkeypatch.setattr(courses, "PLANS", {"normal": Plan(60.0, (3, 3), 1, 0)})


Planned = Callable[..., Courses]


@pytest.fixture
def thorough(cnn: Model, digits_task: Task, tmp_path: Path) -> Planned:
    """Makes what plans the trainings of a thorough search under a budget, and can climb nothing."""

    def make(budget: Budget, **options: Any) -> Courses:
        climber: Any = None
        here, kept = Target.detect(), Cache(tmp_path)
        return Courses(climber, cnn, digits_task, here, (), "thorough", kept, Workshop(), budget, **options)

    return make


@pytest.mark.usefixtures("brief")
def test_trained_networks_go_up_the_ladder(
    search: Search, cnn: Model, digits_task: Task, tmp_path: Path
) -> None:
    found = search(cnn, budget="accuracy_drop<=0.1", effort="normal")
    names = [candidate.name for candidate in found.candidates]
    assert "50% pruned, fused" in names
    assert "50% pruned, int8 minmax" in names
    assert "student, int8 minmax" in names
    pruned = next(c for c in found.candidates if c.name == "50% pruned, fused")
    assert pruned.steps[1].options["widths"], "the recipe keeps how wide the layers are"
    assert found.met
    assert found.winner.size_bytes < cnn.size_bytes / 3.5, "int8 alone is no smaller than a quarter"
    again = replay(found.recipe, cnn, digits_task, Cache(tmp_path / "another"))
    assert again.digest == found.recipe.artefact
    heard: list[str] = []
    rerun = search(
        cnn, budget="accuracy_drop<=0.1", effort="normal", listener=lambda event: heard.append(event.stage)
    )
    assert rerun.recipe == found.recipe
    assert "train" not in heard, "what was trained is kept"


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_eight_bits_are_trained_where_they_cost_too_much(search: Search, scaled: Model) -> None:
    found = search(scaled, budget="accuracy_drop<=0.0001", effort="normal")
    assert any("int8 trained" in candidate.name for candidate in found.candidates)


@pytest.mark.slow
def test_the_same_widths_are_not_trained_twice(
    search: Search, cnn: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers keep a few channels whatever the ratio."""
    monkeypatch.setattr(courses, "PLANS", {"normal": Plan(60.0, (1, 1), 6, 0)})
    found = search(cnn, budget="accuracy_min>=0.05", effort="normal")
    steps = {
        one.name: one.steps[1].options["widths"]
        for one in found.candidates
        if one.name.endswith("pruned, fused")
    }
    assert 2 <= len(steps) < 6
    assert len({str(widths) for widths in steps.values()}) == len(steps)


@pytest.mark.usefixtures("brief")
def test_nothing_is_trained_without_need(search: Search, cnn: Model, digits_task: Task) -> None:
    found = search(cnn, budget="accuracy_drop<=0.1, size_mb<=10", effort="normal")
    assert not any("pruned" in candidate.name for candidate in found.candidates)
    assert any("nothing was trained" in note for note in found.summary.notes)
    splits = {name: split for name, split in digits_task.splits.items() if name != "train"}
    bare = Task("bare", splits, "top1", labels="0123456789")
    found = search(cnn, bare, budget="accuracy_drop<=0.1", effort="normal")
    assert any("has no train split; give it one" in note for note in found.summary.notes)


def test_too_slow_a_network_is_not_trained(
    search: Search, cnn: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courses, "PLANS", {"normal": Plan(1e-6, (3, 3), 1, 0)})
    found = search(cnn, budget="accuracy_drop<=0.1", effort="normal")
    assert any("too long for this effort" in note for note in found.summary.notes)


@pytest.mark.parametrize("pace", [0.1, 2.0, 10.0, 30.0])
def test_a_search_of_the_student_keeps_to_its_share_of_the_time(thorough: Planned, pace: float) -> None:
    planned = thorough(Budget(accuracy_drop=0.02, size_mb=0.05))
    planned._pace, share = pace, planned._slot * courses.SEARCHED
    step = planned._searched()
    assert step is not None
    options = convert(step.options, SearchArchitecture, step.use)
    assert options.hours is not None
    assert options.hours * 3600 + options.schedule.epochs * pace <= share + 2
    assert options.trials * courses.TRAINED * options.schedule.epochs * pace <= share
    assert planned._left == pytest.approx(3600 - share)
    assert (options.accuracy_drop, options.limits) == (0.02, Limits(size_kb=50))


def test_a_student_is_not_searched_in_less_time_than_that_takes(thorough: Planned) -> None:
    planned = thorough(Budget())
    planned._pace = 120.0
    assert planned._searched() is None
    assert "4 networks would take longer than the 20 minutes" in planned.notes[0]
    assert planned._left == 3600


def test_what_takes_longer_than_was_thought_leaves_less_to_the_others(thorough: Planned) -> None:
    """On a machine that is busy, say; the same search once more plans the same, though nothing takes time any more."""
    planned = []
    for seconds in (20.0 + 5 * 50 * 4, 0.0):
        ticks = iter([0.0, seconds])
        one = thorough(Budget(), clock=lambda ticks=ticks: next(ticks, 0.0))
        one._pace = 5.0
        first = one._schedule(1.0)
        assert first is not None
        one._timed([], Step(use="train.finetune.v1", options={"schedule": {**first, "epochs": 50}}))
        planned.append((first, one._schedule(1.0), one._left))
    assert planned[0][0]["epochs"] == 60
    assert planned[0][1]["epochs"] == 15, "four times as slow, a quarter of the epochs"
    assert planned[1] == planned[0]


def test_an_effort_that_is_none_is_refused(search: Search, cnn: Model) -> None:
    with pytest.raises(ConfigError, match="no effort is called 'much'"):
        search(cnn, effort="much")


@pytest.mark.usefixtures("brief")
def test_what_cannot_be_trained_is_said(search: Search, make_model: Any) -> None:
    """An operator that has no trainable form."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Hardmax", ["flat"], ["one"]),
        helper.make_node("MatMul", ["one", "weight"], ["logits"]),
    ]
    weight = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    model = make_model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    proto = graph.load(model.file)
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    found = search(make_model(proto), budget="accuracy_drop<=0.4", effort="normal")
    assert any("Nothing was trained" in note and "Hardmax" in note for note in found.summary.notes)
