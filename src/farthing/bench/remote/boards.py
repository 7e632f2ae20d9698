"""Boards by name: one YAML file each in a directory of the user's. Nothing secret is in it."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from farthing import files
from farthing.config import Section, read, to_yaml
from farthing.errors import ConfigError, TargetError, nearest
from farthing.links.ssh import Address
from farthing.target import THIS

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class Board(Section, frozen=True, kw_only=True):
    """A machine that measures for us.

    Attributes:
        name: what we call it.
        address: how it is reached.
        directory: the directory there that holds Farthing, an absolute path.
        engines: the engines that were installed there.
        platform: its architecture, C library and Python, as in ``aarch64, glibc 2.36, Python 3.11``.
        python: the version of its Python.
    """

    name: str
    address: Address
    directory: str
    engines: tuple[str, ...] = ()
    platform: str = ""
    python: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        path = PurePosixPath(self.directory)
        if (
            not path.is_absolute()
            or len(path.parts) < 3
            or ".." in path.parts
            or not self.directory.isprintable()
        ):
            raise ValueError(
                f"the directory of a board is an absolute path below another directory, not {self.directory!r}"
            )


def check_name(name: str) -> None:
    """Raise ValueError for what cannot be the name of a board."""
    if not NAME.fullmatch(name) or name == THIS:
        raise ValueError(
            f"{name!r} cannot be the name of a target: take small letters, digits, '.', '_' and '-', and not {THIS!r}"
        )


class Boards:
    """All boards of a user.

    Args:
        directory: where their files are, as in ``~/.config/farthing/targets``.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def names(self) -> list[str]:
        """Their names, sorted."""
        found = (path.stem for path in self.directory.glob("*.yaml"))
        return sorted(name for name in found if NAME.fullmatch(name))

    def get(self, name: str) -> Board:
        """The board of that name.

        Raises:
            TargetError: there is none, or its file cannot be understood.
        """
        if name not in self.names():
            raise TargetError(
                f"no target is called {name!r}; {nearest(name, [THIS, *self.names()])}; add one with "
                "`farthing target add USER@HOST --name NAME`"
            )
        try:
            board = read(self._path(name), Board)
        except ConfigError as error:
            raise TargetError(
                f"{error}: correct it, or `farthing target remove {name} --keep-remote` and add the target again"
            ) from error
        if board.name != name:
            raise TargetError(f"{self._path(name)} describes {board.name!r}: correct its name")
        return board

    def put(self, board: Board) -> None:
        """Keep a board under its name.

        Raises:
            StorageError: it cannot be written.
        """
        files.write(self._path(board.name), to_yaml(board))

    def forget(self, name: str) -> None:
        """Remove a board's file; nothing changes on the board itself."""
        with files.explained(self._path(name)):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.yaml"
