"""Processes: a model in parts, each in a process of its own; tensors stay in memory that all of them share."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec

from farthing.bundle import Bundle, Ends, as_bundle, wire
from farthing.device.serving.ending import AtExit, Home
from farthing.device.serving.parts.line import Line, Send
from farthing.device.serving.parts.shard import WAITING, Run, ShardStats, Tally
from farthing.device.serving.parts.slots import Fault, Layout, Slot, memory
from farthing.device.serving.parts.worker import MOST_SLOTS, READY, REFUSED, Order, start
from farthing.device.serving.service import GRACE, Answer, Clock, Request, Service, failed, late, settle
from farthing.engines.base import check_feeds
from farthing.errors import ClosedError, ConfigError, EngineError, FarthingError, OverloadError
from farthing.model import Model
from farthing.options import EngineOptions

PATIENCE = 60.0
LOADING = 300.0  # seconds for a part to get ready
WITHIN = 60.0  # seconds in which restarts are counted
POLL = 1.0  # seconds between looks at who hangs


class _Part:
    """A part's process and our end of its socket.

    Args:
        order: what it runs; the socket is filled in.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self.refusal: FarthingError | None = None
        self.hung = False
        self.begin()

    def begin(self) -> None:
        """Start the process."""
        self.link, end = socket.socketpair()
        self.hung = False
        with end:
            self.process = start(msgspec.structs.replace(self._order, socket=end.fileno()))

    def send(self, slot: int) -> None:
        """Hand over a token; a process that is gone is noticed by whoever reads."""
        with contextlib.suppress(OSError):
            self.link.sendall(bytes([slot]))

    def kill(self) -> None:
        """End a process that hangs."""
        self.hung = True
        self.process.kill()

    def bury(self) -> str:
        """Wait for a process that is gone or was told to go; how it ended."""
        self.link.close()
        try:
            code = self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return (
            "hung and was killed"
            if self.hung
            else f"ended with {f'signal {-code}' if code < 0 else f'code {code}'}"
        )


class Processes(Service):
    """A pipeline over processes: a part works on a request while the next one works on the request before.

    A request's tensors lie in one slot of shared memory from the first part to the last; between processes goes a
    token of one byte. A part whose process dies or hangs fails the request it was computing with an EngineError and is
    started anew; what stood before it keeps its place. Processes end with their parent, however that ends, and leave
    nothing behind: the memory has no name.

    Args:
        models: the parts, in order.
        name: of the whole; empty joins the names of the parts.
        outputs: names of the whole's outputs; empty: what parts make and no later part takes.
        engine, options: what runs every part, as `open_engine` takes them; engines that were registered in this process
            alone are not known in others.
        depth: requests in the parts at once, each with a slot; None takes two for each part. A slot is as large as the
            largest request it has held.
        waiting: requests that may stand in line; further ones get an OverloadError.
        restarts: how often a part may be started anew within a minute; once more, and the service is broken.
        patience: seconds for one request in one part; its process is killed then.
        clock: what deadlines and patience are held against.

    Raises:
        ModelError: the tensors of the parts do not fit together.
        EngineError: a part keeps a state between calls, or its process does not get ready.
        UnsupportedError: a tensor of a type that processes cannot share.
        FarthingError: what opening a part raised, in its process.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        name: str = "",
        outputs: Sequence[str] = (),
        engine: str = "",
        options: EngineOptions | None = None,
        depth: int | None = None,
        waiting: int = WAITING,
        restarts: int = 3,
        patience: float = PATIENCE,
        clock: Clock = time.monotonic,
    ) -> None:
        ends = [Ends.of(model) for model in models]
        self._wiring = wire(ends, outputs)
        depth = depth or 2 * len(models)
        if not 1 <= depth <= MOST_SLOTS:
            raise ConfigError(f"depth is {depth}: from 1 to {MOST_SLOTS} requests fit into the parts")
        self.name = name or " + ".join(model.manifest.name for model in models)
        self.inputs, self.outputs = self._wiring.inputs, self._wiring.outputs
        specs = [spec for part in ends for spec in (*part.inputs, *part.outputs)]
        layout = Layout(dtypes={spec.name: spec.dtype for spec in specs})
        self._clock, self._waiting = clock, waiting
        self._line: Line[Run] = Line(
            len(models),
            depth,
            restarts=restarts,
            within=WITHIN,
            patience=patience,
            loading=LOADING,
            now=clock(),
        )
        self._changed, self._home = threading.Condition(), Home()
        self._closed, self._over, self._broken, self._tally = False, False, "", Tally()
        self._poll = min(POLL, patience / 4)
        self._slots = [Slot(memory(), layout) for _ in range(depth)]
        for slot in self._slots:
            weakref.finalize(slot, os.close, slot.file)
        self._models = tuple(models)  # temporary ones live as long as they are held
        self._parts = self._begin(engine, options or EngineOptions(), layout)
        self._pump = threading.Thread(target=self._watch, name=f"parts of {self.name}", daemon=True)
        self._pump.start()
        self._end = AtExit(self.close)
        self._await()

    def _begin(self, engine: str, options: EngineOptions, layout: Layout) -> list[_Part]:
        """Start all processes, or none."""
        files = tuple(slot.file for slot in self._slots)
        parts: list[_Part] = []
        try:
            for model in self._models:
                order = Order(
                    model=str(model.path),
                    engine=engine,
                    options=options,
                    layout=layout,
                    slots=files,
                    socket=-1,
                    parent=os.getpid(),
                )
                parts.append(_Part(order))
        except OSError as error:
            for part in parts:
                part.bury()
            raise EngineError(f"{self.name} has no process for a part: {error.strerror or error}") from error
        return parts

    @property
    def processes(self) -> tuple[int, ...]:
        """Process ids of the parts."""
        return tuple(part.process.pid for part in self._parts)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line.waiting)

    def submit(self, request: Request) -> Future[Answer]:
        """See `Service.submit`."""
        if self._home.left:
            return failed(self._home.refusal(self.name))
        run = Run(request, self._clock())
        with self._changed:
            self._tally.requests += 1
            error = self._refusal(request)
            if error is not None:
                self._tally.count(error)
                return failed(error)
            slot = self._line.come(run)
            memory = None if slot is None else self._slots[slot]
        if slot is not None and memory is not None and (unloaded := self._load(run, slot, memory)):
            self._finish(run, slot, unloaded)
        return run.future

    def stats(self) -> ShardStats:
        """What it has done so far."""
        with self._changed:
            line = self._line
            return self._tally.stats(len(line.waiting), len(line.owners), tuple(line.restarted))

    def close(self, grace: float = GRACE) -> None:
        """See `Service.close`; from a callback of an answer it does not wait for others."""
        if self._home.left:
            return
        self._end.cancel()
        inward = threading.current_thread() is self._pump
        with self._changed:
            self._closed = True
            self._changed.wait_for(
                lambda: self._broken or not (self._line.owners or self._line.waiting),
                0.0 if inward else grace,
            )
            if self._over:
                return
            self._over = True
        if not inward:
            self._pump.join()
        self._fail_all(ClosedError(f"{self.name} was closed before this request was answered"))
        for part in self._parts:
            part.link.close()  # all are told before one is waited for
        for part in self._parts:
            part.bury()
        self._slots = []

    def _refusal(self, request: Request) -> FarthingError | None:
        if self._closed:
            return ClosedError(f"{self.name} was closed: open it again")
        if self._broken:
            return EngineError(self._broken)
        if len(self._line.waiting) >= self._waiting:
            return OverloadError(
                f"{self.name} has {len(self._line.waiting)} requests in line: ask again later"
            )
        try:
            check_feeds(self.inputs, request.feeds)
        except FarthingError as error:
            return error
        return None

    def _await(self) -> None:
        """Wait until every part is ready."""
        with self._changed:
            self._changed.wait_for(lambda: self._line.ready or self._broken)
            broken = self._broken
        if broken:
            refusal = next((part.refusal for part in self._parts if part.refusal), None)
            self.close(0.0)
            raise refusal or EngineError(broken)

    def _load(self, run: Run, slot: int, memory: Slot) -> FarthingError | None:
        """Write a request into its slot and send it on its way, or say why not."""
        try:
            memory.clear()
            for name in (spec.name for spec in self.inputs):
                memory.put(name, run.request.feeds[name])
        except FarthingError as error:
            return error
        except OSError as error:
            return EngineError(f"{self.name} has no memory for this request: {error.strerror or error}")
        with self._changed:
            self._hand_out(self._line.enter(slot, 0, self._clock()))
        return None

    def _hand_out(self, sends: Sequence[Send]) -> None:
        for part, slot in sends:
            self._parts[part].send(slot)

    def _watch(self) -> None:
        """Read what processes give back, and see who dies or hangs, until it is over."""
        with selectors.DefaultSelector() as selector:
            for number, part in enumerate(self._parts):
                selector.register(part.link, selectors.EVENT_READ, number)
            while not self._ended:
                for key, _ in selector.select(self._poll):
                    if not self._ended:
                        self._read(key.data, selector)
                with self._changed:
                    overdue = self._line.overdue(self._clock())
                for number in overdue:
                    self._parts[number].kill()

    @property
    def _ended(self) -> bool:
        """Whether nothing is to be read any more; a callback of an answer may have closed us."""
        return self._over or bool(self._broken)

    def _read(self, number: int, selector: selectors.BaseSelector) -> None:
        part = self._parts[number]
        try:
            data = part.link.recv(4096)
        except ConnectionError:
            data = b""
        if not data:
            selector.unregister(part.link)
            self._mourn(number)
            if not self._ended:
                selector.register(part.link, selectors.EVENT_READ, number)
        elif data[0] == REFUSED:
            part.refusal = _refusal_in(data, part.link)
        elif data[0] == READY:
            with self._changed:
                self._hand_out(self._line.up(number, self._clock()))
                self._changed.notify_all()
        else:
            for slot in data:
                if not self._ended:
                    self._returned(number, slot)

    def _returned(self, number: int, slot: int) -> None:
        """A part is done with a slot: on to the next part, or back to who asked."""
        now = self._clock()
        with self._changed:
            self._hand_out(self._line.returned(number, slot, now))
            run = self._line.owners[slot]
        outcome: Answer | FarthingError | None = self._slots[slot].failure()
        if outcome is None and run.request.deadline <= now:
            outcome = late(self.name, run.request, now)
        if outcome is None and not run.future.cancelled():
            if number + 1 < len(self._parts):
                with self._changed:
                    self._hand_out(self._line.enter(slot, number + 1, now))
                return
            outcome = self._answer(run, slot)
        self._finish(run, slot, outcome)

    def _answer(self, run: Run, slot: int) -> Answer | FarthingError:
        try:
            outputs = {spec.name: self._slots[slot].get(spec.name).copy() for spec in self.outputs}
        except FarthingError as error:
            return error
        return Answer(outputs, self.name, latency=self._clock() - run.came)

    def _finish(self, run: Run, slot: int, outcome: Answer | BaseException | None) -> None:
        """A request is done; who stood in line gets its slot, unless it is too late."""
        while True:
            with self._changed:
                if self._line.owners.get(slot) is not run:  # all were failed meanwhile
                    return
                self._tally.count(None if run.future.cancelled() else outcome)
                following = self._line.leave(slot)
                self._changed.notify_all()
            settle(run.future, outcome)
            if following is None or self._over:
                return
            now, outcome = self._clock(), None
            if following.request.deadline <= now:
                outcome = late(self.name, following.request, now)
            elif not following.future.cancelled():
                outcome = self._load(following, slot, self._slots[slot])
                if outcome is None:
                    return
            run = following

    def _mourn(self, number: int) -> None:
        """A part's process is gone: its request fails, and it is started anew if it may."""
        part = self._parts[number]
        how = f"part {number + 1} of {self.name} (process {part.process.pid}) {part.bury()}"
        with self._changed:
            death = self._line.died(number, self._clock())
            again = death.again and part.refusal is None
            victim = None if death.victim is None else self._line.owners[death.victim]
        if again:
            again = self._begun(part)
        if not again:
            self._broken = str(
                part.refusal or f"{how}, too often: look for the reason and open {self.name} again"
            )
        if victim is not None and death.victim is not None:
            self._finish(victim, death.victim, EngineError(f"{how} while it computed this request"))
        if not again:
            self._fail_all(EngineError(self._broken))

    def _begun(self, part: _Part) -> bool:
        """Start a part anew; False if the system has no process for it."""
        try:
            part.begin()
        except OSError as error:
            part.refusal = EngineError(f"{self.name} has no process for a part: {error.strerror or error}")
            return False
        return True

    def _fail_all(self, error: FarthingError) -> None:
        with self._changed:
            left = [*self._line.owners.values(), *self._line.waiting]
            self._line.owners.clear()
            self._line.waiting.clear()
            for _ in left:
                self._tally.count(error)
            self._changed.notify_all()
        for run in left:
            settle(run.future, error)


def _refusal_in(data: bytes, link: socket.socket) -> FarthingError:
    while more := link.recv(4096):
        data += more
    return msgspec.json.decode(data[1:], type=Fault).error()


def open_processes(bundle: Bundle | Path | str, **settings: Any) -> Processes:
    """The parts of a bundle, each in a process of its own.

    Args:
        bundle: with the role ``parts``, or its path.
        **settings: as `Processes` takes them.

    Raises:
        ModelError: not a bundle, or its tensors do not fit together.
        ConfigError: a bundle of another role.
        FarthingError: as `Processes`.
    """
    opened = as_bundle(bundle, "parts")
    manifest = opened.manifest
    return Processes(list(opened.models.values()), name=manifest.name, outputs=manifest.outputs, **settings)
