"""Exits added to a network: what it had stays, they learn, and the parts answer as thresholds on its outputs would."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import farthing
from farthing import bench
from farthing.bench.machine import Here
from farthing.bundle import Bundle
from farthing.device.serving.parts.exits import open_exits
from farthing.engines.base import open_engine
from farthing.errors import ConfigError, ModelError, TaskError, UnsupportedError
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.forge.convert import convert
from farthing.forge.evaluate import Judge
from farthing.forge.exits.branching import branched
from farthing.forge.exits.cutting import costs_of, in_order, parted
from farthing.forge.exits.thresholds import answered, leaving
from farthing.forge.exits.training import NAME, ExitTraining
from farthing.forge.runtime import Runtime
from farthing.forge.training.distillation import Distillation, Feature
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Split, Task

TARGET = Target.find("this")
SHORT = Schedule(epochs=6, batch=50, lr=5e-3, bf16=False)
OPTIONS = ExitTraining(schedule=SHORT, head="conv", width=16)


@pytest.fixture(scope="module")
def plain(cnn_net: nn.Module, make_model: Callable[..., Model]) -> Model:
    return make_model(cnn_net)


@pytest.fixture(scope="module")
def made(plain: Model, digits_task: Task) -> Model:
    before = copy.deepcopy(plain.manifest)
    found = OPTIONS(plain, TARGET, digits_task)
    plain.verify()
    assert plain.manifest == before
    return found


def answers(model: Model, task: Task, split: str = "validation") -> dict[str, NDArray[Any]]:
    with open_engine(model) as engine:
        return dict(bench.outputs(engine, model.manifest, task, task.splits[split]))


def planned(options: ExitTraining, model: Model, task: Task) -> ExitTraining:
    return options.planned(model, TARGET, task, Workshop())


@pytest.mark.parametrize("head", ["pool", "conv"])
@pytest.mark.parametrize("batch", [None, 1])
def test_what_it_answers_stays_when_exits_are_added(
    head: Literal["pool", "conv"],
    batch: int | None,
    cnn_net: nn.Module,
    make_model: Callable[..., Model],
    digits_task: Task,
) -> None:
    model = make_model(cnn_net, batch)
    options = planned(ExitTraining(head=head), model, digits_task)
    fed = bench.feeds(digits_task, digits_task.splits["validation"], model.manifest, range(batch or 5))
    more = branched(options, model, fed)
    names = [spec.name for spec in more.manifest.outputs]
    assert names == ["logits", *(f"exit{n}" for n in range(1, len(options.places) + 1))]
    with open_engine(model) as one, open_engine(more) as other:
        had, has = one.run(fed), other.run(fed)
    assert np.allclose(had["logits"], has["logits"], atol=1e-5)
    assert {array.shape for array in has.values()} == {had["logits"].shape}


def test_a_signal_of_one_axis_and_probabilities() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv1d(3, 8, 5), nn.ReLU(), nn.Conv1d(8, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4), nn.Softmax(1))
    model = convert(net.eval(), name="signal", example="1x3x40").model
    x = np.random.default_rng(0).standard_normal((12, 3, 40)).astype(np.float32)
    splits = {name: Split({"": x}, np.arange(12) % 4) for name in ("train", "validation")}
    task = Task("signals", splits, "top1")
    schedule = Schedule(epochs=1, batch=12, bf16=False)
    heads: tuple[Literal["pool", "conv"], ...] = ("pool", "conv")
    for head in heads:
        found = ExitTraining(schedule=schedule, count=1, width=4, head=head)(model, TARGET, task)
        for array in answers(found, task).values():
            assert array.shape == (12, 4)
            assert np.allclose(array.sum(1), 1, atol=1e-5)


def test_exits_learn_and_the_network_does_not_forget(made: Model, plain: Model, digits_task: Task) -> None:
    labels = digits_task.splits["validation"].labels
    found = [float((rows.argmax(1) == labels).mean()) for rows in answers(made, digits_task).values()]
    before = farthing.evaluate(plain, digits_task, "validation")[0].value
    assert found[0] > before - 0.02
    assert min(found[1:]) > 0.5
    assert farthing.evaluate(made, digits_task, "validation")[0].value == pytest.approx(found[0])


def test_a_search_compares_the_answer_it_had(
    made: Model, plain: Model, digits_task: Task, tmp_path: Path
) -> None:
    judge = Judge(digits_task, plain, Runtime.of(plain, "onnxruntime", Here()), Here(), Cache(tmp_path))
    assert judge.score(made, "validation").drop.value < 0.02


def test_places_go_into_the_recipe_and_the_same_twice(
    plain: Model, digits_task: Task, tmp_path: Path
) -> None:
    options = {
        "schedule": {"epochs": 1, "batch": 100, "bf16": False},
        "teacher": "self",
        "from_last": 0.5,
        "count": 1,
    }
    first, (step,) = apply(
        [Step(use=NAME, options=options)], plain, TARGET, digits_task, Cache(tmp_path / "a")
    )
    again, (other,) = apply([step], plain, TARGET, digits_task, Cache(tmp_path / "b"))
    assert len(step.options["places"]) == 1
    assert other == step
    assert again.digest == first.digest


def test_the_parts_answer_as_thresholds_on_the_outputs_would(
    made: Model, digits_task: Task, tmp_path: Path
) -> None:
    found = parted(made, OPTIONS, digits_task, tmp_path / "exits")
    scores = [answers(made, digits_task)[name] for name in in_order(made)]
    by = leaving(scores, found.exits)
    split = digits_task.splits["validation"]
    with open_exits(tmp_path / "exits") as service:
        given = service.answer(bench.feeds(digits_task, split, made.manifest, range(len(split)))).outputs[
            "logits"
        ]
        left = service.stats().exits
    assert left == tuple(np.bincount(by, minlength=len(scores)))
    assert np.allclose(given, answered(scores, by), atol=1e-4)
    right, whole = ((rows.argmax(1) == split.labels).mean() for rows in (given, scores[-1]))
    assert right >= whole - OPTIONS.accuracy_drop - 1e-9
    manifest = Bundle.open(tmp_path / "exits").manifest
    assert manifest.exits == found.exits
    assert found.costs == tuple(sorted(found.costs))
    assert found.costs[-1] > costs_of(made, bench.feeds(digits_task, split, made.manifest, [0]))[0]


def test_given_thresholds_are_taken(made: Model, digits_task: Task, tmp_path: Path) -> None:
    exits = len(made.manifest.outputs) - 1
    options = ExitTraining(thresholds=(0.5,) * exits, measure="entropy")
    found = parted(made, options, digits_task, tmp_path / "exits")
    assert found.bundle.manifest.exits == found.exits
    assert (found.exits.thresholds, found.exits.measure) == ((0.5,) * exits, "entropy")


def test_what_cannot_have_exits_is_refused(
    plain: Model, made: Model, digits_task: Task, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"no node of .* makes the tensor '/nowhere'"):
        planned(ExitTraining(places=("/nowhere",)), plain, digits_task)
    with pytest.raises(ModelError, match="nothing is left to compute between"):
        planned(ExitTraining(places=("/7/Conv_output_0", "/0/Conv_output_0")), plain, digits_task)
    with pytest.raises(UnsupportedError, match=r"has the outputs logits, exit1.*has its exits already"):
        planned(ExitTraining(), made, digits_task)
    splits = {name: Split(split.inputs) for name, split in digits_task.splits.items()}
    with pytest.raises(TaskError, match="measured by agreement: early exits are for classifiers"):
        planned(ExitTraining(), plain, Task("d", splits, "agreement"))
    with pytest.raises(TaskError, match="has no train split"):
        planned(ExitTraining(), plain, Task("d", {"validation": digits_task.splits["validation"]}, "top1"))
    with pytest.raises(TaskError, match="has no validation split"):
        parted(made, OPTIONS, Task("d", {"train": digits_task.splits["train"]}, "top1"), tmp_path / "x")


def test_a_network_of_one_layer_has_no_place(make_model: Callable[..., Model], digits_task: Task) -> None:
    model = make_model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(UnsupportedError, match="has no place for an exit"):
        planned(ExitTraining(), model, digits_task)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "count is a whole number from 1"),
        ({"accuracy_drop": -0.1}, "accuracy_drop is a share from 0 to 1"),
        ({"weight": 0.0}, "weight is above 0"),
        ({"places": ("a", "a")}, "name a tensor twice"),
        ({"places": ("a",), "thresholds": (0.5, 0.6)}, "2 thresholds for 1 places"),
        ({"thresholds": (2.0,)}, "thresholds are from 0 to 1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ExitTraining(**options)  # type: ignore[arg-type]


def test_features_of_a_teacher_are_learned_beside_exits(plain: Model, digits_task: Task) -> None:
    place = planned(ExitTraining(count=1), plain, digits_task).places
    options = ExitTraining(
        schedule=Schedule(epochs=1, batch=100, bf16=False),
        places=place,
        teacher="self",
        distillation=Distillation(features=(Feature(student=place[0]),)),
    )
    assert len(options(plain, TARGET, digits_task).manifest.outputs) == 2
