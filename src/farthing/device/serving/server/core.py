"""What every front of a server shares: who is let in, deadlines, counts. REST and gRPC are thin shells over it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.device.serving.server.protocol import Inference
from farthing.device.serving.server.repository import Repository
from farthing.device.serving.server.repository.served import Served
from farthing.device.serving.service import Answer, Clock, Request
from farthing.device.watch.monitor import reason
from farthing.errors import DeadlineError, FeedError, OverloadError

LONGEST = 86400.0
"""Seconds; a timeout above is taken for this one."""


class Core:
    """Answers requests with the models of a repository. One event loop's thread uses it.

    Args:
        repository: the models.
        room: requests that may be under way.
        clock: what deadlines are held against.

    Attributes:
        started: whether the models were loaded.
        draining: whether it is about to stop: no new clients are wanted.
        under_way: requests that wait for their answer.
        done: requests that have got one, or an error.
    """

    def __init__(self, repository: Repository, room: int = 256, clock: Clock = time.monotonic) -> None:
        self.repository = repository
        self.started = self.draining = False
        self.under_way = self.done = 0
        self._room, self._clock = room, clock

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here: everything is loaded, and it is not about to stop."""
        return self.started and not self.draining and self.repository.complete

    @property
    def executions(self) -> int:
        """Of the models that are served, up to now; it moves as long as they compute."""
        return sum(served.tally.executions for served in self.repository.served())

    async def infer(self, served: Served, asked: Inference) -> Answer:
        """Ask a model, within its limits; count what comes of it.

        Raises:
            FeedError: the tensors do not fit the model.
            OverloadError: there is no room.
            DeadlineError: the answer would come too late.
            EngineError, ClosedError: see `Service.submit`.
        """
        began = time.perf_counter_ns()
        self.under_way += 1
        served.users += 1
        try:
            request = self._admitted(served, asked)
            if request.deadline == math.inf:
                answer = await served.service.ask(request)
            else:
                answer = await self._in_time(served, request)
        except BaseException as error:
            why = "cancelled" if isinstance(error, asyncio.CancelledError) else reason(error)
            served.tally.failed(why, time.perf_counter_ns() - began)
            raise
        else:
            served.tally.answered(time.perf_counter_ns() - began)
            return answer
        finally:
            self.under_way -= 1
            self.done += 1
            self.repository.left(served)

    def _admitted(self, served: Served, asked: Inference) -> Request:
        """The request for the model's service, if it may come in."""
        if self.under_way > self._room or (served.room and served.users > served.room):
            raise OverloadError(f"{served.name}: too many requests are under way: ask again later")
        for name, array in asked.feeds.items():
            if not array.size:  # engines fail over these, each in its own way
                raise FeedError(f"input {name!r} {list(array.shape)} holds nothing")
        if served.settings.refuse_nan:
            _refuse_nan(asked.feeds)
        batching = served.settings.dynamic_batching
        seconds = batching.seconds(asked.timeout)
        deadline = self._clock() + min(seconds, LONGEST) if seconds < math.inf else math.inf
        return Request(asked.feeds, deadline, asked.id, batching.priority(asked.priority))

    async def _in_time(self, served: Served, request: Request) -> Answer:
        """Ask, and wait no longer than to the deadline, even if the model hangs."""
        seconds = request.deadline - self._clock()
        try:
            async with asyncio.timeout(seconds):
                return await served.service.ask(request)
        except TimeoutError:
            raise DeadlineError(f"{served.name} did not answer within {seconds * 1000:.0f} ms") from None


def _refuse_nan(feeds: Mapping[str, NDArray[Any]]) -> None:
    for name, array in feeds.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FeedError(f"input {name!r} holds NaN or infinity, which this model is not to be fed")
