"""More than a machine can compute: how old answers are, how many are in time; and what one from the cache costs."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Literal, NamedTuple

import numpy as np

from farthing.device.serving.cache import Cached
from farthing.device.serving.queue import QueueRule, Realtime
from farthing.device.serving.service import Answer, Direct, Request, Service, settle
from farthing.engines.base import Engine, Tensors, open_engine
from farthing.errors import ServiceError
from farthing.model import Model
from farthing.options import EngineOptions
from harness import overhead
from harness.table import Bar, Row

TIMES = 3.0  # what is asked over what can be computed
DEADLINE = 10.0  # in inferences
POLICIES: tuple[Literal["adaptive", "drop_oldest", "drop_newest", "reject"], ...] = (
    "adaptive",
    "drop_oldest",
    "drop_newest",
    "reject",
)


class Overloaded(NamedTuple):
    """What came of a run.

    Attributes:
        asked: requests.
        ages: of each answer, seconds since its request.
        in_time: answers before their deadline.
        deadline: seconds that each request had.
        inferences: seconds that each computation took.
        seconds: of the whole run.
    """

    asked: int
    ages: list[float]
    in_time: int
    deadline: float
    inferences: list[float]
    seconds: float

    @property
    def p99(self) -> float:
        """The age that 99 % of answers do not exceed, seconds."""
        return float(np.percentile(self.ages, 99))

    @property
    def bound(self) -> float:
        """The deadline and one inference (its p99 in this very run), seconds."""
        return self.deadline + float(np.percentile(self.inferences, 99))

    def __str__(self) -> str:
        rate, possible = self.in_time / self.seconds, len(self.inferences) / sum(self.inferences)
        return (
            f"{self.asked} asked, {len(self.ages)} answered, {rate:.0f} a second in time of {possible:.0f} possible, "
            f"age p50 {1000 * float(np.median(self.ages)):.1f} ms"
        )


class Timed(Direct):
    """An engine as a service that notes how long each computation takes."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.took: list[float] = []

    def submit(self, request: Request) -> Future[Answer]:
        """See `Service.submit`."""
        began = time.monotonic()
        future = super().submit(request)
        if future.exception() is None:
            self.took.append(time.monotonic() - began)
        return future


class FirstComeFirstServed(Service):
    """What is written when nobody thinks of overload: a thread, and a queue without bounds."""

    def __init__(self, inner: Service, check: bool) -> None:
        self.name, self.inputs, self.outputs = inner.name, inner.inputs, inner.outputs
        self._inner, self._check = inner, check
        self._queue: queue.SimpleQueue[tuple[Request, Future[Answer]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Future[Answer]:
        """See `Service.submit`."""
        future: Future[Answer] = Future()
        self._queue.put((request, future))
        return future

    def _work(self) -> None:
        while (one := self._queue.get()) is not None:
            request, future = one
            free = request if self._check else Request(request.feeds)  # without a deadline
            done = self._inner.submit(free)
            settle(future, done.exception() or done.result())

    def close(self, grace: float = 0.0) -> None:
        """See `Service.close`: drops all that waits."""
        while not self._queue.empty():
            one = self._queue.get()
            if one is not None:
                settle(one[1], ServiceError("closed"))
        self._queue.put(None)
        self._thread.join()
        self._inner.close()


def overload(
    make: Callable[[Service], Service], model: Model, feeds: Tensors, seconds: float, times: float = TIMES
) -> Overloaded:
    """Ask a service for more than its engine can compute, at a steady pace from one thread.

    Args:
        make: the service around the engine.
        model: run in ONNX Runtime with one thread.
        feeds: one request.
        seconds: how long.
        times: what is asked over what can be computed, as measured just before.
    """
    with open_engine(model, "onnxruntime", EngineOptions(threads=1)) as engine:
        one = _seconds_of(engine, feeds)
    inner = Timed(open_engine(model, "onnxruntime", EngineOptions(threads=1)))
    futures: list[Future[Answer]] = []
    ages: list[tuple[float, float]] = []  # age, and how late
    slack = DEADLINE * one

    def note(asked: float, future: Future[Answer]) -> None:
        if future.exception() is None:
            now = time.monotonic()
            ages.append((now - asked, now - asked - slack))

    with make(inner) as service:
        service.submit(Request(feeds)).result()
        inner.took.clear()
        start, count = time.monotonic(), int(seconds * times / one)
        for k in range(count):
            time.sleep(max(0.0, start + k * one / times - time.monotonic()))
            asked = time.monotonic()
            futures.append(service.submit(Request(feeds, deadline=asked + slack)))
            futures[-1].add_done_callback(functools.partial(note, asked))
        took = time.monotonic() - start
    wait(futures)
    in_time = sum(over <= 0 for _, over in ages)
    return Overloaded(count, [age for age, _ in ages], in_time, slack, inner.took, took)


def _seconds_of(engine: Engine, feeds: Tensors, count: int = 50) -> float:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        engine.run(feeds)
        took.append(time.perf_counter() - began)
    return float(np.median(took))


def queue_rows(model: Model, feeds: Tensors, seconds: float) -> list[Row]:
    """A row for each policy of `Realtime`: p99 age of answers over deadline and one inference, beside plain queues."""
    plain = overload(lambda inner: FirstComeFirstServed(inner, False), model, feeds, seconds)
    checked = overload(lambda inner: FirstComeFirstServed(inner, True), model, feeds, seconds)
    peers = {"plain queue": 1000 * plain.p99, "checking deadlines": 1000 * checked.p99}
    rows = []
    for policy in POLICIES:
        rule = QueueRule(policy=policy)
        found = overload(functools.partial(Realtime, rule=rule), model, feeds, seconds)
        rows.append(
            Row(
                case=f"realtime, {TIMES:g}x overload, {policy}: p99 age",
                ours=1000 * found.p99,
                unit="ms",
                peers=peers,
                limit=1000 * found.bound,
                ratio=found.p99 / found.bound,
                bar=Bar(figure="ratio", sign="<=", value=1.0),
                note=f"over deadline ({DEADLINE:g} inferences) and one inference; {found}; "
                f"plain queue: {plain}; checking deadlines: {checked}",
            )
        )
    return rows


def cache_rows(model: Model, feeds: Tensors, seconds: float) -> list[Row]:
    """CPU of an answer from the cache, beside the computation it saves."""
    with (
        open_engine(model, "onnxruntime", EngineOptions(threads=1)) as engine,
        Cached(open_engine(model, "onnxruntime", EngineOptions(threads=1)), model.digest) as cached,
    ):
        cached.submit(Request(feeds)).result()

        def hit(count: int = 200) -> float:
            began = time.process_time()
            for _ in range(count):
                cached.submit(Request(feeds))
            return (time.process_time() - began) / count

        def bare(count: int = 10) -> float:
            began = time.process_time()
            for _ in range(count):
                engine.run(feeds)
            return (time.process_time() - began) / count

        hits, runs = overhead.taking_turns([hit, bare], seconds)
    size = sum(array.nbytes for array in feeds.values())
    ours, plain = float(np.median(hits)), float(np.median(runs))
    return [
        Row(
            case=f"cache hit, {size / 1000:.0f} kB of input",
            ours=1e6 * ours,
            unit="us",
            limit=1e6 * plain,
            ratio=ours / plain,
            bar=Bar(figure="ratio", sign="<=", value=0.1),
            note=f"CPU, {cached.digest} of the input included, over the computation it saves",
        )
    ]
