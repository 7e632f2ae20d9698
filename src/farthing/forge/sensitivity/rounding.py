"""Rounding to few bits, in numpy: what weights and activations become, before any operator computes with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from farthing.forge import graph

Array = NDArray[Any]
MATRICES = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Gather"}


Stored = Mapping[str, onnx.TensorProto]
"""What a graph stores, by name."""


class Place(NamedTuple):
    """Weights that an operator reads.

    Attributes:
        tensor: their name.
        place: which input they are.
        axes: along which each index has a scale of its own.
    """

    tensor: str
    place: int
    axes: tuple[int, ...]


def weights_of(node: onnx.NodeProto, stored: Stored) -> list[Place]:
    """The float32 weights of a layer; no biases."""
    if node.op_type not in MATRICES or node.domain not in {"", "ai.onnx"}:
        return []
    places = {"MatMul": (0, 1), "Gather": (0,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)}.get(
        node.op_type, (1,)
    )
    found = []
    for place in places:
        tensor = stored.get(node.input[place])
        if tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            found.append(Place(tensor.name, place, _channels(node, place, len(tensor.dims))))
    return found


def all_weights(nodes: Iterable[onnx.NodeProto], stored: Stored) -> dict[str, tuple[int, ...]]:
    """The float32 weights of all layers: name -> the axes along which each index has a scale of its own."""
    return {place.tensor: place.axes for node in nodes for place in weights_of(node, stored)}


def round_weights(nodes: Iterable[onnx.NodeProto], stored: Stored, bits: int) -> None:
    """Round the weights of all layers in place; they stay float32. See `rounded_weights`."""
    for name, axes in all_weights(nodes, stored).items():
        numbers = rounded_weights(numpy_helper.to_array(stored[name]), axes, bits)
        stored[name].CopyFrom(numpy_helper.from_array(numbers, name))


def _channels(node: onnx.NodeProto, place: int, rank: int) -> tuple[int, ...]:
    """The axes of the output channels: with a scale for each, sums need no other than the layer's own."""
    if node.op_type == "ConvTranspose":
        return (1,)
    if node.op_type == "Gemm":
        return (0,) if graph.attribute(node, "transB", 0) else (1,)
    if node.op_type == "MatMul":
        return (*range(rank - 2), rank - 1 if place else rank - 2)
    return (0, 1) if node.op_type in {"LSTM", "GRU", "RNN"} else (0,)


def rounded_weights(weights: Array, axes: Sequence[int], bits: int) -> Array:
    """Weights rounded to so many bits, symmetric about 0, with a scale for each index along ``axes``.

    16 bits stand for half precision, 32 for the weights as they are.

    >>> rounded_weights(np.array([[3.6, -7.0], [0.4, 14.0]]), [0], 4).tolist()
    [[4.0, -7.0], [0.0, 14.0]]
    """
    if bits >= 16:
        return half(weights) if bits == 16 else weights
    others = tuple(axis for axis in range(weights.ndim) if axis not in axes)
    most = 2 ** (bits - 1) - 1
    step = np.abs(weights.astype(np.float64)).max(axis=others, keepdims=True) / most
    step[step == 0] = 1.0
    return np.asarray(np.clip(np.round(weights / step), -most, most) * step, np.float32)


def scales_of(weights: Array, axes: Sequence[int]) -> int:
    """How many scales weights have with one for each index along ``axes``."""
    return math.prod(weights.shape[axis] for axis in axes)


def rounded_activations(values: Array, low: float, high: float, bits: int) -> Array:
    """Activations clipped to a range that holds 0 and rounded to 2 to the power of ``bits`` values in it.

    16 bits stand for half precision, 32 for the values as they are.
    """
    if bits >= 16:
        return half(values) if bits == 16 else values
    step, least, most = steps(low, high, bits)
    if not step:
        return values
    return np.asarray(np.clip(np.round(values.astype(np.float64) / step), least, most) * step, np.float32)


def steps(low: float, high: float, bits: int) -> tuple[float, int, int]:
    """The distance of neighbouring values in a range, and the least and the greatest multiple of it that is one.

    The distance is 0 where the range is so small that float32 could not tell them apart.
    """
    levels = 2**bits - 1
    step = (high - low) / levels
    if step < float(np.finfo(np.float32).tiny):
        return 0.0, 0, 0
    zero = round(-low / step)
    return step, -zero, levels - zero


def half(values: Array) -> Array:
    """Values rounded to float16; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)
