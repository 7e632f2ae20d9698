"""The models a board keeps: by digest, whole or absent, no more of them than fit a limit."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Container
from pathlib import Path

from farthing import files
from farthing.errors import ModelError, StorageError
from farthing.model import MANIFEST, Model, is_plain

LIMIT_BYTES = 2 << 30
FREE_BYTES = 16 << 20
HERE = "on the board"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Store:
    """A directory of models, each under its digest; the holder of the board's lease alone writes to it.

    Args:
        directory: where; made when it is needed.
        limit: most bytes of all models together; those not used for longest go first.
    """

    def __init__(self, directory: Path, limit: int = LIMIT_BYTES) -> None:
        self._directory = directory
        self._limit = limit
        self._sound: dict[str, Model] = {}
        self._coming: dict[str, int] = {}

    @property
    def size(self) -> int:
        """Bytes of all models kept."""
        return sum(path.stat().st_size for path in self._directory.rglob("*") if path.is_file())

    def _place(self, digest: str, coming: bool = False) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ModelError(f"{digest[:80]!r} is not the digest of a model")
        return self._directory / (f".coming-{digest}" if coming else digest)

    def has(self, digest: str) -> bool:
        """Whether the model is there, whole; what is damaged goes."""
        try:
            self.open(digest)
        except ModelError:
            shutil.rmtree(self._place(digest), ignore_errors=True)
            return False
        return True

    def open(self, digest: str) -> Model:
        """The model of a digest, checked once.

        Raises:
            ModelError: it is not there, or damaged.
        """
        if digest not in self._sound:
            place = self._place(digest)
            if not place.is_dir():
                raise ModelError("the model is not on the board: send it first")
            model = Model.open(place)
            if model.digest != digest:
                raise ModelError(f"the model on the board under {digest[:12]} is another")
            self._sound[digest] = model
        with contextlib.suppress(OSError):
            os.utime(self._place(digest))
        return self._sound[digest]

    def receive(
        self, digest: str, name: str, total: int, piece: bytes, used: Container[str] = frozenset()
    ) -> None:
        """Add a piece to a file of a model that is on its way.

        Args:
            digest: the model's.
            name: of the file.
            total: bytes of the whole model.
            piece: what comes next in the file.
            used: digests of models that must stay; others may go to make room.

        Raises:
            StorageError: the disk is full, or the model is larger than the limit.
            ModelError: not a name of a model's file, or more than was announced.
        """
        if name != MANIFEST and not is_plain(name):
            raise ModelError(f"{name[:80]!r} is not a plain name for a model file")
        place = self._place(digest, coming=True)
        if digest not in self._coming:
            self._begin(place, total, used)
            self._coming[digest] = 0
        self._coming[digest] += len(piece)
        if self._coming[digest] > total:
            self._abandon(digest)
            raise ModelError("more of the model came than was announced")
        try:
            with files.explained(place / name, HERE), (place / name).open("ab") as file:
                file.write(piece)
        except StorageError:
            self._abandon(digest)
            raise

    def _begin(self, place: Path, total: int, used: Container[str]) -> None:
        if not 0 <= total <= self._limit:
            raise StorageError(
                f"a model of {total / 1e6:.0f} MB is more than the {self._limit / 1e6:.0f} MB kept there"
            )
        with files.explained(place, HERE):
            shutil.rmtree(place, ignore_errors=True)
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room(total, used)
            place.mkdir(mode=0o700)

    def _make_room(self, total: int, used: Container[str]) -> None:
        """Let the models go that were not used for longest, until ``total`` more bytes fit; not those in use."""
        kept = sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in kept:
            if (
                self.size + total <= self._limit
                and shutil.disk_usage(self._directory).free > total + FREE_BYTES
            ):
                return
            if path.name not in used and not path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)
                self._sound.pop(path.name, None)

    def adopt(self, digest: str) -> None:
        """Check a model that came, and keep it.

        Raises:
            ModelError: it is not what its digest says.
            StorageError: it cannot be written.
        """
        coming, place = self._place(digest, coming=True), self._place(digest)
        try:
            if Model.open(coming).digest != digest:
                raise ModelError("the model that came to the board is not the one that was sent: try again")
            with files.explained(place, HERE):
                files.sync_tree(coming)
                shutil.rmtree(place, ignore_errors=True)
                coming.rename(place)
        finally:
            self._abandon(digest)

    def _abandon(self, digest: str) -> None:
        self._coming.pop(digest, None)
        shutil.rmtree(self._place(digest, coming=True), ignore_errors=True)
