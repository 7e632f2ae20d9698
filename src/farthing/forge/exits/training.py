"""Early-exit training: a classifier gets exits on its way, and is trained on with all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from msgspec.structs import replace

from farthing.bundle import Exits
from farthing.errors import ConfigError
from farthing.forge.training.passes import TrainingPass
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

NAME = "exits.train.v1"


class ExitTraining(TrainingPass, frozen=True, kw_only=True):
    """Add exits to a classifier in ONNX, and train the whole on: BranchyNet.

    The loss is that of the last exit plus ``weight`` times that of each other one (Teerapittayanon et al. 2016,
    https://arxiv.org/abs/1709.01686). An exit can learn from the last one, too, as in Zhang et al. 2019
    (https://arxiv.org/abs/1905.08094), but from its outputs alone. A teacher teaches the last exit.

    The result is one model: its first output is the one it had, the others are those of the exits, in order.

    Attributes:
        places: ONNX tensors that exits are put behind, in order; empty: planned.
        count: how many exits are planned, at even shares of the multiply-accumulates; fewer if there are no so many
            places.
        head: what an exit is made of: ``pool``: global average pooling and a dense layer; ``conv``: a convolution
            (kernel 3, stride 2) with ReLU before these, which tells more apart early on and costs more.
        width: channels of that convolution.
        weight: of an exit's loss beside the last one's, which is 1.
        from_last: share of an exit's loss that is the distance to the last exit's answer; the rest is the task's.
        accuracy_drop: what the metric may lose against the last exit, 0..1, when thresholds are chosen on validation.
        certainty: with which it loses no more on other samples, from 0.5 (right at the edge on validation) to below 1.
        measure: how sure an exit is, see `farthing.bundle.Exits`.
        thresholds: of all exits but the last; empty: chosen when the trained model is cut. Training needs neither them
            nor ``accuracy_drop``, ``certainty`` and ``measure``.
        norms: train with batch normalization where the file has none, folded away again.
    """

    forms: ClassVar[Mapping[str, str]] = {"float": "branched"}

    schedule: Schedule = Schedule(epochs=20, batch=64)
    places: tuple[str, ...] = ()
    count: int = 2
    head: Literal["pool", "conv"] = "pool"
    width: int = 32
    weight: float = 0.5
    from_last: float = 0.0
    accuracy_drop: float = 0.005
    certainty: float = 0.95
    measure: Literal["confidence", "entropy"] = "confidence"
    thresholds: tuple[float, ...] = ()
    norms: bool = True

    def __post_init__(self) -> None:
        for name in ("count", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is a whole number from 1, not {getattr(self, name)}")
        for name in ("from_last", "accuracy_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")
        if not 0.5 <= self.certainty < 1:
            raise ConfigError(
                f"certainty is a share from 0.5 (validation taken at its word) to below 1, not {self.certainty}"
            )
        if not 0 < self.weight < math.inf:
            raise ConfigError(
                f"weight is above 0, not {self.weight}: an exit that learns nothing is of no use"
            )
        if len({*self.places}) < len(self.places):
            raise ConfigError(f"places name a tensor twice: {', '.join(self.places)}")
        if self.places and self.thresholds and len(self.places) != len(self.thresholds):
            raise ConfigError(
                f"{len(self.thresholds)} thresholds for {len(self.places)} places: give one for each"
            )
        Exits(thresholds=self.thresholds)

    def planned(self, model: Model, target: Target, task: Task, workshop: Workshop) -> ExitTraining:
        """The same with the places filled in, or held against the graph."""
        from farthing.forge.exits.places import planned

        return replace(self, places=planned(self, model, task))

    def work(self, model: Model, target: Target, task: Task, workshop: Workshop) -> Model:
        """Raises UnsupportedError for what is no classifier or has no place for exits, TaskError without its data."""
        from farthing.forge.exits.joint import trained

        return trained(self.planned(model, target, task, workshop), model, task, workshop)
