"""Which requests go into one batch, and when it closes: the rules alone, without threads or a clock.

The semantics are those of Triton's dynamic batcher (its user guide, "Batchers"): a full batch goes at once, a preferred
size goes at once, and nobody waits for company longer than the delay. With a delay of 0, the default, a batch is
whatever came in while the last one was computed: it conserves work, and needs no timer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from typing import Generic, Literal, TypeVar

import msgspec

from farthing.config import Section
from farthing.errors import ConfigError

Why = Literal["full", "preferred", "delay", "deadline", "closing"]
"""What closed a batch: no room for the next request, a preferred size, the delay of the oldest, the deadline of one, or
the end of the service."""


class BatchRule(Section, frozen=True, kw_only=True):
    """How batches are formed.

    Attributes:
        max_size: samples in a batch, at most. On CPUs more than 8 to 16 only cost memory and time to the first answer.
        delay_ms: how long the oldest request may wait for company while a runner is free.
        preferred: sizes that go at once; empty: none does before the delay, or the full batch.
        pays: what a batch must save for each sample, as a share, over one of half its size: `Batched` tries larger ones
            when it opens, and computes no larger ones together than pay. 0 tries nothing and fills them all, and so do
            rules with a delay or preferred sizes.
        capacity: samples that may wait, a request without any counting as one; further ones fail with OverloadError.
    """

    max_size: int = 8
    delay_ms: float = 0.0
    preferred: tuple[int, ...] = ()
    pays: float = 0.05
    capacity: int = 4096

    def __post_init__(self) -> None:
        if self.max_size < 1 or self.capacity < self.max_size:
            raise ConfigError(
                f"a batch holds at least 1 sample and the line at least a batch, not max_size={self.max_size}, "
                f"capacity={self.capacity}"
            )
        if not 0 <= self.delay_ms < math.inf:
            raise ConfigError(f"delay_ms is from 0, not {self.delay_ms}")
        if not 0 <= self.pays < 1:
            raise ConfigError(f"pays is a share from 0 to below 1, not {self.pays}")
        if any(not 1 <= size <= self.max_size for size in self.preferred):
            raise ConfigError(f"preferred sizes are from 1 to max_size={self.max_size}, not {self.preferred}")

    @property
    def fills(self) -> bool:
        """Whether batches are filled whether or not that pays."""
        return not self.pays or bool(self.delay_ms or self.preferred)


class Waiting:
    """One request in line.

    Attributes:
        size: samples it holds.
        key: only requests of equal keys fit into one batch.
        arrived, deadline: moments in seconds; inf for no deadline.
        priority: smaller goes first.
    """

    __slots__ = ("arrived", "deadline", "key", "priority", "size")
    arrived: float
    deadline: float
    key: Hashable
    priority: int
    size: int


WaitingT = TypeVar("WaitingT", bound=Waiting)


class Batch(msgspec.Struct, Generic[WaitingT], frozen=True, eq=False):
    """Requests to compute together, and those whose deadline passed in line: they are not to be computed."""

    items: list[WaitingT]
    late: list[WaitingT]
    why: Why


class Line(Generic[WaitingT]):
    """The requests that wait, in order of priority and arrival.

    Attributes:
        samples: they hold; a request without any counts as one.
    """

    def __init__(self, rule: BatchRule) -> None:
        self._rule = rule
        self._delay = rule.delay_ms / 1000
        self._preferred = sorted(rule.preferred)
        self._queues: dict[Hashable, _Queue[WaitingT]] = {}
        self._count = 0
        self.samples = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, item: WaitingT) -> None:
        """Put one in line."""
        queue = self._queues.get(item.key)
        if queue is None:
            queue = self._queues[item.key] = _Queue()
        queue.add(item)
        self._count += 1
        self.samples += item.size or 1

    def due(self, now: float, ahead: float = 0.0) -> float:
        """Seconds until a batch closes: 0 for one that is ready, inf if nobody waits.

        Args:
            now: the moment, in seconds.
            ahead: seconds a batch takes to compute: a deadline closes its batch that much before.
        """
        if not self._count:
            return math.inf
        if not self._delay:
            return 0.0
        return max(
            0.0, min(self._closes(queue, ahead)[0] for queue in self._queues.values() if queue.items) - now
        )

    def take(self, now: float, ahead: float = 0.0, closing: bool = False) -> Batch[WaitingT]:
        """The batch that is due, or, on ``closing``, the next one.

        Raises:
            LookupError: nobody waits.
        """
        key, queue, why = self._ready(now, ahead)
        room = self._limit(queue.samples, why)
        items: list[WaitingT] = []
        late: list[WaitingT] = []
        waiting = queue.items
        while waiting and (waiting[0].size <= room or not items):
            item = waiting.popleft()
            size = item.size
            queue.samples -= size
            self.samples -= size or 1
            if item.deadline <= now:
                late.append(item)
            else:
                items.append(item)
                room -= size
        self._count -= len(items) + len(late)
        if not waiting and len(self._queues) > 1:
            del self._queues[key]  # the last one stays: most models have one key
        return Batch(items, late, "closing" if closing and why == "delay" else why)

    def _ready(self, now: float, ahead: float) -> tuple[Hashable, _Queue[WaitingT], Why]:
        """Of the queues whose batch is due, the one whose head goes first; if none is, of all."""
        if not self._count:
            raise LookupError("nobody waits")
        if len(self._queues) == 1:
            ((key, queue),) = self._queues.items()
            return key, queue, self._closes(queue, ahead)[1]
        waiting = [(key, queue) for key, queue in self._queues.items() if queue.items]
        closing = [(key, queue, *self._closes(queue, ahead)) for key, queue in waiting]
        due = [one for one in closing if one[2] <= now] or closing
        key, queue, _, why = min(due, key=lambda one: one[1].rank)
        return key, queue, why

    def _closes(self, queue: _Queue[WaitingT], ahead: float) -> tuple[float, Why]:
        """When the next batch of a queue closes, and why."""
        if queue.samples >= self._rule.max_size:
            return -math.inf, "full"
        if self._preferred and queue.samples >= self._preferred[0]:
            return -math.inf, "preferred"
        if not self._delay:
            return -math.inf, "delay"
        delayed = queue.oldest + self._delay
        urgent = queue.soonest - ahead
        return (urgent, "deadline") if urgent < delayed else (delayed, "delay")

    def _limit(self, samples: int, why: Why) -> int:
        """Samples of the next batch, at most."""
        if samples < self._rule.max_size and why == "preferred":
            return max(size for size in self._preferred if size <= samples)
        return self._rule.max_size


class _Queue(Generic[WaitingT]):
    """Requests of one key, sorted by priority and then arrival."""

    def __init__(self) -> None:
        self.items: deque[WaitingT] = deque()
        self.samples = 0
        self._plain = True  # all of one priority and without deadline: the head is the oldest

    def add(self, item: WaitingT) -> None:
        items = self.items
        self.samples += item.size
        if items and (item.priority != items[-1].priority or self._plain is False):
            self._plain = False
            place = len(items)
            while place and items[place - 1].priority > item.priority:
                place -= 1
            items.insert(place, item)
        else:
            items.append(item)
        if item.deadline < math.inf:
            self._plain = False

    @property
    def oldest(self) -> float:
        return self.items[0].arrived if self._plain else min(item.arrived for item in self.items)

    @property
    def soonest(self) -> float:
        return math.inf if self._plain else min(item.deadline for item in self.items)

    @property
    def rank(self) -> tuple[int, float]:
        head = self.items[0]
        return head.priority, head.arrived
