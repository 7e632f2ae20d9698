"""Thresholds of exits: the lowest that keeps the accuracy, on data that was held out from training.

The lowest threshold that keeps a drop on these data lies right at its edge, and loses more on others as often as not.
So it is an upper bound of the drop that must be kept, as in risk control for early exits (Jazbec et al. 2024,
https://arxiv.org/abs/2405.20915); here from the normal approximation of the paired difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from farthing.bundle import Exits
from farthing.errors import UnsupportedError
from farthing.measure import Interval
from farthing.metrics import Metric
from farthing.ops.sureness import sureness

Array = NDArray[Any]
MOST = 300  # thresholds that are tried
DIGITS = 6
ROUNDING = 1e-9
TWO_SIDED = 0.975  # the quantile that 95 % intervals end at


class Held(NamedTuple):
    """What is known of the samples that were held out.

    Attributes:
        scores: of each exit, (n, classes), the last one at the end.
        labels, groups: of the samples.
    """

    scores: Sequence[Array]
    labels: Array
    groups: Array | None


def leaving(scores: Sequence[Array], exits: Exits) -> Array:
    """Which exit answers each sample, from 0: (n,)."""
    sure = np.stack([sureness(exits.measure, exits.scores)(part) for part in scores[:-1]])
    return _first(sure, exits.resolved(len(scores)))


def answered(scores: Sequence[Array], by: Array) -> Array:
    """The scores that each sample gets, (n, classes)."""
    return np.asarray(np.stack(scores)[by, np.arange(len(by))])


def chosen(held: Held, exits: Exits, metric: Metric, drop: float, certainty: float) -> Exits:
    """The lowest threshold, one for all exits, that loses no more than ``drop`` of the metric against the last exit.

    Thresholds are tried from 1 downwards, at even shares of the samples, until the first that may lose more. A sequence
    that is fixed beforehand keeps its certainty whatever its length; the best of all combinations does not.

    Args:
        held: the samples.
        exits: how sure an exit is, and what it gives.
        metric: of the answers.
        drop: what it may lose.
        certainty: with which the drop is kept on other samples of the same kind, from 0.5, which takes these samples at
            their word.

    Raises:
        UnsupportedError: none under which any sample leaves early.
    """
    sure = np.stack([sureness(exits.measure, exits.scores)(part) for part in held.scores[:-1]])
    found, nearly = None, False
    for threshold in _levels(sure):
        by = _first(sure, [threshold] * len(sure))
        if (by == len(sure)).all():
            continue
        lost = _lost(metric, held, by)
        nearly = nearly or lost.value <= drop + ROUNDING
        if bound(lost, certainty) > drop + ROUNDING:
            break
        found = threshold
    if found is None:
        raise UnsupportedError(_refusal(drop, certainty, len(held.labels), nearly))
    return Exits(measure=exits.measure, scores=exits.scores, thresholds=(found,) * len(sure))


def bound(lost: Interval, certainty: float) -> float:
    """What a drop stays below with a certainty, one-sided, from its 95 % interval."""
    share = NormalDist().inv_cdf(certainty) / NormalDist().inv_cdf(TWO_SIDED)
    return lost.value + share * (lost.high - lost.value)


def _refusal(drop: float, certainty: float, samples: int, nearly: bool) -> str:
    if nearly:
        return (
            f"{samples} validation samples are too few to tell with a certainty of {certainty:g} that early answers "
            f"keep the accuracy within {drop:g}: allow for a larger drop, give the split more samples, or lower the "
            "certainty (0.5 takes these samples at their word); what was trained is kept"
        )
    return (
        f"no thresholds keep the accuracy within {drop:g}: exits are wrong where they are surest; train them "
        "longer, put them later, or allow for a larger drop"
    )


def _lost(metric: Metric, held: Held, by: Array) -> Interval:
    """What the answers of these exits lose against the last one's, on the same samples."""
    last, given = {"scores": held.scores[-1]}, {"scores": answered(held.scores, by)}
    return metric.drop(last, given, held.labels, None, held.groups)


def _first(sure: Array, thresholds: Sequence[float]) -> Array:
    """The first exit that is sure enough of each sample; the last one if none is."""
    enough = sure >= np.asarray(thresholds)[:, None]
    return np.asarray(np.vstack([enough, np.ones((1, sure.shape[1]), bool)]).argmax(0))


def _levels(sure: Array) -> list[float]:
    """Thresholds between what exits are sure of, high ones first, so that no rounding moves a sample over one."""
    known = np.unique(sure[np.isfinite(sure)])
    between = (known[:-1] + known[1:]) / 2
    picks = np.linspace(0, len(between) - 1, min(MOST, len(between))).round().astype(int)
    levels = np.clip(np.round(between[picks], DIGITS), 0.0, 1.0)
    return sorted({0.0, *levels.tolist(), 1.0}, reverse=True)
