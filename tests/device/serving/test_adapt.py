from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from farthing.device.serving.adapt import Adaptive, AdaptRule, Band, Chooser, Signals, Switch
from farthing.device.serving.batch import Batched
from farthing.device.serving.service import Answer, Request, Service, failed
from farthing.device.watch.probes import Reading
from farthing.engines.base import open_engine
from farthing.errors import ClosedError, ConfigError, EngineError, FeedError
from farthing.testing import FakeClock, fake_model

X, WIDE = ({"x": np.ones((1, width), np.float32)} for width in (4, 5))
RULE = AdaptRule(dwell_s=10, calm_s=30)
COOL, WARM, HOT = (Signals(temperature_c=c) for c in (50.0, 75.0, 85.0))


def opener(name: str, seed: int = 0) -> Service:
    return Batched(open_engine(fake_model(seed=seed)), name=name)


def adaptive(
    clock: FakeClock, signals: list[Signals], rule: AdaptRule = RULE, names: str = "abc"
) -> Adaptive:
    variants = {name: (lambda name=name, seed=i: opener(name, seed)) for i, name in enumerate(names)}
    return Adaptive(variants, rule, read=lambda: signals[-1], clock=clock, every=0)  # type: ignore[arg-type]


def test_heat_takes_the_cheaper_variant_and_calm_the_dearer_again() -> None:
    clock, signals = FakeClock(), [COOL]
    with adaptive(clock, signals) as service:
        story = []
        for _ in range(160):
            clock.advance(1)
            signals.append(HOT if 20 <= clock() < 25 else COOL)
            if switch := service.step():
                story.append((switch.time, switch.before, switch.after))
            assert service.answer(X).source == service.variant
        assert story == [(20, "a", "b"), (55, "b", "a")]
        assert service.switches[0].reason == "temperature_c 85 is beyond 80"
        assert service.switches[1].reason == "all signals good for 30 s"


def test_between_the_limits_nothing_moves() -> None:
    clock, signals = FakeClock(100), [HOT]
    with adaptive(clock, signals) as service:
        clock.advance(10)
        assert service.step()
        signals.append(WARM)
        for _ in range(500):
            clock.advance(1)
            assert service.step() is None
        assert service.variant == "b"


def test_a_variant_stays_for_its_dwelling_time() -> None:
    clock, signals = FakeClock(), [HOT]
    with adaptive(clock, signals) as service:
        moves = []
        for _ in range(60):
            if service.step():
                moves.append(clock())
            clock.advance(1)
        assert moves == [10, 20]  # and then there is nothing cheaper
        assert service.variant == "c"


def test_who_rises_in_vain_waits_longer_each_time() -> None:
    """A load that the dear variant cannot carry, and the cheap one can."""
    clock = FakeClock()
    chooser = Chooser(2, AdaptRule(dwell_s=10, calm_s=30), 0.0)
    rises = []
    while clock() < 3000:
        clock.advance(1)
        load = 2.0 if chooser.index else 100.0
        index, _ = chooser.decide(clock(), Signals(load=load))
        if index != chooser.index:
            if index < chooser.index:
                rises.append(clock())
            chooser.moved(clock(), index)
    gaps = np.diff(rises)
    assert list(gaps[:3]) == sorted(gaps[:3])
    assert gaps[2] > 1.7 * gaps[1] > 2.8 * gaps[0]
    assert gaps[-1] <= 16 * 30 + 10 + 2


def test_a_low_battery_and_throttling_are_bad_and_what_is_unavailable_decides_nothing() -> None:
    for signals, word in (
        (Signals(battery_percent=10.0), "battery_percent 10 is beyond 20"),
        (Signals(throttled=True), "throttled"),
        (Signals(load=17.0), "load 17 is beyond 16"),
    ):
        index, reason = Chooser(2, RULE, 0.0).decide(10.0, signals)
        assert index == 1
        assert word in reason
    assert Chooser(2, RULE, 0.0).decide(1e6, Signals()) == (0, "")
    no_throttling = AdaptRule(throttling=False)
    assert Chooser(2, no_throttling, 0.0).decide(10.0, Signals(throttled=True)) == (0, "")


def test_sensors_speak_of_a_battery_only_while_it_drains() -> None:
    reading = Reading(time_s=0.0, temperature_c=60.0, battery_percent=15.0, battery_status="Discharging")
    assert Signals.of(reading) == Signals(temperature_c=60.0, battery_percent=15.0)
    assert Signals.of(replace(reading, battery_status="Charging")).battery_percent is None
    assert Signals.of(Reading(time_s=0.0)) == Signals()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Band(worse=1, better=1),
        lambda: Band(worse=math.nan, better=1),
        lambda: AdaptRule(dwell_s=-1),
        lambda: AdaptRule(calm_s=math.inf),
        lambda: Adaptive({}),
    ],
)
def test_what_means_nothing_is_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


maybe = st.one_of(st.none(), st.floats(0, 120))


@given(
    st.lists(
        st.tuples(
            st.floats(0, 40),
            st.builds(
                Signals, load=maybe, temperature_c=maybe, battery_percent=maybe, throttled=st.booleans()
            ),
        ),
        max_size=60,
    ),
    st.integers(1, 4),
)
def test_switches_are_single_steps_apart_by_the_dwelling_time(
    looks: list[tuple[float, Signals]], count: int
) -> None:
    now, last, chooser = 0.0, 0.0, Chooser(count, RULE, 0.0)
    for passed, signals in looks:
        now += passed
        index, reason = chooser.decide(now, signals)
        assert (index != chooser.index) == bool(reason)
        if reason:
            assert 0 <= index < count
            assert abs(index - chooser.index) == 1
            assert now - last >= RULE.dwell_s
            chooser.moved(now, index)
            last = now


@pytest.mark.parametrize(
    ("error", "words"), [(EngineError("no memory"), "no memory"), (OSError("no file"), "OSError: no file")]
)
def test_a_variant_that_does_not_open_is_reported_and_the_old_one_answers(
    error: Exception, words: str
) -> None:
    def broken() -> Service:
        raise error

    clock = FakeClock()
    heard: list[Switch] = []
    service = Adaptive(
        {"a": lambda: opener("a"), "b": broken},
        RULE,
        read=lambda: HOT,
        clock=clock,
        every=0,
        listener=heard.append,
    )
    with service:
        clock.advance(10)
        service.step()
        assert service.variant == "a"
        assert service.answer(X).source == "a"
        assert heard[0].reason == f"temperature_c 85 is beyond 80; but b could not be opened: {words}"
        assert heard[0].after == "a"
        clock.advance(5)
        assert service.step() is None
        clock.advance(5)
        assert service.step()


def test_a_variant_that_takes_other_tensors_is_closed_again() -> None:
    clock, other = FakeClock(), Batched(open_engine(fake_model(features=5)))
    with Adaptive(
        {"a": lambda: opener("a"), "b": lambda: other}, RULE, read=lambda: HOT, clock=clock, every=0
    ) as service:
        clock.advance(10)
        assert "refused" in service.step().reason  # type: ignore[union-attr]
        assert isinstance(other.submit(Request(WIDE)).exception(0), ClosedError)


def test_watching_goes_on_when_sensors_or_listeners_fail() -> None:
    looks: list[int] = []
    heard = threading.Event()

    def read() -> Signals:
        looks.append(1)
        if len(looks) == 1:
            raise OSError("the sensor is gone")
        return HOT

    def listener(switch: Switch) -> None:
        if switch.after == "c":
            heard.set()
        raise RuntimeError

    variants = {name: (lambda name=name: opener(name)) for name in "abc"}
    with Adaptive(variants, AdaptRule(dwell_s=0), read=read, every=0.001, listener=listener):  # type: ignore[arg-type]
        assert heard.wait(30)


def test_closing_does_not_wait_for_a_variant_that_takes_long_to_open_and_closes_it_then() -> None:
    begun, go, opened = threading.Event(), threading.Event(), []

    def slow() -> Service:
        begun.set()
        assert go.wait(30)
        opened.append(opener("b"))
        return opened[0]

    service = Adaptive(
        {"a": lambda: opener("a"), "b": slow}, AdaptRule(dwell_s=0), read=lambda: HOT, every=0.001
    )
    assert begun.wait(30)
    closer = threading.Thread(target=service.close, args=(0.05,), daemon=True)
    closer.start()
    closer.join(20)
    assert not closer.is_alive()
    go.set()
    service.close()
    assert isinstance(opened[0].submit(Request(X)).exception(0), ClosedError)
    assert service.variant == "a"


class ByHand(Service):
    """Answers when it is told to, and fails requests without feeds at once."""

    name = "by hand"
    inputs = outputs = ()

    def __init__(self) -> None:
        self.asked: list[Future[Answer]] = []

    def submit(self, request: Request) -> Future[Answer]:
        if not request.feeds:
            return failed(FeedError("no feeds"))
        self.asked.append(Future())
        return self.asked[-1]

    def ask(self, request: Request) -> asyncio.Future[Answer]:
        return asyncio.get_running_loop().create_future()

    def close(self, grace: float = 0.0) -> None: ...


def by_hand(rule: AdaptRule, clock: FakeClock) -> tuple[ByHand, Adaptive]:
    inner = ByHand()
    return inner, Adaptive({"a": lambda: inner, "b": ByHand}, rule, clock=clock, every=0)


def test_event_loops_that_end_without_an_answer_are_no_load_any_more() -> None:
    _, service = by_hand(AdaptRule(dwell_s=0, load=Band(worse=4, better=2)), FakeClock())

    async def leave() -> None:
        service.ask(Request(X))

    for _ in range(5):
        asyncio.run(leave())
    for _ in range(4):
        service.submit(Request(X))
    gc.collect()
    assert service.step() is None
    service.submit(Request(X))
    assert "load 5 is beyond 4" in service.step().reason  # type: ignore[union-attr]


def test_requests_that_fail_at_once_are_no_fast_answers() -> None:
    clock = FakeClock()
    inner, service = by_hand(AdaptRule(dwell_s=0, p99_ms=Band(worse=50, better=20)), clock)
    service.submit(Request(X))
    clock.advance(0.2)
    inner.asked.pop().set_result(Answer({}, "by hand"))
    for _ in range(1000):
        service.submit(Request({}))
        service.submit(Request(X)).cancel()
    assert "p99_ms 200 is beyond 50" in service.step().reason  # type: ignore[union-attr]


def test_real_load_takes_the_cheaper_variant_and_no_request_is_late_or_lost() -> None:
    """End to end: callers in threads, a real engine with more to do than it can, and the service's own watch."""
    rng = np.random.default_rng(0)

    def sized(outputs: int) -> Service:
        model = fake_model(features=512, outputs=512)
        return Batched(Heavy(open_engine(model), outputs), name=f"x{outputs}", runners=1)

    variants = {"large": lambda: sized(40), "small": lambda: sized(1)}
    rule = AdaptRule(load=Band(worse=6, better=2), temperature_c=None, dwell_s=0.2, calm_s=60)
    switched = threading.Event()
    with Adaptive(variants, rule, every=0.02, listener=lambda _: switched.set()) as service:
        feeds = {"x": rng.standard_normal((1, 512)).astype(np.float32)}
        failed: list[BaseException | None] = []
        until = time.monotonic() + 20

        def call() -> None:
            while not switched.is_set() and time.monotonic() < until:
                deadline = time.monotonic() + 10
                failed.append(service.submit(Request(feeds, deadline=deadline)).exception(30))

        threads = [threading.Thread(target=call) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert service.variant == "small"
        assert service.switches[0].reason.startswith("load ")
        assert set(failed) == {None}


class Heavy:
    """An engine that computes the same so many times: real work for the processor."""

    def __init__(self, engine: object, times: int) -> None:
        self._engine, self._times = engine, times

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def run(self, feeds: dict[str, np.ndarray]) -> object:  # type: ignore[type-arg]
        for _ in range(self._times - 1):
            self._engine.run(feeds)  # type: ignore[attr-defined]
        return self._engine.run(feeds)  # type: ignore[attr-defined]


def test_a_variant_is_judged_by_its_own_answers_alone() -> None:
    clock, inner = FakeClock(), ByHand()
    rule = AdaptRule(dwell_s=0, load=None, p99_ms=Band(worse=50, better=20))
    service = Adaptive({"a": lambda: inner, "b": lambda: inner, "c": ByHand}, rule, clock=clock, every=0)

    def answered(seconds: float, count: int) -> None:
        for _ in range(count):
            service.submit(Request(X))
            clock.advance(seconds)
            inner.asked.pop().set_result(Answer({}, "by hand"))

    answered(0.001, 600)  # slow ones are two in a hundred of the latest 512
    answered(0.2, 10)
    assert service.step().after == "b"  # type: ignore[union-attr]
    assert service.step() is None, "nothing is known of it yet"
    answered(0.001, 500)
    answered(0.2, 4)  # less than one in a hundred
    assert service.step() is None
    answered(0.2, 4)
    assert service.step().after == "c"  # type: ignore[union-attr]
