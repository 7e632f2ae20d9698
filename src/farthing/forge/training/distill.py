"""Distillation into another architecture: a small network that takes a model's place, taught by it."""

from __future__ import annotations

from farthing.forge.families import Architecture, Stage
from farthing.forge.training.passes import SELF, TrainingPass
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

SMALL = Architecture(family="plain", stages=tuple(Stage(width=width, stride=2) for width in (8, 16, 32)))


class Student(TrainingPass, frozen=True, kw_only=True):
    """Train a network of a given architecture from nothing, in the place of a model of one input and one output.

    The result has the model's inputs and outputs by name, its preprocessing, labels and decoder.

    Attributes:
        architecture: of the student; a plain network of three convolutions unless said otherwise.
    """

    schedule: Schedule = Schedule(epochs=30)
    teacher: str | tuple[str, ...] = SELF
    architecture: Architecture = SMALL

    def work(self, model: Model, target: Target, task: Task, workshop: Workshop) -> Model:
        """Train the student.

        Raises:
            TaskError: no training data, or a teacher that does not fit.
            UnsupportedError: the model takes or gives something else than one tensor of floats.
            ConfigError: samples are too small for the architecture.
        """
        from farthing.forge.training import standin
        from farthing.forge.training.losses import understood
        from farthing.forge.training.samples import Samples

        samples = Samples(task, understood(model))
        teachers = self.teaching(model, workshop)
        student = standin.trained(
            self.architecture, samples, self.schedule, teachers, self.distillation, workshop
        )
        return standin.exported(student, model.manifest, samples)
