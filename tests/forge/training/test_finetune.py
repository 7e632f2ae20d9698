"""The pass that trains a model on: what was damaged comes back, nothing else changes, and it resumes and replays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import farthing
from farthing import plugins
from farthing.config import to_yaml
from farthing.errors import ConfigError, ModelError, TaskError, TrainingError
from farthing.forge.apply import apply, build
from farthing.forge.cache import Cache
from farthing.forge.replay import replay
from farthing.forge.training.distillation import Distillation
from farthing.forge.training.finetune import FineTune
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.measure import Interval
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.recipe import Progress, Recipe, Step
from farthing.target import Budget, Target
from farthing.task import Split, Task

TARGET = Target.find("this")
SHORT = Schedule(epochs=2, batch=100, lr=2e-3, bf16=False)
FINETUNE = "train.finetune.v1"


def damaged(model: Model, target: Target, task: Task) -> Model:
    """Weights of three bits and a sign: what is left of the accuracy is what training brings back."""
    proto = onnx.load(model.file)
    for tensor in proto.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim > 1:
            step = np.abs(weights).max() / 2
            tensor.CopyFrom(numpy_helper.from_array(np.round(weights / step) * step, tensor.name))
    return Model.create(model.manifest, {"model.onnx": proto.SerializeToString()})


@pytest.fixture(scope="module")
def folded(cnn_net: nn.Module, make_model: Callable[..., Model]) -> Model:
    """The trained CNN as exporters write it: batch normalization is in the convolutions."""
    return make_model(cnn_net)


@pytest.fixture(scope="module")
def broken(folded: Model, digits_task: Task) -> Model:
    return damaged(folded, TARGET, digits_task)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def score(model: Model, task: Task) -> float:
    return farthing.evaluate(model, task, "validation")[0].value


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norms": True},
        {"teacher": "self", "distillation": Distillation(soft=0.7, hard=0.3)},
    ],
    ids=["alone", "norms", "from itself"],
)
def test_accuracy_comes_back_in_the_exported_file(
    options: dict[str, Any], broken: Model, digits_task: Task
) -> None:
    before = copy.deepcopy(broken.manifest)
    made = FineTune(schedule=SHORT, **options)(broken, TARGET, digits_task)
    assert score(made, digits_task) > score(broken, digits_task) + (0.0 if options.get("teacher") else 0.03)
    broken.verify()
    assert broken.manifest == before
    was, now = onnx.load(broken.file).graph, onnx.load(made.file).graph
    assert [(node.name, node.op_type, node.output) for node in was.node] == [
        (node.name, node.op_type, node.output) for node in now.node
    ]
    assert [value.name for value in (*was.input, *was.output)] == [
        value.name for value in (*now.input, *now.output)
    ]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_that_fixes_its_batch_is_trained_on_larger_ones(
    batch: int, mlp_net: nn.Module, make_model: Callable[..., Model], digits_task: Task
) -> None:
    """Its file, and a teacher's, still take the batch they state."""
    whole = make_model(mlp_net, batch)
    rough = damaged(whole, TARGET, digits_task)
    made = FineTune(schedule=SHORT, teacher="self")(rough, TARGET, digits_task)
    assert made.manifest.inputs == whole.manifest.inputs
    steps: list[Progress] = []
    taught = FineTune(schedule=SHORT, teacher=str(whole.path)).within(Workshop(listener=steps.append))
    assert score(taught(rough, TARGET, digits_task), digits_task) >= score(rough, digits_task)
    assert steps[-1].total == 20


def test_a_teacher_at_a_path_teaches_without_labels(
    broken: Model, folded: Model, digits_task: Task, tmp_path: Path
) -> None:
    """The float model as a bare ONNX file, without its source and without its manifest."""
    file = tmp_path / "float.onnx"
    file.write_bytes(folded.file.read_bytes())
    task = Task("d", {name: Split(s.inputs) for name, s in digits_task.splits.items()}, "agreement")
    made = FineTune(schedule=SHORT, teacher=str(file))(broken, TARGET, task)
    assert score(made, digits_task) > score(broken, digits_task) + 0.03


def test_the_same_twice_and_another_with_another_seed(broken: Model, digits_task: Task) -> None:
    schedules = [SHORT, SHORT, Schedule(epochs=2, batch=100, lr=2e-3, bf16=False, seed=1)]
    digests = [FineTune(schedule=one)(broken, TARGET, digits_task).digest for one in schedules]
    assert digests[0] == digests[1] != digests[2]


def test_it_goes_on_where_it_was_stopped(
    broken: Model, digits_task: Task, cache: Cache, tmp_path: Path
) -> None:
    step = Step(
        use=FINETUNE, options={"schedule": {"epochs": 3, "batch": 100, "bf16": False}, "teacher": "self"}
    )

    def stop(event: Progress) -> None:
        seen.append(event)
        if event.stage == "train" and event.done == 20:
            raise KeyboardInterrupt

    seen: list[Progress] = []
    with pytest.raises(KeyboardInterrupt):
        apply([step], broken, TARGET, digits_task, cache, Workshop(listener=stop))
    assert list((cache.root / "work").rglob("training.pt"))
    seen.clear()
    made, done = apply([step], broken, TARGET, digits_task, cache, Workshop(listener=seen.append))
    counts = [event.done for event in seen if "epoch" in event.text]
    assert min(counts) > 20
    assert counts[-1] == 30
    undisturbed, _ = apply([step], broken, TARGET, digits_task, Cache(tmp_path / "other"))
    assert made.digest == undisturbed.digest
    assert not list((cache.root / "work").glob("*/*"))
    assert done[0].options["schedule"]["seed"] == 0


@pytest.mark.usefixtures("registry")
def test_self_is_the_model_that_the_recipe_began_with(folded: Model, digits_task: Task, cache: Cache) -> None:
    plugins.register("pass", "mine.damaged.v1", damaged)
    options = {
        "teacher": "self",
        "distillation": {"hard": 0.0, "soft": 1.0},
        "schedule": {"epochs": 2, "batch": 100, "lr": 2e-3},
    }
    steps = [Step(use="mine.damaged.v1"), Step(use=FINETUNE, options=options)]
    first, _ = apply(steps[:1], folded, TARGET, digits_task, cache)
    made, _ = apply(steps, folded, TARGET, digits_task, cache)
    assert score(made, digits_task) > score(first, digits_task) + 0.03


def test_a_recipe_knows_its_teacher_again(
    broken: Model, folded: Model, digits_task: Task, tmp_path: Path
) -> None:
    place = folded.save(tmp_path / "teacher")
    step = Step(use=FINETUNE, options={"teacher": str(place.path), "schedule": {"epochs": 1}})
    made, resolved = build(step, TARGET)
    assert isinstance(made, FineTune)
    assert resolved.options["teacher_digests"] == [folded.digest]
    assert resolved.options["schedule"]["bf16"] in {True, False}
    assert build(resolved, TARGET)[1] == resolved
    assert to_yaml(resolved)
    broken.save(tmp_path / "teacher")
    again, _ = build(resolved, TARGET)
    with pytest.raises(
        ModelError, match=f"the recipe was made with {folded.digest[:12]}: put that one there"
    ):
        again(broken, TARGET, digits_task)


def test_a_teacher_that_is_not_there() -> None:
    with pytest.raises(ModelError, match=r"cannot read the teacher nowhere\.onnx: No such file"):
        build(Step(use=FINETUNE, options={"teacher": "nowhere.onnx"}), TARGET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distillation": {"features": [{"student": "a"}]}}, "name one in `teacher`"),
        ({"schedule": {"epochs": 0}}, "epochs is a whole number from 1"),
        ({"schedul": {}}, "did you mean 'schedule'"),
    ],
    ids=["features", "epochs", "unknown"],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Step(use=FINETUNE, options=options), TARGET)


def test_what_goes_wrong_is_said_through_the_cache_too(
    broken: Model, digits_task: Task, cache: Cache
) -> None:
    wild = Step(use=FINETUNE, options={"schedule": {"lr": 1e30, "course": "constant", "warmup": 0.0}})
    with pytest.raises(TrainingError, match="no longer"):
        apply([wild], broken, TARGET, digits_task, cache)
    bare = Task("d", {"validation": digits_task.split("validation")}, "top1", labels="0123456789")
    with pytest.raises(TaskError, match="has no train split"):
        apply([Step(use=FINETUNE)], broken, TARGET, bare, cache)


def test_a_label_that_no_output_stands_for(
    make_model: Callable[..., Model], digits_task: Task, cache: Cache
) -> None:
    torch.manual_seed(0)
    eight = make_model(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)))
    with pytest.raises((TaskError, ModelError), match="label 9"):
        apply([Step(use=FINETUNE)], eight, TARGET, digits_task, cache)


@pytest.mark.parametrize(("accuracy", "fits"), [((0.5, 1.0), True), ((0.0, 0.5), False), (None, False)])
def test_a_training_on_another_machine_is_held_to_its_accuracy(
    accuracy: tuple[float, float] | None, fits: bool, broken: Model, digits_task: Task, cache: Cache
) -> None:
    """Another processor rounds in another way: the recorded digest is that of another artefact."""
    made, steps = apply(
        [Step(use=FINETUNE, options={"schedule": {"epochs": 1}})], broken, TARGET, digits_task, cache
    )
    recipe = Recipe(
        model=broken.digest,
        task=digits_task.digest,
        target=TARGET,
        steps=steps,
        engine="onnxruntime",
        options=EngineOptions(),
        budget=Budget(),
        artefact="0" * 64,
        accuracy=None if accuracy is None else Interval(value=accuracy[0], low=accuracy[0], high=accuracy[1]),
    )
    if fits:
        assert replay(recipe, broken, digits_task, cache).digest == made.digest
    else:
        words = "the recipe recorded 000000000000" + (".* outside what was recorded" if accuracy else "")
        with pytest.raises(ModelError, match=words):
            replay(recipe, broken, digits_task, cache)
