"""Realtime: a service whose callers have deadlines, and which is asked for more than it can compute.

What waits, waits in order of deadline; what has become worthless is dropped before it costs anything; what is
computed was started before its deadline, so its answer is late by less than one inference, if at all. The rules are in
`backlog`; here are the threads around them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial

from msgspec.structs import replace

from farthing.device.serving.alarm import Alarm
from farthing.device.serving.ending import AtExit, Home
from farthing.device.serving.queue.backlog import Backlog, Drop, Outcome, QueueRule, QueueStats, Ticket
from farthing.device.serving.service import (
    GRACE,
    Answer,
    Clock,
    Direct,
    Handing,
    Request,
    Service,
    failed,
    guarded,
    late,
    settle,
)
from farthing.engines.base import Engine
from farthing.errors import ClosedError, FarthingError, OverloadError, ServiceError

__all__ = ["QueueRule", "QueueStats", "Realtime"]

_WHY = {
    "refused": "the queue is full",
    "displaced": "it made room for another request",
    "hopeless": "it could not be computed before its deadline",
    "thinned": "more is asked than can be computed, and only a share of each stream is",
}


class Realtime(Service):
    """A bounded queue in order of deadline before an engine or a service.

    Requests are started in order of deadline, so those of one stream keep their order as long as their deadlines do,
    and as long as ``concurrency`` is 1. A request that was started is not taken back any more.

    Args:
        inner: what computes; closed with the queue. An engine that takes one caller at a time needs ``concurrency=1``.
        rule: size, policy, timeout and so on.
        name: of the model; empty takes the engine's, or the service's.
        on_pressure: called with True when the high water mark is reached, with False when it has fallen to the low
            one: in this order, one call at a time, from whichever thread brought it about. It must not wait; what it
            raises is logged.
        clock: seconds, what deadlines are held against.
    """

    def __init__(
        self,
        inner: Engine | Service,
        rule: QueueRule | None = None,
        *,
        name: str = "",
        on_pressure: Callable[[bool], object] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.name = name or inner.name
        self._inner = inner if isinstance(inner, Service) else Direct(inner, self.name, clock)
        self.inputs, self.outputs, self.stateful = inner.inputs, inner.outputs, inner.stateful
        self._rule, self._clock = rule or QueueRule(), clock
        self._timeout = math.inf if self._rule.timeout_ms is None else self._rule.timeout_ms / 1000
        self._backlog = Backlog(self._rule)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # for workers
        self._emptied = threading.Condition(self._lock)  # for who closes
        self._threads: list[threading.Thread] = []
        self._started: dict[int, Ticket] = {}  # by number
        self._handing = Handing()
        self._idle = 0  # threads that wait for work
        self._number = 0
        self._closing = False  # takes no more requests
        self._closed = False  # starts no more
        self._alarm = Alarm(self._expire, clock, f"{self.name} deadlines")
        self._news = _News(on_pressure) if on_pressure else None
        self._home, self._end = Home(), AtExit(self.close)

    def submit(self, request: Request) -> Future[Answer]:
        """See `Service.submit`: an OverloadError says in ``retry_after`` when there should be room."""
        if self._home.left:
            return failed(self._home.refusal(self.name))
        future: Future[Answer] = Future()
        with self._lock:
            if self._closing:
                return failed(ClosedError(f"{self.name} is closed: it takes no more requests"))
            ticket = self._ticket(request, future)
            drops = self._backlog.offer(ticket, ticket.arrived)
            self._rouse()
        self._tell(drops)
        if not future.done():
            # Not the ticket itself: it holds the future, and a circle would keep the tensors until the next collection.
            future.add_done_callback(partial(self._withdraw, ticket[:3]))
        return future

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._backlog)

    @property
    def pressure(self) -> bool:
        """Whether callers had better slow down: from the high water mark on, until the low one."""
        return self._backlog.pressure

    @property
    def service_seconds(self) -> float | None:
        """Seconds that a request takes inside, smoothed; None before the first answer."""
        return self._backlog.pace.mean if self._backlog.pace.known else None

    def stats(self) -> QueueStats:
        """What it has done so far."""
        with self._lock:
            return self._backlog.stats()

    def close(self, grace: float = GRACE) -> None:
        """See `Service.close`; from a callback of an answer it does not wait for others."""
        if self._home.left:
            return
        inward = threading.current_thread() in self._threads
        if self._handing.depth and not inward:  # in a thread of what computes, which has nobody else to
            grace = 0.0
        until = time.monotonic() + grace
        self._end.cancel()
        with self._lock:
            self._closing = True
            if not inward:
                self._emptied.wait_for(lambda: len(self._backlog) == 0, grace)
            self._closed = True
            left = self._backlog.clear()
            self._rouse()
            self._changed.notify_all()
        self._fail(left)
        for thread in self._threads:
            if not inward:
                thread.join(max(0.0, until - time.monotonic()))
        self._alarm.close()
        self._inner.close(max(0.0, until - time.monotonic()))
        if not inward:
            with self._lock:
                stuck = list(self._started.values())
                self._started.clear()
            self._fail(stuck)

    def _fail(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            settle(ticket.payload[1], ClosedError(f"{self.name} was closed before it could answer"))
        self._announce()

    def _ticket(self, request: Request, future: Future[Answer]) -> Ticket:
        now = self._clock()
        deadline = now + self._timeout if request.deadline == math.inf else request.deadline
        self._number += 1
        stream = request.stream or threading.get_ident()
        return Ticket(deadline, request.priority, self._number, now, stream, (request, future))

    def _rouse(self) -> None:
        """After any change: those who can start do, and deadlines are watched. The caller holds the lock."""
        waiting, free = len(self._backlog), self._backlog.free
        if self._news is not None:
            self._news.note(self._backlog.pressure)
        if waiting and free and not self._closed:
            if self._idle:
                self._changed.notify()
            elif len(self._threads) < self._rule.concurrency:
                self._hire()
        elif self._closing and not waiting:
            self._emptied.notify_all()
        if waiting > free:
            self._alarm.at(self._backlog.soonest)

    def _hire(self) -> None:
        name = f"{self.name} worker {len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while self._serve():
            pass

    def _serve(self) -> bool:
        """Start one request, or tell those that became late; False once closed."""
        with self._lock:
            ticket, drops = self._backlog.take(self._clock())
            while ticket is None and not drops:
                if self._closed:
                    return False
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
                ticket, drops = self._backlog.take(self._clock())
            if ticket is not None:
                self._started[ticket.number] = ticket
            self._rouse()
        self._tell(drops)
        if ticket is not None:
            self._start(ticket)
        return True

    def _start(self, ticket: Ticket) -> None:
        request, future = ticket.payload
        if not future.set_running_or_notify_cancel():
            self._finish(ticket, None)
            return
        try:
            inner = self._inner.submit(replace(request, deadline=ticket.deadline))
        except Exception as error:  # noqa: BLE001 - a service that raises is broken, but its caller waits all the same
            self._finish(ticket, ServiceError(f"{self.name} failed: {type(error).__name__}: {error}"))
            return
        inner.add_done_callback(partial(self._landed, ticket))

    def _landed(self, ticket: Ticket, inner: Future[Answer]) -> None:
        if inner.cancelled():
            self._finish(
                ticket, ServiceError(f"{self.name}: the request was taken back where it was computed")
            )
        else:
            self._finish(ticket, inner.exception() or inner.result())

    def _finish(self, ticket: Ticket, outcome: Answer | BaseException | None) -> None:
        """Give a request that was started its outcome; None if its caller took it back at the last moment."""
        now = self._clock()
        with self._lock:
            kind: Outcome = "cancelled" if outcome is None else "failed"
            if isinstance(outcome, Answer):
                kind = "answered"
            self._backlog.finish(ticket, now, kind)
            wanted = self._started.pop(ticket.number, None) is not None
            self._rouse()
        if not wanted:  # the queue was closed, and did not wait any longer
            return
        if isinstance(outcome, Answer):
            outcome = replace(outcome, latency=now - ticket.arrived)
        if outcome is not None:
            self._handing.settle(ticket.payload[1], outcome)

    def _withdraw(self, ticket: tuple[float, int, int], future: Future[Answer]) -> None:
        """A future is done: if its caller cancelled it, its place is free."""
        if not future.cancelled():
            return
        with self._lock:
            waited = self._backlog.withdraw(ticket)
            self._rouse()
        if waited:
            future.set_running_or_notify_cancel()  # or `concurrent.futures.wait` waits for it for ever
        self._announce()

    def _expire(self) -> float:
        """Fail those whose deadline has passed; the next deadline."""
        with self._lock:
            drops = self._backlog.expire(self._clock())
            self._rouse()
            soonest = self._backlog.soonest
        self._tell(drops)
        return soonest

    def _tell(self, drops: Iterable[Drop]) -> None:
        """Tell callers that they will get no answer, and the listener what it is to know. Nobody holds the lock."""
        for drop in drops:
            settle(drop.ticket.payload[1], self._error(drop))
        self._announce()

    def _announce(self) -> None:
        if self._news is not None:
            self._news.tell()

    def _error(self, drop: Drop) -> FarthingError:
        request = drop.ticket.payload[0]
        if drop.reason == "late":
            return late(self.name, replace(request, deadline=drop.ticket.deadline), self._clock())
        wait = drop.retry_after
        when = "later" if wait is None else f"in {1000 * wait:.0f} ms"
        return OverloadError(f"{self.name}: {_WHY[drop.reason]}; ask again {when}", wait)


class _News:
    """Tells a listener what changed, in the order in which it did, and outside of any lock but its own."""

    def __init__(self, listener: Callable[[bool], object]) -> None:
        self._listener = listener
        self._last = False
        self._untold: deque[bool] = deque()
        self._turn = threading.Lock()

    def note(self, state: bool) -> None:
        """Remember a state if it is another one. Callers take turns."""
        if state is not self._last:
            self._last = state
            self._untold.append(state)

    def tell(self) -> None:
        """Call the listener. If another thread is at it, or this one further up, that one goes on with these."""
        while self._untold and self._turn.acquire(blocking=False):
            try:
                while self._untold:
                    guarded(self._listener, self._untold.popleft())
            finally:
                self._turn.release()
