"""Thresholds: whatever the scores are, the accuracy stays within the drop, here and on other samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from farthing.bundle import Exits
from farthing.errors import UnsupportedError
from farthing.forge.exits.thresholds import Held, answered, bound, chosen, leaving
from farthing.measure import Interval
from farthing.metrics import MACRO_F1, TOP1

Array = NDArray[Any]


def held(seed: int, exits: int, samples: int = 60, classes: int = 4) -> Held:
    """Exits of rising quality."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, samples)
    truth = np.eye(classes)[labels]
    scores = [random.normal(size=(samples, classes)) + (2 + n) * truth for n in range(exits)]
    return Held(scores, labels, None)


def accuracy(scores: Array, labels: Array) -> float:
    return float((scores.argmax(1) == labels).mean())


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    exits=st.integers(2, 3),
    drop=st.sampled_from([0.0, 0.02, 0.2]),
    measure=st.sampled_from(["confidence", "entropy"]),
)
def test_the_drop_is_kept_and_a_larger_one_lets_no_fewer_leave(
    seed: int, exits: int, drop: float, measure: Any
) -> None:
    data = held(seed, exits)
    try:
        found = chosen(data, Exits(measure=measure), TOP1, drop, 0.5)
    except UnsupportedError:
        assert drop < 0.2, "any exit of these keeps so much"
        return
    by = leaving(data.scores, found)
    assert (
        accuracy(answered(data.scores, by), data.labels)
        >= accuracy(data.scores[-1], data.labels) - drop - 1e-9
    )
    assert (by < exits - 1).any()
    generous = leaving(data.scores, chosen(data, Exits(measure=measure), TOP1, drop + 0.1, 0.5))
    assert (generous <= by).all()


@pytest.mark.parametrize("exits", [2, 3])
def test_the_drop_is_kept_on_other_samples_as_often_as_is_said(exits: int) -> None:
    broken = {0.5: 0, 0.9: 0}
    for seed in range(30):
        data, others = held(seed, exits, samples=400), held(1000 + seed, exits, samples=4000)
        for certainty in broken:
            by = leaving(others.scores, chosen(data, Exits(), TOP1, 0.02, certainty))
            lost = accuracy(others.scores[-1], others.labels) - accuracy(
                answered(others.scores, by), others.labels
            )
            broken[certainty] += lost > 0.02
    assert broken[0.5] > 8, "at its word, a sample is too hopeful about as often as not"
    assert broken[0.9] < 9


def test_a_bound_is_the_drop_itself_at_even_odds_and_the_end_of_its_interval_at_975() -> None:
    lost = Interval(value=0.01, low=-0.01, high=0.03)
    assert bound(lost, 0.5) == pytest.approx(0.01)
    assert bound(lost, 0.975) == pytest.approx(0.03)
    assert 0.02 < bound(lost, 0.9) < 0.03


def test_the_lowest_threshold_is_found_before_the_drop_is_first_exceeded() -> None:
    data = held(3, 2)
    (threshold,) = chosen(data, Exits(), TOP1, 0.01, 0.5).thresholds
    least = accuracy(data.scores[-1], data.labels) - 0.01

    def kept(level: float) -> bool:
        by = leaving(data.scores, Exits(thresholds=(level,)))
        return accuracy(answered(data.scores, by), data.labels) >= least - 1e-9

    assert all(kept(level) for level in np.linspace(threshold, 1, 300))
    assert not all(kept(level) for level in np.linspace(0, threshold, 300)[-60:])


def test_another_metric_counts_as_it_does() -> None:
    data = held(5, 2)
    found = chosen(data, Exits(), MACRO_F1, 0.02, 0.5)
    scores = answered(data.scores, leaving(data.scores, found))
    values = [MACRO_F1.score({"scores": s}, data.labels, None).value for s in (data.scores[-1], scores)]
    assert values[1] >= values[0] - 0.02 - 1e-9


def test_a_metric_over_all_samples_is_bounded_too() -> None:
    data = held(5, 2, samples=200)
    trusting, careful = (
        leaving(data.scores, chosen(data, Exits(), MACRO_F1, 0.05, certainty)) for certainty in (0.5, 0.95)
    )
    assert 0 < (careful == 0).sum() < (trusting == 0).sum()


def test_samples_that_belong_together_tell_less() -> None:
    data = held(5, 2, samples=200)
    together = data._replace(groups=np.arange(200) // 40)
    alone, grouped = (leaving(one.scores, chosen(one, Exits(), TOP1, 0.1, 0.95)) for one in (data, together))
    assert (grouped == 0).sum() <= (alone == 0).sum()


def test_too_few_samples_are_said_to_be_too_few() -> None:
    with pytest.raises(UnsupportedError, match=r"60 validation samples are too few .* lower the certainty"):
        chosen(held(3, 2), Exits(), TOP1, 0.005, 0.95)


def test_nothing_leaves_that_is_not_a_number() -> None:
    data = held(1, 2)
    data.scores[0][:] = np.nan
    assert (leaving(data.scores, Exits(thresholds=(0.0,))) == 1).all()
    with pytest.raises(UnsupportedError, match="no thresholds keep"):
        chosen(data, Exits(), TOP1, 0.5, 0.5)


def test_exits_that_are_surely_wrong_are_refused() -> None:
    truth = np.arange(40) % 4
    wrong, right = 1e6 * np.eye(4)[(truth + 1) % 4], np.eye(4)[truth]
    with pytest.raises(
        UnsupportedError, match=r"no thresholds keep the accuracy within 0\.01.*train them longer"
    ):
        chosen(Held([wrong, right], truth, None), Exits(), TOP1, 0.01, 0.5)
