"""The cache with callers; what it keeps is tested in test_lru.py."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
import sys
import threading
import time
import weakref
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from farthing.device.serving.cache import Cached, CacheRule, digest_of_feeds, fastest_digest
from farthing.device.serving.queue import QueueRule, Realtime
from farthing.device.serving.service import Answer, Request, Service, settle
from farthing.engines.base import Tensors, open_engine
from farthing.engines.fake import FakeEngine
from farthing.errors import (
    ClosedError,
    DeadlineError,
    EngineError,
    FarthingError,
    FeedError,
    OverloadError,
    ServiceError,
)
from farthing.options import EngineOptions
from farthing.testing import FakeClock, fake_model

LONG = 60.0


def marked(value: float) -> Tensors:
    return {"x": np.full((1, 4), value, np.float32)}


class Counting(FakeEngine):
    """Counts its runs."""

    def __init__(self, **model: Any) -> None:
        super().__init__(fake_model(**model), EngineOptions())
        self.runs = 0

    def run(self, feeds: Tensors) -> dict[str, Any]:
        self.runs += 1
        return super().run(feeds)


class Later(Service):
    """A service that answers when it is told to; the answer is the input, in an array of its own."""

    name = "later"
    inputs = outputs = ()

    def __init__(self) -> None:
        self.inside: list[tuple[Request, Future[Answer]]] = []
        self.came = threading.Semaphore(0)

    def submit(self, request: Request) -> Future[Answer]:
        future: Future[Answer] = Future()
        self.inside.append((request, future))
        self.came.release()
        return future

    def settle(self, place: int = 0, error: FarthingError | None = None) -> None:
        request, future = self.inside.pop(place)
        settle(future, error or Answer({"y": request.feeds["x"].copy()}, self.name, 0.5))

    def close(self, grace: float = 0.0) -> None:
        while self.inside:
            self.settle(error=ClosedError("later is closed"))


def value(future: Future[Answer]) -> float:
    return float(future.result(0).outputs["y"][0, 0])


# Hits ----------------------------------------------------------------------------------------------------------------


def test_the_second_answer_comes_from_the_cache_and_is_the_first_one() -> None:
    engine = Counting()
    with Cached(engine, "digest") as cached:
        first, second = (cached.submit(Request(marked(3))).result(0) for _ in range(2))
        np.testing.assert_array_equal(first.outputs["y"], second.outputs["y"])
        assert engine.runs == 1
        assert (first.reason, second.reason) == ("", "cache hit")
        assert second.source == first.source == "fake"
        cached.clear()
        cached.submit(Request(marked(3)))
        assert engine.runs == 2
        stats = cached.stats()
        assert (stats.requests, stats.hits, stats.misses, stats.entries) == (3, 1, 2, 1)


def test_names_shapes_types_values_and_the_model_make_an_input_another() -> None:
    x = np.arange(6, dtype=np.float32)
    zero, minus = np.zeros(1, np.float32), -np.zeros(1, np.float32)
    different: list[Tensors] = [
        {"x": x},
        {"y": x},
        {"x": x.reshape(2, 3)},
        {"x": x.reshape(3, 2)},
        {"x": x.view(np.int32)},
        {"x": x.astype(">f4")},
        {"x": x[:5]},
        {"x": x + 1},
        {"x": x, "z": x},
        {"x": x[:3], "z": x[3:]},
        {"x": zero},
        {"x": minus},
        {"x": np.zeros((0, 3), np.float32)},
        {"x": np.zeros((3, 0), np.float32)},
        {"x": np.array(["ab", "c"])},
        {"x": np.array(["a", "bc"])},
        {"x' ": x},
    ]
    digests = [digest_of_feeds(feeds, hashlib.sha256()) for feeds in different]
    digests += [digest_of_feeds({"x": x}, hashlib.sha256(b"another model"))]
    assert None not in digests
    assert len(set(digests)) == len(different) + 1


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4)), st.booleans())
def test_memory_layout_and_order_of_names_do_not(array: np.ndarray, backwards: bool) -> None:
    other = np.asfortranarray(np.repeat(array, 2, axis=0))[::2]  # neither contiguous nor in C order
    feeds = {"a": array, "b": array[:1]}
    others = {"b": other[:1], "a": other} if backwards else {"a": other, "b": other[:1]}
    assert digest_of_feeds(feeds, hashlib.sha256()) == digest_of_feeds(others, hashlib.sha256())


def test_what_has_no_digest_is_computed_each_time() -> None:
    strange: list[Any] = [[1.0], np.array(["a"], object), np.zeros(1, [("a", "f4")])]
    with Cached(Later(), "digest") as cached:
        for one in strange:
            cached.submit(Request({"x": one}))
            cached.submit(Request({"x": one}))
        assert cached.stats().passed == 6
    with Cached(Counting(), "digest") as cached:
        assert isinstance(cached.submit(Request({"x": [1.0]})).exception(0), FeedError)  # type: ignore[dict-item]


def test_a_digest_is_chosen_by_its_time() -> None:
    ticks = iter(range(1000))
    slow = iter([0.0, 9.0] * 5 + [0.0, 1.0] * 5)
    assert fastest_digest(lambda: next(slow)) == "blake2b"
    assert fastest_digest(lambda: float(next(ticks))) == "sha256"
    for name in ("sha256", "blake2b"):
        with Cached(Counting(), "digest", CacheRule(digest=name)) as cached:
            assert cached.digest == name
            reasons = [cached.submit(Request(marked(n))).result(0).reason for n in (1, 1, 2)]
            assert reasons == ["", "cache hit", ""]


def test_answers_become_too_old_and_make_room() -> None:
    clock = FakeClock()
    engine = Counting()
    with Cached(engine, "digest", CacheRule(ttl_s=10, entries=2), clock=clock) as cached:
        cached.submit(Request(marked(1)))
        clock.advance(9)
        assert cached.submit(Request(marked(1))).result(0).reason
        clock.advance(1)
        assert not cached.submit(Request(marked(1))).result(0).reason
        for n in (2, 1, 3, 1, 2):  # 3 drives 2 out, which was not asked for since
            cached.submit(Request(marked(n)))
        stats = cached.stats()
        assert (stats.hits, stats.expired, stats.evicted_entries, stats.entries) == (3, 1, 2, 2)


def test_an_answer_larger_than_the_cache_is_passed_on() -> None:
    engine = Counting()
    with Cached(engine, "digest", CacheRule(max_bytes=100)) as cached:
        assert [cached.submit(Request(marked(1))).result(0).reason for _ in range(2)] == ["", ""]
        stats = cached.stats()
        assert (stats.too_big, stats.stored, stats.bytes) == (2, 0, 0)


def test_a_caller_cannot_poison_the_cache() -> None:
    with Cached(Counting(), "digest") as cached:
        first = cached.submit(Request(marked(1))).result(0)
        expected = first.outputs["y"].copy()
        first.outputs["y"][...] = 99  # its own: allowed
        hit = cached.submit(Request(marked(1))).result(0)
        with pytest.raises(ValueError, match="read-only"):
            hit.outputs["y"][...] = 99
        hit.outputs["y"].shape = (3, 1)
        hit.outputs.clear()  # type: ignore[attr-defined]
        np.testing.assert_array_equal(cached.submit(Request(marked(1))).result(0).outputs["y"], expected)


def test_errors_are_not_kept() -> None:
    engine = Counting()
    with Cached(engine, "digest") as cached:
        wrong = {"x": np.zeros((1, 5), np.float32)}
        assert [type(cached.submit(Request(wrong)).exception(0)) for _ in range(2)] == [FeedError, FeedError]
        assert engine.runs == 2
        assert cached.stats().entries == 0


def test_models_that_keep_a_state_are_refused_by_name() -> None:
    for inner in (Counting(decay=0.5), Realtime(Counting(decay=0.5), name="tracker")):
        name = "tracker" if isinstance(inner, Realtime) else "fake"
        with pytest.raises(EngineError, match=f"{name} keeps a state"):
            Cached(inner, "digest")
        inner.close()


# One computation for all ---------------------------------------------------------------------------------------------


def test_equal_inputs_at_once_are_computed_once() -> None:
    inner = Later()
    with Cached(inner, "digest") as cached:
        futures = [cached.submit(Request(marked(1))) for _ in range(4)]
        other = cached.submit(Request(marked(2)))
        assert len(inner.inside) == 2
        inner.settle()
        inner.settle()
        assert [value(future) for future in futures] == [1.0] * 4
        assert value(other) == 2.0
        assert {future.result().reason for future in futures[1:]} == {
            "computed for a request of the same input"
        }
        assert futures[1].result().confidence == 0.5
        futures[0].result().outputs["y"][...] = 99
        assert value(futures[1]) == 1.0
        with pytest.raises(ValueError, match="read-only"):
            futures[1].result().outputs["y"][...] = 99
        stats = cached.stats()
        assert (stats.misses, stats.joined) == (2, 3)


@pytest.mark.parametrize("error", [EngineError("no"), DeadlineError("late"), OverloadError("full")])
def test_an_error_is_that_of_who_asked_and_the_next_one_is_computed(error: FarthingError) -> None:
    inner = Later()
    with Cached(inner, "digest") as cached:
        futures = [cached.submit(Request(marked(1), id=name)) for name in "abc"]
        inner.settle(error=error)
        assert futures[0].exception(0) is error
        assert [request.id for request, _ in inner.inside] == ["b"]
        inner.settle()
        assert [value(future) for future in futures[1:]] == [1.0, 1.0]
        assert cached.stats().handed_on == 1


def test_who_takes_a_request_back_takes_it_from_nobody_else() -> None:
    inner = Later()
    with Cached(inner, "digest") as cached:
        futures = [cached.submit(Request(marked(1), id=name)) for name in "abc"]
        assert futures[0].cancel()
        assert inner.inside[0][1].cancelled()  # it need not be computed for him
        assert [request.id for request, _ in inner.inside] == ["a", "b"]
        inner.settle(1)
        assert [value(future) for future in futures[1:]] == [1.0, 1.0]
        assert wait(futures, LONG).not_done == set()
        assert cached.stats().cancelled == 1


def test_what_is_computed_for_who_took_it_back_is_not_trusted() -> None:
    """He may use his tensors for something else, while they are still being read."""
    inner = Later()
    with Cached(inner, "digest") as cached:
        feeds = marked(1)
        future = cached.submit(Request(feeds))
        inner.inside[0][1].set_running_or_notify_cancel()  # too late to stop it
        future.cancel()
        feeds["x"][...] = 99
        inner.settle()
        again = cached.submit(Request(marked(1)))
        inner.settle()
        assert value(again) == 1.0


def test_the_last_one_who_takes_it_back_stops_it() -> None:
    inner = Later()
    with Cached(inner, "digest") as cached:
        futures = [cached.submit(Request(marked(1))) for _ in range(3)]
        for future in futures[1:] + futures[:1]:
            assert future.cancel()
        assert len(inner.inside) == 1
        assert inner.inside[0][1].cancelled()
        cached.submit(Request(marked(1)))
        assert len(inner.inside) == 2


def test_a_request_taken_back_while_it_is_submitted_is_stopped() -> None:
    class Hooked(Later):
        def submit(self, request: Request) -> Future[Answer]:
            if request.id == "b":
                futures[1].cancel()
            return super().submit(request)

    inner = Hooked()
    with Cached(inner, "digest") as cached:
        futures = [cached.submit(Request(marked(1), id=name)) for name in "abc"]
        inner.settle(error=EngineError("no"))
        running = {request.id: not future.cancelled() for request, future in inner.inside}
        assert running == {"b": False, "c": True}
        inner.settle([request.id for request, _ in inner.inside].index("c"))
        assert value(futures[2]) == 1.0


def test_errors_of_many_do_not_pile_up_on_the_stack() -> None:
    engine = Counting()
    gate, entered = threading.Event(), threading.Event()

    class Failing(Service):
        name = "failing"
        inputs = outputs = ()
        runs = 0

        def submit(self, request: Request) -> Future[Answer]:
            self.runs += 1
            entered.set()
            gate.wait(LONG)
            future: Future[Answer] = Future()
            future.set_exception(EngineError("no"))
            return future

        def close(self, grace: float = 0.0) -> None: ...

    inner = Failing()
    many = sys.getrecursionlimit() + 100
    with Cached(inner, "digest") as cached:
        thread = threading.Thread(target=cached.submit, args=(Request(marked(1)),))
        thread.start()
        assert entered.wait(LONG)
        futures = [cached.submit(Request(marked(1))) for _ in range(many)]
        gate.set()
        thread.join(LONG)
        assert {type(future.exception(LONG)) for future in futures} == {EngineError}
        assert inner.runs == many + 1
    engine.close()


def test_who_waits_for_another_keeps_his_own_deadline() -> None:
    inner = Later()
    with Cached(inner, "digest") as cached:
        first = cached.submit(Request(marked(1)))
        second = cached.submit(Request(marked(1), deadline=time.monotonic() + 0.02, id="b"))
        error = second.exception(LONG)  # while the first one is still computed
        assert isinstance(error, DeadlineError)
        assert "deadline of request 'b'" in str(error)
        inner.settle()
        assert value(first) == 1.0
        assert isinstance(cached.submit(Request(marked(1), deadline=0.0)).exception(0), DeadlineError)
        assert cached.stats().late == 2


def test_an_answer_that_comes_too_late_is_none() -> None:
    clock, inner = FakeClock(), Later()
    with Cached(inner, "digest", clock=clock) as cached:
        futures = [cached.submit(Request(marked(1), deadline=deadline)) for deadline in (9e9, 1e9, 8e9)]
        clock.advance(2e9)
        inner.settle()
        assert value(futures[0]) == value(futures[2]) == 1.0
        assert isinstance(futures[1].exception(LONG), DeadlineError)


def test_who_is_too_late_is_not_computed_in_place_of_one_who_failed() -> None:
    clock, inner = FakeClock(), Later()
    with Cached(inner, "digest", clock=clock) as cached:
        futures = [cached.submit(Request(marked(1), deadline=deadline)) for deadline in (9e9, 1e9, 8e9)]
        clock.advance(2e9)
        inner.settle(error=EngineError("no"))
        assert isinstance(futures[1].exception(LONG), DeadlineError)
        assert [request.deadline for request, _ in inner.inside] == [8e9]


def test_answers_of_strings_are_shared_and_not_kept() -> None:
    class Words(Later):
        def settle(self, place: int = 0, error: FarthingError | None = None) -> None:
            settle(self.inside.pop(place)[1], Answer({"y": np.array(["cat"], object)}, self.name))

    inner = Words()
    with Cached(inner, "digest") as cached:
        futures = [cached.submit(Request(marked(1))) for _ in range(2)]
        inner.settle()
        futures[0].result(0).outputs["y"][0] = "dog"
        assert futures[1].result(0).outputs["y"][0] == "cat"
        assert cached.stats().too_big == 1


def test_a_broken_service_fails_its_caller_and_nobody_else() -> None:
    class Broken(Later):
        def submit(self, request: Request) -> Future[Answer]:
            if request.id == "raise":
                raise RuntimeError("bug")
            return super().submit(request)

    inner = Broken()
    with Cached(inner, "digest") as cached:
        error = cached.submit(Request(marked(1), id="raise")).exception(0)
        assert isinstance(error, ServiceError)
        assert "RuntimeError: bug" in str(error)
        second, third = (cached.submit(Request(marked(1))) for _ in range(2))
        inner.inside[0][1].cancel()
        inner.inside.pop(0)[1].set_running_or_notify_cancel()
        assert isinstance(second.exception(0), ServiceError)
        inner.settle()
        assert value(third) == 1.0


def test_closing_answers_or_fails_everybody() -> None:
    class Silent(Later):
        def close(self, grace: float = 0.0) -> None: ...

    for inner in (Later(), Silent()):
        cached = Cached(inner, "digest")
        futures = [cached.submit(Request(marked(n))) for n in (1, 1, 2)]
        cached.close()
        cached.close()
        assert [type(future.exception(0)) for future in futures] == [ClosedError] * 3
        assert isinstance(cached.submit(Request(marked(1))).exception(0), ClosedError)
        assert cached.stats().entries == 0


def test_answers_given_while_it_closes_are_not_kept() -> None:
    class Prompt(Later):
        def close(self, grace: float = 0.0) -> None:
            self.settle()

    cached = Cached(Prompt(), "digest")
    future = cached.submit(Request(marked(1)))
    cached.close()
    assert value(future) == 1.0
    assert cached.stats().entries == 0


def test_coroutines_share_and_give_up() -> None:
    inner = Later()

    async def three() -> list[float]:
        first = cached.ask(Request(marked(1)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(cached.ask(Request(marked(1))), 0.01)
        last = cached.ask(Request(marked(1)))
        first.cancel()  # the last one takes its place
        await asyncio.sleep(0)
        assert len(inner.inside) == 2
        inner.settle(1)
        return [float((await last).outputs["y"][0, 0])]

    with Cached(inner, "digest") as cached:
        assert asyncio.run(three()) == [1.0]


def test_tensors_are_freed_with_the_answer_and_not_by_the_collector() -> None:
    inner = Later()
    gc.collect()
    gc.disable()
    try:
        with Cached(inner, "digest") as cached:
            feeds = [marked(1), marked(1)]
            fed = [weakref.ref(one["x"]) for one in feeds]
            futures = [cached.submit(Request(one)) for one in feeds]
            inner.settle()
            assert [value(future) for future in futures] == [1.0, 1.0]
            del feeds, futures
            assert [one() for one in fed] == [None, None]
    finally:
        gc.enable()


def test_a_queue_behind_the_cache() -> None:
    with Cached(Realtime(Counting(), QueueRule(size=4)), "digest") as cached:
        futures = [cached.submit(Request(marked(n % 2))) for n in range(8)]
        wait(futures, LONG)
        assert len({future.result().outputs["y"].tobytes() for future in futures}) == 2
        stats = cached.stats()
        assert stats.misses == 2
        assert stats.hits + stats.joined == 6


def test_a_storm_of_callers_gets_the_right_answers() -> None:
    with open_engine(fake_model()) as engine:
        right = {n: engine.run(marked(n))["y"].copy() for n in range(6)}
    inner = Realtime(Counting(), QueueRule(timeout_ms=None, size=10_000, policy="reject"))
    done: list[tuple[int, Future[Answer]]] = []
    with Cached(inner, "digest", CacheRule(entries=3)) as cached:

        def storm(seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(200):
                n = dice.randrange(6)
                deadline = time.monotonic() + (LONG if dice.random() < 0.8 else dice.random() / 500)
                future = cached.submit(Request(marked(n), deadline=deadline))
                if dice.random() < 0.2:
                    future.cancel()
                done.append((n, future))

        threads = [threading.Thread(target=storm, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert not wait([future for _, future in done], LONG).not_done
        stats = cached.stats()
    for n, future in done:
        if future.cancelled():
            continue
        error = future.exception(0)
        if error is None:
            np.testing.assert_array_equal(future.result().outputs["y"], right[n])
        else:
            assert isinstance(error, DeadlineError)
    assert stats.requests == len(done) == 1600
    assert stats.entries <= 3
    assert inner.stats().requests < stats.requests


class AgainstAModel(RuleBasedStateMachine):
    """Callers, a service that answers when it is told to, and what must be true at any moment."""

    @initialize(entries=st.integers(1, 3), ttl=st.one_of(st.none(), st.just(5000.0)))
    def begin(self, entries: int, ttl: float | None) -> None:
        self.inner, self.clock = Later(), FakeClock()
        self.cached = Cached(
            self.inner, "digest", CacheRule(entries=entries, ttl_s=ttl, digest="sha256"), clock=self.clock
        )
        self.asked: list[tuple[int, float, Future[Answer]]] = []
        self.given_up: set[int] = set()  # places of callers in the list above
        self.errors = 0

    @rule(n=st.integers(0, 2), slack=st.sampled_from([1000.0, 4000.0, 1e6]))
    def ask(self, n: int, slack: float) -> None:
        deadline = self.clock() + slack
        self.asked.append((n, deadline, self.cached.submit(Request(marked(n), deadline=deadline))))

    @precondition(lambda self: self.inner.inside)
    @rule(place=st.integers(0, 99), fails=st.booleans())
    def answer(self, place: int, fails: bool) -> None:
        self.errors += fails
        self.inner.settle(place % len(self.inner.inside), EngineError("no") if fails else None)

    @precondition(lambda self: self.asked)
    @rule(place=st.integers(0, 99))
    def take_back(self, place: int) -> None:
        place %= len(self.asked)
        if self.asked[place][2].cancel():
            self.given_up.add(place)

    @rule(seconds=st.sampled_from([500.0, 2000.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def promises_are_kept(self) -> None:
        if not hasattr(self, "cached"):
            return
        failures = 0
        live = [n for n, _, future in self.asked if not future.done()]
        for place, (n, deadline, future) in enumerate(self.asked):
            assert future.cancelled() == (place in self.given_up)
            if future.cancelled() or not future.done():
                continue
            error = future.exception()
            if error is None:
                assert value(future) == n
            elif isinstance(error, DeadlineError):
                assert deadline <= self.clock()
            else:
                failures += 1
        assert failures <= self.errors  # nobody fails by an error of somebody else
        computed = [
            int(request.feeds["x"][0, 0]) for request, future in self.inner.inside if not future.done()
        ]
        assert len(computed) == len(set(computed))  # once for all
        assert set(live) == set(computed)  # whoever waits, waits for something that is computed

    def teardown(self) -> None:
        if hasattr(self, "cached"):
            self.cached.close()
            assert all(future.done() for _, _, future in self.asked)


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
