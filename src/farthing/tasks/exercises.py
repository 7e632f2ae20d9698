"""Shoulder exercises as a smart watch feels them, cut by person: what is asked is how a model does on new people."""

from __future__ import annotations

import codecs
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.assets import ASSETS, fetch
from farthing.errors import TaskError
from farthing.task import Split, Task

Array = NDArray[Any]
WINDOW = 100
STEP = 50
SUBJECTS = {"train": (1, 2, 3, 4), "calibration": (5,), "validation": (6, 7), "test": (8, 9, 10)}


def watch(cache: Path | None = None, on_event: Callable[[str], None] | None = None) -> Task:
    """Seven shoulder exercises of ten people, recorded with a smart watch (Burns et al., arXiv:1802.01489), as the
    package seglearn ships them.

    Tensors, float32 (6, 100): windows of 2 s at 50 Hz, half of each in the next; channels are acceleration and
    rotation rate along three axes, in the units of the recording. No person is in two splits: four to train, one to
    calibrate, two to validate, three to test. Metric top-1; the windows of one person belong together, so that
    intervals are those of new people and wide.

    Raises:
        AssetError: the data is not cached and cannot be fetched.
    """
    path = fetch(ASSETS["watch"], cache, on_event)
    data = _read(path)
    windows, labels, people = [], [], []
    for record, label, person in zip(data["X"], data["y"], data["subject"], strict=True):
        cut = np.lib.stride_tricks.sliding_window_view(record, WINDOW, axis=0)[::STEP]
        windows.append(cut.astype(np.float32))
        labels += [int(label)] * len(cut)
        people += [int(person)] * len(cut)
    person = np.array(people)
    everything = Split({"": np.concatenate(windows)}, np.array(labels), person)
    splits = {name: everything.subset(np.flatnonzero(np.isin(person, who))) for name, who in SUBJECTS.items()}
    return Task("watch", splits, "top1", labels=data["y_labels"], licence=ASSETS["watch"].licence)


def _read(path: Path) -> dict[str, Any]:
    """The one object in the file: a dictionary of arrays and lists of names."""
    raw = io.BytesIO(path.read_bytes())
    try:
        np.lib.format.read_magic(raw)
        np.lib.format.read_array_header_1_0(raw)
        found = _Arrays(raw, encoding="latin1").load()
        data = found.item() if isinstance(found, np.ndarray) else found
        return {key: data[key] for key in ("X", "y", "subject", "y_labels")}
    except (ValueError, pickle.UnpicklingError, KeyError, TypeError, EOFError) as error:
        raise TaskError(f"{path} does not hold the recordings: remove it, and it is fetched again") from error


class _Arrays(pickle.Unpickler):
    """Loads arrays and plain Python data, nothing that could run code."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],  # type: ignore[dict-item]
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): codecs.encode,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return known[module, name]
