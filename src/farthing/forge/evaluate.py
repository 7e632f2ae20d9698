"""Judge candidates by the task's metric, on the exported file in the engine that will run it, against the baseline."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

import farthing
from farthing import bench
from farthing.bench.machine import Machine
from farthing.config import Section
from farthing.errors import ModelError, TaskError
from farthing.forge.cache import Cache, key_of, metric_code
from farthing.forge.runtime import Runtime
from farthing.measure import Interval
from farthing.metrics import Outputs
from farthing.model import Model
from farthing.task import SplitName, Task

Array = NDArray[Any]
PROXY_SAMPLES = 256


def proxy(task: Task) -> int | None:
    """How many validation samples give a first impression; None where the whole split is hardly more."""
    return PROXY_SAMPLES if len(task.split("validation")) > 2 * PROXY_SAMPLES else None


class Score(Section, frozen=True, kw_only=True):
    """A model's metric on a split, and how far it falls below the baseline on the same samples."""

    accuracy: Interval
    drop: Interval
    samples: int


class Judge:
    """Scores models of one task against one baseline, each question answered once.

    Args:
        runtime: what runs the baseline, and a model of which nothing else is said.
        baseline: the input model, candidate 0; also the reference of metrics such as ``agreement``.
    """

    def __init__(self, task: Task, baseline: Model, runtime: Runtime, machine: Machine, cache: Cache) -> None:
        self._task = task
        self._machine = machine
        self._baseline = baseline
        self._runtime = runtime.threads(1)
        self._metric_code = metric_code(task.metric)
        # what may round differently; Farthing's version stands for what feeds the engine and for our metrics
        self._where = [machine.target.arch, *machine.target.isa, farthing.__version__]
        self._cache = cache
        self._outputs: dict[tuple[SplitName, int | None], Outputs] = {}

    def score(
        self,
        model: Model,
        split: SplitName,
        limit: int | None = None,
        runtime: Runtime | None = None,
        again: bool = False,
    ) -> Score:
        """The score on a split, or on ``limit`` samples spread over it; ``again`` runs the model in any case.

        Raises:
            TaskError: outputs are NaN, the metric has no value on this split, or the task does not fit.
            ModelError: the outputs are not those of the baseline.
            EngineError: the model does not run.
        """
        runtime = (runtime or self._runtime).threads(1)
        if self._metric_code is None:
            return self._compute(model, runtime, split, limit)
        data = [self._task.digest, self._metric_code, split, limit or 0]
        compared = [model.digest, runtime, self._baseline.digest, self._runtime]
        key = key_of("score", *compared, *data, *self._where)
        return self._cache.value(key, Score, lambda: self._compute(model, runtime, split, limit), again)

    def _compute(self, model: Model, runtime: Runtime, split: SplitName, limit: int | None) -> Score:
        data = self._task.split(split)
        picks = self._picks(len(data), limit)
        base = self._base(split, limit)
        same = (model.digest, runtime) == (self._baseline.digest, self._runtime)
        found = base if same else self._run(model, runtime, split, picks)
        _compare(base, found)
        labels = None if data.labels is None else data.labels[picks]
        groups = None if data.groups is None else data.groups[picks]
        metric = self._task.metric
        accuracy = metric.score(found, labels, base, groups)
        if not math.isfinite(accuracy.value):
            raise TaskError(
                f"metric {metric.name} has no value on the {split} split: does it hold every class?"
            )
        none = Interval(value=0.0, low=0.0, high=0.0)
        drop = none if same else metric.drop(base, found, labels, base, groups)
        return Score(accuracy=accuracy, drop=drop, samples=len(picks))

    def _base(self, split: SplitName, limit: int | None) -> Outputs:
        if (split, limit) not in self._outputs:
            picks = self._picks(len(self._task.split(split)), limit)
            self._outputs[split, limit] = self._run(self._baseline, self._runtime, split, picks)
        return self._outputs[split, limit]

    def _run(self, model: Model, runtime: Runtime, split: SplitName, picks: Array) -> Outputs:
        """In batches, after one sample alone: timing will run it both ways."""
        data = self._task.split(split)
        with runtime.load(model, self._machine)[0] as engine:
            bench.outputs(engine, model.manifest, self._task, data, picks[:1])
            return bench.outputs(engine, model.manifest, self._task, data, picks)

    @staticmethod
    def _picks(count: int, limit: int | None) -> Array:
        if limit is None or limit >= count:
            return np.arange(count)
        return np.linspace(0, count - 1, limit).round().astype(np.int64)


def _compare(base: Outputs, found: Outputs) -> None:
    """A candidate may leave outputs out, or have more (early exits), but what it answers is the baseline's in name and
    shape.
    """
    whole = found.keys() >= base.keys()
    for name, array in found.items():
        if name not in base and whole:
            continue
        if name not in base:
            raise ModelError(f"output {name!r} is new: the model as given has {', '.join(base)}")
        if array.shape != base[name].shape:
            expected, got = list(base[name].shape[1:]), list(array.shape[1:])
            raise ModelError(f"output {name!r} of a sample has shape {got}, in the model as given {expected}")
