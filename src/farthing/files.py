"""Files that are whole or absent: atomic writes, digests, locks and archives that cannot escape.

A reader never sees half a file: everything is written beside its destination, flushed to the disk and
renamed over it. A killed writer leaves at most a hidden ``.tmp-*`` entry beside it, which `sweep` removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import stat
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from farthing.errors import StorageError

TEMPORARY = ".tmp-"
MAX_MEMBERS = 10_000
_PAUSE = 0.01  # seconds between two attempts to get a lock
_REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another directory",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another directory",
    errno.EROFS: "the file system is read-only: choose another directory",
    errno.EACCES: "permission denied: choose a directory you may write to",
    errno.EPERM: "not permitted: choose a directory you may write to",
    errno.EEXIST: "a file stands where a directory is needed: choose another path",
    errno.ENOTDIR: "a file stands where a directory is needed: choose another path",
    errno.EISDIR: "a directory stands where a file is needed: choose another path",
    errno.EFBIG: "the file would be larger than this process or file system allows: choose another directory",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


def digest(data: bytes) -> str:
    """SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content as 64 hexadecimal digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(directory: Path) -> str:
    """SHA-256 over every name and every byte below a directory, as 64 hexadecimal digits.

    It is the hash of the lines that ``sha256sum`` would write for the files, sorted by path. What is not a file, such
    as a link or an empty directory, counts too: as a line without a hash.
    """
    lines = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and not path.is_symlink():
            lines.append(f"{file_digest(path)}  {name}\n")
        elif path.is_symlink() or not path.is_dir() or not any(path.iterdir()):
            lines.append(f"  {name}\n")
    return digest("".join(lines).encode())


@contextlib.contextmanager
def explained(path: Path, where: str = "") -> Iterator[None]:
    """Turn the operating system's refusals around ``path`` into a StorageError that says what to do.

    Args:
        path: what is written.
        where: which machine's path it is, as in ``on the board``, if another one will read the error.
    """
    try:
        yield
    except OSError as error:
        about = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}{about}")
        raise StorageError(f"cannot write {path}{where and f' {where}'}: {reason}") from error


def write(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all (temporary file, fsync, rename, fsync of the directory).

    Raises:
        StorageError: the disk is full, read-only, or the place may not be written to.
    """
    content = data.encode() if isinstance(data, str) else data
    with explained(path), _replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, flushed and renamed over it when the block ends well, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=_suffix(path), dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a directory whole or not at all: ``fill`` writes into a hidden sibling that then takes its place.

    A directory already at ``path`` is replaced, in one step where the kernel can exchange two names
    (``renameat2``); it stays untouched until the new one is complete. A link is followed; a file is not replaced.

    Raises:
        StorageError: the disk is full, read-only, or the place may not be written to.
    """
    with explained(path):
        path = Path(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=TEMPORARY, suffix=_suffix(path), dir=path.parent))
        try:
            fill(fresh)
            fresh.chmod(0o755)
            sync_tree(fresh)
            _take_place(fresh, path)
            sync(path.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)  # what was there before, or what failed


def _take_place(fresh: Path, path: Path) -> None:
    """Rename ``fresh`` to ``path``; a directory that was there goes by the name ``fresh`` afterwards."""
    if not path.exists():
        fresh.rename(path)
    elif not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    elif not _exchange(fresh, path):
        old = fresh.with_name(f"{fresh.name}.old")
        path.rename(old)
        try:
            fresh.rename(path)
        except BaseException:
            old.rename(path)
            raise
        old.rename(fresh)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the C library, kernel or file system cannot."""
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_working_directory, exchange = -100, 2
    return rename is not None and not rename(
        at_working_directory, os.fsencode(first), at_working_directory, os.fsencode(second), exchange
    )


def _suffix(path: Path) -> str:
    return f"-{path.name[-100:]}"


def sync_tree(root: Path) -> None:
    """Flush every file and directory below ``root`` to the disk."""
    for path in [*root.rglob("*"), root]:
        sync(path)


def sync(path: Path) -> None:
    """Flush a file or a directory (the names in it, not their content) to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(path: Path) -> None:
    """Remove what killed writers of ``path`` left beside it; call it only while holding the lock of that path.

    A directory that was moved aside and not yet replaced is put back.
    """
    name = f"{TEMPORARY}????????{glob.escape(_suffix(path))}"
    for old in path.parent.glob(f"{name}.old"):
        if not path.exists():
            old.rename(path)
    for left in [*path.parent.glob(name), *path.parent.glob(f"{name}.old")]:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock file for the length of a ``with`` block; the kernel drops it if we are killed.

    The file goes with the lock; one that a killed holder left serves the next and goes with it.

    Args:
        path: the lock file; its directory is made.
        what: which work is under way, for the error.
        patience: seconds to wait for another holder.

    Raises:
        StorageError: another process (or thread) holds it.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + patience
    while (handle := _locked(path, what, until)) is None:
        continue
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the directory has become read-only, or is gone
            path.unlink()
        os.close(handle)


def _locked(path: Path, what: str, until: float) -> int | None:
    """A handle that holds the lock; None if it is to be tried again.

    That is while there is time to wait, and if its last holder removed the file after we had opened it.
    """
    with explained(path):
        handle, held = os.open(path, os.O_RDWR | os.O_CREAT, 0o644), False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                held = os.path.samestat(os.fstat(handle), path.stat())
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise StorageError(
                    f"{what} is in use by another process (lock file {path}): wait for it or choose another directory"
                ) from error
            time.sleep(_PAUSE)
        finally:
            if not held:
                os.close(handle)
    return handle if held else None


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Keep a directory from being removed (see `claim`) for the length of a ``with`` block. Many may hold it at once.

    Raises:
        StorageError: it is gone, or about to be.
    """
    with explained(directory), _opened(directory) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            there = os.path.samestat(os.fstat(handle), directory.stat())
        except (BlockingIOError, FileNotFoundError):
            there = False
        if not there:
            raise StorageError(f"{directory} is being removed: look again which one is to be used")
        yield


@contextlib.contextmanager
def claim(directory: Path) -> Iterator[bool]:
    """Whether nobody holds a directory; if so, nobody will for the length of the ``with`` block, and it may go.

    Raises:
        StorageError: there is none.
    """
    with explained(directory), _opened(directory) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free


def remove_directory(directory: Path) -> None:
    """Remove a directory whole or not at all; a killed remover leaves a hidden ``.tmp-*`` beside it.

    Raises:
        StorageError: it cannot be removed.
    """
    with explained(directory):
        gone = directory.with_name(f"{TEMPORARY}{directory.name[-100:]}")
        shutil.rmtree(gone, ignore_errors=True)  # of an earlier one that was killed
        directory.rename(gone)
        sync(directory.parent)
        shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


def link(path: Path, target: str) -> None:
    """Make a symbolic link, or point one elsewhere in one step; it is on the disk when this returns.

    Raises:
        StorageError: it cannot be made.
    """
    with explained(path):
        fresh = path.with_name(f"{TEMPORARY}{path.name}")  # one writer at a time: callers hold a lock
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(path)
        sync(path.parent)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, each on the disk before the next.

    Raises:
        StorageError: one cannot be made.
    """
    with explained(path):
        missing = [one for one in (path, *path.parents) if not one.is_dir()]
        for one in reversed(missing):
            one.mkdir(exist_ok=True)
            sync(one.parent)


def pack(directory: Path, names: Iterable[str], archive: Path) -> None:
    """Zip some files of a directory under sorted names with fixed times: the same content gives the same bytes.

    Raises:
        StorageError: the archive cannot be written, or a file is missing.
    """
    with (
        explained(archive),
        _replacing(archive) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as zipped,
    ):
        for name in sorted(names):
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            member.file_size = (directory / name).stat().st_size  # lets zipfile foresee more than 4 GiB
            with (directory / name).open("rb") as source, zipped.open(member, "w") as file:
                shutil.copyfileobj(source, file, 1 << 20)


def member_sizes(archive: Path) -> list[int]:
    """Bytes of each member of an archive, as it declares them; `unpack` writes no more.

    Raises:
        StorageError: not a zip, or damaged.
    """
    with _archive(archive) as zipped:
        return [member.file_size for member in zipped.infolist()]


def unpack(archive: Path, directory: Path, limit: int = 4 << 30) -> None:
    """Unzip into a directory, refusing what a stranger's archive could do.

    Args:
        archive: the zip file.
        directory: an existing, empty directory.
        limit: most bytes the content may have, unpacked.

    Raises:
        StorageError: not a zip, damaged, absolute or ``..`` names, links, duplicates, more than ``limit`` bytes
            or `MAX_MEMBERS` members, or the disk is full.
    """
    with _archive(archive) as zipped, explained(directory):
        members = zipped.infolist()
        _refuse_unsafe(archive, members, limit)
        for member in members:
            if member.is_dir():
                continue
            place = directory / member.filename
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                for chunk in _chunks(zipped, member, archive):
                    file.write(chunk)


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise StorageError(f"{path} is not a sound zip archive ({error}): fetch or pack it again") from error


def _refuse_unsafe(archive: Path, members: list[zipfile.ZipInfo], limit: int) -> None:
    if len(members) > MAX_MEMBERS:
        raise StorageError(f"{archive} holds more than {MAX_MEMBERS} members: refused")
    if sum(member.file_size for member in members) > limit:
        raise StorageError(f"{archive} would unpack to more than {limit} bytes: refused")
    places = set()
    for member in members:
        if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise StorageError(f"{archive} is compressed in a way other than deflate: pack it again")
        pure = PurePosixPath(member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        odd = kind not in {0, stat.S_IFREG, stat.S_IFDIR} or not pure.parts or "\\" in member.filename
        if pure.is_absolute() or ".." in pure.parts or odd:
            raise StorageError(f"{archive} holds the unsafe name or link {member.filename!r}: refused")
        if pure in places:
            raise StorageError(f"{archive} names the file {member.filename!r} twice: refused")
        places.add(pure)


def _chunks(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, archive: Path) -> Iterator[bytes]:
    """A member's content; zipfile reads no more of it than the declared size, and checks its CRC."""
    try:
        with zipped.open(member) as source:
            while chunk := source.read(1 << 20):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise StorageError(
            f"{archive} is not a sound zip archive ({error}): fetch or pack it again"
        ) from error
