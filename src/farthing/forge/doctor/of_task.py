"""The task: whether its splits are apart, its classes there, its samples enough, and its pictures whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np

from farthing import picture
from farthing.errors import FarthingError
from farthing.forge.doctor.finding import Finding, ok, problem, warning
from farthing.forge.verdict import unresolved
from farthing.measure import mean_interval
from farthing.model import Model
from farthing.target import Budget
from farthing.task import CLASS_METRICS, ImageFiles, Split, Task

MOST = 50_000  # samples of a split that are held against the others
FEW_CALIBRATION = 100
FEW_OF_A_CLASS = 10
LOPSIDED = 20


def of_task(task: Task, model: Model | None, budget: Budget) -> Iterator[Finding]:
    """Findings about a task, held against the model if there is one."""
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in task.splits.items())
    yield ok("task", "splits", f"{task.name}, by {task.metric.name}: {sizes}")
    if model is not None:
        yield _fits(task, model)
    yield from _present(task)
    yield from _apart(task)
    yield _enough(task, budget)
    yield from _classes(task)
    yield from _pictures(task)


def _fits(task: Task, model: Model) -> Finding:
    try:
        task.check(model.manifest)
    except FarthingError as error:
        mend = "change the task's file or the manifest accordingly; `farthing init MODEL --data DATA` writes both"
        return problem("task", "model", str(error), mend)
    return ok("task", "model", f"it feeds {model.manifest.name}")


def _present(task: Task) -> Iterator[Finding]:
    if "validation" not in task.splits:
        words = "there is no such split: nothing can be judged"
        yield problem(
            "task", "validation", words, "name it under `splits` in the task's file, or give it a share"
        )
    if "test" not in task.splits:
        words = "there is no such split: the accuracy reported is that of the data that chose the winner"
        yield warning("task", "test", words, "keep some samples apart, and name them `test` under `splits`")
    calibration = task.splits.get("calibration")
    if calibration is None:
        mend = f"add a split `calibration` of {FEW_CALIBRATION} samples or more; it needs no labels"
        yield problem("task", "calibration", "neither calibration nor train data: int8 needs some", mend)
    elif len(calibration) < FEW_CALIBRATION:
        words = f"{len(calibration)} samples: ranges of activations will be a matter of luck"
        yield warning(
            "task", "calibration", words, f"give it {FEW_CALIBRATION} or more, of every kind there is"
        )
    else:
        yield ok("task", "calibration", f"{len(calibration):,} samples")


def _apart(task: Task) -> Iterator[Finding]:
    """Whether a sample is in two splits: then the score is of memory."""
    held: dict[str, set[bytes]] = {}
    for name, split in task.splits.items():
        try:
            held[name] = fingerprints(split)
        except OSError:
            return  # `_pictures` says which file cannot be read
    clean = True
    for one, other in combinations(held, 2):
        if {one, other} == {"train", "calibration"}:
            continue
        common = len(held[one] & held[other])
        if common:
            clean = False
            words = f"{common:,} samples are in {one} and in {other}"
            mend = "take them out of one: scores on samples that the model was made with flatter it"
            yield problem("task", "overlap", words, mend)
    if clean:
        partly = any(len(split) > MOST for split in task.splits.values())
        looked = f" among the first {MOST:,} of each" if partly else ""
        yield ok("task", "overlap", f"no sample is in two splits{looked}")
    for name in ("validation", "test"):
        twice = min(len(task.splits[name]), MOST) - len(held[name]) if name in held else 0
        if twice and task.splits[name].groups is None:
            words = f"{twice:,} samples of {name} are there more than once: intervals are too narrow by that"
            yield warning("task", "repeated", words, "keep one of each, or give `groups`")


def fingerprints(split: Split) -> set[bytes]:
    """A hash of every sample, of the first `MOST`: of its bytes, or of its file.

    Raises:
        OSError: a file that cannot be read.
    """
    if isinstance(split, ImageFiles):
        files = {str(path) for path in split.inputs[""][:MOST]}
        return {hashlib.sha256(Path(path).read_bytes()).digest() for path in files}
    arrays = [np.ascontiguousarray(array[:MOST]) for _, array in sorted(split.inputs.items())]
    return {
        hashlib.sha256(b"".join(array[row].tobytes() for array in arrays)).digest()
        for row in range(len(arrays[0]))
    }


def _enough(task: Task, budget: Budget) -> Finding:
    """Whether the samples can show what the budget asks."""
    split = task.splits.get("validation")
    if split is None:
        return problem("task", "resolution", "no validation samples", "add a split `validation`")
    trouble = unresolved(len(split), budget, task.metric)
    if trouble:
        return problem(
            "task", "resolution", trouble, "give the task more validation samples, or a larger budget"
        )
    scores = np.zeros(len(split))
    scores[: max(1, len(split) // 10)] = 1.0
    spread = mean_interval(scores, split.groups)
    width = 50 * (spread.high - spread.low)
    independent = "" if split.groups is None else f" in {len(np.unique(split.groups)):,} groups"
    words = f"{len(split):,} validation samples{independent}: a score near 90 % is sure to {width:.1f} points"
    limit = budget.accuracy_drop
    if limit and width > 300 * limit:
        mend = "drops are found sample by sample and are known better than that; more samples make them surer"
        return warning("task", "resolution", f"{words}, the budget is {100 * limit:g} points", mend)
    return ok("task", "resolution", words)


def _classes(task: Task) -> Iterator[Finding]:
    """Whether every class is there, and none in such numbers that the others do not count."""
    split = task.splits.get("validation")
    if split is None or split.labels is None or task.metric.name not in CLASS_METRICS:
        return
    highest = int(max(part.labels.max() for part in task.splits.values() if part.labels is not None))
    counts = np.bincount(split.labels.astype(np.int64), minlength=max(len(task.labels), highest + 1))
    names = [task.labels[i] if i < len(task.labels) else str(i) for i in range(len(counts))]
    absent = [name for name, amount in zip(names, counts, strict=True) if not amount]
    few = [
        f"{name} {amount}" for name, amount in zip(names, counts, strict=True) if 0 < amount < FEW_OF_A_CLASS
    ]
    if absent:
        words = f"{len(absent)} of {len(counts)} classes have no validation sample: {_some(absent)}"
        yield warning(
            "task", "classes", words, "give the split samples of every class: nobody will see them break"
        )
    elif few:
        words = f"fewer than {FEW_OF_A_CLASS} validation samples of {_some(few)}"
        yield warning("task", "classes", words, "add samples of these classes, or judge by macro_f1")
    elif counts.max() > LOPSIDED * counts.min():
        most, least = names[int(counts.argmax())], names[int(counts.argmin())]
        words = f"{counts.max() / counts.min():.0f} times as many samples of {most} as of {least}"
        yield warning("task", "classes", words, "judge by macro_f1, which counts every class the same")
    else:
        yield ok(
            "task", "classes", f"{len(counts)}, {counts.min():,} to {counts.max():,} validation samples each"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _pictures(task: Task) -> Iterator[Finding]:
    """Whether every picture can be decoded to its last byte."""
    paths = [
        path for split in task.splits.values() if isinstance(split, ImageFiles) for path in split.inputs[""]
    ]
    if not paths:
        return
    try:
        picture.check(paths)
    except FarthingError as error:
        yield problem("task", "pictures", str(error), "mend or leave out these files")
    else:
        yield ok("task", "pictures", f"{len(paths):,}, all can be decoded")
