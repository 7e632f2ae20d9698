"""Thresholds: whatever the scores are, the accuracy stays within the drop, and nothing cheaper on the grid would do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from farthing.bundle import Exits
from farthing.errors import UnsupportedError
from farthing.forge.exits.thresholds import Held, answered, chosen, leaving
from farthing.metrics import MACRO_F1, TOP1

Array = NDArray[Any]


def held(seed: int, exits: int, samples: int = 60, classes: int = 4) -> Held:
    """Exits of rising quality."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, samples)
    truth = np.eye(classes)[labels]
    scores = [random.normal(size=(samples, classes)) + (2 + n) * truth for n in range(exits)]
    return Held(scores, labels, None, np.cumsum(random.integers(1, 100, exits)).tolist())


def accuracy(scores: Array, labels: Array) -> float:
    return float((scores.argmax(1) == labels).mean())


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    exits=st.integers(2, 3),
    drop=st.sampled_from([0.0, 0.02, 0.2]),
    measure=st.sampled_from(["confidence", "entropy"]),
)
def test_the_drop_is_kept_at_no_more_than_the_full_cost(
    seed: int, exits: int, drop: float, measure: Any
) -> None:
    data = held(seed, exits)
    found = chosen(data, Exits(measure=measure), TOP1, drop)
    by = leaving(data.scores, found)
    assert (
        accuracy(answered(data.scores, by), data.labels)
        >= accuracy(data.scores[-1], data.labels) - drop - 1e-9
    )
    costs = np.asarray(data.costs)
    assert costs[by].mean() <= costs[-1]
    generous = leaving(data.scores, chosen(data, Exits(measure=measure), TOP1, drop + 0.1))
    assert costs[generous].mean() <= costs[by].mean()


def test_of_two_exits_the_cheapest_threshold_is_found() -> None:
    data = held(3, 2)
    found = chosen(data, Exits(), TOP1, 0.01)
    best = leaving(data.scores, found)
    least = accuracy(data.scores[-1], data.labels) - 0.01
    for threshold in np.linspace(0, 1, 500):
        by = leaving(data.scores, Exits(thresholds=(float(threshold),)))
        if accuracy(answered(data.scores, by), data.labels) >= least:
            assert (by == 0).sum() <= (best == 0).sum()


def test_another_metric_counts_as_it_does() -> None:
    data = held(5, 2)
    found = chosen(data, Exits(), MACRO_F1, 0.02)
    scores = answered(data.scores, leaving(data.scores, found))
    values = [MACRO_F1.score({"scores": s}, data.labels, None).value for s in (data.scores[-1], scores)]
    assert values[1] >= values[0] - 0.02 - 1e-9


def test_nothing_leaves_that_is_not_a_number() -> None:
    data = held(1, 2)
    data.scores[0][:] = np.nan
    assert (leaving(data.scores, Exits(thresholds=(0.0,))) == 1).all()
    assert chosen(data, Exits(), TOP1, 0.0).thresholds


def test_exits_that_are_surely_wrong_are_refused() -> None:
    truth = np.arange(40) % 4
    wrong, right = 1e6 * np.eye(4)[(truth + 1) % 4], np.eye(4)[truth]
    with pytest.raises(
        UnsupportedError, match=r"no thresholds keep the accuracy within 0\.01.*train them longer"
    ):
        chosen(Held([wrong, right], truth, None, [1, 2]), Exits(), TOP1, 0.01)
