"""Activation ranges from calibration data, by ONNX Runtime's calibrators, computed once a split and model."""

from __future__ import annotations

import io
import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator
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
from farthing.task import Split, Task

Calibrator = Literal["minmax", "percentile", "entropy", "mse"]
CHUNK = 16
_ranges: weakref.WeakKeyDictionary[Split, dict[tuple[Any, ...], Any]] = weakref.WeakKeyDictionary()


def ranges(model: Model, task: Task, calibrator: Calibrator, percentile: float, samples: int) -> Any:
    """Ranges of all float tensors of a model over calibration samples, as ONNX Runtime's TensorsData.

    Args:
        calibrator: ``minmax``; ``percentile`` cuts the tails of a histogram; ``entropy`` chooses the cut of
            least Kullback-Leibler divergence (Migacz, GTC 2017); ``mse`` the one of least squared error.
        percentile: share kept by ``percentile``, per cent.
        samples: most calibration samples to run.

    Raises:
        TaskError: the task has no calibration data, or the model answers NaN to it.
    """
    key = (model.digest, task.form, calibrator, percentile, samples)
    known = _ranges.setdefault(task.split("calibration"), {})  # the same in every view of a task
    if key not in known:
        known[key] = _collect(model, task, calibrator, percentile, samples)
    return known[key]


def _collect(model: Model, task: Task, method: Calibrator, percentile: float, samples: int) -> Any:
    runtime()
    calibrate = require("onnxruntime.quantization.calibrate", "forge")
    task.check(model.manifest)
    split = task.split("calibration")
    with tempfile.TemporaryDirectory(prefix="farthing-") as folder, quiet():
        place = str(Path(folder) / "augmented.onnx")
        given = _copied(model, Path(folder))
        options: dict[str, Any] = {"symmetric": False, "augmented_model_path": place}
        kinds = {
            "minmax": lambda: calibrate.MinMaxCalibrater(given, **options),
            "percentile": lambda: calibrate.PercentileCalibrater(given, percentile=percentile, **options),
            "entropy": lambda: calibrate.EntropyCalibrater(given, **options),
            "mse": lambda: calibrate.PercentileCalibrater(given, **options),  # for its histograms
        }
        calibrater = kinds[method]()
        calibrater.augment_graph()
        calibrater.create_inference_session()
        order = np.arange(min(samples, len(split)))
        size = bench.batch_size(model.manifest, CHUNK)
        for start in range(0, len(order), size):
            calibrater.collect_data(Once(model_feeds(model, task, order[start : start + size])))
        found = _nearest(calibrate, calibrater) if method == "mse" else calibrater.compute_data()
    for name, data in found.items():
        if not np.isfinite(np.asarray(data.range_value, np.float64)).all():
            raise TaskError(
                f"tensor {name} of {model.manifest.name} is NaN or infinite on the calibration data"
            )
    return found


def _nearest(calibrate: Any, calibrater: Any) -> Any:
    """Ranges of least squared error from the histograms that a calibrator collected."""
    data: dict[str, Any] = {}
    for name, (counts, edges, lowest, highest, *_) in calibrater.collector.get_histogram_dict().items():
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
    """Silence ONNX Runtime's quantization tools for a while: they print, and give advice on the root logger."""
    root = logging.getLogger()

    def drop(record: logging.LogRecord) -> bool:
        return "quantiz" not in record.pathname

    root.addFilter(drop)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.removeFilter(drop)
