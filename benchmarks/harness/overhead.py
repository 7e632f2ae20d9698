"""What Farthing adds: to a call, to the start of an interpreter, to a disk."""

from __future__ import annotations

import marshal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

import farthing
from farthing.engines.base import Tensors, open_engine
from farthing.engines.onnxruntime import CPU, runtime, session_options
from farthing.measure import Interval, bootstrap
from farthing.model import Model
from farthing.options import EngineOptions

BLOCK = 200
PYC_HEADER = 16


class Pair:
    """Times of two things taken in turns, seconds: what is measured, and the plain thing it stands on."""

    def __init__(self, ours: Sequence[float], plain: Sequence[float]) -> None:
        self.ours = float(np.median(ours))
        self.plain = float(np.median(plain))
        self.added = difference_of_medians(np.column_stack([ours, plain]))


def difference_of_medians(pairs: np.ndarray) -> Interval:
    """Median of the first column less median of the second, with its 95 % bootstrap interval."""

    def statistic(draws: np.ndarray) -> np.ndarray:
        medians = np.median(draws, axis=1)
        return np.asarray(medians[..., 0] - medians[..., 1])

    return bootstrap(pairs, statistic)


def wrapped_and_raw(model: Model, feeds: Tensors, seconds: float) -> Pair:
    """One call through our engine, and one of ``InferenceSession.run``, in blocks that take turns.

    Both sessions have the same options; what is timed is the mean call of a block, what is compared the medians.
    """
    options = EngineOptions(threads=1)
    ort = runtime()
    session = ort.InferenceSession(str(model.file), session_options(ort, options), providers=[CPU])
    names = [spec.name for spec in model.manifest.outputs]
    with open_engine(model, "onnxruntime", options) as engine:
        run, raw = engine.run, session.run

        def ours() -> float:
            begin = time.perf_counter()
            for _ in range(BLOCK):
                run(feeds)
            return (time.perf_counter() - begin) / BLOCK

        def plain() -> float:
            begin = time.perf_counter()
            for _ in range(BLOCK):
                raw(names, feeds)
            return (time.perf_counter() - begin) / BLOCK

        return Pair(*taking_turns([ours, plain], seconds))


def taking_turns(
    entrants: Sequence[Callable[[], float]], seconds: float, least: int = 20
) -> list[list[float]]:
    """Results of entrants called in rotating turns, so long and at least so often; first calls are dropped."""
    for warm_up in entrants:
        warm_up()
    found: list[list[float]] = [[] for _ in entrants]
    start, number = time.perf_counter(), 0
    while number < least or time.perf_counter() - start < seconds:
        for place in range(len(entrants)):
            turn = (number + place) % len(entrants)
            found[turn].append(entrants[turn]())
        number += 1
    return found


def starts(programs: Mapping[str, str], count: int) -> dict[str, list[float]]:
    """Seconds that a fresh interpreter takes for each program, taking turns."""

    def timer(program: str) -> Callable[[], float]:
        def once() -> float:
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
            return time.perf_counter() - begin

        return once

    taken = taking_turns([timer(program) for program in programs.values()], 0, count)
    return dict(zip(programs, taken, strict=True))


def installed_mb() -> tuple[float, float]:
    """Size of the package's files as a wheel brings them, and of the bytecode that Python makes of them beside it."""
    files = cache = 0
    for path in Path(farthing.__file__).parent.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            files += path.stat().st_size
            if path.suffix == ".py":
                cache += PYC_HEADER + len(marshal.dumps(compile(path.read_bytes(), str(path), "exec")))
    return files / 1e6, cache / 1e6
