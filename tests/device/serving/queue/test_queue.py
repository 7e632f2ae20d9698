"""The realtime queue with threads; its rules are tested in test_backlog.py."""

from __future__ import annotations

import asyncio
import gc
import math
import pickle
import random
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
import pytest

from farthing.device.serving.queue import QueueRule, Realtime
from farthing.device.serving.service import Answer, Request, Service, settle
from farthing.engines.base import Tensors, open_engine
from farthing.engines.fake import FakeEngine
from farthing.errors import ClosedError, DeadlineError, EngineError, FeedError, OverloadError, ServiceError
from farthing.options import EngineOptions
from farthing.testing import fake_model

X = {"x": np.ones((2, 4), np.float32)}
LONG = 60.0


class Gated(FakeEngine):
    """An engine that waits in ``run`` until it is let through, and writes down what came."""

    concurrency = "threads"  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(fake_model(), EngineOptions())
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.seen: list[float] = []

    def run(self, feeds: Tensors) -> dict[str, Any]:
        self.seen.append(float(feeds["x"][0, 0]))
        self.entered.release()
        assert self.gate.acquire(timeout=LONG)
        return super().run(feeds)

    def open(self, times: int = 10_000) -> None:
        self.gate.release(times)


class Later(Service):
    """A service that answers when it is told to."""

    name = "later"
    inputs = outputs = ()

    def __init__(self) -> None:
        self.inside: list[tuple[Request, Future[Answer]]] = []
        self.came = threading.Semaphore(0)
        self.most = 0

    def submit(self, request: Request) -> Future[Answer]:
        future: Future[Answer] = Future()
        self.inside.append((request, future))
        self.most = max(self.most, len(self.inside))
        self.came.release()
        return future

    def answer_first(self) -> Request:
        assert self.came.acquire(timeout=LONG)
        request, future = self.inside.pop(0)
        future.set_result(Answer({}, self.name))
        return request

    def close(self, grace: float = 0.0) -> None:
        until = time.monotonic() + grace
        while self.inside and time.monotonic() < until:
            time.sleep(0.001)
        for _, future in self.inside:
            settle(future, ClosedError("closed"))
        self.inside.clear()


def marked(value: float) -> Tensors:
    return {"x": np.full((1, 4), value, np.float32)}


@pytest.fixture
def gated() -> Iterator[Gated]:
    engine = Gated()
    yield engine
    engine.open()


def soon(seconds: float = LONG) -> float:
    return time.monotonic() + seconds


def test_it_answers_as_the_engine_does() -> None:
    with open_engine(fake_model()) as engine:
        expected = engine.run(X)["y"]
    with Realtime(open_engine(fake_model())) as queue:
        assert queue.service_seconds is None
        answer = queue.submit(Request(X)).result(LONG)
        np.testing.assert_array_equal(answer.outputs["y"], expected)
        assert answer.source == queue.name == "fake"
        assert [spec.name for spec in queue.inputs] == ["x"]
        assert 0 < answer.latency < LONG
        assert isinstance(queue.submit(Request({})).exception(LONG), FeedError)
        assert queue.submit(Request(X)).result(LONG)
        stats = queue.stats()
        assert (stats.requests, stats.answered, stats.failed) == (3, 2, 1)
        assert queue.service_seconds is not None


def test_those_that_wait_are_computed_in_order_of_deadline(gated: Gated) -> None:
    with Realtime(gated) as queue:
        first = queue.submit(Request(marked(0)))
        assert gated.entered.acquire(timeout=LONG)
        rest = [queue.submit(Request(marked(n), deadline=soon(LONG - n))) for n in (1, 3, 2)]
        assert queue.waiting == 3
        gated.open()
        wait([first, *rest], LONG)
        assert gated.seen == [0, 3, 2, 1]


def test_a_request_without_deadline_gets_one_and_is_told_when_it_passes(gated: Gated) -> None:
    with Realtime(gated, QueueRule(timeout_ms=20)) as queue:
        first = queue.submit(Request(marked(0), deadline=soon()))
        assert gated.entered.acquire(timeout=LONG)
        second = queue.submit(Request(marked(1), id="b"))
        error = second.exception(LONG)  # while the engine is still at the first one
        assert isinstance(error, DeadlineError)
        assert "the deadline of request 'b' passed" in str(error)
        assert not first.done()
        gated.open()
        assert first.result(LONG)
        assert gated.seen == [0]
        assert queue.stats().late == 1


def test_without_a_timeout_requests_wait_for_as_long_as_it_takes(gated: Gated) -> None:
    with Realtime(gated, QueueRule(timeout_ms=None)) as queue:
        futures = [queue.submit(Request(marked(n))) for n in range(3)]
        gated.open()
        assert [future.result(LONG).source for future in futures] == ["fake"] * 3
        assert gated.seen == [0, 1, 2]


def test_who_finds_no_room_is_told_when_to_ask_again(gated: Gated) -> None:
    with Realtime(gated, QueueRule(policy="reject", size=1)) as queue:
        gated.open(1)
        queue.submit(Request(marked(0))).result(LONG)
        assert gated.entered.acquire(timeout=LONG)
        futures = [queue.submit(Request(marked(1), deadline=soon()))]
        assert gated.entered.acquire(timeout=LONG)
        futures += [queue.submit(Request(marked(n), deadline=soon())) for n in (2, 3)]
        error = futures[-1].exception(0)
        assert isinstance(error, OverloadError)
        assert "the queue is full; ask again in" in str(error)
        assert error.retry_after is not None
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.retry_after) == (str(error), error.retry_after)
        gated.open()
        assert futures[1].result(LONG)


def test_the_freshest_frames_win_where_the_oldest_are_dropped(gated: Gated) -> None:
    with Realtime(gated, QueueRule(policy="drop_oldest", size=1)) as queue:
        futures = [queue.submit(Request(marked(0), deadline=soon()))]
        assert gated.entered.acquire(timeout=LONG)
        futures += [queue.submit(Request(marked(n), deadline=soon())) for n in range(1, 10)]
        gated.open()
        wait(futures, LONG)
        assert gated.seen == [0, 9]
        assert isinstance(futures[5].exception(0), OverloadError)
        assert queue.stats().displaced == 8


def test_pressure_is_announced_in_order_and_a_listener_that_raises_harms_nobody(
    gated: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[bool] = []
    down = threading.Event()

    def listen(high: bool) -> None:
        heard.append(high)
        if not high:
            down.set()
        raise RuntimeError("listener")

    rule = QueueRule(policy="reject", size=4, high_water=0.75, low_water=0.25)
    with Realtime(gated, rule, on_pressure=listen) as queue:
        futures = [queue.submit(Request(marked(n), deadline=soon())) for n in range(5)]
        futures[-1].cancel()
        futures += [queue.submit(Request(marked(n), deadline=soon())) for n in range(2)]
        assert queue.pressure
        assert heard == [True]
        gated.open()
        assert down.wait(LONG)
        assert heard == [True, False]
        wait(futures, LONG)
    assert "listener" in caplog.text


def test_a_listener_may_submit(gated: Gated) -> None:
    futures: list[Future[Answer]] = []

    def listen(high: bool) -> None:
        if high:
            futures.append(queue.submit(Request(X, deadline=soon())))

    queue = Realtime(gated, QueueRule(policy="reject", size=4), on_pressure=listen)
    with queue:
        for _ in range(4):
            queue.submit(Request(X, deadline=soon()))
        assert len(futures) == 1
        gated.open()
        assert futures[0].result(LONG)


def test_a_request_taken_back_frees_its_place(gated: Gated) -> None:
    with Realtime(gated, QueueRule(policy="reject", size=1)) as queue:
        first = queue.submit(Request(marked(0), deadline=soon()))
        assert gated.entered.acquire(timeout=LONG)
        second = queue.submit(Request(marked(1), deadline=soon()))
        assert second.cancel()
        assert queue.waiting == 0
        third = queue.submit(Request(marked(2), deadline=soon()))
        assert not first.cancel()  # it is being computed
        gated.open()
        wait([first, third], LONG)
        assert gated.seen == [0, 2]
        assert queue.stats().cancelled == 1


def test_coroutines_wait_and_give_up(gated: Gated) -> None:
    async def three() -> list[Any]:
        first = queue.ask(Request(marked(0), deadline=soon()))
        assert await asyncio.to_thread(gated.entered.acquire, timeout=LONG)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.ask(Request(marked(1), deadline=soon())), 0.01)
        last = [queue.ask(Request(marked(n), deadline=soon())) for n in (2, 3)]
        gated.open()
        return [(await one).source for one in (first, *last)]

    with Realtime(gated) as queue:
        assert asyncio.run(three()) == ["fake"] * 3
        assert gated.seen == [0, 2, 3]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_an_engine_is_entered_by_so_many_at_once_and_no_more(gated: Gated, concurrency: int) -> None:
    before = threading.active_count()
    with Realtime(gated, QueueRule(concurrency=concurrency)) as queue:
        futures = [queue.submit(Request(marked(n), deadline=soon())) for n in range(6)]
        for _ in range(concurrency):
            assert gated.entered.acquire(timeout=LONG)
        assert not gated.entered.acquire(timeout=0.02)
        assert queue.stats().inside == concurrency
        gated.open()
        wait(futures, LONG)
        assert threading.active_count() <= before + concurrency + 1
    assert threading.active_count() == before


def test_a_service_that_answers_later_needs_one_thread() -> None:
    inner = Later()
    with Realtime(inner, QueueRule(concurrency=4)) as queue:
        futures = [queue.submit(Request({}, deadline=soon())) for _ in range(20)]
        for _ in range(20):
            inner.answer_first()
        wait(futures, LONG)
        assert inner.most <= 4
        assert queue.stats().answered == 20


def test_the_deadline_it_was_given_travels_on() -> None:
    inner = Later()
    with Realtime(inner, QueueRule(timeout_ms=5000)) as queue:
        future = queue.submit(Request({}, id="a", priority=3))
        request = inner.answer_first()
        assert time.monotonic() < request.deadline < time.monotonic() + 5
        assert (request.id, request.priority) == ("a", 3)
        assert future.result(LONG).source == "later"


class Broken(Later):
    def submit(self, request: Request) -> Future[Answer]:
        if request.id == "raise":
            raise RuntimeError("bug")
        future: Future[Answer] = Future()
        if request.id == "cancel":
            future.cancel()
        else:
            future.set_result(Answer({}, "broken"))
        return future


def test_a_broken_service_fails_its_caller_and_nobody_else() -> None:
    with Realtime(Broken()) as queue:
        errors = [queue.submit(Request({}, id=name)).exception(LONG) for name in ("raise", "cancel")]
        assert [type(error) for error in errors] == [ServiceError, ServiceError]
        assert "RuntimeError: bug" in str(errors[0])
        assert queue.submit(Request({})).result(LONG).source == "broken"
        assert queue.stats().failed == 2


def test_closing_fails_everybody_when_the_grace_is_over(gated: Gated) -> None:
    queue = Realtime(gated)
    first = queue.submit(Request(marked(0), deadline=soon()))
    assert gated.entered.acquire(timeout=LONG)
    second = queue.submit(Request(marked(1), deadline=soon()))
    queue.close(0.05)  # the engine hangs
    assert isinstance(first.exception(0), ClosedError)
    assert isinstance(second.exception(0), ClosedError)
    assert isinstance(queue.submit(Request(X)).exception(0), ClosedError)
    queue.close(0.0)
    with pytest.raises(EngineError, match="closed"):
        FakeEngine.run(gated, X)
    assert queue.stats().closed == 1
    gated.open()  # the late answer harms nobody


def test_closing_answers_those_that_wait_while_there_is_time(gated: Gated) -> None:
    queue = Realtime(gated)
    futures = [queue.submit(Request(marked(i), deadline=soon())) for i in range(5)]
    assert gated.entered.acquire(timeout=LONG)
    closing = threading.Thread(target=queue.close)
    closing.start()
    while not (refused := queue.submit(Request(X, deadline=soon()))).done():
        refused.cancel()
    assert isinstance(refused.exception(0), ClosedError)
    gated.open()
    assert all(future.result(LONG).source == "fake" for future in futures)
    closing.join(LONG)
    assert queue.stats().closed == 0


def test_closing_waits_for_a_service_that_answers_later_and_for_nobody_in_vain() -> None:
    inner = Later()
    queue = Realtime(inner, QueueRule(policy="reject"))
    futures = [queue.submit(Request({}, deadline=soon()))]
    assert inner.came.acquire(timeout=LONG)
    inner.came.release()
    futures += [queue.submit(Request({}, deadline=soon())) for _ in range(2)]
    futures += [queue.submit(Request({}, deadline=soon(0.05))) for _ in range(3)]
    closing = threading.Thread(target=queue.close, args=(10 * LONG,))
    closing.start()
    wait(futures[3:], LONG)  # too late, while it closes
    futures[2].cancel()
    for _ in range(2):
        inner.answer_first()
    closing.join(LONG)
    assert not closing.is_alive()
    assert [future.result(0).source for future in futures[:2]] == ["later"] * 2


def test_a_callback_may_close_it() -> None:
    queue = Realtime(open_engine(fake_model()))
    closed = threading.Event()

    def close(_: Future[Answer]) -> None:
        queue.close()
        closed.set()

    queue.submit(Request(X)).add_done_callback(close)
    assert closed.wait(LONG)


def test_a_callback_may_close_it_in_a_thread_of_what_it_stands_before() -> None:
    """That thread has nobody else to answer those that wait."""
    inner = Later()
    queue = Realtime(inner)
    futures = [queue.submit(Request({}, deadline=soon())) for _ in range(3)]
    futures[0].add_done_callback(lambda _: queue.close(grace=3600))
    answering = threading.Thread(target=inner.answer_first, daemon=True)
    answering.start()
    assert not wait(futures[1:], LONG).not_done
    assert all(isinstance(future.exception(0), ClosedError) for future in futures[1:])
    answering.join(LONG)
    assert not answering.is_alive()


def test_a_queue_before_a_queue() -> None:
    with Realtime(Realtime(open_engine(fake_model()))) as queue:
        assert queue.answer(X).source == "fake"


@pytest.mark.parametrize("deadline", [math.inf, -math.inf], ids=["answered", "turned away"])
def test_tensors_are_freed_with_the_answer_and_not_by_the_collector(deadline: float) -> None:
    gc.collect()
    gc.disable()
    try:
        with Realtime(open_engine(fake_model())) as queue:
            feeds = marked(1.0)
            fed = weakref.ref(feeds["x"])
            wait([queue.submit(Request(feeds, deadline=deadline))], LONG)
            del feeds
            queue.submit(Request(marked(2.0))).result(LONG)  # the worker is done with the one before
            assert fed() is None
    finally:
        gc.enable()


def test_everybody_hears_once_under_a_storm_of_callers() -> None:
    rule = QueueRule(size=8, concurrency=2, timeout_ms=5)
    engine = Gated()
    engine.open(1_000_000)
    futures: list[Future[Answer]] = []
    with Realtime(engine, rule) as queue:

        def storm(seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(150):
                deadline = time.monotonic() + dice.random() / 100 if dice.random() < 0.5 else math.inf
                future = queue.submit(Request(marked(seed), deadline=deadline, priority=dice.randrange(3)))
                futures.append(future)
                if dice.random() < 0.2:
                    future.cancel()

        threads = [threading.Thread(target=storm, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        done, undone = wait(futures, LONG)
        assert not undone
        stats = queue.stats()
    good = sum(not future.cancelled() and future.exception() is None for future in done)
    assert stats.requests == 1200
    assert stats.answered == good == len(engine.seen)
    assert stats.cancelled <= sum(future.cancelled() for future in done)  # some are turned away just before
    assert stats.waiting == stats.inside == 0
    turned_away = stats.late + stats.refused + stats.displaced + stats.hopeless + stats.thinned
    assert stats.answered + stats.failed + stats.cancelled + turned_away == 1200
