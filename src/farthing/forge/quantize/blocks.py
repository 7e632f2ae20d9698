"""Numbers in blocks of 8 or 4 bits, each block with a scale of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from farthing.forge.quantize.rounding import SHRINKS, Grid

Array = NDArray[Any]


class Blocks:
    """Weights (rows, inputs) in blocks of neighbouring inputs.

    Args:
        weights: float64.
        bits: 8 or 4; numbers are unsigned.
        block: how many weights share a scale.
        symmetric: zero is in the middle of the range; else where it suits a block.
        power: of each input, (inputs,): the error of a weight counts by it; None is the same for all.

    Attributes:
        scale, zero: of the blocks, (rows, blocks).
        numbers: uint8 (rows, blocks, block), to begin with the nearest.
    """

    def __init__(
        self, weights: Array, bits: int, block: int, symmetric: bool = True, power: Array | None = None
    ) -> None:
        self.bits, self.block, self.symmetric = bits, block, symmetric
        rows, self.inputs = weights.shape
        count = -(-self.inputs // block)
        extra = count * block - self.inputs
        parts = np.pad(weights, ((0, 0), (0, extra))).reshape(rows, count, block)
        weight = np.pad(np.ones(self.inputs) if power is None else power, (0, extra)).reshape(1, count, block)
        self.scale, self.zero = _least(parts, weight, bits, symmetric)
        self.numbers = np.zeros(parts.shape, np.uint8)
        self.fill(self.grid.nearest(weights[None])[0])

    @property
    def grid(self) -> Grid:
        """What each weight may be, (1, rows, inputs)."""
        scale, zero = (
            np.repeat(part, self.block, 1)[None, :, : self.inputs] for part in (self.scale, self.zero)
        )
        return Grid(scale, zero, 0, 2**self.bits - 1)

    def fill(self, whole: Array) -> None:
        """Take other whole numbers, (rows, inputs)."""
        flat = np.repeat(self.zero, self.block, 1)
        flat[:, : self.inputs] = whole
        self.numbers = flat.reshape(self.numbers.shape).astype(np.uint8)


def _least(parts: Array, power: Array, bits: int, symmetric: bool) -> tuple[Array, Array]:
    """Scales and zero points of blocks with the least squared error."""
    top, half = 2**bits - 1, 2 ** (bits - 1)
    best = np.full(parts.shape[:2], np.inf)
    scales, zeros = np.ones(parts.shape[:2]), np.full(parts.shape[:2], float(half))
    for shrink in SHRINKS[::-1] if bits == 4 else [1.0]:
        scale, zero = _ends(parts, top, half, float(shrink), symmetric)
        grid = Grid(scale[..., None], zero[..., None], 0, top)
        lost = np.sum((grid.real(grid.nearest(parts)) - parts) ** 2 * power, 2)
        better = lost < best
        best = np.where(better, lost, best)
        scales, zeros = np.where(better, scale, scales), np.where(better, zero, zeros)
    return scales, zeros


def _ends(parts: Array, top: int, half: int, shrink: float, symmetric: bool) -> tuple[Array, Array]:
    """Scale and zero point that reach the ends of each block, drawn in by a factor.

    Symmetric ones reach one number further below zero than above: the scale is negative where the largest is positive.
    """
    if symmetric:
        place = np.abs(parts).argmax(2)[..., None]
        scale = shrink * np.take_along_axis(parts, place, 2)[..., 0] / -half
        zero = np.full(scale.shape, float(half))
    else:
        low, high = np.minimum(parts.min(2), 0) * shrink, np.maximum(parts.max(2), 0) * shrink
        scale = (high - low) / top
        zero = np.clip(np.round(-low / np.where(scale == 0, 1.0, scale)), 0, top)
    scale = np.where(np.abs(scale) < 1e-30, 1.0, scale)
    return scale.astype(np.float32).astype(np.float64), zero


def pairs(numbers: Array) -> Array:
    """Numbers of 4 bits along the last axis, two in a byte, the first in its lower half."""
    return np.asarray(numbers[..., 0::2] | numbers[..., 1::2] << 4)


def int4(numbers: Array, name: str) -> TensorProto:
    """Numbers of -8 to 7 as ONNX stores them in 4 bits."""
    flat = numbers.astype(np.int8).ravel()
    whole = np.append(flat, np.zeros(len(flat) % 2, np.int8)).view(np.uint8) & 15
    return helper.make_tensor(name, TensorProto.INT4, numbers.shape, pairs(whole).tobytes(), raw=True)
