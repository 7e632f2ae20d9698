"""Weights of a quantized graph rounded anew, so that each layer answers as it did in float."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from farthing.bench import Tick
from farthing.forge.quantize.columns import Layer
from farthing.forge.quantize.rounding import Grid, Moments, least_scale, nearest_plane, shifted
from farthing.forge.quantize.twins import Twin, twins
from farthing.forge.quantize.walk import walk

Array = NDArray[Any]
MOST_INPUTS = 8192  # of one output: beyond, the matrix of their products takes more than half a gigabyte
FOUR_BITS = (-8, 7)
LIMITS = {
    ("int8", False): (-127, 127),
    ("int8", True): (-64, 64),
    ("uint8", False): (0, 255),
    ("uint8", True): (0, 127),
}
"""Least and largest number by type, and whether the range is reduced: as ONNX Runtime's quantizer has it."""


def compensate(
    source: onnx.ModelProto,
    quantized: onnx.ModelProto,
    feeds: Sequence[Mapping[str, Array]],
    *,
    places: int,
    reduced: bool = False,
    eight: Collection[str] | None = None,
    tick: Tick | None = None,
) -> list[str]:
    """Round the weights of a QDQ graph anew, in place, layer after layer; biases take what is left of the means.

    Each layer gets the inputs that the layers before it, rounded already, give it, and is to answer as in float.

    Args:
        source: the float model, every node with a name of its own.
        quantized: the same with Q/DQ pairs.
        feeds: inputs from calibration data, one batch after another.
        places: most places of a layer's output that are looked at.
        reduced: whether weights of 8 bits keep a reduced range.
        eight: names of the layers whose weights keep 8 bits, all others get 4; None is all.
        tick: called with (done, total) layers.

    Returns:
        Names of the layers whose weights got 4 bits.
    """
    found = [twin for twin in twins(source, quantized) if twin.layer.inputs_each <= MOST_INPUTS]
    exact = walk(source, feeds, [twin.data for twin in found])
    coarse = walk(quantized, feeds, [twin.whole for twin in found])
    small: list[str] = []
    for number, twin in enumerate(found):
        most = -(-places // len(feeds))
        halves = observed(twin.layer, next(exact), next(coarse), most, number, twin.scale, twin.zero)
        four = eight is not None and twin.name not in eight
        small += [twin.weights.numbers.name] if four else []
        _round(twin, halves, four, reduced)
        if tick:
            tick(number + 1, len(found))
    return small


def observed(
    layer: Layer,
    exact: Sequence[Array],
    coarse: Sequence[Array],
    most: int,
    seed: int,
    scale: float = 1.0,
    zero: int = 0,
) -> list[Moments]:
    """What is known of a layer's inputs: from the first and the second half of the batches, if there are two.

    Args:
        exact: inputs in float, batch by batch; coarse: the same as they are now, ``(number - zero) * scale``.
        most: places of the output to look at in each batch, drawn by ``seed``.
    """
    middle = (len(exact) + 1) // 2
    halves = [Moments(layer.groups, layer.inputs_each) for _ in exact[:2]]
    for place, (data, whole) in enumerate(zip(exact, coarse, strict=True)):
        picks = np.arange(layer.count(data))
        if len(picks) > most:
            picks = np.sort(np.random.default_rng([seed, place]).choice(picks, most, replace=False))
        own = (layer.inputs(whole, picks, zero).astype(np.float32) - zero) * np.float32(scale)
        halves[place >= middle].add(own, layer.inputs(data, picks))
    return halves


def _round(twin: Twin, halves: Sequence[Moments], four: bool, reduced: bool) -> None:
    weights = twin.layer.matrix(twin.float_weights)
    around = twin.bias is not None
    target = shifted(weights, halves, around) if len(halves) > 1 else weights
    both = halves[0] + halves[1] if len(halves) > 1 else halves[0]
    gram, _ = both.products(around)
    if four:
        _set_scale(twin, least_scale(weights, gram, *FOUR_BITS, not twin.weights.scale.dims))
    grid = _grid(twin, FOUR_BITS if four else LIMITS[_kind(twin.weights.numbers), reduced])
    whole = nearest_plane(target, gram, grid)
    _store(twin.weights.numbers, twin.layer.stored(whole))
    if twin.bias is not None and twin.float_bias is not None:
        coarse, exact = both.means
        left = weights @ exact[..., None] - grid.real(whole) @ coarse[..., None]
        _store(twin.bias.numbers, np.round((twin.float_bias.ravel() + left.ravel()) / twin.bias.real_scale))


def _set_scale(twin: Twin, scale: Array) -> None:
    """Give the weights another scale, the bias the one that belongs to it, and both the zero point 0."""
    _store(twin.weights.scale, scale if twin.weights.scale.dims else scale[:1, :1])
    _store(twin.weights.zero, np.zeros(max(1, *twin.weights.zero.dims, 1)))
    if twin.bias is not None:
        _store(twin.bias.scale, twin.weights.real_scale * twin.scale)


def _grid(twin: Twin, limits: tuple[int, int]) -> Grid:
    shape = (twin.layer.groups, -1, 1) if twin.weights.scale.dims else (1, 1, 1)
    zero = numpy_helper.to_array(twin.weights.zero).astype(np.float64)
    return Grid(twin.weights.real_scale.reshape(shape), zero.reshape(shape), *limits)


def _kind(tensor: TensorProto) -> str:
    return str(numpy_helper.to_array(tensor).dtype)


def _store(tensor: TensorProto, array: Array) -> None:
    """Other numbers in a stored tensor, of its shape and type."""
    kind = numpy_helper.to_array(tensor).dtype
    if kind.kind in "iu":
        array = np.clip(array, np.iinfo(kind).min, np.iinfo(kind).max)
    fresh = np.ascontiguousarray(array.reshape(tuple(tensor.dims)).astype(kind))
    tensor.CopyFrom(numpy_helper.from_array(fresh, tensor.name))
