"""The way of a model through the command line: convert, inspect, optimize, evaluate, bench, predict, replay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from farthing.bench import Rule
from farthing.cli import main
from farthing.forge.ladder import rounds
from farthing.model import Model

FACTORY = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
"""
TASK = """
name: rows
source: {format: npz, path: rows.npz, labels: y}
metric: top1
labels: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
"""
FACTS = """
decode: logits
labels: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
licence: Apache-2.0
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory: a module that makes a network, its trained weights, data, a task and facts."""
    import torch
    from sklearn.datasets import load_digits

    from farthing.forge.training.loop import train
    from farthing.forge.training.losses import CrossEntropy
    from farthing.forge.training.samples import Samples
    from farthing.forge.training.schedule import Schedule

    place = tmp_path_factory.mktemp("desk")
    data = load_digits()
    x, y = (data.images[:, None] / 16).astype(np.float32), data.target.astype(np.int64)
    np.savez(place / "rows.npz", x=x, y=y)
    scope: dict[str, object] = {}
    exec(FACTORY, scope)
    torch.manual_seed(0)
    net = scope["make"]()  # type: ignore[operator]
    train(net, Samples.of_arrays(x[:900], y[:900]), CrossEntropy(), Schedule(epochs=15, bf16=False))  # type: ignore[arg-type]
    torch.save(net.state_dict(), place / "net.pt")
    (place / "deskfactory.py").write_text(FACTORY)
    (place / "task.yaml").write_text(TASK)
    (place / "facts.yaml").write_text(FACTS)
    return place


@pytest.fixture
def at(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in the user's directory, with short races and a cache that the tests of this module share."""
    monkeypatch.chdir(desk)
    monkeypatch.setenv("FARTHING_CACHE", str(desk / "cache"))
    monkeypatch.setattr(rounds, "SPRINT", Rule(warmup=1, min_count=20, min_seconds=0.1))
    monkeypatch.setattr(rounds, "FINAL", Rule(warmup=1, min_count=50, min_seconds=0.3))
    return desk


def convert(out: str) -> int:
    words = ["convert", "--model", "deskfactory:make", "--weights", "net.pt", "--example", "1x1x8x8"]
    return main([*words, "--task", "task.yaml", "--facts", "facts.yaml", "--out", out, "--force"])


def test_the_whole_way(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("model") == 0
    assert "outputs equal to the source" in capsys.readouterr().out

    assert main(["inspect", "model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["operators"]["Gemm"] == 2

    code = main(["optimize", "model", "--task", "task.yaml", "--out", "best", "--threads", "1", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["event"] == "result"
    assert code == (0 if lines[-1]["met"] else 1)
    assert {path.name for path in (at / "best").iterdir()} == {
        "model",
        "recipe.yaml",
        "report.html",
        "result.json",
    }

    assert main(["evaluate", "best", "--task", "task.yaml", "--split", "test", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["value"] == pytest.approx(lines[-1]["test"]["winner"]["value"])

    assert main(["bench", "best", "--task", "task.yaml", "--seconds", "0.1", "--no-memory", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["p50_ms"] <= measured["p90_ms"] <= measured["p99_ms"]
    assert measured["energy_mj"] is None or measured["energy_source"] != "unavailable"

    with np.load("rows.npz") as data:
        np.save("row.npy", data["x"][0])
        truth = int(data["y"][0])
    assert main(["predict", "best", "row.npy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"][0] == str(truth)


def test_a_recipe_replays_to_the_same_digest(
    at: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert convert("again") == 0
    main(["optimize", "again", "--task", "task.yaml", "--out", "found", "--threads", "1"])
    capsys.readouterr()
    words = ["optimize", "again", "--task", "task.yaml", "--recipe", "found/recipe.yaml"]
    assert main([*words, "--out", str(tmp_path / "replayed")]) == 0
    assert "as recorded" in capsys.readouterr().out
    assert Model.open(tmp_path / "replayed").digest == Model.open(at / "found").digest
    assert main([*words, "--out", str(tmp_path / "replayed")]) == 2  # never over an earlier one
    capsys.readouterr()
    for ignored in (["--budget", "size_mb<=1"], ["--threads", "2"], ["--again"], ["--allow-slower"]):
        assert main([*words, "--out", str(tmp_path / "other"), *ignored]) == 2
        assert f"searches nothing: leave {ignored[0]} out" in capsys.readouterr().err
    (tmp_path / "odd.yaml").write_text(
        Path("found/recipe.yaml").read_text().replace("engine: ", "engine: foo #", 1)
    )
    assert main([*words[:-1], str(tmp_path / "odd.yaml"), "--out", str(tmp_path / "other")]) == 2
    assert "the recipe is for an engine called 'foo', which is not known" in capsys.readouterr().err
    (tmp_path / "steps.yaml").write_text("- use: graph.fuse.v1\n")
    assert main([*words[:-1], str(tmp_path / "steps.yaml"), "--out", str(tmp_path / "other")]) == 2
    assert "`farthing apply --steps" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_budget_nothing_can_meet_is_exit_code_1_and_the_best_found_is_saved(
    at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert("big") == 0
    budget = "accuracy_drop<=0.05, size_mb<=0.0001"
    assert (
        main(
            ["optimize", "big", "--task", "task.yaml", "--out", "tight", "--threads", "1", "--budget", budget]
        )
        == 1
    )
    assert "the budget is not met" in capsys.readouterr().out
    assert Model.open(at / "tight").size_bytes > 0


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("acuracy_drop<=0.01", "did you mean 'accuracy_drop'"),
        ("size_mb>=1", "write size_mb<=1"),
        ("size_mb<=small", "not a number"),
    ],
)
def test_a_budget_that_makes_no_sense_is_exit_code_2(
    at: Path, budget: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert("sense") == 0
    assert main(["optimize", "sense", "--task", "task.yaml", "--out", "none", "--budget", budget]) == 2
    assert message in capsys.readouterr().err
    assert not (at / "none").exists()


def test_weights_are_never_unpickled(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("the trap went off",)

    (at / "trap.pt").write_bytes(pickle.dumps(Trap()))
    words = [
        "convert",
        "--model",
        "deskfactory:make",
        "--weights",
        "trap.pt",
        "--example",
        "1x1x8x8",
        "--out",
        "trapped",
    ]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert "the trap went off" not in shown.out + shown.err
    assert main(["convert", "trap.pt", "--out", "trapped"]) == 2
    assert not (at / "trapped").exists()
