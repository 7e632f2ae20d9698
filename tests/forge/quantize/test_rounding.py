"""Rounding that compensates: nearer in the outputs, and to the nearest where inputs are unrelated."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from farthing.forge.quantize.blocks import Blocks, int4, pairs
from farthing.forge.quantize.rounding import Grid, Moments, least_scale, nearest_plane, shifted

Array = NDArray[Any]


def correlated(generator: np.random.Generator, groups: int, count: int, inputs: int) -> Array:
    """Inputs that share a few causes, as neighbouring pixels do."""
    causes = generator.normal(size=(groups, count, 3))
    return causes @ generator.normal(size=(groups, 3, inputs)) + 0.1 * generator.normal(
        size=(groups, count, inputs)
    )


def lost(weights: Array, whole: Array, grid: Grid, columns: Array) -> float:
    """Squared error of the outputs."""
    return float(np.sum(((grid.real(whole) - weights) @ columns.swapaxes(1, 2)) ** 2))


def grid_of(weights: Array, bits: int) -> Grid:
    high = 2 ** (bits - 1) - 1
    scale = np.abs(weights).max(2, keepdims=True) / high
    return Grid(scale, np.zeros((1, 1, 1)), -high - 1, high)


def test_the_outputs_are_much_nearer_where_inputs_are_related() -> None:
    generator = np.random.default_rng(0)
    for groups, rows, inputs in ((1, 20, 300), (5, 2, 9)):
        weights, columns = (
            generator.normal(size=(groups, rows, inputs)),
            correlated(generator, groups, 500, inputs),
        )
        grid, gram = grid_of(weights, 4), columns.swapaxes(1, 2) @ columns
        found = nearest_plane(weights, gram, grid)
        assert found.min() >= grid.low
        assert found.max() <= grid.high
        assert (found == np.round(found)).all()
        assert lost(weights, found, grid, columns) < 0.3 * lost(weights, grid.nearest(weights), grid, columns)
        np.testing.assert_array_equal(nearest_plane(weights, gram, grid), found)


@given(seed=st.integers(0, 1000), groups=st.integers(1, 3), inputs=st.integers(1, 20))
def test_unrelated_inputs_of_any_size_leave_nothing_to_make_up_for(
    seed: int, groups: int, inputs: int
) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(groups, 4, inputs))
    gram = np.stack([np.diag(generator.uniform(0.1, 10, inputs)) for _ in range(groups)])
    grid = grid_of(weights, 4)
    np.testing.assert_array_equal(nearest_plane(weights, gram, grid), grid.nearest(weights))


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    weights, gram = np.random.default_rng(0).normal(size=(2, 3, 5)), np.zeros((2, 5, 5))
    gram[:, 1, 1] = 4.0
    grid = grid_of(weights, 8)
    np.testing.assert_array_equal(nearest_plane(weights, gram, grid), grid.nearest(weights))


def test_a_gram_matrix_of_differences_is_taken_too() -> None:
    """Sums of products in float32, less the product of large means: some of it is below zero."""
    gram = np.random.default_rng(0).normal(size=(1, 6, 6)) * 1e-6
    gram = gram + gram.swapaxes(1, 2)
    weights = np.random.default_rng(1).normal(size=(1, 3, 6))
    grid = grid_of(weights, 8)
    assert np.isfinite(nearest_plane(weights, gram, grid)).all()


def moments(coarse: Array, exact: Array) -> Moments:
    made = Moments(len(coarse), coarse.shape[2])
    for start in range(0, coarse.shape[1], 64):
        part = slice(start, start + 64)
        made.add(coarse[:, part].astype(np.float32), exact[:, part].astype(np.float32))
    return made


def test_weights_move_to_where_the_float_outputs_are() -> None:
    """The quantized inputs lack a tenth of one cause: the weights can make up for that."""
    generator = np.random.default_rng(0)
    weights, exact = generator.normal(size=(1, 6, 12)), correlated(generator, 1, 800, 12)
    coarse = exact * np.linspace(0.8, 1.1, 12)
    halves = [moments(coarse[:, part], exact[:, part]) for part in (slice(0, 400), slice(400, 600))]
    moved = shifted(weights, halves, around_mean=False)
    test = slice(600, 800)
    wanted = weights @ exact[:, test].swapaxes(1, 2)
    before, after = (np.sum((own @ coarse[:, test].swapaxes(1, 2) - wanted) ** 2) for own in (weights, moved))
    assert after < 0.05 * before


def test_weights_stay_where_one_half_of_the_data_says_nothing_of_the_other() -> None:
    generator = np.random.default_rng(1)
    weights = generator.normal(size=(1, 6, 12))
    halves = []
    for sign in (1.0, -1.0):
        exact = correlated(generator, 1, 300, 12)
        halves.append(moments(exact * (1 + 0.3 * sign * np.linspace(-1, 1, 12)), exact))
    np.testing.assert_array_equal(shifted(weights, halves, around_mean=False), weights)


def test_means_are_left_to_the_bias_where_there_is_one() -> None:
    generator = np.random.default_rng(0)
    columns = correlated(generator, 1, 600, 8) + 5.0
    own, cross = moments(columns, columns).products(around_mean=True)
    np.testing.assert_allclose(own[0], np.cov(columns[0].T, bias=True), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(cross, 0, atol=1e-3)


def test_scales_cut_what_costs_less_than_it_takes() -> None:
    """One weight far out: with 4 bits a smaller scale is nearer for all the others."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(1, 3, 200))
    weights[:, :, 0] = 12.0
    gram = np.eye(200)[None]
    gram[0, 0, 0] = 1e-3  # and its input is hardly ever there
    scale = least_scale(weights, gram, -8, 7, whole_tensor=False)
    assert scale.shape == (1, 3, 1)
    assert (scale < 0.6 * 12 / 7.5).all()
    assert len(np.unique(least_scale(weights, gram, -8, 7, whole_tensor=True))) == 1


@given(
    seed=st.integers(0, 1000),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    inputs=st.integers(1, 70),
)
def test_blocks_hold_every_weight_within_half_a_step(
    seed: int, bits: int, symmetric: bool, inputs: int
) -> None:
    weights = np.random.default_rng(seed).normal(size=(3, inputs)) * 10.0 ** (seed % 7 - 3)
    made = Blocks(weights, bits, 16, symmetric)
    assert made.numbers.shape == (3, -(-inputs // 16), 16)
    whole = made.numbers.reshape(3, -1)[None, :, :inputs].astype(np.float64)
    gap = np.abs(made.grid.real(whole)[0] - weights)
    step = np.repeat(np.abs(made.scale), 16, 1)[:, :inputs]
    if bits == 8:
        assert (gap <= 1.01 * step).all(), "symmetric blocks reach one step less far on one side"
    assert np.sum(gap**2) <= np.sum(weights**2)


def test_numbers_of_4_bits_lie_two_in_a_byte_the_first_below() -> None:
    assert pairs(np.array([1, 2, 15, 0], np.uint8)).tolist() == [0x21, 0x0F]
    from onnx import numpy_helper

    numbers = np.arange(-8, 7).reshape(3, 5)
    assert numpy_helper.to_array(int4(numbers, "odd")).astype(int).tolist() == numbers.tolist()
