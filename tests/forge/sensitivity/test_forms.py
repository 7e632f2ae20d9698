"""Precisions on single operators: each changes what it says and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from farthing.forge import graph
from farthing.forge.cache import Cache
from farthing.forge.fuse import Fuse
from farthing.forge.quantize.float16 import Float16
from farthing.forge.sensitivity.alone import HIGHEST, LOWEST, sqnr
from farthing.forge.sensitivity.forms import Halved, RoundedWeights
from farthing.forge.sensitivity.losses import fewest, losses, ranked
from farthing.forge.sensitivity.precisions import PRECISIONS, Place, Weights, source_of, whole
from farthing.forge.sensitivity.rounding import rounded_activations, rounded_weights, steps, weights_of
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

Array = NDArray[Any]
VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))


@pytest.fixture
def place(digits_task: Task, tmp_path: Path) -> Place:
    return Place(VNNI, digits_task, Cache(tmp_path))


@pytest.fixture(scope="module")
def fused(cnn: Model, digits_task: Task) -> Model:
    return Fuse()(cnn, VNNI, digits_task)


def answers(model: Model, feeds: dict[str, Array]) -> Array:
    return graph.run(model.file.read_bytes(), feeds)["logits"]


def test_rounded_weights_one_by_one_and_all_together(fused: Model, digits_task: Task, place: Place) -> None:
    """Changing the operators one after another by hand gives what the whole precision gives."""
    feeds = {"image": digits_task.split("calibration").inputs[""][:16]}
    source = source_of(fused)
    form = RoundedWeights(source, 4)
    assert [source.nodes[name].op_type for name in form.operators()] == ["Conv", "Conv", "Conv", "Gemm"]
    for name in form.operators():
        proto = graph.load(fused.file)
        [spot] = weights_of(source.nodes[name], source.stored)
        tensor = next(t for t in proto.graph.initializer if t.name == spot.tensor)
        numbers = numpy_helper.to_array(tensor)
        rounded = rounded_weights(numbers, spot.axes, 4)
        assert len(np.unique(rounded[0] if spot.axes == (0,) else rounded[:, 0])) <= 15
        tensor.CopyFrom(numpy_helper.from_array(rounded, spot.tensor))
        alone = graph.run(source.whole(name, form), feeds)["logits"]
        np.testing.assert_allclose(alone, graph.run(proto, feeds)["logits"], rtol=1e-4, atol=1e-4)
    every = whole(fused, Weights(bits=4), place)
    assert np.abs(answers(every, feeds) - answers(fused, feeds)).max() > 0
    stored = {t.name: numpy_helper.to_array(t) for t in graph.load(every.file).graph.initializer}
    for name in form.operators():
        [spot] = weights_of(source.nodes[name], source.stored)
        np.testing.assert_array_equal(
            stored[spot.tensor], numpy_helper.to_array(form.stored[f"{spot.tensor}/alone"])
        )


def test_half_precision_rounds_what_goes_in_and_what_comes_out(fused: Model, digits_task: Task) -> None:
    source = source_of(fused)
    last = next(name for name, node in source.nodes.items() if node.op_type == "Gemm")
    form = Halved(source)
    assert last in form.operators()
    assert not {"MaxPool", "Flatten", "Relu"} & {source.nodes[name].op_type for name in form.operators()}
    feeds = {"image": digits_task.split("calibration").inputs[""][:16]}
    node = source.nodes[last]
    known = graph.run(source.proto, feeds, [node.input[0]])
    x, w, b = (
        array.astype(np.float16).astype(np.float64)
        for array in (
            known[node.input[0]],
            *(numpy_helper.to_array(source.stored[i]) for i in node.input[1:]),
        )
    )
    wanted = (x @ w.T + b).astype(np.float16)
    found = graph.run(source.whole(last, form), feeds)["logits"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.astype(np.float16), found)
    np.testing.assert_allclose(found, wanted, rtol=2**-10)


def test_what_overflows_in_float16_is_no_number_and_the_worst_of_all(
    make_model: Callable[..., Model], cnn_net: nn.Module, place: Place
) -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cnn_net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net((x * 1000.0).pow(2).sqrt() / 1000.0)

    model = Fuse()(make_model(Square()), VNNI, place.task)
    found = losses(model, Float16(), place)
    worst = ranked(found)[0]
    assert source_of(model).nodes[worst].op_type == "Pow"
    assert found[worst].own is None
    assert found[worst].outputs is None


@pytest.mark.parametrize("name", PRECISIONS)
def test_more_bits_lose_less(name: str, fused: Model, place: Place) -> None:
    found = losses(fused, PRECISIONS[name], place)
    own = [loss.own for loss in found.values()]
    low, high = {"int4 weights": (10, 40), "float16": (55, 90)}.get(name, (30, 65))
    assert all(value is not None and low < value < high for value in own), own


def test_recurrent_weights_and_tables_have_a_scale_a_row(
    make_model: Callable[..., Model], place: Place
) -> None:
    torch.manual_seed(0)

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.last = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.lstm(x[:, 0])[0][:, -1])

    model = Fuse()(make_model(Rows()), VNNI, place.task)
    source = source_of(model)
    spots = {
        source.nodes[name].op_type: weights_of(source.nodes[name], source.stored) for name in source.nodes
    }
    assert [spot.axes for spot in spots["LSTM"]] == [(0, 1), (0, 1)]
    found = losses(model, Weights(bits=8), place)
    assert [source.nodes[name].op_type for name in found] == ["LSTM", "Gemm"]
    assert all(loss.outputs and 30 < loss.outputs < 80 for loss in found.values())


# Arithmetic -------------------------------------------------------------------------------------------------------

matrices = hnp.arrays(np.float32, (3, 5), elements=st.floats(-1e4, 1e4, width=32))


@given(matrices, st.integers(2, 8))
def test_weights_are_rounded_to_the_nearest_of_their_values(weights: Array, bits: int) -> None:
    rounded = rounded_weights(weights, [0], bits)
    most = 2 ** (bits - 1) - 1
    for row, found in zip(weights, rounded, strict=True):
        step = np.abs(row).max() / most
        assert len(np.unique(found)) <= 2 * most + 1
        assert (np.abs(row - found) <= step / 2 * (1 + 1e-5)).all()
    np.testing.assert_array_equal(rounded_weights(weights, [0], 32), weights)


@given(
    hnp.arrays(np.float32, 20, elements=st.floats(-100, 100, width=32)),
    st.floats(-50, 0),
    st.floats(0, 50),
    st.integers(2, 8),
)
def test_activations_are_clipped_and_rounded_and_zero_stays_zero(
    values: Array, low: float, high: float, bits: int
) -> None:
    rounded = rounded_activations(values, low, high, bits)
    step, least, most = steps(low, high, bits)
    assert most - least in {0, 2**bits - 1}
    if step > 0:
        assert len(np.unique(rounded)) <= 2**bits
        inside = np.clip(values, low, high)
        assert (np.abs(rounded - inside) <= step * (1 + 1e-4) + 1e-6).all()
    assert (rounded[values == 0] == 0).all()


@given(hnp.arrays(np.float64, 50, elements=st.floats(-1, 1)), st.floats(1e-3, 0.5))
def test_signal_to_noise_is_what_its_name_says(signal: Array, share: float) -> None:
    if np.mean(signal**2) < 1e-6:
        return
    noise = np.full_like(signal, share * np.sqrt(np.mean(signal**2)))
    assert sqnr(signal, signal + noise) == pytest.approx(-20 * np.log10(share), abs=0.01)
    assert sqnr(signal, signal) == HIGHEST
    assert sqnr(np.zeros(3), np.ones(3)) == LOWEST
    assert sqnr(signal, np.full_like(signal, np.nan)) is None


@given(st.integers(1, 200), st.data())
def test_the_fewest_that_are_enough_are_found_in_few_tries(total: int, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, total - 1))
    least = data.draw(st.integers(low + 1, total))
    tried: list[int] = []

    def enough(count: int) -> bool:
        tried.append(count)
        return count >= least

    assert fewest(total, enough, low) == least
    assert all(low < count < total for count in tried)
    assert len(tried) == len(set(tried)) <= 3 + np.ceil(np.log2(total + 1))
