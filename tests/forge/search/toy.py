"""A search whose trainings take no time: a network's score follows from its size. Run as a script, it can be killed."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from farthing.forge.families import Architecture
from farthing.forge.search.estimate import Estimator, Limits
from farthing.forge.search.explore import AfterEpoch, Explorer, Plan, Tried
from farthing.forge.search.space import Space
from farthing.forge.search.start import promising
from farthing.recipe import ignore

SHAPE, OUTPUTS = (1, 16, 16), 10
PLAN = Plan(space=Space.of(SHAPE), limits=Limits(macs=3e5), trials=16, epochs=9, least=0.5, startup=3)


def score(module: Any, done: bool = True) -> float:
    """More parameters and more epochs are better, each less and less; some families and kernels are better."""
    architecture, epoch = module
    quality = {"plain": 0.9, "dscnn": 1.0, "resnet": 0.95, "mobilenet": 0.8}[architecture.family]
    quality -= 0.02 * sum(stage.kernel == 5 for stage in architecture.stages)
    return quality * (1 - 1 / math.log(architecture.cost(SHAPE, OUTPUTS).parameters)) * (1 - 0.3 / epoch)


def explorer(
    place: Path, plan: Plan = PLAN, pause: float = 0.0, seen: Callable[[str], None] = ignore, **options: Any
) -> Explorer:
    estimator = Estimator(SHAPE, OUTPUTS)

    def first(space: Space, keeps: Callable[[Architecture], bool]) -> Sequence[dict[str, Any]]:
        def largest(architecture: Architecture) -> float:
            return float(architecture.cost(SHAPE, OUTPUTS).parameters)

        return promising(space, keeps, estimator, largest, pool=12, count=3, seed=0)

    def train(architecture: Architecture, state: Path, after: AfterEpoch) -> None:
        seen(str(architecture))
        for epoch in range(1, plan.epochs + 1):
            time.sleep(pause)
            after(epoch, (architecture, epoch))  # type: ignore[arg-type]

    return Explorer(place, plan, estimator, first, train, score, ignore, **options)


def words(tried: Sequence[Tried]) -> list[list[object]]:
    """What matters of a search: the networks in their order, how far they came, and what they scored."""
    return [[str(one.architecture), one.epochs, one.score, bool(one.refusal)] for one in tried]


if __name__ == "__main__":
    trained: list[str] = []
    found = explorer(Path(sys.argv[1]), pause=float(sys.argv[2]), seen=trained.append).run()
    sys.stdout.write(json.dumps({"tried": words(found), "trained": trained}))
