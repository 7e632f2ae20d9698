"""Download: a zip that arrives in pieces and is not lost between them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farthing import files
from farthing.device.update.layout import Layout
from farthing.errors import ModelError, StorageError

if TYPE_CHECKING:
    from farthing.device.update.store import Entry

SYNC_BYTES = 4 << 20
"""A power cut costs at most so many bytes of a download."""


def partial(layout: Layout, sha256: str, size: int) -> Path:
    """Where what has come of a download is kept.

    Raises:
        StorageError: not a SHA-256, or no size.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) or size < 1:
        raise StorageError(
            f"a download has a SHA-256 of 64 hexadecimal digits and a size, not {sha256!r} and {size}"
        )
    return layout.partial / f"{sha256}-{size}"


def lock_of(place: Path) -> Path:
    """The lock that whoever writes to a download holds."""
    return place.with_name(f".{place.name}.lock")


class Download:
    """A download under way; `Store.download` gives it, to one process at a time.

    Attributes:
        offset: bytes that are there: where the sender is to go on.
        size: bytes of the whole.
    """

    def __init__(self, place: Path, sha256: str, size: int, file: Any, add: Callable[[Path], Entry]) -> None:
        self._place, self._sha256, self.size, self._file, self._add = place, sha256, size, file, add
        self._hash = hashlib.file_digest(file, "sha256")
        self.offset = self._synced = file.tell()

    @classmethod
    @contextlib.contextmanager
    def open(cls, place: Path, sha256: str, size: int, add: Callable[[Path], Entry]) -> Iterator[Download]:
        """Go on with what is at ``place``, or begin; see `Store.download`."""
        with files.lock(lock_of(place), f"the download {sha256[:12]}"), files.explained(place):
            if place.exists() and place.stat().st_size > size:
                place.unlink()
            with place.open("a+b") as file:
                files.sync(place.parent)
                file.seek(0)
                yield cls(place, sha256, size, file, add)

    def write(self, data: bytes) -> None:
        """Take the bytes that come next.

        Raises:
            ModelError: there are more than announced; the download is to begin anew.
            StorageError: the disk is full.
        """
        if self.offset + len(data) > self.size:
            self._discard()
            raise ModelError(
                f"more than the announced {self.size:,} bytes came: look at what sends them, begin anew"
            )
        with files.explained(self._place):
            self._file.write(data)
            self._hash.update(data)
            self.offset += len(data)
            if self.offset - self._synced >= SYNC_BYTES:
                self._flush()

    def finish(self) -> Entry:
        """Check the whole against its hash and add it to the store.

        Raises:
            StorageError: bytes are missing still, no room to unpack it, or see `Store.add`.
            ModelError: it is not what was announced, and is thrown away; or see `Store.add`.
        """
        if self.offset < self.size:
            raise StorageError(f"{self.offset:,} of {self.size:,} bytes are there: go on from there")
        with files.explained(self._place):
            self._flush()
        if self._hash.hexdigest() != self._sha256:
            self._discard()
            raise ModelError(
                f"what came has the SHA-256 {self._hash.hexdigest()}, announced was {self._sha256}: begin anew"
            )
        entry = self._add(self._place)
        self._discard()
        return entry

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = self.offset

    def _discard(self) -> None:
        with files.explained(self._place):
            self._place.unlink(missing_ok=True)
            files.sync(self._place.parent)
