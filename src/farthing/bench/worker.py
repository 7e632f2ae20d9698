"""What runs on a board: ``python -m farthing.bench.worker DIRECTORY`` answers requests until its input ends.

It loads models, runs and races them, as `farthing.bench.machine.Here` does; who asks is a
`farthing.bench.remote.Remote`. It needs no more than Farthing's base dependencies and the engines themselves. It
holds the board's lease as long as it lives, and dies with the connection, its child processes with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from farthing import __version__, files, plugins, sysfs
from farthing.bench.machine import Entrant, Here
from farthing.bench.racing import Turn, race
from farthing.bench.remote import wire
from farthing.bench.remote.onboard import (
    MARKER,
    MODELS,
    SCRATCH,
    Refusal,
    held,
    holder,
    lease,
    sweep,
    when_gone,
)
from farthing.bench.remote.store import HERE, Store
from farthing.engines.base import Engine, Tensors
from farthing.errors import (
    EngineError,
    FarthingError,
    LinkError,
    NotInstalled,
    PluginError,
    RaceError,
    StorageError,
    TargetError,
)
from farthing.links.ssh import MARK

ROOT = Path("/")
TICK_SECONDS = 0.5
FEEDS_BYTES = 1 << 30
HANDLES = 1024
TURN = "turn"


class Worker:
    """Answers requests, one after another.

    Args:
        directory: the board's directory, see `farthing.bench.remote.onboard`.
        source, sink: where requests come from and answers go to.
    """

    def __init__(self, directory: Path, source: BinaryIO, sink: BinaryIO) -> None:
        self._directory = directory
        self._source, self._sink = source, sink
        self._here = Here()
        self._store = Store(directory / MODELS)
        self._engines: dict[int, Engine] = {}
        self._models: dict[int, str] = {}  # of each engine the digest of its model
        self._feeds: dict[str, Tensors] = {}
        self._number = 0
        self._next = 0
        self._lease = ExitStack()
        self._working = False
        self._answers: dict[type, Callable[[Any, Tensors], wire.Answer | tuple[wire.Answer, Tensors]]] = {
            wire.Hello: self._hello,
            wire.Has: self._has,
            wire.Part: self._part,
            wire.Adopt: self._adopt,
            wire.Load: self._load,
            wire.Run: self._run,
            wire.Session: self._session,
            wire.Close: self._close,
            wire.Keep: self._keep,
            wire.Feed: self._feed,
            wire.Race: self._race,
            wire.Serve: self._serve,
            wire.Memory: self._memory,
            wire.Heat: self._heat,
        }

    def serve(self) -> None:
        """Answer until the input ends."""
        self._sink.write(MARK)
        self._sink.flush()
        with self._lease, contextlib.suppress(EOFError, BrokenPipeError):
            while True:
                self._answer()

    def tidy(self) -> None:
        """Remove temporary files; those of another who holds the lease are left alone."""
        if self._working:
            shutil.rmtree(self._directory / SCRATCH, ignore_errors=True)

    def _answer(self) -> None:
        try:
            self._number, request, tensors = wire.unpack(self._read_into, wire.Request)
        except LinkError as error:
            self._say(wire.Failed(kind="LinkError", message=str(error)))
            raise EOFError from error  # where the next frame begins is not known any more
        try:
            if not self._working and not isinstance(request, wire.Hello | wire.Heat):
                raise TargetError("the worker answers nothing before it holds the board's lease")
            with files.explained(self._directory, HERE):
                answer = self._answers[type(request)](request, tensors)
        except (FarthingError, Refusal) as error:
            kind = error.kind if isinstance(error, Refusal) else type(error).__name__
            entrant = error.entrant if isinstance(error, RaceError) else None
            answer = wire.Failed(kind=kind, message=str(error)[:4000], entrant=entrant)
        except MemoryError:
            answer = wire.Failed(kind="EngineError", message="there is too little memory for that")
        self._say(*answer) if isinstance(answer, tuple) else self._say(answer)

    def _read_into(self, target: memoryview) -> None:
        done = 0
        while done < len(target):
            count = self._source.readinto(target[done:])  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            done += count

    def _say(self, answer: wire.Answer, tensors: Tensors | None = None) -> None:
        for piece in wire.pack(self._number, answer, tensors):
            self._sink.write(piece)
        self._sink.flush()

    def _hello(self, request: wire.Hello, _: Tensors) -> wire.Answer:
        if request.protocol != wire.PROTOCOL or sys.byteorder != "little":
            raise TargetError("the board speaks another version of the protocol: update the target")
        by, since, fell = "", "", None
        if request.wait >= 0 and not self._working:
            self._lease.enter_context(
                lease(
                    self._directory,
                    request.who[:100],
                    request.wait,
                    lambda who, since: self._say(wire.Busy(who=who, since=since)),
                )
            )
            self._working = True
            fell = _fallen(self._directory)
            sweep(self._directory)
            tempfile.tempdir = str(self._directory / SCRATCH)
            self._lease.callback(self.tidy)
        elif held(self._directory):
            by, since = holder(self._directory)
            by = by or "somebody"
        noted = _marker(self._directory)
        return wire.Ready(
            protocol=wire.PROTOCOL,
            version=__version__,
            stamp=noted.stamp[:64],
            python=sys.version.split()[0],
            target=self._here.target,
            description=self._here.description,
            meter=self._here.meter,
            engines=noted.engines or engines(),
            temperature=self._here.temperature(),
            load=sysfs.load_average(ROOT),
            governors=sysfs.governors(ROOT),
            turbo=sysfs.turbo(ROOT),
            holder=by,
            since=since,
            models_mb=self._store.size / 1e6,
            fell=fell,
        )

    def _has(self, request: wire.Has, _: Tensors) -> wire.Answer:
        return wire.Held(there=self._store.has(request.digest))

    def _part(self, request: wire.Part, tensors: Tensors) -> wire.Answer:
        used = set(self._models.values())
        self._store.receive(request.digest, request.name, request.total, _only(tensors, "part"), used)
        return wire.Yes()

    def _adopt(self, request: wire.Adopt, _: Tensors) -> wire.Answer:
        self._store.adopt(request.digest)
        return wire.Yes()

    def _load(self, request: wire.Load, _: Tensors) -> wire.Answer:
        model = self._store.open(request.digest)
        engine, load_ms = self._here.load(model, request.engine, request.options)
        return self._loaded(engine, request.digest, load_ms)

    def _loaded(self, engine: Engine, digest: str, load_ms: float) -> wire.Answer:
        if len(self._engines) >= HANDLES:
            engine.close()
            raise EngineError(f"{HANDLES} engines are open on the board: close some")
        self._next += 1
        self._engines[self._next], self._models[self._next] = engine, digest
        return wire.Loaded(
            handle=self._next,
            name=engine.name,
            version=engine.version,
            inputs=tuple(engine.inputs),
            outputs=tuple(engine.outputs),
            stateful=engine.stateful,
            load_ms=load_ms,
        )

    def _engine(self, handle: int) -> Engine:
        if handle not in self._engines:
            raise EngineError("this engine is closed: open the model again")
        return self._engines[handle]

    def _run(self, request: wire.Run, tensors: Tensors) -> tuple[wire.Answer, Tensors]:
        return wire.Yes(), self._engine(request.handle).run(tensors)

    def _session(self, request: wire.Session, _: Tensors) -> wire.Answer:
        stream = self._engine(request.handle).session()
        return self._loaded(stream, self._models[request.handle], 0.0)

    def _close(self, request: wire.Close, _: Tensors) -> wire.Answer:
        engine = self._engines.pop(request.handle, None)
        self._models.pop(request.handle, None)
        if engine:
            engine.close()
        return wire.Yes()

    def _keep(self, request: wire.Keep, _: Tensors) -> wire.Answer:
        self._feeds = {key: feed for key, feed in self._feeds.items() if key in request.feeds}
        missing = dict.fromkeys(key for key in request.feeds if key not in self._feeds)
        return wire.Lacking(missing=tuple(missing))

    def _feed(self, request: wire.Feed, tensors: Tensors) -> wire.Answer:
        kept = sum(array.nbytes for feed in self._feeds.values() for array in feed.values())
        if kept + sum(array.nbytes for array in tensors.values()) > FEEDS_BYTES:
            raise EngineError(f"more than {FEEDS_BYTES >> 20} MiB of feeds on the board: race fewer at once")
        if wire.key_of(tensors) != request.key:
            raise LinkError("a feed did not arrive as it was sent")
        self._feeds[request.key] = tensors
        return wire.Yes()

    def _entrant(self, entry: wire.Entry) -> Entrant:
        feeds = [self._feeds[key] for key in entry.feeds if key in self._feeds]
        if not feeds:
            raise EngineError("an engine cannot be timed without feeds")
        return self._engine(entry.handle), feeds

    def _race(self, request: wire.Race, _: Tensors) -> tuple[wire.Answer, Tensors]:
        entrants = [self._entrant(entry) for entry in request.entries]
        before, energy = self._here.temperature(), None
        if request.metered_batch is not None and len(entrants) == 1:
            found, energy = self._here.metered(entrants[0], request.metered_batch, request.rule, self._tick())
            timed = [found]
        else:
            with _turns(self._directory) as turn:
                timed = race(entrants, request.rule, self._tick(), turn)
        arrays = {}
        for i, one in enumerate(timed):
            arrays[f"calls{i}"] = np.asarray(one.calls)
            arrays[f"rounds{i}"] = np.asarray(one.rounds)
        made = tuple(one.made for one in timed)
        after = self._here.temperature()
        return wire.Raced(made=made, energy_mj=energy, before=before, after=after), arrays

    def _serve(self, request: wire.Serve, _: Tensors) -> tuple[wire.Answer, Tensors]:
        before, entrant = self._here.temperature(), self._entrant(request.entry)
        found = self._here.serve(entrant, request.rate, request.rule, request.workers, self._tick())
        answer = wire.Served(seconds=found.seconds, before=before, after=self._here.temperature())
        return answer, {"latencies": np.asarray(found.latencies)}

    def _tick(self) -> Callable[[int, int], None]:
        """Tells how far a race is, now and then: between its rounds, and not so often that it matters."""
        last = time.monotonic()

        def tick(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > TICK_SECONDS:
                self._say(wire.Tick(done=done, total=total))
                last = time.monotonic()

        return tick

    def _memory(self, request: wire.Memory, _: Tensors) -> wire.Answer:
        model = self._store.open(request.digest)
        peak, added = self._here.peak_memory(model, request.engine, request.options)
        return wire.Peak(peak=peak, added=added)

    def _heat(self, _: wire.Heat, __: Tensors) -> wire.Answer:
        return wire.Warmth(celsius=self._here.temperature())


def _only(tensors: Tensors, name: str) -> bytes:
    array = tensors.get(name)
    if array is None or array.dtype != np.uint8 or len(tensors) != 1:
        raise StorageError("a piece of a model came without its bytes")
    return array.tobytes()


@contextlib.contextmanager
def _turns(directory: Path) -> Iterator[Turn]:
    """What notes whose turn it is in a race, in a file: should this process die, the next one knows."""
    path = directory / SCRATCH / TURN
    with contextlib.suppress(OSError):  # the disk is full: then nobody will know
        path.touch(0o600)
    with ExitStack() as stack:
        handle = stack.enter_context(path.open("rb+", buffering=0)).fileno() if path.exists() else None

        def turn(entrant: int) -> None:
            if handle is not None:
                with contextlib.suppress(OSError):
                    os.pwrite(handle, b"%8d" % entrant, 0)

        yield turn
    path.unlink(missing_ok=True)


def _fallen(directory: Path) -> int | None:
    """Whose turn it was when the worker before this one died."""
    try:
        return int((directory / SCRATCH / TURN).read_bytes())
    except (OSError, ValueError):
        return None


class Marker(msgspec.Struct, frozen=True):
    """What an installer noted: digest of Farthing's files, and the engines with their versions."""

    stamp: str = ""
    engines: dict[str, str] = {}


def _marker(directory: Path) -> Marker:
    try:
        return msgspec.json.decode((directory / MARKER).read_bytes(), type=Marker)
    except (OSError, msgspec.MsgspecError):
        return Marker()


def engines() -> dict[str, str]:
    """The engines that can run here: name -> version of the runtime; importing them all takes its time."""
    found = {}
    for name in plugins.names("engine"):
        with contextlib.suppress(NotInstalled, PluginError):
            found[name] = str(plugins.get("engine", name).installed())
    return found


def die_with_the_connection(tidy: Callable[[], object]) -> None:
    """End this process and its children as soon as the other side is gone, whatever they are doing."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)

    def end() -> None:
        time.sleep(1)  # whoever waits for the next request leaves by itself
        tidy()
        os.killpg(os.getpgid(0), signal.SIGKILL)

    when_gone(0, select.POLLHUP | select.POLLRDHUP, end)


def trial(names: list[str]) -> None:
    """Import what a measurement needs; an error tells which engine does not load, and why.

    Raises:
        NotInstalled: an engine's runtime is missing, or does not load here.
    """
    for name in names:
        sys.stdout.write(f"{name} {plugins.get('engine', name).installed()}\n")


def main() -> None:
    """Serve on standard input and output; whatever else writes there is sent to standard error."""
    if sys.argv[1] == "--trial":
        trial(sys.argv[2:])
        return
    sink = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)
    source = os.fdopen(os.dup(0), "rb", buffering=0)
    worker = Worker(Path(sys.argv[1]), source, sink)
    die_with_the_connection(worker.tidy)
    worker.serve()


if __name__ == "__main__":
    main()
