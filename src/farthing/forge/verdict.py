"""Verdicts in words: why a candidate stays or goes, which one wins, and what the whole search found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from farthing.measure import Figures, Interval, compare, violations, within
from farthing.metrics import Metric
from farthing.recipe import Candidate
from farthing.target import BUDGET_NAMES, Budget

if TYPE_CHECKING:
    from farthing.forge.evaluate import Score

HARM = 0.97
ALIKE = 0.97
CONTINUOUS = {"cosine", "error"}  # one sample more or less right does not move them by a step


def points(value: float, metric: Metric) -> str:
    """A difference of the metric for people: points (hundredths) where it is a share, plain where it is an error."""
    if metric.higher_is_better:
        return f"{round(value * 100, 2) + 0.0:+.2f} points"  # + 0.0 turns -0.0 into 0.0
    return f"{value + 0.0:+.4g} {metric.name}"


def accuracy_refusal(score: Score, budget: Budget, metric: Metric) -> str:
    """Why the budget's accuracy limits rule a score out; empty if they do not."""
    if budget.accuracy_drop is not None and not within(score.drop.value, budget.accuracy_drop, least=False):
        sign = -1.0 if metric.higher_is_better else 1.0
        limit = points(sign * budget.accuracy_drop, metric)
        return f"rejected: {points(sign * score.drop.value, metric)} (limit {limit})"
    if budget.accuracy_min is not None and not within(score.accuracy.value, budget.accuracy_min, least=True):
        return f"rejected: {metric.name} {score.accuracy.value:.4f} (limit {budget.accuracy_min:g})"
    return ""


def hopeless(score: Score, budget: Budget) -> bool:
    """Whether a score on a few samples already rules a candidate out, its whole interval beyond the limit."""
    beyond_drop = budget.accuracy_drop is not None and score.drop.low > budget.accuracy_drop
    beneath = budget.accuracy_min is not None and score.accuracy.high < budget.accuracy_min
    return beyond_drop or beneath


def unresolved(samples: int, budget: Budget, metric: Metric) -> str:
    """A sentence if so few samples cannot show a drop as small as the limit; empty if they can."""
    limit = budget.accuracy_drop
    if not limit or metric.name in CONTINUOUS or not metric.higher_is_better or samples * limit >= 1 - 1e-9:
        return ""
    return (
        f"cannot tell whether accuracy_drop<={limit:g} holds: one of {samples} samples is "
        f"{100 / samples:.2f} points; give the task at least {math.ceil(1 / limit - 1e-9)} validation samples"
    )


def harmless(speedup: Interval | None) -> bool:
    """Do no harm: not measurably slower, and the lower 95 % bound of baseline / candidate p50 is at least 0.97."""
    return speedup is not None and speedup.low >= HARM and compare(speedup) != "worse"


def speed_words(speedup: Interval) -> str:
    """A ratio of p50s as people say it, or that it cannot be told from 1."""
    verdict = compare(speedup)
    if verdict == "same":
        return "the same speed"
    if verdict == "cannot tell":
        return f"cannot tell from the baseline's speed ({speedup.low:.2f}x..{speedup.high:.2f}x)"
    return f"{speedup.value:.2f}x"


def gains(candidate: Candidate, baseline: Candidate, budget: Budget) -> bool:
    """Whether a candidate is better than the baseline in something that counts.

    Nearer to the budget, if the baseline exceeds it; else, or if both are as far from it (by what could not be
    measured, say), surely faster, or at least one per cent smaller.
    """
    ours, theirs = _distance(candidate, budget), _distance(baseline, budget)
    if ours != theirs and theirs > (0, 0.0):
        return ours < theirs
    smaller = (candidate.figures.size_mb or 0) < 0.99 * (baseline.figures.size_mb or 0)
    faster = candidate.speedup is not None and compare(candidate.speedup) == "better"
    return faster or smaller


def _distance(candidate: Candidate, budget: Budget) -> tuple[int, float]:
    """How far figures are from a budget: limits exceeded, and by how much."""
    return len(violations(candidate.figures, budget)), excess(candidate.figures, budget)


def choose(candidates: Sequence[Candidate], budget: Budget) -> Candidate:
    """The best of some timed candidates.

    Of those that keep the budget, the fastest by p50; among those within 3 % of it, the smallest, then the most
    accurate. If none keeps it, the same among those that exceed the fewest limits, and these by the least.
    """
    nearest = min(_distance(candidate, budget) for candidate in candidates)
    kept = [candidate for candidate in candidates if _distance(candidate, budget) == nearest]
    fastest = max(_speed(candidate) for candidate in kept)
    close = [candidate for candidate in kept if _speed(candidate) >= ALIKE * fastest]
    return min(close, key=lambda c: (c.figures.size_mb or 0, c.figures.accuracy_drop or 0, -_speed(c)))


def excess(figures: Figures, budget: Budget) -> float:
    """By how much figures exceed a budget, as a sum over its limits, each relative to the limit."""
    total = 0.0
    for name in BUDGET_NAMES:
        limit = getattr(budget, name)
        value = getattr(figures, name.removesuffix("_min"))
        if limit is not None and value is not None:
            total += max(0.0, (limit - value if name.endswith("_min") else value - limit) / max(limit, 1e-9))
    return total


def _speed(candidate: Candidate) -> float:
    return candidate.speedup.value if candidate.speedup else 0.0


def sentence(
    baseline: Candidate,
    winner: Candidate,
    drop: Interval | None,
    split: str,
    metric: Metric,
    broken: Sequence[str],
) -> str:
    """The verdict in one sentence; ``broken`` are the limits it exceeds."""
    end = "the budget is met" if not broken else f"the budget is not met ({'; '.join(broken)})"
    if winner.number == baseline.number or winner.status == "baseline":
        return f"Nothing tried beats the model as it is: it is returned unchanged; {end}."
    ratio = (baseline.figures.size_mb or 0) / max(winner.figures.size_mb or 1e-9, 1e-9)
    parts = [f"{winner.name} in {winner.engine} with {winner.options}"]
    if winner.speedup:
        words = speed_words(winner.speedup)
        parts.append(f"{words} as fast" if words.endswith("x") else words)
    parts.append(f"{ratio:.2f}x smaller")
    if drop is not None:
        sign = -1.0 if metric.higher_is_better else 1.0
        low, high = sorted((sign * drop.low, sign * drop.high))
        spread = f"{points(low, metric)} to {points(high, metric)}"
        parts.append(f"{metric.name} {points(sign * drop.value, metric)} on {split} ({spread})")
    return f"{', '.join(parts)}: {end}."
