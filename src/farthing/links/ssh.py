"""SSH through the system's own client (OpenSSH): it knows the user's keys, agents, known hosts and ``~/.ssh/config``.

Nobody is asked anything: keys only, and a host whose key is not known is refused. One connection carries all
channels (``ControlMaster``); it ends with this process, however that ends, because the far end waits for a pipe
that only we hold open.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import BinaryIO, Self

from farthing.config import Section
from farthing.errors import ConfigError, FarthingError, LinkError, NotInstalled, TargetError
from farthing.scratch import Scratch

OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "EscapeChar=none",
    "LogLevel=ERROR",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
)
MARK = b"\x1efarthing\n"  # before it comes what the login shell's start-up files say
_CHUNK = 1 << 16
_NOISE = 1 << 16  # most bytes before the mark
_AHEAD = 4 << 20
_CONNECTION_LOST = 255
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?|[0-9a-fA-F]*:[0-9a-fA-F:.]{1,45}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}")


class Address(Section, frozen=True, kw_only=True):
    """Where a machine is reached.

    Attributes:
        host: name, address, or an alias of the user's ``~/.ssh/config``.
        user: who logs in; empty leaves it to the client.
        port: None leaves it to the client.
        identity: file of the private key; None leaves it to the client and its agent.
        config: settings file of the client in place of ``~/.ssh/config``.
    """

    host: str
    user: str = ""
    port: int | None = None
    identity: Path | None = None
    config: Path | None = None

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise ValueError(f"{self.host!r} is not the name or address of a host")
        if self.user and not _USER.fullmatch(self.user):
            raise ValueError(f"{self.user!r} is not the name of a user")
        if self.port is not None and not 0 < self.port < 1 << 16:
            raise ValueError(f"port must be from 1 to 65535, not {self.port}")

    def __str__(self) -> str:
        name = f"{self.user}@{self.host}" if self.user else self.host
        return f"{name} port {self.port}" if self.port else name

    @classmethod
    def parse(
        cls, text: str, port: int | None = None, identity: Path | None = None, config: Path | None = None
    ) -> Address:
        """Read ``[USER@]HOST``.

        Raises:
            ConfigError: it is not of that form, or a file that is named is not there.
        """
        user, _, host = text.rpartition("@")
        for path in filter(None, (identity, config)):
            if not path.is_file():
                raise ConfigError(f"there is no file {path}: give the path of one")
        try:
            return cls(
                host=host,
                user=user,
                port=port,
                identity=identity and identity.absolute(),
                config=config and config.absolute(),
            )
        except ValueError as error:
            raise ConfigError(f"{text!r} is not [USER@]HOST: {error}") from error


@dataclass(frozen=True)
class Reply:
    """What a command on the other machine ended with: its exit code, and what it wrote (bounded)."""

    code: int
    out: bytes
    err: str


class Ssh:
    """A connection to a machine; its channels are opened with `start`, single commands run with `run`.

    Args:
        address: the machine.
        connect_seconds: most time until it answers.

    Raises:
        NotInstalled: there is no ``ssh`` here.
    """

    def __init__(self, address: Address, connect_seconds: float = 10.0) -> None:
        if shutil.which("ssh") is None:
            raise NotInstalled("there is no program ssh here: install your system's OpenSSH client")
        self.address = address
        self._seconds = connect_seconds
        self._place: Scratch | None = None
        self._main: Channel | None = None

    def open(self) -> Self:
        """Connect and log in.

        Raises:
            LinkError: it cannot be reached.
            TargetError: its host key is unknown or another than before, or it takes none of our keys.
        """
        self.close()
        # The name of a socket may have some 100 characters, and ssh adds 17 of its own.
        self._place = Scratch(_short_directory())
        command = self._command("exec cat > /dev/null", "ControlMaster=yes", "ControlPersist=no")
        try:
            self._main = Channel(command, self.address)
            self._main.until(MARK, time.monotonic() + self._seconds + 5)
        except BaseException:
            self.close()
            raise
        return self

    def _command(self, script: str, *settings: str, arguments: Sequence[str] = ()) -> list[str]:
        """The client's command line; the script runs in ``sh`` whatever the user's own shell is."""
        address = self.address
        words = ["ssh", "-T"]
        words += ["-F", str(address.config)] if address.config else []
        words += ["-p", str(address.port)] if address.port else []
        words += ["-l", address.user] if address.user else []
        words += ["-i", str(address.identity), "-o", "IdentitiesOnly=yes"] if address.identity else []
        place = f"ControlPath={self._place and self._place.path}/s"
        for option in (*OPTIONS, f"ConnectTimeout={max(1, round(self._seconds))}", place, *settings):
            words += ["-o", option]
        whole = ["sh", "-c", f"printf '\\036farthing\\n'; {script}", "sh", *arguments]
        return [*words, "--", address.host, shlex.join(whole)]

    def start(self, script: str, arguments: Sequence[str] = ()) -> Channel:
        """Run a script there and talk with it; its arguments are ``$1``, ``$2`` ...

        Raises:
            LinkError: the connection broke.
        """
        channel = Channel(self._command(script, "ControlMaster=no", arguments=arguments), self.address)
        try:
            channel.until(MARK, time.monotonic() + self._seconds + 5)
        except BaseException:
            channel.close()
            raise
        return channel

    def run(
        self,
        script: str,
        arguments: Sequence[str] = (),
        content: Iterable[bytes] = (),
        seconds: float = 60.0,
        limit: int = 1 << 20,
    ) -> Reply:
        """Run a script there to its end.

        Args:
            script: in the language of ``sh``.
            arguments: its ``$1``, ``$2`` ...
            content: what it reads from its standard input, piece by piece.
            seconds: most time it may take.
            limit: most bytes it may write.

        Raises:
            LinkError: the connection broke, it took too long, or wrote too much.
        """
        end = time.monotonic() + seconds
        with contextlib.closing(self.start(script, arguments)) as channel:
            channel.ahead = limit + 1
            with contextlib.suppress(BrokenPipeError):  # it ended early, and says why
                for piece in content:
                    channel.write(piece, end)
            channel.end_of_input()
            out = channel.rest(limit, end)
            code = channel.wait(end)
            if code is None or code == _CONNECTION_LOST:
                raise explain(channel.said, self.address, own=False)
            return Reply(code, out, channel.said)

    def close(self) -> None:
        """End the connection and all its channels."""
        main, self._main = self._main, None
        place, self._place = self._place, None
        for part in (main, place):
            if part:
                part.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *exc: object) -> None:
        self.close()


def _short_directory() -> str | None:
    return None if len(tempfile.gettempdir()) < 60 else "/tmp"  # noqa: S108  (mkdtemp makes it ours alone)


class Channel:
    """A program on the other machine: we write to its input and read its output, each with an end in time."""

    def __init__(self, command: Sequence[str], address: Address) -> None:
        self._address = address
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is ours to answer
        )
        self.ahead = _AHEAD  # most bytes taken that nobody asked for yet
        self._out, self._err = bytearray(), bytearray()
        self._greeted = False
        self._open = {self._file("stdout").fileno(), self._file("stderr").fileno()}
        for name in ("stdin", "stdout", "stderr"):
            os.set_blocking(self._file(name).fileno(), False)

    def _file(self, name: str) -> BinaryIO:
        file: BinaryIO = getattr(self._process, name)
        return file

    @property
    def said(self) -> str:
        """The end of what came on standard error, fit to be printed."""
        return printable(self._err.decode(errors="replace"), len(self._err))

    def write(self, data: bytes | memoryview, end: float) -> None:
        """Write all of ``data``.

        Args:
            end: when to give up, as `time.monotonic` counts.

        Raises:
            BrokenPipeError: it does not read any more.
            LinkError: it did not take it in time.
        """
        view, handle = memoryview(data), self._file("stdin").fileno()
        while view:
            if self._wait(end, handle):
                with contextlib.suppress(BlockingIOError):
                    view = view[os.write(handle, view[:_CHUNK]) :]

    def read_into(self, target: memoryview, end: float) -> None:
        """Fill ``target`` from its output.

        Raises:
            LinkError: it ended, or sent nothing in time.
        """
        done = 0
        while done < len(target):
            self._fill(end)
            count = min(len(self._out), len(target) - done)
            target[done : done + count] = self._out[:count]
            del self._out[:count]
            done += count

    def _fill(self, end: float) -> None:
        """Wait until there is output."""
        while not self._out:
            if self.ended:
                code = self.wait(time.monotonic() + 5)
                own = code == _CONNECTION_LOST and not self._greeted  # later it is the other side that speaks
                raise explain(self.said, self._address, own)
            self._wait(end)

    def until(self, mark: bytes, end: float) -> None:
        """Read up to a mark, and drop what came before it.

        Raises:
            LinkError: as `read_into`.
            TargetError: too much came before it, or the client refused the host.
        """
        seen = bytearray()
        byte = memoryview(bytearray(1))
        while not seen.endswith(mark):
            self.read_into(byte, end)
            seen += byte
            if len(seen) > _NOISE:
                raise TargetError(
                    f"{self._address} writes too much when one logs in: let its shell's start-up files be silent "
                    "without a terminal"
                )
        self._greeted = True

    def rest(self, limit: int, end: float) -> bytes:
        """All of its output up to its end."""
        while not self.ended and len(self._out) <= limit:
            self._wait(end)
        if len(self._out) > limit:
            raise LinkError(f"{self._address} sent more than {limit} bytes in answer: refused")
        return bytes(self._out)

    def _wait(self, end: float, writing: int | None = None) -> bool:
        """Take what has come; whether ``writing`` may be written to."""
        poll = select.poll()
        for handle in self._open:
            if handle != self._file("stdout").fileno() or len(self._out) < self.ahead:
                poll.register(handle, select.POLLIN)
        if writing is not None:
            poll.register(writing, select.POLLOUT)
        left = end - time.monotonic()
        ready = poll.poll(max(0.0, left) * 1000) if left > 0 else []
        if not ready:
            raise LinkError(f"{self._address} did not answer in time: is it still on? look with ssh")
        for handle, _ in ready:
            if handle != writing:
                self._take(handle)
        return any(handle == writing for handle, _ in ready)

    def _take(self, handle: int) -> None:
        try:
            piece = os.read(handle, _CHUNK)
        except BlockingIOError:
            return
        if not piece:
            self._open.discard(handle)
        elif handle == self._file("stdout").fileno():
            self._out += piece
        else:
            self._err = (self._err + piece)[-8192:]

    def end_of_input(self) -> None:
        """Nothing more will be written."""
        with contextlib.suppress(BrokenPipeError):
            self._file("stdin").close()

    def wait(self, end: float) -> int | None:
        """Its exit code; None if it runs on."""
        with contextlib.suppress(LinkError):
            while self._open:
                self._wait(min(end, time.monotonic() + 1))
        try:
            return self._process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    @property
    def ended(self) -> bool:
        """Whether its output ended."""
        return self._file("stdout").fileno() not in self._open

    @property
    def code(self) -> int | None:
        """Its exit code, once it ended; None if the connection broke instead."""
        code = self._process.poll()
        return None if code in {None, _CONNECTION_LOST} or (code or 0) < 0 else code

    def close(self) -> None:
        """End of input, a moment to leave, and then the end."""
        self.end_of_input()
        for signal in (0, SIGTERM, SIGKILL):
            self._process.send_signal(signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
                break
        for name in ("stdout", "stderr"):
            self._file(name).close()
        self._open.clear()


def printable(text: str, most: int = 400) -> str:
    """Text of a stranger, in one line, without what a terminal would obey."""
    shown = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    return shown if len(shown) <= most else f"... {shown[-most:]}"


def explain(said: str, address: Address, own: bool) -> FarthingError:
    """The error for what is said when a connection fails; if they are the client's own words, by what they mean."""
    last = printable(said) or "nothing"
    for pattern, kind, advice in _REASONS if own else ():
        if re.search(pattern, said):
            return kind(f"{address}: {advice.format(host=address.host)} (ssh says: {last})")
    return LinkError(f"{address}: the connection broke: is the machine still on? (ssh says: {last})")


_REASONS: tuple[tuple[str, type[TargetError], str], ...] = (
    (
        r"HOST IDENTIFICATION HAS CHANGED|host key for .* has changed",
        TargetError,
        (
            "its host key is not the one known for it: either it was set up anew, or another machine answers in its "
            "place. Compare with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the machine itself; only if the "
            "new key is right, `ssh-keygen -R {host}` and log in once by hand"
        ),
    ),
    (
        r"Host key verification failed|host key is known|HOST KEY",
        TargetError,
        (
            "its host key is not known here. Log in once by hand (`ssh {host}`), and compare the fingerprint it shows "
            "with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the machine itself before you accept it"
        ),
    ),
    (
        r"Permission denied|Too many authentication failures|No more authentication methods",
        TargetError,
        "it takes none of your keys. Put one there with `ssh-copy-id {host}`, or name the right one with --identity",
    ),
    (
        r"Bad configuration option|Bad owner or permissions|terminating, .* bad configuration|no argument after",
        TargetError,
        "the ssh client's own settings are not in order",
    ),
    (
        r"Could not resolve hostname",
        LinkError,
        "no machine of that name is known: is it spelt right, is the network up?",
    ),
    (
        r"Connection refused|timed out|No route to host|Network is unreachable|Host is down",
        LinkError,
        "it cannot be reached: is it on, is its SSH server running, is the port right?",
    ),
)
