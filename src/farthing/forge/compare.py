"""Two searches side by side: what changed, and by how much where machine and conditions allow a ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from farthing.config import Section
from farthing.errors import ModelError
from farthing.forge.output import read_summary
from farthing.measure import Interval, Measurement
from farthing.recipe import Candidate, Summary

DRIFT = 0.1
"""Most that the common baseline's p50 may differ between the searches: more is a machine in another state."""
WARMER = 10.0
SAME_RATIO, SAME_SHARE = 0.03, 0.005


class Side(Section, frozen=True, kw_only=True):
    """One of the two searches."""

    place: str
    model: str
    task: str
    winner: str
    engine: str
    options: str
    sentence: str
    met: bool
    machine: str
    when: str
    versions: dict[str, str]


class Figure(Section, frozen=True, kw_only=True):
    """A figure of both winners.

    Attributes:
        name, unit: what it is; ``share`` is of 1, a gap of it is points.
        before, after: its values, with intervals where they have one.
        change: ``after`` less ``before`` for shares, else how many times better it became; None if they may not be
            compared, and then ``why`` says so.
        verdict: ``better``, ``worse``, ``same`` or ``cannot tell``; empty without a change.
    """

    name: str
    unit: str
    before: Interval | None = None
    after: Interval | None = None
    change: Interval | None = None
    verdict: str = ""
    why: str = ""


class Moved(Section, frozen=True, kw_only=True):
    """A candidate that ended otherwise; an empty verdict means that it was not there."""

    name: str
    engine: str
    options: str
    before: str = ""
    after: str = ""


class Comparison(Section, frozen=True, kw_only=True):
    """What changed from one search to another.

    Attributes:
        first, second: the searches.
        conditions: what differs between them: machine, data, versions ...; a sentence each.
        figures: of the winners.
        appeared, vanished: candidates that only one of them has.
        changed: candidates whose status differs.
        alike: how many ended the same way.
    """

    first: Side
    second: Side
    conditions: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    appeared: tuple[Moved, ...] = ()
    vanished: tuple[Moved, ...] = ()
    changed: tuple[Moved, ...] = ()
    alike: int = 0


def compare(first: Path, second: Path) -> Comparison:
    """Compare the results of two searches, the earlier one first.

    Raises:
        FarthingError: as `farthing.forge.output.read_summary`.
    """
    return compared(read_summary(first), read_summary(second), str(first), str(second))


def compared(first: Summary, second: Summary, one: str = "first", other: str = "second") -> Comparison:
    """Compare two summaries; ``one`` and ``other`` name them."""
    pair = _Pair(first, second)
    before, after = _by_key(first), _by_key(second)
    both = [key for key in before if key in after]
    changed = [(before[key], after[key]) for key in both if before[key].status != after[key].status]
    return Comparison(
        first=_side(first, one),
        second=_side(second, other),
        conditions=tuple(pair.conditions()),
        figures=tuple(figure for figure in pair.figures() if figure.before or figure.after),
        appeared=tuple(_moved(None, c) for key, c in after.items() if key not in before),
        vanished=tuple(_moved(c, None) for key, c in before.items() if key not in after),
        changed=tuple(_moved(a, b) for a, b in changed),
        alike=len(both) - len(changed),
    )


def winner_of(summary: Summary) -> Candidate:
    """The candidate that won."""
    return summary.candidates[summary.winner]


def _side(summary: Summary, place: str) -> Side:
    winner = winner_of(summary)
    return Side(
        place=place,
        model=summary.model_name,
        task=summary.task_name,
        winner=winner.name,
        engine=winner.engine,
        options=str(winner.options),
        sentence=summary.sentence,
        met=summary.met,
        machine=summary.machine,
        when=summary.when,
        versions=summary.versions,
    )


def _by_key(summary: Summary) -> dict[tuple[str, str, str], Candidate]:
    return {(c.name, c.engine, str(c.options)): c for c in summary.candidates}


def _moved(before: Candidate | None, after: Candidate | None) -> Moved:
    one = before or after
    if one is None:
        raise ModelError("a candidate that neither search has cannot have changed")
    return Moved(
        name=one.name,
        engine=one.engine,
        options=str(one.options),
        before=(before.verdict or before.status) if before else "",
        after=(after.verdict or after.status) if after else "",
    )


class _Kind(NamedTuple):
    """A figure of a winner, and whether more of it is better."""

    name: str
    unit: str
    of: Callable[[Candidate], float | None]
    more: bool
    timed: bool
    gain: Callable[[Candidate], Interval | None] = lambda candidate: None


def _single(name: str) -> Callable[[Candidate], float | None]:
    def figure(candidate: Candidate) -> float | None:
        measured = candidate.measurements.get("single_stream")
        return None if measured is None else getattr(measured, name)

    return figure


_KINDS = (
    _Kind("latency p50", "ms", _single("p50_ms"), False, True, lambda c: c.speedup),
    _Kind("latency p90", "ms", _single("p90_ms"), False, True),
    _Kind("throughput", "samples/s", lambda c: c.figures.throughput, True, True, lambda c: c.offline_speedup),
    _Kind("peak memory", "MB", lambda c: c.figures.peak_memory_mb, False, True),
    _Kind("energy", "mJ", lambda c: c.figures.energy_mj, False, True),
    _Kind("size", "MB", lambda c: c.figures.size_mb, False, False),
)


class _Pair:
    """Two searches, and what may be said of both."""

    def __init__(self, first: Summary, second: Summary) -> None:
        self.first, self.second = first, second
        self.winners = winner_of(first), winner_of(second)
        self.bases = first.candidates[0], second.candidates[0]
        self.same_model = self.bases[0].model == self.bases[1].model != ""
        self.same_data = (first.task_name, first.metric, first.samples) == (
            second.task_name,
            second.metric,
            second.samples,
        )

    def conditions(self) -> list[str]:
        """What differs, a sentence each."""
        first, second = self.first, self.second
        found = []
        if first.machine != second.machine:
            found.append(f"machine: {first.machine or 'not known'}; then {second.machine or 'not known'}")
        if not self.same_model:
            found.append(f"the model as given is another file: {first.model_name}; then {second.model_name}")
        if not self.same_data:
            found.append(f"data: {_data(first)}; then {_data(second)}")
        if first.budget != second.budget:
            found.append(f"budget: {first.budget}; then {second.budget}")
        for name in sorted({*first.versions, *second.versions}):
            was, now = first.versions.get(name, "absent"), second.versions.get(name, "absent")
            if was != now:
                found.append(f"{name} {was}; then {now}")
        return found + self._state()

    def _state(self) -> list[str]:
        """Signs that the machine was in another state."""
        found = []
        drift = self._drift()
        if drift is not None and abs(math.log(drift)) > math.log(1 + DRIFT):
            found.append(f"the baseline, the same in both, took {drift:.2f} times as long the second time")
        heat = [m.temperature_c for c in self.winners if (m := _measured(c)) and m.temperature_c is not None]
        if len(heat) == 2 and abs(heat[1] - heat[0]) > WARMER:
            found.append(f"temperature: {heat[0]:.0f} degrees Celsius; then {heat[1]:.0f}")
        return found

    def _drift(self) -> float | None:
        """How many times as long the common baseline took the second time."""
        old, new = _measured(self.bases[0]), _measured(self.bases[1])
        if old is None or new is None or not self._same_baseline() or not old.p50_ms:
            return None
        return new.p50_ms / old.p50_ms

    def _same_baseline(self) -> bool:
        return self.same_model and all(
            (base.engine, base.options) == (self.bases[0].engine, self.bases[0].options)
            for base in self.bases
        )

    def _refusal(self) -> str:
        """Why times of the two searches may not be divided; empty if they may."""
        if not self.first.machine or self.first.machine != self.second.machine:
            return "on different machines"
        if not self._same_baseline():
            return "no common baseline to hold them against"
        drift = self._drift()
        if drift is None:
            return "the baseline was not timed"
        if abs(math.log(drift)) > math.log(1 + DRIFT):
            return "the machine was in another state"
        return ""

    def figures(self) -> list[Figure]:
        """Accuracy first, then what was measured."""
        return [*self._accuracies(), *(self._figure(kind) for kind in _KINDS)]

    def _accuracies(self) -> list[Figure]:
        tests = [test.winner if test else None for test in (self.first.test, self.second.test)]
        seen = self._accuracy("validation", self.winners[0].accuracy, self.winners[1].accuracy)
        return [seen, self._accuracy("test", tests[0], tests[1])]

    def _accuracy(self, split: str, before: Interval | None, after: Interval | None) -> Figure:
        bare = Figure(name=f"{self.second.metric}, {split}", unit="share", before=before, after=after)
        if before is None or after is None:
            return bare
        if not self.same_data:
            return replace(bare, why="on other data")
        if self._same_artefact() and before == after:
            return replace(bare, change=_point(0.0), verdict="same")
        gap = after.value - before.value
        half = math.hypot(_half(before), _half(after))
        change = Interval(value=gap, low=gap - half, high=gap + half)
        sign = 1 if self.second.higher_is_better else -1
        return replace(bare, change=change, verdict=_verdict(change, 0.0, sign, SAME_SHARE))

    def _same_artefact(self) -> bool:
        """Whether both winners are one file in one engine: it answers the same to the same data."""
        runs = [(m.engine, m.engine_version) for c in self.winners if (m := _measured(c))]
        same = self.winners[0].model == self.winners[1].model != ""
        return same and len(runs) == 2 and runs[0] == runs[1]

    def _figure(self, kind: _Kind) -> Figure:
        before, after = (kind.of(candidate) for candidate in self.winners)
        bare = Figure(name=kind.name, unit=kind.unit, before=_point(before), after=_point(after))
        if not before or not after:
            return bare
        refusal = self._refusal() if kind.timed else ""
        if refusal:
            return replace(bare, why=refusal)
        gains = [kind.gain(candidate) for candidate in self.winners]
        if gains[0] and gains[1]:  # each was timed in turns with the common baseline: drift cancels
            change = _ratio(gains[1], gains[0])
        else:
            value = after / before if kind.more else before / after
            change = Interval(value=value, low=value, high=value)
        if kind.timed and not (gains[0] and gains[1]):
            return replace(bare, change=change, why="no interval")
        return replace(bare, change=change, verdict=_verdict(change, 1.0, 1, SAME_RATIO))


def _data(summary: Summary) -> str:
    sizes = ", ".join(f"{name} {amount:,}" for name, amount in summary.samples.items())
    return f"{summary.task_name} by {summary.metric} ({sizes})"


def _measured(candidate: Candidate) -> Measurement | None:
    return candidate.measurements.get("single_stream")


def _point(value: float | None) -> Interval | None:
    return None if value is None else Interval(value=value, low=value, high=value)


def _half(interval: Interval) -> float:
    return max(interval.high - interval.value, interval.value - interval.low)


def _ratio(one: Interval, other: Interval) -> Interval:
    """One gain over another, errors of both independent: they add up squared on a logarithmic scale."""
    value = one.value / other.value
    lows = (max(i.low, i.value / 1000) for i in (one, other))
    spread = math.hypot(*(math.log(i.high / low) / 2 for i, low in zip((one, other), lows, strict=True)))
    return Interval(value=value, low=value * math.exp(-spread), high=value * math.exp(spread))


def _verdict(change: Interval, none: float, sign: int, margin: float) -> str:
    """What a change says: an interval that holds no change cannot tell, unless all of it is within a margin."""
    if change.low <= none <= change.high:
        return "same" if max(change.high - none, none - change.low) <= margin else "cannot tell"
    return "better" if (change.value > none) == (sign > 0) else "worse"
