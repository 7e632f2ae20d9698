"""Cached: answers that were given before, given again. Equal inputs that come at once are computed once."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace

from farthing.device.serving.alarm import Alarm
from farthing.device.serving.cache.flights import Flights, Waiter
from farthing.device.serving.cache.lru import CacheRule, CacheStats, Kept, Lru, frozen, size_of, views
from farthing.device.serving.ending import Home
from farthing.device.serving.service import (
    GRACE,
    Answer,
    Clock,
    Direct,
    Request,
    Service,
    failed,
    late,
    settle,
)
from farthing.engines.base import Engine, Tensors
from farthing.errors import ClosedError, EngineError, ServiceError

__all__ = ["CacheRule", "CacheStats", "Cached", "digest_of_feeds", "fastest_digest"]

Digest = Literal["sha256", "blake2b"]
_HASHES: dict[Digest, Callable[[bytes], Any]] = {
    "sha256": hashlib.sha256,
    "blake2b": partial(hashlib.blake2b, digest_size=32),
}
_COUNTED = ("requests", "hits", "misses", "joined", "passed", "late", "cancelled", "handed_on")


class Cached(Service):
    """A cache of answers before an engine or a service, by the digest of the inputs.

    A hit is marked so in its ``reason``. Its arrays are read-only, and nobody can make them writable; so are those of
    requests that waited for another's answer. Errors are not kept, nor shared: if the request that is computed fails,
    runs late or is taken back, the next one that waits for the same answer is computed. It is submitted with the
    deadline and priority of its own. Where the wrapped service computes in the thread that submits, so does this one,
    and after an error for those who waited, too.

    Args:
        inner: what computes; closed with the cache.
        model_digest: of the model behind it, so that another model's answers have other keys.
        rule: bounds, time to live, digest.
        name: of the model; empty takes the engine's, or the service's.
        clock: seconds, what deadlines and ages are held against.

    Raises:
        EngineError: the model keeps a state: its answers do not depend on its inputs alone.
    """

    def __init__(
        self,
        inner: Engine | Service,
        model_digest: str,
        rule: CacheRule | None = None,
        *,
        name: str = "",
        clock: Clock = time.monotonic,
    ) -> None:
        self.name = name or inner.name
        if inner.stateful:
            raise EngineError(
                f"{self.name} keeps a state from call to call: its answers cannot be cached, "
                "leave the cache away"
            )
        self._inner = inner if isinstance(inner, Service) else Direct(inner, self.name, clock)
        self.inputs, self.outputs = inner.inputs, inner.outputs
        rule = rule or CacheRule()
        self._clock, self._most = clock, rule.max_bytes
        self.digest: Digest = fastest_digest() if rule.digest == "fastest" else rule.digest
        self._seed = _HASHES[self.digest](f"{model_digest!r}\n".encode())
        self._lru, self._flights = Lru(rule), Flights()
        self._runs: dict[int, Future[Answer]] = {}  # number of the request that is computed -> by what
        self._number = 0
        self._counts: dict[str, int] = dict.fromkeys(_COUNTED, 0)
        self._lock, self._home = threading.Lock(), Home()
        self._closed = False
        self._alarm = Alarm(self._expire, clock, f"{self.name} deadlines")

    @property
    def waiting(self) -> int:
        """Requests in line behind the cache."""
        return self._inner.waiting

    def submit(self, request: Request) -> Future[Answer]:
        """See `Service.submit`."""
        if self._home.left:
            return failed(self._home.refusal(self.name))
        now = self._clock()
        if not request.deadline > now:
            self._count("requests", "late")
            return failed(late(self.name, request, now))
        key = digest_of_feeds(request.feeds, self._seed.copy())
        if key is None:
            self._count("requests", "passed")
            return self._inner.submit(request)
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed:
                return failed(ClosedError(f"{self.name} is closed: it takes no more requests"))
            self._number += 1
            waiter = Waiter(self._number, request, future, now)
            kept = self._lru.get(key, now)
            first = kept is None and self._flights.board(key, waiter)
            self._counts["requests"] += 1
            self._counts["hits" if kept is not None else "misses" if first else "joined"] += 1
        if kept is not None:
            latency = self._clock() - now
            future.set_result(Answer(views(kept.outputs), kept.source, kept.confidence, latency, "cache hit"))
            return future
        if first:
            self._compute(key, waiter)
        else:
            self._alarm.at(request.deadline)
        if not future.done():
            # Its number, not the waiter: that holds the future, and a circle would live until the next collection.
            future.add_done_callback(partial(self._withdraw, key, waiter.number))
        return future

    def stats(self) -> CacheStats:
        """What it has done so far."""
        with self._lock:
            return CacheStats(**self._counts, **self._lru.counts())

    def clear(self) -> None:
        """Forget all answers."""
        with self._lock:
            self._lru.clear()

    def close(self, grace: float = GRACE) -> None:
        """See `Service.close`."""
        if self._home.left:
            return
        with self._lock:
            self._closed = True
            self._lru.clear()
        self._inner.close(grace)
        with self._lock:
            left = self._flights.clear()
        for waiter in left:
            settle(waiter.future, ClosedError(f"{self.name} was closed before it could answer"))
        self._alarm.close()

    def _compute(self, key: bytes, waiter: Waiter | None) -> None:
        """Have a request computed; if it fails here and now, the next one that waits for the same answer."""
        while waiter is not None:
            run = self._start(waiter.request)
            if not run.done():
                with self._lock:
                    wanted = self._flights.is_first(key, waiter.number)
                    if wanted:
                        self._runs[waiter.number] = run
                if not wanted:
                    run.cancel()
                run.add_done_callback(partial(self._landed, key, waiter))
                return
            waiter = self._land(key, waiter, run)

    def _start(self, request: Request) -> Future[Answer]:
        try:
            return self._inner.submit(request)
        except Exception as error:  # noqa: BLE001 - a service that raises is broken, but others wait for its answer
            return failed(ServiceError(f"{self.name} failed: {type(error).__name__}: {error}"))

    def _landed(self, key: bytes, waiter: Waiter, run: Future[Answer]) -> None:
        self._compute(key, self._land(key, waiter, run))

    def _land(self, key: bytes, waiter: Waiter, run: Future[Answer]) -> Waiter | None:
        """Take in what came of a computation; the request to compute next, if those in line have no answer yet."""
        outcome = self._outcome(run)
        good = outcome if isinstance(outcome, Answer) else None
        outputs = None if good is None else frozen(good.outputs)
        now = self._clock()
        with self._lock:
            self._runs.pop(waiter.number, None)
            if not self._flights.is_first(key, waiter.number):
                return None  # it was taken back, and its tensors may have changed while it was computed
            if good is None or waiter.future.cancelled():
                company, (following, too_late) = [], self._hand_on(key, now)
            else:
                company, following, too_late = self._flights.land(key), None, []
                self._keep(key, good, outputs, now)
        if good is not None:
            for other in company:  # before the first one gets its answer, and writes into it
                self._share(good, outputs, other, now)
            outcome = replace(good, latency=now - waiter.arrived)
        settle(waiter.future, outcome)
        self._fail_late(too_late, now)
        return following

    def _keep(self, key: bytes, answer: Answer, outputs: Tensors | None, now: float) -> None:
        """Put an answer into the cache, if it can be kept. The caller holds the lock."""
        if outputs is None:
            self._lru.refuse()
        elif not self._closed:
            self._lru.put(key, Kept(outputs, answer.source, answer.confidence, size_of(outputs)), now)

    def _share(self, answer: Answer, outputs: Tensors | None, other: Waiter, now: float) -> None:
        """Give an answer to one who waited for it."""
        if not other.request.deadline > now:
            self._fail_late([other], now)
            return
        own = (
            {name: value.copy() for name, value in answer.outputs.items()}
            if outputs is None
            else views(outputs)
        )
        reason = "computed for a request of the same input"
        latency = now - other.arrived
        settle(other.future, Answer(own, answer.source, answer.confidence, latency, reason))

    def _hand_on(self, key: bytes, now: float) -> tuple[Waiter | None, list[Waiter]]:
        """See `Flights.hand_on`. The caller holds the lock."""
        following, too_late = self._flights.hand_on(key, now)
        self._counts["handed_on"] += following is not None
        return following, too_late

    def _withdraw(self, key: bytes, number: int, future: Future[Answer]) -> None:
        """A future is done: if its caller cancelled it, it waits no more, and nobody else for it."""
        if not future.cancelled():
            return
        now, following = self._clock(), None
        too_late: list[Waiter] = []
        with self._lock:
            run = self._runs.pop(number, None)
            waited = self._flights.withdraw(key, number)
            if self._flights.is_first(key, number):
                waited = True
                following, too_late = self._hand_on(key, now)
            self._counts["cancelled"] += waited
        if waited:
            future.set_running_or_notify_cancel()  # or `concurrent.futures.wait` waits for it for ever
        if run is not None:
            run.cancel()
        self._fail_late(too_late, now)
        self._compute(key, following)

    def _expire(self) -> float:
        """Fail those in line whose deadline has passed; the next deadline."""
        now = self._clock()
        with self._lock:
            gone, soonest = self._flights.expire(now)
        self._fail_late(gone, now)
        return soonest

    def _fail_late(self, waiters: Iterable[Waiter], now: float) -> None:
        for waiter in waiters:
            self._count("late")
            settle(waiter.future, late(self.name, waiter.request, now))

    def _outcome(self, run: Future[Answer]) -> Answer | BaseException:
        if run.cancelled():
            return ServiceError(f"{self.name}: the request was taken back where it was computed")
        error = run.exception()
        return run.result() if error is None else error

    def _count(self, *names: str) -> None:
        with self._lock:
            for name in names:
                self._counts[name] += 1


def digest_of_feeds(feeds: Mapping[str, object], digest: Any) -> bytes | None:
    """The digest of tensors: names, types, shapes and numbers, in whichever order and memory layout they come.

    Args:
        feeds: tensor name -> array.
        digest: a hash of `hashlib`, to which they are added.

    Returns:
        The digest; None if there is anything but arrays of numbers or characters among them.
    """
    for name in sorted(feeds):
        array = feeds[name]
        if (
            not isinstance(array, np.ndarray)
            or array.dtype.hasobject
            or array.dtype.names
            or not array.itemsize
        ):
            return None
        digest.update(f"{name!r} {array.dtype.str} {array.dtype.name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return bytes(digest.digest())


def fastest_digest(clock: Clock = time.perf_counter) -> Digest:
    """Which of SHA-256 and BLAKE2b is the faster one on this machine; it takes about a millisecond to find out.

    These are the two fast ones of the standard library that no two inputs are known to share a digest of; SHA-1 and MD5
    are not safe from inputs made to collide.
    """
    data = bytes(1 << 16)

    def seconds(name: Digest) -> float:
        times = []
        for _ in range(5):
            start = clock()
            _HASHES[name](data).digest()
            times.append(clock() - start)
        return min(times)

    candidates: tuple[Digest, ...] = ("sha256", "blake2b")
    return min(candidates, key=seconds)
