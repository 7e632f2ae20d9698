"""Early exits from end to end: a classifier gets exits, is trained, cut and measured as a device will run it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing import bench, files
from farthing.config import Section, convert, to_json
from farthing.device.serving.parts.exits import EarlyExit, open_exits
from farthing.engines.base import Engine, Tensors, open_engine
from farthing.errors import TaskError
from farthing.forge.apply import apply, stored
from farthing.forge.cache import Cache
from farthing.forge.exits.cutting import Parted, costs_of, in_order, parted
from farthing.forge.exits.places import check_classifier
from farthing.forge.exits.training import NAME, ExitTraining
from farthing.forge.workshop import Workshop
from farthing.measure import Interval
from farthing.model import Model, TensorSpec
from farthing.options import EngineOptions
from farthing.recipe import Listener, Progress, Step, ignore
from farthing.target import Target
from farthing.task import SplitName, Task

Array = NDArray[Any]
REPORT = "exits.json"
TIMED = 128  # samples that are timed, one after another
RULE = bench.Rule(warmup=2, min_count=20, min_seconds=2.0, max_seconds=30.0)


class Exit(Section, frozen=True, kw_only=True):
    """One exit.

    Attributes:
        name: of its scores in the model.
        place: the tensor it is behind; empty for the last one.
        threshold: how sure it must be; None for the last one.
        macs: multiply-accumulates of a sample up to it, exits before it included.
    """

    name: str
    place: str
    threshold: float | None
    macs: int


class Judged(Section, frozen=True, kw_only=True):
    """What the parts do on a split, as the service answers.

    Attributes:
        split, samples: on what.
        given, whole, cascade: the metric of the model as it was given, of the last exit alone, and of the service.
        drop: of the service against the last exit, on the same samples.
        shares: of the samples that leave at each exit.
        macs: mean multiply-accumulates of a sample.
    """

    split: SplitName
    samples: int
    given: Interval
    whole: Interval
    cascade: Interval
    drop: Interval
    shares: tuple[float, ...]
    macs: float


class EarlyExits(Section, frozen=True, kw_only=True):
    """A classifier with exits, measured.

    Attributes:
        model, task, metric: what was given exits, and on what.
        engine: what ran the parts and the model as given, as in ``onnxruntime 1.31.1, 1 thread``.
        step: of a recipe that makes the same model again, with places and thresholds.
        exits: in order.
        given_macs: multiply-accumulates of the model as given.
        judged: the validation split, which the thresholds were chosen on, and the test split if the task has one.
        given_ms, cascade_ms: mean time of one validation sample, in the model as given and through the service: the
            median over rounds, taken in turns, of the time for 128 of them, one after another.
        speedup: the ratio of the two, with its interval.
    """

    model: str
    task: str
    metric: str
    engine: str
    step: Step
    exits: tuple[Exit, ...]
    given_macs: int
    judged: tuple[Judged, ...]
    given_ms: float
    cascade_ms: float
    speedup: Interval


def early_exits(
    model: Model,
    task: Task,
    out: Path,
    options: ExitTraining | None = None,
    *,
    cache: Cache,
    engine: str = "onnxruntime",
    settings: EngineOptions | None = None,
    listener: Listener = ignore,
) -> EarlyExits:
    """Give a classifier exits, train it, choose thresholds on the validation split, and write the bundle of its parts.

    What a killed call has trained is found again by the same call. The report lies in the bundle as ``exits.json``.

    Args:
        model: in ONNX, in float.
        task: with train and validation splits; a test split is looked at once, at the end.
        out: the bundle's directory.
        options: of the training; the defaults if None.
        cache: where the trained model is kept.
        engine, settings: what runs the parts.
        listener: hears of progress.

    Raises:
        TaskError: the task lacks a split or tells no classes apart.
        UnsupportedError: not a classifier, no place for exits, or no thresholds that keep the accuracy.
        ModelError: no node makes one of the places.
        StorageError: the bundle cannot be written.
    """
    check_classifier(model, task)
    _check_splits(task)
    step = Step(use=NAME, options=stored(options or ExitTraining()))
    made, (step,) = apply([step], model, Target.find("this"), task, cache, Workshop(listener=listener))
    listener(Progress(stage="exits", text="choosing thresholds on validation, and cutting"))
    trained = convert(step.options, ExitTraining, NAME)
    parts = parted(made, trained, task, out, engine=engine, settings=settings)
    step = Step(use=NAME, options=stored(msgspec.structs.replace(trained, thresholds=parts.exits.thresholds)))
    listener(Progress(stage="exits", text="measuring the parts"))
    with ExitStack() as stack:
        whole, last = (stack.enter_context(open_engine(one, engine, settings)) for one in (model, made))
        service = stack.enter_context(open_exits(parts.bundle, engine=engine, options=settings))
        found = _Measuring(
            model, made, task, whole, last, service, parts, settings or EngineOptions()
        ).report(step, trained.places)
    files.write(out / REPORT, to_json(found))
    return found


def _check_splits(task: Task) -> None:
    names: tuple[SplitName, ...] = ("train", "validation")
    for name in names:
        if task.split(name).labels is None:
            raise TaskError(
                f"the {name} split of task {task.name} has no labels: exits are trained and judged by them"
            )


class _AsEngine:
    """What answers like an engine, so that it is fed, judged and timed as engines are; closed by its owner."""

    name: ClassVar[str] = "exits"
    formats: ClassVar[frozenset[str]] = frozenset()
    concurrency: ClassVar[Literal["threads", "serial"]] = "serial"
    stateful = False
    version = ""

    def __init__(self, of: Engine | EarlyExit) -> None:
        self.inputs: Sequence[TensorSpec] = of.inputs
        self.outputs: Sequence[TensorSpec] = of.outputs

    @classmethod
    def installed(cls) -> str:
        """Nothing has to be."""
        return ""

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """What it answers."""
        raise NotImplementedError

    def session(self) -> Self:
        """Itself: it remembers nothing."""
        return self

    def close(self) -> None:
        """Its owner does."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Cascade(_AsEngine):
    """A service of exits."""

    def __init__(self, service: EarlyExit) -> None:
        super().__init__(service)
        self._service = service

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """The answer of the service."""
        return dict(self._service.answer(feeds).outputs)


class _OneByOne(_AsEngine):
    """An engine that answers all of some samples, one after another, whatever it is fed.

    Samples that leave early take less time than others, so it is the sum over them that is compared.
    """

    def __init__(self, engine: Engine, samples: Sequence[Tensors]) -> None:
        super().__init__(engine)
        self._engine, self._samples = engine, samples

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """The last answer."""
        return [self._engine.run(sample) for sample in self._samples][-1]


class _Measuring:
    """The parts beside the model as given and the trained one in one piece."""

    def __init__(
        self,
        model: Model,
        made: Model,
        task: Task,
        given: Engine,
        last: Engine,
        service: EarlyExit,
        parts: Parted,
        settings: EngineOptions,
    ) -> None:
        self._settings = settings
        self._model, self._made, self._task, self._parts = model, made, task, parts
        self._given, self._last, self._service = given, last, service
        self._cascade = _Cascade(service)

    def report(self, step: Step, places: Sequence[str]) -> EarlyExits:
        """All that is measured."""
        splits: list[SplitName] = ["validation", "test"] if "test" in self._task.splits else ["validation"]
        judged = tuple(self._judged(name) for name in splits)
        split = self._task.split("validation")
        picks = np.linspace(0, len(split) - 1, min(TIMED, len(split))).round().astype(np.int64)
        manifest = self._model.manifest
        ones = [bench.padded_to_batch(pick, manifest) for pick in picks[:, None]]
        fed = [bench.feeds(self._task, split, manifest, one) for one in ones]
        turns = [(_OneByOne(engine, fed), fed[:1]) for engine in (self._given, self._cascade)]
        whole, cascade = bench.race(turns, RULE)
        thresholds = [*self._parts.exits.thresholds, None]
        rows = zip(in_order(self._made), [*places, ""], thresholds, self._parts.costs, strict=True)
        return EarlyExits(
            model=self._model.manifest.name,
            task=self._task.name,
            metric=self._task.metric.name,
            engine=f"{self._given.name} {self._given.version}, {self._settings}",
            step=step,
            exits=tuple(Exit(name=n, place=p, threshold=t, macs=m) for n, p, t, m in rows),
            given_macs=costs_of(self._model, fed[0])[-1],
            judged=judged,
            given_ms=float(np.median(whole.calls)) * 1000 / len(fed),
            cascade_ms=float(np.median(cascade.calls)) * 1000 / len(fed),
            speedup=cascade.over(whole),
        )

    def _judged(self, name: SplitName) -> Judged:
        """The three of them on a split."""
        split, metric = self._task.split(name), self._task.metric
        before = np.asarray(self._service.stats().exits)
        found = [
            bench.outputs(engine, manifest, self._task, split)
            for engine, manifest in (
                (self._given, self._model.manifest),
                (self._last, self._made.manifest),
                (self._cascade, self._model.manifest),
            )
        ]
        left = np.asarray(self._service.stats().exits) - before
        given, whole, cascade = (metric.score(one, split.labels, None, split.groups) for one in found)
        return Judged(
            split=name,
            samples=len(split),
            given=given,
            whole=whole,
            cascade=cascade,
            drop=metric.drop(found[1], found[2], split.labels, None, split.groups),
            shares=tuple((left / left.sum()).tolist()),
            macs=float(left @ np.asarray(self._parts.costs) / left.sum()),
        )
