"""Remote: a board as a place to measure. Models go there; figures and outputs come back."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from farthing import plugins
from farthing.bench.machine import Entrant, Here, Machine
from farthing.bench.racing import Rule, Tick, Timed
from farthing.bench.remote import answers, wire
from farthing.bench.remote.boards import Board, Boards
from farthing.bench.remote.engine import opened
from farthing.bench.remote.lineup import LineUp
from farthing.bench.remote.talk import Limits, Talk
from farthing.bench.remote.wheels import stamp
from farthing.bench.server import Served
from farthing.engines.base import Engine
from farthing.errors import EngineError, LinkError, NotInstalled, StorageError, TargetError
from farthing.links.ssh import Ssh
from farthing.model import MANIFEST, Model
from farthing.options import EngineOptions
from farthing.target import THIS, Target

PIECE_BYTES = 4 << 20
RECONNECT_LEASE = 60.0  # the worker of a broken connection needs a moment to notice
HOTTER = 10.0
Say = Callable[[str], object]
T = TypeVar("T")


class Remote:
    """A board as a `farthing.bench.machine.Machine`; use it in a ``with`` block.

    A dropped connection is made anew, and what was asked is asked once more from the beginning: a race is never
    put together from two.

    Args:
        board: the board, as `farthing.bench.remote.Boards` keeps it.
        say: told, in a sentence, what a user may want to know: that one waits, that a connection was lost.
        limits: how long things may take.

    Attributes:
        generation: grows with every connection; what was on the board before is not there any more.
        temperatures: degrees Celsius before and after the last race; None where there is no sensor.
    """

    def __init__(self, board: Board, say: Say | None = None, limits: Limits | None = None) -> None:
        self.board = board
        self.limits = limits or Limits()
        self.generation = 0
        self.temperatures: tuple[float | None, float | None] = (None, None)
        self.say: Say = say or (lambda sentence: None)
        self._ssh = Ssh(board.address, self.limits.connect)
        self._talk: Talk | None = None
        self._ready: wire.Ready | None = None

    def open(self) -> Self:
        """Connect, and take the board's lease.

        Raises:
            LinkError: it cannot be reached.
            TargetError: it refuses us, is in use by another, or its Farthing is another version.
        """
        self._connect(self.limits.lease)
        return self

    def _connect(self, lease: float) -> Talk:
        for attempt in range(max(1, self.limits.attempts)):
            try:
                return self._meet(lease)
            except LinkError:
                if attempt + 1 >= self.limits.attempts:
                    raise
                time.sleep(self.limits.pause * 2**attempt)
        raise LinkError(f"{self.board.name} does not answer")

    def _meet(self, lease: float) -> Talk:
        self._hang_up()
        name = self.board.name
        try:
            self._talk = Talk(self._ssh.open(), self.board.directory, name, self.limits)
            self._ready = answers.ready(self._talk, name, lease, self.say)
        except LinkError as error:
            crash = self._talk.crash() if self._talk else None
            self._hang_up()
            raise crash or error from error
        except BaseException:
            self._hang_up()
            raise
        if self.generation == 0 and self._ready.stamp not in {"", stamp()}:
            self.say(f"{name} has other files of Farthing than here: `farthing target update {name}`")
        self.generation += 1
        return self._talk

    def talk(self) -> Talk:
        """The conversation with the board's worker, begun anew if it broke."""
        if self._talk is None or self._talk.broken:
            return self._connect(
                max(self.limits.lease, RECONNECT_LEASE) if self.generation else self.limits.lease
            )
        return self._talk

    def steady(self, work: Callable[[], T]) -> T:
        """What ``work`` gives, tried again if the connection breaks, and once more if the worker dies.

        Raises:
            LinkError: it broke `Limits.attempts` times, or the board does not come back.
            EngineError: the worker died twice.
        """
        crashes = 0
        for breaks in itertools.count(1):
            try:
                return work()
            except LinkError as error:
                crash = self._talk.crash() if self._talk else None
                crashes += crash is not None
                if crashes > 1 or self._talk is None or breaks >= self.limits.attempts + crashes:
                    raise crash or error from error
                self.say(f"{crash or error}; trying once more")
        raise LinkError(f"{self.board.name} does not answer")

    @property
    def target(self) -> Target:
        return self._known.target

    @property
    def description(self) -> str:
        return f"{self._known.description} ({self.board.name})"

    @property
    def meter(self) -> str:
        return self._known.meter

    @property
    def _known(self) -> wire.Ready:
        if self._ready is None:
            self.talk()
        if self._ready is None:
            raise LinkError(f"{self.board.name} is not connected")
        return self._ready

    def version(self, engine: str) -> str:
        """See `farthing.bench.machine.Machine.version`."""
        known = self._known.engines
        if engine not in known:
            plugins.get("engine", engine)
            raise NotInstalled(
                f"{self.board.name} does not have the engine {engine}; it has {', '.join(known) or 'none'}: "
                f"`farthing target update {self.board.name} --engine {engine}`"
            )
        return known[engine]

    def load(self, model: Model, engine: str, options: EngineOptions) -> tuple[Engine, float]:
        """See `farthing.bench.machine.Machine.load`; the model is sent if it is not there yet."""
        return opened(self, model, engine, options)

    def send(self, model: Model) -> None:
        """See to it that the board has a model.

        Raises:
            ModelError: it changed here or on the way.
            EngineError: there is no room for it on the board.
        """
        try:
            self._send(model)
        except StorageError as error:  # of the board: another model may fit
            raise EngineError(str(error)) from error

    def _send(self, model: Model) -> None:
        talk = self.talk()
        there, _ = talk.ask(wire.Has(digest=model.digest), wire.Held, seconds=self.limits.load)
        if not there.there:
            paths = [model.path / name for name in (*model.manifest.files, MANIFEST)]
            total = sum(path.stat().st_size for path in paths)
            for path in paths:
                for piece in _pieces(path):
                    part = wire.Part(digest=model.digest, name=path.name, total=total)
                    talk.ask(part, wire.Yes, {"part": np.frombuffer(piece, np.uint8)})
            talk.ask(wire.Adopt(digest=model.digest), wire.Yes, seconds=self.limits.load)

    def forget(self, handle: int) -> None:
        """Have an engine's memory given back; a board that does not answer has lost it anyway."""
        if self._talk and not self._talk.broken:
            with contextlib.suppress(LinkError):
                self._talk.ask(wire.Close(handle=handle), wire.Yes)

    def race(self, entrants: Sequence[Entrant], rule: Rule, tick: Tick | None = None) -> list[Timed]:
        """See `farthing.bench.machine.Machine.race`."""
        return self._race(entrants, rule, tick, None)[0]

    def metered(
        self, entrant: Entrant, batch: int, rule: Rule, tick: Tick | None = None
    ) -> tuple[Timed, float | None]:
        """See `farthing.bench.machine.Machine.metered`."""
        timed, energy = self._race([entrant], rule, tick, batch)
        return timed[0], energy

    def _race(
        self, entrants: Sequence[Entrant], rule: Rule, tick: Tick | None, batch: int | None
    ) -> tuple[list[Timed], float | None]:
        lined = LineUp(self, entrants)

        def work() -> tuple[list[Timed], float | None]:
            request = wire.Race(entries=lined(), rule=rule, metered_batch=batch)
            answer, arrays = self.talk().ask(request, wire.Raced, None, self.limits.race, _ticking(tick))
            self._note(answer.before, answer.after)
            energy = answers.energy(self.board.name, answer.energy_mj)
            return answers.timed(self.board.name, answer, arrays, len(entrants)), energy

        try:
            return self.steady(work)
        except EngineError as error:
            raise lined.named(error) from error

    def fell(self) -> int | None:
        """The entrant whose turn it was when the worker died in a race; None if it lives, or nobody knows."""
        if self._talk is None or not self._talk.broken:
            return None
        with contextlib.suppress(TargetError):
            self.talk()
            return self._known.fell
        return None

    def serve(
        self, entrant: Entrant, rate: float, rule: Rule, workers: int = 1, tick: Tick | None = None
    ) -> Served:
        """See `farthing.bench.machine.Machine.serve`."""
        lined = LineUp(self, [entrant])

        def work() -> Served:
            request = wire.Serve(entry=lined()[0], rate=rate, rule=rule, workers=workers)
            answer, arrays = self.talk().ask(request, wire.Served, None, self.limits.race, _ticking(tick))
            self._note(answer.before, answer.after)
            return answers.served(self.board.name, answer, arrays)

        return self.steady(work)

    def _note(self, before: float | None, after: float | None) -> None:
        name = self.board.name
        before, after = answers.celsius(name, before), answers.celsius(name, after)
        self.temperatures = (before, after)
        if before is not None and after is not None and after - before >= HOTTER:
            self.say(
                f"{name} went from {before:.0f} to {after:.0f} degrees Celsius while it was timed: "
                "cool it, or let it rest"
            )

    def peak_memory(self, model: Model, engine: str, options: EngineOptions) -> tuple[float, float]:
        """See `farthing.bench.machine.Machine.peak_memory`."""

        def work() -> tuple[float, float]:
            self.send(model)
            request = wire.Memory(digest=model.digest, engine=engine, options=options)
            peak, _ = self.talk().ask(request, wire.Peak, seconds=self.limits.load)
            if not 0 <= peak.added <= peak.peak < 1e9:
                raise LinkError(
                    f"{self.board.name} says {peak.peak} MB, {peak.added} MB of them added: that makes no sense"
                )
            return peak.peak, peak.added

        return self.steady(work)

    def temperature(self) -> float | None:
        """See `farthing.bench.machine.Machine.temperature`."""
        warmth = self.steady(lambda: self.talk().ask(wire.Heat(), wire.Warmth)[0])
        return answers.celsius(self.board.name, warmth.celsius)

    def _hang_up(self) -> None:
        talk, self._talk = self._talk, None
        if talk:
            talk.close()
        self._ssh.close()

    def close(self) -> None:
        """Let go of the board; its worker leaves, and gives the lease back."""
        self._hang_up()
        self.generation += 1

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *exc: object) -> None:
        self.close()


def _pieces(path: Path) -> Iterator[bytes]:
    """A file's content; an empty file has one empty piece."""
    with path.open("rb") as file:
        piece = file.read(PIECE_BYTES)
        yield piece
        while piece := file.read(PIECE_BYTES):
            yield piece


def _ticking(tick: Tick | None) -> Callable[[wire.Answer], object]:
    def heard(answer: wire.Answer) -> None:
        if tick and isinstance(answer, wire.Tick):
            tick(max(0, min(answer.done, answer.total)), max(0, answer.total))

    return heard


@contextlib.contextmanager
def find_machine(
    name: str, boards: Path, say: Say | None = None, limits: Limits | None = None
) -> Iterator[Machine]:
    """The machine of a name, for the length of a ``with`` block: this one for ``this``, else a board, its lease held.

    Args:
        name: ``this``, or the name that ``farthing target add`` gave a board.
        boards: the directory of the user's boards, as in ``~/.config/farthing/targets``.
        say, limits: as `Remote` takes them.

    Raises:
        TargetError: no board of that name, or it cannot be used; a LinkError if it cannot be reached.
    """
    if name == THIS:
        yield Here()
        return
    with Remote(Boards(boards).get(name), say, limits) as remote:
        yield remote
