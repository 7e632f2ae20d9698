"""What a search of networks found, as plain data: ``search.json``, and what its page is drawn from."""

from __future__ import annotations

from statistics import median

from farthing.config import Section
from farthing.forge.families import Family
from farthing.forge.search.deployment import Number
from farthing.forge.search.estimate import Limits
from farthing.forge.search.explore import Tried
from farthing.forge.search.finalists import Finalist
from farthing.forge.training.schedule import Schedule
from farthing.measure import Interval, Measurement


class Raced(Section, frozen=True, kw_only=True):
    """What was timed whole, beside the others.

    Attributes:
        name: the architecture, or the model as given.
        engine, number: what ran it, and what it computes with.
        size_mb: its files, MB of 10^6 bytes.
        single, offline: one sample at a time, and in batches.
        speedup, offline_speedup: how many times faster than the fastest float32 form of what it is compared with.
    """

    name: str
    engine: str
    number: Number
    size_mb: float
    single: Measurement
    offline: Measurement
    speedup: Interval
    offline_speedup: Interval


class Found(Section, frozen=True, kw_only=True):
    """What was asked, what was tried, and what came of it.

    Attributes:
        task_name, metric, higher_is_better: what it was searched for.
        model_name: what does the work so far, the teacher; empty if there is none.
        engine: what runs the networks; ``none`` if only operations and bytes were counted.
        number, batch, families, limits, accuracy_drop, trials, schedule: as asked.
        sentence: the outcome.
        met: whether the first finalist keeps the limits and the accuracy.
        violations: what it breaks, a sentence each.
        notes: what a reader must know beside.
        finalists: networks that no other beats, the chosen one first.
        baselines, raced: what was timed whole: the float32 forms that are compared with, and the finalists in their
            order; nothing where no engine was named.
        test, test_drop: of the chosen network, seen once.
        tried: every network.
        target, machine: what it is for, and where it was timed.
        versions, command, when, seconds: how it came about.
    """

    task_name: str
    metric: str
    higher_is_better: bool
    model_name: str
    engine: str
    number: Number
    batch: int
    families: tuple[Family, ...]
    limits: Limits
    accuracy_drop: float
    trials: int
    schedule: Schedule
    sentence: str
    met: bool
    violations: tuple[str, ...]
    notes: tuple[str, ...] = ()
    finalists: tuple[Finalist, ...]
    baselines: tuple[Raced, ...] = ()
    raced: tuple[Raced, ...] = ()
    test: Interval | None = None
    test_drop: Interval | None = None
    tried: tuple[Tried, ...]
    target: str
    machine: str
    versions: dict[str, str] = {}
    command: str = ""
    when: str = ""
    seconds: float = 0.0

    @property
    def errors(self) -> list[float]:
        """By what share the predicted time of each raced finalist was above (or below) what was measured."""
        call = "single" if self.batch == 1 else "offline"
        pairs = zip(self.finalists, self.raced, strict=False)
        return [
            (one.tried.estimate.latency_ms or 0.0) / getattr(whole, call).p50_ms - 1 for one, whole in pairs
        ]

    @property
    def typical_error(self) -> float | None:
        """The median magnitude of `errors`; None if nothing was raced."""
        return median(map(abs, self.errors)) if self.errors else None
