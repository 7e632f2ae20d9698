"""How far two results are apart, and which outputs follow the batch. Plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def close(value: Array, other: Array, tolerance: float) -> bool:
    """Whether two arrays of one shape agree within ``tolerance`` of the larger one's largest value."""
    return distance(value, other) <= tolerance


def distance(value: Array, other: Array) -> float:
    """Largest difference of two arrays of one shape, relative to the largest finite value of the first."""
    if value.dtype.kind not in "fiub" or other.dtype.kind not in "fiub":
        return 0.0 if bool((value == other).all()) else float("inf")
    a, b = np.asarray(value, np.float64), np.asarray(other, np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    gap, scale = float(np.abs(a[finite] - b[finite]).max()), float(np.abs(a[finite]).max())
    return gap / scale if scale else (0.0 if gap == 0 else float("inf"))


def batch_axes(
    singles: Sequence[Sequence[Array]], batch: Sequence[Array], tolerance: float
) -> list[int | None] | None:
    """Which outputs carry samples along axis 0, from single answers and the answer to all of them at once.

    Returns None if a batch is not answered as its samples are one by one, or nothing in the answer follows it.
    """
    axes: list[int | None] = []
    for number, together in enumerate(batch):
        ones = [answer[number] for answer in singles]
        if together.ndim and len(together) == len(ones) and all(one.ndim and len(one) == 1 for one in ones):
            if distance(np.concatenate(ones), together) > tolerance:
                return None
            axes.append(0)
        else:
            axes.append(None)
    return axes if 0 in axes else None
