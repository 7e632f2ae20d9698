"""The pass that puts another, searched network in the place of a model: smaller, faster, taught by it."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from msgspec.structs import replace

from farthing.errors import ConfigError
from farthing.forge.families import Architecture, Family
from farthing.forge.search.deployment import Number
from farthing.forge.search.estimate import Limits
from farthing.forge.training.distill import SMALL, Student
from farthing.forge.training.passes import SELF, TrainingPass
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

ARITHMETIC = "none"


class SearchArchitecture(TrainingPass, frozen=True, kw_only=True):
    """Search small networks for one that does a model's work, and train it, taught by the model.

    Networks are drawn from families of convolutional ones. What they cost comes from a table of their blocks, each
    measured once in the engine that is to run the result, and from arithmetic. The most promising ones are trained,
    most of them for a few epochs only; further ones are proposed from what came of these. Those that no other beats in
    accuracy, time and size are made ready for the engine and scored there; of these the fastest that keeps the accuracy
    is taken.

    Which networks are tried depends on the seed and, where times are measured, on the machine; what is found is written
    into the recipe, so that a replay searches and measures nothing.

    Attributes:
        families: which networks; all of them if empty.
        engine: what is to run the result: blocks are measured in it on the machine; the fastest of those installed that
            are known to suit small networks if empty. ``none`` measures nothing and counts multiply-accumulates and
            bytes, as befits microcontrollers.
        number: ``int8`` or ``float32``: what it computes with there.
        batch: samples a call, where time is measured.
        limits: what the network may cost; see `farthing.forge.search.bounds` for what holds where nothing is said.
        accuracy_drop: most that the metric may fall below the model's on validation.
        prefer: which of several that keep all this: the one with the most ``speed``, or with the most ``accuracy``.
        trials: how many networks are trained.
        hours: after which the search ends, at the end of an epoch, as soon as one network is trained to its end; None
            for no limit. What is found then depends on how fast the machine was.
        start: how many of them are chosen by `proxy` from ``pool`` random ones before results decide.
        pool: see ``start``.
        proxy: what judges untrained networks.
        teacher: as for every training; the model itself unless said otherwise.
        architecture: the network; filled in by the search. Given, it is trained and nothing is searched.
    """

    reads: ClassVar[tuple[str, ...]] = ("train", "validation", "calibration")
    libraries: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxruntime", "optuna")

    schedule: Schedule = Schedule(epochs=27, lr=5e-3)
    teacher: str | tuple[str, ...] = SELF
    families: tuple[Family, ...] = ()
    engine: str = ""
    number: Number = "int8"
    batch: int = 1
    limits: Limits = Limits()
    accuracy_drop: float = 0.01
    prefer: Literal["speed", "accuracy"] = "speed"
    trials: int = 12
    hours: float | None = None
    start: int = 6
    pool: int = 100
    proxy: Literal["snip", "synflow", "naswot"] = "synflow"
    architecture: Architecture | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "trials", "start", "pool"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is a whole number from 1, not {getattr(self, name)}")
        if self.hours is not None and not 0 < self.hours < math.inf:
            raise ConfigError(f"hours is a number above 0, not {self.hours}")
        if not 0 <= self.accuracy_drop < 1:
            raise ConfigError(
                f"accuracy_drop is a share from 0 to 1 (one point is 0.01), not {self.accuracy_drop}"
            )

    def planned(self, model: Model, target: Target, task: Task, workshop: Workshop) -> SearchArchitecture:
        """The same pass with the architecture that a search found.

        Raises:
            UnsupportedError: a model that networks of the families cannot stand in for.
            TaskError: no training data, or a task that does not fit.
            ConfigError: no network of the space keeps the limits.
            NotInstalled: Optuna is missing.
        """
        if self.architecture is not None:
            return self
        from farthing.forge.search.run import Subject, search
        from farthing.forge.training.losses import understood

        subject = Subject(understood(model), model, self.teaching(model, workshop))
        return replace(self, architecture=search(self, subject, target, task, workshop).chosen)

    def work(self, model: Model, target: Target, task: Task, workshop: Workshop) -> Model:
        """Raises TaskError without training data, UnsupportedError for a model it cannot stand in for."""
        planned = self.planned(model, target, task, workshop.part("search"))
        return Student(
            architecture=planned.architecture or SMALL,
            schedule=self.schedule,
            teacher=self.teacher,
            distillation=self.distillation,
            teacher_digests=self.teacher_digests,
        ).work(model, target, task, workshop)
