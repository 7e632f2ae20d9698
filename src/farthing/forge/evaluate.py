"""Judge candidates by the task's metric, on the exported file in the engine that will run it, against the baseline."""

from __future__ import annotations

import numpy as np

from farthing import bench
from farthing.config import Section
from farthing.engines.base import EngineOptions, open_engine
from farthing.forge.cache import Cache, key_of
from farthing.measure import Interval
from farthing.metrics import Outputs
from farthing.model import Model
from farthing.task import SplitName, Task

PROXY_SAMPLES = 256


class Score(Section, frozen=True, kw_only=True):
    """A model's metric on a split, and how far it falls below the baseline on the same samples."""

    accuracy: Interval
    drop: Interval
    samples: int


class Judge:
    """Scores models of one task against one baseline in one engine, each question answered once.

    Args:
        baseline: the input model, candidate 0; also the reference of metrics such as ``agreement``.
    """

    def __init__(self, task: Task, baseline: Model, engine: str, version: str, cache: Cache) -> None:
        self._task = task
        self._baseline = baseline
        self._engine = engine
        self._version = version
        self._cache = cache
        self._outputs: dict[tuple[SplitName, int | None], Outputs] = {}

    def score(self, model: Model, split: SplitName, limit: int | None = None, again: bool = False) -> Score:
        """The score on a split, or on ``limit`` samples spread over it; ``again`` runs the model in any case.

        Raises:
            TaskError: outputs are NaN, or the task does not fit.
            EngineError: the model does not run.
        """
        key = key_of(
            "score", model.digest, self._baseline.digest, self._task.digest, split, limit or 0, self._engine, self._version
        )
        return self._cache.value(key, Score, lambda: self._compute(model, split, limit), again)

    def _compute(self, model: Model, split: SplitName, limit: int | None) -> Score:
        data = self._task.split(split)
        picks = self._picks(len(data), limit)
        base = self._base(split, limit)
        same = model.digest == self._baseline.digest
        found = base if same else self._run(model, split, picks)
        labels = None if data.labels is None else data.labels[picks]
        metric = self._task.metric
        return Score(
            accuracy=metric.score(found, labels, base),
            drop=Interval(value=0.0, low=0.0, high=0.0) if same else metric.drop(base, found, labels, base),
            samples=len(picks),
        )

    def _base(self, split: SplitName, limit: int | None) -> Outputs:
        if (split, limit) not in self._outputs:
            picks = self._picks(len(self._task.split(split)), limit)
            self._outputs[split, limit] = self._run(self._baseline, split, picks)
        return self._outputs[split, limit]

    def _run(self, model: Model, split: SplitName, picks: np.ndarray) -> Outputs:
        with open_engine(model, self._engine, EngineOptions(threads=1)) as engine:
            return bench.outputs(engine, model.manifest, self._task, self._task.split(split), picks)

    @staticmethod
    def _picks(count: int, limit: int | None) -> np.ndarray:
        if limit is None or limit >= count:
            return np.arange(count)
        return np.linspace(0, count - 1, limit).round().astype(np.int64)
