"""``farthing inspect``, ``matrix``, ``compare`` and ``doctor`` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from farthing.cli import main
from farthing.config import plain
from farthing.forge import nets
from farthing.forge.apply import build
from farthing.forge.convert import convert
from farthing.measure import Figures, Interval
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.recipe import Candidate, Step, Summary
from farthing.target import Target
from farthing.task import Split, Task
from farthing.testing import fake_model


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("digits") / "model"
    convert(nets.digits_cnn(), name="digits", example="1x1x28x28", path=place)
    return place


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARTHING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FARTHING_CONFIG", str(tmp_path / "config"))


def test_inspect_lists_layers_and_nodes(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(digits), "--nodes", "--layers"]) == 0
    said = capsys.readouterr().out
    assert "1,606,144" in said
    assert "CPUExecutionProvider" in said
    assert main(["inspect", str(digits), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"]


def test_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_model().save(tmp_path / "model")
    page = tmp_path / "matrix.html"
    assert main(["matrix", str(tmp_path / "model"), "--engine", "fake,onnxruntime", "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "source" in said
    assert "no pass makes that from fake" in said
    assert "no way there" in page.read_text()
    assert main(["matrix", str(tmp_path / "model"), "--engine", "fake", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"][0]["verdict"] == "source"
    assert main(["matrix", str(tmp_path / "model"), "--engine", "fakes"]) == 2
    assert "did you mean 'fake'" in capsys.readouterr().err
    assert main(["matrix", str(tmp_path / "model"), "--seconds", "0"]) == 2


def summary(speed: float) -> Summary:
    base = Candidate(
        name="baseline", number=0, steps=(), engine="onnxruntime", options=EngineOptions(), model="sha256:1",
        figures=Figures(size_mb=4.0), accuracy=Interval(value=0.9, low=0.88, high=0.92), status="baseline",
    )  # fmt: skip
    winner = msgspec.structs.replace(
        base, name="int8", number=1, model="sha256:2", figures=Figures(size_mb=4.0 / speed), status="winner"
    )
    return Summary(
        model_name="net", task_name="task", metric="top1", sentence="done", met=True, violations=(), notes=(),
        budget="accuracy_drop<=0.01", winner=1, candidates=(base, winner), machine="a machine",
    )  # fmt: skip


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, speed in (("one", 2.0), ("two", 4.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_bytes(msgspec.json.encode(plain(summary(speed))))
    one, two = str(tmp_path / "one"), str(tmp_path / "two" / "result.json")
    assert main(["compare", one, two, "--html", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "2.00x" in said
    assert "size better" in said
    assert "size better" in (tmp_path / "page.html").read_text()
    assert main(["compare", one, two, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["alike"] == 2
    assert main(["compare", one, str(tmp_path)]) == 2
    assert "farthing optimize" in capsys.readouterr().err


def test_doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_model(labels=("a", "b", "c"), decode="logits", licence="MIT").save(tmp_path / "good")
    assert main(["doctor", str(tmp_path / "good"), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {"environment", "machine", "model", "target"} == {finding["area"] for finding in findings}
    fake_model(labels=("a",)).save(tmp_path / "bad")
    assert main(["doctor", str(tmp_path / "bad"), "--quiet"]) == 1
    said = capsys.readouterr().out
    assert "PROBLEM  labels: 1 labels for an output 'y' of 3" in said
    assert "-> list in the manifest" in said
    assert "ok  " not in said
    assert said.strip().splitlines()[-1].startswith("1 problem")


def test_doctor_of_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "none"), "--task", "digitss", "--target", "nowhere"]) == 1
    said = capsys.readouterr().out
    assert "does not exist" in said
    assert "did you mean 'digits'" in said
    assert "nowhere" in said
    assert not (tmp_path / "cache").exists(), "it changes nothing"


@pytest.mark.parametrize("package", ["ai_edge_litert", "openvino", "torch"])
def test_a_bare_file_is_a_model_to_every_command(
    digits: Path, tmp_path: Path, package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `inspect` reads the others read; a script, which states no sizes, by those of the task's samples."""
    pytest.importorskip(package)
    place = tmp_path / "m"
    if package == "torch":
        torch.jit.trace(nets.digits_cnn(), torch.zeros(1, 1, 28, 28)).save(str(place))
    else:
        kind = {"openvino": "openvino", "ai_edge_litert": "tflite"}[package]
        made, _ = build(Step(use=f"export.{kind}.v1"), Target.detect())
        nothing = Task("none", {"validation": Split({"": np.zeros((1, 1), np.float32)})}, "cosine")
        exported = made(Model.open(digits), Target.detect(), nothing)
        assert isinstance(exported, Model)
        place = exported.save(place).file
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=generator.random((40, 1, 28, 28), np.float32), y=np.arange(40) % 10)
    task = tmp_path / "task.yaml"
    task.write_text("name: mine\nsource: {format: npz, path: mine.npz, labels: y}\nmetric: top1\n")
    quick = ["--min-count", "5", "--seconds", "0", "--no-memory"]
    for words in (["bench", *quick], ["evaluate"], ["matrix", "--engine", "fake"]):
        assert main([*words, str(place), "--task", str(task)]) == 0, capsys.readouterr().err
    assert main(["inspect", str(place)]) == 0
    if package == "torch":
        assert main(["bench", str(place), *quick]) == 2
        assert "does not say what it takes" in capsys.readouterr().err
