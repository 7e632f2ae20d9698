"""Turns at reading messages.

gRPC does not say how long a message will be, so only some may come in at once; who is slow gives way to those who wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from farthing.device.serving.server.http import Refusal


class Readers:
    """Calls whose messages come in.

    Args:
        room: how many at once.
        longest: seconds that each may take.
        patience: seconds that each may take while others wait.
    """

    def __init__(self, room: int, longest: float, patience: float) -> None:
        self._turns = asyncio.Semaphore(room)
        self._longest, self._patience = longest, min(patience, longest)
        self._since: dict[asyncio.Task[Any], float] = {}
        self._slow: set[asyncio.Task[Any]] = set()
        self._waiting = 0
        self._look: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Whether the next one has to wait."""
        return self._turns.locked()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A turn at reading, in the task of a call.

        Raises:
            Refusal: 408, the message did not come in time, or not while others waited.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can take a turn")
        try:
            async with asyncio.timeout(self._longest):
                await self._wait()
                self._since[task] = asyncio.get_running_loop().time()
                try:
                    yield
                finally:
                    del self._since[task]
                    self._turns.release()
        except TimeoutError:
            raise Refusal(408, "the message did not come in time") from None
        except asyncio.CancelledError:
            if task not in self._slow:
                raise
            task.uncancel()
            raise Refusal(408, "the message did not come in time, and others waited") from None
        finally:
            self._slow.discard(task)

    async def _wait(self) -> None:
        self._waiting += 1
        try:
            if self.full and self._look is None:
                self._hurry()
            await self._turns.acquire()
        finally:
            self._waiting -= 1

    def _hurry(self) -> None:
        """End as many readings that take long as calls wait, and look again as long as there are any."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        slow = [task for task, since in self._since.items() if now - since >= self._patience]
        for task in slow[: self._waiting]:
            self._slow.add(task)
            task.cancel()
        self._look = loop.call_later(self._patience / 4, self._hurry) if self._waiting else None
