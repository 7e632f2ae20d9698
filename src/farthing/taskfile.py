"""Task files: a task described in YAML over an npz, a folder of pictures, a CSV or a Parquet file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.config import Section, read
from farthing.errors import ConfigError, TaskError, nearest, require
from farthing.task import SPLITS, ImageFiles, Split, SplitName, Task

Array = NDArray[Any]
SHARES: dict[SplitName, float | str] = {"train": 0.5, "calibration": 0.1, "validation": 0.2, "test": 0.2}
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


class Source(Section, frozen=True, kw_only=True):
    """Where the samples are.

    Attributes:
        format: ``npz`` (arrays, no pickles), ``folder`` (one sub-folder a class, or pictures without labels),
            ``csv`` or ``parquet`` (a row a sample).
        path: relative to the task file; ``{split}`` in it stands for the split's own name.
        inputs: model input -> array (npz) or columns (csv, parquet); without it the array ``x``, or every
            column but the label.
        labels: array or column of the labels; empty if there are none.
        shape: shape of one sample, for csv and parquet rows that are more than a vector.
    """

    format: Literal["npz", "folder", "csv", "parquet"]
    path: str
    inputs: dict[str, str | list[str]] = {}
    labels: str = ""
    shape: tuple[int, ...] = ()


class TaskFile(Section, frozen=True, kw_only=True):
    """A task file. ``splits`` gives each split its share (0.6), or the word that replaces ``{split}`` in the path."""

    name: str
    source: Source
    metric: str
    splits: dict[SplitName, float | str] = msgspec.field(default_factory=lambda: dict(SHARES))
    labels: tuple[str, ...] = ()
    form: Literal["image", "tensor"] = "tensor"
    seed: int = 0
    licence: str = ""


def read_task(path: Path) -> Task:
    """Read a task file and its data.

    Raises:
        TaskError: the file or its data cannot be used; the message says which part and why.
        NotInstalled: pictures need Pillow, Parquet needs pyarrow.
    """
    try:
        described = read(path, TaskFile)
    except ConfigError as error:
        raise TaskError(str(error)) from error
    form = "image" if described.source.format == "folder" else described.form
    labels, splits = _splits(described, path.parent)
    return Task(described.name, splits, described.metric, labels=labels, form=form, licence=described.licence)


def _splits(described: TaskFile, root: Path) -> tuple[tuple[str, ...], dict[str, Split]]:
    shares = {key: value for key, value in described.splits.items() if not isinstance(value, str)}
    named = {key: value for key, value in described.splits.items() if isinstance(value, str)}
    if shares and named:
        raise TaskError(f"task {described.name}: give every split a share, or every split a name, not both")
    if not shares and not named:
        raise TaskError(f"task {described.name}: `splits` is empty; known splits: {', '.join(SPLITS)}")
    if named:
        if "{split}" not in described.source.path:
            raise TaskError(
                f"task {described.name}: the path needs {{split}} in it, because splits are named"
            )
        loaded = {key: _load(described, root, name) for key, name in named.items()}
        labels = described.labels or next(iter(loaded.values()))[0]
        return labels, {key: split for key, (_, split) in loaded.items()}
    labels, everything = _load(described, root, "")
    return labels, shared_out(everything, shares, described.seed, described.name)


def shared_out(split: Split, shares: Mapping[Any, float], seed: int, name: str) -> dict[str, Split]:
    """Cut samples into splits by share, each class in proportion, in an order that the seed decides."""
    total = sum(shares.values())
    if not 0 < total <= 1 + 1e-9 or min(shares.values()) <= 0:
        raise TaskError(
            f"task {name}: the shares of the splits must be above 0 and sum to at most 1, not {total:g}"
        )
    order = np.random.default_rng(seed).permutation(len(split))
    if split.labels is not None and split.labels.dtype.kind in "iu" and split.labels.ndim == 1:
        place = np.empty(len(order))
        for label in np.unique(split.labels):
            rows = np.flatnonzero(split.labels[order] == label)
            place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
        order = order[np.argsort(place, kind="stable")]
    ends = np.round(np.cumsum(list(shares.values())) * len(order)).astype(int)
    starts = [0, *ends[:-1]]
    return {key: split.subset(order[a:b]) for key, a, b in zip(shares, starts, ends, strict=True)}


def _load(described: TaskFile, root: Path, split: str) -> tuple[tuple[str, ...], Split]:
    source = described.source
    path = root / source.path.replace("{split}", split)
    if not path.exists():
        raise TaskError(f"task {described.name}: {path} does not exist (paths are relative to the task file)")
    if source.format == "folder":
        return _folder(path, described.labels)
    loader = {"npz": _npz, "csv": _csv, "parquet": _parquet}[source.format]
    inputs, labels = loader(path, source)
    return described.labels, Split(inputs, _as_labels(labels, described.labels, path))


def _folder(path: Path, labels: tuple[str, ...]) -> tuple[tuple[str, ...], Split]:
    if not path.is_dir():
        raise TaskError(f"{path} is not a folder of pictures")
    classes = labels or tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
    if not classes:
        return (), ImageFiles({"": np.array(pictures(path), dtype=str)})
    unknown = {entry.name for entry in path.iterdir() if entry.is_dir()} - set(classes)
    if unknown:
        raise TaskError(
            f"{path} has the folder {min(unknown)!r}, which is not a label; {nearest(min(unknown), classes)}"
        )
    paths, numbers = [], []
    for number, name in enumerate(classes):
        found = pictures(path / name)
        paths += found
        numbers += [number] * len(found)
    return classes, ImageFiles({"": np.array(paths, dtype=str)}, np.array(numbers, dtype=np.int64))


def pictures(path: Path) -> list[str]:
    """Picture files directly in a folder, sorted; none if there is no such folder."""
    if not path.is_dir():
        return []
    return sorted(str(entry) for entry in path.iterdir() if entry.suffix.lower() in PICTURES)


def _npz(path: Path, source: Source) -> tuple[dict[str, Array], Array | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise TaskError(
            f"{path} is not an npz file of plain arrays (pickles are refused): {error}"
        ) from error
    wanted = source.inputs or {"": "x"}
    inputs = {name: _column(arrays, str(array), path) for name, array in wanted.items()}
    return inputs, _column(arrays, source.labels, path) if source.labels else None


def _column(columns: dict[str, Array], name: str, path: Path) -> Array:
    if name not in columns:
        raise TaskError(f"{path} has no {name!r}; {nearest(name, columns)}")
    return columns[name]


def _csv(path: Path, source: Source) -> tuple[dict[str, Array], Array | None]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{path} is not a CSV file: {error}") from error
    if len(rows) < 2:
        raise TaskError(f"{path} has no rows below its header line")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise TaskError(f"{path} line {number} has {len(row)} fields, the header has {len(rows[0])}")
    columns = {name.strip(): np.array([row[i] for row in rows[1:]]) for i, name in enumerate(rows[0])}
    return _table(columns, path, source)


def _parquet(path: Path, source: Source) -> tuple[dict[str, Array], Array | None]:
    parquet = require("pyarrow.parquet", "parquet")
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise TaskError(f"{path} is not a Parquet file: {error}") from error
    return _table({name: _flat(table[name]) for name in table.column_names}, path, source)


def _flat(column: Any) -> Array:
    array = column.to_numpy()
    return np.array(array.tolist()) if array.dtype == object else np.asarray(array)


def _table(columns: dict[str, Array], path: Path, source: Source) -> tuple[dict[str, Array], Array | None]:
    rest = [name for name in columns if name != source.labels]
    inputs = {}
    for name, wanted in (source.inputs or {"": rest}).items():
        picked = [_column(columns, key, path) for key in ([wanted] if isinstance(wanted, str) else wanted)]
        try:
            stacked = np.stack([np.asarray(part, np.float32) for part in picked], axis=-1)
        except ValueError as error:
            raise TaskError(
                f"{path}: a column of input {name or 'data'} holds something that is no number: {error}"
            ) from error
        array = stacked[..., 0] if len(picked) == 1 and stacked.ndim > 2 else stacked
        inputs[name] = array.reshape(len(array), *source.shape) if source.shape else array
    return inputs, _column(columns, source.labels, path) if source.labels else None


def _as_labels(labels: Array | None, names: tuple[str, ...], path: Path) -> Array | None:
    """Labels as numbers: words are looked up in the class names."""
    if labels is None or labels.dtype.kind in "iufb":
        return labels
    if names and set(map(str, labels)) <= set(names):
        return np.array([names.index(str(word)) for word in labels], dtype=np.int64)
    try:
        values = labels.astype(np.float64)
    except ValueError:
        wrong = next(str(word) for word in labels if str(word) not in names)
        raise TaskError(
            f"{path}: label {wrong!r} is none of the task's `labels`; {nearest(wrong, names)}"
        ) from None
    whole = values == np.round(values)
    return values.astype(np.int64) if whole.all() else values
