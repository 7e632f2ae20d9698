"""The models a server has: loaded, swapped under load, unloaded. Everything but opening runs in one event loop."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from farthing.device.serving.server.repository.opening import open_version
from farthing.device.serving.server.repository.pbtxt import TritonConfig
from farthing.device.serving.server.repository.places import Place, Version, find
from farthing.device.serving.server.repository.served import Served
from farthing.device.serving.server.settings import Entry, ModelSettings
from farthing.device.serving.service import GRACE, typed
from farthing.errors import FarthingError, ModelError, UnknownModelError, nearest

Open = Callable[..., Served]
ResultT = TypeVar("ResultT")


class Event(NamedTuple):
    """Something that happened to a model, or a path that holds none; ``reason`` says why it failed, or what else there
    is to say.
    """

    kind: Literal["loaded", "failed", "retired", "unloaded"]
    name: str
    version: str
    reason: str = ""


class Line(NamedTuple):
    """A line of the index: a version that is served, or one that could not be and why."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class _Slot(NamedTuple):
    served: Served
    cause: Hashable  # of its being opened: equal as long as the same is to be served in the same way


class Repository:
    """Models by name and version.

    A new version is opened and warmed while the old one answers; then requests go to the new one, and the old one is
    closed when its last request is answered. What cannot be opened changes nothing.

    Args:
        entries: where models lie.
        listener: told what happens.
        opener: turns a version on the disk into one that answers, in a thread of its own.

    Attributes:
        generation: changes whenever what is served changes.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        listener: Callable[[Event], None] = lambda event: None,
        opener: Open = open_version,
    ) -> None:
        self.generation = 0
        self._entries = entries
        self._listener, self._opener = listener, opener
        self._slots: dict[str, dict[str, _Slot]] = {}
        self._failures: dict[str, tuple[Hashable, str]] = {}
        self._astray: dict[Path, FarthingError] = {}  # entries where nothing is found
        self._found: set[Path] = set()  # entries where something was found at least once
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._closing: set[asyncio.Future[None]] = set()
        self._unloaded: set[str] = set()
        self._grace = GRACE

    def find(self, name: str, version: str = "") -> Served:
        """The version that answers; an empty one is the default: the highest.

        Raises:
            UnknownModelError: it is not served.
        """
        slots = self._slots.get(name)
        if not slots:
            reason = self._failures.get(name, ((), ""))[1]
            hint = f"it could not be loaded: {reason}" if reason else nearest(name, self._slots)
            raise UnknownModelError(f"no model {name!r} is served; {hint}")
        slot = slots.get(version) if version else next(reversed(slots.values()))
        if slot is None:
            raise UnknownModelError(
                f"no version {version!r} of {name!r} is served; {nearest(version, slots)}"
            )
        return slot.served

    def served(self) -> list[Served]:
        """All versions that answer, by name, the default of each last."""
        return [slot.served for _, slots in sorted(self._slots.items()) for slot in slots.values()]

    def index(self) -> list[Line]:
        """What is served, and what should be and is not."""
        lines = [Line(one.name, one.version, "READY", "") for one in self.served()]
        missing = {name: why for name, (_, why) in self._failures.items()}
        missing |= {str(path): str(error) for path, error in self._astray.items()}
        lines += [Line(name, "", "UNAVAILABLE", why) for name, why in sorted(missing.items())]
        lines += [Line(name, "", "UNAVAILABLE", "unloaded") for name in sorted(self._unloaded)]
        return lines

    @property
    def complete(self) -> bool:
        """Whether all that should be served is. A model that lives on counts, whatever lies on the disk."""
        found = all(entry.path in self._found for entry in self._entries)
        return found and all(self._slots.get(name) for name in self._failures)

    async def start(self, keep_going: bool = False) -> None:
        """Load everything.

        Args:
            keep_going: serve what can be served when a model cannot; it is found in the index.

        Raises:
            FarthingError: a model cannot be served, or two have the same name.
        """
        places = await self._scan(tell=keep_going)
        if self._astray and not keep_going:
            raise next(iter(self._astray.values()))
        for place in places.values():
            try:
                await self._load(place, tell=keep_going)
            except FarthingError:
                if not keep_going:
                    raise

    async def load(self, name: str) -> None:
        """Serve what now lies where a model is kept; what did not change goes on as it is.

        Raises:
            UnknownModelError: no model of that name lies there.
            FarthingError: it cannot be served, and why; what was served before still is.
        """
        place = (await self._scan()).get(name)
        if place is not None:
            return await self._load(place)
        if self._astray:
            raise next(iter(self._astray.values()))
        raise UnknownModelError(f"no model {name!r} lies where this server looks for models")

    async def _load(self, place: Place, tell: bool = True) -> None:
        async with self._locks[place.name]:
            try:
                await self._replace(place, await _aside(place.versions))
            except FarthingError as error:
                self._fail(place.name, (), error, tell)
                raise

    async def unload(self, name: str) -> None:
        """Serve a model no longer; requests that are at it are answered.

        Raises:
            UnknownModelError: it is not served.
        """
        self.find(name)
        async with self._locks[name]:
            self.find(name)
            slots = self._slots.pop(name)
            self._unloaded.add(name)
            self.generation += 1
            for slot in slots.values():
                self._retire(slot.served, "unloaded")

    async def refresh(self) -> None:
        """Look at the disk, and load what is new or changed; what fails is told to the listener, once.

        A model that is gone from the disk is served until it is unloaded.
        """
        places = await self._scan()
        for name in places.keys() - self._unloaded:
            async with self._locks[name]:
                place, cause = places[name], None
                try:
                    versions = await _aside(place.versions)
                    cause = _cause(place, versions)
                    if not self._differs(place, versions):
                        self._failures.pop(name, None)
                    elif self._failures.get(name, (None, ""))[0] != cause:
                        await self._replace(place, versions)
                except FarthingError as error:
                    self._fail(name, str(error) if cause is None else cause, error)

    async def close(self, grace: float = GRACE) -> None:
        """Close every service; requests that are still at one have ``grace`` seconds."""
        self._grace = grace
        for name in list(self._slots):
            for slot in self._slots.pop(name).values():
                self._listener(Event("unloaded", name, slot.served.version))
                self._close(slot.served)
        self.generation += 1
        while self._closing:
            await asyncio.wait(self._closing)

    def left(self, served: Served) -> None:
        """Note that a request is through with a version."""
        served.users -= 1
        if served.retired and not served.users:
            self._close(served)

    async def _scan(self, tell: bool = True) -> dict[str, Place]:
        """The models on the disk, by name. An entry without any is told to the listener, once."""
        places, astray = await _aside(self._looked)
        for path, error in astray.items():
            if tell and str(error) != str(self._astray.get(path)):
                self._listener(Event("failed", str(path), "", str(error)))
        self._astray = astray
        self._found |= {entry.path for entry in self._entries} - astray.keys()
        if not astray:
            for name in self._failures.keys() - places.keys():
                del self._failures[name]  # it was taken away
        return places

    def _looked(self) -> tuple[dict[str, Place], dict[Path, FarthingError]]:
        places: dict[str, Place] = {}
        astray: dict[Path, FarthingError] = {}
        for entry in self._entries:
            try:
                found = find(entry)
            except FarthingError as error:
                astray[entry.path] = error
                continue
            for place in found:
                other = places.get(place.name)
                places[place.name] = place if other is None else _twice(other, place)
        return places, astray

    async def _replace(self, place: Place, versions: Sequence[Version]) -> None:
        """Open what is new, then put it in place of the old, all of it at once."""
        name, before = place.name, self._slots.get(place.name, {})
        opened: list[_Slot] = []
        after: dict[str, _Slot] = {}
        try:
            for version in versions:
                cause = _cause(place, [version])
                slot = next((slot for slot in before.values() if slot.cause == cause), None)
                if slot is None:
                    slot = _Slot(await self._open(place, version), cause)
                    opened.append(slot)
                after[slot.served.version] = slot
        except BaseException:
            for slot in opened:
                self._close(slot.served)
            raise
        self._slots[name] = after
        self._failures.pop(name, None)
        self._unloaded.discard(name)
        self.generation += 1
        for slot in opened:
            self._listener(Event("loaded", name, slot.served.version, _remark(slot.served)))
        for slot in before.values():
            if slot not in after.values():
                self._retire(slot.served, "retired")

    def _differs(self, place: Place, versions: Sequence[Version]) -> bool:
        there = [slot.cause for slot in self._slots.get(place.name, {}).values()]
        return there != [_cause(place, [version]) for version in versions]

    async def _open(self, place: Place, version: Version) -> Served:
        opening = partial(self._opener, version.path, place.name, version.name, place.settings, place.config)
        try:
            return await _aside(opening)
        except Exception as error:  # an engine may have bugs, but who looks at the disk goes on
            raise typed(error, place.name) from error

    def _fail(self, name: str, cause: Hashable, error: FarthingError, tell: bool = True) -> None:
        """Keep why a model could not be loaded, and tell it, unless that was said already."""
        reason = str(error)
        if tell and self._failures.get(name, ((), ""))[1] != reason:
            self._listener(Event("failed", name, "", reason))
        self._failures[name] = (cause, reason)

    def _retire(self, served: Served, how: Literal["retired", "unloaded"]) -> None:
        served.retired = True
        self._listener(Event(how, served.name, served.version))
        if not served.users:
            self._close(served)

    def _close(self, served: Served) -> None:
        closing = asyncio.ensure_future(_aside(partial(served.service.close, self._grace)))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _remark(served: Served) -> str:
    ignored = ", ".join(served.facts.ignored)
    return ignored and f"of its config.pbtxt, {ignored} make no difference here"


def _twice(one: Place, other: Place) -> Place:
    """Two models of one name: nobody knows which of them is meant."""
    text = f"{one.path} and {other.path} are both called {one.name!r}: name one, as in NAME=PATH"
    return one._replace(problem=ModelError(text))


def _cause(place: Place, versions: Sequence[Version]) -> Hashable:
    """Equal as long as the same files are to be served in the same way."""
    settings: tuple[ModelSettings, TritonConfig] = (place.settings, place.config)
    return (repr(settings), *((version.name, version.mark) for version in versions))


async def _aside(work: Callable[[], ResultT]) -> ResultT:
    """Run what may block in another thread."""
    return await asyncio.get_running_loop().run_in_executor(None, work)
