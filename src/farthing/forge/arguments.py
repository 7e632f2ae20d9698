"""What a search is given, before it begins: what cannot be meant is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from msgspec.structs import replace

from farthing import plugins
from farthing.errors import ConfigError, TargetError, TaskError, nearest
from farthing.model import Model
from farthing.options import make_options
from farthing.target import Budget, Target
from farthing.task import Task

Effort = Literal["quick", "normal", "thorough"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
DEFAULT_DROP = 0.01


def check(target: object, budget: object, out: object, engines: object, threads: object) -> None:
    """Refuse arguments of types that mean nothing.

    Raises:
        ConfigError: a budget, directory, engines or thread counts that are none.
        TargetError: neither a target nor a name.
    """
    if not isinstance(target, Target | str):
        raise TargetError(f"a target is a farthing.Target or a name, not {target!r}")
    if not isinstance(budget, Budget | str):
        raise ConfigError(
            f"a budget is a farthing.Budget or text as in 'accuracy_drop<=0.01', not {budget!r}"
        )
    if not isinstance(out, Path | str) or not str(out):
        raise ConfigError(f"`out` is the path of a directory, not {out!r}")
    if not isinstance(engines, list | tuple) or not all(isinstance(name, str) for name in engines):
        raise ConfigError(f"`engines` is a list of names, as in ['onnxruntime'], not {engines!r}")
    if not isinstance(threads, list | tuple | range | set):
        raise ConfigError(f"`threads` is a list of counts, as in [1, 2], not {threads!r}")
    for count in threads:
        make_options(count)


def check_effort(effort: object) -> None:
    """Refuse an effort that is none.

    Raises:
        ConfigError: naming the nearest one.
    """
    if effort not in EFFORTS:
        raise ConfigError(f"no effort is called {effort!r}; {nearest(str(effort), EFFORTS)}")


def with_accuracy(budget: Budget, task: Task) -> Budget:
    """The budget with a limit on accuracy in any case: nothing is returned that nobody judged."""
    metric = task.metric
    if budget.accuracy_min is not None and not metric.higher_is_better:
        raise ConfigError(f"metric {metric.name} is better when lower: limit accuracy_drop, not accuracy_min")
    if (
        metric.higher_is_better and metric.name in plugins.BUILTIN["metric"]
    ):  # ours are shares, but for errors
        budget.of_share(metric.name)
    if budget.accuracy_drop is None and budget.accuracy_min is None:
        return replace(budget, accuracy_drop=DEFAULT_DROP)
    return budget


def check_task(task: Task, model: Model) -> None:
    """Refuse a task that a search of this model cannot be judged or calibrated with.

    Raises:
        TaskError: it does not fit the model, or lacks a split.
    """
    task.check(model.manifest)
    task.split("validation")
    if "calibration" not in task.splits:
        raise TaskError(
            f"task {task.name} has neither calibration nor train data: int8 needs some; add a split"
        )
