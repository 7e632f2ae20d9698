"""A TorchScript archive before torch loads it: a zip, whose code is TorchScript and reaches no files.

``torch.jit.load`` runs no Python: its reader makes tensors and script classes only. But TorchScript can read and write
files, so those operators are refused; and two readers may see different things in one odd zip, so torch gets one that
holds what was checked, no more.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from farthing.errors import ModelError
from farthing.files import MAX_MEMBERS

LEAST_LIMIT = 256 << 20
GROWTH = 4  # torch stores tensors as they are; only its code is compressed
FILE_OPERATORS = re.compile(r"\b(save|load|from_file|load_tensor)\b")


def checked_script(path: Path, data: bytes) -> bytes:
    """A TorchScript archive whose code neither reads nor writes files, written anew from what was checked.

    Raises:
        ModelError: damaged, or its code reaches files.
    """
    return rewritten(path, data, _check_script_member)


def rewritten(path: Path, data: bytes, check: Callable[[Path, str, bytes], None]) -> bytes:
    """A zip of the members of another, each of which passed a check of its path, name and content.

    Raises:
        ModelError: damaged, a bomb, or refused by the check.
    """
    fresh = io.BytesIO()
    try:
        with (
            zipfile.ZipFile(io.BytesIO(data)) as archive,
            zipfile.ZipFile(fresh, "w", zipfile.ZIP_STORED) as clean,
        ):
            members = [member for member in archive.infolist() if not member.is_dir()]
            _refuse_bomb(path, members, max(LEAST_LIMIT, GROWTH * len(data)))
            for member in members:
                content = _content(archive, member)
                check(path, member.filename, content)
                clean.writestr(zipfile.ZipInfo(member.filename), content)
    except (
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
        ValueError,
        AttributeError,
        EOFError,
    ) as error:
        raise ModelError(f"{path} is a damaged archive ({error}): save it again") from error
    return fresh.getvalue()


def _refuse_bomb(path: Path, members: list[zipfile.ZipInfo], limit: int) -> None:
    if len(members) > MAX_MEMBERS:
        raise ModelError(f"{path} holds more than {MAX_MEMBERS} members: refused")
    if sum(member.file_size for member in members) > limit:
        raise ModelError(f"{path} would unpack to more than {limit >> 20} MiB: refused")
    if len({member.filename for member in members}) != len(members):
        raise ModelError(f"{path} names a member twice: refused")
    if any(member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} for member in members):
        raise ModelError(
            f"{path} is compressed in a way other than deflate, which torch does not do: refused"
        )


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member read in pieces: `ZipFile.read` would inflate all of it before it sees that a small size is a lie."""
    with archive.open(member) as source:
        return b"".join(iter(lambda: source.read(1 << 20), b""))


def _check_script_member(path: Path, name: str, content: bytes) -> None:
    if "/code/" in name and name.endswith(".py"):
        found = FILE_OPERATORS.search(content.decode("utf-8", "replace").replace("\\\n", ""))
        if found:
            raise ModelError(f"{path}: its code uses {found[1]!r}, which reaches files: refused")
