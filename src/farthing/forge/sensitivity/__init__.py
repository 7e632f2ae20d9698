"""Sensitivity: what each operator of a model suffers from each precision, and which of them should stay in float.

Cheap questions first. Signal-to-quantization-noise ratios come from a few calibration samples, for every operator: it
alone is changed, and only what follows it runs again. The task's metric is asked for the worst few, on a subset of
validation. The whole validation split is scored for the mixture that is proposed, which bisection on the subset found.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path

from farthing.assets import default_cache
from farthing.bench.machine import Here
from farthing.errors import ConfigError, UnsupportedError, nearest
from farthing.forge import arguments, graph
from farthing.forge.apply import versions
from farthing.forge.cache import Cache
from farthing.forge.evaluate import PROXY_SAMPLES
from farthing.forge.ladder import QUANTIZED, STATIC
from farthing.forge.sensitivity.analysis import Analysis
from farthing.forge.sensitivity.losses import SAMPLES
from farthing.forge.sensitivity.precisions import PRECISIONS, Place
from farthing.forge.sensitivity.result import Sensitivity
from farthing.model import Model, as_model
from farthing.recipe import Listener, ignore
from farthing.target import Target
from farthing.task import Task, as_task

__all__ = ["PRECISIONS", "Sensitivity", "sensitivity"]

SCORED = 3


def sensitivity(
    model: Model | Path | str,
    task: Task | Path | str,
    target: Target | str = "this",
    *,
    precisions: Sequence[str] = tuple(PRECISIONS),
    samples: int = SAMPLES,
    scored: int | None = SCORED,
    subset: int = PROXY_SAMPLES,
    limit: float | None = 0.01,
    engine: str = "onnxruntime",
    cache: Path | None = None,
    listener: Listener = ignore,
    command: str = "",
) -> Sensitivity:
    """Look at every operator in every precision.

    Args:
        model: a float ONNX model, or its path; it is fused first, as a search does.
        task: data and metric, or what `farthing.find_task` finds them by.
        target: the device that int8 is chosen for.
        precisions: names out of `PRECISIONS`.
        samples: calibration samples behind each signal-to-noise ratio.
        scored: operators of each precision, the worst first, whose loss of the metric is measured; None for all.
        subset: validation samples for that.
        limit: what the metric may lose: the fewest operators are looked for that must stay float for int8 to keep it.
            None looks for none.
        engine: what runs the models; it has to read ONNX.
        cache: directory for results; ``~/.cache/farthing`` if None.
        listener: called with `Progress` events, stage ``sensitivity``.
        command: how the call can be repeated, for the page.

    Raises:
        UnsupportedError: no float ONNX model, or one in which nothing can be quantized.
        ConfigError: a precision that is not known, or a number out of range.
        FarthingError: bad input (see `farthing.errors`).
    """
    chosen = _checked(precisions, samples, scored, subset, limit)
    start = time.perf_counter()
    given, task = as_model(model), as_task(task, cache)
    place = Place(
        Target.find(target) if isinstance(target, str) else target, task, Cache(cache or default_cache())
    )
    check_model(given, task)
    analysis = Analysis(given, place, engine, samples, subset, listener)
    analysis.lose(chosen)
    joins = analysis.joins()
    return Sensitivity(
        model_name=given.manifest.name,
        model=given.digest,
        task_name=task.name,
        metric=task.metric.name,
        higher_is_better=task.metric.higher_is_better,
        precisions=chosen,
        operators=analysis.operators(scored),
        whole=analysis.whole(),
        joins=joins,
        mixture=None if limit is None else analysis.mixture(limit, joins),
        samples=samples,
        subset=min(subset, len(task.split("validation"))),
        engine=analysis.engine,
        target=place.target.name,
        notes=tuple(analysis.notes),
        machine=Here().description,
        versions=versions(STATIC),
        command=command,
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - start,
    )


def _checked(
    precisions: Sequence[str], samples: int, scored: int | None, subset: int, limit: float | None
) -> tuple[str, ...]:
    for name in precisions:
        if name not in PRECISIONS:
            raise ConfigError(f"no precision is called {name!r}; {nearest(name, PRECISIONS)}")
    if not precisions:
        raise ConfigError(f"there is nothing to look at: name a precision, of {', '.join(PRECISIONS)}")
    if samples < 1 or subset < 1 or (scored or 0) < 0:
        raise ConfigError(
            f"samples and subset are from 1, and scored from 0, not {samples}, {subset}, {scored}"
        )
    if limit is not None and not 0 <= limit < 1e9:
        raise ConfigError(f"the limit is what the metric may lose, a number from 0, not {limit}")
    return tuple(name for name in PRECISIONS if name in precisions)


def check_model(model: Model, task: Task) -> None:
    """Refuse what cannot be analysed.

    Raises:
        UnsupportedError: no ONNX model, or one that is quantized.
        TaskError: the task does not fit, or lacks data.
    """
    arguments.check_task(task, model)
    name, form = model.manifest.name, model.manifest.format
    if form != "onnx":
        raise UnsupportedError(
            f"{name} is {form}: sensitivity is measured on ONNX; convert what it was made of"
        )
    if any(node.op_type in QUANTIZED for node in graph.nodes(graph.load(model.file).graph)):
        raise UnsupportedError(f"{name} is quantized already: give the float model that it was made of")
