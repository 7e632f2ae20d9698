"""Batched: requests of many callers computed together.

By default it conserves work: a runner that is free takes all that waits, so batches fill by themselves while the last
one is computed, and a lone request never waits for a timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from itertools import chain

import msgspec
from msgspec.structs import replace

from farthing.config import Section
from farthing.device.serving.batch.delivery import Delivery, Entry, Verdict
from farthing.device.serving.batch.gather import Batch, BatchRule, Line, Why
from farthing.device.serving.batch.stacking import Stack
from farthing.device.serving.ending import AtExit, Home
from farthing.device.serving.service import (
    GRACE,
    Answer,
    Clock,
    Listener,
    Ran,
    Request,
    Service,
    guarded,
    late,
    typed,
)
from farthing.engines.base import Engine
from farthing.errors import ClosedError, ConfigError, EngineError, FarthingError, FeedError, OverloadError
from farthing.target import Target

__all__ = ["INLINE_SECONDS", "BatchRule", "BatchStats", "Batched"]

INLINE_SECONDS = 150e-6  # below, handing a batch to another thread costs more than it brings
_GLANCE = 0.1  # seconds after which who waits for its turn looks whether it was answered meanwhile


class BatchStats(Section, frozen=True, kw_only=True):
    """What a `Batched` has done since it was opened; every figure adds up over processes.

    Attributes:
        requests: taken in.
        answered, failed, late, cancelled, refused: what became of them; refused ones had no room.
        retried: batches that failed, and whose requests were computed one by one.
        closed: why batches closed -> samples in them -> how many.
    """

    requests: int = 0
    answered: int = 0
    failed: int = 0
    late: int = 0
    cancelled: int = 0
    refused: int = 0
    retried: int = 0
    closed: dict[Why, dict[int, int]] = {}


class _Done(msgspec.Struct, frozen=True, eq=False):
    """A batch that was computed: what became of its requests, in how many seconds, what a listener is told of it, and
    what interrupted it.
    """

    verdicts: list[Verdict]
    seconds: float = 0.0
    ran: Ran | None = None
    interrupt: BaseException | None = None


class Batched(Service):
    """An engine that computes the requests of many callers in batches.

    A request that makes a batch fail, fails alone: the batch is computed again, one by one. A model without a free
    batch axis on every input and output computes one request at a time, on several runners.

    Attributes:
        together: samples of several requests that are computed together, at most; a request may hold more.
        inline: whether callers' own threads compute.

    Args:
        engine: an open engine, or several alike: one for each runner where an engine takes one caller at a time.
        rule: how batches are formed.
        runners: threads that compute; 0 lets the callers' own threads compute, one at a time. None measures: 0 if a
            full batch takes less than 150 microseconds, else one for each core (an engine with one thread and N
            runners beats one with N threads) or for each engine.
        duty: share of the time in which a runner computes; it rests accordingly when the answers of a batch are out.
        name: of the model; empty takes the engine's name.
        clock: seconds, what deadlines are held against.
        listener: told of each batch.

    Raises:
        ConfigError: no engine, a duty that is no share, or runners that do not go with the rest.
        EngineError: the model keeps a state: its streams cannot share batches.
    """

    def __init__(
        self,
        engine: Engine | Sequence[Engine],
        rule: BatchRule | None = None,
        *,
        runners: int | None = None,
        duty: float = 1.0,
        name: str = "",
        clock: Clock = time.monotonic,
        listener: Listener | None = None,
    ) -> None:
        engines = list(engine) if isinstance(engine, Sequence) else [engine]
        if not engines:
            raise ConfigError("a batched service needs an engine at least")
        first = engines[0]
        self.name = name or first.name
        self.inputs, self.outputs = first.inputs, first.outputs
        if first.stateful:
            raise EngineError(
                f"{self.name} keeps a state from call to call, and streams cannot share a batch: "
                "give each stream a session() of its own"
            )
        rule = rule or BatchRule()
        self._clock, self._listener = clock, listener
        self._engines = engines
        stacks = [Stack(one, rule.max_size) for one in engines]
        self._stack = stacks[0]
        self._rule = rule if self._stack.stackable else replace(rule, max_size=1, preferred=())
        if not 0 < duty <= 1:
            raise ConfigError(f"duty is a share of the time, above 0 and at most 1, not {duty}")
        self._rest = 1 / duty - 1
        self.together, full = self._stack.warm(0.0 if rule.fills else rule.pays)
        self._ahead = 0.0 if math.isinf(full) else full  # seconds a batch takes
        self._line: Line[Entry] = Line(replace(self._rule, max_size=self.together))
        self._limit = self._rule.max_size
        self._requests = self._refused = self._retried = 0
        self._closed: dict[tuple[Why, int], int] = {}
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._idle = 0
        self._closing = False
        self._over = threading.Event()  # of resting
        self._delivery = Delivery()
        self._turn = threading.Lock()  # of callers who compute themselves
        self._flusher: asyncio.AbstractEventLoop | None = None
        count = self._runners(runners, full)
        self.inline = count == 0
        stacks += [Stack(first, rule.max_size) for _ in range(count - len(stacks))]
        self._running: dict[Stack, list[Entry]] = {stack: [] for stack in stacks}
        self._threads = [
            threading.Thread(target=self._work, args=(stack,), name=f"{self.name} runner {i}", daemon=True)
            for i, stack in enumerate(stacks[:count])
        ]
        for thread in self._threads:
            thread.start()
        self._home, self._end = Home(), AtExit(self.close) if self._threads else None

    def _runners(self, wanted: int | None, full: float) -> int:
        shared = self._engines[0].concurrency == "threads" and len(self._engines) == 1
        if wanted is None:
            if full < INLINE_SECONDS and not (self._rule.delay_ms or self._rest):
                return 0
            return (Target.detect().cores or 1) if shared else len(self._engines)
        if wanted < 0:
            raise ConfigError(f"runners are from 0, not {wanted}")
        if not wanted and (self._rule.delay_ms or self._rest):
            raise ConfigError(
                "callers who compute themselves neither wait nor rest: give runners, or no delay_ms or duty"
            )
        if wanted > len(self._engines) and not shared:
            raise EngineError(
                f"engine {self.name} takes one caller at a time: give {wanted} of them for {wanted} runners"
            )
        return wanted

    def submit(self, request: Request) -> Future[Answer]:
        """See `Service.submit`. Where callers compute themselves, the answer is there when it returns."""
        future: Future[Answer] = Future()
        entry = self._entry(request, future, None, request.stream or threading.get_ident())
        if entry is not None and self.inline:
            while not future.done():
                if not self._compute_next(_GLANCE):
                    with contextlib.suppress(TimeoutError):
                        future.exception(_GLANCE)  # another thread has it
        return future

    def ask(self, request: Request) -> asyncio.Future[Answer]:
        """See `Service.ask`. The event loop is woken once for each batch, not for each request."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        entry = self._entry(request, future, loop, request.stream or None)
        if entry is not None and self.inline and self._flusher is not loop:
            loop.call_soon(self._flush, loop)
            self._flusher = loop
        return future

    def stats(self) -> BatchStats:
        """What it has done so far."""
        with self._lock:
            closed: dict[Why, dict[int, int]] = {}
            for (why, samples), count in self._closed.items():
                closed.setdefault(why, {})[samples] = count
            return BatchStats(
                requests=self._requests,
                refused=self._refused,
                retried=self._retried,
                closed=closed,
                **self._delivery.counts,
            )

    @property
    def waiting(self) -> int:
        """Samples in line."""
        return self._line.samples

    def close(self, grace: float = GRACE) -> None:
        """See `Service.close`: computes what waits, for at most ``grace`` seconds, and fails what is left then."""
        if self._home.left:
            return
        until = time.monotonic() + grace
        if self._end is not None:
            self._end.cancel()
        with self._lock:
            self._closing = True
            self._changed.notify_all()
        self._over.set()
        here = threading.current_thread()
        others = [thread for thread in self._threads if thread is not here]
        for thread in others:
            thread.join(max(0.0, until - time.monotonic()))
        if self.inline or here in self._threads:  # a runner that closes the service it works for
            while (left := until - time.monotonic()) > 0 and self._compute_next(left):
                pass
        with self._lock:
            unanswered = [*self._drained(), *chain(*self._running.values())]
        self._delivery.give(
            [
                Verdict(entry, ClosedError(f"{self.name} was closed before it could answer"), "failed")
                for entry in unanswered
            ]
        )
        if any(self._running.values()):  # an engine that hangs may not let itself be closed either
            threading.Thread(target=self._close_engines, name=f"closing {self.name}", daemon=True).start()
        else:
            self._close_engines()

    def _close_engines(self) -> None:
        for engine in self._engines:
            engine.close()

    def _drained(self) -> list[Entry]:
        left = []
        while self._line:
            batch = self._line.take(math.inf, closing=True)
            left += [*batch.items, *batch.late]
        return left

    def _entry(
        self,
        request: Request,
        future: Future[Answer] | asyncio.Future[Answer],
        loop: asyncio.AbstractEventLoop | None,
        stream: Hashable,
    ) -> Entry | None:
        """Put a request in line; None if it was refused, and its future says why."""
        entry = Entry(request, future, loop, stream, self._clock())
        try:
            if self._home.left:
                raise self._home.refusal(self.name)
            entry.size, entry.key = self._stack.measure(request.feeds)
            with self._lock:
                self._admit(entry)
        except FarthingError as error:
            entry.outcome = error
            entry.give()
            return None
        return entry

    def _admit(self, entry: Entry) -> None:
        line, size = self._line, entry.size
        if self._closing:
            raise ClosedError(f"{self.name} is closed: it takes no more requests")
        if size > self._limit:
            self._refused += 1
            raise FeedError(
                f"{self.name}: the request holds {size} samples, but a batch {self._limit} at most"
            )
        if line.samples + (size or 1) > self._rule.capacity:
            self._refused += 1
            raise OverloadError(f"{self.name}: {line.samples} samples wait already: ask again later")
        self._requests += 1
        if entry.stream is not None:
            self._delivery.expect(entry)
        line.add(entry)
        if self._idle:
            self._changed.notify()

    def _work(self, stack: Stack) -> None:
        """A runner: computes batches until the service is closed and nobody waits."""
        while (seconds := self._serve(stack)) is not None:
            if self._rest:
                self._over.wait(seconds * self._rest)

    def _serve(self, stack: Stack) -> float | None:
        """Compute one batch, and keep nothing of it; the seconds it took, None once there will be no more."""
        with self._lock:
            while not (batch := self._next()):
                if self._closing and not self._line:
                    return None
        done = self._compute(stack, batch)
        self._finish(done)
        return done.seconds

    def _next(self) -> Batch[Entry] | None:
        """The next batch, or, after a wait, None. The caller holds the lock."""
        now = self._clock()
        wait = 0.0 if self._closing and self._line else self._line.due(now, self._ahead)
        if wait <= 0:
            return self._line.take(now, self._ahead, self._closing)
        if not self._closing:
            self._idle += 1
            self._changed.wait(None if wait == math.inf else wait)
            self._idle -= 1
        return None

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Compute all that waits, in the event loop: it was scheduled behind the callers of this round."""
        self._flusher = None
        while self._line:
            self._compute_next(_GLANCE, loop)

    def _compute_next(self, patience: float, here: asyncio.AbstractEventLoop | None = None) -> bool:
        """Compute one batch in this thread; False if its turn did not come within so many seconds, or nobody waits.

        Raises:
            BaseException: what interrupted it, such as KeyboardInterrupt; the callers of the batch have failed then.
        """
        if not self._turn.acquire(timeout=patience):
            return False
        try:
            with self._lock:
                if not self._line:
                    return False
                batch = self._line.take(self._clock(), self._ahead, self._closing)
            done = self._compute(self._stack, batch)
        finally:
            self._turn.release()
        self._finish(done, here)  # outside its turn: who is answered may submit again
        if done.interrupt is not None:
            raise done.interrupt
        return True

    def _compute(self, stack: Stack, batch: Batch[Entry]) -> _Done:
        """Compute a batch."""
        began = self._clock()
        verdicts = [Verdict(one, late(self.name, one.request, began), "late") for one in batch.late]
        entries = []
        for entry in batch.items:
            if entry.start():
                entries.append(entry)
            else:
                verdicts.append(Verdict(entry, None, "cancelled"))
        if not entries:
            return _Done(verdicts)
        interrupt = None
        self._running[stack] = entries
        try:
            verdicts += self._outcomes(stack, entries)
        except BaseException as error:  # noqa: BLE001 - Ctrl-C, or a runtime that would exit: callers wait all the same
            interrupt = error
            reason = f"{self.name} was interrupted by {type(error).__name__}"
            verdicts += [Verdict(entry, EngineError(reason), "failed") for entry in entries]
        self._running[stack] = []
        ended = self._clock()
        return _Done(verdicts, ended - began, self._noted(entries, batch.why, began, ended), interrupt)

    def _finish(self, done: _Done, here: asyncio.AbstractEventLoop | None = None) -> None:
        """Tell who listens, and who waits. The caller holds no lock."""
        if done.ran is not None and self._listener is not None:
            guarded(self._listener, done.ran)
        self._delivery.give(done.verdicts, here)

    def _outcomes(self, stack: Stack, entries: list[Entry]) -> list[Verdict]:
        """Answers of a batch. If it fails, each request is computed alone, and only those that fail again fail."""
        try:
            results = stack.run([(entry.request.feeds, entry.size) for entry in entries])
        except Exception as error:  # noqa: BLE001 - whatever it is, callers wait for it, and others for the runner
            if len(entries) == 1:
                return [Verdict(entries[0], typed(error, self.name), "failed")]
            with self._lock:
                self._retried += 1
            return [self._outcomes(stack, [entry])[0] for entry in entries]
        now = self._clock()
        return [
            Verdict(entry, Answer(outputs, self.name, latency=now - entry.arrived), "answered")
            for entry, outputs in zip(entries, results, strict=True)
        ]

    def _noted(self, entries: list[Entry], why: Why, began: float, ended: float) -> Ran | None:
        """Count a batch; what a listener is told of it."""
        samples = 0
        for entry in entries:
            samples += entry.size
        seconds = ended - began
        with self._lock:
            self._closed[why, samples] = self._closed.get((why, samples), 0) + 1
            self._ahead += (seconds - self._ahead) / 8  # a moving average
        if self._listener is None:
            return None
        return Ran(len(entries), samples, seconds, [began - entry.arrived for entry in entries])
