"""Slots: memory that processes share, one request in each; tensors are written once and read where they lie.

The memory has no name: it is handed to child processes as an open file, and the system takes it back when the last of
them is gone, however they ended.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing import errors
from farthing.config import Section
from farthing.errors import EngineError, FarthingError, UnsupportedError
from farthing.model import DTYPES

Array = NDArray[Any]
ALIGNMENT = 64  # bytes: what vector instructions like best
MOST_AXES = 14
FREE = DTYPES - {"str", "bfloat16"}  # what numpy can lay over memory
_ROW = 2 + MOST_AXES  # place, number of axes, sizes
_WORD = 8  # bytes
_HEAD = 3  # end of what is written, place and length of a fault
_BYTE = np.dtype(np.uint8)


class Layout(Section, frozen=True, kw_only=True):
    """The tensors that a slot has room for: name -> element type."""

    dtypes: dict[str, str]

    def __post_init__(self) -> None:
        for name, dtype in self.dtypes.items():
            if dtype not in FREE:
                raise UnsupportedError(
                    f"tensor {name!r} is {dtype}, which processes cannot share: run the parts in one process"
                )


class Fault(Section, frozen=True, kw_only=True):
    """An error on its way to another process."""

    kind: str
    text: str

    @classmethod
    def of(cls, error: FarthingError) -> Fault:
        """An error as plain data."""
        return cls(kind=type(error).__name__, text=str(error))

    def error(self) -> FarthingError:
        """The error again, of its kind."""
        kind = getattr(errors, self.kind, EngineError)
        known = isinstance(kind, type) and issubclass(kind, FarthingError)
        return kind(self.text) if known else EngineError(self.text)


def memory() -> int:
    """Fresh shared memory without a name, as the number of an open file; empty at first."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("farthing")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Slot:
    """One request's tensors in shared memory. Whoever has its token may write; nobody else looks.

    Args:
        file: number of the open file, from `memory`.
        layout: the tensors it has room for.
    """

    def __init__(self, file: int, layout: Layout) -> None:
        self.file = file
        self._dtypes = {name: np.dtype(dtype) for name, dtype in layout.dtypes.items()}
        self._rows = {name: row for row, name in enumerate(layout.dtypes)}
        self._start = _aligned(_WORD * (_HEAD + len(self._rows) * _ROW))
        self._memory: mmap.mmap | None = None
        self._reach(self._start)

    def clear(self) -> None:
        """Forget the request before."""
        self._head[:] = self._start, 0, 0
        self._table[:] = 0

    def put(self, name: str, array: Array) -> None:
        """Write a tensor behind those that are there.

        Raises:
            EngineError: it is not of the type that was agreed on, or has too many axes.
        """
        if array.dtype != self._dtypes[name] or array.ndim > MOST_AXES:
            raise EngineError(
                f"tensor {name!r} came as {array.dtype} {list(array.shape)}, not {self._dtypes[name]}"
            )
        place = int(self._head[0])
        self._reach(place + array.nbytes)
        self._head[0] = _aligned(place + array.nbytes)
        row = self._table[self._rows[name]]
        row[:2] = place, array.ndim
        row[2 : 2 + array.ndim] = array.shape
        self._view(place, array.dtype, array.shape)[...] = array

    def get(self, name: str) -> Array:
        """A tensor as it lies in the memory, until the slot is cleared.

        Raises:
            EngineError: nobody has written it.
        """
        place, axes, *sizes = self._table[self._rows[name]].tolist()
        if not place:
            raise EngineError(f"tensor {name!r} was not handed on")
        dtype, shape = self._dtypes[name], tuple(sizes[:axes])
        self._reach(place + dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
        return self._view(place, dtype, shape)

    def fail(self, error: FarthingError) -> None:
        """Say that the request failed."""
        text = msgspec.json.encode(Fault.of(error))
        place = int(self._head[0])
        self._reach(place + len(text))
        self._view(place, _BYTE, (len(text),))[...] = np.frombuffer(text, np.uint8)
        self._head[:] = place + len(text), place, len(text)

    def failure(self) -> FarthingError | None:
        """The error that a process left, if one did."""
        end, place, length = self._head.tolist()
        if not place:
            return None
        self._reach(end)
        return msgspec.json.decode(self._view(place, _BYTE, (length,)).tobytes(), type=Fault).error()

    def _view(self, place: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        return np.ndarray(shape, dtype, self._memory, place)

    def _reach(self, end: int) -> None:
        """Map at least so many bytes; the file grows if it has to, and what another process grew is mapped here."""
        if self._memory is not None and end <= len(self._memory):
            return
        size = os.fstat(self.file).st_size
        if size < end:
            size = -(-max(end, 2 * size) // mmap.PAGESIZE) * mmap.PAGESIZE
            os.ftruncate(self.file, size)
        self._memory = mmap.mmap(self.file, size)  # arrays over the one before keep it alive
        self._head = np.ndarray((_HEAD,), np.int64, self._memory, 0)
        self._table = np.ndarray((len(self._rows), _ROW), np.int64, self._memory, _HEAD * _WORD)


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT
