"""Room in a store: what may go, in which order, and what is said when there is not enough."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from farthing import files
from farthing.device.update.download import lock_of
from farthing.device.update.layout import Layout, announced, cost, tree_cost
from farthing.errors import StorageError


class Limits(NamedTuple):
    """What a store may take.

    Attributes:
        most: bytes it may have, all told; None: as many as the disk.
        spare: bytes of the disk that are to stay free.
    """

    most: int | None
    spare: int


class _Victim(NamedTuple):
    size: int
    remove: Callable[[], None]


def make_room(layout: Layout, need: int, what: str, limits: Limits) -> None:
    """See that so many bytes can be written; what may go goes, as far as it must. Call it with the lock held.

    Args:
        layout: of the store.
        need: bytes.
        what: is to be written, for the error.
        limits: versions are removed only where the store has a limit of its own.

    Raises:
        StorageError: they cannot be had; nothing was removed unless a reader took hold of something meanwhile.
    """
    lacking = _lacking(layout, need, limits)
    if lacking <= 0:
        return
    victims = [*_garbage(layout), *(_old_versions(layout) if limits.most is not None else ())]
    if sum(victim.size for victim in victims) >= lacking:
        for victim in victims:
            victim.remove()
            if _lacking(layout, need, limits) <= 0:
                return
    raise StorageError(_refusal(layout, need, what, limits))


def remove_garbage(layout: Layout) -> None:
    """Remove quarantine, objects that no version names, and downloads that nobody is writing."""
    for victim in _garbage(layout):
        victim.remove()


def drop(layout: Layout, name: str, version: str) -> None:
    """Remove a version, unless it is pointed to or held."""
    digest = layout.digest(name, version)
    if version in layout.pointers(name):
        return
    if len(layout.referenced()[digest]) > 1 or not (layout.objects / digest).is_dir():
        layout.strike(name, version)
        return
    with files.claim(layout.objects / digest) as free:
        if free:
            layout.strike(name, version)
            files.remove_directory(layout.objects / digest)


def _garbage(layout: Layout) -> Iterator[_Victim]:
    for place in layout.quarantined():
        yield _Victim(tree_cost(place), partial(shutil.rmtree, place, ignore_errors=True))
    named = layout.referenced()
    for place in layout.stored():
        if place.name not in named:
            yield _Victim(tree_cost(place), partial(_remove_object, place))
    for place in layout.downloads():
        if _is_idle(place):
            yield _Victim(cost(announced(place)), partial(_remove_download, place))


def _old_versions(layout: Layout) -> Iterator[_Victim]:
    """Versions that are not pointed to, those added longest ago first."""
    named = layout.referenced()
    loose = [
        (layout.added(name, version), name, version)
        for name in layout.names()
        for version in layout.versions(name)
        if version not in layout.pointers(name)
    ]
    for _, name, version in sorted(loose):
        alone = len(named[layout.digest(name, version)]) == 1
        size = tree_cost(layout.object(name, version)) if alone else 0
        yield _Victim(size, partial(drop, layout, name, version))


def _remove_object(place: Path) -> None:
    with files.claim(place) as free:
        if free:
            files.remove_directory(place)


def _remove_download(place: Path) -> None:
    with (
        contextlib.suppress(StorageError),
        files.lock(lock_of(place), "the download"),
    ):  # somebody is writing it
        place.unlink(missing_ok=True)


def _is_idle(download: Path) -> bool:
    try:
        with files.lock(lock_of(download), "the download"):
            return True
    except StorageError:
        return False


def _lacking(layout: Layout, need: int, limits: Limits) -> int:
    lacks = [need + limits.spare - shutil.disk_usage(layout.root).free]
    if limits.most is not None:
        lacks.append(layout.used() + need - limits.most)
    return max(lacks)


def _refusal(layout: Layout, need: int, what: str, limits: Limits) -> str:
    free, used = shutil.disk_usage(layout.root).free, layout.used()
    if limits.most is not None and used + need > limits.most:
        return (
            f"{what} needs {need:,} bytes, but {used:,} of the {limits.most:,} that {layout.root} may take are in use, "
            "and what is current, previous or held stays: raise the limit"
        )
    return (
        f"{what} needs {need:,} bytes, but of {free:,} on the disk of {layout.root} {limits.spare:,} are to stay free: "
        "`farthing store gc --keep 0` removes versions that are not in use"
    )
