"""Resizing of 8-bit pictures in numpy, exactly as the training pipeline did it, in one of two conventions.

``antialias=True`` is Pillow's ``Image.resize``: the kernel is widened when shrinking, windows are cut at the border
and renormalised, weights have 22 fractional bits, and the result is rounded to 8 bits after each pass, horizontal
first. ``bicubic`` has a = -0.5. The result equals Pillow's to the bit. (Pillow 13 goes vertically first where that is
cheaper; there it differs by a few steps, unless it is asked for the two passes one by one.)

``antialias=False`` is ``torch.nn.functional.interpolate(align_corners=False)`` and OpenCV's ``resize``: the kernel
keeps its width, the border is repeated, and only the end is rounded. ``bicubic`` has a = -0.75. ``box`` is then torch's
``nearest-exact``, and ``lanczos`` (three lobes) follows the same rule, though neither library has it.

``nearest`` takes the pixel at ``floor((x + 0.5) * scale)`` with antialias (Pillow) and at ``floor(x * scale)`` without
(torch, and so in float32).

In all conventions pixel centres lie at half-integers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from farthing.model import Filter

Image = NDArray[np.uint8]
_Kernel = Callable[[NDArray[np.float64]], NDArray[np.float64]]
_BLOCK = 16  # outputs that share one small matrix product
HALF = 0.5 + 2.0**-24  # halves go up however a sum was added up; too little to move one of 22-bit weights
_CHUNK = 1 << 17  # pixels turned to float64 at a time: what fits a cache


def resample(image: Image, height: int, width: int, kernel: Filter, antialias: bool) -> Image:
    """Bring a picture to ``height`` x ``width``, not keeping its proportions.

    Args:
        image: uint8, height x width, or height x width x channels.
        height, width: wanted size in pixels, at least 1.
        kernel: name of the interpolation.
        antialias: which of the two conventions of this module.
    """
    if image.shape[:2] == (height, width):
        return image
    if kernel == "nearest" or (kernel == "box" and not antialias):
        rows, columns = (
            _nearest(n, m, kernel, antialias) for n, m in ((image.shape[0], height), (image.shape[1], width))
        )
        return image[rows[:, None], columns[None, :]]
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    wide = _weights(image.shape[1], width, kernel, antialias)
    high = _weights(image.shape[0], height, kernel, antialias)
    between = np.empty((image.shape[0], width), np.uint8 if antialias else np.float64)
    result = np.empty((len(planes), height, width), np.uint8)
    for plane, out in zip(planes, result, strict=True):
        _horizontal(plane, wide, between)
        _vertical(between, high, out)
    return result[0] if image.ndim == 2 else np.ascontiguousarray(result.transpose(1, 2, 0))


def _nearest(size: int, wanted: int, kernel: Filter, antialias: bool) -> NDArray[np.intp]:
    """Input index per output, rounding errors included: at the border of two pixels they decide."""
    positions: NDArray[Any]
    if antialias:
        steps = np.full(wanted, size / wanted)
        steps[0] *= 0.5
        positions = np.add.accumulate(steps)  # Pillow adds up as well
    else:
        shift = np.float32(0.5 if kernel == "box" else 0.0)
        positions = (np.arange(wanted, dtype=np.float32) + shift) * np.float32(size / wanted)
    return np.minimum(positions.astype(np.intp), size - 1)


class _Part(NamedTuple):
    """Outputs ``start`` to ``stop`` are the inputs ``low`` to ``high`` times ``matrix`` (inputs x outputs)."""

    start: int
    stop: int
    low: int
    high: int
    matrix: NDArray[np.float64]


@functools.lru_cache(maxsize=64)
def _weights(size: int, wanted: int, kernel: Filter, antialias: bool) -> tuple[_Part, ...] | None:
    """Weights from ``size`` inputs to ``wanted`` outputs in narrow blocks; None where nothing changes."""
    if size == wanted:
        return None
    taps = _pillow_taps if antialias else _plain_taps
    index, weight = taps(size, wanted, kernel)
    parts = []
    for start in range(0, wanted, _BLOCK):
        block = slice(start, min(start + _BLOCK, wanted))
        low, high = int(index[block].min()), int(index[block].max()) + 1
        matrix = np.zeros((high - low, block.stop - start))
        outputs = np.broadcast_to(np.arange(block.stop - start)[:, None], index[block].shape)
        np.add.at(matrix, (index[block] - low, outputs), weight[block])
        parts.append(_Part(start, block.stop, low, high, matrix))
    return tuple(parts)


def _pillow_taps(size: int, wanted: int, kernel: Filter) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Input index and weight per output and tap, as in ``precompute_coeffs`` of Pillow's Resample.c."""
    support, function = _SMOOTH[kernel]
    scale = size / wanted
    stretch = max(scale, 1.0)
    centre = ((np.arange(wanted) + 0.5) * scale)[:, None]
    first = np.maximum((centre - support * stretch + 0.5).astype(np.intp), 0)
    last = np.minimum((centre + support * stretch + 0.5).astype(np.intp), size)
    index = first + np.arange(int((last - first).max()))
    weight = function((index - centre + 0.5) * (1.0 / stretch)) * (index < last)
    weight /= np.add.accumulate(weight, axis=1)[:, -1:]
    fixed = np.trunc(weight * (1 << 22) + np.copysign(0.5, weight)) / (1 << 22)
    return np.minimum(index, size - 1), fixed


def _plain_taps(size: int, wanted: int, kernel: Filter) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Input index and weight per output and tap: the kernel as wide as it is, the border repeated."""
    support, function = _PLAIN[kernel]
    centre = ((np.arange(wanted) + 0.5) * (size / wanted) - 0.5)[:, None]
    index = np.floor(centre).astype(np.intp) + np.arange(1 - support, support + 1)
    weight = function(index - centre)
    weight /= weight.sum(axis=1, keepdims=True)
    return np.clip(index, 0, size - 1), weight


def _box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(a: float) -> _Kernel:
    """Keys' cubic convolution kernel (IEEE Trans. ASSP 29, 1981)."""

    def kernel(x: NDArray[np.float64]) -> NDArray[np.float64]:
        x = np.abs(x)
        near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
        return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))

    return kernel


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)


_SMOOTH: dict[Filter, tuple[float, _Kernel]] = {
    "box": (0.5, _box),
    "bilinear": (1.0, _triangle),
    "bicubic": (2.0, _cubic(-0.5)),
    "lanczos": (3.0, _lanczos),
}
_PLAIN: dict[Filter, tuple[int, _Kernel]] = {
    "bilinear": (1, _triangle),
    "bicubic": (2, _cubic(-0.75)),
    "lanczos": (3, _lanczos),
}


def _horizontal(plane: Image, parts: tuple[_Part, ...] | None, out: NDArray[Any]) -> None:
    """One plane, height x width, through the weights of its columns into ``out``; rows in chunks that fit a cache."""
    if parts is None:
        out[:] = plane
        return
    rows = max(1, _CHUNK // plane.shape[1])
    for start in range(0, len(plane), rows):
        chunk = plane[start : start + rows].astype(np.float64)
        sums = np.empty((len(chunk), out.shape[1]))
        for part in parts:
            np.matmul(chunk[:, part.low : part.high], part.matrix, out=sums[:, part.start : part.stop])
        _store(sums, out[start : start + rows])


def _vertical(plane: NDArray[Any], parts: tuple[_Part, ...] | None, out: Image) -> None:
    if parts is None:
        _store(plane.astype(np.float64), out)
        return
    for part in parts:
        band = plane[part.low : part.high].astype(np.float64)
        _store(part.matrix.T @ band, out[part.start : part.stop])


def _store(sums: NDArray[np.float64], out: NDArray[Any]) -> None:
    """Write sums, rounded half up and clipped where ``out`` has 8 bits. ``sums`` is used up."""
    if out.dtype == np.uint8:
        sums += HALF
        np.clip(sums, 0.0, 255.0, out=sums)
    np.copyto(out, sums, casting="unsafe")
