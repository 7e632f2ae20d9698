from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest

from farthing.device.serving.batch import Batched, BatchRule
from farthing.device.serving.service import Answer, Ran, Request
from farthing.engines.base import Tensors, open_engine
from farthing.engines.fake import FakeEngine
from farthing.errors import ClosedError, ConfigError, DeadlineError, EngineError, FeedError, OverloadError
from farthing.model import Model, TensorSpec
from farthing.options import EngineOptions
from farthing.testing import FakeClock, fake_model

INTERRUPT = 7.5
MODES = pytest.mark.parametrize("runners", [0, 1, 2], ids="{} runners".format)


class Gated(FakeEngine):
    """An engine that computes only while its gate is open, tells what it was fed, and fails on negative numbers."""

    concurrency = "threads"  # type: ignore[assignment]

    def __init__(self, model: Model) -> None:
        super().__init__(model, EngineOptions())
        self.gate, self.inside = threading.Event(), threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.shorten = 0

    def run(self, feeds: Tensors) -> dict[str, Any]:
        self.inside.set()
        self.gate.wait(30)
        x = feeds["x"]
        if (x == INTERRUPT).any():
            raise KeyboardInterrupt
        if (x < 0).any():
            raise EngineError("negative numbers")
        if (x > 1e6).any():
            raise ZeroDivisionError("a bug")
        self.batches.append(len(x))
        return {"y": super().run(feeds)["y"][self.shorten :]}

    def shut(self) -> None:
        self.gate.clear()
        self.inside.clear()


@pytest.fixture
def engine() -> Gated:
    return Gated(fake_model())


@pytest.fixture
def gated(engine: Gated) -> Iterator[Batched]:
    """One runner, which holds a first request until the gate opens: what is submitted now waits in line."""
    service = Batched(engine, runners=1, name="net")
    yield service
    engine.gate.set()
    service.close()


def feed(value: float = 1.0, count: int = 1) -> dict[str, Any]:
    return {"x": np.full((count, 4), value, np.float32)}


def held(service: Batched, engine: Gated) -> Future[Answer]:
    engine.shut()
    first = service.submit(Request(feed()))
    assert engine.inside.wait(30)
    engine.batches.clear()
    return first


@MODES
def test_every_caller_gets_its_own_answer(runners: int) -> None:
    model = fake_model()
    inputs = np.random.default_rng(0).standard_normal((400, 4)).astype(np.float32)
    with open_engine(model) as engine:
        expected = engine.run({"x": inputs})["y"]
    engines = [open_engine(model) for _ in range(max(1, runners))]
    wrong: list[int] = []

    def call(start: int) -> None:
        for i in range(start, 400, 8):
            y = service.submit(Request({"x": inputs[i : i + 1]})).result(30).outputs["y"]
            if not np.allclose(y, expected[i : i + 1], atol=1e-6):
                wrong.append(i)

    with Batched(engines, runners=runners) as service:
        threads = [threading.Thread(target=call, args=(start,)) for start in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        stats = service.stats()
    assert wrong == []
    assert stats.requests == stats.answered == 400
    assert sum(size * count for sizes in stats.closed.values() for size, count in sizes.items()) == 400


@MODES
def test_coroutines_share_batches(runners: int) -> None:
    engine = Gated(fake_model())

    async def call(value: float) -> np.ndarray[Any, Any]:
        return (await service.ask(Request(feed(value)))).outputs["y"]

    async def main() -> list[np.ndarray[Any, Any]]:
        return await asyncio.gather(*[call(float(i)) for i in range(40)])

    with Batched(engine, runners=runners) as service:
        engine.batches.clear()
        answers = asyncio.run(main())
        for i, y in enumerate(answers):
            np.testing.assert_allclose(y, engine.run(feed(float(i)))["y"], rtol=1e-5)
    if runners == 0:
        assert engine.batches[:5] == [8] * 5


def test_what_came_in_meanwhile_is_the_next_batch(gated: Batched, engine: Gated) -> None:
    first = held(gated, engine)
    rest = [gated.submit(Request(feed(float(i)))) for i in range(11)]
    assert gated.waiting == 11
    engine.gate.set()
    for future in rest:
        future.result(30)
    batches = list(engine.batches)  # before the test computes itself
    for i, future in enumerate(rest):
        np.testing.assert_allclose(future.result(30).outputs["y"], engine.run(feed(float(i)))["y"], rtol=1e-5)
    assert first.done()
    assert batches[1:] == [8, 3]
    assert gated.stats().closed == {"delay": {1: 1, 3: 1}, "full": {8: 1}}


@MODES
def test_one_bad_request_fails_alone(runners: int) -> None:
    engine = Gated(fake_model())
    with Batched(engine, runners=runners, name="net") as service:

        async def main() -> list[Any]:
            asks = [service.ask(Request(feed(value))) for value in (1, 2, -1, 3, 1e7)]
            return await asyncio.gather(*asks, return_exceptions=True)

        if runners:
            engine.shut()
            threading.Timer(0.05, engine.gate.set).start()
        results = asyncio.run(main())
        stats = service.stats()
    assert [type(result) for result in results] == [Answer, Answer, EngineError, Answer, EngineError]
    assert str(results[2]) == "negative numbers"
    assert str(results[4]) == "net failed: ZeroDivisionError: a bug"
    assert (stats.answered, stats.failed) == (3, 2)
    assert stats.retried >= 1


@MODES
def test_feeds_that_do_not_fit_fail_at_once_and_harm_nobody(runners: int) -> None:
    with Batched(Gated(fake_model()), runners=runners) as service:
        good = service.submit(Request(feed()))
        for bad in (
            {},
            {"x": [1.0]},
            {"z": feed()["x"]},
            {"x": np.ones((1, 5), np.float32)},
            {"x": np.ones((1, 4))},
            {"x": np.ones(4, np.float32)},
            {"x": np.float32(1)},
            {**feed(), "more": feed()["x"]},
            feed(count=9),
        ):
            assert isinstance(service.submit(Request(bad)).exception(0), FeedError)
        assert good.result(30)


def test_requests_may_hold_several_samples_and_none(gated: Batched, engine: Gated) -> None:
    held(gated, engine)
    futures = [gated.submit(Request(feed(float(count), count))) for count in (3, 0, 5, 2)]
    engine.gate.set()
    assert [len(future.result(30).outputs["y"]) for future in futures] == [3, 0, 5, 2]
    assert engine.batches[1:] == [8, 2]


def test_threads_get_their_answers_in_order_however_many_runners(engine: Gated) -> None:
    done: list[int] = []
    other = threading.Event()
    service = Batched(engine, runners=2)
    try:
        engine.shut()
        first = service.submit(Request(feed(), id="slow"))
        assert engine.inside.wait(30)
        engine.gate.set()
        first.result(30)
        slow = threading.Event()
        original = engine.run

        def run(feeds: Tensors) -> dict[str, Any]:
            if feeds["x"][0, 0] == 5:
                slow.set()
                other.wait(30)
            return original(feeds)

        engine.run = run  # type: ignore[method-assign]
        futures = [service.submit(Request(feed(5.0)))]
        futures[0].add_done_callback(lambda _: done.append(0))
        assert slow.wait(30)
        futures.append(service.submit(Request(feed(6.0))))
        futures[1].add_done_callback(lambda _: done.append(1))
        foreign = service.submit(Request(feed(7.0), stream="another"))
        assert foreign.result(30)  # a stream of its own is not held up
        assert done == []
        other.set()
        for future in futures:
            future.result(30)
        assert done == [0, 1]
    finally:
        other.set()
        service.close()


def test_a_cancelled_request_is_not_computed(gated: Batched, engine: Gated) -> None:
    held(gated, engine)
    futures = [gated.submit(Request(feed())) for _ in range(3)]
    assert futures[1].cancel()
    engine.gate.set()
    assert futures[0].result(30)
    assert futures[2].result(30)
    with pytest.raises(CancelledError):
        futures[1].result(30)
    assert engine.batches[1:] == [2]
    assert gated.stats().cancelled == 1


def test_a_cancelled_coroutine_is_not_computed(gated: Batched, engine: Gated) -> None:
    async def main() -> None:
        held(gated, engine)
        waiting = gated.ask(Request(feed()))
        asking = asyncio.ensure_future(waiting)
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.sleep(0)
        engine.gate.set()
        assert await gated.ask(Request(feed(2.0)))

    asyncio.run(main())
    assert engine.batches[1:] == [1]
    assert gated.stats().cancelled == 1


def test_an_event_loop_that_is_gone_harms_nobody(gated: Batched, engine: Gated) -> None:
    loop = asyncio.new_event_loop()

    async def leave() -> None:
        held(gated, engine)
        gated.ask(Request(feed()))

    loop.run_until_complete(leave())
    loop.close()
    later = gated.submit(Request(feed(3.0)))
    engine.gate.set()
    assert later.result(30)


def test_loops_that_end_early_do_not_stop_the_next(engine: Gated) -> None:
    with Batched(engine, runners=0) as service:

        async def leave() -> None:
            service.ask(Request(feed()))

        async def stay() -> Answer:
            return await service.ask(Request(feed()))

        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave())
        loop.close()
        assert asyncio.run(stay()).source == "fake"


def test_late_requests_are_not_computed() -> None:
    clock, engine = FakeClock(), Gated(fake_model())
    with Batched(engine, runners=1, clock=clock) as service:
        held(service, engine)
        futures = [service.submit(Request(feed(), deadline=when)) for when in (1.0, 3.0)]
        clock.advance(2.0)
        engine.gate.set()
        with pytest.raises(DeadlineError, match=r"passed 1000\.0 ms ago"):
            futures[0].result(30)
        answer = futures[1].result(30)
        assert answer.latency == pytest.approx(2.0)
        assert service.stats().late == 1
    assert engine.batches[1:] == [1]


def test_a_full_line_turns_requests_away(engine: Gated) -> None:
    with Batched(engine, BatchRule(capacity=8), runners=1) as service:
        held(service, engine)
        futures = [service.submit(Request(feed())) for _ in range(9)]
        assert isinstance(futures[8].exception(0), OverloadError)
        engine.gate.set()
        assert all(future.result(30) for future in futures[:8])
        assert service.stats().refused == 1


def test_requests_without_samples_fill_the_line_too(engine: Gated) -> None:
    with Batched(engine, BatchRule(capacity=8), runners=1) as service:
        held(service, engine)
        futures = [service.submit(Request(feed(count=0))) for _ in range(9)]
        assert isinstance(futures[8].exception(0), OverloadError)
        engine.gate.set()
        assert all(len(future.result(30).outputs["y"]) == 0 for future in futures[:8])
        assert service.waiting == 0


def test_closing_answers_everyone_who_waits(gated: Batched, engine: Gated) -> None:
    futures = [held(gated, engine), *[gated.submit(Request(feed())) for _ in range(20)]]
    closer = threading.Thread(target=gated.close)
    closer.start()
    time.sleep(0.02)
    engine.gate.set()
    closer.join(30)
    assert all(future.result(0) for future in futures)
    assert isinstance(gated.submit(Request(feed())).exception(0), ClosedError)


def test_closing_fails_everyone_when_the_engine_hangs(gated: Batched, engine: Gated) -> None:
    futures = [held(gated, engine), *[gated.submit(Request(feed())) for _ in range(20)]]
    gated.close(grace=0.05)
    errors = [future.exception(0) for future in futures]
    assert all(isinstance(error, ClosedError) for error in errors)
    assert len({id(error) for error in errors}) == 21  # each has its own: raising writes into it
    engine.gate.set()  # the runner comes back, and finds its callers answered
    gated.close()


def test_who_is_answered_may_ask_again_and_close(engine: Gated) -> None:
    for runners in (0, 1):
        service = Batched(Gated(fake_model()), runners=runners)
        second: Future[Answer] = Future()

        def again(done: Future[Answer], service: Batched = service, second: Future[Answer] = second) -> None:
            service.submit(Request(feed())).add_done_callback(lambda one: second.set_result(one.result()))

        service.submit(Request(feed())).add_done_callback(again)
        assert second.result(30)
        closed = threading.Event()
        service.submit(Request(feed())).add_done_callback(
            lambda _, service=service, closed=closed: (service.close(), closed.set())  # type: ignore[misc]
        )
        assert closed.wait(30)


def test_closing_from_a_callback_answers_everyone_who_waits(engine: Gated) -> None:
    service = Batched(engine, BatchRule(max_size=1), runners=1)
    held(service, engine).add_done_callback(lambda _: service.close())
    waiting = [service.submit(Request(feed())) for _ in range(5)]
    engine.gate.set()
    assert all(future.result(30) for future in waiting)


def test_closing_fails_callers_who_compute_themselves_when_the_engine_hangs(engine: Gated) -> None:
    """One is in the engine, others wait for their turn: nobody is left behind, nor who closes."""
    service = Batched(engine, runners=0)
    engine.shut()
    errors: list[BaseException | None] = []

    def call() -> None:
        errors.append(service.submit(Request(feed())).exception(0))

    stuck, *others = [threading.Thread(target=call, daemon=True) for _ in range(4)]
    stuck.start()
    assert engine.inside.wait(30)
    for thread in others:
        thread.start()
    while service.waiting < 3:
        time.sleep(0.001)
    closer = threading.Thread(target=service.close, args=(0.05,), daemon=True)
    closer.start()
    for thread in [closer, *others]:
        thread.join(30)
    assert [type(error) for error in errors] == [ClosedError] * 3
    engine.gate.set()
    stuck.join(30)
    assert [type(error) for error in errors] == [ClosedError] * 4


def test_closing_does_not_wait_for_an_engine_that_hangs_and_cannot_be_closed(engine: Gated) -> None:
    closed = threading.Event()

    def close() -> None:
        engine.gate.wait(30)  # as engines do whose callers take turns
        closed.set()

    engine.close = close  # type: ignore[method-assign]
    service = Batched(engine, runners=1)
    held(service, engine)
    closer = threading.Thread(target=service.close, args=(0.05,), daemon=True)
    closer.start()
    closer.join(20)
    assert not closer.is_alive()
    assert not closed.is_set()
    engine.gate.set()
    assert closed.wait(30)


@MODES
def test_what_interrupts_a_batch_fails_its_callers_and_not_the_next(runners: int) -> None:
    """Ctrl-C in the thread that computes; a runtime that would exit."""
    told: list[str] = []

    def ask_twice() -> None:
        try:
            told.append(str(service.submit(Request(feed(INTERRUPT))).exception(30)))
        except KeyboardInterrupt:
            told.append("Ctrl-C")
        told.append(str(service.submit(Request(feed())).exception(30)))

    with Batched(Gated(fake_model()), runners=runners, name="net") as service:
        caller = threading.Thread(target=ask_twice, daemon=True)
        caller.start()
        caller.join(60)
        assert told == ["net was interrupted by KeyboardInterrupt" if runners else "Ctrl-C", "None"]
        assert (service.stats().failed, service.stats().retried) == (1, 0)


def test_a_request_is_not_kept_once_it_is_answered(engine: Gated) -> None:
    with Batched(engine, runners=1) as service:
        x = feed()
        gone = weakref.ref(x["x"])
        service.submit(Request(x)).result(30)
        del x
        until = time.monotonic() + 30
        while gone() is not None and time.monotonic() < until:
            time.sleep(0.001)
        assert gone() is None


def test_models_that_keep_a_state_are_refused_by_name() -> None:
    with pytest.raises(EngineError, match=r"melody keeps a state .* session\(\)"):
        Batched(open_engine(fake_model(decay=0.5)), name="melody")


def test_an_output_of_another_size_than_declared_is_an_error(engine: Gated) -> None:
    with Batched(engine, runners=1) as service:
        engine.shorten = 1
        error = service.submit(Request(feed(count=2))).exception(30)
    assert "output 'y' is [1, 3] for 2 samples" in str(error)


def test_serial_engines_have_one_runner_each() -> None:
    with pytest.raises(EngineError, match="one caller at a time: give 2 of them"):
        Batched(open_engine(fake_model()), runners=2)
    with pytest.raises(ConfigError, match="neither wait nor rest"):
        Batched(open_engine(fake_model()), BatchRule(delay_ms=5), runners=0)


@pytest.mark.parametrize(("engines", "runners", "message"), [(0, 1, "an engine at least"), (1, -1, "from 0")])
def test_nobody_to_compute_is_refused(engines: int, runners: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Batched([open_engine(fake_model()) for _ in range(engines)], runners=runners)


def test_small_models_are_computed_where_they_are_asked() -> None:
    with Batched(open_engine(fake_model())) as service:
        assert service.inline
    with Batched(open_engine(fake_model()), BatchRule(delay_ms=5)) as service:
        assert not service.inline


class Timed(FakeEngine):
    """Takes 10 ms a run, and as many a sample."""

    def __init__(self, per_run: int, per_sample: int) -> None:
        super().__init__(fake_model(), EngineOptions())
        self.per_run, self.per_sample, self.sizes = per_run, per_sample, list[int]()

    def run(self, feeds: Tensors) -> dict[str, Any]:
        size = len(feeds["x"])
        self.sizes.append(size)
        time.sleep(0.01 * (self.per_run + self.per_sample * size))
        return super().run(feeds)


def test_batches_are_as_large_as_they_pay() -> None:
    with Batched(Timed(per_run=1, per_sample=0)) as service:
        assert service.together == 8
    engine = Timed(per_run=0, per_sample=1)
    with Batched(engine, runners=1) as service:
        assert service.together == 1
        assert max(engine.sizes) == 2, "larger ones are not even tried: they take memory"
        engine.sizes.clear()
        futures = [service.submit(Request(feed(i))) for i in range(4)]
        assert all(one.result(30).outputs["y"].shape == (1, 3) for one in futures)
        assert engine.sizes == [1, 1, 1, 1]
        assert len(service.answer(feed(count=8)).outputs["y"]) == 8, "one request may hold more"
    with Batched(Timed(per_run=0, per_sample=1), BatchRule(pays=0), runners=1) as service:
        assert service.together == 8
    with Batched(Timed(per_run=0, per_sample=1), BatchRule(delay_ms=5), runners=1) as service:
        assert service.together == 8


def test_a_runner_rests_as_its_duty_says(engine: Gated) -> None:
    """Ten batches of 20 ms each by a runner that may compute a quarter of the time."""
    original = engine.run

    def run(feeds: Tensors) -> dict[str, Any]:
        time.sleep(0.02)
        return original(feeds)

    engine.run = run  # type: ignore[method-assign]
    heard: list[Ran] = []
    began = time.monotonic()
    with Batched(engine, BatchRule(max_size=1), runners=1, duty=0.25, listener=heard.append) as service:
        for future in [service.submit(Request(feed())) for _ in range(10)]:
            future.result(30)
        took = time.monotonic() - began
        closing = time.monotonic()
    busy = sum(one.compute for one in heard)
    assert took >= 3.5 * busy  # the last rest is nobody's
    assert time.monotonic() - closing < took  # closing does not wait for it either
    with pytest.raises(ConfigError, match="share of the time"):
        Batched(engine, duty=0.0)


def test_who_listens_hears_of_every_batch(engine: Gated) -> None:
    heard: list[Ran] = []
    with Batched(engine, runners=1, listener=heard.append) as service:
        first = held(service, engine)
        futures = [service.submit(Request(feed(count=2))) for _ in range(3)]
        engine.gate.set()
        for future in [first, *futures]:
            future.result(30)
    assert [(one.requests, one.samples, len(one.waited)) for one in heard] == [(1, 1, 1), (3, 6, 3)]
    assert all(one.compute >= 0 and min(one.waited) >= 0 for one in heard)


@MODES
def test_a_listener_that_raises_harms_nobody(runners: int, caplog: pytest.LogCaptureFixture) -> None:
    def listener(_: Ran) -> None:
        raise RuntimeError("listening failed")

    with Batched(Gated(fake_model()), runners=runners, listener=listener) as service:
        assert all(service.submit(Request(feed())).result(30) for _ in range(3))
    assert caplog.text.count("RuntimeError: listening failed") == 3


def test_a_listener_may_close_where_callers_compute() -> None:
    service = Batched(Gated(fake_model()), runners=0, listener=lambda _: service.close())
    answered: list[Future[Answer]] = []
    caller = threading.Thread(target=lambda: answered.append(service.submit(Request(feed()))), daemon=True)
    caller.start()
    caller.join(30)
    assert answered[0].result(0)


class Echo:
    """Gives its input back, not a copy; with a free length and a setting beside it."""

    name = "echo"
    concurrency = "threads"
    stateful = False
    inputs = (
        TensorSpec(name="x", dtype="float32", shape=("batch", "length"), batch_axis=0),
        TensorSpec(name="gain", dtype="float32", shape=(), role="parameter"),
    )
    outputs = (TensorSpec(name="y", dtype="float32", shape=("batch", "length"), batch_axis=0),)

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, feeds: Tensors) -> dict[str, Any]:
        self.shapes.append(feeds["x"].shape)
        return {"y": feeds["x"]}

    def close(self, grace: float = 0.0) -> None: ...


def test_shapes_and_settings_that_differ_do_not_share_a_batch() -> None:
    echo = Echo()
    asked = [(2, 1.0), (3, 1.0), (2, 1.0), (2, 2.0), (3, 1.0)]

    async def main(service: Batched) -> list[Answer]:
        return await asyncio.gather(
            *[
                service.ask(
                    Request({"x": np.full((1, n), i, np.float32), "gain": np.array(gain, np.float32)})
                )
                for i, (n, gain) in enumerate(asked)
            ]
        )

    with Batched(echo, runners=0) as service:  # type: ignore[arg-type]
        first = asyncio.run(main(service))
        asyncio.run(main(service))  # must not write into what was answered before
    for i, (answer, (length, _)) in enumerate(zip(first, asked, strict=True)):
        np.testing.assert_array_equal(answer.outputs["y"], np.full((1, length), i))
    assert sorted(echo.shapes[:3]) == [(1, 2), (2, 2), (2, 3)]


class Words(Echo):
    """Gives strings back."""

    inputs = (TensorSpec(name="x", dtype="str", shape=("batch",), batch_axis=0),)
    outputs = (TensorSpec(name="y", dtype="str", shape=("batch",), batch_axis=0),)


def test_strings_of_any_length_share_a_batch() -> None:
    async def main(service: Batched, *words: str) -> list[str]:
        asks = [service.ask(Request({"x": np.array([word])})) for word in words]
        return [answer.outputs["y"][0] for answer in await asyncio.gather(*asks)]

    with Batched(Words(), runners=0) as service:  # type: ignore[arg-type]
        for words in (["a", "b"], ["hello", "world"], ["a", "longer than that"]):
            assert asyncio.run(main(service, *words)) == words


class Sideways(Echo):
    """Batches along the second axis; its output has the batch first."""

    inputs = (TensorSpec(name="x", dtype="float32", shape=(3, "batch"), batch_axis=1),)
    outputs = (TensorSpec(name="y", dtype="float32", shape=("batch", 3), batch_axis=0),)

    def run(self, feeds: Tensors) -> dict[str, Any]:
        super().run(feeds)
        return {"y": feeds["x"].T}


class Whole(Echo):
    """An output without a batch axis: its requests cannot share a run."""

    inputs = (TensorSpec(name="x", dtype="float32", shape=("batch", 3), batch_axis=0),)
    outputs = (TensorSpec(name="y", dtype="float32", shape=("rows", 3)),)


def test_batch_axes_lie_anywhere_or_nowhere() -> None:
    async def main(service: Batched, shape: tuple[int, ...]) -> list[Answer]:
        asks = [service.ask(Request({"x": np.full(shape, i, np.float32)})) for i in range(3)]
        return await asyncio.gather(*asks)

    for echo, shape, runs in ((Sideways(), (3, 2), 1), (Whole(), (2, 3), 3)):
        with Batched(echo, runners=0) as service:  # type: ignore[arg-type]
            echo.shapes.clear()
            answers = asyncio.run(main(service, shape))
        assert len(echo.shapes) == runs
        for i, answer in enumerate(answers):
            np.testing.assert_array_equal(answer.outputs["y"], np.full((2, 3), i))
