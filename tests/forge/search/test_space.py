"""The space of networks, and what it must contain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from farthing.config import canonical, convert, plain
from farthing.errors import ConfigError
from farthing.forge.families import FAMILIES, Stage
from farthing.forge.search.estimate import Estimate, Estimator, Limits
from farthing.forge.search.space import OptionT, Space, rounded
from farthing.forge.search.start import promising


def chosen(choices: dict[str, Any]) -> Any:
    def choose(name: str, options: Sequence[OptionT]) -> OptionT:
        assert choices[name] in options, name
        picked: OptionT = choices[name]
        return picked

    return choose


def test_three_strided_convolutions_are_in_it() -> None:
    """What was found by hand to read digits in 4 microseconds: 16, 24, 32 channels, each half the size of the last."""
    traits: dict[str, Any] = {"family": "plain", "width": 16, "stages": 3, "pooling": "average"}
    traits |= {f"growth {n}": growth for n, growth in ((2, 1.5), (3, 1.5))}
    traits |= {
        f"{name} {n}": value
        for n in (1, 2, 3)
        for name, value in (("depth", 1), ("kernel", 3), ("stride", 2))
    }
    made = Space.of((1, 28, 28)).draw(chosen(traits))
    assert made.stages == tuple(Stage(width=width, stride=2) for width in (16, 24, 40))
    assert made.cost((1, 28, 28), 10).parameters < 13_000


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 96, 96), (6, 100), (1, 8, 8), (1, 16)])
def test_every_network_of_it_can_be_built_for_every_sample(shape: tuple[int, ...]) -> None:
    space = Space.of(shape)
    drawn = [space.random(seed) for seed in range(60)]
    assert {one.family for one in drawn} == set(FAMILIES)
    assert len({canonical(one) for one in drawn}) > 55
    for one in drawn:
        widths = [stage.width for stage in (one.stem, *one.stages) if stage]
        assert all(width % (4 if width < 16 else 8) == 0 for width in widths)
        assert widths == sorted(widths)
        assert one.cost(shape, 5).parameters > 0


def test_families_may_be_chosen_and_nothing_may_be_empty() -> None:
    assert {Space.of((1, 28, 28), ["resnet"]).random(seed).family for seed in range(9)} == {"resnet"}
    with pytest.raises(ConfigError, match="widths of a search space is empty"):
        Space(widths=())
    assert convert(plain(Space()), Space, "a test") == Space()


def test_widths_are_multiples_of_eight_and_of_four_when_small() -> None:
    assert [rounded(width) for width in (1, 4, 6, 13, 15, 16, 20, 27, 36)] == [
        4,
        4,
        8,
        12,
        16,
        16,
        24,
        24,
        40,
    ]


def test_a_search_begins_with_the_most_promising_of_every_price() -> None:
    space, estimator = Space.of((1, 16, 16)), Estimator((1, 16, 16), 10)
    limits = Limits(macs=2e5)
    begin = promising(
        space,
        lambda one: not limits.excess(estimator.counted(one)),
        estimator,
        lambda one: float(one.cost((1, 16, 16), 10).parameters),
        pool=20,
        count=4,
        seed=0,
    )
    costs = [estimator.counted(space.draw(chosen(choice))).macs for choice in begin]
    assert len(begin) == 4
    assert costs == sorted(costs)
    assert costs[-1] <= 2e5


def test_limits_say_by_how_much_they_are_broken() -> None:
    cost = Estimate(macs=3000, parameters=100, activation_kb=1.0, size_kb=2.0)
    assert Limits().excess(cost) == 0
    assert Limits(macs=3000, size_kb=2, latency_ms=0.001).excess(cost) == 0  # no time is known
    assert Limits(macs=1500, size_kb=1).excess(cost) == pytest.approx(2.0)
    assert cost.costs == (3000.0, 2.0)
    with pytest.raises(ConfigError, match="macs must be a number above 0"):
        Limits(macs=0)
