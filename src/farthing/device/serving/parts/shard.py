"""Sharded: a model in parts, run in order or as a pipeline, in this process, in others or on other devices."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from farthing.bundle import Bundle, as_bundle, wire
from farthing.config import Section
from farthing.device.serving.ending import AtExit, Home
from farthing.device.serving.parts.thread import OwnThread, PartAnswer
from farthing.device.serving.service import (
    GRACE,
    Answer,
    Clock,
    Handing,
    Listener,
    Ran,
    Request,
    Service,
    as_service,
    failed,
    guarded,
    late,
    typed,
)
from farthing.engines.base import Engine, Tensors, check_feeds, open_engine
from farthing.errors import ClosedError, ConfigError, EngineError, FarthingError, OverloadError
from farthing.options import EngineOptions

WAITING = 256  # requests that may stand in line before a pipeline


class ShardStats(Section, frozen=True, kw_only=True):
    """What a sharded model has done so far.

    Attributes:
        requests: how many it was given.
        answered: how many were answered.
        failed: how many were not, by the name of the error; cancelled ones as ``cancelled``.
        waiting: how many stand in line now.
        running: how many are in the parts now.
        restarts: how often each part's process was started anew; empty if parts have no processes.
    """

    requests: int = 0
    answered: int = 0
    failed: dict[str, int] = {}
    waiting: int = 0
    running: int = 0
    restarts: tuple[int, ...] = ()


class Tally:
    """Counts requests and what came of them. Its owner holds a lock."""

    def __init__(self) -> None:
        self.requests = 0
        self._answered = 0
        self._failed: dict[str, int] = {}

    def count(self, outcome: Answer | BaseException | None) -> None:
        """One more outcome; None for a request that its caller cancelled."""
        if isinstance(outcome, Answer):
            self._answered += 1
            return
        reason = "cancelled" if outcome is None else type(outcome).__name__
        self._failed[reason] = self._failed.get(reason, 0) + 1

    def stats(self, waiting: int, running: int, restarts: tuple[int, ...] = ()) -> ShardStats:
        """A snapshot."""
        return ShardStats(
            requests=self.requests,
            answered=self._answered,
            failed=dict(self._failed),
            waiting=waiting,
            running=running,
            restarts=restarts,
        )


class Run:
    """A request on its way through the parts, which have computed it for so many seconds."""

    __slots__ = ("came", "computed", "future", "request", "tensors")

    def __init__(self, request: Request, came: float) -> None:
        self.request, self.came, self.computed = request, came, 0.0
        self.future: Future[Answer] = Future()
        self.tensors = dict(request.feeds)


class Sharded(Service):
    """Parts that run one after another; what a later part wants of an earlier one is handed on by name.

    In order: a request goes through all parts in the thread that submits it, as far as parts compute there. As a
    pipeline: each engine has a thread of its own, so that one part works on a request while the next part works on the
    one before. A part that is a service, such as one on another device, works as it does.

    Args:
        parts: open engines or services, in order; closed by `close`.
        name: of the whole; empty joins the names of the parts.
        outputs: names of the whole's outputs; empty: what parts make and no later part takes.
        pipeline: give each engine a thread of its own.
        depth: requests in the parts at once, the others wait in line; None takes two for each part of a pipeline, and
            no limit in order.
        waiting: requests that may stand in line; further ones get an OverloadError.
        clock: what deadlines are held against.
        listener: told of each request that went through all parts. The whole time that a part which is a service took
            counts as computing.

    Raises:
        ModelError: the tensors of the parts do not fit together.
        EngineError: a part keeps a state between calls, which several callers would mix up.
        ConfigError: a depth below 1.
    """

    def __init__(
        self,
        parts: Sequence[Engine | Service],
        *,
        name: str = "",
        outputs: Sequence[str] = (),
        pipeline: bool = False,
        depth: int | None = None,
        waiting: int = WAITING,
        clock: Clock = time.monotonic,
        listener: Listener | None = None,
    ) -> None:
        self._wiring = wire(parts, outputs)
        refuse_state(parts)
        if depth is not None and depth < 1:
            raise ConfigError(f"depth is {depth}: at least one request must fit into the parts")
        self.name = name or " + ".join(part.name for part in parts)
        self.inputs, self.outputs = self._wiring.inputs, self._wiring.outputs
        own_thread = partial(OwnThread, clock=clock)
        self._parts = [
            part if isinstance(part, Service) else own_thread(part) if pipeline else as_service(part)
            for part in parts
        ]
        self._depth = depth or (2 * len(parts) if pipeline else None)
        self._waiting, self._clock, self._listener = waiting, clock, listener
        self._counted = next((spec for spec in self.inputs if spec.batch_axis is not None), None)
        self._line: deque[Run] = deque()
        self._lock, self._home = threading.Lock(), Home()
        self._idle = threading.Condition(self._lock)
        self._inside: set[Run] = set()
        self._pumping, self._closed = False, False
        self._handing = Handing()
        self._tally = Tally()
        self._end = AtExit(self.close) if pipeline else None  # before its threads, which were there before it

    def submit(self, request: Request) -> Future[Answer]:
        """See `Service.submit`."""
        if self._home.left:
            return failed(self._home.refusal(self.name))
        run = self._begun(request)
        with self._lock:
            self._tally.requests += 1
            error = self._refusal(request)
            if error is not None:
                self._tally.count(error)
                return failed(error)
            if self._depth is None:
                self._inside.add(run)
            else:
                self._line.append(run)
        if self._depth is None:
            self._step(run, 0)
        else:
            self._pump()
        return run.future

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    def _begun(self, request: Request) -> Run:
        return Run(request, self._clock())

    def stats(self) -> ShardStats:
        """What it has done so far."""
        with self._lock:
            return self._tally.stats(len(self._line), len(self._inside))

    def close(self, grace: float = GRACE) -> None:
        """See `Service.close`; from a callback of an answer it does not wait for others."""
        if self._home.left:
            return
        if self._end is not None:
            self._end.cancel()
        if self._handing.depth:
            grace = 0.0
        with self._idle:
            self._closed = True
            answered = self._idle.wait_for(lambda: not (self._line or self._inside), grace)
            left = list(self._line)
            self._inside.update(left)
            self._line.clear()
        for run in left:
            self._finish(run, ClosedError(f"{self.name} was closed before this request had its turn"))
        for part in self._parts:
            part.close(grace if answered else 0.0)
        with self._lock:
            stuck = list(self._inside)
        for run in stuck:
            self._finish(run, ClosedError(f"{self.name} was closed before it could answer"))

    def _refusal(self, request: Request) -> FarthingError | None:
        if self._closed:
            return ClosedError(f"{self.name} was closed: open it again")
        if self._depth is not None and len(self._line) + len(self._inside) >= self._depth + self._waiting:
            return OverloadError(f"{self.name} has {len(self._line)} requests in line: ask again later")
        try:
            check_feeds(self.inputs, request.feeds)
        except FarthingError as error:
            return error
        return None

    def _pump(self) -> None:
        """Start what stands in line, as far as there is room; one thread at a time, so that nothing nests."""
        with self._lock:
            if self._pumping:
                return
            self._pumping = True
        while True:
            with self._lock:
                if not self._line or (self._depth is not None and len(self._inside) >= self._depth):
                    self._pumping = False
                    return
                run = self._line.popleft()
                self._inside.add(run)
            self._step(run, 0)

    def _step(self, run: Run, number: int) -> None:
        """Hand a request to a part; what the part answers goes to `_arrived`."""
        now = self._clock()
        if run.future.cancelled():
            self._finish(run, None)
        elif run.request.deadline <= now:
            self._finish(run, late(self.name, run.request, now))
        else:
            feeds: Tensors = {name: run.tensors[name] for name in self._wiring.takes[number]}
            told = run.request
            asked = Request(feeds, told.deadline, told.id, told.priority, told.stream, told.context)
            self._submitted(number, asked).add_done_callback(partial(self._arrived, run, number))

    def _submitted(self, number: int, request: Request) -> Future[Answer]:
        try:
            return self._parts[number].submit(request)
        except Exception as error:  # noqa: BLE001 - a service that raises is broken, but its caller waits all the same
            return failed(typed(error, self._parts[number].name))

    def _arrived(self, run: Run, number: int, done: Future[Answer]) -> None:
        part = self._parts[number]
        if done.cancelled():
            self._finish(run, ClosedError(f"{part.name} gave the request back"))
            return
        if error := done.exception():
            self._finish(run, error)
            return
        answer = done.result()
        missing = [spec.name for spec in part.outputs if spec.name not in answer.outputs]
        if missing:
            self._finish(run, EngineError(f"part {number + 1} of {self.name} did not give {missing[0]!r}"))
            return
        run.computed += answer.computed if isinstance(answer, PartAnswer) else answer.latency
        run.tensors.update(answer.outputs)
        self._advance(run, number)

    def _advance(self, run: Run, number: int) -> None:
        """Go on after a part has answered."""
        for name in self._wiring.spent[number]:
            run.tensors.pop(name, None)
        if number + 1 < len(self._parts):
            self._step(run, number + 1)
        else:
            outputs = {spec.name: run.tensors[spec.name] for spec in self.outputs}
            self._finish(run, Answer(outputs, self.name, latency=self._clock() - run.came))

    def _finish(self, run: Run, outcome: Answer | BaseException | None) -> None:
        with self._idle:
            if run not in self._inside:  # closed meanwhile, and failed
                return
            self._inside.remove(run)
            self._tally.count(None if run.future.cancelled() else outcome)
            self._idle.notify_all()
        if self._listener is not None and isinstance(outcome, Answer):
            guarded(self._listener, self._ran(run, outcome))
        self._handing.settle(run.future, outcome)
        if self._depth is not None:
            self._pump()

    def _ran(self, run: Run, answer: Answer) -> Ran:
        spec = self._counted
        samples = 1 if spec is None else run.request.feeds[spec.name].shape[spec.batch_axis or 0]
        return Ran(1, samples, run.computed, [max(0.0, answer.latency - run.computed)])


def refuse_state(parts: Sequence[Engine | Service]) -> None:
    """Raise an EngineError for a part that keeps a state between calls."""
    for number, part in enumerate(parts, 1):
        if part.stateful:
            raise EngineError(
                f"part {number} ({part.name}) keeps a state between calls, which requests of several callers would "
                "mix up: run it as one model, a session() for each stream"
            )


def open_sharded(
    bundle: Bundle | Path | str,
    how: Literal["in order", "threads"] = "in order",
    *,
    engine: str = "",
    options: EngineOptions | None = None,
    listener: Listener | None = None,
) -> Sharded:
    """The parts of a bundle as one service.

    Args:
        bundle: with the role ``parts``, or its path.
        how: ``in order`` in the thread that asks, or as a pipeline over ``threads``.
        engine, options: what runs every part, as `open_engine` takes them.
        listener: as `Sharded` takes it.

    Raises:
        ModelError: not a bundle, or its tensors do not fit together.
        ConfigError: a bundle of another role.
        FarthingError: as `open_engine`; what was opened is closed again.
    """
    opened = as_bundle(bundle, "parts")
    manifest = opened.manifest

    def make(engines: Sequence[Engine]) -> Sharded:
        return Sharded(
            engines,
            name=manifest.name,
            outputs=manifest.outputs,
            pipeline=how == "threads",
            listener=listener,
        )

    return open_parts(opened, make, engine, options)


ServiceT = TypeVar("ServiceT", bound=Service)


def open_parts(
    bundle: Bundle, make: Callable[[Sequence[Engine]], ServiceT], engine: str, options: EngineOptions | None
) -> ServiceT:
    """A service of all models of a bundle; if it cannot be made, what was opened is closed again."""
    with ExitStack() as stack:
        engines = [
            stack.enter_context(open_engine(model, engine, options)) for model in bundle.models.values()
        ]
        made = make(engines)
        stack.pop_all()
        return made
