"""A board that lies: what it answers ends in an error of ours; nothing of it is believed, obeyed or shown raw."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from tests.remote.conftest import QUICK, SOURCES

from farthing.bench import Rule
from farthing.bench.remote import Board, Remote
from farthing.bench.remote.install import look
from farthing.errors import FarthingError, LinkError, TargetError
from farthing.options import EngineOptions
from farthing.testing import fake_model

ONE = EngineOptions()
SHORT = Rule(warmup=2, min_count=5, min_seconds=0.0)
FEED: dict[str, Any] = {"x": np.ones((2, 4), np.float32)}
BEGIN = """
import os, sys, time
sys.path[:0] = {paths!r}
import numpy as np
from msgspec.structs import replace
from pathlib import Path
from farthing.bench.remote import wire
from farthing.bench.worker import Worker, die_with_the_connection
class Liar(Worker):
{body}
sink = os.fdopen(os.dup(1), "wb")
liar = Liar(Path({directory!r}), os.fdopen(os.dup(0), "rb", buffering=0), sink)
die_with_the_connection(liar.tidy)
liar.serve()
"""
NOTHING = "    pass"


def liar(board: Board, place: Path, body: str) -> Board:
    """A board whose worker has these methods instead of its own."""
    directory = place / "liar"
    (directory / "venv" / "bin").mkdir(parents=True)
    (directory / "farthing-board.json").write_text('{"engines": {"fake": "1"}}')
    program = directory / "worker.py"
    paths = [str(SOURCES), *(path for path in sys.path if path.endswith("site-packages"))]
    program.write_text(BEGIN.format(paths=paths, body=body, directory=str(directory)))
    python = directory / "venv" / "bin" / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {program}\n")
    python.chmod(0o755)
    return replace(board, name="liar", directory=str(directory))


def test_the_liar_tells_the_truth_unless_told_otherwise(board: Board, tmp_path: Path) -> None:
    with Remote(liar(board, tmp_path, NOTHING), None, QUICK) as remote:
        engine = remote.load(fake_model(features=4), "", ONE)[0]
        assert remote.race([(engine, [FEED])], SHORT)[0].calls


TIMES = [
    "arrays['calls0'][0] = np.nan",
    "arrays['calls0'][0] = np.inf",
    "arrays['rounds0'][-1] = -1",
    "arrays['calls0'][:] = 0",
    "arrays['calls0'] = arrays['calls0'][:0]",
    "arrays['calls0'] = arrays['calls0'].reshape(1, -1)",
    "arrays['calls0'] = arrays['calls0'].astype(np.float32)",
    "arrays['calls1'] = arrays.pop('calls0')",
    "arrays['more'] = arrays['calls0']",
    "arrays.clear()",
    "answer = replace(answer, made=(1,))",
    "answer = replace(answer, made=(100000, 1))",
    "answer = replace(answer, before=1e9)",
    "answer = replace(answer, energy_mj=-1.0)",
    "answer = wire.Yes()",
    "self._number += 1",
    "answer = wire.Busy(who='x', since='y')",
]


def test_times_that_no_clock_gives(board: Board, tmp_path: Path) -> None:
    change = tmp_path / "change"
    body = f"""
    def _race(self, request, tensors):
        answer, arrays = super()._race(request, tensors)
        known = dict(self=self, answer=answer, arrays=arrays, np=np, wire=wire, replace=replace)
        exec(open({str(change)!r}).read(), known)
        return known["answer"], arrays
"""
    with Remote(liar(board, tmp_path, body), None, QUICK) as remote:
        engine = remote.load(fake_model(features=4), "", ONE)[0]
        for line in TIMES:
            change.write_text(line)
            with pytest.raises(LinkError):
                remote.race([(engine, [FEED])], SHORT)


OUTPUTS = [
    "{'y': np.zeros((2, 4), np.float32)}",
    "{'y': np.zeros((2, 3), np.float64)}",
    "{'y': np.zeros(6, np.float32)}",
    "{'z': np.zeros((2, 3), np.float32)}",
    "{}",
    "{'y': np.zeros((2, 3), np.float32), 'more': np.zeros(1)}",
]


def test_outputs_that_are_not_the_model_s(board: Board, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    body = f"""
    def _run(self, request, tensors):
        return wire.Yes(), eval(open({str(outputs)!r}).read())
"""
    with Remote(liar(board, tmp_path, body), None, QUICK) as remote:
        engine = remote.load(fake_model(features=4, outputs=3), "", ONE)[0]
        for line in OUTPUTS:
            outputs.write_text(line)
            with pytest.raises(LinkError, match="liar answers"):
                engine.run(FEED)


RAW = [
    "b'\\xff\\xff\\xff\\xff'",
    "b'\\x00\\x00\\x00\\x00'",
    "b'{}' * 4000",
    "b'\\x10\\x00\\x00\\x00' + b'\\x00' * 16",
]


@pytest.mark.parametrize("raw", RAW)
def test_bytes_that_are_no_frame(board: Board, tmp_path: Path, raw: str) -> None:
    body = f"    def _heat(self, request, tensors):\n        self._sink.write({raw})\n        return wire.Yes()\n"
    with Remote(liar(board, tmp_path, body), None, QUICK) as remote, pytest.raises(LinkError):
        remote.temperature()


def test_a_temperature_that_nothing_has(board: Board, tmp_path: Path) -> None:
    body = "    def _heat(self, request, tensors):\n        return wire.Warmth(celsius=-274.0)\n"
    with (
        Remote(liar(board, tmp_path, body), None, QUICK) as remote,
        pytest.raises(LinkError, match="makes no sense"),
    ):
        remote.temperature()


def test_memory_that_makes_no_sense(board: Board, tmp_path: Path) -> None:
    body = "    def _memory(self, request, tensors):\n        return wire.Peak(peak=1.0, added=2.0)\n"
    with (
        Remote(liar(board, tmp_path, body), None, QUICK) as remote,
        pytest.raises(LinkError, match="makes no sense"),
    ):
        remote.peak_memory(fake_model(), "", ONE)


def test_another_model_than_the_one_sent(board: Board, tmp_path: Path) -> None:
    body = """
    def _load(self, request, tensors):
        found = super()._load(request, tensors)
        return replace(found, outputs=(replace(found.outputs[0], name='z'),))
"""
    with (
        Remote(liar(board, tmp_path, body), None, QUICK) as remote,
        pytest.raises(LinkError, match="with other tensors"),
    ):
        remote.load(fake_model(), "", ONE)


def test_only_our_errors_are_raised(board: Board, tmp_path: Path) -> None:
    kind = tmp_path / "kind"
    body = f"""
    def _heat(self, request, tensors):
        text = '\\x1b[2J\\x07 gone ' + 'x' * 100000
        return wire.Failed(kind=open({str(kind)!r}).read(), message=text)
"""
    with Remote(liar(board, tmp_path, body), None, QUICK) as remote:
        for name in ("SystemExit", "KeyboardInterrupt", "nearest", "require", "__all__", "", "x" * 5000):
            kind.write_text(name)
            with pytest.raises(FarthingError) as caught:
                remote.temperature()
            assert type(caught.value) is TargetError
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 3000


def test_what_it_says_of_itself_is_fit_to_be_shown(board: Board, tmp_path: Path) -> None:
    body = """
    def _hello(self, request, tensors):
        found = super()._hello(request, tensors)
        evil = '\\x1b]0;gone\\x07\\n\\u202e' + 'x' * 10000
        target = replace(found.target, cpu=evil, name=evil)
        return replace(found, description=evil, meter=evil, python=evil, holder=evil, since=evil, target=target,
                       engines={evil: evil})
"""
    found = look(liar(board, tmp_path, body), QUICK)
    shown = [found.description, found.meter, found.python, found.holder, found.since, found.target.cpu]
    shown += [
        *found.target.isa,
        *found.engines,
        *found.engines.values(),
        *found.target.engines,
        found.target.name,
    ]
    assert all(text.isprintable() and len(text) < 300 for text in shown)


def test_another_version_is_refused(board: Board, tmp_path: Path) -> None:
    body = """
    def _hello(self, request, tensors):
        return replace(super()._hello(request, tensors), version='0.0.1')
"""
    with pytest.raises(
        TargetError, match=r"liar has Farthing 0\.0\.1, here it is .*farthing target update liar"
    ):
        Remote(liar(board, tmp_path, body), None, QUICK).open()


def test_one_that_never_answers_is_given_up(board: Board, tmp_path: Path) -> None:
    body = "    def _heat(self, request, tensors):\n        time.sleep(600)\n"
    limits = replace(QUICK, request=3.0, attempts=1)
    with (
        Remote(liar(board, tmp_path, body), None, limits) as remote,
        pytest.raises((LinkError, TargetError)),
    ):
        remote.temperature()


def test_one_that_ticks_for_ever_is_given_up(board: Board, tmp_path: Path) -> None:
    body = """
    def _race(self, request, tensors):
        while True:
            self._say(wire.Tick(done=-5, total=3))
            time.sleep(0.05)
"""
    ticks: list[tuple[int, int]] = []
    limits = replace(QUICK, race=1.0)
    with Remote(liar(board, tmp_path, body), None, limits) as remote:
        engine = remote.load(fake_model(features=4), "", ONE)[0]
        with pytest.raises(LinkError, match="did not answer in time"):
            remote.race([(engine, [FEED])], SHORT, lambda *tick: ticks.append(tick))
    assert set(ticks) == {(0, 3)}
