"""Who waits in a realtime queue, who goes next, who is turned away: the rules alone, without threads or a clock.

The order is earliest deadline first, which keeps every deadline if any order does. Under overload it alone would serve
each request just too late, one after the other: so what is late is dropped before it costs anything, and importance
decides who is dropped (Buttazzo, Spuri, Sensini: Value vs. deadline scheduling in overload conditions, RTSS 1995, find
that order of deadlines with admission control, and room reclaimed as work ends early, does best).

For comparison: Triton's ModelQueuePolicy knows a size, a timeout and REJECT or DELAY, in order of priority and arrival;
Roboflow inference's BufferFillingStrategy knows WAIT, DROP_OLDEST and DROP_LATEST in order of arrival, and ADAPTIVE
variants that skip frames while decoding outpaces their reader. Neither looks at deadlines before they have passed.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from farthing.config import Section
from farthing.device.serving.queue.pace import Forecast, Pace, Thinning
from farthing.errors import ConfigError

Policy = Literal["reject", "drop_oldest", "drop_newest", "adaptive"]
Reason = Literal["late", "refused", "displaced", "hopeless", "thinned"]
"""Why a request is not computed: its deadline passed, there was no room, it made room for another, it could not have
been computed in time, or the input is thinned."""


Outcome = Literal["answered", "failed", "cancelled"]
"""What became of a request that was started."""


class QueueRule(Section, frozen=True, kw_only=True):
    """How a realtime queue treats requests.

    Attributes:
        policy: who goes when there is no room. ``reject``: the one that comes in. ``drop_oldest``, ``drop_newest``: of
            those that wait and the one that comes in, the least important; among equals the oldest or the newest.
            ``adaptive``: the one that comes in, if it could not be computed before its deadline by the time that
            requests take, or would make one as important late; less important ones ahead of it give way. Under
            sustained overload each stream is thinned evenly.
        size: requests that wait, at most.
        timeout_ms: deadline of requests that have none, counted from when they came in; None leaves them without.
        concurrency: requests inside the wrapped service at once, at most.
        high_water, low_water: shares of ``size``; pressure is on from the first until the second is reached.
        window_s: ``adaptive``: overload that lasts so long is sustained; demand is averaged over it.
    """

    policy: Policy = "adaptive"
    size: int = 64
    timeout_ms: float | None = 1000.0
    concurrency: int = 1
    high_water: float = 0.75
    low_water: float = 0.5
    window_s: float = 2.0

    def __post_init__(self) -> None:
        if self.size < 1 or self.concurrency < 1:
            raise ConfigError(
                f"size and concurrency are at least 1, not size={self.size}, concurrency={self.concurrency}"
            )
        if self.timeout_ms is not None and not 0 < self.timeout_ms < math.inf:
            raise ConfigError(f"timeout_ms is more than 0, or none at all (null), not {self.timeout_ms}")
        if not 0 <= self.low_water < self.high_water <= 1:
            raise ConfigError(
                f"water marks are shares of the size, low_water < high_water, not {self.low_water}, {self.high_water}"
            )
        if not 0 < self.window_s < math.inf:
            raise ConfigError(f"window_s is more than 0, not {self.window_s}")


class QueueStats(Section, frozen=True, kw_only=True):
    """What a realtime queue has done; every figure adds up over processes.

    ``requests`` is the sum of all that follow, but ``overdue`` and ``waited_ms``.

    Attributes:
        requests: that came in.
        answered, failed: computed; failed ones without an answer.
        late: their deadline passed before they were started.
        refused, displaced: there was no room for them; they made room for others.
        hopeless, thinned: turned away by ``adaptive``.
        cancelled: taken back before they were answered.
        closed: the queue was closed first.
        waiting, inside: now in the queue; now in the wrapped service.
        overdue: of the answered, those after their deadline: by less than one inference.
        waited_ms: milliseconds that answered ones waited before they were started, all together.
    """

    requests: int = 0
    answered: int = 0
    failed: int = 0
    late: int = 0
    refused: int = 0
    displaced: int = 0
    hopeless: int = 0
    thinned: int = 0
    cancelled: int = 0
    closed: int = 0
    waiting: int = 0
    inside: int = 0
    overdue: int = 0
    waited_ms: int = 0


class Ticket(NamedTuple):
    """A request in the queue. Tickets sort by deadline, then priority (smaller goes first), then arrival.

    Attributes:
        deadline, arrived: moments in seconds.
        number: counts up from ticket to ticket.
        stream: what is thinned evenly.
        payload: whatever its owner wants back.
    """

    deadline: float
    priority: int
    number: int
    arrived: float = 0.0
    stream: object = None
    payload: Any = None


class Drop(NamedTuple):
    """A request that will not be computed.

    Attributes:
        retry_after: seconds after which there should be room; None if nobody can tell.
    """

    ticket: Ticket
    reason: Reason
    retry_after: float | None = None


class Backlog:
    """The requests of a realtime queue. Not thread-safe; ``now`` is a moment in seconds and never goes back.

    Args:
        rule: how they are treated.

    Attributes:
        pace: seconds that requests take inside, as measured.
        pressure: whether the high water mark was reached, and since then not the low one.
    """

    def __init__(self, rule: QueueRule) -> None:
        self.rule = rule
        self.pace = Pace()
        self.pressure = False
        self._high = max(1, math.ceil(rule.high_water * rule.size))
        self._low = math.floor(rule.low_water * rule.size)
        self._waiting: list[Ticket] = []
        self._inside: dict[int, float] = {}  # ticket number -> started
        self._thinning = Thinning(rule.window_s)
        self._counts = dict.fromkeys(QueueStats.__struct_fields__, 0)
        self._waited = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def free(self) -> int:
        """Places in the wrapped service for those that wait."""
        return self.rule.concurrency - len(self._inside)

    @property
    def soonest(self) -> float:
        """The earliest deadline of those that wait; inf if there is none."""
        return self._waiting[0].deadline if self._waiting else math.inf

    def stats(self) -> QueueStats:
        """What has happened so far, and what is there now."""
        gauges = {"waiting": len(self._waiting), "inside": len(self._inside)}
        return QueueStats(**{**self._counts, **gauges, "waited_ms": int(self._waited * 1000)})

    def offer(self, ticket: Ticket, now: float) -> list[Drop]:
        """Take a request in, or turn it away.

        Returns:
            Those that go now, ``ticket`` itself perhaps among them.
        """
        self._counts["requests"] += 1
        if not ticket.deadline > now:  # so is NaN
            return [*self.expire(now), self._drop(ticket, "late")]
        drops = self.expire(now)
        drops += self._admit(ticket, now) if self.rule.policy == "adaptive" else self._make_room(ticket, now)
        self._mark()
        return drops

    def take(self, now: float) -> tuple[Ticket | None, list[Drop]]:
        """The request to start now, if there is one and a place for it; and those that go instead of being started.

        Whoever takes one says `finish` when it is done.
        """
        drops = self.expire(now)
        ticket = None
        while self._waiting and self.free and ticket is None:
            ticket = self._waiting.pop(0)
            if self._hopeless(ticket, now):
                drops.append(self._drop(ticket, "hopeless"))
                ticket = None
        if ticket is not None:
            self._inside[ticket.number] = now
        self._mark()
        return ticket, drops

    def finish(self, ticket: Ticket, now: float, outcome: Outcome = "answered") -> None:
        """Say that a request that was taken is done."""
        started = self._inside.pop(ticket.number)
        self._counts[outcome] += 1
        if outcome == "answered":
            self.pace.learn(now - started)
            self._waited += started - ticket.arrived
            self._counts["overdue"] += now > ticket.deadline

    def expire(self, now: float) -> list[Drop]:
        """Drop all whose deadline has passed."""
        passed = bisect_right(self._waiting, now, key=attrgetter("deadline"))
        gone, self._waiting[:passed] = self._waiting[:passed], []
        drops = [self._drop(ticket, "late") for ticket in gone]
        self._mark()
        return drops

    def withdraw(self, ticket: tuple[float, int, int]) -> bool:
        """Forget a request that is taken back while it waits.

        Args:
            ticket: the first three of its `Ticket`.

        Returns:
            Whether it did wait.
        """
        place = bisect_left(self._waiting, ticket)
        if place == len(self._waiting) or self._waiting[place].number != ticket[2]:
            return False
        del self._waiting[place]
        self._counts["cancelled"] += 1
        self._mark()
        return True

    def clear(self) -> list[Ticket]:
        """Empty the queue for good: those that waited."""
        gone, self._waiting = self._waiting, []
        self._counts["closed"] += len(gone)
        self._mark()
        return gone

    def _make_room(self, ticket: Ticket, now: float) -> list[Drop]:
        if len(self._waiting) < self.rule.size:
            insort(self._waiting, ticket)
            return []
        victim = self._victim(ticket)
        if victim is ticket:
            return [self._drop(ticket, "refused", self._next_free(now))]
        self._remove(victim)
        insort(self._waiting, ticket)
        return [self._drop(victim, "displaced", self._next_free(now))]

    def _victim(self, ticket: Ticket) -> Ticket:
        """Of those that wait and the one that comes in, the one that goes."""
        if self.rule.policy == "reject":
            return ticket
        age = -1 if self.rule.policy == "drop_oldest" else 1
        return max(chain(self._waiting, [ticket]), key=lambda one: (one.priority, age * one.number))

    def _admit(self, ticket: Ticket, now: float) -> list[Drop]:
        """Policy ``adaptive``."""
        idle = not self._waiting and self.free > 0
        if not self._passes(ticket, now, idle):
            return [self._drop(ticket, "thinned", self._next_free(now))]
        forecast, before, gone = self._forecast(now), list(self._waiting), list[Ticket]()
        while not idle and (why := self._refusal(ticket, forecast)):
            ahead = len(self._waiting) if why == "refused" else bisect_left(self._waiting, ticket)
            victim = _least_important(self._waiting[:ahead], ticket.priority)
            if victim is None:  # those taken away on trial stay
                self._waiting = before
                return [self._drop(ticket, why, self._next_free(now))]
            self._remove(victim)
            gone.append(victim)
        insort(self._waiting, ticket)
        return [self._drop(victim, "displaced", self._next_free(now)) for victim in gone]

    def _passes(self, ticket: Ticket, now: float, idle: bool) -> bool:
        """Whether the thinning lets it through."""
        mean = self.pace.mean
        capacity = self.rule.concurrency / mean if mean else math.inf
        as_important = sum(one.priority <= ticket.priority for one in self._waiting)
        return self._thinning.passes(ticket.stream, ticket.priority, now, capacity, as_important, idle)

    def _refusal(self, ticket: Ticket, forecast: Forecast) -> Reason | None:
        """Why a request cannot be admitted beside those that wait."""
        if len(self._waiting) >= self.rule.size:
            return "refused"
        if self.pace.known and not self._in_time(ticket, forecast):
            return "hopeless"
        return None

    def _in_time(self, ticket: Ticket, forecast: Forecast) -> bool:
        """Whether it can be computed in time, without making one late that is as important.

        When the k-th in line is done depends on k alone, so whoever stands behind it moves back by one place.
        """
        place = bisect_left(self._waiting, ticket)
        end = forecast.end(place)
        if end + self.pace.deviation > ticket.deadline:
            return False
        for k, other in enumerate(self._waiting[place:], place + 1):
            before, end = end, forecast.end(k)
            if other.priority <= ticket.priority and before <= other.deadline < end:
                return False
        return True

    def _forecast(self, now: float) -> Forecast:
        busy = sorted(max(now, started + self.pace.mean) for started in self._inside.values())
        return Forecast([now] * self.free + busy, self.pace.mean)

    def _hopeless(self, ticket: Ticket, now: float) -> bool:
        """Whether starting it now is vain. With nothing else to do it is tried all the same, to measure anew."""
        return (
            self.rule.policy == "adaptive"
            and now + self.pace.mean > ticket.deadline
            and bool(self._waiting or self._inside)
        )

    def _next_free(self, now: float) -> float | None:
        """Seconds until the next place in the wrapped service should be free."""
        return self._forecast(now).free[0] - now if self.pace.known else None

    def _remove(self, ticket: Ticket) -> None:
        del self._waiting[bisect_left(self._waiting, ticket[:3])]

    def _drop(self, ticket: Ticket, reason: Reason, retry_after: float | None = None) -> Drop:
        self._counts[reason] += 1
        return Drop(ticket, reason, retry_after)

    def _mark(self) -> None:
        """Hold the number of those that wait against the water marks."""
        waiting = len(self._waiting)
        self.pressure = waiting > self._low if self.pressure else waiting >= self._high


def _least_important(tickets: Iterable[Ticket], priority: int) -> Ticket | None:
    """Of tickets less important than a priority, the least important one, of the latest deadline."""
    less = (ticket for ticket in tickets if ticket.priority > priority)
    return max(less, key=lambda one: (one.priority, one.deadline, one.number), default=None)
