"""OwnThread: an engine in a thread of its own, as a part of a pipeline."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import NamedTuple

from farthing.device.serving.ending import AtExit, Home
from farthing.device.serving.service import (
    GRACE,
    Answer,
    Clock,
    Request,
    Service,
    failed,
    late,
    settle,
    typed,
)
from farthing.engines.base import Engine
from farthing.errors import ClosedError, FarthingError


class PartAnswer(Answer, frozen=True, eq=False):
    """An answer that says how many seconds of its latency the part computed."""

    computed: float = 0.0


class _Task(NamedTuple):
    request: Request
    future: Future[Answer]
    came: float


class OwnThread(Service):
    """An engine in a thread of its own: requests wait in line, in the order they came.

    Args:
        engine: the open engine; closed by `close`.
        name: as answers and metrics give it; empty takes the engine's name.
        clock: what deadlines are held against.
    """

    def __init__(self, engine: Engine, name: str = "", clock: Clock = time.monotonic) -> None:
        self.name = name or engine.name
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._engine, self._clock = engine, clock
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()  # None: there will be no more
        self._inside: Future[Answer] | None = None
        self._lock, self._closed, self._home = threading.Lock(), False, Home()
        self._thread = threading.Thread(target=self._work, name=f"part {self.name}", daemon=True)
        self._thread.start()
        self._end = AtExit(self.close)

    def submit(self, request: Request) -> Future[Answer]:
        """See `Service.submit`."""
        if self._home.left:
            return failed(self._home.refusal(self.name))
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed:
                return failed(ClosedError(f"{self.name} was closed: open it again"))
            self._tasks.put(_Task(request, future, self._clock()))
        return future

    def close(self, grace: float = GRACE) -> None:
        """See `Service.close`; from a callback of an answer it does not wait for others."""
        if self._home.left:
            return
        self._end.cancel()
        with self._lock:
            if not self._closed:
                self._closed = True
                self._tasks.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(grace)
        left = self._left()
        with self._lock:
            stuck, self._inside = self._inside, None
        for future in [*([stuck] if stuck else []), *left]:
            settle(future, ClosedError(f"{self.name} was closed before it could answer"))
        if stuck is None:
            self._engine.close()
        else:  # an engine that hangs may not let itself be closed either
            threading.Thread(target=self._engine.close, name=f"closing {self.name}", daemon=True).start()

    def _left(self) -> list[Future[Answer]]:
        """Whoever still stands in line; the thread finds its end there."""
        left = []
        try:
            while True:
                task = self._tasks.get_nowait()
                if task is not None:
                    left.append(task.future)
        except Empty:
            self._tasks.put(None)
        return left

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if not task.future.set_running_or_notify_cancel():
                continue
            with self._lock:
                self._inside = task.future
            outcome = self._outcome(task)
            with self._lock:
                wanted, self._inside = self._inside is task.future, None
            if wanted:
                settle(task.future, outcome)
            del task, outcome  # or the tensors stay until the next request comes

    def _outcome(self, task: _Task) -> Answer | FarthingError:
        now = self._clock()
        if task.request.deadline <= now:
            return late(self.name, task.request, now)
        try:
            outputs = self._engine.run(task.request.feeds)
        except Exception as error:  # noqa: BLE001 - an engine may have bugs, but its thread goes on
            return typed(error, self.name)
        ended = self._clock()
        return PartAnswer(outputs, self.name, latency=ended - task.came, computed=ended - now)
