"""Results of passes and measurements, kept by digest: a search that was stopped goes on, a repeated one is quick."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from farthing import files
from farthing.config import canonical, plain
from farthing.errors import FarthingError
from farthing.model import Model

ValueT = TypeVar("ValueT")


def key_of(*parts: object) -> str:
    """SHA-256 over plain data, sections and text, in order."""
    return files.digest(canonical([plain(part) for part in parts]))


class Cache:
    """A directory of models and values named by the digest of what made them.

    Entries are written whole, so any number of processes may share it; a damaged entry is made again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def model(self, key: str, make: Callable[[], Model]) -> Model:
        """The model kept under a key, or the one that ``make`` returns, kept from now on."""
        place = self.root / "models" / key[:2] / key
        if place.exists():
            try:
                return Model.open(place)
            except FarthingError:
                shutil.rmtree(place, ignore_errors=True)
        return make().save(place)

    def value(self, key: str, kind: type[ValueT], make: Callable[[], ValueT], again: bool = False) -> ValueT:
        """The value kept under a key, or the one that ``make`` returns; ``again`` makes it in any case."""
        place = self.root / "values" / key[:2] / f"{key}.json"
        if place.exists() and not again:
            try:
                return msgspec.json.decode(place.read_bytes(), type=kind)
            except msgspec.MsgspecError:
                place.unlink(missing_ok=True)
        made = make()
        files.write(place, msgspec.json.encode(plain(made)))
        return made

    def size_bytes(self) -> int:
        """Bytes of all entries."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    def clear(self) -> None:
        """Remove every entry."""
        for name in ("models", "values"):
            shutil.rmtree(self.root / name, ignore_errors=True)
