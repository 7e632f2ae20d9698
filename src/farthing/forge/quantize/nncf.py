"""Static int8 by NNCF, OpenVINO's own quantizer: another choice of operators and ranges than ours, biases corrected."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from farthing.engines.openvino import runtime
from farthing.errors import ConfigError, UnsupportedError, require
from farthing.forge.openvino import graph
from farthing.forge.quantize.calibrate import model_feeds
from farthing.forge.quantize.static import VNNI
from farthing.metrics import Outputs
from farthing.model import Model, Quantization, checked
from farthing.recipe import FLOATS, PassSection
from farthing.target import Target
from farthing.task import Task

TELEMETRY = "openvino_telemetry"


class NncfInt8(PassSection, frozen=True, kw_only=True):
    """Quantize to 8 bits with ``nncf.quantize`` (https://github.com/openvinotoolkit/nncf).

    Takes an ONNX or an OpenVINO model and gives an OpenVINO one. This is a library's work, not ours: leave it out where
    our results are compared with that library's.

    Attributes:
        preset: ``performance`` has symmetric ranges only; ``mixed`` asymmetric ones for activations, which was slower
            (1.16x on EfficientNet-lite0) and no nearer to float.
        samples: most calibration samples used.
        fast_bias_correction: correct biases from each layer's own float input; False does it from the quantized one,
            layer after layer, which takes longer.
        max_drop: what the task's metric may lose; NNCF then gives operators back to float until it does. Every other
            calibration sample is kept for that judgement, the others calibrate. None judges nothing.
    """

    libraries: ClassVar[tuple[str, ...]] = ("nncf", "openvino", "onnx")
    forms: ClassVar[Mapping[str, str]] = dict.fromkeys((*FLOATS, "openvino"), "openvino-int8")
    scores: ClassVar[bool] = True

    preset: Literal["performance", "mixed"] = "performance"
    samples: int = 300
    fast_bias_correction: bool = True
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples is a whole number from 1, not {self.samples}")

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError for what OpenVINO or NNCF cannot take, TaskError for unusable data."""
        tool = library()
        task.check(model.manifest)
        read = graph.from_onnx(model) if model.manifest.format == "onnx" else graph.from_files(model)
        narrow = target.arch == "x86_64" and not target.vnni
        fix = tool.OverflowFix.ENABLE if narrow else tool.OverflowFix.DISABLE
        settings = {
            "preset": tool.QuantizationPreset(self.preset),
            "fast_bias_correction": self.fast_bias_correction,
        }
        advanced = tool.AdvancedQuantizationParameters(overflow_fix=fix)
        with quiet():
            quantized = self._quantize(tool, read, model, task, settings, advanced)
        if not any(node.get_type_name() == "FakeQuantize" for node in quantized.get_ops()):
            raise UnsupportedError(f"{model.manifest.name} has no operator that NNCF quantizes")
        needed = (VNNI,) if target.vnni and target.arch == "x86_64" else ()
        manifest = checked(
            model.manifest,
            format="openvino",
            quantization=Quantization(
                scheme="static",
                weights="int8",
                activations="uint8",
                per_channel=True,
                reduce_range=narrow,
                calibrator=f"nncf {self.preset}",
            ),
            requires=tuple(dict.fromkeys([*model.manifest.requires, *needed])),
        )
        return graph.to_model(quantized, manifest)

    def _quantize(
        self, tool: Any, read: Any, model: Model, task: Task, settings: dict[str, Any], advanced: Any
    ) -> Any:
        picks = np.arange(len(task.split("calibration")))
        judging = self.max_drop is not None
        own = picks[:: 2 if judging else 1][: self.samples]
        data = tool.Dataset(own.tolist(), lambda pick: model_feeds(model, task, [pick]))
        settings = {**settings, "subset_size": len(own)}
        try:
            if not judging:
                return tool.quantize(read, data, advanced_parameters=advanced, **settings)
            judge = Judge(model, task, read)
            return tool.quantize_with_accuracy_control(
                read,
                data,
                tool.Dataset(picks[1::2].tolist(), lambda pick: model_feeds(model, task, [pick])),
                judge,
                max_drop=self.max_drop,
                advanced_quantization_parameters=advanced,
                **settings,
            )
        except (RuntimeError, ValueError, tool.UnsupportedModelError) as error:
            raise UnsupportedError(
                f"NNCF cannot quantize {model.manifest.name}: {graph.reason(error)}"
            ) from error


class Judge:
    """The task's metric on calibration samples, as NNCF asks for it: higher is better."""

    def __init__(self, model: Model, task: Task, read: Any) -> None:
        self._model = model
        self._task = task
        ov = runtime()
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        self._base = ov.Core().compile_model(read.clone(), "CPU", options)
        self._reference: dict[tuple[int, ...], Outputs] = {}

    def __call__(self, compiled: Any, picks: Iterable[int]) -> tuple[float, None]:
        order = tuple(picks)
        found = self._answers(compiled, order)
        if order not in self._reference:
            self._reference[order] = self._answers(self._base, order)
        labels = self._task.split("calibration").labels
        own = None if labels is None else labels[np.asarray(order)]
        metric = self._task.metric
        value = metric.score(found, own, self._reference[order]).value
        return metric.upwards(value), None

    def _answers(self, compiled: Any, picks: tuple[int, ...]) -> Outputs:
        names = [spec.name for spec in self._model.manifest.outputs if spec.role != "state"]
        rows: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
        for pick in picks:
            answer = compiled(model_feeds(self._model, self._task, [pick]))
            for name in names:
                rows[name].append(np.array(answer[name][:1]))
        return {name: np.concatenate(parts) for name, parts in rows.items()}


def library() -> ModuleType:
    """The nncf package, loaded so that it cannot report home, and the class of loggers left as it was.

    NNCF tells Intel of every call and keeps a client number in the home directory, unless the package it does so
    with is not to be had: while it is imported, that is so.

    Raises:
        NotInstalled: nncf or openvino is not installed.
    """
    runtime()
    kind, known = logging.getLoggerClass(), sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        return require("nncf", "nncf")
    finally:
        logging.setLoggerClass(kind)
        sys.modules[TELEMETRY] = known  # type: ignore[assignment]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence NNCF for a while: it draws progress bars, and logs to standard output."""
    logger = logging.getLogger("nncf")

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.removeFilter(drop)
