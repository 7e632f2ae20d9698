"""Who races whom: everything sprints, the best race again for longer, and against the fastest float32 models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from farthing.bench import Rule, Tick
from farthing.errors import FarthingError, RaceError
from farthing.forge.ladder.candidates import Times
from farthing.forge.ladder.climb import Artefact
from farthing.forge.timing import Clock, Lap, Variant
from farthing.measure import Scenario
from farthing.model import Model
from farthing.target import Budget

SPRINT = Rule(warmup=3, min_count=30, min_seconds=1.5, max_seconds=40.0)
FINAL = Rule(warmup=10, min_count=200, min_seconds=4.0, max_seconds=90.0)
FINALISTS = 5
Entrants = Sequence[tuple[Variant, Model]]
SLOW = 0.9


class Rounds:
    """The races of one search.

    Args:
        threads: thread counts in which each artefact races.
        allow_slower: what is clearly slower than the baseline may be a finalist.
        ticker: of a stage and a text, what hears how far a race is.
    """

    def __init__(
        self,
        clock: Clock,
        budget: Budget,
        threads: Sequence[int],
        allow_slower: bool,
        ticker: Callable[[str, str], Tick],
    ) -> None:
        self._clock = clock
        self._budget = budget
        self._threads = threads
        self._allow_slower = allow_slower
        self._ticker = ticker

    def times(self, base: Artefact, fit: list[Artefact]) -> Times:
        """Everything sprints; what is not clearly slower races again for longer, alone and in batches."""
        bases, rivals = self._variants([base]), self._variants(fit)
        exact = {variant for variant, _ in self._variants([a for a in [base, *fit] if a.rung.exact])}
        dropped: dict[Variant, str] = {}

        def race(rivals: Entrants, scenario: Scenario, rule: Rule, tick: Tick) -> list[Lap]:
            return self._survived(bases, rivals, scenario, rule, tick, dropped)

        sprint = race(rivals, "single_stream", SPRINT, self._ticker("race", "first timing"))
        chosen = self._finalists(sprint[len(bases) :], rivals) | _fastest_of_each_engine(sprint, exact)
        finalists = [(variant, model) for variant, model in rivals if variant in chosen]
        final = race(finalists, "single_stream", FINAL, self._ticker("final", "final timing"))
        finalists = [(variant, model) for variant, model in finalists if variant not in dropped]
        offline = race(finalists, "offline", SPRINT, self._ticker("final", "timing batches"))
        final = [lap for lap in final if lap.variant not in dropped]
        times = self._timed(final, {lap.variant: lap for lap in offline}, dropped, exact)
        times.finalists = {lap.variant for lap in final}
        times.laps += [lap for lap in sprint if lap.variant not in {*times.finalists, *dropped}]
        return times

    def everything(self, base: Artefact, fit: list[Artefact]) -> Times:
        """All race alike, once alone and once in batches: nobody is left out for being slow."""
        bases, rivals = self._variants([base]), self._variants(fit)
        exact = {variant for variant, _ in self._variants([a for a in [base, *fit] if a.rung.exact])}
        dropped: dict[Variant, str] = {}
        tick = self._ticker("race", "timing one sample at a time")
        single = self._survived(bases, rivals, "single_stream", SPRINT, tick, dropped)
        rivals = [(variant, model) for variant, model in rivals if variant not in dropped]
        tick = self._ticker("race", "timing batches")
        offline = self._survived(bases, rivals, "offline", SPRINT, tick, dropped)
        laps = [lap for lap in single if lap.variant not in dropped]
        return self._timed(laps, {lap.variant: lap for lap in offline}, dropped, exact)

    @staticmethod
    def _timed(
        laps: list[Lap], offline: dict[Variant, Lap], dropped: dict[Variant, str], exact: set[Variant]
    ) -> Times:
        """What laps of one race say, held against the fastest float32 ones among them."""
        floats = [lap for lap in laps if lap.variant in exact]
        return Times(
            laps=laps,
            offline=offline,
            dropped=dropped,
            over_float={lap.variant: lap.over(_fastest(floats)) for lap in laps},
            over_engine={
                lap.variant: lap.over(_fastest(own))
                for lap in laps
                if (own := [other for other in floats if _engine(other) == _engine(lap)])
            },
        )

    def _survived(
        self,
        bases: Entrants,
        rivals: Entrants,
        scenario: Scenario,
        rule: Rule,
        tick: Tick,
        dropped: dict[Variant, str],
    ) -> list[Lap]:
        """The laps of a race; who makes it fail is noted in ``dropped``, and the others race anew."""
        try:
            return self._clock.race(bases, rivals, scenario, rule, tick)
        except FarthingError as error:
            if self._clock.ends_all(error):
                raise
            if isinstance(error, RaceError):
                named = error.entrant - len(bases)
                if named < 0:  # without a baseline there is no race
                    raise
                dropped[rivals[named][0]] = str(error)
                rest = [*rivals[:named], *rivals[named + 1 :]]
                return self._survived(bases, rest, scenario, rule, tick, dropped)
            dropped |= self._culprits(bases, rivals, scenario, rule, tick)
        rivals = [(variant, model) for variant, model in rivals if variant not in dropped]
        return self._clock.race(bases, rivals, scenario, rule, tick)

    def _culprits(
        self, bases: Entrants, rivals: Entrants, scenario: Scenario, rule: Rule, tick: Tick
    ) -> dict[Variant, str]:
        """Of rivals that made a race fail those that do so alone, and how; halves race until they are found."""
        found: dict[Variant, str] = {}
        half = len(rivals) // 2
        parts = (rivals[:half], rivals[half:]) if half else (rivals,) if rivals else ()
        for part in parts:
            try:
                self._clock.race(bases, part, scenario, rule, tick)
            except FarthingError as error:
                if self._clock.ends_all(error):
                    raise
                if len(part) == 1:
                    found[part[0][0]] = str(error)
                else:
                    found |= self._culprits(bases, part, scenario, rule, tick)
        return found

    def _finalists(self, laps: Sequence[Lap], rivals: Sequence[tuple[Variant, Model]]) -> set[Variant]:
        """The fastest that are not clearly slower than the baseline; those that keep the size come first."""
        sizes = {variant.model: model.size_bytes / 1e6 for variant, model in rivals}
        limit = math.inf if self._budget.size_mb is None else self._budget.size_mb

        def rank(lap: Lap) -> tuple[float, float]:
            return max(0.0, sizes[lap.variant.model] - limit), -lap.speedup.value

        going = [lap for lap in laps if lap.speedup.high >= SLOW or self._allow_slower]
        return {lap.variant for lap in sorted(going, key=rank)[:FINALISTS]}

    def _variants(self, artefacts: Sequence[Artefact]) -> list[tuple[Variant, Model]]:
        return [
            (Variant(model=artefact.model.digest, runtime=artefact.runtime.threads(count)), artefact.model)
            for artefact in artefacts
            if artefact.model
            for count in self._threads
        ]


def _engine(lap: Lap) -> str:
    return lap.variant.runtime.engine


def _fastest(laps: Sequence[Lap]) -> Lap:
    return min(laps, key=lambda lap: lap.measurement.p50_ms)


def _fastest_of_each_engine(laps: Sequence[Lap], exact: set[Variant]) -> set[Variant]:
    """The fastest float32 variant of every engine."""
    floats = [lap for lap in laps if lap.variant in exact]
    return {
        _fastest([lap for lap in floats if _engine(lap) == engine]).variant for engine in map(_engine, floats)
    }
