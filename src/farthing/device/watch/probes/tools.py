"""Commands that a device's maker provides: run without a shell, for a limited time, and left alone when they fail."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

MOST_BYTES = 1 << 20
TIMEOUT_S = 2.0
PATIENCE_S = 60.0


class Runner(Protocol):
    """What runs a command."""

    def __call__(self, command: Sequence[str], timeout_s: float, lines: int | None = None) -> str | None:
        """What a command says.

        Args:
            command: the program and its arguments.
            timeout_s: it is stopped after so many seconds.
            lines: stop it after so many lines, and take those; None takes what it says until it ends by itself.

        Returns:
            Its standard output; None if there is no such program, it fails, says too much, or takes too long.
        """
        ...


def run(command: Sequence[str], timeout_s: float, lines: int | None = None) -> str | None:
    """The `Runner` that runs commands of this machine, in a session of their own: Ctrl-C is not for them."""
    try:
        process = subprocess.Popen(
            [*command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError):  # not there, not ours to run; or a null byte in its name
        return None
    try:
        said = _said(process, time.monotonic() + timeout_s, lines)
        if said is not None and lines is None:
            process.wait(timeout_s)
            said = said if process.returncode == 0 else None
    except subprocess.TimeoutExpired:
        said = None
    finally:
        _stop(process)
    return None if said is None else said.decode(errors="replace")


def _said(process: subprocess.Popen[bytes], end: float, lines: int | None) -> bytes | None:
    """Output up to so many lines or to its end; None if time or room run out first."""
    if process.stdout is None:
        return None
    said = b""
    while len(said) <= MOST_BYTES:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return None
        part = os.read(process.stdout.fileno(), 1 << 16)
        said += part
        if not part:
            return said if lines is None or said.count(b"\n") >= lines else None
        if lines is not None and said.count(b"\n") >= lines:
            return b"".join(said.splitlines(keepends=True)[:lines])
    return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


class Tools:
    """Commands asked through a runner; one that gives nothing is left alone for a minute, for asking may be slow.

    Args:
        runner: what runs them; None asks nothing.
        clock: seconds, never going back.
    """

    def __init__(self, runner: Runner | None, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._clock = clock
        self._until: dict[tuple[str, ...], float] = {}

    def ask(self, *command: str, lines: int | None = None) -> str:
        """What a command says; empty if it says nothing, or said nothing less than a minute ago."""
        if self._runner is None or self._clock() < self._until.get(command, float("-inf")):
            return ""
        said = self._runner(command, TIMEOUT_S, lines)
        if not said:
            self._until[command] = self._clock() + PATIENCE_S
        return said or ""
