"""Interrupts a store at every step it takes on the disk: by a kill, and by a power cut. Run by test_store_crash.py.

    crashes.py kill|power SCENARIO DIRECTORY [SEEDS]

It prints how many points and how many distinct states of the disk it tried, and fails where one of them breaks a
promise: ``current`` and ``previous`` are the pair from before or the one from after, both whole; what was done is on
the disk when the call returns; the same call again ends as if nothing had happened, and leaves nothing lying about.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from farthing import files
from farthing.device.update.store import Store
from farthing.errors import ModelError
from farthing.model import Model
from farthing.testing import fake_model

CALLS = ("fsync", "rename", "replace", "symlink", "mkdir", "unlink", "rmdir", "chmod", "open")
MODELS = {
    version: fake_model(features=16, seed=int(version), name="net", version=version) for version in "1234"
}

# --- what is interrupted


def add(store: Store) -> None:
    store.add(MODELS["4"])


def activate(store: Store) -> None:
    store.activate("net", "3")


def rollback(store: Store) -> None:
    if current(store) == "2":
        store.rollback("net")


def gc(store: Store) -> None:
    store.gc(keep=0)


def download(store: Store) -> None:
    archive = store.root.parent / "net.zip"
    data = archive.read_bytes()
    with store.download(files.digest(data), len(data)) as coming:
        while coming.offset < len(data):
            coming.write(data[coming.offset :][:1000])
        coming.finish()


def damaged(store: Store) -> None:
    if current(store) == "1":
        return
    place = store.root / "net" / "current" / "model.json"
    with contextlib.suppress(FileNotFoundError):  # it is in quarantine already
        place.chmod(0o644)
        place.write_bytes(b"{}")
    with pytest.raises(ModelError, match="farthing store rollback net"), store.open("net"):
        pass
    store.rollback("net")


def everything(store: Store) -> None:
    add(store)
    if current(store) == "2":
        store.activate("net", "4")
    gc(store)


AFTER = {
    add: ("2", "1", "1234"),
    activate: ("3", "2", "123"),
    rollback: ("1", "2", "123"),
    gc: ("2", "1", "12"),
    download: ("2", "1", "1234"),
    damaged: ("1", "", "13"),
    everything: ("4", "2", "24"),
}


def begin(root: Path) -> None:
    store = Store(root)
    for version in "123":
        store.add(MODELS[version])
    store.activate("net", "1")
    store.activate("net", "2")
    MODELS["4"].pack(root.parent / "net.zip")


# --- what is promised


def current(store: Store) -> str:
    return next(entry.version for entry in store.list() if entry.current)


def check(root: Path, act: Callable[[Store], None]) -> tuple[str, str]:
    """The pair that is pointed to, after a look that changes nothing."""
    store = Store(root, patience=0)
    pair = store._layout.pointers("net")
    found = pair.current, pair.previous
    assert found in {("2", "1"), AFTER[act][:2]}, found
    for word in ("current", "previous") if act is not damaged else ():
        with store.open("net", word) as model:
            assert model.manifest.version == getattr(pair, word)
        served = Model.open(root / "net" / word)
        assert served.digest == MODELS[served.manifest.version].digest
        assert served.manifest.version == getattr(pair, word)
    assert act is damaged or store.verify() == ()
    return found


def again(root: Path, act: Callable[[Store], None]) -> None:
    """Do it once more: it ends as it would have, and nothing is left over."""
    store = Store(root, patience=0)
    act(store)
    store.gc(keep=9)
    now, before, versions = AFTER[act]
    entries = {entry.version: entry for entry in store.list()}
    assert sorted(entries) == sorted(versions), sorted(entries)
    assert {entry.version for entry in entries.values() if entry.current} == {now}
    assert {entry.version for entry in entries.values() if entry.previous} == ({before} if before else set())
    assert store.verify() == ()
    left = [path for path in root.rglob("*") if path.name.startswith(files.TEMPORARY)]
    states = [path for path in (root / "net").iterdir() if path.name.startswith(".state-")]
    objects = {path.name for path in (root / ".objects").iterdir()}
    assert (left, len(states), objects) == ([], 1, {entry.digest for entry in entries.values()})
    assert [*(root / ".quarantine").iterdir(), *(root / ".partial").iterdir()] == []


# --- kills


def killed(act: Callable[[Store], None], place: Path) -> Iterator[tuple[str, str]]:
    for step in range(1, 10_000):
        root = fresh(place)
        child = os.fork()
        if not child:
            hook(mortal(step))
            act(Store(root))
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in {0, 77}, code
        yield check(root, act)
        again(root, act)
        if code == 0:
            return


def mortal(last: int) -> Callable[[], None]:
    seen = [0]

    def step() -> None:
        seen[0] += 1
        if seen[0] == last:
            os._exit(77)  # nothing is flushed, no finally runs: as SIGKILL leaves it

    return step


def hook(step: Callable[[], None]) -> None:
    """Call ``step`` before and after every call that changes the disk."""

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **more: Any) -> Any:
            step()
            result = call(*args, **more)
            step()
            return result

        return wrapped

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def fresh(place: Path) -> Path:
    root = place / "store"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(place / "before", root, symlinks=True)
    return root


# --- power cuts

Entry = tuple[str, Any]  # ("file" | "directory", inode) or ("link", target)


class Disk:
    """A directory, and what of it is certain to be on the disk: what was flushed.

    A file has the content of its last flush, a directory the names of its last flush. Anything newer may be there
    or not, each name and each file by itself: more can go wrong here than a journal allows.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[int, dict[str, Entry]] = {}
        self.data: dict[int, bytes] = {}
        self.handles: dict[int, int] = {}  # an open file keeps its inode from being used for another
        self.look()
        for inode, handle in self.handles.items():
            self.flushed(handle, inode)

    def look(self) -> None:
        for path in (self.root, *self.root.rglob("*")):
            if not path.is_symlink() and path.stat().st_ino not in self.handles:
                self.handles[path.stat().st_ino] = OPEN(path, os.O_RDONLY)

    def flushed(self, handle: int, inode: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            self.names[inode] = self.listing(handle)
        else:
            self.data[inode] = content(handle)

    def listing(self, handle: int) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        with os.scandir(handle) as entries:
            for entry in entries:
                if entry.is_symlink():
                    found[entry.name] = "link", os.readlink(entry.name, dir_fd=handle)
                elif not entry.name.endswith(".lock"):  # its kernel lock goes with the power
                    found[entry.name] = "directory" if entry.is_dir() else "file", entry.inode()
        return found

    def after(self, newer: Callable[[str], bool]) -> dict[str, bytes | str | None]:
        """Path -> content, target or None for a directory, if the power goes now; ``newer`` decides what got there."""
        self.look()
        found: dict[str, bytes | str | None] = {}

        def walk(inode: int, above: str) -> None:
            now, flushed = self.listing(self.handles[inode]), self.names.get(inode, {})
            for name in sorted({*now, *flushed}):
                path = f"{above}{name}"
                entry = (
                    now.get(name) if now.get(name) == flushed.get(name) or newer(path) else flushed.get(name)
                )
                if entry is None:
                    continue
                kind, what = entry
                if kind == "link":
                    found[path] = what
                elif kind == "file":
                    latest, old = content(self.handles[what]), self.data.get(what, b"")
                    found[path] = latest if latest == old or newer(f"{path} data") else old
                else:
                    found[path] = None
                    walk(what, f"{path}/")

        walk(self.root.stat().st_ino, "")
        return found


OPEN, FSYNC = os.open, os.fsync


def content(handle: int) -> bytes:
    return os.pread(handle, 1 << 20, 0)


def ways(seeds: int) -> Iterator[Callable[[str], bool]]:
    yield lambda path: False  # nothing that was not flushed
    yield lambda path: not path.endswith(" data")  # names, but empty files
    yield lambda path: path.endswith(" data")
    yield from (toss(random.Random(seed)) for seed in range(seeds))


def toss(dice: random.Random) -> Callable[[str], bool]:
    return lambda path: dice.random() < 0.5


def unpowered(act: Callable[[Store], None], place: Path, seeds: int) -> Iterator[tuple[str, str]]:
    root = fresh(place)
    disk = Disk(root)
    states: dict[str, dict[str, bytes | str | None]] = {}

    def step() -> None:
        for newer in ways(seeds):
            state = disk.after(newer)
            states.setdefault(repr(state), state)

    def flush(handle: int) -> None:
        FSYNC(handle)
        disk.look()
        if Path(f"/proc/self/fd/{handle}").readlink().is_relative_to(root):
            disk.flushed(handle, os.fstat(handle).st_ino)

    originals = {name: getattr(os, name) for name in CALLS}
    os.fsync = flush  # type: ignore[assignment]
    hook(step)
    act(Store(root))
    step()
    for name, call in originals.items():
        setattr(os, name, call)
    certain = disk.after(lambda path: False)
    for state in [*states.values(), certain]:
        lay(root, state)
        pair = check(root, act)
        yield pair
        if state is certain:
            assert pair == AFTER[act][:2], "done, but not on the disk"
            assert {entry.version for entry in Store(root).list() if entry.digest} == set(AFTER[act][2])
        again(root, act)


def lay(root: Path, state: dict[str, bytes | str | None]) -> None:
    shutil.rmtree(root)
    root.mkdir()
    for path, what in state.items():
        if what is None:
            (root / path).mkdir()
        elif isinstance(what, bytes):
            (root / path).write_bytes(what)
        else:
            (root / path).symlink_to(what)


def main(how: str, scenario: str, directory: str, seeds: str = "4") -> None:
    place, act = Path(directory), next(act for act in AFTER if act.__name__ == scenario)
    begin(place / "before")
    pairs = list(killed(act, place) if how == "kill" else unpowered(act, place, int(seeds)))
    sys.stdout.write(json.dumps({"points": len(pairs), "pairs": sorted(set(pairs))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
