"""A search on a board: a candidate that kills the board's worker fails alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.remote.conftest import QUICK, processes
from tests.remote.test_remote import convolution

from farthing.bench import Rule, Tick
from farthing.bench.machine import Entrant
from farthing.bench.racing import Timed
from farthing.bench.remote import Board, Remote
from farthing.forge.ladder import rounds
from farthing.forge.optimize import optimize
from farthing.task import Split, Task


class Doomed(Remote):
    """The board's worker gets SIGSEGV again and again while int8 by percentiles is in a race."""

    deaths = 0

    def race(self, entrants: Sequence[Entrant], rule: Rule, tick: Tick | None = None) -> list[Timed]:
        lineages = [" ".join(engine._model.manifest.lineage) for engine, _ in entrants]  # type: ignore[attr-defined]
        over = threading.Event()
        killer = threading.Thread(target=self.kill, args=(over,))
        if any("calibrator=percentile" in lineage for lineage in lineages):
            killer.start()
        try:
            return super().race(entrants, rule, tick)
        finally:
            over.set()
            if killer.ident:
                killer.join()

    def kill(self, over: threading.Event) -> None:
        while not over.wait(0.25):
            for pid in processes(f"-m farthing.bench.worker {self.board.directory}"):
                if "python" in str(Path(f"/proc/{pid}/exe").resolve()):
                    os.kill(pid, signal.SIGSEGV)
                    self.deaths += 1


@pytest.mark.slow
def test_a_candidate_that_kills_the_worker_is_dropped_and_the_search_ends_well(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(rounds, "SPRINT", Rule(warmup=2, min_count=5, min_seconds=0.6))
    monkeypatch.setattr(rounds, "FINAL", Rule(warmup=2, min_count=20, min_seconds=0.6))
    monkeypatch.setattr(rounds, "FINALISTS", 9)
    draw = np.random.default_rng(0)
    splits = {
        name: Split({"": draw.standard_normal((120, 3, 8, 8)).astype(np.float32)})
        for name in ("calibration", "validation")
    }
    task = Task("noise", splits, "cosine")  # type: ignore[arg-type]
    with Doomed(board, limits=QUICK) as remote:
        result = optimize(
            convolution(tmp_path), task, "this", "accuracy_drop<=0.1", tmp_path / "out", engines=("onnxruntime",),
            threads=(1,), allow_slower=True, cache=tmp_path / "cache", machine=remote,
        )  # fmt: skip
        assert remote.deaths >= 2
    failed = [candidate for candidate in result.candidates if candidate.status == "failed"]
    assert [candidate.name for candidate in failed] == ["int8 percentile"]
    assert "failed: " in failed[0].verdict
    timed = [candidate.name for candidate in result.candidates if candidate.measurements]
    assert {"baseline", "int8 minmax", "int8 per tensor"} <= set(timed)
    assert "int8 percentile" not in timed
    assert (tmp_path / "out" / "report.html").is_file()
