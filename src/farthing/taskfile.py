"""Task files: a task described in YAML over an npz, a folder of pictures, a CSV or a Parquet file."""

from __future__ import annotations

import csv
import zipfile
import zlib
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
        shape: shape of one sample, where the file keeps it flat, as rows of csv and parquet do.
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
        if len(set(named.values())) != len(named):
            raise TaskError(
                f"task {described.name}: two splits have the same name: each needs data of its own"
            )
        labels = _class_names(described, root, list(named.values()))
        return labels, {key: _load(described, root, name, labels) for key, name in named.items()}
    labels = _class_names(described, root, [""])
    return labels, shared_out(_load(described, root, "", labels), shares, described.seed, described.name)


def _class_names(described: TaskFile, root: Path, words: list[str]) -> tuple[str, ...]:
    """The labels as given, or the names of the folders in any split: all splits must number them alike."""
    if described.labels or described.source.format != "folder":
        return described.labels
    return tuple(sorted({name for word in words for name in _folders(_place(described, root, word))}))


def _place(described: TaskFile, root: Path, word: str) -> Path:
    path = root / described.source.path.replace("{split}", word)
    if not path.exists():
        raise TaskError(f"task {described.name}: {path} does not exist (paths are relative to the task file)")
    if described.source.format == "folder" and not path.is_dir():
        raise TaskError(f"{path} is not a folder of pictures")
    return path


def _folders(path: Path) -> set[str]:
    return {
        entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))
    }


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


def _load(described: TaskFile, root: Path, word: str, classes: tuple[str, ...]) -> Split:
    source, path = described.source, _place(described, root, word)
    if source.format == "folder":
        return _folder(path, classes)
    loader = {"npz": _npz, "csv": _csv, "parquet": _parquet}[source.format]
    inputs, labels = loader(path, source)
    if source.shape:
        inputs = {name: _shaped(array, source.shape, path) for name, array in inputs.items()}
    return Split(inputs, _as_labels(labels, classes, path))


def _shaped(array: Array, shape: tuple[int, ...], path: Path) -> Array:
    try:
        return array.reshape(len(array), *shape)
    except ValueError:
        found = list(array.shape[1:])
        raise TaskError(f"{path}: samples have shape {found}, which does not make {list(shape)}") from None


def _folder(path: Path, classes: tuple[str, ...]) -> Split:
    if not classes:
        return ImageFiles({"": np.array(pictures(path), dtype=str)})
    unknown = _folders(path) - set(classes)
    if unknown:
        raise TaskError(
            f"{path} has the folder {min(unknown)!r}, which is not a label; {nearest(min(unknown), classes)}"
        )
    paths, numbers = [], []
    for number, name in enumerate(classes):
        found = pictures(path / name)
        paths += found
        numbers += [number] * len(found)
    return ImageFiles({"": np.array(paths, dtype=str)}, np.array(numbers, dtype=np.int64))


def pictures(path: Path) -> list[str]:
    """Picture files directly in a folder, sorted; none if there is no such folder."""
    if not path.is_dir():
        return []
    return sorted(str(entry) for entry in path.iterdir() if entry.suffix.lower() in PICTURES)


def _npz(path: Path, source: Source) -> tuple[dict[str, Array], Array | None]:
    wanted = source.inputs or {"": "x"}
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise TaskError(f"{path} is not an npz file: write one with numpy.savez")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise TaskError(
            f"{path} is not an npz file of plain arrays (pickles are refused): {error}"
        ) from error
    several = [name for name, array in wanted.items() if not isinstance(array, str)]
    if several:
        raise TaskError(
            f"{path}: input {several[0]!r} names several arrays; in an npz file each input is one"
        )
    inputs = {name: _column(arrays, str(array), path) for name, array in wanted.items()}
    return inputs, _column(arrays, source.labels, path) if source.labels else None


def _column(columns: dict[str, Array], name: str, path: Path) -> Array:
    if name not in columns:
        raise TaskError(f"{path} has no {name!r}; {nearest(name, columns)}")
    return columns[name]


def _csv(path: Path, source: Source) -> tuple[dict[str, Array], Array | None]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a mark
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{path} is not a CSV file: {error}") from error
    if len(rows) < 2:
        raise TaskError(f"{path} has no rows below its header line")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) != len(header) or all(map(_is_number, header)):
        raise TaskError(
            f"{path} needs a first line that names its columns, each once; it begins {header[:4]}"
        )
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise TaskError(f"{path} row {number} has {len(row)} fields, the header has {len(header)}")
    columns = {name: np.array([row[i] for row in rows[1:]]) for i, name in enumerate(header)}
    return _table(columns, path, source)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet(path: Path, source: Source) -> tuple[dict[str, Array], Array | None]:
    parquet = require("pyarrow.parquet", "parquet")
    try:
        table = parquet.read_table(path)
        columns = {name: _flat(table[name]) for name in table.column_names}
    except (OSError, ValueError, NotImplementedError) as error:
        raise TaskError(f"{path} is not a Parquet file of plain columns: {error}") from error
    return _table(columns, path, source)


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
        except (ValueError, TypeError) as error:
            raise TaskError(
                f"{path}: a column of input {name or 'data'} holds something that is no number: {error}"
            ) from error
        inputs[name] = stacked[..., 0] if len(picked) == 1 and stacked.ndim > 2 else stacked
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
