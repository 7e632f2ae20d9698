"""What puts Farthing on a board and takes it off again; run there by the board's own Python, so standard library only.

It is sent as text (``python3 -c``) with an order in JSON as its argument and a tar of wheels on its standard input,
and answers with one line of JSON. The worker imports it too, for the lease and the places of things.

Everything lives in one directory::

    farthing-board.json    what is installed; by it we know the directory as ours
    venv -> venvs/NAME     a new environment is built beside the old one and takes its place in one step
    models/ tmp/ lease
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

MARKER = "farthing-board.json"
VENV, VENVS, MODELS, SCRATCH, LEASE = "venv", "venvs", "models", "tmp", "lease"
OURS = {MARKER, VENV, VENVS, MODELS, SCRATCH, LEASE}
_FULL = "No space left on device"


class Refusal(Exception):
    """What went wrong: the name of an error of `farthing.errors`, and its message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def holder(directory: Path) -> tuple[str, str]:
    """Who holds the lease, and since when, as the file says; empty where it says nothing sensible."""
    try:
        with (directory / LEASE).open("rb") as file:
            said = json.loads(file.read(4096))
        return str(said["who"])[:100], str(said["since"])[:40]
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


@contextlib.contextmanager
def lease(
    directory: Path, who: str, wait: float, busy: Callable[[str, str], object] = lambda who, since: None
) -> Iterator[None]:
    """One at a time: hold the directory's lock file; the kernel lets go of it if we are killed.

    Args:
        directory: the board's directory.
        who: told to others who want it.
        wait: seconds to wait for it.
        busy: called about every second with who holds it and since when.

    Raises:
        Refusal: another holds it longer than that.
    """
    handle = os.open(directory / LEASE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _take(handle, directory, wait, busy)
        said = {"who": who, "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        os.truncate(handle, 0)
        with contextlib.suppress(OSError):  # the disk is full: it is held all the same
            os.pwrite(handle, json.dumps(said).encode(), 0)
        yield
        os.truncate(handle, 0)
    finally:
        os.close(handle)


def _take(handle: int, directory: Path, wait: float, busy: Callable[[str, str], object]) -> None:
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            by, since = holder(directory)
            if time.monotonic() >= end:
                words = f"by {by or 'somebody'}{f' since {since}' if since else ''}"
                raise Refusal(
                    "TargetError", f"the board is in use {words}: wait until that is done"
                ) from None
            busy(by, since)
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))
        else:
            break
    try:
        same = os.fstat(handle).st_ino == (directory / LEASE).stat().st_ino
    except OSError:
        same = False
    if not same:
        raise Refusal("TargetError", "Farthing was taken off the board meanwhile: add it as a target again")


def held(directory: Path) -> bool:
    """Whether somebody holds the lease now."""
    try:
        handle = os.open(directory / LEASE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def sweep(directory: Path) -> None:
    """Remove what those before us left unfinished; only for the holder of the lease."""
    shutil.rmtree(directory / SCRATCH, ignore_errors=True)
    (directory / SCRATCH).mkdir(mode=0o700)
    current = (directory / VENV).resolve()
    for place in (directory / VENVS, directory / MODELS):
        for entry in place.iterdir() if place.is_dir() else ():
            if entry.name.startswith(".") or (place.name == VENVS and entry.resolve() != current):
                shutil.rmtree(entry, ignore_errors=True)


def claim(directory: Path) -> None:
    """Make the directory ours, or see that it is.

    Raises:
        Refusal: it holds what we did not put there.
    """
    made = [str(place) for place in directory.parents if not place.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (directory / MARKER).is_file():
            return
        if any(entry.name not in OURS for entry in directory.iterdir()):
            words = f"{directory} on the board holds other files: name another --directory"
            raise Refusal("StorageError", words)
        _write(directory / MARKER, json.dumps({"parents": made}) + "\n")
    except OSError:
        _rmdir([directory, *map(Path, made)])
        raise


def _rmdir(places: Iterable[Path]) -> None:
    """Remove directories in which nothing is, one after another."""
    with contextlib.suppress(OSError):
        for place in places:
            place.rmdir()


def _parents(directory: Path) -> list[str]:
    """The directories above ours that were made for it, the nearest first."""
    try:
        noted = json.loads((directory / MARKER).read_bytes())["parents"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(place) for place in directory.parents if str(place) in noted]


def install(directory: Path, order: dict[str, Any]) -> dict[str, Any]:
    """Receive wheels, build an environment of them, try it, and let it take the place of the last one."""
    fresh = Path(tempfile.mkdtemp(prefix="py-", dir=_made(directory / VENVS)))
    try:
        with tempfile.TemporaryDirectory(dir=directory / SCRATCH) as place:
            wheels = receive(Path(place), order["files"])
            _build(fresh, wheels, directory / SCRATCH)
        python = fresh / "bin" / "python"
        said = _checked([python, "-I", "-m", "farthing.bench.worker", "--trial", "fake", *order["engines"]])
        os.sync()
        _point(directory / VENV, fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    versions = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    found = {"stamp": order["stamp"], "engines": versions, "parents": _parents(directory)}
    _write(directory / MARKER, json.dumps(found) + "\n")
    sweep(directory)
    return found


def _made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True, mode=0o700)
    return directory


def receive(place: Path, expected: dict[str, str]) -> list[Path]:
    """The files of the tar on our standard input: these names with these SHA-256, and no others.

    Raises:
        Refusal: it was cut off, or is another.
    """
    found = {}
    try:
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as stream:
            for member in stream:
                source = stream.extractfile(member) if member.isreg() else None
                if source is None or member.name not in expected:
                    raise Refusal("TargetError", f"{member.name!r} was sent, but not announced")
                with (place / member.name).open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                with (place / member.name).open("rb") as file:
                    found[member.name] = hashlib.file_digest(file, "sha256").hexdigest()
    except tarfile.TarError as error:
        raise Refusal("LinkError", f"the files did not arrive whole ({error}): try again") from error
    if found != expected:
        raise Refusal("LinkError", "the files did not arrive whole: try again")
    return [place / name for name in found]


def _build(fresh: Path, wheels: list[Path], scratch: Path) -> None:
    _checked([sys.executable, "-m", "venv", "--without-pip", fresh])
    pip = next(wheel for wheel in wheels if wheel.name.startswith("pip-"))
    others = [wheel for wheel in wheels if wheel != pip]
    quiet = ["--isolated", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    base = [fresh / "bin" / "python", "-I", pip / "pip"]
    names = [f"./{wheel.name}" for wheel in others]  # a path may hold what pip takes for more than a path
    _checked([*base, "install", "-q", *quiet, "--no-index", "--no-deps", *names], scratch, pip.parent)
    _checked([*base, "check", *quiet], scratch)


def _checked(command: list[Any], scratch: Path | None = None, here: Path | None = None) -> str:
    """Run a program; what it wrote.

    Raises:
        Refusal: it failed.
    """
    words = [*(["env", f"TMPDIR={scratch}"] if scratch else []), *map(str, command)]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=here
    )
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr.strip() or done.stdout.strip())[-2000:]
    if _FULL in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    wrong = re.search(r"(\S+\.whl) is not a supported wheel on this platform", said)
    if wrong:
        raise Refusal(
            "TargetError", f"{Path(wrong[1]).name} is for another machine than this {os.uname().machine}"
        )
    what = "pip" if any("pip-" in word for word in words) else " ".join(words[:4])
    lines = said.splitlines() or [f"exit code {done.returncode}"]
    reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
    raise Refusal("TargetError", f"{what} failed on the board: {reason}")


def _point(link: Path, target: Path) -> None:
    """Let a link point to a directory beside it, in one step."""
    fresh = link.with_name(f".{link.name}-{target.name}")
    fresh.symlink_to(target.relative_to(link.parent))
    fresh.replace(link)


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}")
    with fresh.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def remove(directory: Path) -> dict[str, Any]:
    """Remove all that is ours, and the directory if nothing else is in it; so too those that were made above it."""
    above = _parents(directory)
    for entry in list(directory.iterdir()):
        if entry.is_symlink() or entry.is_file():
            if entry.name in OURS or entry.name.startswith((f".{VENV}-", f".{MARKER}")):
                entry.unlink()
        elif entry.name in OURS:
            shutil.rmtree(entry)
    _rmdir([directory, *map(Path, above)])
    return {"left": directory.exists()}


def carry_out(order: dict[str, Any]) -> dict[str, Any]:
    """Install or remove, under the lease.

    Raises:
        Refusal: in words for the other side.
    """
    directory = Path(order["directory"])
    if order["action"] == "remove" and not (directory / MARKER).is_file():
        if directory.exists():
            raise Refusal("StorageError", f"{directory} on the board is not ours to remove")
        return {"left": False}
    try:
        claim(directory)
        with lease(directory, order["who"], order["wait"]):
            if order["action"] == "remove":
                return remove(directory)
            try:
                sweep(directory)
                return install(directory, order)
            except BaseException:
                if not (directory / VENV).exists():  # there was nothing before, so nothing stays
                    remove(directory)
                raise
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        reason = "the disk is full: free some space there" if full else f"{error.strerror} ({error.filename})"
        raise Refusal("StorageError", f"cannot write {directory} on the board: {reason}") from error


def when_gone(handle: int, events: int, then: Callable[[], object]) -> None:
    """Call ``then``, in a thread of its own, as soon as the other side of a pipe or socket is gone.

    Args:
        handle: our side of it.
        events: what of `select.poll` tells; that it is gone altogether is told in any case.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(handle, events)
        while not poll.poll():  # in the kernel: it costs a race nothing
            pass
        then()

    threading.Thread(target=watch, daemon=True).start()


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what tidies up is let finish
    raise SystemExit(1)


def main() -> None:
    """Carry out the order in our first argument; what is half done is undone if whoever gave it leaves."""
    signal.signal(signal.SIGTERM, _stop)
    when_gone(1, 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        answer = carry_out(json.loads(sys.argv[1]))
    except Refusal as refusal:
        answer = {"kind": refusal.kind, "message": str(refusal)}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
