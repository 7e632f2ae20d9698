"""Store: the models a device keeps, by content, in versions, with a way back, on a disk that has an end.

What is written is flushed before anything points to it, and pointers move by one rename: whoever is killed, or loses
power, at any moment leaves a store in which ``current`` is the old model or the new one, whole. No network is needed.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from farthing import files
from farthing.config import Section
from farthing.device.update import content
from farthing.device.update.content import Item
from farthing.device.update.download import Download, partial
from farthing.device.update.layout import CURRENT, PREVIOUS, Layout, Pointers, cost, tree_cost
from farthing.device.update.space import Limits, drop, make_room, remove_garbage
from farthing.errors import ModelError, StorageError

SPARE = 16 << 20
"""Bytes that are left free on the disk."""


class Entry(Section, frozen=True, kw_only=True):
    """A version of a model in a store.

    Attributes:
        name, version: of the model or bundle.
        digest: of all names and bytes in it (`files.tree_digest`); empty if it was damaged and is in quarantine.
        size_bytes: on the disk, in blocks of 4096.
        current, previous: whether it is pointed to.
    """

    name: str
    version: str
    digest: str
    size_bytes: int
    current: bool = False
    previous: bool = False


class Damage(Section, frozen=True, kw_only=True):
    """A version that cannot be used, and why."""

    name: str
    version: str
    problem: str


class Store:
    """A directory of models. Several processes may use it at once: changes wait for one another, readers never.

    Args:
        root: the directory; the first `add` makes it.
        limit_bytes: most bytes it may take; when room is wanted the versions added longest ago go first, never those
            that are current, previous or held by a reader. None: as many as there are, and versions go by `gc` only.
        spare_bytes: bytes that must stay free on the disk.
        patience: seconds a change waits for another process to end its own.
    """

    def __init__(
        self, root: Path, limit_bytes: int | None = None, spare_bytes: int = SPARE, patience: float = 30.0
    ) -> None:
        self.root = root
        self._layout = Layout(root)
        self._limits, self._patience = Limits(limit_bytes, spare_bytes), patience

    def add(self, source: Item | Path | str, name: str = "", version: str = "") -> Entry:
        """Take in a model or bundle: copied, checked, and on the disk when this returns. It is not made current.

        Args:
            source: it, its directory, a zip of it, or the output of a search.
            name, version: written into the copy's manifest; empty leaves what stands there.

        Raises:
            ModelError: not a model, or damaged, or its name or version cannot be that of a directory.
            StorageError: no room, or another model of that name and version is there; the store is as it was.
        """
        given = Path(source) if isinstance(source, str) else source
        if isinstance(given, Path) and not given.is_file():
            given = content.opened(given)
        with self._changing(make=True):
            what = str(given) if isinstance(given, Path) else given.manifest.name
            make_room(self._layout, content.need(given), what, self._limits)
            with self._staged() as fresh:
                item = content.fill(fresh, given, name, version)
                digest, manifest = files.tree_digest(fresh), item.manifest
                self._check_free(manifest.name, manifest.version, digest)
                self._shelve(fresh, digest)
            self._layout.enter(manifest.name, manifest.version, digest)
            return self._entry(manifest.name, manifest.version)

    @contextlib.contextmanager
    def download(self, sha256: str, size: int) -> Iterator[Download]:
        """Take in a zip that arrives in pieces; what came before an interruption is kept, over restarts too.

        Args:
            sha256: of the zip, as 64 hexadecimal digits.
            size: of the zip, in bytes.

        Yields:
            The download: ``offset`` says where to go on, ``write`` takes the next bytes, ``finish`` checks and adds.

        Raises:
            StorageError: no room, or another process is downloading it.
        """
        with contextlib.ExitStack() as held:
            with self._changing(make=True):
                place = partial(self._layout, sha256, size)
                if not place.exists():
                    make_room(self._layout, cost(size), f"the download {sha256[:12]}", self._limits)
                download = held.enter_context(Download.open(place, sha256, size, self.add))
            yield download

    @contextlib.contextmanager
    def open(self, name: str, version: str = CURRENT) -> Iterator[Item]:
        """A model, every byte checked, that stays on the disk until the ``with`` block ends.

        One that is damaged goes into quarantine.

        Args:
            name: of the model.
            version: one of its versions, ``current`` or ``previous``.

        Raises:
            StorageError: there is none, or it cannot be read.
            ModelError: it is damaged; the message names a version to go back to.
        """
        self._layout.check()
        with contextlib.ExitStack() as held:
            found = self._hold(held, name, version)
            self._check(name, found)
            yield content.known(self._layout.object(name, found))

    def activate(self, name: str, version: str) -> str:
        """Make a version current, and what was current previous, in one step; returns which version that is.

        Args:
            name: of the model.
            version: one of its versions, or ``previous``.

        Raises:
            StorageError: there is no such version.
            ModelError: it is damaged; nothing has changed.
        """
        with self._changing(), contextlib.ExitStack() as held:
            found = self._hold(held, name, version)
            self._check(name, found)
            old = self._layout.pointers(name)
            if found != old.current:
                back = next((one for one in (old.current, old.previous) if self._is_there(name, one)), "")
                self._layout.point(name, Pointers(current=found, previous=back if back != found else ""))
                self._layout.strike_lost(name)
            return found

    def rollback(self, name: str) -> str:
        """Make ``previous`` current again, and the other way round; returns the version that is current now.

        Raises:
            StorageError: there is no previous version.
            ModelError: it is damaged; nothing has changed.
        """
        return self.activate(name, PREVIOUS)

    def list(self) -> tuple[Entry, ...]:
        """All versions: by name, then by when they were added."""
        self._layout.check()
        names = self._layout.names()
        return tuple(self._entry(name, version) for name in names for version in self._layout.versions(name))

    def verify(self, name: str = "") -> tuple[Damage, ...]:
        """Read every byte of all versions, or of one model's; damaged ones go into quarantine.

        Raises:
            StorageError: no store, or no model of that name.
        """
        self._layout.check()
        if name:
            self._layout.find(name, next(iter(self._layout.versions(name)), ""))
        found = []
        for entry in self.list():
            if name in {"", entry.name}:
                try:
                    with contextlib.ExitStack() as held:
                        self._check(entry.name, self._hold(held, entry.name, entry.version))
                except (ModelError, StorageError) as error:
                    found.append(Damage(name=entry.name, version=entry.version, problem=str(error)))
        return tuple(found)

    def gc(self, keep: int = 1) -> int:
        """Remove what nothing needs: leftovers, quarantine, broken-off downloads, versions of long ago.

        Args:
            keep: versions of each model to keep, the last added first, beside current, previous and held ones.

        Returns:
            Bytes that this freed.

        Raises:
            StorageError: no store, or it cannot be changed.
        """
        self._layout.check()
        before = self._layout.used()
        with self._changing():
            remove_garbage(self._layout)
            for name in self._layout.names():
                pointers = self._layout.pointers(name)
                loose = [version for version in self._layout.versions(name) if version not in pointers]
                for version in loose[: max(len(loose) - keep, 0)]:
                    drop(self._layout, name, version)
            remove_garbage(self._layout)
        return max(before - self._layout.used(), 0)

    def used(self) -> int:
        """Bytes that it takes on the disk, in blocks of 4096; a download that has begun counts in full."""
        self._layout.check()
        return self._layout.used()

    # --- inside

    @contextlib.contextmanager
    def _changing(self, make: bool = False) -> Iterator[None]:
        """Hold the lock; what killed writers left is removed first."""
        if not make:
            self._layout.check()
        with (
            files.lock(self._layout.lock, f"the store {self.root}", self._patience),
            files.explained(self.root),
        ):
            if make:
                self._layout.make()
            self._layout.sweep()
            yield

    @contextlib.contextmanager
    def _staged(self) -> Iterator[Path]:
        fresh = Path(tempfile.mkdtemp(prefix=files.TEMPORARY, dir=self._layout.objects))
        try:
            yield fresh
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _shelve(self, fresh: Path, digest: str) -> None:
        """Move a copy to its place, unless the same lies there already."""
        place = self._layout.objects / digest
        if place.exists():
            if files.tree_digest(place) == digest:
                return
            self._quarantine(place)
        fresh.chmod(0o755)
        files.sync_tree(fresh)
        fresh.rename(place)
        files.sync(place.parent)

    def _check_free(self, name: str, version: str, digest: str) -> None:
        there = self._layout.digest(name, version)
        if there not in {"", digest}:
            raise StorageError(
                f"{self.root} holds version {version} of {name} with other content: give this one another version"
            )

    def _hold(self, held: contextlib.ExitStack, name: str, version: str) -> str:
        """Hold the object of a version and return which version it is; one that moves on meanwhile is followed."""
        while True:
            found = self._layout.find(name, version)
            place = self._layout.object(name, found)
            try:
                if place.is_dir():
                    held.enter_context(files.hold(place))
                return found
            except StorageError:
                if place.is_dir() and self._layout.object(name, found) == place:
                    raise

    def _check(self, name: str, version: str) -> None:
        """Refuse a version whose bytes are not those that were added, and put it into quarantine."""
        place = self._layout.object(name, version)
        if not self._is_there(name, version):
            raise ModelError(f"{name} {version} was damaged and is gone; {self._way_out(name, version)}")
        try:
            sound = files.tree_digest(place) == place.name
        except OSError as error:
            raise StorageError(f"cannot read {place}: {error.strerror or error}") from error
        if sound:
            return
        try:
            content.opened(place)
            problem = f"{place} holds other files than were added"
        except ModelError as error:
            problem = str(error).rpartition(": ")[0] or str(error)  # what to do next is said below
        with contextlib.suppress(StorageError):  # a disk that cannot be written to: refused all the same
            self._quarantine(place)
        raise ModelError(f"{name} {version} is damaged: {problem}; {self._way_out(name, version)}")

    def _way_out(self, name: str, version: str) -> str:
        pointers = self._layout.pointers(name)
        if version == pointers.current and self._is_there(name, pointers.previous):
            return f"version {pointers.previous} is there to go back to: `farthing store rollback {name}`"
        return "add it again"

    def _quarantine(self, place: Path) -> None:
        aside = self._layout.quarantine / place.name
        with files.explained(aside):
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # another reader was faster
                place.rename(aside)
            files.sync(place.parent)
            files.sync(aside.parent)

    def _is_there(self, name: str, version: str) -> bool:
        digest = self._layout.digest(name, version) if version else ""
        return bool(digest) and (self._layout.objects / digest).is_dir()

    def _entry(self, name: str, version: str) -> Entry:
        there, pointers = self._is_there(name, version), self._layout.pointers(name)
        return Entry(
            name=name,
            version=version,
            digest=self._layout.digest(name, version) if there else "",
            size_bytes=tree_cost(self._layout.object(name, version)) if there else 0,
            current=version == pointers.current,
            previous=version == pointers.previous,
        )
