"""The end of a program whose services are still open, and its forks, which have their memory but not their threads.

An interpreter that ends while a thread is inside a runtime aborts the process, and nobody answers who waits. In a fork
nobody ever would: no thread came along, and a lock that one held is never given back.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from weakref import WeakSet

from farthing.errors import ClosedError


class Home:
    """The process that something with threads was made in.

    Attributes:
        left: whether this is a fork of that process: nothing may be asked of it here, and no lock of it taken.
    """

    def __init__(self) -> None:
        self.left, self._process = False, os.getpid()
        _HOMES.add(self)

    def refusal(self, name: str) -> ClosedError:
        """What to tell who asks in a fork."""
        return ClosedError(
            f"{name} was opened in process {self._process}, and this is a fork of it, without its threads: open it "
            "again here, or fork before it is opened"
        )


_HOMES: WeakSet[Home] = WeakSet()


def _leave_homes() -> None:
    for home in _HOMES:
        home.left = True


os.register_at_fork(after_in_child=_leave_homes)


class AtExit:
    """Calls a function when the program ends, unless it is cancelled before. A fork of it that ends does not call it.

    Args:
        call: the function.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call, self._home = call, Home()
        atexit.register(self._run)

    def cancel(self) -> None:
        """Call it no more. Cancelling twice is allowed."""
        atexit.unregister(self._run)

    def _run(self) -> None:
        if not self._home.left:
            self._call()
