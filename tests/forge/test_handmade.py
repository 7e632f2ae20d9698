"""Steps written by hand: read, held against the model and the task, run to the end, taken up again, replayed."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from farthing import bench
from farthing.config import read, to_yaml
from farthing.errors import ConfigError, ModelError, PluginError, TaskError
from farthing.forge.cache import Cache
from farthing.forge.handmade import Steps, apply_steps, read_steps
from farthing.forge.replay import replay
from farthing.model import Model
from farthing.recipe import Progress, Recipe, Step
from farthing.task import Task

TEXT = """
- use: graph.fuse.v1
- use: train.finetune.v1
  options: {schedule: {epochs: 3, bf16: false}}
- use: quantize.static.v1
  options: {samples: 64}
- use: export.tflite.v1
"""


@pytest.fixture
def wanted(tmp_path: Path) -> Steps:
    (tmp_path / "steps.yaml").write_text(TEXT)
    return read_steps(tmp_path / "steps.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no steps: write a list of steps, as in `- use"),
        ("[]", "has no steps"),
        ("just words", "holds no steps"),
        ("- graph.fuse.v1", "Expected `object`, got `str`"),
        ("- use: graph.fuse.v1\n  option: {}", "unknown key 'option'"),
        ("step: []", "unknown key 'step'"),
        ("engine: litert", "steps"),
        ("- use: [", "is not valid YAML"),
    ],
)
def test_a_file_that_holds_no_steps(text: str, message: str, tmp_path: Path) -> None:
    place = tmp_path / "steps.yaml"
    place.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_steps(place)
    assert str(place) in str(error.value)
    with pytest.raises(ConfigError, match="No such file"):
        read_steps(tmp_path / "none.yaml")


def test_figures_are_those_of_the_files_and_the_recipe_replays(
    wanted: Steps, cnn: Model, digits_task: Task, tmp_path: Path
) -> None:
    told: list[Progress] = []
    cache = Cache(tmp_path / "cache")
    found = apply_steps(wanted, cnn, digits_task, cache, listener=told.append)
    assert found.sizes[0] == cnn.size_bytes
    assert found.sizes[-1] == found.model.size_bytes < cnn.size_bytes / 3
    assert len(found.sizes) == 5
    value, _ = bench.evaluate(found.model, digits_task, "validation", engine="litert", reference=cnn)
    assert found.after.accuracy == value == found.recipe.accuracy
    texts = [event.text for event in told]
    assert "step 2 of 4: train.finetune.v1" in texts
    assert any(text.startswith("epoch 3/3") for text in texts)
    assert found.recipe.steps[1].options["schedule"]["epochs"] == 3
    assert found.recipe.steps[1].options["schedule"]["batch"] == 128

    place = tmp_path / "recipe.yaml"
    place.write_text(to_yaml(found.recipe))
    again = replay(read(place, Recipe), cnn, digits_task, Cache(tmp_path / "other"))
    assert again.digest == found.model.digest
    whole = read_steps(place)
    assert (whole.model, whole.task, whole.steps) == (cnn.digest, digits_task.digest, found.recipe.steps)


def test_interrupted_in_the_middle_of_a_training_it_goes_on_to_the_same_model(
    wanted: Steps, cnn: Model, digits_task: Task, tmp_path: Path
) -> None:
    def stop(event: Progress) -> None:
        if event.text.startswith("epoch 2/3"):
            raise KeyboardInterrupt

    cache, told = Cache(tmp_path / "cache"), list[Progress]()
    with pytest.raises(KeyboardInterrupt):
        apply_steps(wanted, cnn, digits_task, cache, listener=stop)
    found = apply_steps(wanted, cnn, digits_task, cache, listener=told.append)
    assert not any(event.text.startswith("epoch 1/3") for event in told)
    undisturbed = apply_steps(wanted, cnn, digits_task, Cache(tmp_path / "other"))
    assert found.model.digest == undisturbed.model.digest


def test_what_it_was_not_written_for_is_refused_before_anything_runs(
    wanted: Steps, cnn: Model, digits_task: Task, tmp_path: Path
) -> None:
    cache, told = Cache(tmp_path), list[Progress]()
    bare = Task("bare", {"validation": digits_task.split("validation")}, "top1", labels="0123456789")
    unknown = (*wanted.steps, Step(use="export.tflight.v1"))
    for wrong, task, error, message in (
        (replace(wanted, model="0" * 64), digits_task, ModelError, "is for model 000000000000"),
        (replace(wanted, task="0" * 64), digits_task, TaskError, "was made with other data"),
        (replace(wanted, engine="litrt"), digits_task, PluginError, "did you mean 'litert'"),
        (replace(wanted, steps=unknown), digits_task, PluginError, "did you mean 'export.tflite.v1'"),
        (replace(wanted, steps=wanted.steps[::-1]), digits_task, ConfigError, "put it before that step"),
        (wanted, bare, TaskError, "has no train split"),
    ):
        with pytest.raises(error, match=message):
            apply_steps(wrong, cnn, task, cache, listener=told.append)
    assert not told
