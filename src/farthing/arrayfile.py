"""Arrays out of npz, CSV and Parquet files, with errors that name the place."""

from __future__ import annotations

import csv
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.errors import TaskError, nearest, require

Array = NDArray[Any]


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


def read_parquet(path: Path) -> dict[str, Array]:
    """The columns of a Parquet file.

    Raises:
        TaskError: another kind of file, or columns that are no plain values.
        NotInstalled: pyarrow is missing.
    """
    parquet = require("pyarrow.parquet", "parquet")
    try:
        table = parquet.read_table(path)
        return {name: _flat(table[name]) for name in table.column_names}
    except (OSError, ValueError, NotImplementedError) as error:
        raise TaskError(f"{path} is not a Parquet file of plain columns: {error}") from error


def _flat(column: Any) -> Array:
    array = column.to_numpy()
    return np.array(array.tolist()) if array.dtype == object else np.asarray(array)


def as_text(values: Any) -> Array:
    """Bytes as the text they encode in UTF-8; all else as it is."""
    return np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values


def as_whole(values: Array) -> Array:
    """Numbers as int64 if all of them are whole, else as they are."""
    whole = np.isfinite(values).all() and (values == np.round(values)).all()
    return values.astype(np.int64) if whole else values
