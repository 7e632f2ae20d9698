"""Finding the first operator that differs: steps with known parents against values that are there or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from farthing.errors import ConfigError
from farthing.forge.convert.difference import batch_axes, distance
from farthing.forge.convert.example import example_of, parse
from farthing.forge.convert.trace import Recorder, Step, first_difference, scopes

TOLERANCE = 1e-4


def value(seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=(2, 3)).astype(np.float32)


def named(steps: list[Step], missing: set[int], outputs: list[int] | None = None) -> str | None:
    """What is named when the values of the steps ``missing`` are not in the other graph."""
    found = {str(i): step.values[0] for i, step in enumerate(steps) if i not in missing}
    last = [steps[i].values[0] for i in (outputs or [len(steps) - 1])]
    step = first_difference(steps, last, found, TOLERANCE)
    return None if step is None else step.name


def chain(*parents: tuple[int, ...]) -> list[Step]:
    return [Step(f"op{i}", (value(i),), before) for i, before in enumerate(parents)]


def test_the_first_one_missing_is_named() -> None:
    steps = chain((), (0,), (1,), (2,))
    assert named(steps, {2, 3}) == "op2"
    assert named(steps, {0, 1, 2, 3}) == "op0"
    assert named(steps, set()) is None


def test_a_merged_step_is_not_to_blame() -> None:
    assert named(chain((), (0,), (1,), (2,)), {1, 3}) == "op3"


def test_a_right_branch_does_not_hide_a_wrong_one() -> None:
    #      0 -> 1 -> 4
    #       \-> 2 -> 3 ^      the first branch is wrong, the second, which runs later, is right
    steps = chain((), (0,), (0,), (2,), (1, 3))
    assert named(steps, {1, 4}) == "op1"


def test_what_no_output_depends_on_does_not_count() -> None:
    steps = chain((), (0,), (0,), (2,))
    assert named(steps, {1, 3}, outputs=[3]) == "op3"
    assert named(steps, {1}, outputs=[3]) is None


def test_constant_values_prove_nothing_about_their_makers() -> None:
    steps = [
        Step("conv", (value(0),), ()),
        Step("relu", (np.zeros((2, 3), np.float32),), (0,)),
        Step("add", (value(2),), (1,)),
    ]
    assert named(steps, {0, 2}) == "conv"
    assert named(steps, {2}) == "add"


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 3)
        self.right = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.left(x).view(-1)
        y[0] = 0
        out: torch.Tensor = y.reshape(2, 3) + self.right(x)
        return out


def test_operators_are_recorded_with_their_module_and_parents() -> None:
    module, x = Branches().eval(), torch.randn(2, 3)
    recorder = Recorder([x])
    with torch.no_grad(), scopes(module, recorder), recorder:
        out = module(x)
    names = [step.name for step in recorder.steps]
    assert "operator aten.addmm of module 'left' (Linear)" in names
    assert "operator aten.relu of module 'right.1' (ReLU)" in names
    np.testing.assert_array_equal(recorder.steps[-1].values[0], out.numpy())
    ancestors = {len(names) - 1}
    for number in range(len(names) - 1, -1, -1):
        if number in ancestors:
            ancestors |= set(recorder.steps[number].parents)
    assert ancestors == set(range(len(names)))  # the change in place is on the way to the output as well
    assert not any(" aten.t " in name for name in names)  # weights alone are no steps


@given(hnp.arrays(np.float32, (3, 2), elements=st.floats(-1e3, 1e3, width=32)), st.floats(0, 1e-3))
def test_distance_is_relative_to_the_largest_value(array: Any, noise: float) -> None:
    assert distance(array, array) == 0
    largest = float(np.abs(array).max())
    if largest > 1e-3:
        moved = array.astype(np.float64) + noise * largest
        assert distance(array.astype(np.float64), moved) == pytest.approx(noise, abs=1e-9)
        assert distance(array * 8, moved * 8) == pytest.approx(noise, abs=1e-6)


def test_distance_of_special_values() -> None:
    nan, one = np.array([np.nan, 1.0]), np.array([1.0, 1.0])
    assert distance(nan, nan) == 0
    assert distance(nan, one) == np.inf
    assert distance(np.zeros(2), np.zeros(2)) == 0
    assert distance(np.zeros(2), np.array([0, 1e-9])) == np.inf
    assert distance(np.array([np.inf]), np.array([-np.inf])) == np.inf
    assert distance(np.array(["a"]), np.array(["b"])) == np.inf


def test_batch_axes_of_outputs() -> None:
    singles = [[np.full((1, 2), float(i)), np.array(7.0)] for i in range(3)]
    together = [np.concatenate([single[0] for single in singles]), np.array(7.0)]
    assert batch_axes(singles, together, TOLERANCE) == [0, None]
    assert batch_axes(singles, [together[0] + 1, together[1]], TOLERANCE) is None
    assert batch_axes([[np.array(7.0)]] * 3, [np.array(7.0)], TOLERANCE) is None


def test_examples() -> None:
    assert [(a.shape, a.dtype.name) for a in parse("1x2, 3:int64")] == [((1, 2), "float32"), ((3,), "int64")]
    made = example_of("1x2,1:int64", None, np.float16)
    assert made is not None
    assert [a.dtype.name for a in made.arrays] == ["float16", "int64"]
    assert example_of(None, None, np.float32) is None
    with pytest.raises(ConfigError, match="NoneType"):
        example_of([None], None, np.float32)
