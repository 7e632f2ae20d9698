"""The breaker and the budget of retries, without a server: numbers in, decisions out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from farthing.engines.remote.retrying import Breaker, BreakerRule, RetryBudget, RetryRule
from farthing.errors import CircuitOpenError, ConfigError
from farthing.testing import FakeClock

# --- retries


@given(
    st.floats(0, 1),
    st.integers(0, 20),
    st.lists(st.booleans(), max_size=200),
)
def test_retries_are_a_share_of_the_requests_beyond_the_burst(
    share: float, burst: int, makes_request: list[bool]
) -> None:
    budget = RetryBudget(RetryRule(share=share, burst=burst))
    requests = retries = 0
    for request in makes_request:
        if request:
            budget.request()
            requests += 1
        else:
            retries += budget.retry()
        assert retries <= burst + share * requests + 1e-9


def test_of_a_server_that_is_down_one_request_in_ten_is_retried() -> None:
    budget = RetryBudget(RetryRule(share=0.1, burst=0))
    retries = 0
    for _ in range(1000):
        budget.request()
        retries += budget.retry()
    assert 98 <= retries <= 100


def test_a_share_of_nothing_and_no_burst_never_retries() -> None:
    budget = RetryBudget(RetryRule(share=0, burst=0))
    for _ in range(100):
        budget.request()
        assert not budget.retry()


def test_quiet_times_do_not_save_up_more_than_the_burst() -> None:
    budget = RetryBudget(RetryRule(share=1, burst=3))
    for _ in range(100):
        budget.request()
    assert [budget.retry() for _ in range(5)] == [True, True, True, False, False]


@given(st.integers(1, 10), st.floats(0, 1))
def test_pauses_double_and_are_cut_by_half_at_most(attempt: int, luck: float) -> None:
    pause = RetryBudget(RetryRule(pause_ms=100)).pause(attempt, luck)
    whole = 0.1 * 2 ** (attempt - 1)
    assert whole / 2 <= pause <= whole


# --- breaker


RULE = BreakerRule(failures=3, open_ms=10_000)


def failed(breaker: Breaker, clock: FakeClock, times: int) -> None:
    for _ in range(times):
        breaker.record(breaker.admit(clock()), False, clock())


def test_failures_in_a_row_open_it_and_it_says_until_when() -> None:
    breaker, clock = Breaker(RULE, "the server"), FakeClock(100)
    failed(breaker, clock, 3)
    clock.advance(4)
    with pytest.raises(
        CircuitOpenError, match=r"the server is not asked for another 6 s: 3 requests"
    ) as caught:
        breaker.admit(clock())
    assert (caught.value.until, caught.value.retry_after) == (110, 6)


def test_a_success_between_failures_keeps_it_closed() -> None:
    breaker, clock = Breaker(RULE, "s"), FakeClock()
    for _ in range(5):
        failed(breaker, clock, 2)
        breaker.record(breaker.admit(clock()), True, clock())
    assert breaker.state(clock()) == "closed"


@pytest.mark.parametrize(("back", "state"), [(True, "closed"), (False, "open")])
def test_one_probe_decides(back: bool, state: str) -> None:
    breaker, clock = Breaker(RULE, "s"), FakeClock()
    failed(breaker, clock, 3)
    clock.advance(10)
    assert breaker.state(clock()) == "half-open"
    probe = breaker.admit(clock())
    with pytest.raises(CircuitOpenError):
        breaker.admit(clock())
    clock.advance(1)
    breaker.record(probe, back, clock())
    assert breaker.state(clock()) == state
    if not back:
        clock.advance(9.5)
        assert breaker.state(clock()) == "open", "a whole open_ms from the probe's failure"


def test_a_probe_that_is_never_heard_of_does_not_lock_the_others_out() -> None:
    breaker, clock = Breaker(RULE, "s"), FakeClock()
    failed(breaker, clock, 3)
    clock.advance(10)
    lost = breaker.admit(clock())
    clock.advance(10)
    breaker.admit(clock())
    breaker.record(lost, True, clock())
    assert breaker.state(clock()) == "closed", "a late success is a success"


def test_an_interrupted_probe_makes_room_for_the_next() -> None:
    breaker, clock = Breaker(RULE, "s"), FakeClock()
    failed(breaker, clock, 3)
    clock.advance(10)
    breaker.record(breaker.admit(clock()), None, clock())
    breaker.admit(clock())


def test_requests_from_before_it_opened_decide_nothing() -> None:
    breaker, clock = Breaker(RULE, "s"), FakeClock()
    before = [breaker.admit(clock()) for _ in range(5)]
    for admitted in before[:3]:
        breaker.record(admitted, False, clock())
    breaker.record(before[3], True, clock())
    assert breaker.state(clock()) == "open"
    clock.advance(9)
    breaker.record(before[4], False, clock())
    clock.advance(1)
    assert breaker.state(clock()) == "half-open"


def test_without_failures_to_count_it_never_opens() -> None:
    breaker, clock = Breaker(BreakerRule(failures=0), "s"), FakeClock()
    failed(breaker, clock, 1000)
    assert breaker.state(clock()) == "closed"


class Breaking(RuleBasedStateMachine):
    """Any order of requests, outcomes and times."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.breaker = Breaker(BreakerRule(failures=2, open_ms=1000), "s")
        self.out: list[int] = []

    @rule()
    def ask(self) -> None:
        state = self.breaker.state(self.clock())
        if state == "open":
            with pytest.raises(CircuitOpenError) as caught:
                self.breaker.admit(self.clock())
            assert self.clock() < caught.value.until <= self.clock() + 1
            assert caught.value.retry_after == pytest.approx(caught.value.until - self.clock())
            return
        self.out.append(self.breaker.admit(self.clock()))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), good=st.sampled_from([True, False, False, None]))
    def answer(self, data: st.DataObject, good: bool | None) -> None:
        state = self.breaker.state(self.clock())
        number = data.draw(st.integers(0, len(self.out) - 1))
        self.breaker.record(self.out.pop(number), good, self.clock())
        after = self.breaker.state(self.clock())
        if state == "closed" and after != "closed":
            assert good is False
        if state != "closed" and after == "closed":
            assert good is True

    @rule(seconds=st.floats(0, 1.5))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def it_can_always_close_again(self) -> None:
        """Whatever happened: one second later the next request passes."""
        assert self.breaker.state(self.clock() + 1.001) != "open"


TestBreaking: Any = Breaking.TestCase


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (RetryRule, {"attempts": 0}, "attempts are from 1"),
        (RetryRule, {"share": 1.5}, "share is from 0 to 1"),
        (RetryRule, {"burst": -1}, "burst is from 0"),
        (RetryRule, {"pause_ms": float("nan")}, "pause_ms is from 0"),
        (BreakerRule, {"failures": -1}, "failures are from 0"),
        (BreakerRule, {"open_ms": 0}, "open_ms is above 0"),
    ],
)
def test_impossible_rules_are_refused(kind: Any, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kind(**values)
