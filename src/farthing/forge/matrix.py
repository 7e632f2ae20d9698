"""Portability: which engines compute the same from a model as its own engine does, and what the others lack."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain

import msgspec
import numpy as np

from farthing import plugins
from farthing.anatomy import Cell, Matrix, Portable
from farthing.bench import batch_size, feeds, random_feeds
from farthing.bench.machine import Here
from farthing.errors import (
    ConfigError,
    FarthingError,
    MeasurementError,
    ModelError,
    NotInstalled,
    PluginError,
)
from farthing.forge.apart import Answer, Array, Feeds, in_child
from farthing.model import Model
from farthing.task import Task

SAMPLES = 8
SECONDS = 300.0
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2, "int8": 5e-2}
"""Largest difference over the largest value of the output, by how the model computes: kernels of one float precision
differ in the order of their sums, those of 8 bits by a step here and there."""
_LACKING = (
    r"Could not find an implementation for ([\w.]+)",
    r"([\w.:]+)\(-?\d+\) is not a registered",
    r"No Op registered for ([\w.]+)",
    r"unresolved custom op: (\w+)",
    r"(?:conversion rule|Unsupported operations?)[^:]*: *[`'\"]?([\w.]+)",
    r"Unknown builtin op: ([\w.:]+)",
    r"\boperator ([\w.:]+)",
)


def matrix(
    models: Sequence[Model],
    engines: Sequence[str] = (),
    task: Task | None = None,
    *,
    seconds: float = SECONDS,
    tick: Callable[[str], object] = lambda text: None,
) -> Matrix:
    """Run models in engines, each pair in a process of its own, and compare with the model's own engine.

    An engine that does not read ONNX gets what the pass ``export.FORMAT.v1`` makes of an ONNX model, if there is one.

    Args:
        models: rows.
        engines: columns; all that are known but ``fake`` if empty.
        task: gives real inputs; without one they are seeded random numbers.
        seconds: most that one pair may take.
        tick: told in a few words what is under way.

    Raises:
        PluginError: no engine of that name.
        ConfigError: no model was given.
        TaskError: the task does not fit a model.
        StorageError: nothing can be written to the temporary directory.
    """
    if not models:
        raise ConfigError("give at least one model: there is nothing to run")
    for name in engines:
        _known(name)
    columns = tuple(engines) or tuple(name for name in _names() if name != "fake")
    labels = _labels(models)
    cells: list[Cell] = []
    for label, model in zip(labels, models, strict=True):
        cells += _Row(label, model, task, seconds, tick).cells(columns)
    data = f"{SAMPLES} validation samples of {task.name}" if task else f"{SAMPLES} seeded random inputs"
    return Matrix(models=labels, engines=columns, cells=tuple(cells), inputs=data, machine=Here().description)


def _names() -> list[str]:
    return [*dict.fromkeys(chain(plugins.BUILTIN["engine"], plugins.names("engine")))]


def _known(name: str) -> None:
    """Raise PluginError for a name that no engine has; one that is not installed is a finding, not an error."""
    try:
        plugins.get("engine", name)
    except NotInstalled:
        return


def _labels(models: Sequence[Model]) -> tuple[str, ...]:
    """Names of the models, made different from one another."""
    names = [model.manifest.name for model in models]
    made: list[str] = []
    for name, model in zip(names, models, strict=True):
        label = f"{name} ({model.manifest.format})" if names.count(name) > 1 else name
        label = f"{label} {model.digest[:8]}" if label in made else label
        made.append(label if label not in made else f"{label} no. {len(made)}")
    return tuple(made)


def precision(model: Model) -> str:
    """What a model computes in, as far as its manifest and its graph tell: a key of `TOLERANCES`."""
    scheme = model.manifest.quantization
    if scheme is not None:
        words = f"{scheme.scheme} {scheme.weights} {scheme.activations}"
        return "float16" if scheme.scheme == "float16" else "int8" if "int" in words else "float32"
    from farthing.forge.inspect import inspect

    try:
        held = {part.dtype: part.bytes for part in inspect(model, run=False).weights}
    except FarthingError:
        return "float32"
    small = sum(held.get(name, 0) for name in ("int8", "uint8", "int4", "uint4"))
    half = sum(held.get(name, 0) for name in ("float16", "bfloat16"))
    largest = max([0, *held.values()])
    return (
        "int8" if small and small * 2 > largest else "float16" if half and half * 2 > largest else "float32"
    )


# One model ------------------------------------------------------------------------------------------------------


class _Row:
    """The cells of one model."""

    def __init__(
        self, label: str, model: Model, task: Task | None, seconds: float, tick: Callable[[str], object]
    ) -> None:
        self._label, self._model, self._seconds, self._tick = label, model, seconds, tick
        self._task, self._precision = task, precision(model)
        self._feeds: Feeds = ()
        self._own = next((name for name in _names() if _reads(name, model.manifest.format)), "")

    def cells(self, engines: Sequence[str]) -> list[Cell]:
        source = self._source()
        return [self._cell(name, source) for name in engines]

    def _source(self) -> Answer:
        if not self._own:
            return Answer(detail="no installed engine reads the format")
        try:
            self._feeds = _inputs(self._model, self._task)
        except MeasurementError as error:
            return Answer(detail=str(error))
        return self._ask(self._own)

    def _cell(self, engine: str, source: Answer) -> Cell:
        if engine == self._own:
            words = "" if source.arrays else source.detail
            return self._made(engine, source, "source" if source.arrays else source.verdict, words)
        if not source.arrays:
            why = f"the source itself does not run in {self._own or 'any engine'}: {source.detail}"
            return self._made(engine, Answer(), "failed", why)
        answer = self._ask(engine)
        if not answer.arrays:
            return self._made(engine, answer, answer.verdict, answer.detail)
        return self._compared(engine, answer, source)

    def _compared(self, engine: str, answer: Answer, source: Answer) -> Cell:
        try:
            absolute, relative = difference(source.arrays, answer.arrays)
        except ModelError as error:
            return self._made(engine, answer, "failed", str(error))
        tolerance = TOLERANCES[self._precision]
        cell = self._made(engine, answer, "equal" if relative <= tolerance else "differs", "")
        return msgspec.structs.replace(cell, absolute=absolute, relative=relative, tolerance=tolerance)

    def _made(self, engine: str, answer: Answer, verdict: Portable, detail: str) -> Cell:
        return Cell(
            model=self._label,
            engine=engine,
            version=answer.version,
            verdict=verdict,
            via=answer.via,
            precision=self._precision,
            operator=lacking(detail) if verdict == "refused" else "",
            detail=self._without_places(detail)[:600],
        )

    def _without_places(self, detail: str) -> str:
        """A message in one line, its files by their names: most lie in temporary directories."""
        words = " ".join(detail.split()).replace(f"{self._model.path}/", "")
        return re.sub(r"[^\s'\"]*/farthing-\w+/model/", "", words)

    def _ask(self, engine: str) -> Answer:
        """Run the model in an engine, in a child process."""
        try:
            kind = plugins.get("engine", engine)
            version = str(kind.installed())
        except NotInstalled as error:
            return Answer(verdict="not installed", detail=str(error))
        own = self._model.manifest.format
        via = "" if own in kind.formats else _exporter(own, kind.formats)
        if via is None:
            able = ", ".join(sorted(kind.formats))
            words = f"{engine} reads {able}: no pass makes that from {own}"
            return Answer(version=version, verdict="no way", detail=words)
        self._tick(f"{self._label} in {engine}")
        return in_child(self._model, engine, version, via, self._feeds, self._seconds)


def _reads(engine: str, model_format: str) -> bool:
    """Whether an engine is installed and reads a format."""
    try:
        kind = plugins.get("engine", engine)
        kind.installed()
    except (NotInstalled, PluginError):
        return False
    return model_format in kind.formats


def _exporter(own: str, formats: frozenset[str]) -> str | None:
    """The pass that makes one of these formats, if there is one: exports are made from ONNX."""
    known = plugins.names("pass") if own == "onnx" else ()
    return next((f"export.{name}.v1" for name in sorted(formats) if f"export.{name}.v1" in known), None)


def _inputs(model: Model, task: Task | None) -> Feeds:
    """Feeds in turn: samples of the task, or random numbers."""
    manifest, size = model.manifest, batch_size(model.manifest, 1)
    if task is not None:
        task.check(manifest)
        split = task.split("validation")
        picks = np.linspace(0, len(split) - 1, SAMPLES * size).round().astype(np.int64).reshape(SAMPLES, size)
        return [feeds(task, split, manifest, row) for row in picks]
    generator = np.random.default_rng(0)
    return [random_feeds(manifest.data_inputs, size, generator) for _ in range(SAMPLES)]


def difference(source: Feeds, found: Feeds) -> tuple[float, float]:
    """Largest absolute difference, and the largest over the largest value of its output, over all outputs.

    Outputs are paired by name, or by their order where an engine calls them otherwise. NaN and infinity in one place
    of both are no difference.

    Raises:
        ModelError: outputs that cannot be held against each other.
    """
    absolute = relative = 0.0
    for ours, theirs in zip(source, found, strict=True):
        if len(ours) != len(theirs):
            raise ModelError(f"it gives {len(theirs)} outputs, the source {len(ours)}")
        named = ours.keys() == theirs.keys()
        for place, (name, array) in enumerate(ours.items()):
            other = theirs[name] if named else [*theirs.values()][place]
            gap, largest = _gap(name, array, other)
            absolute = max(absolute, gap)
            relative = max(relative, gap / largest if largest else float(gap > 0))
    return absolute, relative


def _gap(name: str, one: Array, other: Array) -> tuple[float, float]:
    if one.shape != other.shape:
        raise ModelError(f"output {name!r} has shape {list(other.shape)}, in the source {list(one.shape)}")
    if one.dtype.kind in "UO" or other.dtype.kind in "UO":
        return float(not np.array_equal(one.astype(str), other.astype(str))), 1.0
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    odd = ~np.isfinite(first) | ~np.isfinite(second)
    if not np.array_equal(first[odd], second[odd], equal_nan=True):
        raise ModelError(f"output {name!r} holds NaN or infinity in one of the two engines only")
    gap = np.abs(first - second)[~odd]
    return (float(gap.max()), float(np.abs(first[~odd]).max())) if gap.size else (0.0, 1.0)


def lacking(message: str) -> str:
    """The operator that an engine's or a pass's refusal names; empty if it names none."""
    for pattern in _LACKING:
        if match := re.search(pattern, message):
            return match[1].rstrip(".:")
    return ""
