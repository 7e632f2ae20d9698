"""What a board says of itself and of a race, checked before it is believed or shown."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Callable, Mapping

import numpy as np
from msgspec.structs import replace

from farthing import __version__
from farthing.bench.racing import Timed
from farthing.bench.remote import wire
from farthing.bench.remote.talk import Talk
from farthing.bench.remote.wire import Array
from farthing.bench.server import Served
from farthing.errors import LinkError, TargetError
from farthing.links.ssh import printable
from farthing.target import Target

COLDEST, HOTTEST = -100.0, 300.0


def whoami() -> str:
    """Who asks: user and machine, for others who want the board."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def ready(talk: Talk, name: str, lease: float, say: Callable[[str], object]) -> wire.Ready:
    """Greet a worker: what it says of its machine, fit to be shown; a negative ``lease`` only looks.

    Raises:
        TargetError: the board is in use, or its Farthing is of another version.
        LinkError: it says of itself what no machine can be.
    """
    told: list[str] = []

    def heard(answer: wire.Answer) -> None:
        if isinstance(answer, wire.Busy) and not told:
            told.append(f"{name} is in use by {printable(answer.who, 100) or 'somebody'}")
            since = f" since {printable(answer.since, 40)}" if answer.since else ""
            say(f"{told[0]}{since}: waiting up to {lease:.0f} s")

    hello = wire.Hello(protocol=wire.PROTOCOL, who=whoami(), wait=lease)
    said, _ = talk.ask(hello, wire.Ready, None, max(0.0, lease) + talk.limits.request, heard, wire.Busy)
    if said.protocol != wire.PROTOCOL or said.version != __version__:
        raise TargetError(
            f"{name} has Farthing {printable(said.version, 40)}, here it is {__version__}: "
            f"`farthing target update {name}`"
        )
    return replace(
        said,
        target=_named(said.target, name, tuple(said.engines)),
        description=printable(said.description, 200),
        meter=printable(said.meter, 100),
        temperature=celsius(name, said.temperature),
        load=_load(name, said.load),
        governors=tuple(printable(governor, 40) for governor in said.governors),
        python=printable(said.python, 40),
        holder=printable(said.holder, 100),
        since=printable(said.since, 40),
        engines={printable(key, 40): printable(value, 40) for key, value in said.engines.items()},
    )


def _named(target: Target, name: str, engines: tuple[str, ...]) -> Target:
    """A machine's own description under our name for it, with the engines it has."""
    return replace(
        target,
        name=name,
        cpu=printable(target.cpu, 100),
        arch=printable(target.arch, 20),
        isa=tuple(printable(flag, 20) for flag in target.isa),
        engines=tuple(printable(engine, 40) for engine in engines),
        board=printable(target.board, 100),
        accelerators=tuple(printable(name, 60) for name in target.accelerators),
    )


def _load(name: str, value: float | None) -> float | None:
    if value is not None and not 0 <= value < 1e6:
        raise LinkError(f"{name} says that {value} processes want its processors, which makes no sense")
    return value


def celsius(name: str, value: float | None) -> float | None:
    """A temperature.

    Raises:
        LinkError: no board is as cold or hot as that.
    """
    if value is not None and not COLDEST < value < HOTTEST:
        raise LinkError(f"{name} says it has {value} degrees Celsius, which makes no sense")
    return value


def timed(name: str, answer: wire.Raced, arrays: Mapping[str, Array], count: int) -> list[Timed]:
    """The times of a race of ``count`` engines.

    Raises:
        LinkError: times are missing, or none that a clock can give.
    """
    expected = {f"{what}{i}" for what in ("calls", "rounds") for i in range(count)}
    if set(arrays) != expected or len(answer.made) != count:
        raise LinkError(f"{name} sends the times of another race")
    for array in arrays.values():
        if array.dtype != np.float64 or array.ndim != 1 or not array.size or not _sane(array):
            raise LinkError(f"{name} sends times that no clock gives")
    rounds = {len(arrays[f"rounds{i}"]) for i in range(count)}
    if len(rounds) != 1 or any(len(arrays[f"calls{i}"]) > made for i, made in enumerate(answer.made)):
        raise LinkError(f"{name} sends times that do not fit together")
    return [
        Timed(calls=arrays[f"calls{i}"].tolist(), rounds=arrays[f"rounds{i}"].tolist(), made=made)
        for i, made in enumerate(answer.made)
    ]


def energy(name: str, value: float | None) -> float | None:
    """Millijoules; a LinkError for what is none."""
    if value is not None and not 0 <= value < 1e12:
        raise LinkError(f"{name} says an inference took {value} mJ, which makes no sense")
    return value


def served(name: str, answer: wire.Served, arrays: Mapping[str, Array]) -> Served:
    """The latencies of a server run; a LinkError for what no clock can give."""
    found = arrays.get("latencies")
    if found is None or found.dtype != np.float64 or found.ndim != 1 or not found.size or not _sane(found):
        raise LinkError(f"{name} sends latencies that no clock gives")
    if not 0 < answer.seconds < 1e6:
        raise LinkError(f"{name} says a server run took {answer.seconds} s, which makes no sense")
    return Served(latencies=found.tolist(), seconds=answer.seconds)


def _sane(seconds: Array) -> bool:
    return bool(np.isfinite(seconds).all() and (seconds > 0).all() and (seconds < 1e5).all())
