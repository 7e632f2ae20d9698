"""What systemd is told over its socket: ready, stopping, and that inference goes on (sd_notify(3))."""

from __future__ import annotations

import contextlib
import socket
from typing import NamedTuple


class Notifier:
    """Sends states to the service manager; does nothing where there is none.

    Args:
        address: value of ``NOTIFY_SOCKET``: a path, or ``@`` and an abstract name; empty: there is none.
    """

    def __init__(self, address: str = "") -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address

    def send(self, *states: str) -> None:
        """Tell states, as in ``READY=1``. A manager that does not listen is no reason to stop, or to wait for it."""
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as wire,
        ):
            wire.connect(self._address)
            wire.send("\n".join(states).encode(), socket.MSG_DONTWAIT)


class Watchdog:
    """Decides whether a sign of life is due: only while inference goes on, or nothing waits for it.

    A model that hangs answers nobody; then the signs stop, and systemd starts the server anew.
    """

    def __init__(self) -> None:
        self._executions = -1

    def alive(self, executions: int, under_way: int) -> bool:
        """Whether a model computed something since the last look, or nobody waits for it.

        Args:
            executions: of models, up to now. Requests would not do: those that give up end, too.
            under_way: requests that wait for their answer.
        """
        moved, self._executions = executions != self._executions, executions
        return moved or not under_way


class Manager(NamedTuple):
    """What the environment says of systemd.

    Attributes:
        address: ``NOTIFY_SOCKET``.
        watchdog: seconds within which it wants a sign of life; 0 if it wants none.
    """

    address: str = ""
    watchdog: float = 0.0

    @classmethod
    def of(cls, address: str, watchdog_usec: str, watchdog_pid: str, own_pid: int) -> Manager:
        """From the variables ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``."""
        meant = watchdog_usec.isdigit() and watchdog_pid in {"", str(own_pid)}
        return cls(address, int(watchdog_usec) / 1e6 if meant else 0.0)
