"""What a search adds about the models themselves, and that it never stands in the way of a result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from farthing.bench.machine import Here, Machine
from farthing.forge import nets
from farthing.forge.cache import Cache
from farthing.forge.convert import convert
from farthing.forge.inside import anatomies, portability
from farthing.forge.runtime import Runtime
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.recipe import Candidate
from farthing.task import Split, Task
from farthing.testing import fake_model


@pytest.fixture(scope="module")
def digits() -> Model:
    torch.manual_seed(0)
    return convert(nets.digits_cnn(), name="digits", example="1x1x28x28").model


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def candidate(number: int, engine: str = "onnxruntime") -> Candidate:
    return Candidate(name="c", number=number, steps=(), engine=engine, options=EngineOptions())


def remote() -> Machine:
    class Board:
        target = Here().target
        description = "a board"
        meter = ""

    return Board()  # type: ignore[return-value]


def test_baseline_and_winner_each_once(digits: Model, cache: Cache) -> None:
    found = anatomies([(candidate(0), digits), (candidate(3), digits)], Here(), cache)
    assert [part.candidate for part in found] == [0, 3]
    assert found[0].bytes == digits.size_bytes
    assert found[0].placement
    assert found[0].engine.startswith("onnxruntime ")
    assert len(anatomies([(candidate(0), digits)] * 2, Here(), cache)) == 1


def test_the_second_time_nothing_is_run(digits: Model, cache: Cache) -> None:
    first = anatomies([(candidate(0), digits)], Here(), cache)
    again = anatomies([(candidate(5), digits)], Here(), cache)
    assert again[0].placement == first[0].placement, "the very times"
    assert again[0].candidate == 5


def test_on_another_machine_layers_are_known_and_placement_is_not(digits: Model, cache: Cache) -> None:
    found = anatomies([(candidate(0), digits)], remote(), cache)[0]
    assert found.layers
    assert (found.placement, found.engine) == ((), "")
    assert found.notes == ("placement unavailable: it ran on another machine",)


def test_what_cannot_be_looked_into_is_a_note(cache: Cache, tmp_path: Path) -> None:
    foreign = anatomies([(candidate(0, "fake"), fake_model())], Here(), cache)[0]
    assert "fake" in foreign.notes[0]
    broken = Model.create(fake_model(format="onnx").manifest, {"model.onnx": b"nothing"}, tmp_path / "broken")
    assert "could not be looked into" in anatomies([(candidate(0), broken)], Here(), cache)[0].notes[0]


def test_engines_of_a_search_are_held_against_each_other(digits: Model, cache: Cache) -> None:
    data = Split({"": np.random.default_rng(0).random((8, 1, 28, 28), np.float32)}, np.arange(8))
    task = Task("made-up", {"validation": data}, "top1")
    runtimes = [Runtime(engine=name, version="1") for name in ("onnxruntime", "openvino")]
    assert portability(digits, runtimes[:1], task, Here(), cache) is None
    assert portability(digits, runtimes, task, remote(), cache) is None
    found = portability(digits, runtimes, task, Here(), cache)
    assert found is not None
    assert found.engines == ("onnxruntime", "openvino")
    assert found.cells[0].verdict == "source"
    assert portability(digits, runtimes, task, Here(), cache) == found
    unfit = Task("other", {"validation": Split({"": np.zeros((8, 3), np.float32)}, np.arange(8))}, "top1")
    assert portability(digits, runtimes, unfit, Here(), cache) is None
