"""What stands in the way of a good run, and how to mend it: environment, machine, model, task and target.

It looks at the real project and the real machine; it installs nothing, changes nothing and sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from farthing.errors import FarthingError
from farthing.forge.doctor.finding import Area, Diagnosis, Finding, Status, problem
from farthing.model import Model
from farthing.target import THIS, Budget
from farthing.task import Task

PartT = TypeVar("PartT")

__all__ = ["Area", "Diagnosis", "Finding", "Status", "examine"]


def examine(
    model: Callable[[], Model] | None = None,
    task: Callable[[], Task] | None = None,
    target: str = THIS,
    *,
    budget: Budget | None = None,
    environment: Mapping[str, str] | None = None,
    cache: Path | None = None,
    boards: Path | None = None,
    root: Path = Path("/"),
) -> Diagnosis:
    """Look at everything a run stands on.

    Args:
        model, task: open what the run is about; what they raise is a finding.
        target: the device: ``this``, a board of ``farthing target``, one of the catalogue, or a file.
        budget: what the samples must be able to show; ``accuracy_drop<=0.01`` if None.
        environment: variables of the process, as in ``os.environ``; None looks at none.
        cache: directory for results and downloads; ``~/.cache/farthing`` if None.
        boards: directory of the user's boards; None knows none.
        root: where ``/proc`` and ``/sys`` are.
    """
    from farthing.assets import default_cache
    from farthing.forge.doctor.machine import machine
    from farthing.forge.doctor.packages import packages
    from farthing.forge.doctor.place import is_board, place

    timed_here = not is_board(target, boards)
    found = [
        *packages(environment or {}, root),
        *machine(environment or {}, cache or default_cache(), root, timed_here),
    ]
    opened_model, broken = _opened("model", model)
    opened_task, missing = _opened("task", task)
    found += [*broken, *missing]
    found += _of_the_run(opened_model, opened_task, budget or Budget(accuracy_drop=0.01))
    if target != THIS or opened_model:
        found += place(target, boards, opened_model)
    return Diagnosis(findings=tuple(found))


_MADE_BY: dict[Area, str] = {
    "model": "if the path is right, `farthing convert SOURCE --out DIRECTORY` makes a sound one",
    "task": "if the path is right, `farthing init MODEL --data DATA --out DIRECTORY` writes a sound one",
}


def _opened(area: Area, opens: Callable[[], PartT] | None) -> tuple[PartT | None, list[Finding]]:
    """What opens, or the finding that it does not."""
    if opens is None:
        return None, []
    try:
        return opens(), []
    except FarthingError as error:
        return None, [problem(area, "opens", f"{type(error).__name__}: {error}", _MADE_BY[area])]


def _of_the_run(model: Model | None, task: Task | None, budget: Budget) -> Iterator[Finding]:
    from farthing.forge.doctor.of_model import of_model
    from farthing.forge.doctor.of_task import of_task

    if model is not None:
        yield from of_model(model)
    if task is not None:
        yield from of_task(task, model, budget)
    if model is not None and task is not None:
        from farthing.forge.doctor.of_heads import of_heads

        yield from of_heads(model, task)
