from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from torch import nn

from farthing.errors import ConfigError
from farthing.forge import courses, graph
from farthing.forge.cache import Cache
from farthing.forge.courses import Plan
from farthing.forge.replay import replay
from farthing.model import Model
from farthing.recipe import Result
from farthing.task import Task

Search = Callable[..., Result]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of three epochs."""
    monkeypatch.setattr(courses, "PLANS", {"normal": Plan(60.0, (3, 3), 1, False)})


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
    monkeypatch.setattr(courses, "PLANS", {"normal": Plan(1e-6, (3, 3), 1, False)})
    found = search(cnn, budget="accuracy_drop<=0.1", effort="normal")
    assert any("too long for this effort" in note for note in found.summary.notes)


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
