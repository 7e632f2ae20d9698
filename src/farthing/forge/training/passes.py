"""What passes that train have in common. Needs no PyTorch, so that recipes are read without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from msgspec.structs import replace

from farthing import files
from farthing.config import Section
from farthing.errors import ConfigError, ModelError
from farthing.forge.training.distillation import Distillation
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Model, checked
from farthing.recipe import PassSection
from farthing.target import Target
from farthing.task import Task

if TYPE_CHECKING:
    from farthing.forge.trainable import Trainable
    from farthing.forge.training.loop import Hook
    from farthing.forge.training.samples import Samples

SELF = "self"


class TrainingPass(PassSection, frozen=True, kw_only=True):
    """Base of passes that train: a subclass says what it does in ``work``, which gets a workshop as well.

    Attributes:
        schedule: how it trains; ``bf16: auto`` is settled when the recipe is resolved.
        teacher: who teaches: ``self`` is the model that the recipe began with (by itself, the one given), a path that
            of a model directory, a zip of one or a model file; several are asked together; none if empty.
        distillation: what is learned from them.
        teacher_digests: of each teacher that is not ``self``; filled in when the recipe is resolved, so that a replay
            knows them again.
    """

    reads: ClassVar[tuple[str, ...]] = ("train",)
    libraries: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxruntime")
    forms: ClassVar[Mapping[str, str]] = {"float": "float"}

    schedule: Schedule = Schedule()
    teacher: str | tuple[str, ...] = ""
    distillation: Distillation = Distillation()
    teacher_digests: tuple[str, ...] = ()

    def resolved(self, target: Target) -> Section:
        """The same pass with its arithmetic and its teachers settled.

        Raises:
            ModelError: a teacher is not there.
            ConfigError: features without a teacher.
        """
        if self.distillation.features and not self._named:
            raise ConfigError("`features` are learned from a teacher: name one in `teacher`")
        digests = self.teacher_digests or tuple(digest_of(name) for name in self._named if name != SELF)
        return replace(
            self, schedule=replace(self.schedule, bf16=self.schedule.in_bf16), teacher_digests=digests
        )

    def within(self, workshop: Workshop) -> Callable[[Model, Target, Task], Model]:
        """The same pass with progress, and with checkpoints that outlive a kill."""
        return partial(self.work, workshop=workshop)

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        return self.work(model, target, task, Workshop())

    def work(self, model: Model, target: Target, task: Task, workshop: Workshop) -> Model:
        """What the pass does."""
        raise NotImplementedError

    def teaching(self, model: Model, workshop: Workshop) -> list[Model]:
        """The teachers' models.

        Args:
            model: as the pass got it.

        Raises:
            ModelError: one is not there, or is another than the recipe was made with.
        """
        digests = iter(self.teacher_digests)
        given = workshop.given or model
        return [given if name == SELF else opened(name, model, next(digests, "")) for name in self._named]

    def train(
        self,
        student: Trainable,
        samples: Samples,
        model: Model,
        workshop: Workshop,
        hooks: Sequence[Hook] = (),
    ) -> None:
        """Train a student as the schedule says, with the teachers there are; it is left in evaluation mode.

        Args:
            student: what is trained.
            samples: what it is trained on.
            model: as the pass got it: who teaches as ``self`` where no recipe began with another.
            workshop: keeps checkpoints and hears of progress.
            hooks: take part, in their order.

        Raises:
            FarthingError: as `farthing.forge.training.lesson.lesson` and `farthing.forge.training.loop.train`.
        """
        from farthing.forge.training.lesson import lesson
        from farthing.forge.training.loop import train

        teachers = self.teaching(model, workshop)
        with lesson(student, samples, self.schedule, teachers, self.distillation, workshop.listener) as (
            module,
            loss,
        ):
            train(module, samples, loss, self.schedule, workshop=workshop, hooks=hooks)

    @property
    def _named(self) -> Sequence[str]:
        return [self.teacher] if isinstance(self.teacher, str) and self.teacher else [*self.teacher]


def digest_of(name: str) -> str:
    """SHA-256 of a model at a path: of the file, or of the model in a directory.

    Raises:
        ModelError: there is none.
    """
    place = Path(name)
    if place.is_dir():
        return Model.open(place).digest
    try:
        return files.file_digest(place)
    except OSError as error:
        raise ModelError(f"cannot read the teacher {name}: {error.strerror or error}") from error


def opened(name: str, student: Model, digest: str) -> Model:
    """The model at a path; a bare file takes over how pictures are prepared, and what outputs mean, from the student.

    Raises:
        ModelError: there is none, or it has another digest.
    """
    from farthing.forge.convert import convert
    from farthing.forge.convert.recognise import kind_of

    found = digest_of(name)
    if digest and found != digest:
        raise ModelError(
            f"the teacher {name} is {found[:12]}, the recipe was made with {digest[:12]}: put that one there"
        )
    place = Path(name)
    if place.is_dir() or kind_of(place, place.read_bytes()) == "model":
        return Model.open(place)
    manifest = checked(student.manifest, inputs=(), outputs=(), files={}, quantization=None, lineage=())
    return convert(place, manifest=manifest, keep=True).model
