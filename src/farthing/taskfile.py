"""Task files: a task described in YAML over an npz, a folder of pictures, a CSV or a Parquet file."""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.config import Section, read
from farthing.errors import ConfigError, TaskError, nearest, require
from farthing.task import CLASS_METRICS, SPLITS, ImageFiles, Split, SplitName, Task

Array = NDArray[Any]
SHARES: dict[SplitName, float | str] = {"calibration": 0.2, "validation": 0.4, "test": 0.4}
"""How samples are shared out by default: the model is trained, so none are set aside for that."""
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
    """A task file. ``splits`` gives each split its share (0.6), or the word that replaces ``{split}`` in the path.

    ``seed`` is a whole number from 0.
    """

    name: str
    source: Source
    metric: str
    splits: dict[SplitName, float | str] = msgspec.field(default_factory=lambda: dict(SHARES))
    labels: tuple[str, ...] = ()
    form: Literal["image", "tensor"] = "tensor"
    seed: int = 0
    licence: str = ""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be a whole number from 0, not {self.seed}")


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
    named: dict[SplitName, str] = {
        key: value for key, value in described.splits.items() if isinstance(value, str)
    }
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
        return labels, {key: _load(described, root, name, labels, key) for key, name in named.items()}
    labels = _class_names(described, root, [""])
    return labels, shared_out(_load(described, root, "", labels, ""), shares, described.seed, described.name)


def _class_names(described: TaskFile, root: Path, words: list[str]) -> tuple[str, ...]:
    """The labels as given, or the names of the folders in any split: all splits must number them alike."""
    if described.labels or described.source.format != "folder":
        return described.labels
    return class_folders([_place(described, root, word) for word in words])


def class_folders(roots: Iterable[Path]) -> tuple[str, ...]:
    """The sub-folders that are classes, sorted.

    Raises:
        TaskError: one holds no picture anywhere; it would be a class, and shift the numbers of those behind it.
    """
    places: dict[str, list[Path]] = {}
    for root in roots:
        for name in _folders(root):
            places.setdefault(name, []).append(root / name)
    for name, found in sorted(places.items()):
        if not any(_is_picture(entry) for place in found for entry in _entries(place)):
            raise TaskError(
                f"{found[0]} holds no pictures ({', '.join(sorted(PICTURES))}), but counts as the class {name!r}: "
                "put its pictures right into it, or remove it"
            )
    return tuple(sorted(places))


def _place(described: TaskFile, root: Path, word: str) -> Path:
    path = root / described.source.path.replace("{split}", word)
    if not path.exists():
        raise TaskError(f"task {described.name}: {path} does not exist (paths are relative to the task file)")
    if described.source.format == "folder" and not path.is_dir():
        raise TaskError(f"{path} is not a folder of pictures")
    return path


def _folders(path: Path) -> set[str]:
    return {
        entry.name for entry in _entries(path) if entry.is_dir() and not entry.name.startswith((".", "__"))
    }


def _entries(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError as error:
        raise TaskError(f"cannot look into {path}: {error.strerror or error}") from error


def _is_picture(entry: Path) -> bool:
    return entry.suffix.lower() in PICTURES and not entry.name.startswith(".")


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
    for key, a, b in zip(shares, starts, ends, strict=True):
        if a == b:
            raise TaskError(
                f"task {name}: the {key} split is empty, because {len(order)} samples are too few for a share of "
                f"{shares[key]:g}: give it more"
            )
    return {key: split.subset(order[a:b]) for key, a, b in zip(shares, starts, ends, strict=True)}


def _load(
    described: TaskFile, root: Path, word: str, classes: tuple[str, ...], key: SplitName | Literal[""]
) -> Split:
    """The samples of one split, or of all if ``key`` is empty; those of ``calibration`` may have no labels."""
    source, path = described.source, _place(described, root, word)
    where = f"task {described.name}, {f'the {key} split in ' if key else ''}{path}"
    bare = key == "calibration"
    split = (
        _folder(path, classes, bare) if source.format == "folder" else _arrays(described, path, where, bare)
    )
    split.check(where)  # here a bad sample has the number it has in the file
    return split


def _arrays(described: TaskFile, path: Path, where: str, bare: bool) -> Split:
    source = described.source
    read = {"npz": _npz, "csv": _csv, "parquet": _parquet}[source.format]
    inputs, labels = read(path, source, bare)
    if source.shape:
        inputs = {name: _shaped(array, source.shape, path) for name, array in inputs.items()}
    try:
        return Split(inputs, _as_labels(labels, described, path))
    except TaskError as error:
        raise TaskError(str(error) if str(path) in str(error) else f"{where}: {error}") from error


def _shaped(array: Array, shape: tuple[int, ...], path: Path) -> Array:
    try:
        return array.reshape(len(array), *shape)
    except ValueError:
        found = list(array.shape[1:])
        raise TaskError(f"{path}: samples have shape {found}, which does not make {list(shape)}") from None


def _folder(path: Path, classes: tuple[str, ...], bare: bool) -> Split:
    loose = pictures(path)
    if not classes or (bare and loose and not _folders(path)):
        return ImageFiles({"": np.array(loose, dtype=str)})
    _refuse_twice(classes, path)
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
    if loose and not paths:
        raise TaskError(
            f"the {len(loose)} pictures in {path} have no labels: put each into the folder of its class "
            f"({', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''})"
        )
    return ImageFiles({"": np.array(paths, dtype=str)}, np.array(numbers, dtype=np.int64))


def pictures(path: Path) -> list[str]:
    """Picture files directly in a folder, sorted; none if there is no such folder."""
    return sorted(str(entry) for entry in _entries(path) if _is_picture(entry)) if path.is_dir() else []


def _npz(path: Path, source: Source, bare: bool) -> tuple[dict[str, Array], Array | None]:
    wanted = source.inputs or {"": "x"}
    several = [name for name, array in wanted.items() if not isinstance(array, str)]
    if several:
        raise TaskError(
            f"{path}: input {several[0]!r} names several arrays; in an npz file each input is one"
        )
    named = {name: str(array) for name, array in wanted.items()}
    labels = [source.labels] if source.labels else []
    arrays = read_npz(path, [*named.values(), *labels], optional=labels if bare else ())
    inputs = {name: arrays[array] for name, array in named.items()}
    return inputs, arrays.get(source.labels)


def read_npz(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Array]:
    """Some arrays of an npz file, each with one entry a sample; the others are not looked at.

    Those of ``names`` that are ``optional`` may be missing.

    Raises:
        TaskError: not an npz file, damaged, no such array, Python objects, a single value, or more than the memory of
            this machine.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise TaskError(f"{path} is not an npz file: write one with numpy.savez")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                names = [name for name in names if name in archive.files or name not in optional]
                for name in names:
                    if name not in archive.files:
                        raise TaskError(f"{path} has no {name!r}; {nearest(name, archive.files)}")
                _refuse_huge(path, archive.zip, names)
                arrays = {name: archive[name] for name in names}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        MemoryError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise TaskError(
            f"{path} is not an npz file of plain arrays (pickles are refused): {error}"
        ) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or not array.ndim:
            raise TaskError(f"{path}: {name!r} is no array with one entry a sample")
    return arrays


def _refuse_huge(path: Path, archive: zipfile.ZipFile, names: Sequence[str]) -> None:
    """A few kilobytes of zip can stand for more zeros than there is memory."""
    members = {member.filename.removesuffix(".npy"): member.file_size for member in archive.infolist()}
    needed = sum(members[name] for name in set(names))
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else needed
    if needed > present:
        raise TaskError(
            f"{path} unpacks to {needed / 1e9:.1f} GB, more than the {present / 1e9:.1f} GB of memory here: "
            "use fewer samples"
        )


def _column(columns: dict[str, Array], name: str, path: Path) -> Array:
    if name not in columns:
        raise TaskError(f"{path} has no {name!r}; {nearest(name, columns)}")
    return columns[name]


def _csv(path: Path, source: Source, bare: bool) -> tuple[dict[str, Array], Array | None]:
    return _table(read_csv(path), path, source, bare)


def read_csv(path: Path) -> dict[str, Array]:
    """The columns of a CSV file in UTF-8 with a header line, as text.

    Raises:
        TaskError: another kind of file, no header or rows, or rows of several lengths; lines are named as editors do.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a mark
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if not rows:
        raise TaskError(f"{path} is empty: a CSV file has a header line and a row for each sample")
    header = [name.strip() for name in rows[0][1]]
    if len(header) == 1 and (mark := next((mark for mark in ";\t" if mark in header[0]), "")):
        raise TaskError(f"{path} parts its columns by {mark!r}: save it with commas")
    if len(set(header)) != len(header) or all(map(is_number, header)):
        raise TaskError(
            f"{path} needs a first line that names its columns, each once; it begins {header[:4]}"
        )
    if len(rows) < 2:
        raise TaskError(f"{path} has no rows below its header line")
    for line, row in rows:
        if len(row) != len(header):
            raise TaskError(
                f"{path} line {line} has {len(row)} field{'s' * (len(row) != 1)}, but the header names {len(header)} "
                "columns: mend the line"
            )
    return {name: np.array([row[i] for _, row in rows[1:]]) for i, name in enumerate(header)}


def is_number(text: Any) -> bool:
    """Whether something is a number, or text that says one."""
    try:
        float(text)
    except (ValueError, TypeError):
        return False
    return True


def _parquet(path: Path, source: Source, bare: bool) -> tuple[dict[str, Array], Array | None]:
    parquet = require("pyarrow.parquet", "parquet")
    try:
        table = parquet.read_table(path)
        columns = {name: _flat(table[name]) for name in table.column_names}
    except (OSError, ValueError, NotImplementedError) as error:
        raise TaskError(f"{path} is not a Parquet file of plain columns: {error}") from error
    return _table(columns, path, source, bare)


def _flat(column: Any) -> Array:
    array = column.to_numpy()
    return np.array(array.tolist()) if array.dtype == object else np.asarray(array)


def _table(
    columns: dict[str, Array], path: Path, source: Source, bare: bool
) -> tuple[dict[str, Array], Array | None]:
    rest = [name for name in columns if name != source.labels]
    inputs = {}
    for name, wanted in (source.inputs or {"": rest}).items():
        keys = [wanted] if isinstance(wanted, str) else wanted
        picked = [_numbers(_column(columns, key, path), key, path) for key in keys]
        try:
            stacked = np.stack(picked, axis=-1)
        except ValueError as error:
            raise TaskError(f"{path}: the columns of input {name or 'data'} do not fit: {error}") from error
        inputs[name] = stacked[..., 0] if len(picked) == 1 and stacked.ndim > 2 else stacked
    missing = not source.labels or (bare and source.labels not in columns)
    return inputs, None if missing else _column(columns, source.labels, path)


def _numbers(column: Array, name: str, path: Path) -> Array:
    try:
        return np.asarray(column, np.float32)
    except (ValueError, TypeError):
        row, text = next(((i, t) for i, t in enumerate(column.tolist()) if not is_number(t)), (0, column[0]))
        raise TaskError(
            f"{path}: column {name!r} is an input, but {str(text)[:40]!r} (sample {row}) is no number: clean it, "
            "or name the columns to use in `inputs`"
        ) from None


def _as_labels(labels: Array | None, described: TaskFile, path: Path) -> Array | None:
    """Labels as numbers, whole ones for classes: words are looked up in the class names."""
    names, classes = described.labels, described.metric in {*CLASS_METRICS, "auc"}
    if labels is None:
        return None
    if classes and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    labels = as_text(labels)
    if labels.dtype.kind in "iub":
        return labels.astype(np.int64) if labels.dtype.kind == "b" else labels
    if labels.dtype.kind == "f":
        return as_whole(labels) if classes else labels
    if labels.dtype.kind != "U" or labels.ndim != 1:
        raise TaskError(
            f"{path}: labels are {labels.dtype} {list(labels.shape)}, not a number or word a sample"
        )
    if names and set(labels.tolist()) <= set(names):
        _refuse_twice(names, path)
        numbers = {word: number for number, word in enumerate(names)}
        return np.array([numbers[word] for word in labels.tolist()], dtype=np.int64)
    try:
        return as_whole(labels.astype(np.float64))
    except ValueError:
        wrong = next(word for word in labels.tolist() if word not in names)
        raise TaskError(
            f"{path}: label {wrong!r} is none of the task's `labels`; {nearest(wrong, names)}"
        ) from None


def _refuse_twice(names: Sequence[str], path: Path) -> None:
    """Where words stand for classes, each class needs a word of its own; numbered classes may share a name."""
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise TaskError(f"{path}: `labels` names {twice!r} twice: give each class a name of its own")


def as_text(values: Any) -> Array:
    """Bytes as the text they encode in UTF-8; all else as it is."""
    return np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values


def as_whole(values: Array) -> Array:
    """Numbers as int64 if all of them are whole, else as they are."""
    whole = np.isfinite(values).all() and (values == np.round(values)).all()
    return values.astype(np.int64) if whole else values
