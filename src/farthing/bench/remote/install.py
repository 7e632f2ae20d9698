"""Put Farthing on a board, look at it there, and take it off again: over SSH, without a network on the board."""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import msgspec

from farthing.bench.remote import answers, onboard, wire
from farthing.bench.remote.boards import Board
from farthing.bench.remote.talk import SLOWEST_BYTES, Limits, Talk, named
from farthing.bench.remote.wheels import Platform, check_engines, gather, stamp
from farthing.config import Section
from farthing.errors import ConfigError, LinkError, TargetError
from farthing.files import file_digest
from farthing.links.ssh import Address, Reply, Ssh, printable
from farthing.recipe import Listener, Progress, ignore
from farthing.scratch import Scratch

DIRECTORY = ".local/share/farthing"
OLDEST = (3, 11)
INSTALL_SECONDS = 3600.0
REMOVE_SECONDS = 600.0
PIECE_BYTES = 1 << 20
_PROBE = """
import json, os, platform, sys, sysconfig
try:
    import venv
except ImportError:
    venv = None
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
except (ValueError, OSError):
    libc = ""
wide = sys.maxsize > 2 ** 32
print(json.dumps({
    "python": list(sys.version_info[:3]), "executable": sys.executable, "implementation": sys.implementation.name,
    "arch": platform.machine(), "wide": wide, "libc": libc, "home": os.path.expanduser("~"),
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")), "venv": venv is not None,
}))
"""
_FIND = """
for python in python3 python3.14 python3.13 python3.12 python3.11; do
    command -v "$python" > /dev/null && "$python" -I -c "$1"
done
true
"""
_NARROW = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}  # a 32-bit Python on a 64-bit kernel


class Found(Section, frozen=True, kw_only=True):
    """A Python on a board, as it describes itself."""

    python: tuple[int, int, int]
    executable: str
    implementation: str
    arch: str
    wide: bool
    libc: str
    home: str
    free_threaded: bool
    venv: bool

    @property
    def version(self) -> str:
        """As in ``3.11.2``."""
        return ".".join(map(str, self.python))

    def platform(self) -> Platform:
        """What decides which wheels fit.

        Raises:
            TargetError: its C library is not glibc.
        """
        match = re.fullmatch(r"glibc 2\.(\d{1,3})", self.libc)
        if not match:
            raise TargetError(
                f"its C library is {printable(self.libc, 60) or 'not glibc (musl?)'}: the engines' wheels need glibc, "
                "as in Debian, Ubuntu or Raspberry Pi OS; Alpine will not do"
            )
        major, minor, _ = self.python
        arch = self.arch if self.wide else _NARROW.get(self.arch, self.arch)
        if not re.fullmatch(r"\w{2,20}", arch):
            raise TargetError(f"it says its architecture is {printable(arch, 40)!r}, which is none we know")
        return Platform(
            python=(major, minor),
            abi=f"cp{major}{minor}{'t' * self.free_threaded}",
            arch=arch,
            glibc=int(match[1]),
        )


def find_python(ssh: Ssh, seconds: float = 120.0) -> Found:
    """The board's first Python that will do.

    Raises:
        TargetError: there is none, or it cannot make environments.
        LinkError: the connection broke.
    """
    reply = ssh.run(_FIND, [_PROBE], seconds=seconds, limit=1 << 16)
    found = [_believed(line) for line in reply.out.splitlines() if line.startswith(b"{")]
    able = [one for one in found if one.python >= OLDEST and one.implementation == "cpython"]
    if not able:
        have = ", ".join(sorted({one.version for one in found})) or "none"
        raise TargetError(
            f"{ssh.address} has no Python 3.11 or newer (found: {have}): install one there, as in "
            "`sudo apt-get install python3.11`; Debian 12, Ubuntu 24.04 and their kin bring one"
        )
    with_venv = [one for one in able if one.venv]
    if not with_venv:
        raise TargetError(
            f"the Python on {ssh.address} has no venv: `sudo apt-get install python3-venv` there"
        )
    return with_venv[0]


def _believed(line: bytes) -> Found:
    try:
        return msgspec.json.decode(line, type=Found)
    except (msgspec.MsgspecError, ValueError) as error:
        raise TargetError(f"the board describes its Python in words we do not know: {error}") from error


def add(
    name: str,
    address: Address,
    *,
    directory: str = DIRECTORY,
    engines: Sequence[str] = ("onnxruntime",),
    wheels: Path | None = None,
    listener: Listener = ignore,
    limits: Limits | None = None,
) -> Board:
    """Install Farthing and some engines on a board, or bring it up to date there.

    What the board needs is fetched here and sent; a failure leaves there what was before.

    Args:
        name: what to call it.
        address: how it is reached.
        directory: where to put it there; what does not begin with ``/`` is below the user's home.
        engines: names of engines to install.
        wheels: a directory of wheels to look in, beside the package index.
        listener: told what is done, and how many bytes were sent.
        limits: how long things may take.

    Returns:
        The board, for `farthing.bench.remote.Boards` to keep.

    Raises:
        LinkError: it cannot be reached, or the connection broke.
        ConfigError: the name cannot be that of a board, or the directory none of one.
        TargetError: its host key or ours is refused, it has no fitting Python or C library, a package has no
            wheel for it, or it is in use.
        StorageError: its disk is full, or its directory holds other files.
    """
    check_engines(engines)
    _board(name, address, f"/home/{directory}", engines)  # refused before anything is done
    limits = limits or Limits()
    listener(Progress(stage="connect", text=str(address)))
    with Ssh(address, limits.connect) as ssh:
        found = find_python(ssh)
        platform = found.platform()
        board = _board(name, address, str(PurePosixPath(found.home, directory)), engines, found)
        listener(Progress(stage="fetch", text=f"packages for {platform}"))
        with Scratch() as place:
            files = gather(platform, engines, place, wheels)
            order = {
                "files": {path.name: file_digest(path) for path in files},
                "engines": list(engines),
                "stamp": stamp(),
            }
            with _tar(files) as content:
                whole, size = {"action": "install", **order}, _size(content)
                pieces = _pieces(content, f"{len(files)} packages, {size / 1e6:.0f} MB", listener)
                seconds = INSTALL_SECONDS + size / SLOWEST_BYTES
                _order(ssh, found.executable, board, whole, limits, seconds, pieces)
    return board


def _board(
    name: str, address: Address, directory: str, engines: Sequence[str], found: Found | None = None
) -> Board:
    try:
        return Board(
            name=name,
            address=address,
            directory=directory,
            engines=tuple(engines),
            platform=str(found.platform()) if found else "",
            python=found.version if found else "",
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


@contextlib.contextmanager
def _tar(files: Sequence[Path]) -> Iterator[BinaryIO]:
    """The files one after another, as a tar."""
    with tempfile.TemporaryFile(prefix="farthing-") as whole:
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for path in files:
                tar.add(path, path.name)
        whole.seek(0)
        yield whole


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _pieces(file: BinaryIO, text: str = "", listener: Listener = ignore) -> Iterator[bytes]:
    """A file's content; tells how much of it went, and then that the board is at work."""
    while piece := file.read(PIECE_BYTES):
        listener(Progress(stage="send", text=text, done=file.tell() - len(piece), total=_size(file)))
        yield piece
    listener(Progress(stage="install", text="the board unpacks them and tries them"))


def _order(
    ssh: Ssh,
    python: str,
    board: Board,
    order: dict[str, Any],
    limits: Limits,
    seconds: float,
    content: Iterable[bytes] = (),
) -> dict[str, Any]:
    """Have our script there carry out an order."""
    text = Path(onboard.__file__).read_text()
    whole = {"directory": board.directory, "who": answers.whoami(), "wait": limits.lease, **order}
    arguments = [python, text, msgspec.json.encode(whole).decode()]
    reply = ssh.run('exec "$1" -I -c "$2" "$3"', arguments, content, seconds)
    return _told(board, reply)


def _told(board: Board, reply: Reply) -> dict[str, Any]:
    lines = reply.out.splitlines()
    try:
        answer = msgspec.json.decode(lines[-1] if lines else b"", type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError) as error:
        said = printable(reply.err) or f"exit code {reply.code}"
        raise LinkError(f"{board.name} did not finish: {said}; run the same command again") from error
    if "kind" in answer:
        raise named(str(answer["kind"]), f"{board.name}: {printable(str(answer.get('message')), 1000)}")
    return answer


def remove(board: Board, limits: Limits | None = None) -> bool:
    """Take Farthing off a board: its environment, models and lease. True if other files stay in its directory.

    Raises:
        LinkError: it cannot be reached, or the connection broke.
        TargetError: it refuses us, or is in use.
        StorageError: the directory is not ours.
    """
    limits = limits or Limits()
    with Ssh(board.address, limits.connect) as ssh:
        python = find_python(ssh).executable
        answer = _order(ssh, python, board, {"action": "remove"}, limits, limits.lease + REMOVE_SECONDS)
    return bool(answer.get("left"))


def look(board: Board, limits: Limits | None = None) -> wire.Ready:
    """What a board is and has, and who measures there; takes no lease.

    Raises:
        LinkError: it cannot be reached.
        TargetError: it refuses us, or Farthing is not there, or of another version.
    """
    limits = limits or Limits()
    with Ssh(board.address, limits.connect) as ssh:
        talk = Talk(ssh, board.directory, board.name, limits)
        try:
            return answers.ready(talk, board.name, -1.0, lambda sentence: None)
        finally:
            talk.close()
