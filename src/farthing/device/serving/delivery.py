"""How answers reach their callers: threads and event loops, each stream in order."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import Hashable, Iterable
from concurrent.futures import Future
from typing import Any, Literal, NamedTuple, cast

from farthing.device.serving.gather import Waiting
from farthing.device.serving.service import Answer, Request, settle
from farthing.errors import FarthingError


class Entry(Waiting):
    """A request in line, and where its answer goes: a future of threads, or one of an event loop."""

    __slots__ = ("future", "loop", "outcome", "request", "settled", "stream")

    def __init__(
        self,
        request: Request,
        future: Future[Answer] | asyncio.Future[Answer],
        loop: asyncio.AbstractEventLoop | None,
        stream: Hashable,
        arrived: float,
    ) -> None:
        self.arrived, self.deadline, self.priority = arrived, request.deadline, request.priority
        self.request, self.future, self.loop, self.stream = request, future, loop, stream
        self.outcome: Answer | FarthingError | None = None  # None: its caller took it back
        self.settled = False

    def start(self) -> bool:
        """Whether it is still wanted; from now on a thread cannot take it back."""
        if self.loop is None:
            return cast(Future[Answer], self.future).set_running_or_notify_cancel()
        return not self.future.cancelled()

    def give(self) -> None:
        """Hand over the outcome. In its event loop's thread, if it has one."""
        future: Any = self.future
        if self.outcome is None:
            return
        if self.loop is None:
            settle(future, self.outcome)
        elif future.done():
            return
        elif isinstance(self.outcome, Answer):
            future.set_result(self.outcome)
        else:
            future.set_exception(self.outcome)


class Verdict(NamedTuple):
    """What became of a request."""

    entry: Entry
    outcome: Answer | FarthingError | None
    kind: Literal["answered", "failed", "late", "cancelled"]


class Delivery:
    """Gives callers their outcomes.

    Attributes:
        counts: outcomes by kind.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._streams: dict[Hashable, deque[Entry]] = {}
        self._lock = threading.Lock()

    def expect(self, entry: Entry) -> None:
        """Note that an entry of a stream came in, behind the others of its stream."""
        with self._lock:
            self._streams.setdefault(entry.stream, deque()).append(entry)

    def give(self, verdicts: Iterable[Verdict]) -> None:
        """Hand outcomes over, each stream's in order, and to each event loop all of them at once."""
        here = _running_loop()
        loops: dict[asyncio.AbstractEventLoop, list[Entry]] = {}
        for entry in self._settled(verdicts):
            if entry.loop is None or entry.loop is here:
                entry.give()
            else:
                loops.setdefault(entry.loop, []).append(entry)
        for loop, entries in loops.items():
            with contextlib.suppress(RuntimeError):  # a closed loop: nobody is left to take them
                loop.call_soon_threadsafe(_give_all, entries)

    def _settled(self, verdicts: Iterable[Verdict]) -> list[Entry]:
        """The entries that may be answered now."""
        ready: list[Entry] = []
        with self._lock:
            for entry, outcome, kind in verdicts:
                if entry.settled:
                    continue  # it was failed when the service closed
                entry.outcome, entry.settled = outcome, True
                self.counts[kind] += 1
                if entry.stream is None:
                    ready.append(entry)
                else:
                    self._release(entry.stream, ready)
        return ready

    def _release(self, stream: Hashable, ready: list[Entry]) -> None:
        """Move those at the head of a stream that have their outcome."""
        waiting = self._streams[stream]
        while waiting and waiting[0].settled:
            ready.append(waiting.popleft())
        if not waiting:
            del self._streams[stream]


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _give_all(entries: list[Entry]) -> None:
    for entry in entries:
        entry.give()
