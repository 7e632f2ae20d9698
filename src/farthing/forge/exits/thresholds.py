"""Thresholds of exits: the cheapest ones that keep the accuracy, on data that was held out from training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from farthing.bundle import Exits
from farthing.errors import UnsupportedError
from farthing.metrics import Metric
from farthing.ops.sureness import sureness

Array = NDArray[Any]
TRIES = 10_000
MOST = 200  # thresholds of one exit
DIGITS = 6
ROUNDING = 1e-9


class Held(NamedTuple):
    """What is known of the samples that were held out.

    Attributes:
        scores: of each exit, (n, classes), the last one at the end.
        labels, groups: of the samples.
        costs: of a sample that leaves at each exit, in multiply-accumulates.
    """

    scores: Sequence[Array]
    labels: Array
    groups: Array | None
    costs: Sequence[int]


def leaving(scores: Sequence[Array], exits: Exits) -> Array:
    """Which exit answers each sample, from 0: (n,)."""
    sure = np.stack([sureness(exits.measure, exits.scores)(part) for part in scores[:-1]])
    return _first(sure, exits.resolved(len(scores)))


def answered(scores: Sequence[Array], by: Array) -> Array:
    """The scores that each sample gets, (n, classes)."""
    return np.asarray(np.stack(scores)[by, np.arange(len(by))])


def chosen(held: Held, exits: Exits, metric: Metric, drop: float) -> Exits:
    """The thresholds with the lowest mean cost that lose no more than ``drop`` of the metric against the last exit.

    Each exit gets a grid of thresholds, at even shares of the samples; the cheapest combinations are tried first.

    Raises:
        UnsupportedError: none keeps the accuracy.
    """
    sure = np.stack([sureness(exits.measure, exits.scores)(part) for part in held.scores[:-1]])
    least = _value(metric, held.scores[-1], held) - drop - ROUNDING
    costs = np.asarray(held.costs, np.float64)
    tried = sorted(((costs[_first(sure, one)].mean(), one) for one in _grid(sure)), key=lambda pair: pair[0])
    seen: set[bytes] = set()
    for _, thresholds in tried:
        by = _first(sure, thresholds)
        if (key := by.tobytes()) in seen:
            continue
        seen.add(key)
        if _value(metric, answered(held.scores, by), held) >= least:
            return Exits(measure=exits.measure, scores=exits.scores, thresholds=thresholds)
    raise UnsupportedError(
        f"no thresholds keep the accuracy within {drop:g}: exits are wrong where they are surest; train them "
        "longer, or put them later"
    )


def _value(metric: Metric, scores: Array, held: Held) -> float:
    return metric.score({"scores": scores}, held.labels, None, held.groups).value


def _first(sure: Array, thresholds: Sequence[float]) -> Array:
    """The first exit that is sure enough of each sample; the last one if none is."""
    enough = sure >= np.asarray(thresholds)[:, None]
    return np.asarray(np.vstack([enough, np.ones((1, sure.shape[1]), bool)]).argmax(0))


def _grid(sure: Array) -> Iterator[tuple[float, ...]]:
    """Combinations of thresholds."""
    count = max(2, min(MOST, int(TRIES ** (1 / len(sure)))))
    return itertools.product(*(_levels(row, count) for row in sure))


def _levels(sure: Array, count: int) -> list[float]:
    """Thresholds between what an exit is sure of, so that no rounding moves a sample over one."""
    known = np.unique(sure[np.isfinite(sure)])
    between = (known[:-1] + known[1:]) / 2
    picks = np.linspace(0, len(between) - 1, min(count - 2, len(between))).round().astype(int)
    levels = np.clip(np.round(between[picks], DIGITS), 0.0, 1.0)
    return sorted({0.0, *levels.tolist(), 1.0})
