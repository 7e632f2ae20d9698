"""The search as a pass, on the real digits of 8 x 8 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from torch import nn

from farthing import plugins
from farthing.bench import evaluate
from farthing.bench.machine import Here
from farthing.config import plain
from farthing.errors import ConfigError, TaskError, UnsupportedError
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.forge.families import Architecture, Stage
from farthing.forge.search.architecture import SearchArchitecture
from farthing.forge.search.estimate import Limits
from farthing.forge.search.run import Outcome, Subject, suited
from farthing.forge.search.run import search as run
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import Progress, Step
from farthing.target import Target
from farthing.task import Task

HERE = Target.detect()
USE = "search.architecture.v1"
SMALL = SearchArchitecture(
    engine="none",
    families=("plain", "dscnn"),
    trials=3,
    start=2,
    pool=4,
    accuracy_drop=0.1,
    limits=Limits(macs=1e5, size_kb=10),
    schedule=Schedule(epochs=4, batch=64, lr=0.02, bf16=False),
)


def search(
    options: SearchArchitecture, model: Model, target: Target, task: Task, workshop: Workshop
) -> Outcome:
    return run(options, Subject(model.manifest, model, [model]), target, task, workshop)


class Heard(list[Progress]):
    def texts(self, stage: str) -> list[str]:
        return [event.text for event in self if event.stage == stage]


@pytest.fixture(scope="module")
def found(cnn: Model, digits_task: Task, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    workshop = Workshop(state=tmp_path_factory.mktemp("search"))
    return search(SMALL, cnn, HERE, digits_task, workshop)


def test_what_is_found_keeps_the_limits_and_the_accuracy(
    found: Outcome, cnn: Model, digits_task: Task
) -> None:
    best, _, deployed = found.finalists[0]
    assert best.tried.architecture == found.chosen
    assert not best.refusal
    assert best.drop.value <= 0.1
    assert best.tried.estimate.macs <= 1e5
    assert best.tried.estimate.size_kb <= 10
    accuracy, _ = evaluate(deployed, digits_task, "validation")
    assert accuracy == best.accuracy
    assert len(found.tried) == 3
    assert found.engine == "none"


def test_no_finalist_beats_another(found: Outcome) -> None:
    finalists = [made.finalist for made in found.finalists]
    for one in finalists:
        for other in finalists:
            better = [
                a < b for a, b in zip(one.tried.estimate.costs, other.tried.estimate.costs, strict=True)
            ]
            assert one is other or not (all(better) and (one.tried.score or 0) > (other.tried.score or 0))


def test_a_plan_is_kept_and_a_replay_searches_nothing(cnn: Model, digits_task: Task, tmp_path: Path) -> None:
    heard, cache = Heard(), Cache(tmp_path)
    step = Step(use=USE, options=plain(SMALL))
    model, (planned,) = apply([step], cnn, HERE, digits_task, cache, Workshop(listener=heard.append))
    assert heard.texts("search")
    assert planned.options["architecture"]["family"] in {"plain", "dscnn"}
    assert not list(tmp_path.glob("work/*/*")), "nothing unfinished is left"
    heard.clear()
    again, _ = apply(
        [planned], cnn, HERE, digits_task, Cache(tmp_path / "other"), Workshop(listener=heard.append)
    )
    assert not heard.texts("search")
    assert heard.texts("train")
    assert again.digest == model.digest, "the same seed, the same weights"
    manifest = model.manifest
    assert (manifest.decode, manifest.labels) == (cnn.manifest.decode, cnn.manifest.labels)
    assert [spec.name for spec in (*manifest.inputs, *manifest.outputs)] == ["image", "logits"]


def test_a_search_that_was_stopped_goes_on_where_it_was(
    found: Outcome, cnn: Model, digits_task: Task, tmp_path: Path
) -> None:
    class Enough(Exception):
        pass

    def stop(event: Progress) -> None:
        if event.stage == "train" and event.text.startswith("epoch 3/4"):
            raise Enough

    with pytest.raises(Enough):
        search(SMALL, cnn, HERE, digits_task, Workshop(state=tmp_path, listener=stop))
    heard = Heard()
    again = search(SMALL, cnn, HERE, digits_task, Workshop(state=tmp_path, listener=heard.append))
    assert [(one.architecture, one.score) for one in again.tried] == [
        (one.architecture, one.score) for one in found.tried
    ]
    epochs = [text.partition(":")[0] for text in heard.texts("train") if text.startswith("epoch")]
    assert epochs[0] in {"epoch 3/4", "epoch 4/4"}


def test_an_architecture_that_is_given_is_trained_without_a_search(cnn: Model, digits_task: Task) -> None:
    made = Architecture(family="plain", stages=(Stage(width=8, stride=2), Stage(width=12, stride=2)))
    given = replace(SMALL, architecture=made)
    assert given.planned(cnn, HERE, digits_task, Workshop()) is given
    model = given(cnn, HERE, digits_task)
    assert evaluate(model, digits_task, "validation")[0].value > 0.6


def test_what_cannot_be_searched_is_said(cnn: Model, digits_task: Task, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="accuracy_drop is a share"):
        replace(SMALL, accuracy_drop=1.0)
    with pytest.raises(ConfigError, match="trials is a whole number"):
        replace(SMALL, trials=0)
    without = Task("digits", {"validation": digits_task.split("validation")}, "top1", labels="0123456789")
    with pytest.raises(TaskError, match="no train split"):
        search(SMALL, cnn, HERE, without, Workshop(state=tmp_path))
    with pytest.raises(ConfigError, match="allow for more"):
        search(replace(SMALL, limits=Limits(macs=5)), cnn, HERE, digits_task, Workshop(state=tmp_path))


def test_a_model_that_gives_no_vector_is_refused(digits_task: Task, tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, image: object) -> tuple[object, object]:
            return image, image

    from farthing.forge.convert import convert

    model = convert(Two(), name="two", example=np.zeros((2, 1, 8, 8), np.float32)).model
    with pytest.raises(UnsupportedError, match="a student takes one float32 input"):
        search(SMALL, model, HERE, digits_task, Workshop(state=tmp_path))


def test_the_engine_that_is_searched_for_follows_from_the_target() -> None:
    workshop = Workshop(machine=Here())
    assert suited(workshop, HERE) == "litert"
    assert suited(workshop, replace(HERE, engines=("openvino", "onnxruntime"))) == "onnxruntime"
    assert suited(workshop, Target(name="mcu", arch="armv7e-m")) == "none"


def test_it_is_in_the_table() -> None:
    assert plugins.get("pass", USE) is SearchArchitecture
