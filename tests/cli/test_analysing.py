"""``farthing sensitivity`` and ``farthing study`` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from farthing.bench import Rule
from farthing.cli import main
from farthing.forge.convert import convert
from farthing.forge.ladder import rounds
from farthing.forge.sensitivity import Sensitivity
from farthing.forge.study import Study

TASK = """
name: rows
source: {format: npz, path: rows.npz, labels: y}
metric: agreement
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory: a model, data and a task."""
    place = tmp_path_factory.mktemp("desk")
    generator = np.random.default_rng(0)
    np.savez(
        place / "rows.npz", x=generator.normal(size=(600, 1, 8, 8)).astype(np.float32), y=np.arange(600) % 4
    )
    (place / "task.yaml").write_text(TASK)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    convert(net.eval(), name="net", example="1x1x8x8", path=place / "model")
    return place


@pytest.fixture(autouse=True)
def at(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("FARTHING_CACHE", str(desk / "cache"))
    monkeypatch.setenv("FARTHING_CONFIG", str(desk / "config"))


def test_sensitivity_prints_a_table_and_writes_json_and_a_page(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "sensitivity",
        "model",
        "--task",
        "task.yaml",
        "--precision",
        "int8,int4 weights",
        "--subset",
        "50",
        "--drop",
        "0.5",
    ]
    assert main([*words, "--out", "found.json", "--html", "found.html"]) == 0
    said = capsys.readouterr()
    assert "operator" in said.out
    assert "int4 weights" in said.out
    assert "int8 keeps the limit with all 2 operators in 8 bits." in said.out
    assert "sensitivity: int8, operator by operator" in said.err
    found = msgspec.json.decode((desk / "found.json").read_bytes(), type=Sensitivity)
    assert [one.kind for one in found.operators] == ["Conv", "Gemm"]
    assert found.subset == 50
    assert found.command.startswith("farthing")
    page = (desk / "found.html").read_text()
    assert "<circle" in page
    assert "What each operator of net suffers" in page
    assert main([*words, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["event"] == "result"
    assert {line["event"] for line in lines[:-1]} == {"progress"}
    assert lines[-1]["operators"] == json.loads((desk / "found.json").read_text())["operators"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "int9"], "did you mean 'int8'"),
        (["--scored", "some"], "--scored is a whole number or `all`"),
        (["--drop", "much"], "--drop a number as in 0.01, or `none`"),
        (["--subset", "0"], "samples and subset are from 1"),
        (["--engine", "fake"], "fake"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_sensitivity_refuses_what_means_nothing(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sensitivity", "model", "--task", "task.yaml", *words]) == 2
    assert said in capsys.readouterr().err


def test_study_prints_tables_and_writes_json_and_a_page(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "SPRINT", Rule(warmup=1, min_count=5, min_seconds=0.02))
    words = ["study", "model", "--task", "task.yaml", "--engine", "onnxruntime", "--bits", "8,4"]
    assert main([*words, "--out", "study.json", "--html", "study.html"]) == 0
    said = capsys.readouterr().out
    assert "int8 minmax, equalized" in said
    assert "on the front" in said
    assert "activations" in said
    assert "No other beats these in loss, latency and size at once" in said
    found = msgspec.json.decode((desk / "study.json").read_bytes(), type=Study)
    assert {width.bits for width in found.widths} == {8, 4}
    assert "plot-data" in (desk / "study.html").read_text()
    assert main([*words, "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["name"] for one in last["methods"]] == [one.name for one in found.methods]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bits", "few"], "--bits 'few' is not a list of numbers, as in 32,16,8,4"),
        (["--bits", "9"], "widths are 32, 16, or from 8 down to 2 bits, not 9"),
        (["--recipe", "none.yaml"], "none.yaml"),
        (["--engine", "onnxruntimes"], "did you mean 'onnxruntime'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_study_refuses_what_means_nothing(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "model", "--task", "task.yaml", *words]) == 2
    assert said in capsys.readouterr().err
