"""Measure returned artefacts again, from their saved files, interleaved with the baseline and the peer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from farthing import bench
from farthing.bench import Rule
from farthing.bench.machine import Here
from farthing.bench.racing import Timed
from farthing.config import Section
from farthing.measure import Interval, Scenario, paired_difference
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.target import Target
from farthing.task import Task
from harness.artefacts import Found, Setting

Array = np.ndarray[Any, Any]
Entrant = tuple[Model, str, EngineOptions]


def race(
    task: Task, entrants: Sequence[Entrant], rule: Rule, scenario: Scenario = "single_stream"
) -> list[Timed]:
    """Time models in their engines on this machine, interleaved."""
    batch = bench.offline_batch(entrants[0][0].manifest, task)
    raced = bench.race_models(entrants, scenario, task, batch, rule, Here())
    return [timed for _, timed in raced]


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
    entrants = [
        (model, "onnxruntime", EngineOptions(threads=threads))
        for model, threads in zip(models, found.threads, strict=True)
    ]
    timed = race(found.task, entrants, setting.rule, scenario)
    medians = [float(np.median(times.calls)) * 1000 for times in timed]
    ratio = timed[1].over(timed[0])
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
