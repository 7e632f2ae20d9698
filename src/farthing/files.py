"""Files that are whole or absent: atomic writes, digests, locks and archives that cannot escape.

A reader never sees half a file: everything is written beside its destination, flushed to the disk and
renamed over it. A killed writer leaves at most a hidden ``.tmp-*`` entry, which the next writer removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from farthing.errors import StorageError

TEMPORARY = ".tmp-"


def digest(data: bytes) -> str:
    """SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content as 64 hexadecimal digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals around ``path`` into a StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full: free some space or choose another directory",
            errno.EDQUOT: "the disk quota is used up: free some space or choose another directory",
            errno.EROFS: "the file system is read-only: choose another directory",
            errno.EACCES: "permission denied: choose a directory you may write to",
            errno.EPERM: "not permitted: choose a directory you may write to",
            errno.EEXIST: "a file stands where a directory is needed: choose another path",
            errno.ENOTDIR: "a file stands where a directory is needed: choose another path",
            errno.EISDIR: "a directory stands where a file is needed: choose another path",
        }
        reason = reasons.get(error.errno or 0)
        if reason is None:
            raise
        raise StorageError(f"cannot write {path}: {reason}") from error


def write(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all (temporary file, fsync, rename, fsync of the directory).

    Raises:
        StorageError: the disk is full, read-only, or the place may not be written to.
    """
    content = data.encode() if isinstance(data, str) else data
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a directory whole or not at all: ``fill`` writes into a hidden sibling that is then renamed.

    A directory already at ``path`` is replaced; it stays untouched until the new one is complete.

    Raises:
        StorageError: the disk is full, read-only, or the place may not be written to.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=path.parent))
        old = fresh.with_name(fresh.name + ".old")
        try:
            fill(fresh)
            sync_tree(fresh)
            fresh.chmod(0o755)
            if path.exists():
                path.rename(old)
            fresh.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
        _sync_directory(path.parent)


def sync_tree(root: Path) -> None:
    """Flush every file and directory below ``root`` to the disk."""
    for path in [*root.rglob("*"), root]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(directory: Path) -> None:
    """Remove what killed writers left behind in ``directory``; call it only while holding its lock."""
    for path in directory.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock file for the length of a ``with`` block; the kernel drops it if we are killed.

    Raises:
        StorageError: another process holds it; ``what`` says which work is under way.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"{what} is in use by another process (lock file {path}): wait for it or choose another directory"
            ) from error
        yield
    finally:
        os.close(handle)


def pack(directory: Path, archive: Path) -> None:
    """Zip a directory's files under sorted names with fixed times: the same content gives the same bytes."""
    with explained(archive):
        archive.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=archive.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as zipped:
                for path in sorted(p for p in directory.rglob("*") if p.is_file()):
                    member = zipfile.ZipInfo(path.relative_to(directory).as_posix(), (1980, 1, 1, 0, 0, 0))
                    member.compress_type = zipfile.ZIP_DEFLATED
                    member.external_attr = 0o644 << 16
                    zipped.writestr(member, path.read_bytes())
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(archive)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(archive.parent)


def unpack(archive: Path, directory: Path, limit: int = 4 << 30) -> None:
    """Unzip into a directory, refusing what a stranger's archive could do.

    Args:
        archive: the zip file.
        directory: an existing, empty directory.
        limit: most bytes the content may have, unpacked.

    Raises:
        StorageError: not a zip, damaged, absolute or ``..`` names, links, duplicates, or more than ``limit`` bytes.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = zipped.infolist()
            _refuse_unsafe(archive, members, limit)
            for member in members:
                if member.is_dir():
                    continue
                place = directory / member.filename
                place.parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(member) as source, place.open("wb") as file:
                    _copy_limited(source, file, member.file_size, archive)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise StorageError(f"{archive} is not a sound zip archive ({error}): fetch or pack it again") from error


def _refuse_unsafe(archive: Path, members: list[zipfile.ZipInfo], limit: int) -> None:
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise StorageError(f"{archive} names a file twice: refused")
    if sum(member.file_size for member in members) > limit:
        raise StorageError(f"{archive} would unpack to more than {limit >> 20} MiB: refused")
    for member in members:
        pure = PurePosixPath(member.filename)
        link = (member.external_attr >> 16) & 0o170000 == 0o120000
        if pure.is_absolute() or ".." in pure.parts or "\\" in member.filename or link:
            raise StorageError(f"{archive} holds the unsafe name {member.filename!r}: refused")


def _copy_limited(source: object, file: object, size: int, archive: Path) -> None:
    left = size
    while chunk := source.read(1 << 20):  # type: ignore[attr-defined]
        left -= len(chunk)
        if left < 0:
            raise StorageError(f"{archive} unpacks to more than it declares: refused")
        file.write(chunk)  # type: ignore[attr-defined]
