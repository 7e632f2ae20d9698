"""A candidate whose engine crashes fails alone: while it is tried, scored or raced, here or on a board."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from farthing import plugins
from farthing.bench import Rule, Tick
from farthing.bench.machine import Entrant, Here
from farthing.bench.racing import Timed
from farthing.engines.base import Engine
from farthing.engines.onnxruntime import OnnxRuntimeEngine
from farthing.errors import EngineError, LinkError, RaceError
from farthing.forge import output
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.recipe import Candidate, Progress

CRASHING = """
import os, signal
from farthing.engines.onnxruntime import OnnxRuntimeEngine

class Crashing(OnnxRuntimeEngine):
    name = "crashing"

    def __init__(self, model, options):
        if b"QuantizeLinear" in model.file.read_bytes():
            os.kill(os.getpid(), signal.SIGSEGV)
        super().__init__(model, options)
"""


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: None) -> str:
    """An installed engine whose process dies of every int8 model."""
    place = tmp_path / "site"
    (place / "crashing-1.0.dist-info").mkdir(parents=True)
    (place / "crashing.py").write_text(CRASHING)
    (place / "crashing-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: crashing\nVersion: 1.0\n"
    )
    (place / "crashing-1.0.dist-info" / "entry_points.txt").write_text(
        "[farthing.engine]\ncrashing = crashing:Crashing\n"
    )
    monkeypatch.syspath_prepend(str(place))
    yield "crashing"
    sys.modules.pop("crashing", None)


def by_status(candidates: Sequence[Candidate], status: str) -> list[Candidate]:
    return [candidate for candidate in candidates if candidate.status == status]


def test_an_engine_that_crashes_on_a_candidate_ends_only_that(
    search: Any, cnn: Model, crashing: str, tmp_path: Path
) -> None:
    result = search(cnn, engines=(crashing, "onnxruntime"))
    failed = by_status(result.candidates, "failed")
    assert failed
    assert {candidate.engine for candidate in failed} == {crashing}
    assert all(candidate.name.startswith("int8") for candidate in failed)
    assert all("ended with SIGSEGV" in candidate.verdict for candidate in failed)
    others = [candidate.name for candidate in result.candidates if candidate.engine == "onnxruntime"]
    assert "int8 minmax" in others
    assert result.met
    assert "SIGSEGV" in (tmp_path / "out" / output.REPORT).read_text(), "the report says why"


class Apart(Here):
    """This machine, but races run in a process of their own, as on a board; it dies of marked engines.

    Attributes:
        fatal: of an engine and the scenario's calls, whether it kills the process.
        races: how many engines took part in each race, the failed ones too.
    """

    def __init__(self, fatal: Any) -> None:
        super().__init__()
        self.fatal = fatal
        self.races: list[int] = []
        self.marks: dict[int, tuple[Model, EngineOptions]] = {}

    def load(self, model: Model, engine: str, options: EngineOptions) -> tuple[Engine, float]:
        opened, load_ms = super().load(model, engine, options)
        self.marks[id(opened)] = model, options
        return opened, load_ms

    def race(self, entrants: Sequence[Entrant], rule: Rule, tick: Tick | None = None) -> list[Timed]:
        self.races.append(len(entrants))
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            for engine, feeds in entrants:
                if self.fatal(*self.marks[id(engine)], len(next(iter(feeds[0].values())))):
                    os.kill(os.getpid(), signal.SIGKILL)
            made = [Timed(calls=[0.001] * 20, rounds=[0.001] * 10, made=20) for _ in entrants]
            os.write(writer, msgspec.json.encode(made))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            raise EngineError(
                f"the process that runs the model ended with {signal.Signals(os.WTERMSIG(status)).name}"
            )
        return msgspec.json.decode(said, type=list[Timed])


def is_int8(model: Model, calibrator: str = "") -> bool:
    return any(
        step.startswith("quantize.static") and f"calibrator={calibrator}" in step
        for step in model.manifest.lineage
    )


def test_a_candidate_that_kills_the_process_of_a_race_is_dropped_and_the_others_race_on(
    search: Any, cnn: Model, tmp_path: Path
) -> None:
    machine = Apart(lambda model, options, batch: is_int8(model, "percentile"))
    result = search(cnn, machine=machine, cache=tmp_path / "cache", budget="size_mb<=1")
    failed = by_status(result.candidates, "failed")
    assert [candidate.name for candidate in failed] == ["int8 percentile"]
    assert failed[0].verdict == "failed: the process that runs the model ended with SIGKILL"
    assert not failed[0].measurements
    assert result.met
    assert result.candidates[result.summary.winner].name.startswith("int8")
    assert len({candidate.number for candidate in result.candidates}) == len(result.candidates)
    assert "ended with SIGKILL" in (tmp_path / "out" / output.REPORT).read_text()


def test_one_that_is_named_is_dropped_without_looking_for_it(search: Any, cnn: Model, tmp_path: Path) -> None:
    machine = Apart(lambda model, options, batch: False)
    plain = machine.race
    failures: list[int] = []

    def race(entrants: Sequence[Entrant], rule: Rule, tick: Tick | None = None) -> list[Timed]:
        for place, (engine, _) in enumerate(entrants):
            if is_int8(machine.marks[id(engine)][0], "percentile"):
                failures.append(len(entrants))
                raise RaceError("the process that runs the model ended with SIGSEGV", place)
        return plain(entrants, rule, tick)

    machine.race = race  # type: ignore[method-assign]
    result = search(cnn, machine=machine, cache=tmp_path / "cache", budget="size_mb<=1")
    failed = by_status(result.candidates, "failed")
    assert [candidate.name for candidate in failed] == ["int8 percentile"]
    assert "SIGSEGV" in failed[0].verdict
    assert len(failures) == 1, "it is named: no further race is needed to find it"
    assert machine.races[0] == failures[0] - 1
    assert result.met


def test_one_thread_count_can_fail_alone(search: Any, cnn: Model, tmp_path: Path) -> None:
    machine = Apart(lambda model, options, batch: is_int8(model, "minmax") and options.threads == 2)
    result = search(cnn, machine=machine, cache=tmp_path / "cache", threads=(1, 2), budget="size_mb<=1")
    failed = by_status(result.candidates, "failed")
    assert failed
    assert {candidate.options.threads for candidate in failed} == {2}
    twins = [c for c in result.candidates if c.name == failed[0].name]
    assert sorted(candidate.options.threads for candidate in twins) == [1, 2]


def test_who_crashes_in_batches_only_is_dropped_there(search: Any, cnn: Model, tmp_path: Path) -> None:
    machine = Apart(lambda model, options, batch: is_int8(model) and batch > 1)
    result = search(cnn, machine=machine, cache=tmp_path / "cache")
    failed = by_status(result.candidates, "failed")
    assert failed
    assert all(is_int8_name(candidate) and candidate.speedup is None for candidate in failed)
    assert not is_int8_name(result.candidates[result.summary.winner])


def is_int8_name(candidate: Candidate) -> bool:
    return candidate.name.startswith("int8")


def test_a_baseline_that_crashes_ends_the_search_with_its_error(
    search: Any, cnn: Model, tmp_path: Path
) -> None:
    machine = Apart(lambda model, options, batch: model.digest == cnn.digest)
    with pytest.raises(EngineError, match="ended with SIGKILL"):
        search(cnn, machine=machine, cache=tmp_path / "cache")
    assert not (tmp_path / "out").exists()


def test_a_crash_that_does_not_come_again_costs_nobody_a_place(
    search: Any, cnn: Model, tmp_path: Path
) -> None:
    once = iter([True])
    machine = Apart(lambda model, options, batch: False)
    plain = machine.race

    def race(entrants: Sequence[Entrant], rule: Rule, tick: Tick | None = None) -> list[Timed]:
        if next(once, False):
            raise EngineError("the process that runs the model ended with SIGKILL")
        return plain(entrants, rule, tick)

    machine.race = race  # type: ignore[method-assign]
    result = search(cnn, machine=machine, cache=tmp_path / "cache")
    assert not by_status(result.candidates, "failed")


class Leaving(Here):
    """This machine, until it is gone: then nothing in it answers."""

    gone = False
    loads = 0

    def load(self, model: Model, engine: str, options: EngineOptions) -> tuple[Engine, float]:
        if self.gone:
            type(self).loads += 1
            raise LinkError("bench-board cannot be reached")
        return super().load(model, engine, options)

    def temperature(self) -> float | None:
        if self.gone:
            raise LinkError("bench-board cannot be reached")
        return None


def test_a_board_that_is_gone_ends_the_search_at_once(search: Any, cnn: Model, tmp_path: Path) -> None:
    machine = Leaving()

    def listen(event: Progress) -> None:
        machine.gone = machine.gone or event.text.startswith("fused, onnxruntime:")

    with pytest.raises(LinkError, match="bench-board cannot be reached"):
        search(cnn, machine=machine, cache=tmp_path / "cache", listener=listen)
    assert Leaving.loads == 1, "the other rungs are not tried on a board that is not there"
    assert not (tmp_path / "out").exists()


def test_a_link_that_breaks_for_one_candidate_costs_that_one(search: Any, cnn: Model, tmp_path: Path) -> None:
    class Flaky(Here):
        def load(self, model: Model, engine: str, options: EngineOptions) -> tuple[Engine, float]:
            if is_int8(model, "percentile"):
                raise LinkError("the connection to bench-board broke")
            return super().load(model, engine, options)

    result = search(cnn, machine=Flaky(), cache=tmp_path / "cache")
    failed = by_status(result.candidates, "failed")
    assert [candidate.verdict for candidate in failed] == ["failed: the connection to bench-board broke"]
    assert result.met


def test_a_trial_is_not_asked_of_parts_that_only_this_process_knows(
    search: Any, cnn: Model, registry: None
) -> None:
    class Registered(OnnxRuntimeEngine):
        name = "registered"

    plugins.register("engine", "registered", Registered)
    result = search(cnn, engines=("registered",))
    assert not by_status(result.candidates, "failed")
    assert result.met
