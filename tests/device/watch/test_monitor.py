"""The monitor: figures against those of the sorted values, windows by a fake clock, threads, sums of processes."""

from __future__ import annotations

import math
import threading
from concurrent.futures import CancelledError

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing import errors
from farthing.device.watch import monitor
from farthing.device.watch.histogram import DURATIONS, SIZES, Counts, Histogram
from farthing.device.watch.monitor import Monitor, Performance, Window
from farthing.testing import FakeClock

durations = st.floats(1e-7, 1e4)
close = 1 / 128 + 1e-9


def observed(seconds: list[float], **settings: float) -> Monitor:
    clock = FakeClock()
    watch = Monitor(clock=clock, **settings)  # type: ignore[arg-type]
    for value in seconds:
        watch.observe(value)
    clock.advance(1)
    return watch


@given(st.lists(durations, min_size=1, max_size=200), st.floats(0, 1))
def test_quantiles_are_those_of_the_sorted_values(seconds: list[float], share: float) -> None:
    window = observed(seconds).since_start()
    exact = sorted(seconds)[max(math.ceil(share * len(seconds)), 1) - 1]
    assert window.quantile(share) == pytest.approx(exact, rel=close)
    assert window.max == max(seconds)
    assert window.count == len(seconds)
    assert window.mean == pytest.approx(np.mean(seconds))
    assert window.fps == len(seconds)


def test_named_quantiles_of_a_thousand_values() -> None:
    window = observed([n / 1000 for n in range(1, 1001)]).since_start()
    for got, exact in ((window.p50, 0.5), (window.p90, 0.9), (window.p95, 0.95), (window.p99, 0.99)):
        assert got == pytest.approx(exact, rel=close)
    assert window.max == 1.0


@given(st.lists(durations, max_size=100))
def test_bounds_are_held_against_the_exact_value(seconds: list[float]) -> None:
    counts = observed(seconds).since_start().durations
    below = [sum(value <= bound for value in seconds) for bound in (*DURATIONS, math.inf)]
    assert counts.cumulative() == below
    assert counts.total == pytest.approx(sum(seconds))


@pytest.mark.parametrize("odd", [0.0, -1.0, math.nan, -math.inf, math.inf, 1e300])
def test_odd_durations_count_as_the_nearest_that_can_be(odd: float) -> None:
    window = observed([odd]).since_start()
    assert window.count == 1
    assert window.max == (monitor.LONGEST if odd > 1 else monitor.SHORTEST)
    assert window.p50 == pytest.approx(window.max, rel=close)


def test_nothing_observed_is_none_and_not_zero() -> None:
    watch = Monitor(clock=FakeClock())
    for window in (watch.since_start(), watch.last_seconds(), watch.last_requests()):
        assert (window.mean, window.p50, window.p99, window.max) == (None,) * 4
        assert (window.count, window.failed, window.fps, window.seconds) == (0, 0, 0, 0)


# --- windows


def test_the_window_by_time_forgets_slice_by_slice() -> None:
    clock = FakeClock(1000)
    watch = Monitor(seconds=10, slices=5, clock=clock)
    watch.observe(9.0)
    for _ in range(8):
        clock.advance(1)
        watch.observe(0.001)
    window = watch.last_seconds()
    assert (window.count, window.seconds, window.max) == (9, 8, 9.0)
    clock.advance(2)  # the slice of the slow one is over
    window = watch.last_seconds()
    assert (window.seconds, window.count, window.max) == (8, 7, 0.001)
    clock.advance(7.5)
    window = watch.last_seconds()
    assert (window.seconds, window.count) == (9.5, 1)
    clock.advance(100)
    window = watch.last_seconds()
    assert (window.seconds, window.count, window.failed) == (9.5, 0, 0)
    assert watch.since_start().count == 9
    assert watch.since_start().seconds == 117.5


@given(
    st.lists(
        st.tuples(st.floats(0, 7), st.one_of(durations, st.sampled_from(["late", "full"]))), max_size=60
    ),
    st.integers(1, 6),
    st.integers(1, 20),
)
def test_windows_hold_exactly_what_lies_in_the_stretch_they_name(
    events: list[tuple[float, float | str]], slices: int, requests: int
) -> None:
    clock = FakeClock(5)
    watch, told = Monitor(seconds=6, slices=slices, requests=requests, clock=clock), []
    for pause, outcome in events:
        clock.advance(pause)
        watch.fail(outcome) if isinstance(outcome, str) else watch.observe(outcome)
        told.append((clock(), outcome))
    by_time, by_count, every = watch.last_seconds(), watch.last_requests(), watch.since_start()
    assert by_time.seconds <= 6 + 1e-9
    assert by_time.seconds >= min(clock() - 5, 6 - 6 / slices) - 1e-9
    began = clock() - by_time.seconds
    inside = [(at, outcome) for at, outcome in told if at >= began - 1e-9]
    least = [(at, outcome) for at, outcome in told if at > began + 1e-9]
    assert len(least) <= by_time.count + by_time.failed <= len(inside)
    last = [outcome for _, outcome in told][-requests:]
    assert by_count.count == sum(isinstance(outcome, float) for outcome in last)
    assert by_count.failed == len(last) - by_count.count
    before = told[-requests - 1][0] if len(told) > requests else 5
    assert by_count.seconds == pytest.approx(clock() - before)
    assert every.count + every.failed == len(told)
    for window in (by_time, by_count, every):
        assert sum(window.buckets.values()) == window.count
        assert window.fps == pytest.approx(window.count / window.seconds if window.seconds else 0)


def test_a_clock_that_stands_still_or_goes_back_loses_nothing() -> None:
    moments = iter([100.0, 99.0, 50.0, 100.0, 101.0, 101.0])
    watch = Monitor(clock=lambda: next(moments))
    for _ in range(3):
        watch.observe(0.1)
    assert watch.last_seconds().count == 3
    assert watch.since_start().count == 3


# --- failures


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (errors.DeadlineError("x"), "deadline"),
        (errors.OverloadError("x"), "overload"),
        (errors.FeedError("x"), "bad_input"),
        (errors.ProtocolError("x"), "bad_input"),
        (errors.EngineError("x"), "engine"),
        (errors.UnknownModelError("x"), "unknown_model"),
        (errors.ClosedError("x"), "closed"),
        (CancelledError(), "cancelled"),
        (MemoryError(), "other"),
    ],
)
def test_every_error_has_one_word(error: BaseException, word: str) -> None:
    assert monitor.reason(error) == word


def test_failures_are_counted_by_reason_and_reasons_are_few() -> None:
    watch = Monitor(seconds=10, slices=2, clock=(clock := FakeClock()))
    for number in range(1000):
        watch.fail(f"reason {number}")
        clock.advance(1)
    watch.fail("reason 3")
    found = watch.since_start().errors
    assert found["reason 3"] == 2
    assert found["other"] == 1001 - monitor.MOST_REASONS - 1
    assert len(found) == monitor.MOST_REASONS + 1
    assert watch.since_start().count == 0


# --- threads and processes


def test_nothing_is_lost_between_threads() -> None:
    watch = Monitor(seconds=0.01, slices=5, requests=10)

    def work(number: int) -> None:
        for _ in range(5000):
            watch.observe(0.001 * number)
            watch.fail("late")
            watch.executed(number, 0.25, [0.5] * number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert 0 <= watch.last_seconds().count <= 20_000
        assert watch.last_requests().count + watch.last_requests().failed <= 20
    for thread in threads:
        thread.join()
    got = watch.performance(pending=7)
    assert (got.requests.count, got.requests.errors, got.pending) == (20_000, {"late": 20_000}, 7)
    assert got.requests.durations.total == pytest.approx(50)
    assert (got.batches.count, got.batches.total) == (20_000, 50_000)
    assert (got.computed.count, got.queued.count, got.queued.total) == (20_000, 50_000, 25_000)
    assert got.occupied == 0.25 * 50_000


@given(st.lists(st.tuples(durations, st.integers(0, 2)), max_size=60))
def test_processes_add_up_to_one_that_saw_all(seen: list[tuple[float, int]]) -> None:
    """Through bytes, as they come from other processes."""
    whole = observed([value for value, _ in seen])
    parts = [observed([value for value, whose in seen if whose == part]) for part in range(3)]
    coded = [msgspec.json.encode(part.performance(pending=1)) for part in parts]
    first, *others = [msgspec.json.decode(code, type=Performance) for code in coded]
    total = sum(others, first)
    assert total.pending == 3
    one = whole.performance().requests
    assert total.requests.buckets == one.buckets
    assert total.requests.durations.counts == one.durations.counts
    assert total.requests.fps == one.fps
    assert (total.requests.p99, total.requests.max, total.requests.seconds) == (one.p99, one.max, one.seconds)
    assert total.requests.mean == (None if one.mean is None else pytest.approx(one.mean))


def test_what_does_not_add_up_is_refused() -> None:
    watch = Monitor()
    with pytest.raises(errors.MeasurementError, match="by start and by requests do not add up"):
        watch.since_start() + watch.last_requests()
    with pytest.raises(errors.MeasurementError, match="different bounds"):
        Histogram(SIZES).snapshot() + Histogram(DURATIONS).snapshot()
    with pytest.raises(msgspec.ValidationError, match="2 bounds have 3 counts, not 2"):
        msgspec.convert({"bounds": (1, 2), "counts": (1, 2)}, Counts)


def test_memory_is_bounded_whatever_is_observed() -> None:
    watch = Monitor(requests=10, clock=(clock := FakeClock()))
    for exponent in range(-400, 400):
        for mantissa in range(100):
            watch.observe((1 + mantissa / 100) * 2.0**exponent)
        clock.advance(1)
    assert len(watch.since_start().buckets) <= 64 * 61
    assert isinstance(watch.last_requests(), Window)


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0}, {"seconds": math.nan}, {"seconds": -1}, {"slices": 0}, {"requests": 0}]
)
def test_windows_without_length_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(errors.ConfigError, match="windows have a length"):
        Monitor(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [99, -0.1, math.nan])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(errors.MeasurementError, match=r"from 0 to 1, as in 0\.99"):
        observed([1.0]).since_start().quantile(share)
