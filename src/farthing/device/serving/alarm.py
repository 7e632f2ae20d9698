"""Alarm: a thread that wakes at the earliest moment it was told of."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from farthing.device.serving.service import Clock

_LONGEST = 3600.0  # of one sleep: a clock may be moved, and the system refuses centuries


class Alarm:
    """Calls a function when a moment comes; of many moments the earliest counts.

    Its thread starts with the first moment, so that what never waits costs none.

    Args:
        ring: called at the moment from the alarm's own thread; gives the next moment, inf if there is none.
        clock: what moments are read on.
        name: of the thread.
    """

    def __init__(self, ring: Callable[[], float], clock: Clock, name: str) -> None:
        self._ring, self._clock, self._name = ring, clock, name
        self._changed = threading.Condition()
        self._moment = math.inf
        self._thread: threading.Thread | None = None
        self._closed = False

    def at(self, moment: float) -> None:
        """Ring at a moment, unless an earlier one is set: what that finds sets the next."""
        if (
            not moment < self._moment
        ):  # read without the lock: a ring that comes between looks at all there is
            return
        with self._changed:
            if self._closed or not moment < self._moment:
                return
            self._moment = moment
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            else:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (left := self._moment - self._clock()) > 0:
                    self._changed.wait(min(left, _LONGEST))
                if self._closed:
                    return
                self._moment = math.inf
            self.at(self._ring())

    def close(self) -> None:
        """Ring no more. Closing twice is allowed, and so is closing while it rings."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
