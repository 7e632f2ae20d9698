"""How fast a service works, what is asked of it, and which share of the input it can take. No threads, no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_GAIN, _GAIN_DEVIATION = 1 / 8, 1 / 4  # as RFC 6298 smooths round-trip times
_LEVELS = 8  # priorities beyond -8 to 7 count as the nearest of these: callers do not decide how much is kept
_STREAMS = 1024


class Pace:
    """Seconds that one request takes, smoothed.

    Attributes:
        mean, deviation: moving averages of the time and of its distance from the mean, seconds.
        known: whether anything was measured yet.
    """

    def __init__(self) -> None:
        self.mean = self.deviation = 0.0
        self.known = False

    def learn(self, seconds: float) -> None:
        """Take in one measured time."""
        if not self.known:
            self.mean, self.deviation, self.known = seconds, seconds / 2, True
            return
        error = seconds - self.mean
        self.mean += _GAIN * error
        self.deviation += _GAIN_DEVIATION * (abs(error) - self.deviation)


class Forecast(NamedTuple):
    """When requests in line should be done: each place of the service takes the next one as it becomes free.

    Attributes:
        free: moments when the places become free, ascending, seconds; the last at most ``mean`` after the first.
        mean: seconds a request takes.
    """

    free: Sequence[float]
    mean: float

    def end(self, place: int) -> float:
        """The moment when the one at a place in line, from 0, should be done."""
        rounds, slot = divmod(place, len(self.free))
        return self.free[slot] + (rounds + 1) * self.mean


class Thinning:
    """Takes an even share of each stream while more is asked than can be computed.

    Demand and capacity are compared over a window. While demand is the larger, and was when the service had not been
    idle for as long as the window, each stream keeps the share

        (capacity - demand of more important requests - those that wait / window) / demand,

    so the important go first, what has piled up is worked off, and the rest of the capacity is spread evenly: of a
    stream at three times the capacity every third request passes, not ten in a row and then none for a second. A
    request that finds the service idle passes in any case, and its stream pays for it later.

    Args:
        window: seconds.
    """

    def __init__(self, window: float) -> None:
        self.on = False
        self._window = window
        self._seen = 0.0
        self._idle_at = math.inf
        self._demand: dict[int, float] = {}  # level of importance -> requests per second, decaying
        self._credits: dict[object, float] = {}
        self._phase = 0.0

    def passes(
        self, stream: object, priority: int, now: float, capacity: float, waiting: int, idle: bool
    ) -> bool:
        """Whether a request that comes in passes.

        Args:
            stream: what it belongs to.
            priority: its importance; smaller is more.
            now: the moment, seconds.
            capacity: requests per second that can be computed.
            waiting: those in line that are at least as important.
            idle: whether it would be started at once.
        """
        level = max(-_LEVELS, min(priority, _LEVELS - 1))
        self._count(level, now)
        if idle:
            self._idle_at = now
        bias = 0.5 / self._window  # of a rate that is read just as it went up
        demand = sum(self._demand.values()) - bias
        self.on = demand > capacity and (self.on or now - self._idle_at >= self._window)
        if not self.on:
            self._credits.clear()
            return True
        before = sum(rate for other, rate in self._demand.items() if other < level)
        room = capacity - before - waiting / self._window
        return self._spend(stream, max(0.0, min(room / (self._demand[level] - bias), 1.0)), idle)

    def _count(self, level: int, now: float) -> None:
        decay = math.exp((self._seen - now) / self._window)
        self._seen = now
        for other in self._demand:
            self._demand[other] *= decay
        self._demand[level] = self._demand.get(level, 0.0) + 1 / self._window

    def _spend(self, stream: object, share: float, free: bool) -> bool:
        """Add a share to a stream's credit; a request costs 1. Streams begin out of step with one another."""
        self._phase = (self._phase + share) % 1.0
        credit = self._credits.pop(stream, self._phase) + share
        passes = free or credit >= 1.0
        self._credits[stream] = max(credit - 1.0, -1.0) if passes else credit
        if len(self._credits) > _STREAMS:
            del self._credits[next(iter(self._credits))]
        return passes
