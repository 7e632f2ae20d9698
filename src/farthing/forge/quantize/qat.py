"""Quantization-aware training: the network learns with the rounding that its 8 bits will have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from msgspec.structs import replace

from farthing.errors import ConfigError
from farthing.forge.quantize.calibrate import Calibrator
from farthing.forge.training.passes import SELF, TrainingPass
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task


class QuantizationAware(TrainingPass, frozen=True, kw_only=True):
    """Train with fake quantization, and give the model in 8 bits (Jacob et al. 2018, https://arxiv.org/abs/1712.05877).

    The starting point is what ``quantize.static.v1`` makes of the model. Where that file quantizes a tensor, the module
    rounds it in the same way while it trains; gradients go straight through the rounding. The trained weights and
    ranges then go through the same quantizer, so that the file is one of ``quantize.static.v1`` in every respect but
    its numbers, and further steps (``export.tflite.v1``, ``export.openvino.v1``) take it as they take that one.

    Batch normalization is folded before, by ``graph.fuse.v1``, and stays so: at the low learning rates of this training
    the folded weights move little.

    Attributes:
        calibrator, percentile, samples, activations, weights, per_channel, reduce_range, exclude: as in
            ``quantize.static.v1``.
        ranges: of activations: ``learned`` with the weights (Esser et al. 2020, https://arxiv.org/abs/1902.08153, and
            for both ends Bhalgat et al. 2020, https://arxiv.org/abs/2004.09576), ``observed`` as a moving average of
            the extremes of each batch, or ``fixed`` as calibrated.
        freeze: share of the steps after which ranges no longer move, 0..1.
    """

    reads: ClassVar[tuple[str, ...]] = ("train", "calibration")
    forms: ClassVar[Mapping[str, str]] = {"float": "int8"}

    schedule: Schedule = Schedule(epochs=6, lr=5e-4)
    teacher: str | tuple[str, ...] = SELF
    calibrator: Calibrator = "minmax"
    percentile: float = 99.99
    samples: int = 256
    activations: Literal["uint8", "int8"] | None = None
    weights: Literal["uint8", "int8"] = "int8"
    per_channel: bool = True
    reduce_range: bool | None = None
    exclude: tuple[str, ...] = ()
    ranges: Literal["learned", "observed", "fixed"] = "learned"
    freeze: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.freeze <= 1:
            raise ConfigError(f"freeze is a share from 0 to 1, not {self.freeze}")
        if self.schedule.bf16 is True:
            raise ConfigError("bfloat16 rounds more coarsely than 8 bits: leave bf16 out of this schedule")

    def resolved(self, target: Target) -> QuantizationAware:
        """The same with every option fixed for a target."""
        from farthing.forge.quantize.faking import static

        fixed = static(self).resolved(target)
        settled = replace(
            self,
            schedule=replace(self.schedule, bf16=False),
            activations=fixed.activations,
            reduce_range=fixed.reduce_range,
        )
        made: QuantizationAware = TrainingPass.resolved(settled, target)  # type: ignore[assignment]
        return made

    def work(self, model: Model, target: Target, task: Task, workshop: Workshop) -> Model:
        """Raises UnsupportedError for a model that cannot be quantized or trained, TaskError for unusable data."""
        from farthing.forge.quantize.faking import trained

        return trained(
            replace(self, schedule=replace(self.schedule, bf16=False)), model, target, task, workshop
        )
