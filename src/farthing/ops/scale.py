"""Integers that stand for real numbers: what goes into a quantized input, and what comes out of such an output."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.model import TensorSpec

Array = NDArray[Any]


def stored(values: Array, spec: TensorSpec) -> Array:
    """Values as a tensor holds them: of its type, and if it has a scale, divided by it, rounded to even and clipped."""
    if spec.scale is None:
        return np.asarray(values, spec.dtype, order="C")
    limits = np.iinfo(spec.dtype)
    steps = np.rint(np.asarray(values, np.float32) / np.float32(spec.scale)) + spec.zero_point
    return np.asarray(np.clip(steps, limits.min, limits.max), spec.dtype, order="C")


def real(array: Array, spec: TensorSpec) -> Array:
    """What a tensor holds as real numbers: float32 if it has a scale, else as it is."""
    if spec.scale is None:
        return array
    return (array.astype(np.float32) - np.float32(spec.zero_point)) * np.float32(spec.scale)
