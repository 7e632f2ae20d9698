"""Converting the URL of a served model: what the server says, what its owner says, and one inference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import spec
from rows.oip import affine, hosted
from rows.serving import Server, Told, said

import farthing
from farthing.cli import main
from farthing.errors import ConfigError, RemoteError
from farthing.model import Manifest, Model


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        affine("batch", running)
        yield running


def test_a_served_model_is_described_and_tried(server: Server, tmp_path: Path) -> None:
    owner = Manifest(
        name="", format="onnx", inputs=(), outputs=(spec("y", 1, 3, layout="NC"),), labels=("a", "b", "c")
    )
    made = farthing.convert(
        f"{server.url}/v2/models/affine-batch",
        manifest=owner,
        remote={"timeout_ms": 700},
        path=tmp_path / "m",
    )
    model = Model.open(tmp_path / "m")
    assert (model.manifest.name, model.manifest.labels) == ("affine-batch", ("a", "b", "c"))
    assert model.manifest.outputs == (spec("y", "batch", 3, layout="NC"),)
    assert made.checked == "test 0 answers as it describes, tried on one inference"
    assert made.assumptions[0] == "axis 0 of x, y taken as the batch (its size is free)"
    assert "no version was named" in made.assumptions[1]
    assert json.loads(model.file.read_bytes())["timeout_ms"] == 700
    with farthing.open_engine(model) as engine:
        assert engine.run({"x": np.zeros((5, 4), np.float32)})["y"].shape == (5, 3)


def test_nothing_is_written_if_it_does_not_answer_as_it_describes(server: Server, tmp_path: Path) -> None:
    answers = [server.answer(path, b"", {}) for path in ("/v2/models/affine-batch", "/v2") * 2]
    wrong = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    server.told = [*answers, said(wrong)]
    with pytest.raises(RemoteError, match=r"'y' as float32 \[1, 2\], not as float32 \[1, 3\]"):
        farthing.convert(f"{server.url}/v2/models/affine-batch", path=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_it_is_tried_on_zeros_and_empty_texts_or_on_an_example(server: Server) -> None:
    seen: list[Any] = []

    def compute(feeds: Any) -> Any:
        seen.append(feeds)
        return feeds["x"][:, :1]

    x, y = spec("x", "batch", "time"), spec("y", "batch", 1)
    hosted("texts", [x, spec("t", "batch", dtype="str")], [y], compute, server)
    hosted("long", [x], [y], compute, server)
    assert len(farthing.convert(f"{server.url}/v2/models/texts/versions/1").assumptions) == 1
    assert (seen[-1]["x"].tolist(), seen[-1]["t"].tolist()) == ([[0]], [""])
    farthing.convert(f"{server.url}/v2/models/long", example="2x9")
    assert seen[-1]["x"].shape == (2, 9)
    with pytest.raises(ConfigError, match="the example has 2 inputs, the model 1"):
        farthing.convert(f"{server.url}/v2/models/long", example="2x9,3")


@pytest.mark.parametrize(
    ("source", "more", "said_"),
    [
        ("http://127.0.0.1:1/v2/models/m", {"weights": "w.pt", "keep": True}, "leave weights, keep out"),
        ("http://127.0.0.1:1/v2/models/m", {"opset": 17}, "stays on its server: leave opset out"),
        ("http://127.0.0.1:1/v2/models/m", {"remote": {"timeout": 1}}, "did you mean 'timeout_ms'"),
        (
            "model.onnx",
            {"remote": {"timeout_ms": 1}},
            r"settings of a server were given \(timeout_ms\), but no URL",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(source: str, more: dict[str, Any], said_: str) -> None:
    with pytest.raises(ConfigError, match=said_):
        farthing.convert(source, **more)


def test_at_the_command_line(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("facts.yaml").write_text(
        "labels: [a, b, c]\ndecode: logits\nremote: {retry: {attempts: 1}, breaker: {failures: 2}}\n"
    )
    url = f"{server.url}/v2/models/affine-batch"
    assert main(["convert", url, "--out", "m", "--facts", "facts.yaml", "--name", "gate"]) == 0
    assert "tried on one inference" in capsys.readouterr().out
    model = Model.open("m")
    assert (model.manifest.name, model.manifest.decode) == ("gate", "logits")
    assert json.loads(model.file.read_bytes())["retry"]["attempts"] == 1
    server.told = [Told(401, b'{"error": "who are you?"}')]
    assert main(["convert", url, "--out", "n"]) == 2
    assert "who are you?; give the token it wants" in capsys.readouterr().err
    assert not Path("n").exists()
