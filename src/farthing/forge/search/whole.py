"""Finalists of a search timed whole, beside what they are compared with; and the one look at the test split."""

from __future__ import annotations

from msgspec.structs import replace

from farthing.errors import NotInstalled
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.forge.evaluate import Judge
from farthing.forge.ladder import rounds
from farthing.forge.runtime import Runtime
from farthing.forge.search.architecture import ARITHMETIC
from farthing.forge.search.deployment import Deployment, Number
from farthing.forge.search.found import Raced
from farthing.forge.search.run import SUITED, Outcome
from farthing.forge.timing import Clock, Lap, Variant
from farthing.forge.workshop import Workshop
from farthing.measure import Interval
from farthing.model import Model
from farthing.recipe import Progress
from farthing.target import Target
from farthing.task import Task

Entrant = tuple[Variant, Model]


class Whole:
    """Times and scores what a search found.

    Args:
        model: what the networks are compared with; None compares with the chosen one in float32.
    """

    def __init__(
        self, model: Model | None, target: Target, task: Task, workshop: Workshop, cache: Cache
    ) -> None:
        self._model, self._target, self._task = model, target, task
        self._workshop, self._machine, self._cache = workshop, workshop.machine, cache

    def raced(self, outcome: Outcome, number: Number) -> tuple[tuple[Raced, ...], tuple[Raced, ...]]:
        """Float32 forms of what is compared with, and the finalists, timed together; nothing without an engine."""
        if outcome.engine == ARITHMETIC:
            return (), ()
        self._workshop.listener(Progress(stage="final", text="timing the finalists whole"))
        bases = self._floats(outcome)
        rivals = [(_variant(outcome.runtime, made.deployed), made.deployed) for made in outcome.finalists]
        clock = Clock(self._task, self._machine, self._cache)
        single = clock.race(bases, rivals, "single_stream", rounds.FINAL)
        offline = clock.race(bases, rivals, "offline", rounds.SPRINT)
        names = [self._model.manifest.name if self._model else str(outcome.chosen)] * len(bases)
        names += [str(made.finalist.tried.architecture) for made in outcome.finalists]
        entrants = zip(names, [*bases, *rivals], single, offline, strict=True)
        every = [_entry(name, model, number, one, many) for name, (_, model), one, many in entrants]
        floats = [replace(one, number="float32") for one in every[: len(bases)]]
        return tuple(floats), tuple(every[len(bases) :])

    def _floats(self, outcome: Outcome) -> list[Entrant]:
        """What networks are compared with, in float32, in every engine that suits small networks."""
        model, found = self._model or outcome.finalists[0].trained, []
        for name in dict.fromkeys([outcome.runtime.engine, *SUITED]):
            if self._target.engines and name not in self._target.engines:
                continue
            try:
                runtime = Runtime(engine=name, version=self._machine.version(name))
            except NotInstalled:
                continue
            if model.manifest.format == "onnx":
                steps = Deployment(engine=name, number="float32").steps
                made, _ = apply(steps, model, self._target, self._task, self._cache)
                found.append((_variant(runtime, made), made))
        return found or [(_variant(Runtime.of(model, "", self._machine), model), model)]

    def tested(self, outcome: Outcome) -> tuple[Interval | None, Interval | None]:
        """The chosen network's score on the test split, seen once, and its drop against the model as given."""
        if "test" not in self._task.splits:
            return None, None
        chosen = outcome.finalists[0]
        against = self._model or chosen.trained
        judge = Judge(self._task, against, Runtime.of(against, "", self._machine), self._machine, self._cache)
        score = judge.score(chosen.deployed, "test", runtime=outcome.runtime)
        return score.accuracy, score.drop if self._model else None


def _variant(runtime: Runtime, model: Model) -> Variant:
    return Variant(model=model.digest, runtime=runtime)


def _entry(name: str, model: Model, number: Number, single: Lap, offline: Lap) -> Raced:
    return Raced(
        name=name,
        engine=single.variant.runtime.engine,
        number=number,
        size_mb=model.size_bytes / 1e6,
        single=single.measurement,
        offline=offline.measurement,
        speedup=single.speedup,
        offline_speedup=offline.speedup,
    )
