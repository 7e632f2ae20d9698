"""Service: what answers requests. A wrapper of services is a service, so they compose.

An `Engine` computes, synchronously, in the caller's thread. A `Service` answers: now or later, perhaps together with
other requests, perhaps without computing at all, and it says who answered, how sure, how late and why.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Self

import msgspec
from numpy.typing import NDArray

from farthing.engines.base import Engine, Tensors
from farthing.errors import DeadlineError, EngineError, FarthingError
from farthing.model import TensorSpec

_log = logging.getLogger(__name__)
GRACE = 30.0
Clock = Callable[[], float]
"""Seconds from some fixed moment, never going back: `time.monotonic`, or a fake one in tests."""


class Request(msgspec.Struct, frozen=True, eq=False):
    """What a caller asks.

    Attributes:
        feeds: tensor name -> array, as `Engine.run` takes them. They must not change until the answer is there.
        deadline: the moment by the service's clock (`time.monotonic` unless told otherwise), in seconds, from which
            the answer is worth nothing; later ones fail with DeadlineError.
        id: the caller's name for it; it comes back in logs and over protocols.
        priority: smaller numbers go first where requests wait.
        stream: requests of one stream are answered in the order they came in; empty: the calling thread is one stream,
            and tasks of an event loop are not held to an order.
        context: whatever the caller wants to travel along; no service of ours looks into it.
    """

    feeds: Tensors
    deadline: float = math.inf
    id: str = ""
    priority: int = 0
    stream: str = ""
    context: Mapping[str, Any] = {}


class Answer(msgspec.Struct, frozen=True, eq=False):
    """What a service answers.

    Attributes:
        outputs: tensor name -> array. They may share memory with those of other answers: copy before writing.
        source: who computed it, as in ``resnet18@onnxruntime``.
        confidence: how sure the model is, 0 to 1; None where nobody looked.
        latency: seconds from submission to answer.
        reason: why it was answered like this, as in ``cache hit`` or ``exit 1: confidence 0.97 >= 0.95``; empty if
            there is nothing to say.
    """

    outputs: Mapping[str, NDArray[Any]]
    source: str
    confidence: float | None = None
    latency: float = 0.0
    reason: str = ""


class Ran(NamedTuple):
    """What was computed in one go, for who listens to a service.

    Attributes:
        requests, samples: that were computed.
        compute: seconds the model took.
        waited: seconds that each request did not spend in the model.
    """

    requests: int
    samples: int
    compute: float
    waited: list[float]


Listener = Callable[[Ran], None]
"""Called after each computation, before its answers are out, from the thread that computed it: it must not wait for
answers. What it raises is logged."""


class Service(ABC):
    """Answers requests, from any thread and any event loop.

    Attributes:
        name: of the model or part behind it, as answers and metrics give it.
        inputs, outputs: the tensors callers feed and get.
        stateful: whether answers depend on the requests before; wrappers say what is true of what they wrap.
    """

    name: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    stateful: bool = False

    @property
    def waiting(self) -> int:
        """Requests in line, or the samples they hold; 0 where there is no line."""
        return 0

    @abstractmethod
    def submit(self, request: Request) -> Future[Answer]:
        """Take a request; never blocks on other requests, and never raises: what goes wrong is the future's exception.

        The future's exceptions:
            FeedError: the feeds do not fit the inputs.
            EngineError: the runtime failed on this request.
            DeadlineError: its deadline passed before it was computed.
            OverloadError: there is no room; ask again later.
            ClosedError: the service was closed first.
        """

    def ask(self, request: Request) -> asyncio.Future[Answer]:
        """`submit` for coroutines: ``answer = await service.ask(request)``. Cancelling it cancels the request."""
        return asyncio.wrap_future(self.submit(request))

    def answer(self, feeds: Tensors, timeout: float | None = None) -> Answer:
        """`submit` for callers who wait.

        Args:
            feeds: tensor name -> array.
            timeout: seconds to wait; None waits as long as it takes.

        Raises:
            FarthingError: as `submit` says; DeadlineError after ``timeout``.
        """
        future = self.submit(Request(feeds))
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise DeadlineError(f"{self.name} did not answer within {timeout:g} s") from None

    @abstractmethod
    def close(self, grace: float = GRACE) -> None:
        """Take no more requests, answer those that wait, fail what is left after ``grace`` seconds, give all back.

        Closing twice is allowed. What was given to a wrapper (an engine, another service) is closed with it.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Direct(Service):
    """An engine as a service: computes in the thread that submits.

    Args:
        engine: the open engine.
        name: of the model; empty takes the engine's name.
        clock: what deadlines are held against.
    """

    def __init__(self, engine: Engine, name: str = "", clock: Clock = time.monotonic) -> None:
        self.name = name or engine.name
        self.inputs, self.outputs, self.stateful = engine.inputs, engine.outputs, engine.stateful
        self._engine, self._clock = engine, clock

    def submit(self, request: Request) -> Future[Answer]:
        """See `Service.submit`: the future is done when it is returned."""
        future: Future[Answer] = Future()
        began = self._clock()
        if request.deadline <= began:
            future.set_exception(late(self.name, request, began))
            return future
        try:
            outputs = self._engine.run(request.feeds)
        except Exception as error:  # noqa: BLE001 - an engine may have bugs, but submitting never raises
            future.set_exception(typed(error, self.name))
        else:
            future.set_result(Answer(outputs, self.name, latency=self._clock() - began))
        return future

    def close(self, grace: float = GRACE) -> None:
        """See `Service.close`: nobody waits."""
        self._engine.close()


def as_service(part: Engine | Service) -> Service:
    """A service as it is; an engine as a `Direct` one."""
    return part if isinstance(part, Service) else Direct(part)


def settle(future: Future[Answer], outcome: Answer | BaseException | None) -> None:
    """Give a future its outcome, unless its caller cancelled it meanwhile; None if it is known that he did.

    Either way `concurrent.futures.wait` waits for it no longer.
    """
    if not future.running() and not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    elif outcome is not None:
        future.set_result(outcome)


class Handing(threading.local):
    """Settles futures, and knows of each thread whether it is in a callback of one: others may wait for it there.

    Attributes:
        depth: in how many, one in the other.
    """

    depth = 0

    def settle(self, future: Future[Answer], outcome: Answer | BaseException | None) -> None:
        """See `settle`."""
        self.depth += 1
        try:
            settle(future, outcome)
        finally:
            self.depth -= 1


def failed(error: BaseException) -> Future[Answer]:
    """A future that has failed."""
    future: Future[Answer] = Future()
    future.set_exception(error)
    return future


def typed(error: Exception, name: str) -> FarthingError:
    """What an engine raised, as an error of ours."""
    if isinstance(error, FarthingError):
        return error
    return EngineError(f"{name} failed: {type(error).__name__}: {error}")


def guarded(call: Callable[..., object], *args: object) -> None:
    """Call what is not ours, such as a listener: what it raises is logged, and stops nobody."""
    try:
        call(*args)
    except Exception:  # noqa: BLE001 - it is logged
        _log.exception("%r failed", call)


def late(name: str, request: Request, now: float) -> DeadlineError:
    """The error of a request whose deadline has passed."""
    over = (now - request.deadline) * 1000
    who = f"request {request.id!r}" if request.id else "a request"
    return DeadlineError(f"{name}: the deadline of {who} passed {over:.1f} ms ago, before it was computed")
