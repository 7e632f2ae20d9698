"""The statistics, against scipy, exact binomials and simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.config import canonical, convert, parse
from farthing.errors import MeasurementError
from farthing.measure import (
    Figures,
    Interval,
    Measurement,
    bootstrap,
    compare,
    machine_name,
    mean_interval,
    paired_difference,
    percentile,
    percentile_bound,
    ratio_of_medians,
    student,
    violations,
    within,
)
from farthing.options import EngineOptions
from farthing.target import BUDGET_NAMES, Budget

MEASURED = Measurement(
    model="0" * 64,
    engine="fake",
    engine_version="1",
    options=EngineOptions(),
    machine="here",
    scenario="single_stream",
    runs=100,
    seconds=1.0,
    p50_ms=1.0,
    p90_ms=2.0,
    p99_ms=3.0,
    throughput=100.0,
    size_mb=0.5,
)
finite = st.floats(-1e9, 1e9)


# --- percentiles


@given(st.lists(finite, min_size=1, max_size=200), st.floats(0, 1))
def test_a_percentile_is_a_sample_that_the_share_does_not_exceed(samples: list[float], share: float) -> None:
    value = percentile(np.array(samples), share)
    assert value in samples
    assert sum(sample <= value for sample in samples) >= share * len(samples) - 1e-6


def test_percentiles_take_the_nearest_rank_in_spite_of_binary_fractions() -> None:
    for n in range(1, 400):
        samples = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
        for hundredths in (1, 7, 50, 55, 90, 99, 100):
            assert percentile(samples, hundredths / 100) == math.ceil(hundredths * n / 100), (n, hundredths)


def test_no_samples_no_percentile() -> None:
    with pytest.raises(MeasurementError, match="no samples"):
        percentile(np.array([]), 0.9)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_bound_on_a_percentile_holds_for_every_count(share: float) -> None:
    """P(the r-th of n lies at or above the quantile) = P(Binomial(n, q) < r), exactly, must reach 95 %."""
    binom = pytest.importorskip("scipy.stats").binom
    covered = {}
    for n in (*range(2, 500, 3), 299, 300, 301, 302, 303, 1000, 3000, 10_000):
        bound = percentile_bound(np.arange(1.0, n + 1), share)
        if bound is not None:
            covered[n] = binom.cdf(bound - 1, n, share)
    assert min(covered.values()) >= 0.95
    assert covered[10_000] <= 0.96, "and not far above"
    assert min(covered) <= math.log(0.05) / math.log(share) * 1.2 + 8, "and it is given as soon as it can be"


def test_the_bound_on_p90_holds_on_skewed_times() -> None:
    generator = np.random.default_rng(0)
    truth = math.exp(1.2815515655446004)  # p90 of a log-normal
    bounds = [percentile_bound(generator.lognormal(size=200), 0.9) for _ in range(1000)]
    held = np.mean([bound is not None and bound >= truth for bound in bounds])
    assert 0.935 <= held <= 0.985


def test_too_few_samples_give_no_bound() -> None:
    assert percentile_bound(np.arange(20.0), 0.9) is None
    assert percentile_bound(np.arange(100.0), 0.99) is None


# --- means


@given(st.integers(1, 500), st.data())
def test_wilson_s_interval_is_scipy_s(n: int, data: st.DataObject) -> None:
    stats = pytest.importorskip("scipy.stats")
    hits = data.draw(st.integers(0, n))
    found = mean_interval([1.0] * hits + [0.0] * (n - hits))
    wanted = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert found.value == hits / n
    assert found.low == pytest.approx(wanted.low, abs=1e-4)
    assert found.high == pytest.approx(wanted.high, abs=1e-4)


@given(st.lists(finite, min_size=2, max_size=50))
def test_the_interval_of_a_mean_is_the_normal_one(scores: list[float]) -> None:
    found = mean_interval(scores)
    assert found.low <= found.value <= found.high
    if not set(scores) <= {0.0, 1.0}:
        half = 1.96 * np.std(scores, ddof=1) / math.sqrt(len(scores))
        assert found.high - found.value == pytest.approx(half, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("score", [0.0, 1.0, 0.3, -5.0, 1e6])
def test_one_sample_says_little_but_in_numbers(score: float) -> None:
    """Infinity would be lost in JSON."""
    for found in (mean_interval([score]), paired_difference(np.array([score]), np.array([0.0]))):
        assert math.isfinite(found.low)
        assert math.isfinite(found.high)
        assert found.high - found.low > 0.7
        assert convert(parse(canonical(found), ".json", "j"), Interval, "j") == found


def test_no_scores_no_interval() -> None:
    for act in (lambda: mean_interval([]), lambda: paired_difference(np.array([]), np.array([]))):
        with pytest.raises(MeasurementError, match="there are no"):
            act()
    with pytest.raises(MeasurementError, match="no samples"):
        bootstrap(np.empty((0, 2)), np.mean)


def test_paired_differences() -> None:
    first = np.array([1.0, 1, 0, 1, 0, 1, 1, 1])
    second = np.array([1.0, 0, 0, 1, 1, 1, 0, 1])
    found = paired_difference(first, second)
    half = 1.96 * np.std(first - second, ddof=1) / math.sqrt(8)
    assert found.value == pytest.approx(1 / 8)
    assert found.high - found.value == pytest.approx(half)
    back = paired_difference(second, first)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


@pytest.mark.parametrize("n", [1, 5, 100])
def test_equal_answers_on_few_samples_are_not_certainty(n: int) -> None:
    found = paired_difference(np.ones(n), np.ones(n))
    assert (found.low, found.value, found.high) == (-1 / n, 0, 1 / n)


def test_a_paired_interval_covers_the_true_drop() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(500):
        base = generator.random(300) < 0.9
        worse = np.where(generator.random(300) < 0.05, generator.random(300) < 0.5, base)
        found = paired_difference(base.astype(float), worse.astype(float))
        held += found.low <= 0.05 * (0.9 - 0.5) <= found.high
    assert 0.91 <= held / 500 <= 1.0


# --- ratios


def test_the_bootstrap_covers_the_true_ratio_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        noise = generator.lognormal(0, 0.1, (40, 2))
        found = ratio_of_medians(noise * [1.5, 1.0])
        held += found.low <= 1.5 <= found.high
    assert 0.87 <= held / 200 <= 0.995


def test_the_bootstrap_is_repeatable_and_keeps_pairs_together() -> None:
    rounds = np.random.default_rng(3).lognormal(0, 1.0, 60)
    pairs = np.column_stack([rounds * 2, rounds])
    found = ratio_of_medians(pairs)
    assert found == ratio_of_medians(pairs)
    assert found.value == pytest.approx(2)
    assert 1.95 <= found.low <= 2 <= found.high <= 2.05, "what both have is no noise"


def interval(low: float, high: float) -> Interval:
    return Interval(value=(low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (interval(1.01, 1.5), "better"),
        (interval(0.5, 0.99), "worse"),
        (interval(0.99, 1.01), "same"),
        (interval(0.98, 1.02), "same"),
        (interval(0.9, 1.01), "cannot tell"),
        (interval(0.99, 1.2), "cannot tell"),
        (interval(float("nan"), float("nan")), "cannot tell"),
    ],
)
def test_verdicts(ratio: Interval, verdict: str) -> None:
    assert compare(ratio) == verdict


# --- budgets


@given(st.sampled_from(BUDGET_NAMES), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_limit_is_kept_or_a_violation(name: str, limit: float, value: float) -> None:
    figure = name.removesuffix("_min")
    found = violations(Figures(**{figure: value}), Budget(**{name: limit}))
    least = name.endswith("_min")
    assert bool(found) is not within(value, limit, least)
    if abs(value - limit) > 1e-5 * max(1, limit):
        assert bool(found) is (value < limit if least else value > limit)
    assert all(name in sentence and figure in sentence for sentence in found)


def test_a_limited_figure_that_nobody_measured_is_a_violation() -> None:
    assert violations(Figures(), Budget(energy_mj=5)) == (
        "energy_mj could not be measured here, the budget is energy_mj<=5",
    )
    assert violations(Figures(), Budget()) == ()
    every = violations(Figures(), Budget(**dict.fromkeys(BUDGET_NAMES, 1.0)))
    assert [sentence.split(" ")[0] for sentence in every] == list(BUDGET_NAMES)


def test_nan_keeps_no_limit() -> None:
    for least in (True, False):
        assert not within(float("nan"), 1.0, least)


def test_rounding_is_forgiven_and_no_more() -> None:
    assert within(0.1 + 0.2, 0.3, least=False)
    assert within(0.3 - 1e-12, 0.3, least=True)
    assert not within(0.3001, 0.3, least=False)


# --- records


def test_a_measurement_survives_json() -> None:
    found = convert(parse(canonical(MEASURED), ".json", "j"), Measurement, "j")
    assert found == MEASURED
    assert json.loads(canonical(MEASURED))["energy_mj"] is None, "not measured is never zero"


def test_figures_are_filled_in() -> None:
    more = MEASURED.merged(accuracy=interval(0.9, 1.0), energy_mj=2.0)
    assert more.energy_mj == 2.0
    assert more.p50_ms == MEASURED.p50_ms
    assert MEASURED.energy_mj is None


def test_a_machine_has_a_name_whatever_is_known() -> None:
    assert machine_name("Cortex-A72", 4).startswith("Cortex-A72, 4 cores, Linux")
    assert "? cores" in machine_name("", None)
    assert str(interval(1, 2)) == "1.5 (1..2)"


# --- samples that belong together


def views(groups: int, each: int, seed: int, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """0/1 scores of views: a view is right with its group's own probability, which varies by ``shared``."""
    generator = np.random.default_rng(seed)
    chance = np.clip(0.8 + shared * generator.standard_normal(groups), 0, 1)
    return (generator.random((groups, each)) < chance[:, None]).astype(float).ravel(), np.repeat(
        np.arange(groups), each
    )


def test_an_interval_over_groups_is_wider_than_one_that_takes_views_for_independent() -> None:
    scores, groups = views(20, 50, 0, 0.2)
    naive, clustered = mean_interval(scores), mean_interval(scores, groups)
    assert clustered.value == naive.value
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)
    assert 0 <= clustered.low < clustered.value < clustered.high <= 1


@given(st.integers(2, 12), st.integers(1, 20), st.integers(0, 1000), st.booleans())
def test_groups_never_make_an_interval_narrower(count: int, each: int, seed: int, counted: bool) -> None:
    scores, groups = views(count, each, seed, 0.3)
    if not counted:
        scores = scores + np.random.default_rng(seed).random(len(scores))
    naive, clustered = mean_interval(scores), mean_interval(scores, groups)
    assert clustered.low <= naive.low + 1e-9
    assert clustered.high >= naive.high - 1e-9
    other = np.roll(scores, 1)
    plain, wide = paired_difference(scores, other), paired_difference(scores, other, groups)
    assert wide.high - wide.low >= plain.high - plain.low - 1e-9


@pytest.mark.parametrize("shared", [0.0, 0.15])
def test_an_interval_over_groups_holds_the_truth_as_often_as_it_says(shared: float) -> None:
    generator = np.random.default_rng(1)
    truth = np.clip(0.8 + shared * generator.standard_normal(200_000), 0, 1).mean()
    held = naive = 0
    for seed in range(300):
        scores, groups = views(15, 30, seed, shared)
        found, plain = mean_interval(scores, groups), mean_interval(scores)
        held += found.low <= truth <= found.high
        naive += plain.low <= truth <= plain.high
    assert held >= 0.92 * 300
    if shared:
        assert naive < 0.75 * 300, "that is why groups are needed"


def test_paired_differences_over_groups_hold_the_truth() -> None:
    held = 0
    for seed in range(300):
        generator = np.random.default_rng(seed)
        base = np.repeat(generator.standard_normal(12), 25)
        gap = np.repeat(0.1 + 0.2 * generator.standard_normal(12), 25)
        found = paired_difference(
            base + gap + 0.1 * generator.standard_normal(300), base, np.repeat(range(12), 25)
        )
        held += found.low <= 0.1 <= found.high
    assert held >= 0.92 * 300


def test_one_group_says_nothing_of_another() -> None:
    assert mean_interval([1.0, 1.0, 1.0], np.zeros(3, int)) == Interval(value=1.0, low=0.0, high=1.0)
    lone = mean_interval([2.0, 4.0], np.zeros(2, int))
    assert (lone.low, lone.high) == (0.0, 6.0)
    gap = paired_difference(np.array([3.0, 3.0]), np.array([1.0, 1.0]), np.zeros(2, int))
    assert (gap.low, gap.value, gap.high) == (0.0, 2.0, 4.0)


def test_equal_answers_on_groups_are_no_certainty() -> None:
    right = np.ones(40)
    assert mean_interval(right, np.repeat(range(4), 10)).low < mean_interval(right).low
    gap = paired_difference(right, right, np.repeat(range(4), 10))
    assert (gap.low, gap.high) == (-1 / 40, 1 / 40)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 19, 199])
def test_student_s_t_is_scipy_s(freedom: int) -> None:
    oracle = pytest.importorskip("scipy.stats").t.ppf(0.975, freedom)
    assert student(freedom) == pytest.approx(oracle, rel=2e-3)
