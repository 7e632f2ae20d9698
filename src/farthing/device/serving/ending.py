"""The end of a program whose services are still open.

An interpreter that ends while a thread is inside a runtime aborts the process, and nobody answers who waits.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable


class AtExit:
    """Calls a function when the program ends, unless it is cancelled before.

    A fork of the process that ends does not call it: it has no threads, and perhaps locks that nobody gives back.

    Args:
        call: the function.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call, self._process = call, os.getpid()
        atexit.register(self._run)

    def cancel(self) -> None:
        """Call it no more. Cancelling twice is allowed."""
        atexit.unregister(self._run)

    def _run(self) -> None:
        if os.getpid() == self._process:
            self._call()
