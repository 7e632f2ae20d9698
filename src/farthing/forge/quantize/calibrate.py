"""Activation ranges from calibration data, by ONNX Runtime's calibrators, computed once a split and model."""

from __future__ import annotations

import io
import logging
import shutil
import warnings
import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import numpy as np

from farthing import bench
from farthing.engines.base import zero_state
from farthing.engines.onnxruntime import runtime
from farthing.errors import TaskError, require
from farthing.forge.quantize.mse import least_error
from farthing.model import Model
from farthing.scratch import Scratch
from farthing.task import Split, Task

Calibrator = Literal["minmax", "percentile", "entropy", "mse"]
HISTOGRAMS = {"percentile", "mse"}  # these see the same ones
CHUNK = 16
MOST_NUMBERS = 1 << 22
"""Numbers fed at once where every tensor inside the model is looked at."""
BINS = 1024
_ranges: weakref.WeakKeyDictionary[Split, dict[tuple[Any, ...], Any]] = weakref.WeakKeyDictionary()


def ranges(
    model: Model,
    task: Task,
    calibrator: Calibrator,
    percentile: float,
    samples: int,
    operators: tuple[str, ...] = (),
) -> Any:
    """Ranges of all float tensors of a model over calibration samples, as ONNX Runtime's TensorsData.

    Args:
        operators: types of the operators whose inputs and outputs are looked at; all if empty.
        calibrator: ``minmax``; ``percentile`` cuts the tails of a histogram; ``entropy`` chooses the cut of
            least Kullback-Leibler divergence (Migacz, GTC 2017); ``mse`` the one of least squared error.
        percentile: share kept by ``percentile``, per cent.
        samples: most calibration samples to run.

    Tensors whose range is infinite, as that of a mask of attention is, have none.

    Raises:
        TaskError: the task has no calibration data, or the model computes NaN on it.
    """
    known = _ranges.setdefault(task.split("calibration"), {})  # the same in every view of a task
    key = (model.digest, task.form, calibrator, percentile, samples, operators)
    if key not in known:
        shared = (model.digest, task.form, calibrator in HISTOGRAMS or calibrator, samples, operators)
        if shared not in known:
            bounded = None
            if calibrator != "minmax":
                bounded = {*ranges(model, task, "minmax", percentile, samples, operators)}
            known[shared] = _observed(model, task, calibrator, samples, operators, bounded)
        found = _ranges_of(known[shared], calibrator, percentile)
        _check_numbers(found, model)
        known[key] = _bounded(found)
    return known[key]


def extremes(found: Any) -> dict[str, tuple[float, float]]:
    """The smallest and the largest value of each tensor, of ranges as `ranges` gives them."""
    known = ((name, data.range_value) for name, data in found.items())
    return {name: (float(np.min(low)), float(np.max(high))) for name, (low, high) in known}


def _bounded(found: Any) -> Any:
    """The finite ranges."""
    infinite = {name for name, ends in extremes(found).items() if np.isinf(ends).any()}
    kept = {name: data for name, data in found.items() if name not in infinite}
    return type(found)(found.calibration_method, kept) if infinite else found


def _observed(
    model: Model,
    task: Task,
    method: Calibrator,
    samples: int,
    operators: tuple[str, ...],
    bounded: Collection[str] | None,
) -> Any:
    """One of ONNX Runtime's calibrators that has seen the calibration data; of some tensors, if they are named."""
    runtime()
    calibrate = require("onnxruntime.quantization.calibrate", "forge")
    task.check(model.manifest)
    kind = "percentile" if method in HISTOGRAMS else method
    kinds = {
        "minmax": calibrate.MinMaxCalibrater,
        "percentile": calibrate.PercentileCalibrater,
        "entropy": calibrate.EntropyCalibrater,
    }
    with Scratch() as folder, quiet():
        given = _copied(model, folder)
        place = str(folder / "augmented.onnx")
        calibrater = kinds[kind](given, operators or None, place, symmetric=False)
        calibrater.augment_graph()
        if bounded is not None:
            calibrater.tensors_to_calibrate = {*calibrater.tensors_to_calibrate}.intersection(bounded)
        calibrater.create_inference_session()
        order = np.arange(min(samples, len(task.split("calibration"))))
        size = chunk(model, task)
        for start in range(0, len(order), size):
            calibrater.collect_data(Once(model_feeds(model, task, order[start : start + size])))
        return calibrater if kind == "minmax" else calibrater.collector


def chunk(model: Model, task: Task, wanted: int = CHUNK) -> int:
    """Calibration samples to feed at once: ``wanted``, fewer if they are large."""
    return bench.fitting_batch(model.manifest, wanted, task, task.split("calibration"), MOST_NUMBERS)


def _ranges_of(seen: Any, method: Calibrator, percentile: float) -> Any:
    """Ranges from what a calibrator has seen: itself for ``minmax``, else its histograms."""
    calibrate = require("onnxruntime.quantization.calibrate", "forge")
    methods = calibrate.CalibrationMethod
    with quiet():
        if method == "minmax":
            return seen.compute_data()
        if method == "mse":
            return _nearest(calibrate, seen)
        seen.percentile = percentile
        if method == "entropy":
            seen.histogram_dict = {name: coarse(held) for name, held in seen.histogram_dict.items()}
        kind = methods.Percentile if method == "percentile" else methods.Entropy
        return calibrate.TensorsData(kind, seen.compute_collection_result())


def coarse(held: tuple[Any, ...]) -> tuple[Any, ...]:
    """A histogram of ONNX Runtime's collector with at most `BINS` bins each side of zero.

    It grows by as many bins as the range does, and the search for the least divergence takes the cube of their number:
    minutes where one sample lies far out.

    Args:
        held: counts, edges (symmetric about zero), and what else the collector keeps.
    """
    counts, edges, *rest = held
    half = len(counts) // 2
    if len(counts) % 2 or half <= BINS:
        return held
    merged = -(-half // BINS)
    extra = -half % merged
    step = (float(edges[-1]) - float(edges[0])) / len(counts)
    padded = np.pad(counts, extra)
    first = float(edges[0]) - extra * step
    return (
        padded.reshape(-1, merged).sum(1),
        (first + step * merged * np.arange(len(padded) // merged + 1)).astype(edges.dtype),
        *rest,
    )


def _check_numbers(found: Any, model: Model) -> None:
    for name, ends in extremes(found).items():
        if np.isnan(ends).any():
            raise TaskError(f"tensor {name} of {model.manifest.name} is NaN on the calibration data")


def _nearest(calibrate: Any, seen: Any) -> Any:
    """Ranges of least squared error from histograms."""
    data: dict[str, Any] = {}
    for name, (counts, edges, lowest, highest, *_) in seen.get_histogram_dict().items():
        ends = least_error(counts, edges, float(lowest), float(highest))
        low, high = (np.asarray(end, edges.dtype) for end in ends)
        data[name] = calibrate.TensorData(lowest=low, highest=high)
    return calibrate.TensorsData(calibrate.CalibrationMethod.Percentile, data)


def _copied(model: Model, folder: Path) -> Path:
    """The model's files in a directory of our own: the calibrators write others beside the one they open."""
    for name in model.manifest.files:
        shutil.copyfile(model.path / name, folder / name)
    return folder / model.file.name


def model_feeds(model: Model, task: Task, picks: Any) -> dict[str, Any]:
    """All inputs for some calibration samples, at the start of a stream for a model that keeps state."""
    manifest = model.manifest
    state = zero_state([spec for spec in manifest.inputs if spec.role == "state"])
    picks = bench.padded_to_batch(np.asarray(picks), manifest)
    return {**bench.feeds(task, task.split("calibration"), manifest, picks), **state}


class Once:
    """What ONNX Runtime's tools ask for data: one feed, then None."""

    def __init__(self, feeds: dict[str, Any]) -> None:
        self._feeds: dict[str, Any] | None = feeds

    def get_next(self) -> dict[str, Any] | None:
        """The feed the first time, None from then on."""
        feeds, self._feeds = self._feeds, None
        return feeds

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.get_next, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence ONNX Runtime's quantization tools for a while: they print, warn, and give advice on the root logger."""
    root = logging.getLogger()

    def drop(record: logging.LogRecord) -> bool:
        return "quantiz" not in record.pathname

    root.addFilter(drop)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        root.removeFilter(drop)
