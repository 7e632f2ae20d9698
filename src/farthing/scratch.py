"""Temporary directories, locked while they are used: so it is known what a killed process left, and that goes.

The command line imports this before anything else of Farthing's, so it imports next to nothing itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
import weakref
from functools import cache
from itertools import count
from pathlib import Path

COMMAND, LIBRARY = "farthing-cli-", "farthing-lib-"
LEFTOVER_SECONDS = 3600


class Scratch:
    """A temporary directory that goes, without a word, when it is closed or the last reference to this object goes.

    All of a process share one lock. The first one of a process sweeps away what killed ones left. A fork of the process
    that ends removes none.

    Args:
        root: where to make it; the usual place if None.

    Attributes:
        path: the directory.
    """

    def __init__(self, root: str | None = None) -> None:
        home, self.path = _found(root or tempfile.gettempdir())
        self._end = weakref.finalize(self, _give_back, self.path, os.getpid(), home)

    def close(self) -> None:
        """Remove it."""
        self._end()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Home:
    """The locked directory that holds all temporary ones of a process; it goes with the last of them."""

    def __init__(self, root: str) -> None:
        self._path = Path(tempfile.mkdtemp(prefix=LIBRARY, dir=root))
        self._numbers = count()
        weakref.finalize(self, _give_back, self._path, os.getpid(), hold(self._path))

    def make(self) -> Path:
        """A directory in it; FileNotFoundError if somebody removed the whole."""
        path = self._path / str(next(self._numbers))
        path.mkdir(mode=0o700)
        return path


_HOMES: weakref.WeakValueDictionary[tuple[str, int], _Home] = weakref.WeakValueDictionary()


def _found(root: str) -> tuple[_Home, Path]:
    """A fresh directory, and the home that is held as long as it is there."""
    process = os.getpid()
    home = _HOMES.get((root, process))
    if home is not None:
        with contextlib.suppress(FileNotFoundError):
            return home, home.make()
    home = _HOMES[root, process] = _Home(root)
    _sweep_once(root, process)
    return home, home.make()


def hold(path: Path | str) -> int | None:
    """Lock a directory until the handle is closed or this process ends; None where that cannot be done."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _give_back(path: Path, process: int, held: _Home | int | None) -> None:
    """Remove a directory, and let go of what was held for it."""
    if os.getpid() == process:
        shutil.rmtree(path, ignore_errors=True)
    if isinstance(held, int):
        os.close(held)


@cache
def _sweep_once(root: str, process: int) -> None:
    sweep(root)


def sweep(root: str) -> None:
    """Remove what killed processes of this user left: older than an hour, and locked by no living one."""
    try:
        with os.scandir(root) as entries:
            found = [entry for entry in entries if entry.name.startswith((COMMAND, LIBRARY))]
    except OSError:
        return
    for entry in found:
        handle = -1
        try:
            facts = entry.stat(follow_symlinks=False)
            if facts.st_uid != os.getuid() or time.time() - facts.st_mtime < LEFTOVER_SECONDS:
                continue
            handle = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry.path, ignore_errors=True)
        except OSError:  # it has an owner, is none of ours, or somebody else was quicker
            continue
        finally:
            if handle >= 0:
                os.close(handle)
