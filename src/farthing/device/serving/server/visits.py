"""Requests under way: their bodies within limits, clients that send too slowly, and clients that go away.

The last two are noticed by one look around every tenth of a second: a timer or a task for each request would cost more
than all else that is done for a small one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from farthing.device.serving.server.http import Gone, Receive, Refusal
from farthing.device.serving.server.settings import Limits

LOOK_SECONDS = 0.1
_LATER = ((b"retry-after", b"1"),)


class Visit:
    """A request under way.

    Attributes:
        reading: whether its body may still be read.
        held: bytes of its body that are held.
        ended: why it was ended from outside; empty if it was not.
    """

    __slots__ = ("began", "ended", "held", "reading", "receive", "task", "watch")

    def __init__(self, receive: Receive, loop: asyncio.AbstractEventLoop) -> None:
        self.receive, self.began = receive, time.monotonic()
        self.task = asyncio.current_task(loop)  # left to find the loop, it makes a system call for it
        self.reading = True
        self.held = 0
        self.ended: Literal["", "slow", "gone"] = ""
        self.watch: asyncio.Task[None] | None = None

    def end(self, why: Literal["slow", "gone"]) -> None:
        """Cancel it."""
        if not self.ended and self.task is not None:
            self.ended = why
            self.task.cancel()


class Visits:
    """All requests under way.

    Attributes:
        held: bytes of their bodies.
        unread: bytes of answers that wait for their clients to take them.
    """

    def __init__(self, limits: Limits) -> None:
        self.held = self.unread = 0
        self._limits = limits
        self._here: set[Visit] = set()
        self._looking = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def crowded(self) -> bool:
        """Whether there is no room for another body."""
        return self.held + self.unread > self._limits.buffered_bytes

    def enter(self, receive: Receive) -> Visit:
        """A request that begins."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        visit = Visit(receive, loop)
        self._here.add(visit)
        if not self._looking:
            self._looking = True
            loop.call_later(LOOK_SECONDS, self._look)
        return visit

    def leave(self, visit: Visit) -> None:
        """A request that has ended."""
        self._here.discard(visit)
        self.give(visit.held)
        if visit.watch is not None:
            visit.watch.cancel()

    async def body(self, visit: Visit, declared: bytes | None) -> bytes:
        """The whole body of a request.

        Args:
            visit: the request.
            declared: its ``Content-Length``, if it has one.

        Raises:
            Refusal: 413 or 429, it is too large, or all of them together are.
            Gone: the client went away.
        """
        if declared is not None:
            self._refuse(int(declared), int(declared))
        message = await visit.receive()
        body: bytes = message.get("body", b"")
        if message["type"] == "http.disconnect":
            raise Gone
        self._hold(visit, len(body))
        if message.get("more_body"):
            body = await self._rest(visit, body)
        visit.reading = False
        return body

    async def _rest(self, visit: Visit, first: bytes) -> bytes:
        parts, size, more = [first], len(first), True
        while more:
            message = await visit.receive()
            if message["type"] == "http.disconnect":
                raise Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            self._hold(visit, size)
        return b"".join(parts)

    def _hold(self, visit: Visit, size: int) -> None:
        """Make room for a body."""
        if size > visit.held:
            self.take(size, size - visit.held)
            visit.held = size

    def take(self, size: int, more: int | None = None) -> None:
        """Make room for a body of ``size`` bytes, ``more`` of which are new: all, unless it says so.

        Raises:
            Refusal: 413 or 429, it is too large, or all of them together are.
        """
        more = size if more is None else more
        self._refuse(size, more)
        self.held += more

    def _refuse(self, size: int, more: int) -> None:
        """Refuse a body there is no room for. What is only announced takes none: a slow client is in nobody's way."""
        if size > self._limits.body_bytes:
            raise Refusal(
                413, f"the body has more than {self._limits.body_bytes} bytes, the limit of this server"
            )
        if self.held + self.unread + more > self._limits.buffered_bytes:
            raise Refusal(429, "too many bytes of other requests are under way: ask again later", _LATER)

    @contextmanager
    def answering(self, size: int) -> Iterator[None]:
        """Count the bytes of an answer as long as it goes out."""
        self.unread += size
        try:
            yield
        finally:
            self.unread -= size

    def give(self, size: int) -> None:
        """Give room back."""
        self.held -= size

    def _look(self) -> None:
        """End those that send too slowly, and watch those that wait for whether their client is still there."""
        now = time.monotonic()
        for visit in self._here:
            if visit.reading:
                if now - visit.began > self._limits.body_seconds:
                    visit.end("slow")
            elif visit.watch is None and now - visit.began > LOOK_SECONDS:
                visit.watch = asyncio.ensure_future(_watch(visit))
        self._looking = bool(self._here)
        if self._looking:
            asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)


async def _watch(visit: Visit) -> None:
    """End a request when its client goes away."""
    if (await visit.receive())["type"] == "http.disconnect":
        visit.end("gone")
