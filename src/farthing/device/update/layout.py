"""How a store lies on the disk, and the few steps that change it, each of which happens whole or not at all.

    ROOT/
      store.json                          {"layout": 1}
      NAME/current  -> .state/current     the directory to serve: a model, or a bundle of them
      NAME/previous -> .state/previous    the one before
      NAME/.state   -> .state-k3x9/       both pointers, so that one rename moves both
      NAME/.state-k3x9/current -> ../versions/VERSION
      NAME/versions/VERSION -> ../../.objects/DIGEST
      .objects/DIGEST/                    a model, never changed; DIGEST is that of the tree (`files.tree_digest`)
      .partial/SHA256-SIZE                what has come of a download
      .quarantine/DIGEST/                 what was found damaged
      .lock                               held by whoever changes something

A reader follows links and needs no lock. A writer holds the lock and flushes what it writes before it is pointed to.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from farthing import files
from farthing.config import Section, read
from farthing.errors import StorageError, nearest

MARKER = "store.json"
LAYOUT = 1
CURRENT, PREVIOUS = "current", "previous"
_BLOCK = 4096


class Marker(Section, frozen=True, kw_only=True):
    """What ``store.json`` says: which layout the store has."""

    layout: int


class Pointers(Section, frozen=True, kw_only=True):
    """The versions that ``current`` and ``previous`` name; empty: none."""

    current: str = ""
    previous: str = ""

    def __contains__(self, version: object) -> bool:
        return bool(version) and version in {self.current, self.previous}


class Layout:
    """Places in a store. Methods that change something are called by one process at a time: they want the lock.

    Attributes:
        root: the directory of the store.
        objects, partial, quarantine: places below it, see above.
        lock: the lock file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects, self.partial = root / ".objects", root / ".partial"
        self.quarantine, self.lock = root / ".quarantine", root / ".lock"

    def check(self) -> None:
        """See that there is a store, of a layout this code knows.

        Raises:
            StorageError: there is none, or a newer one.
            ConfigError: ``store.json`` cannot be read.
        """
        if not (self.root / MARKER).is_file():
            raise StorageError(f"{self.root} is not a store of models: `farthing store add` makes one")
        found = read(self.root / MARKER, Marker).layout
        if found != LAYOUT:
            raise StorageError(
                f"{self.root} has layout {found}, this Farthing knows {LAYOUT}: use the one that made it"
            )

    def make(self) -> None:
        """Make what a store needs, if it is not there.

        Raises:
            StorageError: the directory holds something else, or cannot be written to.
        """
        if not (self.root / MARKER).is_file():
            with files.explained(self.root):
                names = [one.name for one in _listed(self.root)]
            strange = [
                name for name in names if name != self.lock.name and not name.startswith(files.TEMPORARY)
            ]
            if strange:
                raise StorageError(
                    f"{self.root} holds {strange[0]!r} and no {MARKER}: choose an empty directory"
                )
            files.make_directory(self.root)
            files.write(self.root / MARKER, f'{{"layout": {LAYOUT}}}\n')
        self.check()
        for place in (self.objects, self.partial, self.quarantine):
            files.make_directory(place)

    def names(self) -> list[str]:
        """The names of models."""
        return [one.name for one in _listed(self.root) if one.is_dir() and not one.name.startswith(".")]

    def versions(self, name: str) -> list[str]:
        """The versions of a model, oldest first by when they were added; what is no link to an object is none."""
        links = (link for link in _listed(self.root / name / "versions") if _digest(link))
        return sorted((link.name for link in links), key=lambda version: (self.added(name, version), version))

    def added(self, name: str, version: str) -> int:
        """When a version was added, by the clock of the machine, in nanoseconds; later than those before it."""
        return (self.root / name / "versions" / version).lstat().st_mtime_ns

    def pointers(self, name: str) -> Pointers:
        """What ``current`` and ``previous`` of a model name."""
        state = self.root / name / ".state"
        return Pointers(current=_target(state / CURRENT), previous=_target(state / PREVIOUS))

    def find(self, name: str, version: str) -> str:
        """The version that a word means: itself, ``current`` or ``previous``.

        Raises:
            StorageError: no such model, no such version, or nothing is pointed to.
        """
        names = self.names()
        if name not in names:
            raise StorageError(f"{self.root} holds no model {name!r}; {nearest(name, names)}")
        if version in {CURRENT, PREVIOUS}:
            pointers = self.pointers(name)
            found = pointers.current if version == CURRENT else pointers.previous
            if not found:
                raise StorageError(
                    f"{name} has no {version} version: `farthing store activate {name} VERSION` makes one"
                )
            return found
        versions = self.versions(name)
        if version not in versions:
            raise StorageError(
                f"{self.root} holds no version {version!r} of {name}; {nearest(version, versions)}"
            )
        return version

    def digest(self, name: str, version: str) -> str:
        """Which object a version is; empty if there is no such version."""
        return _digest(self.root / name / "versions" / version)

    def object(self, name: str, version: str) -> Path:
        """The directory of a version."""
        return self.objects / self.digest(name, version)

    def referenced(self) -> dict[str, list[tuple[str, str]]]:
        """Digest -> (name, version) of every version."""
        found: dict[str, list[tuple[str, str]]] = {}
        for name in self.names():
            for version in self.versions(name):
                found.setdefault(self.digest(name, version), []).append((name, version))
        return found

    def enter(self, name: str, version: str, digest: str) -> None:
        """Let a version name an object. It was added after all others, even if the clock was set back meanwhile."""
        link = self.root / name / "versions" / version
        latest = max((self.added(*one) for found in self.referenced().values() for one in found), default=0)
        files.make_directory(link.parent)
        files.link(link, f"../../{self.objects.name}/{digest}")
        if self.added(name, version) <= latest:
            with files.explained(link):
                os.utime(link, ns=(latest + 1, latest + 1), follow_symlinks=False)

    def strike(self, name: str, version: str) -> None:
        """Forget a version; of the last one, the model too."""
        versions = self.root / name / "versions"
        with files.explained(versions):
            (versions / version).unlink()
            files.sync(versions)
            if not _listed(versions):
                shutil.rmtree(versions.parent)
                files.sync(self.root)

    def strike_lost(self, name: str) -> None:
        """Forget the versions of a model that lost their object and are not pointed to."""
        for version in self.versions(name):
            if not self.object(name, version).is_dir() and version not in self.pointers(name):
                self.strike(name, version)

    def point(self, name: str, pointers: Pointers) -> None:
        """Point ``current`` and ``previous`` elsewhere, both in one step."""
        home = self.root / name
        fresh = home / f".state-{secrets.token_hex(4)}"
        files.make_directory(fresh)
        for word, version in ((CURRENT, pointers.current), (PREVIOUS, pointers.previous)):
            if version:
                files.link(fresh / word, f"../versions/{version}")
                if not (home / word).is_symlink():
                    files.link(home / word, f".state/{word}")
        files.link(home / ".state", fresh.name)
        self._tidy(home)

    def sweep(self) -> None:
        """Remove what killed writers left, and versions that are lost."""
        for name in self.names():
            self._tidy(self.root / name)
            self.strike_lost(name)
            if not _listed(self.root / name / "versions"):
                shutil.rmtree(self.root / name, ignore_errors=True)
        for place in (self.root, self.objects, self.quarantine):
            _remove(one for one in _listed(place) if one.name.startswith(files.TEMPORARY))

    def _tidy(self, home: Path) -> None:
        state = _target(home / ".state")
        _remove(one for one in _listed(home) if one.name.startswith(".state-") and one.name != state)
        for place in (home, home / "versions"):
            _remove(one for one in _listed(place) if one.name.startswith(files.TEMPORARY))

    def used(self) -> int:
        """Bytes that the store takes on the disk, in blocks of 4096; a download that has begun counts in full."""
        whole = tree_cost(self.root) - sum(tree_cost(one) for one in self.downloads())
        return whole + sum(cost(announced(one)) for one in self.downloads())

    def stored(self) -> list[Path]:
        """Objects, named by versions or not."""
        return [one for one in _listed(self.objects) if not one.name.startswith(files.TEMPORARY)]

    def quarantined(self) -> list[Path]:
        """Objects that were found damaged."""
        return _listed(self.quarantine)

    def downloads(self) -> list[Path]:
        """Downloads that have begun."""
        return [one for one in _listed(self.partial) if re.fullmatch(r"[0-9a-f]{64}-[0-9]+", one.name)]


def cost(size: int) -> int:
    """Bytes on the disk of a file of so many bytes."""
    return -(-size // _BLOCK) * _BLOCK


def announced(download: Path) -> int:
    """Bytes that a download will have."""
    return int(download.name.partition("-")[2])


def tree_cost(path: Path) -> int:
    """Bytes on the disk of a file, or of the files below a directory."""
    if not path.is_dir():
        return _size(path)
    return sum(_size(Path(place, name)) for place, _, names in os.walk(path) for name in names)


def _size(path: Path) -> int:
    try:
        found = path.lstat()
    except FileNotFoundError:  # a download that has ended meanwhile
        return 0
    return cost(found.st_size) if stat.S_ISREG(found.st_mode) else 0


def _listed(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _target(link: Path) -> str:
    """The last part of what a link points to; empty if there is none."""
    try:
        return link.readlink().name
    except OSError:
        return ""


def _digest(link: Path) -> str:
    """The object that a link names; empty if it names none: whatever somebody put there is not to be touched."""
    found = "" if link.name.startswith(".") else _target(link)
    return found if re.fullmatch(r"[0-9a-f]{64}", found) else ""


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
