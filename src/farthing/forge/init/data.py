"""What a data set is made of, looked at without reading all of it."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from farthing.arrayfile import as_whole, is_number, read_csv
from farthing.config import Section
from farthing.errors import TaskError, require
from farthing.task import SplitName
from farthing.taskfile import class_folders, pictures

Array = NDArray[Any]
Format = Literal["npz", "folder", "csv", "parquet"]
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
        kind: numpy's letter for its element type: f, i, u, b, U for text, or another one that cannot be used.
        dtype: its element type; empty for columns of text files.
        size: its entries.
        wrong: the entry that keeps a column of text files from being numbers, and where it is.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    dtype: str = ""
    size: int = 0
    wrong: str = ""


class DataSet(Section, frozen=True, kw_only=True):
    """A data set as found.

    Attributes:
        path: where it is.
        format: as in a task file.
        columns: arrays or columns, for all but folders.
        size: samples of a folder or table; entries of the largest array.
        classes: names of the sub-folders, sorted, for folders.
        splits: folders of the splits by split, for folders that have such.
        remarks: what the owner should know about it, a sentence each.
    """

    path: Path
    format: Format
    columns: tuple[Column, ...] = ()
    size: int = 0
    classes: tuple[str, ...] = ()
    splits: dict[SplitName, str] = {}
    remarks: tuple[str, ...] = ()

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
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror or error}") from error
    if start.startswith(b"PAR1"):
        return _parquet(path)
    if start.startswith(b"PK\x03\x04"):
        return _npz(path)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TaskError(f"{path} is text in UTF-16: save it as CSV in UTF-8")
    if start.startswith((b"\x80", b"\x93NUMPY")):
        raise TaskError(
            f"{path} is a pickle or a single array: save named arrays with numpy.savez(x=..., y=...)"
        )
    if any(byte < 9 for byte in start) or start[:1] in {b"\x89", b"\xff"}:  # no text; PNG, HDF5, JPEG
        raise TaskError(f"{path} is no folder of pictures, npz, CSV or Parquet file: give one of these")
    return _csv(path)


def _subfolders(path: Path) -> list[str]:
    return sorted(e.name for e in path.iterdir() if e.is_dir() and not e.name.startswith((".", "__")))


def _folder(path: Path) -> DataSet:
    splits = _splits(path, _subfolders(path))
    roots = [path / name for name in splits.values()] if splits else [path]
    if not any(_subfolders(root) or pictures(root) for root in roots):
        raise TaskError(f"{path} holds no pictures: give a folder with one sub-folder of pictures a class")
    classes = class_folders(roots)
    if len(classes) == 1:
        place = roots[0] / classes[0]
        raise TaskError(
            f"all pictures of {path} are in the one class {classes[0]!r}: samples of one class show no accuracy; add "
            f"the others, or give {place} for pictures without labels"
        )
    folders = [root / name for root in roots for name in classes] if classes else roots
    outside = 0
    for root in roots if classes else ():
        if root.name == splits.get("calibration") and not _subfolders(root):
            folders.append(root)  # calibration needs no labels
        else:
            outside += len(pictures(root))
    remarks = (f"{outside} pictures beside the folders of the classes are left out",) if outside else ()
    size = sum(len(pictures(folder)) for folder in folders)
    return DataSet(path=path, format="folder", size=size, classes=classes, splits=splits, remarks=remarks)


def _splits(path: Path, names: list[str]) -> dict[SplitName, str]:
    """Folders called like splits, by split; none if there are not at least two of them."""
    found: list[tuple[SplitName, str]] = [
        (split, name) for split, words in _SPLIT_WORDS.items() for name in names if name.lower() in words
    ]
    if len(found) < 2:
        return {}
    if len(found) < len(names) or len(dict(found)) < len(found):
        raise TaskError(
            f"{path} has folders called like splits ({', '.join(name for _, name in found)}) among {', '.join(names)}: "
            "leave one for each split and nothing else, or write the task file by hand"
        )
    return dict(found)


def _npz(path: Path) -> DataSet:
    columns = []
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
                if shape:
                    kind = "U" if dtype.kind == "S" else dtype.kind
                    columns.append(
                        Column(name=name, shape=shape[1:], kind=kind, dtype=dtype.name, size=shape[0])
                    )
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, RuntimeError, zlib.error) as error:
        raise TaskError(f"{path} is not an npz file of plain arrays: {error}") from error
    if not columns:
        raise TaskError(f"{path} holds no arrays with one entry a sample")
    size = max(column.size for column in columns)
    if not size:
        raise TaskError(f"the arrays of {path} are empty: give it samples")
    return DataSet(path=path, format="npz", columns=tuple(columns), size=size)


def _csv(path: Path) -> DataSet:
    read = read_csv(path)
    columns = tuple(_text_column(name, texts) for name, texts in read.items())
    return DataSet(path=path, format="csv", columns=columns, size=columns[0].size)


def _text_column(name: str, texts: Array) -> Column:
    try:
        numbers = as_whole(texts.astype(np.float64))
    except ValueError:
        place, text = next((i, text) for i, text in enumerate(texts.tolist()) if not is_number(text))
        return Column(
            name=name, shape=(), kind="U", size=len(texts), wrong=f"{text[:40]!r} in sample {place}"
        )
    return Column(name=name, shape=(), kind=numbers.dtype.kind, size=len(texts))


def _parquet(path: Path) -> DataSet:
    parquet = require("pyarrow.parquet", "parquet")
    columns = []
    try:
        table = parquet.read_table(path)
        for name in table.column_names:
            array = table[name].slice(0, 1000).to_numpy()
            if array.dtype == object and len(array) and isinstance(array[0], np.ndarray):
                array = np.array(array.tolist())
            text = array.dtype == object and all(value is None or isinstance(value, str) for value in array)
            kind = "U" if text else array.dtype.kind
            columns.append(
                Column(
                    name=name,
                    shape=array.shape[1:],
                    kind=kind,
                    dtype=array.dtype.name,
                    size=table.num_rows,
                )
            )
    except (OSError, ValueError, NotImplementedError) as error:
        raise TaskError(f"{path} is not a Parquet file of plain columns: {error}") from error
    if not table.num_rows:
        raise TaskError(f"{path} has no rows")
    return DataSet(path=path, format="parquet", columns=tuple(columns), size=table.num_rows)


def relative(path: str, root: Path) -> str:
    """A path as a task file in ``root`` writes it."""
    return Path(os.path.relpath(path, root)).as_posix()
