"""What a data set is made of, looked at without reading all of it."""

from __future__ import annotations

import csv
import os
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from farthing.config import Section
from farthing.errors import TaskError, require
from farthing.task import SplitName
from farthing.taskfile import pictures

Array = NDArray[Any]
Format = Literal["npz", "folder", "csv", "parquet"]
LABEL_WORDS = ("label", "labels", "y", "target", "targets", "class", "classes", "species")
_SPLIT_WORDS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "calibration": ("calibration", "calib"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}


class Column(Section, frozen=True, kw_only=True):
    """An array of an npz, or a column of a table.

    Attributes:
        name: its name.
        shape: of one sample.
        kind: numpy's letter for its element type: f, i, u, b, or U for text.
        dtype: its element type; empty for columns of text files.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    dtype: str = ""


class DataSet(Section, frozen=True, kw_only=True):
    """A data set as found.

    Attributes:
        path: where it is.
        format: as in a task file.
        columns: arrays or columns with one entry a sample, for all but folders.
        size: samples.
        classes: names of the sub-folders, sorted, for folders.
        splits: folders of the splits by split, for folders that have such.
    """

    path: Path
    format: Format
    columns: tuple[Column, ...] = ()
    size: int = 0
    classes: tuple[str, ...] = ()
    splits: dict[SplitName, str] = {}

    @property
    def source_path(self) -> str:
        """The path with ``{split}`` where splits have folders of their own."""
        return f"{self.path}{'/{split}' if self.splits else ''}"


def look(path: Path) -> DataSet:
    """Tell what a data set is by its content.

    Raises:
        TaskError: nothing there, or nothing that a task file can describe.
        NotInstalled: Parquet needs pyarrow.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise TaskError(
            f"there is no data at {path}: give a folder of pictures, or an npz, CSV or Parquet file"
        )
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PAR1"):
        return _parquet(path)
    if start.startswith(b"PK\x03\x04"):
        return _npz(path)
    if start.startswith((b"\x80", b"\x93NUMPY")):
        raise TaskError(
            f"{path} is a pickle or a single array: save named arrays with numpy.savez(x=..., y=...)"
        )
    return _csv(path)


def _subfolders(path: Path) -> list[str]:
    return sorted(e.name for e in path.iterdir() if e.is_dir() and not e.name.startswith((".", "__")))


def _folder(path: Path) -> DataSet:
    names = _subfolders(path)
    splits: dict[SplitName, str] = {
        split: name for split, words in _SPLIT_WORDS.items() for name in names if name.lower() in words
    }
    named = len(splits) > 1 and len(splits) == len(names)
    roots = [path / name for name in splits.values()] if named else [path]
    classes = sorted({name for root in roots for name in _subfolders(root)})
    folders = [root / name for root in roots for name in classes] if classes else roots
    size = sum(len(pictures(folder)) for folder in folders)
    if not size:
        raise TaskError(f"{path} holds no pictures: give a folder with one sub-folder of pictures a class")
    if not named:
        splits = {}
    return DataSet(path=path, format="folder", size=size, classes=tuple(classes), splits=splits)


def some_pictures(data: DataSet, count: int) -> list[Path]:
    """Up to ``count`` picture files, spread over the data set."""
    roots = [data.path / name for name in data.splits.values()] if data.splits else [data.path]
    folders = [root / name for root in roots for name in data.classes] if data.classes else roots
    every = [Path(name) for folder in folders for name in pictures(folder)]
    return [
        every[i] for i in sorted({int(i) for i in np.linspace(0, len(every) - 1, min(count, len(every)))})
    ]


def _npz(path: Path) -> DataSet:
    columns, sizes = [], {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(file)
                name = member.removesuffix(".npy")
                if shape and dtype.kind in "fiubU":
                    columns.append(Column(name=name, shape=shape[1:], kind=dtype.kind, dtype=dtype.name))
                    sizes[name] = shape[0]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise TaskError(f"{path} is not an npz file of plain arrays: {error}") from error
    if not columns:
        raise TaskError(f"{path} holds no arrays of numbers with one entry a sample")
    size = max(sizes.values())
    return DataSet(
        path=path, format="npz", columns=tuple(c for c in columns if sizes[c.name] == size), size=size
    )


def _csv(path: Path) -> DataSet:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{path} is no folder of pictures, npz, CSV or Parquet file: {error}") from error
    if len(rows) < 2 or len(set(map(len, rows))) != 1:
        raise TaskError(f"{path} is no CSV file with a header line and rows of the same length")
    columns = [
        Column(name=name.strip(), shape=(), kind=_kind([row[i] for row in rows[1:]]))
        for i, name in enumerate(rows[0])
    ]
    return DataSet(path=path, format="csv", columns=tuple(columns), size=len(rows) - 1)


def _kind(texts: list[str]) -> str:
    try:
        numbers = np.array(texts, np.float64)
    except ValueError:
        return "U"
    return "i" if np.isfinite(numbers).all() and (numbers == np.round(numbers)).all() else "f"


def _parquet(path: Path) -> DataSet:
    parquet = require("pyarrow.parquet", "parquet")
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise TaskError(f"{path} is not a Parquet file: {error}") from error
    columns = []
    for name in table.column_names:
        array = table[name].slice(0, 1000).to_numpy()
        if array.dtype == object and len(array) and not isinstance(array[0], str):
            array = np.array(array.tolist())
        kind = "U" if array.dtype == object else array.dtype.kind
        columns.append(Column(name=name, shape=array.shape[1:], kind=kind, dtype=array.dtype.name))
    return DataSet(path=path, format="parquet", columns=tuple(columns), size=table.num_rows)


def words_of(data: DataSet, column: str) -> tuple[str, ...]:
    """The different texts in a column, sorted; empty if it holds numbers."""
    kind = next(c.kind for c in data.columns if c.name == column)
    if kind != "U":
        return ()
    if data.format == "csv":
        with data.path.open(newline="", encoding="utf-8-sig") as file:
            return tuple(sorted({(row[column] or "") for row in csv.DictReader(file, skipinitialspace=True)}))
    if data.format == "npz":
        with np.load(data.path, allow_pickle=False) as archive:
            return tuple(sorted(map(str, np.unique(archive[column]))))
    table = require("pyarrow.parquet", "parquet").read_table(data.path, columns=[column])
    return tuple(sorted({str(word) for word in table[column].to_pylist()}))


def relative(path: str, root: Path) -> str:
    """A path as a task file in ``root`` writes it."""
    return Path(os.path.relpath(path, root)).as_posix()
