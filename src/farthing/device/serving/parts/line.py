"""Who is where in a line of processes: which request has which slot, which part it is in, what a death means. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)
AHEAD = 2  # tokens that a part may hold: one it computes, and the next, so that it never waits for its parent


class Send(NamedTuple):
    """Hand a slot's token to a part."""

    part: int
    slot: int


class Death(NamedTuple):
    """What the death of a part's process means.

    Attributes:
        victim: the slot it was computing, if any.
        again: whether it is to be started anew.
    """

    victim: int | None
    again: bool


class Line(Generic[Key]):
    """Requests on their way through parts, each in a slot.

    Args:
        parts: how many.
        slots: requests in the parts at once.
        restarts: how often one part's process may be started anew ``within`` so many seconds.
        patience: seconds for one request in one part; then its process is taken for hung.
        loading: the same for a process to get ready.
        now: seconds by the clock that all moments are given in.
    """

    def __init__(
        self,
        parts: int,
        slots: int,
        *,
        restarts: int,
        within: float,
        patience: float,
        loading: float,
        now: float,
    ) -> None:
        self._free = list(reversed(range(slots)))
        self._queued: list[deque[int]] = [deque() for _ in range(parts)]
        self._held: list[deque[int]] = [deque() for _ in range(parts)]
        self._up = [False] * parts
        self._since = [now] * parts
        self._deaths: list[deque[float]] = [deque() for _ in range(parts)]
        self._restarts, self._within = restarts, within
        self._patience, self._loading = patience, loading
        self.waiting: deque[Key] = deque()
        self.owners: dict[int, Key] = {}
        self.restarted = [0] * parts

    @property
    def ready(self) -> bool:
        """Whether every part's process runs."""
        return all(self._up)

    def come(self, key: Key) -> int | None:
        """A request comes: the slot it gets, or None if it stands in line."""
        if not self._free:
            self.waiting.append(key)
            return None
        slot = self._free.pop()
        self.owners[slot] = key
        return slot

    def enter(self, slot: int, part: int, now: float) -> list[Send]:
        """A slot, filled, goes to a part."""
        self._queued[part].append(slot)
        return self._sends(part, now)

    def returned(self, part: int, slot: int, now: float) -> list[Send]:
        """A part gives a token back, and may get the next.

        Raises:
            ValueError: it does not hold that token.
        """
        self._held[part].remove(slot)
        self._since[part] = now
        return self._sends(part, now)

    def leave(self, slot: int) -> Key | None:
        """A request is done: who gets its slot next, if anybody stands in line."""
        del self.owners[slot]
        if self.waiting:
            self.owners[slot] = self.waiting.popleft()
            return self.owners[slot]
        self._free.append(slot)
        return None

    def up(self, part: int, now: float) -> list[Send]:
        """A part's process is ready."""
        self._up[part] = True
        return self._sends(part, now)

    def died(self, part: int, now: float) -> Death:
        """A part's process is gone. What it had not begun keeps its place."""
        held = self._held[part]
        victim = held.popleft() if held and self._up[part] else None
        self._queued[part].extendleft(reversed(held))
        held.clear()
        self._up[part], self._since[part] = False, now
        deaths = self._deaths[part]
        deaths.append(now)
        while deaths[0] < now - self._within:
            deaths.popleft()
        again = len(deaths) <= self._restarts
        self.restarted[part] += again
        return Death(victim, again)

    def overdue(self, now: float) -> list[int]:
        """Parts whose process has kept a request, or been getting ready, for too long."""
        return [
            part
            for part, since in enumerate(self._since)
            if (self._held[part] or not self._up[part])
            and now - since > (self._patience if self._up[part] else self._loading)
        ]

    def _sends(self, part: int, now: float) -> list[Send]:
        queued, held = self._queued[part], self._held[part]
        sends = []
        while self._up[part] and queued and len(held) < AHEAD:
            if not held:
                self._since[part] = now
            held.append(queued.popleft())
            sends.append(Send(part, held[-1]))
        return sends
