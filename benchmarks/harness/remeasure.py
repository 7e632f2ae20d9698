"""Measure returned artefacts again, from their saved files, interleaved with the baseline and the peer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from farthing import bench
from farthing.config import Section
from farthing.engines.base import open_engine
from farthing.measure import Interval, Scenario, paired_difference, ratio_of_medians
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.target import Target
from harness.artefacts import Found, Setting

Array = np.ndarray[Any, Any]


class Speed(Section, frozen=True, kw_only=True):
    """Median milliseconds of one call of baseline, winner and peer in one race, and baseline over winner.

    ``quiet`` is that ratio for the quietest tenth of each one's rounds: where it differs, others disturbed the race.
    """

    baseline: float
    winner: float
    peer: float
    ratio: Interval
    quiet: float


@functools.cache
def speed(setting: Setting, found: Found, scenario: Scenario) -> Speed:
    """Race the three of them. A winner that is the baseline's own file is as fast by definition."""
    models = [found.baseline, Model.open(found.result.winner.path), found.peer]
    wanted = 1 if scenario == "single_stream" else bench.OFFLINE_BATCH
    with ExitStack() as stack:
        engines = [
            stack.enter_context(open_engine(model, "onnxruntime", EngineOptions(threads=threads)))
            for model, threads in zip(models, found.threads, strict=True)
        ]
        feeds = bench.sample_feeds(found.baseline.manifest, wanted, found.task)
        timed = bench.race([(engine, feeds) for engine in engines], setting.rule)
    medians = [float(np.median(times.calls)) * 1000 for times in timed]
    ratio = ratio_of_medians(np.column_stack([timed[0].rounds, timed[1].rounds]))
    if not found.changed:
        ratio = Interval(value=1.0, low=1.0, high=1.0)
    first, second = (float(np.percentile(times.rounds, 10)) for times in timed[:2])
    return Speed(baseline=medians[0], winner=medians[1], peer=medians[2], ratio=ratio, quiet=first / second)


@functools.cache
def answers(found: Found) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Outputs of baseline, winner and peer on the untouched test split."""
    models = (found.baseline, Model.open(found.result.winner.path), found.peer)
    first, second, third = (
        dict(bench.evaluate(m, found.task, "test", reference=found.baseline)[1]) for m in models
    )
    return first, second, third


def drop(found: Found) -> Interval:
    """What the winner loses of the task's metric on the test split, paired."""
    base, winner, _ = answers(found)
    return found.task.metric.drop(base, winner, found.task.split("test").labels, base)


def mean_drop(cases: Sequence[Found], which: int = 1) -> Interval:
    """Mean loss of top-1 over networks trained alike, paired by test sample; ``which`` is 1 for winner, 2 for peer."""
    labels = np.asarray(cases[0].task.split("test").labels)

    def hits(place: int) -> Array:
        right = [next(iter(answers(found)[place].values())).argmax(1) == labels for found in cases]
        return np.asarray(np.mean(right, axis=0), np.float64)

    return paired_difference(hits(0), hits(which))


def arithmetic_limit(milliseconds: float) -> float | None:
    """A quarter of the float time: VNNI does four times the multiply-adds of a float instruction; None without VNNI."""
    return milliseconds / 4 if Target.detect().vnni else None
