"""Questions to the worker on a board, and its answers; whatever comes from there is checked before it is believed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from farthing import errors
from farthing.bench.remote import wire
from farthing.bench.remote.wire import Array
from farthing.config import Section
from farthing.engines.base import Tensors
from farthing.errors import EngineError, FarthingError, LinkError, RaceError, TargetError
from farthing.links.ssh import MARK, Channel, Ssh, printable

AnswerT = TypeVar("AnswerT")
SLOWEST_BYTES = 50_000  # a second
_ERRORS: dict[str, type[FarthingError]] = {
    name: part
    for name in errors.__all__
    if isinstance(part := getattr(errors, name), type) and part is not RaceError
}
_NOT_THERE = {126, 127}


def named(kind: str, message: str) -> FarthingError:
    """The error of a name that a board gave; a TargetError for a name that is none."""
    return _ERRORS.get(kind, TargetError)(message)


class Limits(Section, frozen=True, kw_only=True):
    """How long a board may take, in seconds, and how often it is tried.

    Attributes:
        connect: until it answers and its worker is up.
        request: for a small request.
        load: for loading a model, or measuring its memory.
        silence: between two signs of life in a race.
        race: for a whole race.
        lease: to wait while another measures there.
        attempts: connections tried, and connections that may break in one request, before a board is given up.
        pause: before the second attempt; twice as long before each further one.
        feeds_mb: most megabytes of samples sent for one engine of a race.
    """

    connect: float = 20.0
    request: float = 120.0
    load: float = 600.0
    silence: float = 600.0
    race: float = 7200.0
    lease: float = 600.0
    attempts: int = 3
    pause: float = 2.0
    feeds_mb: float = 32.0


class Talk:
    """A conversation with a worker; it is over when the connection breaks or an answer makes no sense.

    Args:
        ssh: an open connection.
        directory: the board's directory.
        name: what people call the board.
        limits: how long things may take.
    """

    def __init__(self, ssh: Ssh, directory: str, name: str, limits: Limits) -> None:
        self._name = name
        self.limits = limits
        self._number = 0
        self._turn = threading.RLock()
        self.broken = False
        script = '"$1/venv/bin/python" -I -m farthing.bench.worker "$1"; exit $?'
        self._channel: Channel = ssh.start(script, [directory])
        try:
            self._channel.until(MARK, time.monotonic() + limits.connect)
        except LinkError as error:
            code = self._channel.code  # before we end it
            self._channel.close()
            if code is None:
                raise
            raise TargetError(self._why(code)) from error
        except BaseException:
            self._channel.close()
            raise

    def _why(self, code: int) -> str:
        if code in _NOT_THERE:
            return f"{self._name}: Farthing is not there (any more): `farthing target update {self._name}`"
        said = printable(self._channel.said) or "it says nothing"
        return f"{self._name}: Farthing does not start there ({said}): `farthing target update {self._name}`"

    def ask(
        self,
        request: wire.Request,
        expected: type[AnswerT],
        tensors: Tensors | None = None,
        seconds: float | None = None,
        heard: Callable[[wire.Answer], object] | None = None,
        sign: type[wire.Tick | wire.Busy] = wire.Tick,
    ) -> tuple[AnswerT, dict[str, Array]]:
        """One question, one answer.

        Args:
            request: the question.
            expected: the kind of answer.
            tensors: what goes with it.
            seconds: most time it may take; `Limits.request` if None.
            heard: told of signs of life meanwhile; without it none are allowed.
            sign: the kind of them.

        Raises:
            LinkError: no sensible answer came, or none in time; the conversation is over.
            FarthingError: what went wrong there.
        """
        with self._turn:
            if self.broken:
                raise LinkError(f"{self._name}: the connection is closed")
            self._number += 1
            pieces = wire.pack(self._number, request, tensors)
            size = sum(map(len, pieces))
            last = time.monotonic() + (seconds or self.limits.request) + size / SLOWEST_BYTES
            self.broken = True  # until the answer is here, whatever comes between
            try:
                for piece in pieces:
                    self._channel.write(piece, last)
                answer, arrays = self._answer(expected, last, heard, sign)
            except BrokenPipeError:
                answer, arrays = self._answer(expected, last, heard, sign)  # it may have said why
            self.broken = False
        if isinstance(answer, wire.Failed):
            raise self._failure(answer)
        return answer, arrays

    def _answer(
        self,
        expected: type[AnswerT],
        last: float,
        heard: Callable[[wire.Answer], object] | None,
        sign: type[wire.Tick | wire.Busy],
    ) -> tuple[AnswerT | wire.Failed, dict[str, Array]]:
        while True:
            end = min(last, time.monotonic() + self.limits.silence)
            number, answer, arrays = wire.unpack(partial(self._channel.read_into, end=end), wire.Answer)
            if number != self._number:
                raise LinkError(f"{self._name} answers what was not asked: the connection is given up")
            if isinstance(answer, expected | wire.Failed):
                return answer, arrays
            if heard is None or not isinstance(answer, sign):
                raise LinkError(
                    f"{self._name} answers with {type(answer).__name__}, which makes no sense here"
                )
            heard(answer)

    def _failure(self, failed: wire.Failed) -> FarthingError:
        message = f"on {self._name}: {printable(failed.message, 2000)}"
        return named(failed.kind, message) if failed.entrant is None else RaceError(message, failed.entrant)

    def crash(self) -> EngineError | None:
        """If the worker ended by itself: the error that says so. None if the connection broke."""
        if not self.broken or not self._channel.ended:
            return None
        self._channel.wait(time.monotonic() + 2)
        code = self._channel.code
        if code is None:
            return None
        known = {128 + number: number.name for number in signal.Signals}
        said = printable(self._channel.said)
        return EngineError(
            f"on {self._name}: the process that runs the model ended with {known.get(code, f'code {code}')}"
            f"{f' ({said})' if said else ''}: the engine crashed, or memory ran out"
        )

    def close(self) -> None:
        """End the conversation; the worker leaves."""
        self.broken = True
        self._channel.close()
