"""Time candidates against the baseline, interleaved, and keep the figures."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from farthing import bench
from farthing.bench import Rule, Tick
from farthing.bench.machine import Here, Machine
from farthing.config import Section
from farthing.errors import FarthingError, LinkError, MeasurementError, StorageError
from farthing.forge.cache import Cache, key_of
from farthing.forge.runtime import Runtime
from farthing.measure import Interval, Measurement, Scenario, ratio_of_medians
from farthing.model import Model
from farthing.task import Task


class Variant(Section, frozen=True, kw_only=True):
    """What is timed: a model, by digest, and what runs it."""

    model: str
    runtime: Runtime

    def with_threads(self, count: int) -> Variant:
        """The same with so many threads."""
        return Variant(model=self.model, runtime=self.runtime.threads(count))


class Lap(Section, frozen=True, kw_only=True):
    """A variant's figures in a race.

    Attributes:
        speedup: how many times faster it is than the fastest baseline of the same race.
        rounds: its median time in each round, seconds.
    """

    variant: Variant
    measurement: Measurement
    speedup: Interval
    rounds: tuple[float, ...]

    def over(self, slower: Lap) -> Interval:
        """How many times faster this is than another of the same race."""
        return ratio_of_medians(np.column_stack([slower.rounds, self.rounds]))


class Energy(Section, frozen=True, kw_only=True):
    """Energy of one inference; None where no meter counted it."""

    millijoules: float | None


class Clock:
    """Races models of one task on one machine.

    Args:
        machine: where; figures are kept under what it is.
        again: measure even what the cache knows.
    """

    def __init__(self, task: Task, machine: Machine, cache: Cache, again: bool = False) -> None:
        self._task = task
        self._machine = machine
        self._cache = cache
        self._again = again

    def race(
        self,
        baselines: Sequence[tuple[Variant, Model]],
        rivals: Sequence[tuple[Variant, Model]],
        scenario: Scenario,
        rule: Rule,
        tick: Tick | None = None,
    ) -> list[Lap]:
        """Time all of them together; the baselines' laps come first.

        Raises:
            EngineError: one of them does not load or run.
        """
        entrants = [*baselines, *rivals]
        names = [variant for variant, _ in entrants]
        key = self._key("race", scenario, names, len(baselines), rule, self._task.digest)
        return self._cache.value(
            key, list[Lap], lambda: self._time(entrants, len(baselines), scenario, rule, tick), self._again
        )

    def _time(
        self,
        entrants: Sequence[tuple[Variant, Model]],
        bases: int,
        scenario: Scenario,
        rule: Rule,
        tick: Tick | None,
    ) -> list[Lap]:
        order = [(model, variant.runtime.engine, variant.runtime.options) for variant, model in entrants]
        prepare = bench.prepare_ms(entrants[0][1].manifest, self._task)
        batch = bench.offline_batch(entrants[0][1].manifest, self._task) if scenario == "offline" else 1
        raced = bench.race_models(order, scenario, self._task, batch, rule, self._machine, tick)
        best = min((timed for _, timed in raced[:bases]), key=lambda timed: float(np.median(timed.calls)))
        return [
            Lap(
                variant=variant,
                measurement=measured.merged(prepare_ms=prepare),
                speedup=timed.over(best),
                rounds=tuple(timed.rounds),
            )
            for (variant, _), (measured, timed) in zip(entrants, raced, strict=True)
        ]

    def trial(self, variant: Variant, model: Model) -> None:
        """Run a model on this machine in a process of its own first: what crashes there would end the search here.

        A board's worker is such a process already.

        Raises:
            EngineError: that process was killed by a signal.
        """
        if isinstance(self._machine, Here):
            with contextlib.suppress(MeasurementError):  # it shows later whether it runs
                self._peak(variant, model, again=False)

    def ends_all(self, error: FarthingError) -> bool:
        """Whether an error concerns more than one candidate: nothing can be written, or the machine does not answer."""
        if isinstance(error, LinkError):
            try:
                self._machine.temperature()
            except FarthingError:
                return True
        return isinstance(error, StorageError)

    def memory(self, variant: Variant, model: Model) -> tuple[float, float]:
        """Peak memory of a process that runs the variant, as `farthing.bench.peak_memory` gives it."""
        return self._peak(variant, model, self._again)

    def _peak(self, variant: Variant, model: Model, again: bool) -> tuple[float, float]:
        runtime = variant.runtime
        return self._cache.value(
            self._key("memory", variant),
            tuple[float, float],
            lambda: self._machine.peak_memory(model, runtime.engine, runtime.options),
            again,
        )

    def energy(self, variant: Variant, model: Model, rule: Rule) -> float | None:
        """Millijoules of one inference, single stream; None where the machine has no meter."""
        if not self._machine.meter:
            return None
        key = self._key("energy", variant, rule, self._task.digest)
        return self._cache.value(
            key, Energy, lambda: self._energy(variant, model, rule), self._again
        ).millijoules

    def _energy(self, variant: Variant, model: Model, rule: Rule) -> Energy:
        with variant.runtime.load(model, self._machine)[0] as engine:
            samples = bench.sample_feeds(model.manifest, 1, self._task)
            size = bench.batch_size(model.manifest, 1)
            return Energy(millijoules=self._machine.metered((engine, samples), size, rule)[1])

    def _key(self, *parts: object) -> str:
        return key_of(*parts, self._machine.target)
