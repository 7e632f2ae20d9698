"""From artefacts and times to numbered candidates, each with its figures and a verdict; and the best of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

import farthing
from farthing.bench import Rule
from farthing.errors import EngineError, MeasurementError
from farthing.forge.cache import Cache, key_of
from farthing.forge.inspect import inspect
from farthing.forge.ladder.climb import Artefact
from farthing.forge.timing import Clock, Lap, Variant
from farthing.forge.verdict import choose, gains, harmless, speed_words
from farthing.measure import Figures, Interval, compare, violations
from farthing.model import Model
from farthing.recipe import Candidate, Listener, Progress
from farthing.target import Budget

OVER = "over budget: "


@dataclass
class Times:
    """What the races gave.

    Attributes:
        laps: the longest race of each variant, baselines first.
        offline: the same in batches, of finalists and baselines.
        dropped: who was taken out of the races, and why.
        finalists: who raced longest, baselines and the fastest float32 variant of each engine among them.
        over_float, over_engine: finalists against the fastest float32 variants, see `farthing.recipe.Candidate`.
    """

    laps: list[Lap] = field(default_factory=list)
    offline: dict[Variant, Lap] = field(default_factory=dict)
    dropped: dict[Variant, str] = field(default_factory=dict)
    finalists: set[Variant] = field(default_factory=set)
    over_float: dict[Variant, Interval] = field(default_factory=dict)
    over_engine: dict[Variant, Interval] = field(default_factory=dict)

    def of(self, artefact: Artefact) -> list[Lap]:
        """The laps of an artefact."""
        return [lap for lap in self.laps if _is_of(lap.variant, artefact)]

    def dropped_of(self, artefact: Artefact) -> list[Variant]:
        """The variants of an artefact that were taken out of the races."""
        return [variant for variant in self.dropped if _is_of(variant, artefact)]


def _is_of(variant: Variant, artefact: Artefact) -> bool:
    if artefact.model is None:
        return False
    return variant.with_threads(1) == Variant(model=artefact.model.digest, runtime=artefact.runtime)


class Listing:
    """The candidates of one search.

    Args:
        allow_slower: a slower candidate is not rejected for it.
        here: whether the target is this machine, so that what is measured here counts for the budget.
        energy_rule: how long to measure energy, if the budget limits it.
        where: the machine that measures, in words: ``on this machine``.
        cache: keeps how many operators a model has.
    """

    def __init__(
        self,
        budget: Budget,
        clock: Clock,
        allow_slower: bool,
        here: bool,
        energy_rule: Rule,
        where: str = "on this machine",
        cache: Cache | None = None,
    ) -> None:
        self._budget = budget
        self._clock = clock
        self._allow_slower = allow_slower
        self._here = here
        self._energy_rule = energy_rule
        self.where = where
        self._cache = cache
        self._nodes: dict[str, int | None] = {}
        self.candidates: list[Candidate] = []
        self.notes: list[str] = []

    def fill(self, base: Artefact, made: Sequence[Artefact], times: Times, listener: Listener) -> None:
        """Every artefact and thread count becomes a candidate, the fastest baseline first."""
        for own in sorted(times.of(base), key=lambda lap: lap.measurement.p50_ms):
            self._add(base, own, times, listener)
        for artefact in made:
            laps = [] if artefact.refusal else times.of(artefact)
            dropped = [] if artefact.refusal else times.dropped_of(artefact)
            for lap in laps:
                self._add(artefact, lap, times, listener)
            for variant in dropped:
                failed = dataclasses.replace(
                    artefact,
                    runtime=variant.runtime,
                    refusal=f"failed: {times.dropped[variant]}",
                    failed=True,
                )
                self._add(failed, None, times, listener)
            if not laps and not dropped:
                self._add(artefact, None, times, listener)

    def _add(self, artefact: Artefact, lap: Lap | None, times: Times, listener: Listener) -> None:
        is_base = artefact.rung.name == "baseline"
        finalist = lap is not None and lap.variant in times.finalists
        offline = times.offline.get(lap.variant) if lap else None
        runtime = lap.variant.runtime if lap else artefact.runtime
        candidate = Candidate(
            name=artefact.rung.name,
            number=len(self.candidates),
            steps=artefact.steps or artefact.rung.steps,
            engine=runtime.engine,
            options=runtime.options,
            exact=artefact.rung.exact,
            model=artefact.model.digest if artefact.model else "",
            nodes=self._node_count(artefact.model) if artefact.model else None,
            figures=self._figures(artefact, lap, offline, finalist),
            accuracy=artefact.score.accuracy if artefact.score else None,
            drop=artefact.score.drop if artefact.score else None,
            speedup=lap.speedup if lap else None,
            offline_speedup=offline.speedup if offline else None,
            over_float=times.over_float.get(lap.variant) if lap else None,
            over_engine=times.over_engine.get(lap.variant) if lap else None,
            measurements={
                **({"single_stream": lap.measurement} if lap else {}),
                **({"offline": offline.measurement} if offline else {}),
            },
            status="baseline" if is_base else "failed" if artefact.failed else "rejected",
            verdict="the model as given" if is_base else artefact.refusal,
        )
        if not is_base and not artefact.refusal:
            candidate = self._judged(candidate, finalist)
        self.candidates.append(candidate)
        text = f"{candidate.name}, {candidate.engine}, {candidate.options}: {candidate.verdict}"
        listener(Progress(stage="candidate", text=text, candidate=candidate))

    def _node_count(self, model: Model) -> int | None:
        """Operators in a model's graph, read from its file once; None where its format does not tell."""

        def look() -> int:
            return inspect(model, run=False).nodes

        if model.digest not in self._nodes:
            key = key_of("nodes", model.digest, farthing.__version__)
            self._nodes[model.digest] = (self._cache.value(key, int, look) if self._cache else look()) or None
        return self._nodes[model.digest]

    def _figures(self, artefact: Artefact, lap: Lap | None, offline: Lap | None, finalist: bool) -> Figures:
        """What the budget is held against; what was measured on another machine than the target is left out."""
        figures = Figures(
            accuracy=artefact.score.accuracy.value if artefact.score else None,
            accuracy_drop=artefact.score.drop.value if artefact.score else None,
            size_mb=artefact.model.size_bytes / 1e6 if artefact.model else None,
        )
        if lap is None or artefact.model is None or not self._here:
            return figures
        return replace(
            figures,
            latency_ms=lap.measurement.p90_ms,
            throughput=offline.measurement.throughput if offline else None,
            peak_memory_mb=self._memory(artefact, lap) if finalist else None,
            energy_mj=self._energy(artefact, lap) if finalist else None,
        )

    def _memory(self, artefact: Artefact, lap: Lap) -> float | None:
        try:
            return self._clock.memory(lap.variant, artefact.model)[0] if artefact.model else None
        except (EngineError, MeasurementError) as error:
            self.notes.append(f"The peak memory of {artefact.rung.name} could not be measured: {error}")
            return None

    def _energy(self, artefact: Artefact, lap: Lap) -> float | None:
        if artefact.model is None or self._budget.energy_mj is None:
            return None
        return self._clock.energy(lap.variant, artefact.model, self._energy_rule)

    def _judged(self, candidate: Candidate, finalist: bool) -> Candidate:
        """The verdict on a candidate whose accuracy is good enough."""
        speedup = candidate.speedup
        if speedup is None:
            return replace(candidate, verdict="rejected: it was not timed")
        if not harmless(speedup) and not self._allow_slower:
            spread = f"{speedup.low:.2f}x..{speedup.high:.2f}x"
            word = speed_words(speedup) if compare(speedup) == "worse" else f"may be slower ({spread})"
            return replace(candidate, verdict=f"rejected: {word} {self.where}")
        if not finalist:
            return replace(candidate, verdict=f"rejected: {speedup.value:.2f}x, others are faster")
        return self._against_budget(candidate)

    def _against_budget(self, candidate: Candidate) -> Candidate:
        """The verdict on a finalist: over the budget, no better than the baseline in anything, or accepted."""
        broken = violations(candidate.figures, self._budget)
        if broken:
            return replace(candidate, status="rejected", verdict=f"{OVER}{'; '.join(broken)}")
        if not gains(candidate, self.candidates[0], self._budget):
            return replace(candidate, status="rejected", verdict="rejected: neither faster nor smaller")
        speed = speed_words(candidate.speedup) if candidate.speedup else "not timed"
        return replace(candidate, status="accepted", verdict=f"accepted: {speed}")

    def best(self) -> Candidate:
        """The best candidate still in, or the baseline.

        Where the baseline itself exceeds the budget, a candidate that comes nearer to it will do.
        """
        base = self.candidates[0]
        left = [
            candidate
            for candidate in self.candidates
            if (candidate.status == "accepted" or candidate.verdict.startswith(OVER))
            and gains(candidate, base, self._budget)
            and not (candidate.status == "rejected" and not violations(base.figures, self._budget))
        ]
        return choose(left, self._budget) if left else base

    def timed_again(self, candidate: Candidate, p90_ms: float) -> Candidate:
        """Hold a candidate to the worse of both its p90s, and against the budget once more."""
        if candidate.figures.latency_ms is None:
            return candidate
        figures = replace(candidate.figures, latency_ms=max(candidate.figures.latency_ms, p90_ms))
        again = self._against_budget(replace(candidate, figures=figures))
        self.candidates[candidate.number] = again
        return again

    def settle(self, candidate: Candidate, refusal: str = "") -> Candidate:
        """Make a candidate the winner, or reject it for what a second look found."""
        speed = f": {speed_words(candidate.speedup)}" if candidate.speedup else ""
        settled = replace(
            candidate,
            status="rejected" if refusal else "winner",
            verdict=refusal or f"winner{speed}",
        )
        self.candidates[candidate.number] = settled
        return settled
