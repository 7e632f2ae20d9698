from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.device.serving.queue.pace import Forecast, Pace, Thinning


def test_pace_follows_what_is_measured_and_forgets_an_outlier() -> None:
    pace = Pace()
    assert not pace.known
    pace.learn(10.0)  # the first call of a model may take long
    assert (pace.mean, pace.deviation) == (10.0, 5.0)
    for _ in range(60):
        pace.learn(0.1)
    assert pace.mean == pytest.approx(0.1, abs=0.01)
    assert pace.deviation < 0.05


def test_a_forecast_hands_places_out_in_turn() -> None:
    forecast = Forecast([1.0, 1.5], 2.0)
    assert [forecast.end(place) for place in range(5)] == [3.0, 3.5, 5.0, 5.5, 7.0]


def feed(
    thinning: Thinning, fps: float, seconds: float, capacity: float, streams: int = 1
) -> list[list[float]]:
    """Moments at which requests of each stream passed, a service of that capacity never being idle."""
    passed: list[list[float]] = [[] for _ in range(streams)]
    for k in range(int(fps * seconds)):
        for stream in range(streams):
            now = k / fps + stream * 1e-4
            if thinning.passes(stream, 0, now, capacity, waiting=0, idle=k == 0):
                passed[stream].append(now)
    return passed


def test_a_stream_at_three_times_the_capacity_keeps_every_third_request() -> None:
    (passed,) = feed(Thinning(1.0), fps=30, seconds=30, capacity=10)
    steady = [now for now in passed if now > 10]
    gaps = [round((later - now) * 30) for now, later in pairwise(steady)]
    assert set(gaps) <= {3, 4}
    assert len(steady) == pytest.approx(200, rel=0.05)


def test_streams_in_step_get_equal_shares_one_after_the_other() -> None:
    passed = feed(Thinning(1.0), fps=10, seconds=30, capacity=10, streams=3)
    counts = [sum(now > 10 for now in stream) for stream in passed]
    assert sum(counts) == pytest.approx(200, rel=0.05)
    assert max(counts) - min(counts) <= 0.1 * max(counts)
    for stream in passed:
        steady = [now for now in stream if now > 10]
        assert max(later - now for now, later in pairwise(steady)) < 0.55  # 0.3 would be perfect


def test_what_the_service_can_take_is_not_thinned() -> None:
    (passed,) = feed(Thinning(1.0), fps=30, seconds=10, capacity=35)
    assert len(passed) == 300


def test_overload_shorter_than_the_window_is_not_thinned() -> None:
    (passed,) = feed(Thinning(5.0), fps=30, seconds=4, capacity=10)
    assert len(passed) == 120


def test_who_finds_the_service_idle_passes_and_pays_later() -> None:
    thinning = Thinning(1.0)
    feed(thinning, fps=30, seconds=10, capacity=10)
    assert thinning.on
    assert all(thinning.passes(0, 0, 10 + k / 30, 10, waiting=0, idle=True) for k in range(3))
    assert not any(thinning.passes(0, 0, 10.1 + k / 30, 10, waiting=0, idle=False) for k in range(3))
    later = [thinning.passes(0, 0, 10.2 + k / 30, 10, waiting=0, idle=True) for k in range(60)]
    assert all(later)
    again = [thinning.passes(0, 0, 12.2 + k / 30, 10, waiting=0, idle=False) for k in range(12)]
    assert any(again)  # it pays for one, not for all of them


def test_streams_that_begin_together_do_not_pass_together() -> None:
    thinning = Thinning(1.0)
    feed(thinning, fps=30, seconds=10, capacity=10)
    passed = [thinning.passes(f"new {k}", 0, 10 + k / 300, 20, waiting=0, idle=False) for k in range(30)]
    assert 0 < sum(passed) < 20


def test_the_important_go_first_and_the_rest_gets_what_is_left() -> None:
    thinning, passed = Thinning(1.0), {0: 0, 5: 0}
    for k in range(300):
        for priority in passed:
            ok = thinning.passes(priority, priority, k / 10, 15.0, waiting=0, idle=k == 0)
            passed[priority] += ok and k >= 100
    assert passed[0] == 200
    assert passed[5] == pytest.approx(100, rel=0.15)


def test_what_has_piled_up_is_worked_off() -> None:
    clear, piled = Thinning(1.0), Thinning(1.0)
    passed = [0, 0]
    for k in range(900):
        for i, (thinning, waiting) in enumerate([(clear, 0), (piled, 5)]):
            passed[i] += thinning.passes(0, 0, k / 30, 10, waiting, idle=k == 0) and k >= 300
    assert passed[0] == pytest.approx(200, rel=0.05)
    assert passed[1] == pytest.approx(100, rel=0.05)  # 10 a second can be computed, 5 wait


@given(st.lists(st.tuples(st.integers(), st.integers(-(10**9), 10**9), st.floats(0, 10)), max_size=60))
def test_callers_cannot_make_it_remember_more_and_more(calls: list[tuple[int, int, float]]) -> None:
    thinning, now = Thinning(1.0), 0.0
    for k, (stream, priority, gap) in enumerate(calls * 40):
        now += gap / 100
        thinning.passes((stream, k), priority, now, 0.001, waiting=0, idle=k == 0)
    assert len(thinning._credits) <= 1024
    assert len(thinning._demand) <= 16
