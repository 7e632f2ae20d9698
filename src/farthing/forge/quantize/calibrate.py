"""Activation ranges from calibration data, by ONNX Runtime's calibrators, computed once a task and model."""

from __future__ import annotations

import io
import logging
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import numpy as np

from farthing import bench
from farthing.engines.onnxruntime import runtime
from farthing.errors import TaskError, require
from farthing.model import Model
from farthing.task import Task

Calibrator = Literal["minmax", "percentile", "entropy"]
CHUNK = 16
_ranges: weakref.WeakKeyDictionary[Task, dict[tuple[Any, ...], Any]] = weakref.WeakKeyDictionary()


def ranges(model: Model, task: Task, calibrator: Calibrator, percentile: float, samples: int, symmetric: bool) -> Any:
    """Ranges of all float tensors of a model over calibration samples, as ONNX Runtime's TensorsData.

    Args:
        calibrator: ``minmax``; ``percentile`` cuts the tails of a histogram; ``entropy`` chooses the cut of
            least Kullback-Leibler divergence (Migacz, GTC 2017).
        percentile: share kept by ``percentile``, per cent.
        samples: most calibration samples to run.
        symmetric: ranges centred on zero, for signed activations without zero point.

    Raises:
        TaskError: the task has no calibration data, or the model answers NaN to it.
    """
    key = (model.digest, calibrator, percentile, samples, symmetric)
    known = _ranges.setdefault(task, {})
    if key not in known:
        known[key] = _collect(model, task, calibrator, percentile, samples, symmetric)
    return known[key]


def _collect(model: Model, task: Task, method: Calibrator, percentile: float, samples: int, symmetric: bool) -> Any:
    runtime()
    calibrate = require("onnxruntime.quantization.calibrate", "forge")
    task.check(model.manifest)
    split = task.split("calibration")
    with tempfile.TemporaryDirectory(prefix="farthing-") as folder, quiet():
        place = str(Path(folder) / "augmented.onnx")
        options: dict[str, Any] = {"symmetric": symmetric, "augmented_model_path": place}
        kinds = {
            "minmax": lambda: calibrate.MinMaxCalibrater(model.file, **options),
            "percentile": lambda: calibrate.PercentileCalibrater(model.file, percentile=percentile, **options),
            "entropy": lambda: calibrate.EntropyCalibrater(model.file, **options),
        }
        calibrater = kinds[method]()
        calibrater.augment_graph()
        calibrater.create_inference_session()
        order = np.arange(min(samples, len(split)))
        size = bench.batch_size(model.manifest, CHUNK)
        for start in range(0, len(order), size):
            picks = order[start : start + size]
            picks = np.resize(picks, size) if model.manifest.data_inputs[0].fixed_batch else picks
            calibrater.collect_data(_Reader([bench.feeds(task, split, model.manifest, picks)]))
        found = calibrater.compute_data()
    for name, data in found.items():
        if not np.isfinite(np.asarray(data.range_value, np.float64)).all():
            raise TaskError(f"tensor {name} of {model.manifest.name} is NaN or infinite on the calibration data")
    return found


class _Reader:
    """What ONNX Runtime asks for calibration data."""

    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


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
