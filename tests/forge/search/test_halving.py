"""Who goes on at a rung, and who is on the front."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from farthing.forge.search.halving import Standing, front, goes_on, rungs

numbers = st.integers(0, 5).map(float)
standings = st.lists(st.builds(Standing, numbers, st.tuples(numbers, numbers)), min_size=1, max_size=12)


@given(st.integers(1, 400), st.integers(2, 5))
def test_rungs_grow_by_the_factor_and_end_with_the_training(epochs: int, factor: int) -> None:
    found = rungs(epochs, factor)
    assert found[-1] == epochs
    assert all(later // factor == earlier for earlier, later in itertools.pairwise(found))
    assert found[0] // factor < 2


@given(standings)
def test_whoever_no_other_beats_goes_on(field: list[Standing]) -> None:
    for place in front(field):
        assert goes_on(field[place], field[:place] + field[place + 1 :])


@given(standings)
def test_the_front_is_what_it_is_called(field: list[Standing]) -> None:
    best = [field[place] for place in front(field)]
    assert best
    for one in field:
        beaten = any(
            other != one and other.score >= one.score and other.costs[0] <= one.costs[0]
            and other.costs[1] <= one.costs[1] for other in field
        )  # fmt: skip
        assert (one in best) is not beaten


def test_of_those_of_one_price_a_third_goes_on_and_dearer_ones_do_not_count() -> None:
    field = [Standing(score / 10, (1.0,)) for score in range(9)]
    assert [goes_on(one, [o for o in field if o != one]) for one in field] == [False] * 6 + [True] * 3
    dear = [Standing(0.9, (2.0,))] * 20
    assert goes_on(Standing(0.0, (1.0,)), dear)
    assert not goes_on(Standing(0.0, (1.0,)), [Standing(0.9, (1.0,))])
