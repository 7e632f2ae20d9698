"""Time engines interleaved, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

from farthing.config import Section
from farthing.engines.base import Engine, Tensors
from farthing.errors import EngineError, RaceError
from farthing.measure import Interval, ratio_of_medians
from farthing.meter import Rapl

LEAST_ROUNDS = 5  # fewer give no honest interval
SLOW_SECONDS = 0.02
Tick = Callable[[int, int], None]
Turn = Callable[[int], object]


class Rule(Section, frozen=True, kw_only=True):
    """How long to measure: calls of each entrant and seconds of the whole race, at least.

    After ``max_seconds`` five rounds are enough. ``calls`` of the engine, one after another, count as one: a query of
    several samples to a model that takes one at a time.
    """

    warmup: int = 10
    min_count: int = 200
    min_seconds: float = 2.0
    max_seconds: float = 60.0
    calls: int = 1


class Timed(Section, frozen=True, kw_only=True):
    """One entrant of a race: seconds of every timed call and the median of each round; ``made`` counts all calls."""

    calls: list[float]
    rounds: list[float]
    made: int

    def over(self, slower: Timed) -> Interval:
        """How many times faster this is than another entrant of the same race."""
        return ratio_of_medians(np.column_stack([slower.rounds, self.rounds]))


def race(
    entrants: Sequence[tuple[Engine, Sequence[Tensors]]],
    rule: Rule,
    tick: Tick | None = None,
    turn: Turn = lambda entrant: None,
) -> list[Timed]:
    """Time several engines interleaved, round by round, in an order shuffled anew for each (seeded).

    In each round an entrant makes one untimed call (it warms the caches its rivals emptied) and then a block of
    timed ones; one that takes longer than 20 ms makes a single timed call. Garbage collection is off meanwhile.

    Args:
        entrants: engines, and the feeds each runs on in turn.
        rule: how long to measure.
        tick: called with (done, total) between rounds.
        turn: called with the place of an entrant before it runs, outside what is timed.

    Raises:
        RaceError: an engine failed.
    """
    current = 0

    def next_is(entrant: int) -> None:
        nonlocal current
        current = entrant
        turn(entrant)

    try:
        return _raced(entrants, rule, tick, next_is)
    except EngineError as error:
        raise RaceError(str(error), current) from error


def _raced(
    entrants: Sequence[tuple[Engine, Sequence[Tensors]]], rule: Rule, tick: Tick | None, turn: Turn
) -> list[Timed]:
    blocks = []
    for entrant, (engine, samples) in enumerate(entrants):
        turn(entrant)
        blocks.append(_warm(engine, samples, rule))
    calls: list[list[float]] = [[] for _ in entrants]
    rounds: list[list[float]] = [[] for _ in entrants]
    made = [max(2, rule.warmup) + 1 for _ in entrants]
    order = np.random.default_rng(0)
    start = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in itertools.count(1):
            for entrant in order.permutation(len(entrants)).tolist():
                count = blocks[entrant]
                engine, samples = entrants[entrant]
                turn(entrant)
                times = _block(engine, samples, count, number, rule.calls, primed=count > 1)
                calls[entrant] += times
                rounds[entrant].append(float(np.median(times)))
                made[entrant] += count + (count > 1)
            spent = time.perf_counter() - start
            if tick:
                tick(int(min(spent, rule.min_seconds) * 100), int(rule.min_seconds * 100))
            enough = spent >= rule.min_seconds and min(map(len, calls)) >= rule.min_count and number >= 10
            if enough or (spent >= rule.max_seconds and number >= LEAST_ROUNDS):
                break
    finally:
        if collecting:
            gc.enable()
    return [Timed(calls=c, rounds=r, made=m) for c, r, m in zip(calls, rounds, made, strict=True)]


def _warm(engine: Engine, samples: Sequence[Tensors], rule: Rule) -> int:
    """Warm up; how many calls make a block of some two milliseconds."""
    typical = float(np.median(_block(engine, samples, max(2, rule.warmup), 0, rule.calls)))
    return int(np.clip(0.002 / max(typical, 1e-7), 1 if typical > SLOW_SECONDS else 3, 100))


def _block(
    engine: Engine, samples: Sequence[Tensors], count: int, offset: int, calls: int, primed: bool = True
) -> list[float]:
    run, clock, n = engine.run, time.perf_counter, len(samples)
    if primed:
        run(samples[offset % n])
    times = []
    for i in range(count):
        sample = samples[(offset + i) % n]
        begin = clock()
        for _ in range(calls):
            run(sample)
        times.append(clock() - begin)
    return times


def metered(
    engine: Engine,
    samples: Sequence[Tensors],
    batch: int,
    rule: Rule,
    meter: Rapl | None,
    tick: Tick | None = None,
) -> tuple[Timed, float | None]:
    """Time one engine; also the energy of one sample in millijoules, warm-up calls included.

    None without a meter, or with one that stood still.
    """
    before = meter.read() if meter else []
    timed = race([(engine, samples)], rule, tick)[0]
    spent = meter.spent(before, meter.read()) if meter else 0.0
    return timed, spent / (timed.made * batch) if spent else None
