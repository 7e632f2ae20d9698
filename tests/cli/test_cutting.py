"""``farthing cut`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from farthing.bundle import Bundle, Exits
from farthing.cli import main
from farthing.forge.convert import convert
from farthing.model import Model


class TwoExits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.early, self.late = nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.body(x))
        return self.early(features), self.late(torch.tanh(features))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("two") / "model"
    convert(TwoExits().eval(), name="two", example="1x8", path=place)
    return place


def test_a_model_in_parts(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "parts"
    assert main(["cut", str(model), "--parts", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "part2" in said
    assert "of the whole" in said
    assert f"Bundle: {out}" in said
    assert Bundle.open(out).manifest.role == "parts"
    assert main(["cut", str(model), "--at", "/Relu_output_0", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [part["inputs"] for part in found["parts"]] == [["x"], ["/Relu_output_0"]]
    assert found["difference"] == 0.0


def test_a_model_with_exits(model: Path, tmp_path: Path) -> None:
    out, outputs = tmp_path / "exits", [spec.name for spec in Model.open(model).manifest.outputs]
    words = ["cut", str(model), "--exits", outputs[0], "--threshold", "0.9", "--measure", "entropy"]
    assert main([*words, "--out", str(out)]) == 0
    made = Bundle.open(out).manifest
    assert (made.role, made.outputs) == ("exits", tuple(outputs))
    assert made.exits == Exits(measure="entropy", thresholds=(0.9,))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say where to cut"),
        (["--at", "a", "--exits", "b"], "either --at or --exits"),
        (["--parts", "2", "--threshold", "0.5"], "--threshold belongs to --exits"),
        (["--exits", "b", "--threshold", "2"], "thresholds are from 0 to 1"),
        (["--exits", "b"], "'b' is no output"),
        (["--at", "b"], "no node makes the tensor 'b'"),
    ],
)
def test_bad_wishes_end_with_a_sentence(
    model: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cut", str(model), *words, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
