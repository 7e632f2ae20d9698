"""Where a search starts: of many networks drawn at random the most promising ones of every price."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from farthing.forge.families import Architecture
from farthing.forge.search.estimate import Estimator
from farthing.forge.search.space import OptionT, Space

PLENTY = 30  # drawn for each that is wanted, at most


def promising(
    space: Space,
    keeps: Callable[[Architecture], bool],
    estimator: Estimator,
    promise: Callable[[Architecture], float],
    pool: int,
    count: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Choices of networks to begin with, cheap ones first.

    Networks are drawn until ``pool`` of them keep the limits, sorted by multiply-accumulates, and cut into ``count``
    equal parts; the most promising of each part is taken.

    Args:
        space: where they come from.
        keeps: whether a network keeps the limits.
        estimator: of its costs.
        promise: what judges untrained networks: more is better.
        pool, count: how many are drawn, and how many are wanted.
        seed: of all that is random.
    """
    drawn = _drawn(space, keeps, pool, seed)
    drawn.sort(key=lambda pair: estimator.counted(pair[1]).macs)
    size = len(drawn) / max(1, count)
    parts = [drawn[round(n * size) : round((n + 1) * size)] for n in range(count)]
    return [max(part, key=lambda pair: promise(pair[1]))[0] for part in parts if part]


def _drawn(
    space: Space, keeps: Callable[[Architecture], bool], pool: int, seed: int
) -> list[tuple[dict[str, Any], Architecture]]:
    generator = random.Random(seed)  # noqa: S311  # no secret depends on it
    found = []
    for _ in range(PLENTY * pool):
        choice: dict[str, Any] = {}

        def choose(name: str, options: Sequence[OptionT], choice: dict[str, Any] = choice) -> OptionT:
            picked = generator.choice(options)
            choice[name] = picked
            return picked

        architecture = space.draw(choose)
        if keeps(architecture):
            found.append((choice, architecture))
        if len(found) == pool:
            break
    return found
