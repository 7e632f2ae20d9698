"""Ranges of least squared error, and biases that take back what rounding adds to a mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from farthing.forge import graph
from farthing.forge.fuse import Fuse
from farthing.forge.quantize.bias import correct_biases
from farthing.forge.quantize.mse import LEVELS, least_error
from farthing.forge.quantize.static import StaticInt8
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

Array = NDArray[Any]
VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))


def histogram(values: Array, bins: int = 2048) -> tuple[Array, Array, float, float]:
    most = np.abs(values).max()
    counts, edges = np.histogram(values, bins, range=(-most, most))
    return counts, edges, float(values.min()), float(values.max())


def rounded(values: Array, low: float, high: float) -> Array:
    step = (high - low) / LEVELS
    zero = np.round(-low / step)
    return np.asarray((np.clip(np.round(values / step) + zero, 0, LEVELS) - zero) * step)


def error(values: Array, ends: tuple[float, float]) -> float:
    return float(np.mean((values - rounded(values, *ends)) ** 2))


@pytest.mark.parametrize("name", ["laplace", "relu", "outlier", "uniform"])
def test_the_error_is_no_larger_than_that_of_the_whole_range_or_of_a_search(name: str) -> None:
    draw = np.random.default_rng(0)
    values = {
        "laplace": draw.laplace(size=50_000),
        "relu": np.maximum(draw.normal(size=50_000), 0),
        "outlier": np.append(draw.normal(size=50_000), [60.0]),
        "uniform": draw.uniform(-1, 3, size=50_000),
    }[name]
    found = error(values, least_error(*histogram(values)))
    whole = (min(values.min(), 0.0), max(values.max(), 0.0))
    assert found <= error(values, whole) * 1.01
    searched = min(
        error(values, (whole[0] * a, whole[1] * b))
        for a in np.linspace(0.1, 1, 19)
        for b in np.linspace(0.1, 1, 19)
    )
    assert found <= searched * 1.05


@settings(max_examples=40)
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_zero_is_inside_and_the_range_within_that_of_the_values(values: list[float], scale: float) -> None:
    array = np.asarray(values) * scale
    low, high = least_error(*histogram(array)) if array.any() else (0.0, 0.0)
    assert low <= 0 <= high
    assert min(array.min(), 0) <= low
    assert high <= max(array.max(), 0)


def test_an_empty_range_stays_empty() -> None:
    assert least_error(np.zeros(4), np.linspace(-1, 1, 5), 0.0, 0.0) == (0.0, 0.0)


@pytest.fixture(scope="module")
def fused(cnn: Model, digits_task: Task) -> Model:
    return Fuse()(cnn, VNNI, digits_task)


def test_mse_is_a_calibrator_like_the_others(fused: Model, digits: Any, digits_task: Task) -> None:
    quantized = StaticInt8(calibrator="mse")(fused, VNNI, digits_task)
    assert quantized.manifest.quantization is not None
    assert quantized.manifest.quantization.calibrator == "mse"
    assert StaticInt8(calibrator="mse")(fused, VNNI, digits_task).digest == quantized.digest
    x = digits[0][1400:]
    same = answers(quantized, x).argmax(1) == answers(fused, x).argmax(1)
    assert same.mean() > 0.98


def answers(model: Model, x: Array, extra: tuple[str, ...] = ()) -> Array:
    found = graph.run(model.file.read_bytes(), {"image": x}, extra)
    return found["logits"]


def shift(quantized: Model, fused: Model, x: Array) -> float:
    """How far the mean of the outputs moved, as a share of their spread; the worst class."""
    base = answers(fused, x)
    return float(np.abs((answers(quantized, x) - base).mean(0) / base.std(0)).max())


def test_outputs_keep_their_mean(fused: Model, digits: Any, digits_task: Task) -> None:
    """Weights of 7 bits and one scale a tensor: coarse enough to see."""
    coarse = StaticInt8(per_channel=False, reduce_range=True)(fused, VNNI, digits_task)
    mended = StaticInt8(per_channel=False, reduce_range=True, correct_biases=True)(fused, VNNI, digits_task)
    x = digits[0][:1000]
    assert shift(mended, fused, x) < shift(coarse, fused, x)
    again = StaticInt8(per_channel=False, reduce_range=True, correct_biases=True)(fused, VNNI, digits_task)
    assert again.digest == mended.digest
    assert mended.size_bytes == pytest.approx(coarse.size_bytes, abs=64)


def test_a_rounded_layer_without_error_in_the_mean_is_left_as_it_is(
    fused: Model, digits: Any, digits_task: Task
) -> None:
    """A second correction finds nothing left to take off."""
    made = StaticInt8()(fused, VNNI, digits_task)
    source, quantized = graph.load(fused.file), graph.load(made.file)
    graph.name_nodes(source)
    batches = [{"image": digits[0][:64]}]
    assert correct_biases(source, quantized, batches) == 4
    once = biases(quantized)
    correct_biases(source, quantized, batches)
    moved = [np.abs(a - b).max() for a, b in zip(once, biases(quantized), strict=True)]
    assert max(moved) <= 1, "whole numbers round once more at most"


def biases(proto: Any) -> list[Array]:
    arrays = [numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    return [array for array in arrays if array.dtype == np.int32 and array.size > 1]


def test_layers_left_in_float_or_without_a_bias_are_passed_over(
    fused: Model, digits: Any, digits_task: Task
) -> None:
    source = graph.load(fused.file)
    graph.name_nodes(source)
    first = source.graph.node[0].name
    mixed = StaticInt8(exclude=(first,))(fused, VNNI, digits_task)
    assert correct_biases(source, graph.load(mixed.file), [{"image": digits[0][:8]}]) == 3
    assert correct_biases(source, source, [{"image": digits[0][:8]}]) == 0
