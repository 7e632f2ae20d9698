"""Sharded: what parts compute one after another, in one thread and in several."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from rows.oip import hosted
from rows.serving import Server, Told

from farthing.bundle import Bundle
from farthing.device.serving.parts.shard import Sharded, open_sharded
from farthing.device.serving.parts.thread import OwnThread
from farthing.device.serving.service import Answer, Direct, Ran, Request, Service
from farthing.engines.base import Engine, Tensors, open_engine
from farthing.engines.fake import FakeEngine
from farthing.errors import (
    ClosedError,
    ConfigError,
    DeadlineError,
    EngineError,
    FeedError,
    ModelError,
    OverloadError,
)
from farthing.model import Model, TensorSpec
from farthing.options import EngineOptions
from farthing.testing import FakeClock, fake_model

HOWS = ("in order", "threads")


def link(takes: str, makes: str, decay: float | None = None) -> Model:
    return fake_model(4, 4, decay, ends=(takes, makes))


def alone(chain: Bundle, feeds: Tensors) -> dict[str, Any]:
    """All tensors of a chain, its parts run by hand."""
    tensors = dict(feeds)
    for model in chain.models.values():
        with open_engine(model) as engine:
            tensors |= engine.run({spec.name: tensors[spec.name] for spec in engine.inputs})
    return tensors


class Gated(FakeEngine):
    """Computes when its gate is opened, and counts."""

    concurrency: ClassVar[Literal["threads", "serial"]] = "serial"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.runs = 0

    def run(self, feeds: Tensors) -> dict[str, Any]:
        self.runs += 1
        self.entered.release()
        self.gate.wait()
        return super().run(feeds)


@pytest.fixture
def gated() -> Iterator[tuple[Gated, Gated, Sharded]]:
    """A pipeline of two parts that wait at their gates."""
    first, second = (Gated(link(*ends), EngineOptions()) for ends in (("x", "a"), ("a", "y")))
    service = Sharded([first, second], pipeline=True, depth=2, waiting=1)
    yield first, second, service
    first.gate.set()
    second.gate.set()
    service.close()


@pytest.mark.parametrize("how", HOWS)
def test_parts_give_what_they_give_one_after_another(
    chain: Bundle, how: Literal["in order", "threads"], x: dict[str, Any]
) -> None:
    expected = alone(chain, x)
    with open_sharded(chain.path, how) as service:
        answer = service.answer(x)
        assert [spec.name for spec in service.inputs] == ["x"]
        assert list(answer.outputs) == [spec.name for spec in service.outputs] == ["y", "a"]
        for name, value in answer.outputs.items():
            np.testing.assert_array_equal(value, expected[name])
        assert answer.source == service.name == "chain"


def test_who_listens_is_told_what_was_computed_and_what_was_waited(x: dict[str, Any]) -> None:
    """One part takes three seconds: who comes meanwhile waits for it, and the other part takes no time."""
    clock, told = FakeClock(), list[Ran]()
    first, second = Gated(link("x", "a"), EngineOptions()), open_engine(link("a", "y"))
    with Sharded([first, second], pipeline=True, clock=clock, listener=told.append) as service:
        futures = [service.submit(Request(feeds)) for feeds in (x, {"x": x["x"][:2]})]
        first.entered.acquire()
        clock.advance(3)
        first.gate.set()
        wait(futures, 30)
        late = service.submit(Request(x, deadline=clock()))
        assert isinstance(late.exception(30), DeadlineError)
    assert told == [Ran(1, 5, 3.0, [0.0]), Ran(1, 2, 0.0, [3.0])]


def test_a_part_that_is_a_service_is_listened_to_as_well(x: dict[str, Any]) -> None:
    told: list[Ran] = []
    parts = [Direct(open_engine(link("x", "a"))), open_engine(link("a", "y"))]
    with Sharded(parts, listener=told.append) as service:
        answer = service.answer(x)
    assert [(one.requests, one.samples) for one in told] == [(1, 5)]
    assert 0 < told[0].compute <= answer.latency


@pytest.mark.parametrize("how", HOWS)
def test_many_callers_get_their_own_answers(chain: Bundle, how: Literal["in order", "threads"]) -> None:
    feeds = [{"x": np.full((1 + i % 3, 4), i, np.float32)} for i in range(60)]
    expected = [alone(chain, one)["y"] for one in feeds]
    with open_sharded(chain, how) as service:
        futures: list[Future[Answer]] = [Future()] * len(feeds)

        def ask(start: int) -> None:
            for i in range(start, len(feeds), 4):
                futures[i] = service.submit(Request(feeds[i]))

        threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for future, y in zip(futures, expected, strict=True):
            np.testing.assert_array_equal(future.result(30).outputs["y"], y)
        assert isinstance(service, Sharded)
        stats = service.stats()
        assert (stats.requests, stats.answered, stats.failed) == (60, 60, {})


def test_a_part_works_on_a_request_while_the_next_works_on_the_one_before(
    gated: tuple[Gated, Gated, Sharded], x: dict[str, Any]
) -> None:
    first, second, service = gated
    one = service.submit(Request(x))
    first.entered.acquire()
    first.gate.set()
    second.entered.acquire()  # the second part has the first request ...
    first.gate.clear()
    two = service.submit(Request(x))
    assert first.entered.acquire(timeout=30), "... and the first part takes the next one meanwhile"
    assert not one.done()
    first.gate.set()
    second.gate.set()
    assert len(wait([one, two], 30).done) == 2


def test_a_pipeline_takes_no_more_than_fits(gated: tuple[Gated, Gated, Sharded], x: dict[str, Any]) -> None:
    first, second, service = gated
    futures = [service.submit(Request(x)) for _ in range(4)]
    assert isinstance(futures[3].exception(0), OverloadError)
    first.gate.set()
    second.entered.acquire()
    assert first.runs <= 2, "two are in the parts, one waits in line"
    second.gate.set()
    assert len(wait(futures, 30).done) == 4
    assert service.stats().failed == {"OverloadError": 1}


def test_who_waits_is_answered_before_it_closes(
    gated: tuple[Gated, Gated, Sharded], x: dict[str, Any]
) -> None:
    first, second, service = gated
    futures = [service.submit(Request(x)) for _ in range(3)]
    closing = threading.Thread(target=service.close)
    closing.start()
    first.gate.set()
    second.gate.set()
    closing.join(30)
    assert not closing.is_alive()
    assert all(future.exception(0) is None for future in futures)
    assert isinstance(service.submit(Request(x)).exception(0), ClosedError)
    service.close()


def test_who_is_not_answered_within_the_grace_is_told(
    gated: tuple[Gated, Gated, Sharded], x: dict[str, Any]
) -> None:
    first, second, service = gated
    futures = [service.submit(Request(x)) for _ in range(3)]
    first.entered.acquire()
    service.close(grace=0.0)
    assert isinstance(futures[2].exception(0), ClosedError), "it stood in line"
    assert isinstance(futures[1].exception(30), ClosedError), "it stood before the first part"
    first.gate.set()
    second.gate.set()
    assert isinstance(futures[0].exception(30), ClosedError | EngineError), "its next part is closed"
    assert service.stats().running == 0


def test_who_is_inside_an_engine_that_hangs_is_told_when_the_grace_is_over(x: dict[str, Any]) -> None:
    first, second = (Gated(link(*ends), EngineOptions()) for ends in (("x", "a"), ("a", "y")))
    second.gate.set()
    service = Sharded([first, second], pipeline=True)
    future = service.submit(Request(x))
    first.entered.acquire()
    service.close(grace=0.0)
    assert isinstance(future.exception(0), ClosedError)
    assert service.stats().running == 0
    first.gate.set()  # what comes of it is nobody's any more
    service.close()


@pytest.mark.parametrize("closed", [False, True])
def test_a_program_ends_whose_engine_hangs_and_answers_first_who_does_not(closed: bool) -> None:
    program = f"""
        import threading
        import numpy as np
        from farthing.device.serving.parts.shard import Sharded
        from farthing.device.serving.service import Request
        from farthing.engines.fake import FakeEngine
        from farthing.options import EngineOptions
        from farthing.testing import fake_model

        class Hanging(FakeEngine):
            def run(self, feeds):
                if {closed}:
                    threading.Event().wait()
                return super().run(feeds)

        parts = [Hanging(fake_model(4, 4, ends=ends), EngineOptions()) for ends in (("x", "a"), ("a", "y"))]
        service = Sharded(parts, pipeline=True)
        for _ in range(20):
            future = service.submit(Request({{"x": np.ones((1, 4), np.float32)}}))
            future.add_done_callback(lambda future: print(type(future.exception()).__name__))
        if {closed}:
            service.close(0.1)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ran.stdout.split() == ["ClosedError" if closed else "NoneType"] * 20
    assert ran.stderr == ""


def test_a_request_that_was_taken_back_is_not_computed(
    gated: tuple[Gated, Gated, Sharded], x: dict[str, Any]
) -> None:
    first, second, service = gated
    futures = [service.submit(Request(x)) for _ in range(3)]
    assert futures[2].cancel()
    first.gate.set()
    second.gate.set()
    service.close()
    assert first.runs == 2
    assert service.stats().failed == {"cancelled": 1}
    assert not wait(futures, 0).not_done, "nobody waits for it for ever"


def test_a_callback_may_close_it(gated: tuple[Gated, Gated, Sharded], x: dict[str, Any]) -> None:
    first, second, service = gated
    futures = [service.submit(Request(x)) for _ in range(3)]
    closed = threading.Event()

    def close(_: object) -> None:
        service.close(grace=3600)
        closed.set()

    futures[0].add_done_callback(close)
    first.gate.set()
    second.gate.set()
    assert closed.wait(30)
    assert not wait(futures, 30).not_done
    assert isinstance(futures[2].exception(), ClosedError)


@pytest.mark.parametrize("pipeline", [False, True])
def test_what_goes_wrong_is_in_the_future(pipeline: bool, x: dict[str, Any]) -> None:
    clock = FakeClock(10.0)
    engines = [open_engine(link("x", "a")), open_engine(link("a", "y"))]
    with Sharded(engines, pipeline=pipeline, clock=clock) as service:
        assert isinstance(service.submit(Request({})).exception(30), FeedError)
        assert isinstance(service.submit(Request({**x, "a": x["x"]})).exception(30), FeedError)
        assert isinstance(service.submit(Request(x, deadline=9.0)).exception(30), DeadlineError)
        engines[1].close()
        error = service.submit(Request(x)).exception(30)
        assert isinstance(error, EngineError)
        assert "closed" in str(error)
        assert service.stats().failed == {"FeedError": 2, "DeadlineError": 1, "EngineError": 1}


def test_a_deadline_that_passes_between_parts_ends_a_request_there(x: dict[str, Any]) -> None:
    clock = FakeClock()
    second = Gated(link("a", "y"), EngineOptions())

    class Slow(FakeEngine):
        def run(self, feeds: Tensors) -> dict[str, Any]:
            clock.advance(1.0)
            return super().run(feeds)

    with Sharded([Slow(link("x", "a"), EngineOptions()), second], clock=clock) as service:
        assert isinstance(service.submit(Request(x, deadline=0.5)).exception(30), DeadlineError)
        assert second.runs == 0


class _Remote(Service):
    """A part elsewhere that answers from a thread of its own, and not always well."""

    name = "remote"

    def __init__(self, engine: Engine, forget: bool = False) -> None:
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._inner, self._forget = OwnThread(engine), forget
        self.closed = 0

    def submit(self, request: Request) -> Future[Answer]:
        if not self._forget:
            return self._inner.submit(request)
        future: Future[Answer] = Future()
        future.set_result(Answer({}, self.name))
        return future

    def close(self, grace: float = 0.0) -> None:
        self.closed += 1
        self._inner.close()


def test_a_part_may_be_any_service(chain: Bundle, x: dict[str, Any]) -> None:
    with ExitStack() as stack:
        engines = [stack.enter_context(open_engine(model)) for model in chain.models.values()]
        remote = _Remote(engines[1])
        nested = Sharded([engines[0], remote])
        with Sharded([nested, Direct(engines[2])], outputs=["y"], depth=1) as service:
            answers = [service.submit(Request(x)) for _ in range(200)]
            for answer in answers:
                np.testing.assert_array_equal(answer.result(30).outputs["y"], alone(chain, x)["y"])
    assert remote.closed == 1


def test_a_part_that_forgets_an_output_is_an_error_not_a_hang(x: dict[str, Any]) -> None:
    with open_engine(link("x", "a")) as engine, Sharded([_Remote(engine, forget=True)]) as service:
        error = service.submit(Request(x)).exception(30)
        assert "did not give 'a'" in str(error)


def test_a_part_that_raises_where_none_does_is_an_error_not_a_hang(x: dict[str, Any]) -> None:
    class Rude(_Remote):
        def submit(self, request: Request) -> Future[Answer]:
            raise ZeroDivisionError("rude")

    with open_engine(link("x", "a")) as engine, Sharded([Rude(engine)]) as service:
        error = service.submit(Request(x)).exception(0)
        assert isinstance(error, EngineError)
        assert "failed: ZeroDivisionError: rude" in str(error)
        assert service.stats().running == 0


def test_an_engine_that_breaks_its_word_takes_no_thread_with_it(x: dict[str, Any]) -> None:
    class Rude(FakeEngine):
        def run(self, feeds: Tensors) -> dict[str, Any]:
            raise ZeroDivisionError("rude")

    with OwnThread(Rude(link("x", "a"), EngineOptions())) as service:
        for _ in range(2):
            error = service.submit(Request(x)).exception(30)
            assert isinstance(error, EngineError)
            assert "failed: ZeroDivisionError: rude" in str(error)


def test_parts_that_cannot_be_run_together_are_refused(tmp_path: Any) -> None:
    with open_engine(link("x", "a")) as first, open_engine(link("b", "y")) as second:
        assert [spec.name for spec in Sharded([first, second]).inputs] == ["x", "b"]
        with pytest.raises(ModelError, match="part 2 makes 'a'"):
            Sharded([first, first])
        with pytest.raises(ConfigError, match="depth is 0"):
            Sharded([first], depth=0)
    with (
        open_engine(link("x", "a", decay=0.5)) as stateful,
        pytest.raises(EngineError, match=r"part 1 \(fake\) keeps a state"),
    ):
        Sharded([stateful])
    Bundle.create("two", "variants", {"a": fake_model()}, tmp_path / "two")
    with pytest.raises(ConfigError, match="bundle of variants, not of parts"):
        open_sharded(tmp_path / "two")


@pytest.mark.parametrize("pipeline", [False, True])
def test_a_part_may_be_computed_by_a_server_on_another_device(pipeline: bool, x: dict[str, Any]) -> None:
    weights = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)
    specs = [[TensorSpec(name=name, dtype="float32", shape=("batch", 4), batch_axis=0)] for name in "ay"]
    with Server() as server, open_engine(link("x", "a")) as first:
        expected = first.run(x)["a"] @ weights
        far = hosted("tail", *specs, lambda feeds: feeds["a"] @ weights, server)
        with Sharded([first, open_engine(far)], pipeline=pipeline) as service:
            np.testing.assert_array_equal(service.answer(x).outputs["y"], expected)
            server.told += [Told(400, b'{"error": "not today"}')]
            error = service.submit(Request(x)).exception(30)
            assert isinstance(error, EngineError | FeedError)
            assert "not today" in str(error)
            np.testing.assert_array_equal(service.answer(x).outputs["y"], expected)
