"""``farthing apply`` as a user types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from farthing.cli import main
from farthing.config import read
from farthing.model import Model
from farthing.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
STEPS = """
- use: graph.fuse.v1
- use: prune.structured.v1
  options: {ratio: 0.4, schedule: {epochs: 1}}
- use: quantize.static.v1
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("desk")
    subprocess.run([sys.executable, ROOT / "examples" / "digits_net.py"], cwd=place, check=True)
    (place / "steps.yaml").write_text(STEPS)
    return place


@pytest.fixture(autouse=True)
def at(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("FARTHING_CACHE", str(desk / "cache"))


def run(steps: str, out: str, *more: str) -> int:
    return main(["apply", "digits.onnx", "--task", "digits", "--steps", steps, "--out", out, *more])


def test_it_prints_what_each_step_did_and_writes_a_recipe_that_replays(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("steps.yaml", "out") == 0
    said = capsys.readouterr()
    assert "step 2 of 3: prune.structured.v1" in said.err
    assert "epoch 1/1" in said.err
    assert "x smaller" in said.out
    assert "top1: 0." in said.out
    assert re.search(r"time: .* in onnxruntime -> .* in onnxruntime a sample, \d", said.out)
    made = Model.open(desk / "out")
    recipe = read(desk / "out" / "recipe.yaml", Recipe)
    assert recipe.artefact == made.digest
    assert recipe.steps[1].options["widths"]

    assert run("out/recipe.yaml", "again", "--json") == 0
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert event["digest"] == made.digest
    assert [size["after"] for size in event["sizes"]] == ["model", *(step.use for step in recipe.steps)]
    assert event["time"]["before"]["engine"] == event["time"]["after"]["engine"] == "onnxruntime"
    assert event["time"]["speedup"]["low"] < event["time"]["speedup"]["high"]
    assert event["files"]["after"]["zipped_bytes"] < event["files"]["before"]["zipped_bytes"]
    assert event["after"]["value"] == pytest.approx(event["before"]["value"] - event["drop"]["value"])
    replayed = [
        "optimize",
        "digits.onnx",
        "--task",
        "digits",
        "--recipe",
        "again/recipe.yaml",
        "--out",
        "third",
    ]
    assert main(replayed) == 0
    said = capsys.readouterr().out
    assert "as recorded" in said
    assert "as a zip" in said


def test_zeros_are_counted_zipped_and_timed(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "sparse.yaml").write_text(
        "- use: prune.unstructured.v1\n  options: {final: 0.9, schedule: {epochs: 1}}"
    )
    assert run("sparse.yaml", "sparse") == 0
    said = capsys.readouterr().out
    assert "90.0% of the weights are zero" in said
    found = re.search(r"time: .*: (as fast|faster|slower|cannot be told apart)(.*)", said)
    assert found
    assert (found[2] == "") == (found[1] == "faster"), "no other engine is said to use zeros"
    assert main(["inspect", "sparse"]) == 0
    said = capsys.readouterr().out
    assert "90.0% of the weights" in said
    assert "as a zip" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- use: graph.fuze.v1", "no pass is called 'graph.fuze.v1'; did you mean 'graph.fuse.v1'"),
        ("- use: prune.structured.v1\n  options: {ration: 0.5}", "did you mean 'ratio'"),
        ("- use: quantize.static.v1\n- use: prune.structured.v1", "put it before that step"),
        ("steps: [{use: graph.fuse.v1}]\nmodel: abc", "the recipe is for model abc"),
    ],
)
def test_bad_steps_are_exit_code_2_and_leave_nothing_behind(
    text: str, message: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "wrong.yaml").write_text(text)
    assert run("wrong.yaml", "none") == 2
    assert message in capsys.readouterr().err
    assert not (desk / "none").exists()


def test_a_directory_of_somebody_elses_is_left_alone(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "mine").mkdir()
    (desk / "mine" / "notes.txt").write_text("keep")
    assert run("steps.yaml", "mine") == 2
    assert "'notes.txt', which no search wrote" in capsys.readouterr().err
    assert [path.name for path in (desk / "mine").iterdir()] == ["notes.txt"]
