"""How answers reach their callers: threads and event loops, each stream in order."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import Hashable, Iterable
from concurrent.futures import Future
from typing import Any, Literal, cast

import msgspec

from farthing.device.serving.batch.gather import Waiting
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


class Verdict(msgspec.Struct, frozen=True, eq=False):
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
        self._taken: set[Hashable] = set()  # streams whose outcomes a thread is handing over
        self._lock = threading.Lock()

    def expect(self, entry: Entry) -> None:
        """Note that an entry of a stream came in, behind the others of its stream."""
        with self._lock:
            self._streams.setdefault(entry.stream, deque()).append(entry)

    def give(self, verdicts: Iterable[Verdict], here: asyncio.AbstractEventLoop | None = None) -> None:
        """Hand outcomes over, each stream's in order, and to each event loop all of them at once.

        A stream is handed over by one thread at a time; that one goes on with what others settle meanwhile.

        Args:
            verdicts: what became of requests.
            here: the event loop that runs in this thread, whose callers are told at once.
        """
        ready, streams = self._settled(verdicts)
        _hand_over(ready, here)
        while streams:
            with self._lock:
                ready = self._released(streams)
            _hand_over(ready, here)

    def _settled(self, verdicts: Iterable[Verdict]) -> tuple[list[Entry], set[Hashable]]:
        """The entries that may be answered now, and the streams that are this thread's to hand over."""
        ready: list[Entry] = []
        streams: set[Hashable] = set()
        with self._lock:
            for verdict in verdicts:
                entry = verdict.entry
                if entry.settled:
                    continue  # it was failed when the service closed
                entry.outcome, entry.settled = verdict.outcome, True
                self.counts[verdict.kind] += 1
                if entry.stream is None:
                    ready.append(entry)
                elif entry.stream not in self._taken:
                    streams.add(entry.stream)
            if streams:
                self._taken |= streams
                ready += self._released(streams)
        return ready, streams

    def _released(self, streams: set[Hashable]) -> list[Entry]:
        """The entries at the heads of streams that have their outcome; streams without leave the set."""
        ready: list[Entry] = []
        for stream in list(streams):
            waiting = self._streams[stream]
            if not waiting or not waiting[0].settled:
                streams.remove(stream)
                self._taken.remove(stream)
                if not waiting:
                    del self._streams[stream]
            while waiting and waiting[0].settled:
                ready.append(waiting.popleft())
        return ready


def _hand_over(entries: Iterable[Entry], here: asyncio.AbstractEventLoop | None) -> None:
    loops: dict[asyncio.AbstractEventLoop, list[Entry]] = {}
    for entry in entries:
        if entry.loop is None or entry.loop is here:
            entry.give()
        else:
            loops.setdefault(entry.loop, []).append(entry)
    for loop, ours in loops.items():
        with contextlib.suppress(RuntimeError):  # a closed loop: nobody is left to take them
            loop.call_soon_threadsafe(_give_all, ours)


def _give_all(entries: list[Entry]) -> None:
    for entry in entries:
        entry.give()
