"""``farthing exits`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from farthing.apps.demo import manifest
from farthing.apps.exits import REPORT
from farthing.bundle import Bundle
from farthing.cli import main
from farthing.forge.convert import convert
from farthing.forge.nets import resnet8
from farthing.forge.training.loop import train
from farthing.forge.training.losses import CrossEntropy
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.model import checked
from farthing.tasks import digits, mnist_5k


def network() -> nn.Module:
    pool, relu = nn.MaxPool2d(2), nn.ReLU()
    first, second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 64, 3, padding=1)
    return nn.Sequential(first, relu, pool, second, relu, pool, nn.Flatten(), nn.Linear(256, 10))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    split = digits().split("train")
    torch.manual_seed(0)
    net = network()
    samples = Samples.of_arrays(split.take(range(len(split)))[""], split.labels)
    train(net, samples, CrossEntropy(), Schedule(epochs=6, batch=50, lr=0.01, bf16=False))
    place = tmp_path_factory.mktemp("digits") / "model"
    convert(net.eval(), name="digits", example="1x1x8x8", path=place)
    return place


def test_a_classifier_answers_early(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARTHING_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "exits"
    words = ["exits", str(model), "--task", "digits", "--out", str(out), "--drop", "0.02", "--epochs", "8"]
    assert main([*words, "--head", "conv", "--exits", "1"]) == 0
    said = capsys.readouterr().out
    assert "as given" in said
    assert f"Bundle: {out}" in said
    found = json.loads((out / REPORT).read_text())
    validation, test = found["judged"]
    assert validation["drop"]["value"] <= 0.02 + 1e-9
    assert (test["split"], test["samples"]) == ("test", len(digits().split("test")))
    assert sum(validation["shares"]) == pytest.approx(1)
    costs = [one["macs"] for one in found["exits"]]
    spent = sum(share * cost for share, cost in zip(validation["shares"], costs, strict=True))
    assert validation["macs"] == pytest.approx(spent)
    exits = Bundle.open(out).manifest.exits
    assert exits is not None
    assert (
        list(exits.thresholds) == found["step"]["options"]["thresholds"] == [found["exits"][0]["threshold"]]
    )
    assert main([*words, "--head", "conv", "--exits", "1", "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["event"], last["exits"]) == ("result", found["exits"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--at", "/nowhere"], "no node of digits makes the tensor '/nowhere'"),
        (["--drop", "2"], "accuracy_drop is a share from 0 to 1"),
        (["--exits", "0"], "count is a whole number from 1"),
    ],
)
def test_what_is_refused(
    words: list[str], said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["exits", str(model), "--task", "digits", "--out", str(tmp_path / "x"), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_real_digits_leave_a_resnet_early(tmp_path: Path) -> None:
    task = mnist_5k()
    blank = manifest("resnet8", task)
    samples = Samples(task, blank)
    torch.manual_seed(0)
    net = resnet8()
    train(net, samples, CrossEntropy(), Schedule(epochs=4, batch=64, bf16=False))
    facts = checked(blank, inputs=(), outputs=())
    example = samples.batch(torch.arange(2)).inputs[0].numpy()
    convert(net.eval(), name="resnet8", example=example, manifest=facts, path=tmp_path / "model")
    assert main(["exits", str(tmp_path / "model"), "--task", "mnist-5k", "--out", str(tmp_path / "out"),
                 "--epochs", "8", "--head", "conv"]) == 0  # fmt: skip
    found = json.loads((tmp_path / "out" / REPORT).read_text())
    assert found["judged"][0]["drop"]["value"] <= 0.005 + 1e-9
    assert found["judged"][1]["macs"] < 0.9 * found["given_macs"]
