"""Anomalies of a space shuttle's sensors: the model's output is the score."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np

from farthing.assets import ASSETS, fetch
from farthing.errors import TaskError
from farthing.task import Split, Task
from farthing.taskfile import shared_out

SHARES = {"train": 0.5, "calibration": 0.02, "validation": 0.24, "test": 0.24}


def shuttle(cache: Path | None = None, on_event: Callable[[str], None] | None = None) -> Task:
    """49,097 readings of nine sensors of a space shuttle (UCI Statlog), 3,511 of them anomalies, as the package river
    ships them.

    Tensors, float32 (9,): each sensor less its mean and over its deviation on the training readings. To train and to
    calibrate there are normal readings only; half of all are to train, about a quarter each to validate and to test.
    Metric AUC: the model's one output, (samples, 1), is the anomaly score, higher for what is less normal - of an
    autoencoder, the error of its reconstruction. No threshold is asked for. Labels are 0 normal and 1 anomaly.

    Raises:
        AssetError: the data is not cached and cannot be fetched.
    """
    path = fetch(ASSETS["shuttle"], cache, on_event)
    try:
        rows = np.loadtxt(
            gzip.decompress(path.read_bytes()).decode().splitlines(), np.float64, delimiter=",", skiprows=1
        )
        readings, labels = rows[:, :9], rows[:, 9].astype(np.int64)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise TaskError(f"{path} does not hold the readings: remove it, and it is fetched again") from error
    splits = shared_out(Split({"": readings}, labels), SHARES, seed=0, name="shuttle")
    for name in ("train", "calibration"):
        splits[name] = splits[name].subset(np.flatnonzero(splits[name].labels == 0))
    known = splits["train"].inputs[""]
    mean, deviation = known.mean(0), known.std(0)
    scaled = {
        name: Split({"": ((split.inputs[""] - mean) / deviation).astype(np.float32)}, split.labels)
        for name, split in splits.items()
    }
    return Task("shuttle", scaled, "auc", labels=("normal", "anomaly"), licence=ASSETS["shuttle"].licence)
