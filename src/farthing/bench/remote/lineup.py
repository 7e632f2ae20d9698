"""The entrants of a race on a board: brought there before the start, and named when one of them fails."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from farthing.bench.machine import Entrant
from farthing.bench.remote import wire
from farthing.bench.remote.engine import RemoteEngine
from farthing.engines.base import Engine, Tensors
from farthing.errors import EngineError, MeasurementError, RaceError

if TYPE_CHECKING:
    from farthing.bench.remote.machine import Remote


class LineUp:
    """Engines of a board and the feeds they run on; called, it sees to it that all are there. Feeds are read only once.

    Raises:
        MeasurementError: an engine was not loaded on this board.
    """

    def __init__(self, machine: Remote, entrants: Sequence[Entrant]) -> None:
        self._machine = machine
        self._engines = [self._own(engine) for engine, _ in entrants]
        feeds = self._capped([samples for _, samples in entrants])
        self._keys = [tuple(map(wire.key_of, some)) for some in feeds]
        self._known = dict(zip(chain(*self._keys), chain(*feeds), strict=True))
        self._loading: int | None = None

    def __call__(self) -> tuple[wire.Entry, ...]:
        """The entries of a race; what a new connection lost is loaded and sent again."""
        handles = []
        for place, engine in enumerate(self._engines):
            self._loading = place
            handles.append(engine.handle())
        self._loading = None
        talk = self._machine.talk()
        lacking, _ = talk.ask(wire.Keep(feeds=tuple(self._known)), wire.Lacking)
        for key in self._known.keys() & set(lacking.missing):
            talk.ask(wire.Feed(key=key), wire.Yes, self._known[key])
        return tuple(
            wire.Entry(handle=handle, feeds=row) for handle, row in zip(handles, self._keys, strict=True)
        )

    def named(self, error: EngineError) -> EngineError:
        """An error of the race with the entrant it is about, where that is known."""
        if isinstance(error, RaceError):
            return error if self._place(error.entrant) is not None else EngineError(str(error))
        if self._loading is not None:
            return RaceError(f"{error}; {self._engines[self._loading].label} was being loaded", self._loading)
        if len(self._engines) == 1:
            return RaceError(str(error), 0)
        place = self._place(self._machine.fell())
        if place is None:
            return error
        return RaceError(f"{error}; it was the turn of {self._engines[place].label}", place)

    def _place(self, entrant: int | None) -> int | None:
        """The place of an entrant that a board named; None if there is none such."""
        return entrant if entrant is not None and 0 <= entrant < len(self._engines) else None

    def _own(self, engine: Engine) -> RemoteEngine:
        machine = self._machine
        if not isinstance(engine, RemoteEngine) or engine.machine is not machine:
            raise MeasurementError(f"this engine was not loaded on {machine.board.name}: load it there")
        return engine

    def _capped(self, feeds: Sequence[Sequence[Tensors]]) -> list[Sequence[Tensors]]:
        """As many feeds of each engine as may be sent, the same number of each."""
        name, most = self._machine.board.name, self._machine.limits.feeds_mb
        sizes = [max(sum(array.nbytes for array in feed.values()) for feed in some) for some in feeds]
        count = min(max(1, int(most * 1e6 / max(1, size))) for size in sizes)
        if any(len(some) > count for some in feeds):
            self._machine.say(
                f"{name}: timed on {count} of {max(map(len, feeds))} batches of samples: "
                f"more than {most:g} MB are not sent"
            )
        return [some[:count] for some in feeds]
