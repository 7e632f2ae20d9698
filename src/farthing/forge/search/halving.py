"""Successive halving: most networks are given up after a few epochs, and only promising ones are trained to the end.

As in ASHA (Li et al. 2020, https://arxiv.org/abs/1810.05934) nobody waits: whoever comes to a rung is compared with
those that were there before. With several goals (Schmucker et al. 2021, https://arxiv.org/abs/2106.12639) a network
competes with those that cost no more than it does; so the best of every price goes on, however cheap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

FACTOR = 3


class Standing(NamedTuple):
    """A network at a rung.

    Attributes:
        score: more is better.
        costs: less is better, each of them.
    """

    score: float
    costs: tuple[float, ...]


def rungs(epochs: int, factor: int = FACTOR) -> tuple[int, ...]:
    """The epochs after which networks are compared, each ``factor`` times later than the one before, the last the end.

    >>> rungs(18)
    (2, 6, 18)
    >>> rungs(2)
    (2,)
    """
    found = [epochs]
    while found[0] // factor >= 2:
        found.insert(0, found[0] // factor)
    return tuple(found)


def goes_on(one: Standing, others: Iterable[Standing], factor: int = FACTOR) -> bool:
    """Whether a network is among the best 1 / ``factor`` of those at its rung that cost no more than it; ties go on."""
    cheaper = [other for other in others if _within(other.costs, one.costs)]
    better = sum(other.score > one.score for other in cheaper)
    return better < max(1, math.ceil((len(cheaper) + 1) / factor))


def _within(costs: Sequence[float], limits: Sequence[float]) -> bool:
    return all(cost <= limit for cost, limit in zip(costs, limits, strict=True))


def front(all_of_them: Sequence[Standing]) -> list[int]:
    """Places of those that no other beats: none is as good in everything and better in something (Pareto)."""
    return [
        place for place, one in enumerate(all_of_them) if not any(_beats(other, one) for other in all_of_them)
    ]


def _beats(one: Standing, other: Standing) -> bool:
    return one != other and one.score >= other.score and _within(one.costs, other.costs)
