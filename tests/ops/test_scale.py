"""Integers that stand for real numbers, at inputs and outputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.model import Preprocess, TensorSpec
from farthing.ops.image import prepare_batch
from farthing.ops.scale import real, stored


def spec(dtype: str = "int8", scale: float | None = 0.05, zero_point: int = 3) -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, shape=("n", 2), scale=scale, zero_point=zero_point)


@given(st.lists(st.floats(-5, 5, width=32), min_size=1))
def test_what_fits_comes_back_within_half_a_step(values: list[float]) -> None:
    given = np.asarray(values, np.float32)
    kept = stored(given, spec())
    assert kept.dtype == np.int8
    assert np.abs(real(kept, spec()) - given).max() <= 0.5 * 0.05 + 1e-6


def test_what_does_not_fit_is_clipped() -> None:
    assert stored(np.float32([-100, 100]), spec()).tolist() == [-128, 127]
    assert stored(np.float32([-100, 100]), spec("uint8", 0.05, 128)).tolist() == [0, 255]


def test_without_a_scale_numbers_are_themselves() -> None:
    plain = spec("int64", None, 0)
    assert stored(np.asarray([1, -2]), plain).tolist() == [1, -2]
    assert real(np.asarray([1, -2]), plain).dtype == np.int64


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_is_a_positive_number(scale: float) -> None:
    with pytest.raises(ValueError, match="scale is above 0"):
        spec(scale=scale)


def test_a_scale_belongs_to_integers() -> None:
    with pytest.raises(ValueError, match="belongs to integers"):
        spec("float32")


@pytest.mark.parametrize(("dtype", "zero"), [("int8", -14), ("uint8", 114)])
def test_pictures_are_stored_at_the_scale_of_the_input(dtype: str, zero: int) -> None:
    preprocess = Preprocess(
        colour="RGB", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    shape = ("n", 4, 5, 3)
    whole = TensorSpec(name="x", dtype="float32", shape=shape, batch_axis=0, layout="NHWC")
    small = TensorSpec(
        name="x", dtype=dtype, shape=shape, batch_axis=0, layout="NHWC", scale=0.0187, zero_point=zero
    )
    pictures = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
    want = stored(prepare_batch(pictures, preprocess, whole), small).astype(int)
    got = prepare_batch(pictures, preprocess, small).astype(int)
    assert np.abs(got - want).max() <= 1, "only a tie may fall to the other side"
    assert (got == want).mean() > 0.99
