"""Verdicts: what rules a candidate out, which one wins, and the sentences people read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from farthing.forge.evaluate import Score
from farthing.forge.verdict import (
    accuracy_refusal,
    choose,
    excess,
    gains,
    harmless,
    hopeless,
    points,
    sentence,
    speed_words,
    unresolved,
)
from farthing.measure import Figures, Interval, violations
from farthing.metrics import AGREEMENT, MEAN_ABSOLUTE_ERROR, MEAN_COSINE, TOP1, Metric
from farthing.options import EngineOptions
from farthing.recipe import Candidate
from farthing.target import Budget


def around(value: float, half: float = 0.0) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def score(accuracy: float, drop: float, half: float = 0.0) -> Score:
    return Score(accuracy=around(accuracy, half), drop=around(drop, half), samples=100)


def candidate(number: int, speed: float | None = 1.0, status: Any = "accepted", **figures: Any) -> Candidate:
    return Candidate(
        name=f"c{number}",
        number=number,
        steps=(),
        engine="onnxruntime",
        options=EngineOptions(),
        figures=Figures(**figures),
        speedup=None if speed is None else around(speed, 0.001),
        status=status,
    )


@pytest.mark.parametrize(
    ("value", "metric", "words"),
    [
        (0.0123, TOP1, "+1.23 points"),
        (-0.0, TOP1, "+0.00 points"),
        (-0.00001, TOP1, "+0.00 points"),
        (-0.5, TOP1, "-50.00 points"),
        (0.25, MEAN_ABSOLUTE_ERROR, "+0.25 error"),
        (-0.0, MEAN_ABSOLUTE_ERROR, "+0 error"),
    ],
)
def test_points(value: float, metric: Metric, words: str) -> None:
    assert points(value, metric) == words


def test_a_drop_beyond_the_limit_is_refused_with_both_numbers() -> None:
    budget = Budget(accuracy_drop=0.01)
    assert accuracy_refusal(score(0.9, 0.014), budget, TOP1) == "rejected: -1.40 points (limit -1.00 points)"
    assert accuracy_refusal(score(0.9, 0.01), budget, TOP1) == ""
    assert accuracy_refusal(score(0.9, -0.5), budget, TOP1) == ""
    worse = accuracy_refusal(score(3.0, 0.5), budget, MEAN_ABSOLUTE_ERROR)
    assert worse == "rejected: +0.5 error (limit +0.01 error)", "an error grows"


def test_least_accuracy_is_a_limit_of_its_own() -> None:
    budget = Budget(accuracy_min=0.95)
    assert accuracy_refusal(score(0.9, 0.0), budget, TOP1) == "rejected: top1 0.9000 (limit 0.95)"
    assert accuracy_refusal(score(0.95, 0.3), budget, TOP1) == ""
    both = Budget(accuracy_min=0.95, accuracy_drop=0.01)
    assert "points" in accuracy_refusal(score(0.99, 0.02), both, TOP1)
    assert "top1" in accuracy_refusal(score(0.94, 0.0), both, TOP1)


def test_a_few_samples_rule_out_only_what_is_certain() -> None:
    budget = Budget(accuracy_drop=0.01)
    assert hopeless(score(0.5, 0.4, half=0.05), budget)
    assert not hopeless(score(0.95, 0.03, half=0.05), budget), "worse, but perhaps by luck"
    assert hopeless(score(0.5, 0.0, half=0.05), Budget(accuracy_min=0.9))
    assert not hopeless(score(0.89, 0.0, half=0.05), Budget(accuracy_min=0.9))


@pytest.mark.parametrize(
    ("samples", "limit", "metric", "told"),
    [
        (100, 0.01, TOP1, True),
        (99, 0.01, TOP1, False),
        (33, 0.03, AGREEMENT, False),
        (34, 0.03, AGREEMENT, True),
        (5, 0.01, MEAN_COSINE, True),
        (5, 0.01, MEAN_ABSOLUTE_ERROR, True),
        (5, 0.0, TOP1, True),
        (5, None, TOP1, True),
    ],
)
def test_few_samples_cannot_tell_a_small_drop(
    samples: int, limit: float | None, metric: Metric, told: bool
) -> None:
    words = unresolved(samples, Budget(accuracy_drop=limit), metric)
    assert (words == "") is told
    if words:
        assert words.startswith("cannot tell whether accuracy_drop<=")
        needed = int(words.split("at least ")[1].split()[0])
        assert unresolved(needed, Budget(accuracy_drop=limit), metric) == ""
        assert unresolved(needed - 1, Budget(accuracy_drop=limit), metric) != ""


def test_no_harm_means_the_lower_bound() -> None:
    assert harmless(Interval(value=0.99, low=0.97, high=1.01))
    assert not harmless(Interval(value=0.98, low=0.97, high=0.99))  # surely slower, if by little
    assert not harmless(Interval(value=1.5, low=0.96, high=2.0))
    assert not harmless(None)


def test_speed_in_words() -> None:
    assert speed_words(around(1.5, 0.1)) == "1.50x"
    assert speed_words(around(0.67, 0.01)) == "0.67x"
    assert speed_words(around(1.01, 0.04)) == "cannot tell from the baseline's speed (0.97x..1.05x)"


def test_the_fastest_wins_unless_a_smaller_one_is_as_good_as_fast() -> None:
    budget = Budget(accuracy_drop=0.01)
    fast = candidate(1, 2.0, size_mb=4.0, accuracy_drop=0.0)
    small = candidate(2, 1.96, size_mb=1.0, accuracy_drop=0.005)
    slow = candidate(3, 1.2, size_mb=0.1, accuracy_drop=0.0)
    precise = candidate(4, 1.95, size_mb=1.0, accuracy_drop=0.001)
    assert choose([fast, slow], budget).number == 1
    assert choose([fast, small, slow], budget).number == 2
    assert choose([fast, small, slow, precise], budget).number == 4


def test_if_no_candidate_keeps_the_budget_the_nearest_one_is_chosen() -> None:
    budget = Budget(accuracy_drop=0.01, size_mb=1.0, latency_ms=1.0)
    fast = candidate(1, 5.0, size_mb=4.0, latency_ms=0.5, accuracy_drop=0.0)
    nearer = candidate(2, 1.1, size_mb=1.5, latency_ms=0.9, accuracy_drop=0.0)
    two_limits = candidate(3, 9.0, size_mb=1.1, latency_ms=1.01, accuracy_drop=0.0)
    assert choose([fast, nearer, two_limits], budget).number == 2
    kept = candidate(4, 1.0, size_mb=1.0, latency_ms=1.0, accuracy_drop=0.0)
    assert choose([fast, nearer, two_limits, kept], budget).number == 4


def test_excess_is_relative_and_counts_least_values_downwards() -> None:
    budget = Budget(size_mb=2.0, throughput_min=100.0, energy_mj=1.0)
    assert excess(Figures(size_mb=2.0, throughput=100.0, energy_mj=0.1), budget) == 0
    assert excess(Figures(size_mb=3.0, throughput=50.0), budget) == pytest.approx(1.0)
    assert excess(Figures(size_mb=0.001), Budget(size_mb=0.0)) > 0


figure = st.one_of(st.none(), st.floats(0, 10))
ratio = st.floats(0.5, 3.0)


@given(
    made=st.lists(st.tuples(ratio, figure, figure, figure), min_size=1, max_size=6),
    limits=st.tuples(figure, figure, figure),
)
def test_what_is_chosen_is_never_beaten(made: list[Any], limits: tuple[Any, Any, Any]) -> None:
    """No other candidate exceeds fewer limits; and among those that keep all, none is over 3 % faster."""
    budget = Budget(size_mb=limits[0], latency_ms=limits[1], throughput_min=limits[2])
    candidates = [
        candidate(i, speed, size_mb=size, latency_ms=latency, throughput=throughput)
        for i, (speed, size, latency, throughput) in enumerate(made)
    ]
    best = choose(candidates, budget)
    broken = [len(violations(c.figures, budget)) for c in candidates]
    assert broken[best.number] == min(broken)
    assume(min(broken) == 0)
    rivals = [c for c, count in zip(candidates, broken, strict=True) if count == 0]
    assert best.speedup is not None
    assert all(best.speedup.value >= 0.97 * c.speedup.value for c in rivals if c.speedup)


def test_the_sentence_says_what_won_by_how_much_and_whether_it_is_enough() -> None:
    base = candidate(0, status="baseline", size_mb=4.0)
    winner = candidate(3, 1.9, status="winner", size_mb=1.0)
    text = sentence(base, winner, around(0.002, 0.004), "test", TOP1, ())
    assert text == (
        "c3 in onnxruntime with 1 thread, 1.90x as fast, 4.00x smaller, top1 -0.20 points on test "
        "(-0.60 points to +0.20 points): the budget is met."
    )
    unmet = sentence(base, winner, None, "test", TOP1, ("size_mb is 1, the budget is size_mb<=0.5",))
    assert unmet.endswith("the budget is not met (size_mb is 1, the budget is size_mb<=0.5).")
    same = sentence(base, base, None, "test", TOP1, ())
    assert same == "Nothing tried beats the model as it is: it is returned unchanged; the budget is met."


def about(speed: float, size: float, latency: float | None = None, number: int = 1) -> Candidate:
    around = Interval(value=speed, low=speed * 0.99, high=speed * 1.01)
    return Candidate(
        name="c", number=number, steps=(), engine="fake", options=EngineOptions(), speedup=around,
        figures=Figures(size_mb=size, latency_ms=latency, accuracy_drop=0.0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("speed", "size", "better"),
    [
        (0.98, 2.0, False),  # slower and larger
        (1.0, 1.0, False),
        (1.005, 0.995, False),  # neither is more than noise
        (1.5, 2.0, True),
        (0.99, 0.5, True),
    ],
)
def test_a_candidate_must_gain_something_over_the_baseline(speed: float, size: float, better: bool) -> None:
    assert gains(about(speed, size), about(1.0, 1.0, number=0), Budget(accuracy_drop=0.01)) is better


def test_where_the_baseline_misses_the_budget_only_what_is_nearer_gains() -> None:
    base, budget = about(1.0, 101.0, number=0), Budget(size_mb=100)
    assert not gains(about(2.0, 400.0), base, budget)
    assert gains(about(1.0, 100.5), base, budget)
    assert gains(about(0.98, 50.0), base, budget)


def test_what_could_not_be_measured_says_nothing_against_a_faster_candidate() -> None:
    budget = Budget(latency_ms=5)
    base, faster, slower = about(1.0, 1.0, number=0), about(1.4, 0.3, number=1), about(1.2, 0.3, number=2)
    assert gains(faster, base, budget)
    assert not gains(about(1.0, 1.0, number=3), base, budget)
    assert choose([slower, faster], budget) is faster
