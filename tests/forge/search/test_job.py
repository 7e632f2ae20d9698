"""The whole command: what it writes, what it says, and that it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from farthing.bench import evaluate
from farthing.cli import main
from farthing.config import read
from farthing.errors import ConfigError, StorageError, TaskError
from farthing.forge.cache import Cache
from farthing.forge.replay import replay
from farthing.forge.search.architecture import SearchArchitecture
from farthing.forge.search.described import described
from farthing.forge.search.estimate import Limits, parse_limits
from farthing.forge.search.found import Found
from farthing.forge.search.job import RESULT, find
from farthing.forge.search.page import render
from farthing.forge.search.words import prediction, sentence
from farthing.forge.training.schedule import Schedule
from farthing.model import Model
from farthing.recipe import Progress, Recipe
from farthing.task import Split, Task

OPTIONS = SearchArchitecture(
    families=("plain",),
    trials=2,
    start=2,
    pool=4,
    accuracy_drop=0.3,
    limits=Limits(macs=5e4, size_kb=20),
    schedule=Schedule(epochs=3, batch=64, lr=0.02, bf16=False),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def found(cnn: Model, digits_task: Task, place: Path) -> Found:
    made = find(
        digits_task, place / "out", teacher=cnn, options=OPTIONS, cache=place / "cache", command="again <now>"
    )
    assert made is not None
    return made


def test_the_chosen_network_is_written_as_deployed_and_as_trained(
    found: Found, place: Path, digits_task: Task
) -> None:
    deployed, trained = Model.open(place / "out" / "model"), Model.open(place / "out" / "trained")
    assert deployed.digest == found.finalists[0].digest
    assert (deployed.manifest.format, trained.manifest.format) == ("tflite", "onnx")
    assert deployed.size_bytes / 1e6 == found.raced[0].size_mb
    assert evaluate(deployed, digits_task, "validation")[0] == found.finalists[0].accuracy
    assert evaluate(deployed, digits_task, "test")[0] == found.test
    assert found.met is not bool(found.violations)


def test_everything_is_plain_data_and_on_the_page(found: Found, place: Path) -> None:
    assert read(place / "out" / RESULT, Found) == found
    page = (place / "out" / "report.html").read_text()
    assert page == render(found)
    assert "again &lt;now&gt;" in page
    for one in found.tried:
        assert str(one.architecture) in page
    assert page.count("<svg") == 2
    assert "script" not in page.partition("<body")[2]


def test_speeds_are_over_the_fastest_float_form_of_the_model(found: Found) -> None:
    assert {base.engine for base in found.baselines} == {"litert", "onnxruntime", "openvino"}
    assert {base.number for base in found.baselines} == {"float32"}
    fastest = min(base.single.p50_ms for base in found.baselines)
    assert found.raced[0].speedup.value == pytest.approx(fastest / found.raced[0].single.p50_ms, rel=0.3)
    assert len(found.errors) == len(found.raced)
    assert "sums over their blocks" in prediction(found)


def test_the_sentence_says_what_came_of_it(found: Found) -> None:
    assert found.sentence == sentence(found)
    assert f"times smaller than {found.model_name}" in found.sentence
    unmet = replace(found, met=False, violations=("a call takes 9 us, the limit is 1 us",))
    assert sentence(unmet).startswith("None of 2 networks keeps what was asked")
    assert sentence(unmet).endswith("the limit is 1 us.")
    counted = replace(found, raced=(), baselines=(), engine="none")
    assert "times" not in sentence(counted)
    assert prediction(counted) == ""
    assert "Timed whole" not in render(counted)


def test_its_recipe_makes_the_network_again(found: Found, place: Path, cnn: Model, digits_task: Task) -> None:
    recipe = read(place / "out" / "recipe.yaml", Recipe)
    assert recipe.steps[0].options["architecture"] is not None
    heard: list[Progress] = []
    made = replay(recipe, cnn, digits_task, Cache(place / "other"), listener=heard.append)
    assert evaluate(made, digits_task, "validation")[0] == found.finalists[0].accuracy
    assert not [event for event in heard if event.stage in {"search", "lookup"}]


def test_more_trials_go_on_from_those_there_are(
    found: Found, place: Path, cnn: Model, digits_task: Task
) -> None:
    heard: list[Progress] = []
    more = find(
        digits_task, place / "out", teacher=cnn, options=replace(OPTIONS, trials=3), cache=place / "cache",
        listener=heard.append,
    )  # fmt: skip
    assert more is not None
    assert more.tried[:2] == found.tried
    begun = [event.text for event in heard if event.stage == "search" and "parameters" in event.text]
    assert len(begun) == 1
    assert begun[0].startswith("trial 2:")


def test_joining_writes_nothing(cnn: Model, digits_task: Task, place: Path, found: Found) -> None:
    before = sorted(path.name for path in place.iterdir())
    heard: list[str] = []
    none = find(
        digits_task, None, teacher=cnn, options=OPTIONS, cache=place / "cache",
        listener=lambda event: heard.append(event.text),
    )  # fmt: skip
    assert none is None
    assert not [text for text in heard if "making it ready" in text], "that is left to who writes the result"
    assert sorted(path.name for path in place.iterdir()) == before


def test_a_directory_of_somebody_else_is_left_alone(cnn: Model, digits_task: Task, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"mine\.txt"):
        find(digits_task, tmp_path, teacher=cnn, options=OPTIONS, cache=tmp_path)


def test_without_a_teacher_the_data_say_what_networks_take(digits_task: Task) -> None:
    made = described(digits_task)
    assert made.inputs[0].shape == ("batch", 1, 8, 8)
    assert made.outputs[0].shape == ("batch", 10)
    assert made.labels == digits_task.labels
    values = Task("values", {"train": Split({"x": np.zeros((4, 2, 9))}, np.zeros((4, 3)))}, "error")
    assert described(values).outputs[0].shape == ("batch", 3)
    pictures = Task(
        "p", {"train": Split({"": np.zeros((2, 8, 8), np.uint8)}, np.zeros(2, int))}, "top1", form="image"
    )
    with pytest.raises(TaskError, match="by a teacher or a manifest"):
        described(pictures)


def test_budgets_are_read_from_text() -> None:
    assert parse_limits("accuracy_drop<=0.02, size_kb <= 16,macs<=1e6") == (
        0.02,
        {"size_kb": 16.0, "macs": 1e6},
    )
    assert parse_limits("") == (None, {})
    for text, words in (
        ("size_mb<=1", "did you mean 'size_kb'"),
        ("size_kb>=1", "is not of the form"),
        ("size_kb<=small", "is not a number"),
        ("size_kb<=1,size_kb<=2", "twice"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_limits(text)


def test_the_command_searches_without_a_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.npz").write_bytes(_arrays())
    Path("task.yaml").write_text(
        "name: waves\nmetric: top1\nlabels: [slow, fast]\nsource: {format: npz, path: data.npz, labels: y}\n"
        "splits: {train: 0.6, validation: 0.2, test: 0.2}\n"
    )
    command = [
        "search",
        "task.yaml",
        "--out",
        "out",
        "--engine",
        "none",
        "--trials",
        "2",
        "--epochs",
        "3",
        "--lr",
        "0.02",
    ]
    assert main([*command, "--families", "plain", "--budget", "macs<=20000", "--json"]) in {0, 1}
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["event"] == "result"
    assert last["model_name"] == ""
    assert not last["raced"]
    assert Model.open(tmp_path / "out" / "model").manifest.labels == ("slow", "fast")
    assert main(["search", "task.yaml"]) == 2
    assert "--out" in capsys.readouterr().err


def _arrays() -> bytes:
    import io

    generator = np.random.default_rng(0)
    labels = np.arange(200) % 2
    times = np.linspace(0, 6, 32)
    waves = np.sin(times * (2 + 4 * labels[:, None]) + generator.random((200, 1)))[:, None]
    buffer = io.BytesIO()
    np.savez(buffer, x=waves.astype(np.float32), y=labels)
    return buffer.getvalue()
