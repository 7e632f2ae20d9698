"""Who waits for the answer to an input that is being computed for somebody else: the rules alone, without threads.

Known as single flight, after Go's ``golang.org/x/sync/singleflight``; other than there, an error is not shared.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from itertools import chain
from typing import NamedTuple

from farthing.device.serving.service import Answer, Request


class Waiter(NamedTuple):
    """A request that waits for its answer.

    Attributes:
        number: counts up from request to request.
        arrived: the moment it came in, seconds.
    """

    number: int
    request: Request
    future: Future[Answer]
    arrived: float


class Flights:
    """Requests by the key of their input: the first of each key is computed, the others wait in line for its answer.

    Not thread-safe. ``now`` is a moment in seconds.
    """

    def __init__(self) -> None:
        self._first: dict[bytes, Waiter] = {}
        self._line: dict[bytes, dict[int, Waiter]] = {}

    def board(self, key: bytes, waiter: Waiter) -> bool:
        """Take a request in; whether it is the first one of its key, and so the one to compute."""
        first = self._first.setdefault(key, waiter)
        if first is not waiter:
            self._line.setdefault(key, {})[waiter.number] = waiter
        return first is waiter

    def is_first(self, key: bytes, number: int) -> bool:
        """Whether it is this request's answer that those of a key wait for."""
        first = self._first.get(key)
        return first is not None and first.number == number

    def land(self, key: bytes) -> list[Waiter]:
        """There is an answer: those in line, who get it as well. The key is free again."""
        del self._first[key]
        return list(self._line.pop(key, {}).values())

    def hand_on(self, key: bytes, now: float) -> tuple[Waiter | None, list[Waiter]]:
        """There will be no answer for the first: who is to be computed in its place, and who is too late for that."""
        del self._first[key]
        line, late = self._line.pop(key, {}), list[Waiter]()
        while line:
            waiter = line.pop(next(iter(line)))
            if waiter.request.deadline > now:
                self._first[key] = waiter
                if line:
                    self._line[key] = line
                return waiter, late
            late.append(waiter)
        return None, late

    def withdraw(self, key: bytes, number: int) -> bool:
        """Forget one in line; whether it was there."""
        line = self._line.get(key, {})
        found = line.pop(number, None)
        if found is not None and not line:
            del self._line[key]
        return found is not None

    def expire(self, now: float) -> tuple[list[Waiter], float]:
        """Remove those in line whose deadline has passed; they, and the next deadline, inf if there is none."""
        gone, soonest = [], math.inf
        for key, line in list(self._line.items()):
            for waiter in list(line.values()):
                if waiter.request.deadline > now:
                    soonest = min(soonest, waiter.request.deadline)
                else:
                    gone.append(waiter)
                    self.withdraw(key, waiter.number)
        return gone, soonest

    def clear(self) -> list[Waiter]:
        """Forget all; they."""
        everybody = [
            *self._first.values(),
            *chain.from_iterable(line.values() for line in self._line.values()),
        ]
        self._first.clear()
        self._line.clear()
        return everybody
