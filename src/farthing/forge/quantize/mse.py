"""The range whose 8-bit numbers come nearest to the values of a histogram."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LEVELS = 255
FRACTIONS = np.linspace(0.1, 1.0, 46)
FINE = np.linspace(0.8, 1.2, 21)


def least_error(counts: Array, edges: Array, lowest: float, highest: float) -> tuple[float, float]:
    """The range of least mean squared error after clipping and rounding to 256 evenly spaced values.

    Zero lies inside, as it must be one of these values. Both ends shrink together first, then each alone.

    Args:
        counts, edges: a histogram of the values, of n bins and n + 1 edges.
        lowest, highest: the smallest and the largest of them.
    """
    low, high = min(lowest, 0.0), max(highest, 0.0)
    used = counts > 0
    if low == high or not used.any():
        return low, high
    values = ((edges[:-1] + edges[1:]) / 2)[used].astype(np.float64)
    values = np.clip(values, low, high)
    shares = counts[used] / counts.sum()

    def best(ranges: Iterable[tuple[float, float]]) -> tuple[float, float]:
        return min(ranges, key=lambda ends: _error(values, shares, *ends))

    low, high = best((low * f, high * f) for f in FRACTIONS[::-1].tolist())
    low, high = best((low, min(high * f, max(highest, 0.0))) for f in [1.0, *FINE.tolist()])
    return best((max(low * f, min(lowest, 0.0)), high) for f in [1.0, *FINE.tolist()])


def _error(values: Array, shares: Array, low: float, high: float) -> float:
    """Mean squared error; the zero point is a whole number, as where it is used."""
    step = (high - low) / LEVELS
    zero = np.round(-low / step)
    whole = np.clip(np.round(values / step) + zero, 0, LEVELS)
    return float(np.sum(shares * (values - (whole - zero) * step) ** 2))
