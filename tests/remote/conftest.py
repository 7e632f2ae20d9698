"""A real SSH server of our own, on this machine, and a board behind it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import farthing
from farthing.bench.machine import Here
from farthing.bench.remote import Board, Limits, Remote
from farthing.errors import NotInstalled
from farthing.links.ssh import Address

SOURCES = Path(farthing.__file__).parents[1]
QUICK = Limits(connect=20, request=20, load=60, silence=30, race=60, lease=0, attempts=2, pause=0.05)


def program(name: str) -> str:
    """Path of a program of the OpenSSH server or client; the test is skipped without it, and fails in CI."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path:
        return path
    reason = (
        f"no {name} on this machine: install your distribution's packages openssh-server and openssh-client"
    )
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def new_key(path: Path) -> Path:
    program("ssh-keygen")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)
    return path


@dataclass
class Server:
    """An sshd on a port of 127.0.0.1 that lets one key in; its log is in ``log``."""

    place: Path
    port: int = 0
    settings: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True)
        self.host_key = new_key(self.place / "host_key")
        self.key = new_key(self.place / "key")
        shutil.copyfile(f"{self.key}.pub", self.place / "authorized_keys")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.know(self.host_key)

    def know(self, key: Path | None) -> None:
        """Let the client take that key for the host's; None: it knows none."""
        known = Path(f"{key}.pub").read_text().rsplit(" ", 1)[0] if key else ""
        lines = f"[127.0.0.1]:{self.port} {known}\n" if key else ""
        (self.place / "known_hosts").write_text(lines)
        (self.place / "client").write_text(
            f"UserKnownHostsFile {self.place}/known_hosts\nGlobalKnownHostsFile none\nIdentityFile {self.key}\n"
            "IdentitiesOnly yes\nIdentityAgent none\n"
        )

    @property
    def log(self) -> str:
        return (self.place / "log").read_text(errors="replace")

    @property
    def address(self) -> Address:
        return Address(host="127.0.0.1", port=self.port, config=self.place / "client")

    def start(self) -> None:
        sshd = program("sshd")
        if not os.geteuid():
            Path("/run/sshd").mkdir(exist_ok=True)  # it wants this place when root runs it
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.host_key}",
            f"AuthorizedKeysFile {self.place}/authorized_keys",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PermitRootLogin yes",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            *self.settings,
        ]
        (self.place / "sshd_config").write_text("\n".join(lines) + "\n")
        command = [sshd, "-D", "-f", self.place / "sshd_config", "-E", self.place / "log"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while time.monotonic() < end and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError(f"sshd does not start: {self.log}")

    def stop(self) -> None:
        """The whole machine is gone: the server, and all connections."""
        if self.process:
            self.cut()
            self.process.kill()
            self.process.wait()
            self.process = None

    def cut(self) -> None:
        """Every connection drops; new ones are taken."""
        for pid in children(self.process.pid if self.process else 0):
            for inner in [pid, *(child for child in children(pid) if "sshd" in command_of(child))]:
                kill(inner)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    try:
        return [
            int(word)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]
    except OSError:
        return []


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def processes(words: str) -> list[int]:
    """Living processes with these words in their command lines."""
    found = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in found if words in command_of(pid) and pid != os.getpid()]


def eventually(what: Callable[[], object], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("sshd")
    made = Server(place / "server")
    made.start()
    yield made
    made.stop()


def fit_out(directory: Path) -> Path:
    """A board's directory as an installation leaves it, but with the packages of this environment."""
    directory.mkdir(parents=True)
    made = directory / "venvs" / "py-test"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    packages = next(made.glob("lib/python3*/site-packages"))
    ours = [place for place in sys.path if place.endswith("site-packages")]
    (packages / "here.pth").write_text("\n".join([str(SOURCES), *ours]) + "\n")
    (directory / "venv").symlink_to("venvs/py-test")
    engines = {"fake": "1"}
    with contextlib.suppress(NotInstalled):
        engines["onnxruntime"] = Here().version("onnxruntime")
    (directory / "farthing-board.json").write_text(json.dumps({"engines": engines}))
    return directory


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_out(tmp_path_factory.mktemp("board") / "farthing")


@pytest.fixture
def board(server: Server, fitted: Path) -> Iterator[Board]:
    server.know(server.host_key)
    yield Board(name="bench-board", address=server.address, directory=str(fitted))
    workers = f"farthing.bench.worker {fitted}"
    assert eventually(lambda: not processes(workers)), "a worker stayed behind"
    assert not (fitted / "tmp").exists() or not list((fitted / "tmp").iterdir())


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def remote(board: Board, said: list[str]) -> Iterator[Remote]:
    with Remote(board, said.append, QUICK) as opened:
        yield opened
