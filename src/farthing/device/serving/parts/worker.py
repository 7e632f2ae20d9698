"""What runs in the process of one part: take a token, compute in the slot it names, give the token back.

A token is one byte. The process ends when its parent does: then nobody holds the other end of its socket any more, or
only a fork of the parent, which does not use it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec

from farthing.config import Section, plain
from farthing.device.serving.parts.slots import Fault, Layout, Slot
from farthing.engines.base import Engine, open_engine
from farthing.errors import EngineError, FarthingError
from farthing.model import Model
from farthing.options import EngineOptions

READY, REFUSED = 255, 254  # first byte of a process; a Fault follows a refusal
MOST_SLOTS = 250
LOOK = 2.0  # seconds between looks for the parent, while nothing comes


class Order(Section, frozen=True, kw_only=True):
    """What a process is to run.

    Attributes:
        model: directory of the part.
        engine, options: what runs it.
        layout: of the slots.
        slots: numbers of their open files.
        socket: number of its end of the socket.
        parent: process id of who started it.
    """

    model: str
    engine: str
    options: EngineOptions
    layout: Layout
    slots: tuple[int, ...]
    socket: int
    parent: int


def start(order: Order) -> subprocess.Popen[bytes]:
    """Start a process for a part; no module of it comes from the working directory, which may be a stranger's."""
    path = [place for place in sys.path if place not in {"", "."}]
    program = (
        f"import sys; sys.path[:] = {path!r}; from farthing.device.serving.parts.worker import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-P", "-c", program, msgspec.json.encode(plain(order)).decode()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(order.socket, *order.slots),
    )


def main() -> None:
    """Run as a process of its own: the order is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    order = msgspec.json.decode(sys.argv[1], type=Order)
    with socket.socket(fileno=order.socket) as link:
        try:
            engine = opened(order)
        except FarthingError as error:
            link.sendall(bytes([REFUSED]) + msgspec.json.encode(Fault.of(error)))
            return
        with engine:
            slots = [Slot(file, order.layout) for file in order.slots]
            with contextlib.suppress(ConnectionError):  # the other end is gone
                link.sendall(bytes([READY]))
                serve(engine, slots, link, order.parent)


def opened(order: Order) -> Engine:
    """The engine of a part.

    Raises:
        EngineError: it keeps a state between calls.
        FarthingError: as `open_engine`.
    """
    model = Model.open(Path(order.model))
    engine = open_engine(model, order.engine, order.options)
    if engine.stateful:
        engine.close()
        raise EngineError(
            f"the part {model.manifest.name} keeps a state between calls, which requests of several callers would mix "
            "up: run the model as one, a session() for each stream"
        )
    return engine


def serve(engine: Engine, slots: list[Slot], link: socket.socket, parent: int) -> None:
    """Compute until the other end is gone."""
    link.settimeout(LOOK)
    while True:
        try:
            token = link.recv(1)
        except TimeoutError:
            if os.getppid() != parent:
                return
            continue
        if not token:
            return
        compute(engine, slots[token[0]])
        link.sendall(token)


def compute(engine: Engine, slot: Slot) -> None:
    """One request: inputs are read where they lie, outputs written behind them."""
    try:
        for name, value in engine.run({spec.name: slot.get(spec.name) for spec in engine.inputs}).items():
            slot.put(name, value)
    except FarthingError as error:
        slot.fail(error)
    except Exception as error:  # noqa: BLE001 - an engine may have bugs; the request after this one is another
        slot.fail(EngineError(f"{engine.name} failed: {type(error).__name__}: {error}"))
