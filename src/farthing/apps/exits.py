"""Early exits from end to end: a classifier gets exits, is trained, cut and measured as a device will run it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing import bench, files
from farthing.config import Section, convert, to_json
from farthing.device.serving.parts.exits import EarlyExit, open_exits
from farthing.device.serving.service import Ran
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
TIMED = 128  # samples that are timed
BATCH = 32
TOLD = 3  # rounds over them in which the service says how long its parts computed
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


class Times(Section, frozen=True, kw_only=True):
    """How long samples take in the model as given and in the service: medians over rounds of the two, taken in turns.

    Attributes:
        batch: samples that are handed over at once; a round goes over 128 of them.
        given_ms, exits_ms: mean time of one sample.
        speedup: the ratio of the two, with its interval.
        computing_ms: of ``exits_ms`` what the parts compute; in the rest samples are handed from part to part.
        pays_from_ms: how long a sample would have to take in a model as given for exits to be as fast, if as many left
            early and the parts computed the same share of it; None if the parts compute no less than the whole.
    """

    batch: int
    given_ms: float
    exits_ms: float
    speedup: Interval
    computing_ms: float
    pays_from_ms: float | None


class EarlyExits(Section, frozen=True, kw_only=True):
    """A classifier with exits, measured.

    Attributes:
        model, task, metric: what was given exits, and on what.
        engine: what ran the parts and the model as given, as in ``onnxruntime 1.31.1, 1 thread``.
        step: of a recipe that makes the same model again, with places and thresholds.
        exits: in order.
        given_macs: multiply-accumulates of the model as given.
        judged: the validation split, which the thresholds were chosen on, and the test split if the task has one.
        times: of validation samples, one after another, and in batches if the model takes any.
    """

    model: str
    task: str
    metric: str
    engine: str
    step: Step
    exits: tuple[Exit, ...]
    given_macs: int
    judged: tuple[Judged, ...]
    times: tuple[Times, ...]


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
    wanted = options or ExitTraining()
    made, (step,) = apply(
        [_training(wanted)], model, Target.find("this"), task, cache, Workshop(listener=listener)
    )
    listener(Progress(stage="exits", text="choosing thresholds on validation, and cutting"))
    trained = _choosing(wanted, convert(step.options, ExitTraining, NAME))
    parts = parted(made, trained, task, out, engine=engine, settings=settings)
    step = Step(use=NAME, options=stored(msgspec.structs.replace(trained, thresholds=parts.exits.thresholds)))
    listener(Progress(stage="exits", text="measuring the parts"))
    with ExitStack() as stack:
        whole, last = (stack.enter_context(open_engine(one, engine, settings)) for one in (model, made))
        heard: list[Ran] = []
        service, told = (
            stack.enter_context(open_exits(parts.bundle, engine=engine, options=settings, listener=listener))
            for listener in (None, heard.append)
        )
        pace = _Pace(model, task, whole, service, _Told(told, heard))
        found = _Measuring(model, made, task, whole, last, service, parts).report(
            step, trained.places, pace, settings or EngineOptions()
        )
    files.write(out / REPORT, to_json(found))
    return found


def _training(options: ExitTraining) -> Step:
    """The step that trains, without what thresholds are chosen by: other ones need no other training."""
    return Step(use=NAME, options=stored(_choosing(ExitTraining(), options)))


def _choosing(wanted: ExitTraining, training: ExitTraining) -> ExitTraining:
    """The options of a training, with those of another by which thresholds are chosen."""
    return msgspec.structs.replace(
        training,
        accuracy_drop=wanted.accuracy_drop,
        certainty=wanted.certainty,
        measure=wanted.measure,
        thresholds=wanted.thresholds,
    )


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


class _All(_AsEngine):
    """An engine that answers all of some requests, one after another, whatever it is fed.

    Samples that leave early take less time than others, so it is the sum over them that is compared.
    """

    def __init__(self, engine: Engine, requests: Sequence[Tensors]) -> None:
        super().__init__(engine)
        self._engine, self._requests = engine, requests

    def run(self, feeds: Tensors) -> dict[str, Array]:
        """The last answer."""
        return [self._engine.run(request) for request in self._requests][-1]


class _Told(NamedTuple):
    """A service, and what it tells of each request that it answered."""

    service: EarlyExit
    heard: list[Ran]

    def computing(self, requests: Sequence[Tensors]) -> float:
        """The share of the time for some requests in which the parts computed."""
        shares = []
        for _ in range(TOLD):
            self.heard.clear()
            began = time.perf_counter()
            for request in requests:
                self.service.answer(request)
            shares.append(sum(ran.compute for ran in self.heard) / (time.perf_counter() - began))
        return float(np.median(shares))


class _Pace:
    """Times the model as given beside the service."""

    def __init__(self, model: Model, task: Task, given: Engine, service: EarlyExit, told: _Told) -> None:
        self._model, self._task, self._given, self._told = model, task, given, told
        self._cascade = _Cascade(service)

    def times(self) -> tuple[Times, ...]:
        """One sample at a time, and in batches if the model takes any."""
        sizes = {bench.batch_size(self._model.manifest, size) for size in (1, BATCH)}
        return tuple(self._timed(size) for size in sorted(sizes))

    def _timed(self, batch: int) -> Times:
        split, manifest = self._task.split("validation"), self._model.manifest
        count = max(batch, min(TIMED, len(split)) // batch * batch)
        picks = np.linspace(0, len(split) - 1, count).round().astype(np.int64).reshape(-1, batch)
        fed = [bench.feeds(self._task, split, manifest, rows) for rows in picks]
        turns = [(_All(engine, fed), fed[:1]) for engine in (self._given, self._cascade)]
        whole, cascade = bench.race(turns, RULE)
        given, exits = (float(np.median(one.calls)) * 1000 / count for one in (whole, cascade))
        computing = exits * self._told.computing(fed)
        return Times(
            batch=batch,
            given_ms=given,
            exits_ms=exits,
            speedup=cascade.over(whole),
            computing_ms=computing,
            pays_from_ms=(exits - computing) / (1 - computing / given) if computing < given else None,
        )


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
    ) -> None:
        self._model, self._made, self._task, self._parts = model, made, task, parts
        self._given, self._last, self._service = given, last, service
        self._cascade = _Cascade(service)

    def report(self, step: Step, places: Sequence[str], pace: _Pace, settings: EngineOptions) -> EarlyExits:
        """All that is measured."""
        splits: list[SplitName] = ["validation", "test"] if "test" in self._task.splits else ["validation"]
        judged = tuple(self._judged(name) for name in splits)
        thresholds = [*self._parts.exits.thresholds, None]
        rows = zip(in_order(self._made), [*places, ""], thresholds, self._parts.costs, strict=True)
        return EarlyExits(
            model=self._model.manifest.name,
            task=self._task.name,
            metric=self._task.metric.name,
            engine=f"{self._given.name} {self._given.version}, {settings}",
            step=step,
            exits=tuple(Exit(name=n, place=p, threshold=t, macs=m) for n, p, t, m in rows),
            given_macs=costs_of(
                self._model, bench.first_feeds(self._task, "validation", self._model.manifest)
            )[-1],
            judged=judged,
            times=pace.times(),
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
