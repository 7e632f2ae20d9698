"""The end of a search: networks that no other beats, as they will run; and which of them is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from farthing.config import Section
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.forge.evaluate import Judge
from farthing.forge.runtime import Runtime
from farthing.forge.search.deployment import Deployment
from farthing.forge.search.explore import Tried
from farthing.forge.search.halving import Standing, front
from farthing.forge.verdict import accuracy_refusal
from farthing.measure import Interval
from farthing.model import Model
from farthing.recipe import Step
from farthing.target import Budget, Target
from farthing.task import Task

Prefer = Literal["speed", "accuracy"]
MOST = 8
NEAR = 1.05  # times the shortest predicted time: predictions differ from measurements by that much


class Finalist(Section, frozen=True, kw_only=True):
    """A network that no other beats, as it is deployed.

    Attributes:
        tried: how it came here.
        steps: what made the file, from the network as trained.
        digest, size_bytes: of that file's model.
        accuracy: the metric on validation in the engine.
        drop: what it lost against the model as given; without one against the most accurate finalist in float.
        refusal: why it may not be chosen; empty if it may.
    """

    tried: Tried
    steps: tuple[Step, ...]
    digest: str
    size_bytes: int
    accuracy: Interval
    drop: Interval
    refusal: str = ""


class Made(NamedTuple):
    """A finalist and its models: as trained, and as deployed."""

    finalist: Finalist
    trained: Model
    deployed: Model


def best_of(able: Sequence[Tried], least: float | None) -> list[Tried]:
    """Networks that no other beats in score, time and size: those that reach a score first, cheap ones first."""
    standings = [Standing(one.score or 0.0, one.estimate.costs) for one in able]
    found = [able[place] for place in front(standings)]
    goal = max(standing.score for standing in standings) if least is None else least
    return sorted(found, key=lambda one: (max(0.0, goal - (one.score or 0.0)), one.estimate.costs))[:MOST]


class Jury:
    """Makes networks ready for their engine, and scores them there.

    Args:
        judge: knows the model they are compared with.
        runtime: what runs them.
        accuracy_drop: most that they may lose.
    """

    def __init__(
        self,
        judge: Judge,
        deployment: Deployment,
        runtime: Runtime,
        target: Target,
        task: Task,
        cache: Cache,
        accuracy_drop: float,
    ) -> None:
        self._judge, self._deployment, self._runtime = judge, deployment, runtime
        self._target, self._task, self._cache = target, task, cache
        self._budget = Budget(accuracy_drop=accuracy_drop)

    def judged(self, tried: Tried, model: Model) -> Made:
        """A network's verdict.

        Args:
            tried: the network.
            model: as it was trained.

        Raises:
            FarthingError: it cannot be made ready, or does not run.
        """
        deployed, steps = apply(self._deployment.steps, model, self._target, self._task, self._cache)
        score = self._judge.score(deployed, "validation", runtime=self._runtime)
        finalist = Finalist(
            tried=tried,
            steps=steps,
            digest=deployed.digest,
            size_bytes=deployed.size_bytes,
            accuracy=score.accuracy,
            drop=score.drop,
            refusal=accuracy_refusal(score, self._budget, self._task.metric),
        )
        return Made(finalist, model, deployed)


def ranked(made: Sequence[Made], prefer: Prefer = "speed") -> list[Made]:
    """The chosen one first, then the others in order of preference; those that may not be chosen last.

    Args:
        made: the finalists.
        prefer: ``speed``: the fastest comes first, of several about as fast the most accurate; ``accuracy``: the most
            accurate.
    """
    fit = [one for one in made if not one.finalist.refusal]
    fastest = min((one.finalist.tried.estimate.costs[0] for one in fit), default=0.0)
    nearly = NEAR * fastest if prefer == "speed" else math.inf

    def rank(one: Made) -> tuple[object, ...]:
        finalist = one.finalist
        time, size = finalist.tried.estimate.costs
        if finalist.refusal:
            return 2, finalist.drop.value, size
        return (0, finalist.drop.value, size) if time <= nearly else (1, time, size)

    return sorted(made, key=rank)
