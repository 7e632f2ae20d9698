"""Task: what the data is and what "accuracy" means. No framework; arrays, picture files and a metric."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import pkgutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from farthing import plugins
from farthing.errors import FarthingError, PluginError, TaskError, nearest, suggestion
from farthing.files import digest, file_digest
from farthing.metrics import VOID, Metric
from farthing.model import Manifest, TensorSpec
from farthing.picture import load

Array = NDArray[Any]
SplitName = Literal["train", "calibration", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "calibration", "validation", "test")
CLASS_METRICS = {"top1", "top5", "macro_f1"}
PIXEL_METRICS = {"miou"}
CALIBRATION_SAMPLES = 256


class Split:
    """Samples in memory.

    Args:
        inputs: input name -> array with samples along the first axis; the name ``""`` stands for the
            model's only data input.
        labels: one per sample along the first axis, or None.
        groups: which samples belong together (views of one photo, windows of one person, frames of one video), a
            whole number each: intervals of a metric then take groups for independent, not samples. None if every
            sample stands for itself.
    """

    def __init__(
        self, inputs: Mapping[str, Array], labels: Array | None = None, groups: Array | None = None
    ) -> None:
        if not isinstance(inputs, Mapping):
            raise TaskError(
                f"the inputs of a split map names to arrays, but a {type(inputs).__name__} was given: "
                'for a model with one input write Split({"": array}, labels)'
            )
        self.inputs = {name: np.asarray(array) for name, array in inputs.items()}
        self.labels = None if labels is None else np.asarray(labels)
        self.groups = None if groups is None else np.asarray(groups)
        arrays = {f"input {name or 'data'}": array for name, array in self.inputs.items()}
        arrays |= {} if self.labels is None else {"labels": self.labels}
        if any(array.ndim == 0 for array in arrays.values()):
            raise TaskError("an input or the labels are a single number: they need one entry a sample")
        if not self.inputs or len({len(array) for array in arrays.values()}) != 1:
            shown = ", ".join(f"{name} {len(array)}" for name, array in arrays.items() if self.inputs)
            raise TaskError(
                f"inputs and labels of a split differ in their number of samples: {shown or 'no inputs'}"
            )
        self._size = len(next(iter(self.inputs.values())))
        if self.groups is not None and (
            self.groups.shape != (self._size,) or self.groups.dtype.kind not in "iu"
        ):
            raise TaskError(
                f"groups are one whole number for each of {self._size} samples, not {self.groups.dtype} "
                f"of shape {list(self.groups.shape)}"
            )

    def __len__(self) -> int:
        return self._size

    def take(self, picks: Sequence[int] | Array) -> dict[str, Any]:
        """The inputs of some samples: name -> array (or, for picture files, a list of uint8 arrays)."""
        return {name: array[np.asarray(picks, np.int64)] for name, array in self.inputs.items()}

    def subset(self, picks: Sequence[int] | Array) -> Split:
        """A split of some samples."""
        picks = np.asarray(picks, np.int64)
        return type(self)(
            {name: array[picks] for name, array in self.inputs.items()},
            None if self.labels is None else self.labels[picks],
            None if self.groups is None else self.groups[picks],
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, types, shapes and values."""
        arrays = [(f"input {name!r}", array) for name, array in sorted(self.inputs.items())]
        arrays += [] if self.labels is None else [("labels", self.labels)]
        arrays += [] if self.groups is None else [("groups", self.groups)]
        parts = [f"{name} {array.dtype} {array.shape} {_digest_of(array)}" for name, array in arrays]
        return digest("\n".join(parts).encode())

    def check(self, where: str) -> None:
        """Refuse an empty split and NaN.

        Raises:
            TaskError: naming the split and the first bad sample.
        """
        if not len(self):
            raise TaskError(f"{where} is empty: give it samples")
        for name, array in self.inputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                row = int(np.argwhere(~np.isfinite(array.reshape(len(array), -1)).all(1))[0, 0])
                raise TaskError(
                    f"{where}: input {name or 'data'} of sample {row} holds NaN or infinity: clean the data"
                )
            if array.dtype.kind not in "fiub":
                raise TaskError(f"{where}: input {name or 'data'} is {array.dtype}, not numbers")


class ImageFiles(Split):
    """Pictures on disk, decoded when taken. ``inputs[""]`` is an array of paths."""

    def take(self, picks: Sequence[int] | Array) -> dict[str, Any]:
        return {"": [load(path) for path in self.inputs[""][np.asarray(picks, np.int64)]]}

    @cached_property
    def digest(self) -> str:
        try:
            parts = [file_digest(Path(path)) for path in self.inputs[""]]
        except OSError as error:
            raise TaskError(f"cannot read the picture {error.filename}: {error.strerror or error}") from error
        labels = "" if self.labels is None else _digest_of(self.labels)
        groups = [] if self.groups is None else [_digest_of(self.groups)]
        return digest("\n".join([*parts, labels, *groups]).encode())

    def check(self, where: str) -> None:
        if not len(self):
            raise TaskError(f"{where} has no pictures: give it some")


def _digest_of(array: Array) -> str:
    return digest(np.ascontiguousarray(array).tobytes())


class _Declared(dict[str, Split]):
    """Splits of a task's view: the others are there, but a pass that looks at one must say so."""

    def __init__(self, splits: Mapping[str, Split], names: Collection[str]) -> None:
        super().__init__({name: split for name, split in splits.items() if name in names})
        self._others = frozenset(splits) - frozenset(names)

    def __missing__(self, name: str) -> Split:
        if name not in self._others:
            raise KeyError(name)
        raise TaskError(
            f"this pass looks at the {name} split, but does not declare it: add {name!r} to its `reads` "
            f"(now {sorted(self)}), which decides when its cached results still hold"
        )


class Task:
    """Data in four splits, and a metric.

    Search looks at ``validation`` only; ``test`` is scored once, for the winner and the baseline.

    Args:
        name: of the task.
        splits: by name; ``calibration`` defaults to up to 256 samples spread evenly over ``train``.
        metric: a Metric or the name of one.
        labels: class names in the order of the model's output; empty if there are none.
        form: ``image`` for pictures, which the model's manifest says how to preprocess; ``tensor`` for
            arrays that are fed as they are.
        licence: of the data.
        loss: what training makes small, if not what the metric calls for (see `farthing.forge.training.losses`): a
            function, or ``module:function``, which is imported when it is first needed.

    Raises:
        TaskError: a split is empty, holds NaN, or has labels that the metric or ``labels`` rule out. The labels of
            the calibration split may be missing.
        PluginError: no metric of that name.
    """

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Split],
        metric: Metric | str,
        *,
        labels: Sequence[str] = (),
        form: Literal["image", "tensor"] = "tensor",
        licence: str = "",
        loss: Callable[..., Any] | str | None = None,
    ) -> None:
        self.name = name
        self.metric: Metric = plugins.get("metric", metric) if isinstance(metric, str) else metric
        self.labels = tuple(labels)
        self.form = form
        self.licence = licence
        self.loss = loss
        self.splits = dict(splits)
        if not self.splits:
            raise TaskError(f"task {name} has no splits; known: {', '.join(SPLITS)}")
        for key, split in self.splits.items():
            if key not in SPLITS:
                raise TaskError(f"task {name}: no split is called {key!r}; {nearest(key, SPLITS)}")
            if not isinstance(split, Split):
                raise TaskError(
                    f"task {name}: the {key} split is a {type(split).__name__}: make a farthing.Split of it"
                )
        if "calibration" not in self.splits and "train" in self.splits:
            train = self.splits["train"]
            count = min(CALIBRATION_SAMPLES, len(train))  # spread: data are often sorted by class
            self.splits["calibration"] = train.subset((np.arange(count) * len(train)) // max(1, count))
        for key, split in self.splits.items():
            self._check(split, key)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{key} {len(split)}" for key, split in self.splits.items())
        return f"Task({self.name!r}, {self.metric.name}, {sizes})"

    def split(self, name: SplitName) -> Split:
        """A split by name.

        Raises:
            TaskError: the task has none of that name; the message says how to give it one.
        """
        try:
            return self.splits[name]
        except KeyError:
            raise TaskError(
                f"task {self.name} has no {name} split: add one to its file, or give its share"
            ) from None

    def only(self, names: Collection[str]) -> Task:
        """The same task with just these splits, as a pass gets it that declares them; no data is copied or checked.

        Asking it for another one of this task's splits raises TaskError, which names ``reads``.
        """
        view = copy.copy(self)
        view.splits = _Declared(self.splits, names)
        return view

    @property
    def digest(self) -> str:
        """SHA-256 over the data of all splits, the metric and the labels."""
        parts = [f"{key} {split.digest}" for key, split in sorted(self.splits.items())]
        return digest("\n".join([self.metric.name, self.form, *self.labels, *parts]).encode())

    def check(self, manifest: Manifest) -> None:
        """Hold the task against a model.

        Raises:
            TaskError: inputs the model lacks or the task does not feed, shapes that do not fit, more classes than
                outputs, class names in another order, or pictures for a model whose manifest does not say how to
                preprocess them.
        """
        inputs = {spec.name: spec for spec in manifest.data_inputs}
        if self.form == "image":
            if manifest.preprocess is None:
                raise TaskError(
                    f"task {self.name} has pictures, but the manifest of {manifest.name} does not say how to "
                    "preprocess them: add `preprocess` to its manifest, or run `farthing init`"
                )
        else:
            for split in self.splits.values():
                self._check_shapes(split, inputs, manifest.name)
        self._check_classes(manifest)
        self._check_order(manifest)

    def _check_shapes(self, split: Split, inputs: Mapping[str, TensorSpec], model: str) -> None:
        for name in inputs:
            if name not in split.inputs and "" not in split.inputs:
                raise TaskError(
                    f"task {self.name} does not feed {name!r}, which model {model} takes: name it in its inputs"
                )
        for name, array in split.inputs.items():
            if name == "" and len(inputs) != 1:
                raise TaskError(
                    f"model {model} has {len(inputs)} inputs: name each in task {self.name}: {list(inputs)}"
                )
            if name not in inputs and name:
                raise TaskError(
                    f"task {self.name} feeds {name!r}, which model {model} lacks; {nearest(name, inputs)}"
                )
            spec = inputs[name] if name else next(iter(inputs.values()))
            inner = [size for axis, size in enumerate(spec.shape) if axis != spec.batch_axis]
            if len(inner) != array.ndim - 1 or any(
                isinstance(a, int) and a != b for a, b in zip(inner, array.shape[1:], strict=False)
            ):
                raise TaskError(
                    f"task {self.name}: samples of shape {list(array.shape[1:])} do not fit input "
                    f"{spec.name!r} of model {model}, which takes {list(inner)} each"
                )

    def _check_classes(self, manifest: Manifest) -> None:
        if self.metric.name not in CLASS_METRICS or not manifest.outputs:
            return
        output = manifest.outputs[0]
        sizes = [size for axis, size in enumerate(output.shape) if axis != output.batch_axis]
        known = [size for size in sizes if isinstance(size, int)]
        classes = math.prod(known) if len(known) == len(sizes) else None
        for key, split in self.splits.items():
            highest = -1 if split.labels is None else int(split.labels.max())
            if classes is not None and highest >= classes:
                raise TaskError(
                    f"task {self.name}: the {key} split has label {highest}, but model {manifest.name} has {classes} "
                    f"outputs (labels 0..{classes - 1})"
                )

    def _check_order(self, manifest: Manifest) -> None:
        """Labels are numbers: if both sides name them, the names must be the same ones in the same order."""
        if not self.labels or not manifest.labels or self.labels == manifest.labels:
            return
        pairs = zip_longest(self.labels, manifest.labels, fillvalue="nothing")
        number, (ours, theirs) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        raise TaskError(
            f"label {number} is {ours!r} in task {self.name}, but {theirs!r} in the manifest of {manifest.name}: "
            "list the task's `labels` in the model's order"
        )

    def _check(self, split: Split, key: str) -> None:
        where = f"task {self.name}: the {key} split"
        split.check(where)
        if self.form == "image" and not isinstance(split, ImageFiles):
            for array in split.inputs.values():
                if array.dtype != np.uint8 or not (
                    array.ndim == 3 or (array.ndim == 4 and array.shape[3] in {1, 3})
                ):
                    raise TaskError(
                        f"{where}: pictures are uint8 (samples, height, width) or (..., 3), not {array.dtype} "
                        f"{list(array.shape)}; or say `form: tensor`"
                    )
        labels = split.labels
        if labels is None:
            if self.metric.needs == "labels" and key != "calibration":
                raise TaskError(
                    f"{where} has no labels, which metric {self.metric.name} needs; or use 'agreement'"
                )
            return
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise TaskError(f"{where}: a label is NaN or infinite: clean the data")
        if self.metric.name in {*CLASS_METRICS, *PIXEL_METRICS, "auc"}:
            self._check_range(labels, where)

    def _check_range(self, labels: Array, where: str) -> None:
        """Whole numbers, one a sample or one a pixel, each the number of a class."""
        pixels = self.metric.name in PIXEL_METRICS
        if labels.dtype.kind not in "iu" or labels.ndim != (3 if pixels else 1):
            wanted = "one a pixel: (samples, height, width)," if pixels else "one a sample,"
            raise TaskError(f"{where}: labels must be whole numbers, {wanted} for metric {self.metric.name}")
        highest = len(self.labels) - 1 if self.labels else np.iinfo(np.int64).max
        outside = labels[((labels < 0) | (labels > highest)) & ~(pixels & (labels == VOID))]
        if outside.size:
            allowed = f"0..{highest}" if self.labels else "0 and above"
            raise TaskError(f"{where}: label {int(outside[0])} is out of range ({allowed})")


def find_task(name: str, cache: Path | None = None, on_event: Callable[[str], None] | None = None) -> Task:
    """A task by built-in or registered name, by the path of its YAML, TOML or JSON file, or as ``module:function``.

    ``cache`` is where built-in tasks keep their data; ``~/.cache/farthing`` if None. ``on_event`` is told in a sentence
    when that has to be fetched, from where, and under which licence.

    Raises:
        TaskError: no such task, or one that cannot be used.
        AssetError: the data of a built-in task is not cached and cannot be fetched.
    """
    if Path(name).suffix in {".yaml", ".yml", ".toml", ".json"}:
        from farthing.taskfile import read_task

        return read_task(Path(name))
    if ":" in name:
        return _as_task(_named(name, "task"), name)
    try:
        made = plugins.get("task", name)
        return made(cache, on_event) if name in plugins.BUILTIN["task"] else _as_task(made, name)
    except PluginError as error:
        raise TaskError(f"{error}; or give the path of a task file (.yaml), or module:function") from error


def as_task(given: object, cache: Path | None = None) -> Task:
    """A task as it is, or the one that `find_task` finds by a name or path.

    Raises:
        TaskError: neither.
    """
    if isinstance(given, Task):
        return given
    if isinstance(given, str | Path):
        return find_task(str(given), cache)
    raise TaskError(
        f"a task is a farthing.Task, the path of a task file or a name, not {type(given).__name__}"
    )


def loss_function(task: Task) -> Callable[..., Any] | None:
    """The function that a task names or holds as its loss; None if it leaves the choice to its metric.

    Raises:
        TaskError: it is not there, or is no function of two arguments.
    """
    found = _named(task.loss, "loss") if isinstance(task.loss, str) else task.loss
    if found is None:
        return None
    if not callable(found):
        raise TaskError(f"the loss of task {task.name} is no function, but of type {type(found).__name__}")
    try:
        inspect.signature(found).bind(None, None)
    except TypeError as error:
        raise TaskError(
            f"the loss of task {task.name} must take two arguments, the outputs and a batch: {error}"
        ) from error
    return found


def _named(name: str, what: str) -> Any:
    """What ``module:function`` names: a task or a loss."""
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except Exception as error:  # its code is run, and may do anything
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            places = [place or str(Path.cwd()) for place in sys.path]  # Python remembers where "" first was
            known = (entry.name for entry in pkgutil.iter_modules(places))
            meant = suggestion(module, known, alike=0.75)
            raise TaskError(
                f"no {what} at {name!r}: there is no module {error.name!r}; {meant}".rstrip("; ")
            ) from error
        raise TaskError(f"no {what} at {name!r}: importing it ended with {_said(error)}") from error
    if not hasattr(found, attribute):
        meant = suggestion(attribute, (key for key in vars(found) if not key.startswith("_")))
        raise TaskError(f"no {what} at {name!r}: {module} has no {attribute!r}; {meant}".rstrip("; "))
    return getattr(found, attribute)


def _as_task(made: Any, name: str) -> Task:
    try:
        task = made() if callable(made) else made
    except TaskError as error:
        raise TaskError(str(error) if name in str(error) else f"{name}: {error}") from error
    except FarthingError:
        raise
    except Exception as error:  # it is other people's code
        raise TaskError(f"the task {name} could not be made: it ended with {_said(error)}") from error
    if not isinstance(task, Task):
        raise TaskError(f"{name} gives a {type(task).__name__}, not a farthing.Task")
    return task


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
