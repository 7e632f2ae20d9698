"""Servers as processes, and load on them: what they answer in a second, how late, and what it costs them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from farthing.config import Section
from farthing.errors import MeasurementError

_PR_SET_CHILD_SUBREAPER = 36
TICK = os.sysconf("SC_CLK_TCK")
_LUA = """
local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
for name, value in string.gmatch(os.getenv("HEADERS"), "([^=;]+)=([^;]+)") do wrk.headers[name] = value end
function done(summary, latency, requests)
  local wrong = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  local form = "\\n{'requests': %d, 'seconds': %f, 'p50': %f, 'p99': %f, 'refused': %d, 'broken': %d}"
  form = string.gsub(form, "'", string.char(34))
  print(string.format(form, summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, summary.errors.status, wrong))
end
"""


class Load(Section, frozen=True, kw_only=True):
    """What a server did under load.

    Attributes:
        rate: requests answered in a second.
        p50, p99: milliseconds from request to answer.
        cpu: microseconds of processor time of the whole server for one request.
        failed: answers that were errors, and connections that broke.
    """

    rate: float
    p50: float
    p99: float
    cpu: float
    failed: int


class Body(Section, frozen=True, kw_only=True):
    """What is posted, and where."""

    path: str
    content: bytes
    headers: dict[str, str]


class Server:
    """A server in a process of its own, with all its children. Use it in ``with``: it is killed at the end.

    Args:
        name: for messages.
        command: what starts it; ``{port}`` in it is replaced by a free port.
        ready: path that answers 200 as soon as it serves.
        environment: variables on top of ours.
    """

    def __init__(
        self, name: str, command: Sequence[str], ready: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        _adopt_orphans()
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 - closed with the server
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [part.replace("{port}", str(self.port)) for part in command],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PORT": str(self.port), **(environment or {})},
        )
        self.ready_seconds = self._wait(f"http://127.0.0.1:{self.port}{ready}", began)

    def _wait(self, url: str, began: float) -> float:
        while time.perf_counter() - began < 120:
            with contextlib.suppress(OSError, urllib.error.URLError):
                if urllib.request.urlopen(url, timeout=2).status == 200:
                    return time.perf_counter() - began
            if self._process.poll() is not None:
                break
            time.sleep(0.01)
        tail = "\n".join(Path(self._log.name).read_text().splitlines()[-15:])
        self.close()
        raise MeasurementError(f"{self.name} did not start:\n{tail}")

    def cpu(self) -> float:
        """Seconds of processor time it has used so far, with its children."""
        return sum(_cpu(pid) for pid in self._family())

    def memory(self) -> float:
        """Its proportional set size in MB, with its children."""
        return sum(_pss(pid) for pid in self._family())

    def load(self, body: Body, connections: int, seconds: float) -> Load:
        """Post as fast as answers come, over some connections that stay open (wrk, one thread)."""
        before = self.cpu()
        told = wrk(f"http://127.0.0.1:{self.port}{body.path}", body, connections, seconds)
        spent = self.cpu() - before
        done = max(1.0, told["requests"])
        return Load(
            rate=told["requests"] / told["seconds"],
            p50=told["p50"],
            p99=told["p99"],
            cpu=spent / done * 1e6,
            failed=int(told["refused"] + told["broken"]),
        )

    def _family(self) -> list[int]:
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    stat = (entry / "stat").read_text()
                    parents[int(entry.name)] = int(stat[stat.rindex(")") + 2 :].split()[1])
        family = [self._process.pid]
        for pid in family:
            family += [child for child, parent in parents.items() if parent == pid]
        return family

    def close(self) -> None:
        """Kill it and its children, and wait for them: their processor time is then that of our children."""
        family = self._family()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        for pid in family[1:]:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _adopt_orphans() -> None:
    """Grandchildren whose parent has ended become children of this process (Linux, ``prctl``)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def wrk(url: str, body: Body, connections: int, seconds: float) -> dict[str, float]:
    """Run wrk (https://github.com/wg/wrk, Debian package ``wrk``) with one thread.

    Raises:
        MeasurementError: it is not installed, or told nothing.
    """
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "body").write_bytes(body.content)
        (place / "post.lua").write_text(_LUA)
        headers = ";".join(f"{key}={value}" for key, value in body.headers.items())
        command = ["wrk", "-t1", f"-c{connections}", f"-d{math.ceil(seconds)}s", "--timeout", "30s"]
        try:
            told = subprocess.run(
                [*command, "-s", str(place / "post.lua"), url],
                env={**os.environ, "BODY": str(place / "body"), "HEADERS": headers},
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise MeasurementError("wrk is not installed: apt-get install wrk") from None
    lines = [line for line in told.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise MeasurementError(f"wrk gave no figures: {told.stdout}{told.stderr}")
    found: dict[str, float] = json.loads(lines[-1])
    return found


def _cpu(pid: int) -> float:
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        fields = stat[stat.rindex(")") + 2 :].split()
        return sum(int(field) for field in fields[11:15]) / TICK
    return 0.0


def _pss(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0
