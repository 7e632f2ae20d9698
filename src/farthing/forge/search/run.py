"""A whole search: networks are tried, the best of them made ready for their engine and scored there, one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from msgspec.structs import replace as changed
from torch import nn

from farthing.errors import NotInstalled, TargetError, TrainingError
from farthing.forge.cache import Cache
from farthing.forge.evaluate import Judge
from farthing.forge.families import Architecture
from farthing.forge.runtime import Runtime
from farthing.forge.search.architecture import ARITHMETIC, SearchArchitecture
from farthing.forge.search.bounds import MICROCONTROLLERS, bounded
from farthing.forge.search.deployment import Deployment
from farthing.forge.search.estimate import Estimator, Limits
from farthing.forge.search.explore import AfterEpoch, Explorer, Plan, Tried
from farthing.forge.search.finalists import Jury, Made, best_of, ranked
from farthing.forge.search.lookup import Entry, Lookup
from farthing.forge.search.proxies import score
from farthing.forge.search.space import Space
from farthing.forge.search.start import promising
from farthing.forge.search.validation import Validation
from farthing.forge.training import standin
from farthing.forge.training.distill import SMALL
from farthing.forge.training.lesson import lesson
from farthing.forge.training.loop import Hook, Moment
from farthing.forge.training.samples import Samples
from farthing.forge.workshop import Workshop
from farthing.model import Manifest, Model
from farthing.recipe import Progress
from farthing.scratch import Scratch
from farthing.target import Target
from farthing.task import Task

SUITED = ("litert", "onnxruntime", "openvino")  # fastest first, on small networks
PROXY_SAMPLES = 32


class Subject(NamedTuple):
    """What networks are searched for.

    Attributes:
        manifest: what they take and give, and what it means.
        model: what does the work so far, and what accuracy is compared with; None if nothing does.
        teachers: whom they learn from.
    """

    manifest: Manifest
    model: Model | None
    teachers: Sequence[Model]


class Outcome(NamedTuple):
    """What a search found.

    Attributes:
        finalists: networks that no other beats, the chosen one first.
        tried: all networks.
        engine: what runs them; ``none`` if only operations and bytes were counted.
        runtime: what scored them.
    """

    finalists: list[Made]
    tried: list[Tried]
    engine: str
    runtime: Runtime

    @property
    def chosen(self) -> Architecture:
        """The architecture that was chosen."""
        return self.finalists[0].finalist.tried.architecture


def search(
    options: SearchArchitecture,
    subject: Subject,
    target: Target,
    task: Task,
    workshop: Workshop,
) -> Outcome:
    """Search a network for a task.

    Args:
        options: of the search.
        subject: what it is to do.
        target: what the network is made ready for.
        task: its train, validation and calibration splits are used.
        workshop: with a directory that outlives a kill the search goes on where it was; several processes that are
            given the same one share the work.

    Raises:
        FarthingError: as `SearchArchitecture.planned`.
    """
    with ExitStack() as stack:
        if workshop.state is None:
            workshop = replace(workshop, state=stack.enter_context(Scratch()))
        return _Search(options, subject, target, task, workshop).run()


def take_part(
    options: SearchArchitecture, subject: Subject, target: Target, task: Task, workshop: Workshop
) -> None:
    """Try networks of a search that other processes run, in the directory of its workshop, until there are enough."""
    _Search(options, subject, target, task, workshop).explored()


class _Search:
    def __init__(
        self, options: SearchArchitecture, subject: Subject, target: Target, task: Task, workshop: Workshop
    ) -> None:
        self.options, self.subject, self.target, self.task = options, subject, target, task
        self.workshop, self.machine = workshop, workshop.machine
        self.place = workshop.state or Path()
        self.cache = workshop.cache or Cache(self.place / "cache")
        self.samples = Samples(task, subject.manifest)
        self.shape, self.outputs = standin.form(self.samples)
        self.engine = options.engine or suited(workshop, target)
        name = scored_in(workshop, target) if self.engine == ARITHMETIC else self.engine
        self.deployment = Deployment(engine=name, number=options.number)
        self.runtime = Runtime(engine=name, version=self.machine.version(name))
        self.estimator = Estimator(self.shape, self.outputs, self._lookup(), options.number == "float32")

    def _lookup(self) -> Lookup | None:
        if self.engine == ARITHMETIC:
            return None
        entry: Entry = "tensor" if self.samples.manifest.preprocess is None else "picture"
        listener = self.workshop.listener
        return Lookup(
            self.deployment,
            self.machine,
            self.target,
            self.cache,
            self.options.batch,
            entry,
            listener=listener,
        )

    def run(self) -> Outcome:
        tried, least, judge = self.explored()
        return Outcome(self._finalists(tried, least, judge), tried, self.engine, self.runtime)

    def explored(self) -> tuple[list[Tried], float | None, Judge | None]:
        """All networks that were tried, the score one needs to be of use, and what knows the model as given."""
        options, model = self.options, self.subject.model
        judge = least = None
        if model is not None:
            judge = self._judge(model)
            least = self._least(judge, model)
        plan = Plan(
            space=Space.of(self.shape, options.families),
            limits=self._limits(),
            trials=options.trials,
            epochs=options.schedule.epochs,
            least=least,
            seed=options.schedule.seed,
            startup=options.start,
        )
        validation = Validation(self.task, self.samples.manifest, model, self.samples)
        listener = self.workshop.listener
        explorer = Explorer(
            self.place,
            plan,
            self.estimator,
            self._first,
            self._trained,
            validation.score,
            listener,
            hours=options.hours,
        )
        return explorer.run(), least, judge

    def _limits(self) -> Limits:
        """The limits, with those that nobody gave said."""
        found = bounded(self.options.limits, self.subject.model, self.target, self.task)
        for name, words in (("macs", "the model's own"), ("activation_kb", "the target's memory")):
            if getattr(found, name) != getattr(self.options.limits, name):
                self._say(
                    f"no network may exceed {name} {getattr(found, name):,.0f}, {words}; limits set others"
                )
        return found

    def _judge(self, model: Model) -> Judge:
        return Judge(self.task, model, Runtime.of(model, "", self.machine), self.machine, self.cache)

    def _least(self, judge: Judge, model: Model) -> float:
        """The score that a network must reach to be of use."""
        self._say("scoring the model as given")
        value = judge.score(model, "validation").accuracy.value
        return self.task.metric.upwards(value) - self.options.accuracy_drop

    # Trying -----------------------------------------------------------------------------------------------------

    def _first(self, space: Space, keeps: Callable[[Architecture], bool]) -> Sequence[dict[str, Any]]:
        """What is tried first: the most promising ones; all are given weights by the same seed."""
        self._say("drawing networks to begin with")
        options = self.options
        every = max(1, len(self.samples) // PROXY_SAMPLES)
        batch = self.samples.batch(torch.arange(0, len(self.samples), every)[:PROXY_SAMPLES])

        def built(architecture: Architecture) -> nn.Module:
            return standin.network(architecture, self.samples, options.schedule.seed)

        plain = changed(options.schedule, augment="none")
        with lesson(built(SMALL), self.samples, plain, self.subject.teachers, options.distillation) as (
            _,
            loss,
        ):
            return promising(
                space,
                keeps,
                self.estimator,
                lambda architecture: score(options.proxy, built(architecture), batch, loss),
                options.pool,
                options.start,
                options.schedule.seed,
            )

    def _trained(self, architecture: Architecture, state: Path, after: AfterEpoch) -> nn.Module:
        """The network after its training; one that is done is there at once."""
        options, workshop = self.options, replace(self.workshop, state=state)
        return standin.trained(
            architecture,
            self.samples,
            options.schedule,
            self.subject.teachers,
            options.distillation,
            workshop,
            [_After(after)],
        )

    # Choosing ---------------------------------------------------------------------------------------------------

    def _finalists(self, tried: list[Tried], least: float | None, judge: Judge | None) -> list[Made]:
        able = [one for one in tried if one.finished]
        if not able:
            raise TrainingError(
                f"none of {len(tried)} networks was trained to its end ({tried[-1].refusal if tried else 'no time'}): "
                "allow for more trials, or change the schedule"
            )
        models = [(one, self._model(one)) for one in best_of(able, least)]
        if judge is None:
            judge = self._judge(max(models, key=lambda pair: pair[0].score or 0.0)[1])
        jury = Jury(
            judge,
            self.deployment,
            self.runtime,
            self.target,
            self.task,
            self.cache,
            self.options.accuracy_drop,
        )
        return ranked([jury.judged(one, model) for one, model in models], self.options.prefer)

    def _model(self, one: Tried) -> Model:
        self._say(f"trial {one.number}: making it ready, and scoring it as it will run")
        module = self._trained(one.architecture, self.place / f"trial-{one.number}", _nothing)
        return standin.exported(module, self.subject.manifest, self.samples)

    def _say(self, text: str) -> None:
        self.workshop.listener(Progress(stage="search", text=text))


def _nothing(epoch: int, module: nn.Module) -> None:
    """Hears that an epoch ends, and lets it."""


class _After(Hook):
    """Tells of every epoch that ends."""

    def __init__(self, after: AfterEpoch) -> None:
        self._after = after

    def after_epoch(self, moment: Moment) -> None:
        self._after(moment.epoch + 1, moment.module)


def suited(workshop: Workshop, target: Target) -> str:
    """The engine to search for: the fastest on small networks of those that machine and target have.

    Raises:
        TargetError: there is none.
    """
    if target.arch in MICROCONTROLLERS:
        return ARITHMETIC
    for name in SUITED:
        if (not target.engines or name in target.engines) and _installed(workshop, name):
            return name
    able = ", ".join(target.engines) or "none that is installed"
    raise TargetError(
        f"target {target.name} runs {able}: a search of networks is for {', '.join(SUITED)}, or name `engine: none` "
        "to count operations instead of measuring"
    )


def scored_in(workshop: Workshop, target: Target) -> str:
    """What scores networks whose time is not measured: for a microcontroller LiteRT, which runs the file it takes."""
    tflite = target.arch in MICROCONTROLLERS and _installed(workshop, SUITED[0])
    return SUITED[0] if tflite else SUITED[1]


def _installed(workshop: Workshop, engine: str) -> bool:
    try:
        workshop.machine.version(engine)
    except NotInstalled:
        return False
    return True
