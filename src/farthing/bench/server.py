"""MLPerf's server scenario: queries arrive at random, wait their turn, and are timed from arrival to answer."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from farthing.bench.racing import Rule, Tick
from farthing.config import Section
from farthing.engines.base import Engine, Tensors
from farthing.errors import ConfigError, EngineError, MeasurementError
from farthing.measure import Floats, percentile, percentile_bound

FASTEST = 1e7  # queries a second
STEPS = 6
NAP = 0.0005  # sleeping ends late by about as much: the rest of a wait is spent awake


class Served(Section, frozen=True, kw_only=True):
    """What a server run gave.

    Attributes:
        latencies: seconds of each query from its arrival to its answer, waiting included.
        seconds: from the first arrival to the last answer.
    """

    latencies: list[float]
    seconds: float


def serve(
    engine: Engine,
    samples: Sequence[Tensors],
    rate: float,
    rule: Rule,
    workers: int = 1,
    tick: Tick | None = None,
) -> Served:
    """Answer queries of one sample that arrive as a Poisson process (seeded), first come, first served.

    Args:
        rate: queries a second that are offered; more than the engine can answer makes them wait ever longer.
        rule: at least ``min_count`` queries, and those of ``min_seconds``.
        workers: threads that answer.

    Raises:
        ConfigError: a rate that is not above zero, or beyond what any engine answers.
        EngineError: the engine failed, or lets only one thread at a time in and more were asked for.
    """
    if not 0 < rate < FASTEST or workers < 1:
        raise ConfigError(
            f"a server run needs a rate above 0, less than {FASTEST:,.0f} a second, and a worker, "
            f"not {rate:g} and {workers}"
        )
    if workers > 1 and (engine.concurrency == "serial" or engine.stateful):
        raise EngineError(f"engine {engine.name} takes one caller at a time here: use one worker")
    for sample in itertools.islice(itertools.cycle(samples), max(2, rule.warmup)):
        engine.run(sample)
    count = max(rule.min_count, int(rate * rule.min_seconds))
    gaps = np.random.default_rng(0).exponential(1 / rate, count)
    return _Counter(engine, samples, np.cumsum(gaps), tick).run(workers)


class _Counter:
    """A queue of queries with known arrival times; each worker takes the next, and waits until it is there."""

    def __init__(
        self, engine: Engine, samples: Sequence[Tensors], arrivals: Floats, tick: Tick | None
    ) -> None:
        self._engine = engine
        self._samples = samples
        self._arrivals = arrivals.tolist()
        self._tick = tick
        self._next = itertools.count()
        self._turn = threading.Lock()
        self._latencies = [0.0] * len(arrivals)

    def run(self, workers: int) -> Served:
        collecting = gc.isenabled()
        gc.disable()
        self._start = time.perf_counter()
        try:
            if workers == 1:
                self._work()
            else:
                with ThreadPoolExecutor(workers) as pool:
                    for future in [pool.submit(self._work) for _ in range(workers)]:
                        future.result()
        finally:
            if collecting:
                gc.enable()
        ends = [a + b for a, b in zip(self._arrivals, self._latencies, strict=True)]
        return Served(latencies=self._latencies, seconds=max(ends) - self._arrivals[0])

    def _work(self) -> None:
        total, clock, run = len(self._arrivals), time.perf_counter, self._engine.run
        while True:
            with self._turn:
                number = next(self._next)
            if number >= total:
                return
            arrival = self._start + self._arrivals[number]
            if (wait := arrival - clock() - NAP) > 0:
                time.sleep(wait)
            while clock() < arrival:
                pass
            run(self._samples[number % len(self._samples)])
            self._latencies[number] = clock() - arrival
            if self._tick and not number % 32:
                self._tick(number, total)


def capacity(offer: Callable[[float], Served], fastest: float, bound_ms: float) -> tuple[float, Served]:
    """The highest rate at which p99 surely stays within a bound, by bisection, and the run that showed it.

    A rate holds if the upper 95 % confidence bound of p99 does: what cannot be told does not count.

    Args:
        offer: serves queries at a rate.
        fastest: a rate that is surely too high: what the engine answers without pause.
        bound_ms: limit of p99, milliseconds.

    Raises:
        MeasurementError: not even a twentieth of ``fastest`` holds.
    """
    low, high = 0.0, fastest
    best: tuple[float, Served] | None = None
    rate = 0.8 * fastest
    for _ in range(STEPS):
        served = offer(rate)
        if holds(served, bound_ms):
            low, best = rate, (rate, served)
        else:
            high = rate
        rate = (low + high) / 2
    if best is None:
        served = offer(fastest / 20)
        if not holds(served, bound_ms):
            p99 = percentile(np.asarray(served.latencies), 0.99) * 1000
            raise MeasurementError(
                f"p99 is {p99:.3g} ms even at {fastest / 20:.3g} queries a second: {bound_ms:g} ms cannot be kept"
            )
        best = (fastest / 20, served)
    return best


def holds(served: Served, bound_ms: float) -> bool:
    """Whether p99 of a run is surely within a bound."""
    bound = percentile_bound(np.asarray(served.latencies), 0.99)
    return bound is not None and bound * 1000 <= bound_ms
