"""``farthing target``: boards that measure for us."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from farthing.cli import options, show

if TYPE_CHECKING:
    from farthing.bench.remote import Board, Boards
    from farthing.bench.remote.wire import Ready

EPILOG = """\
example: farthing target add pi@raspberrypi.local --name pi
         farthing bench best --on pi
         farthing optimize work/model --task work/task.yaml --target pi --out best

The board needs Linux with glibc, Python 3.11 or newer, an SSH server that takes a key of yours, and a host key that
your ~/.ssh/known_hosts knows: log in once by hand first. It needs no network beyond that.
"""


def target_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing target``."""
    parser.epilog = EPILOG
    parts = parser.add_subparsers(title="what to do", metavar="DO", required=True)
    add = parts.add_parser("add", help="put a small bench runner on a board, and know the board by a name")
    add.add_argument(
        "address", metavar="[USER@]HOST", help="how ssh reaches it; an alias of ~/.ssh/config will do"
    )
    add.add_argument("--name", metavar="N", help="what to call it (default: the host's name)")
    add.add_argument("--port", type=int, metavar="P", help="port of its SSH server")
    add.add_argument("--identity", type=Path, metavar="FILE", help="private key to log in with")
    add.add_argument(
        "--ssh-config", type=Path, metavar="FILE", help="settings of ssh in place of ~/.ssh/config"
    )
    add.add_argument(
        "--directory", metavar="DIR", help="where to put it there (default: ~/.local/share/farthing)"
    )
    _installing(add)
    add.set_defaults(do=_add)
    listed = parts.add_parser("list", help="the boards that are known here")
    options.add_json(listed)
    listed.set_defaults(do=_list)
    shown = parts.add_parser("show", help="what a board is and has, and who measures there now")
    shown.add_argument("name")
    options.add_json(shown)
    shown.set_defaults(do=_show)
    update = parts.add_parser("update", help="bring Farthing and the engines there up to date")
    update.add_argument("name")
    _installing(update)
    update.set_defaults(do=_update)
    remove = parts.add_parser("remove", help="take everything off the board again, and forget it")
    remove.add_argument("name")
    remove.add_argument("--keep-remote", action="store_true", help="forget it here only; do not connect")
    remove.set_defaults(do=_remove)


def _installing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="NAME",
        help="an engine to install there; may be repeated (default: onnxruntime, or those it has)",
    )
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="a directory of wheels to look in, beside the package index",
    )


def target(parsed: argparse.Namespace) -> int:
    """Run ``farthing target``."""
    do: Callable[[argparse.Namespace], int] = parsed.do
    return do(parsed)


def tell(sentence: str) -> None:
    """Say what happens with a board, beside the results."""
    print(sentence, file=sys.stderr, flush=True)


def _boards() -> Boards:
    from farthing.bench.remote import Boards

    return Boards(options.boards_directory())


def _add(parsed: argparse.Namespace) -> int:
    from farthing.bench.remote import install
    from farthing.errors import ConfigError
    from farthing.links.ssh import Address

    boards = _boards()
    address = Address.parse(parsed.address, parsed.port, parsed.identity, parsed.ssh_config)
    name = parsed.name or _plain(address.host)
    if name in boards.names():
        raise ConfigError(f"{name} is a target already: `farthing target update {name}`, or another --name")
    with show.progress(False) as listener:
        board = install.add(
            name,
            address,
            directory=parsed.directory or install.DIRECTORY,
            engines=parsed.engine or ["onnxruntime"],
            wheels=parsed.wheels,
            listener=listener,
        )
    boards.put(board)
    return _describe(board)


def _plain(host: str) -> str:
    """A name from that of a host: its first part, or its whole address."""
    part = host if re.fullmatch(r"[0-9a-fA-F.:]+", host) else host.partition(".")[0]
    return re.sub(r"[^a-z0-9._-]", "-", part.lower()).strip("-") or "board"


def _describe(board: Board) -> int:
    from farthing.bench.remote.install import look

    print(_rows(_facts(board, look(board))))
    return 0


def _facts(board: Board, found: Ready) -> Sequence[tuple[str, str]]:
    machine = found.target
    heat = (
        "unavailable (no sensor)" if found.temperature is None else f"{found.temperature:.1f} degrees Celsius"
    )
    lease = f"{found.holder}, since {found.since}" if found.holder else "nobody"
    return (
        ("target", board.name),
        ("reached at", str(board.address)),
        ("machine", found.description),
        ("architecture", f"{machine.arch} {' '.join(machine.isa)}"),
        ("cores", str(machine.cores)),
        ("memory", f"{machine.memory_mb} MiB"),
        ("engines", ", ".join(f"{name} {version}" for name, version in found.engines.items())),
        ("software", f"Farthing {found.version}, {board.platform}"),
        ("energy", found.meter or "unavailable (no meter)"),
        ("temperature", heat),
        ("in use by", lease),
        ("directory", f"{board.directory}, {found.models_mb:.1f} MB of models"),
    )


def _rows(facts: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in facts)


def _list(parsed: argparse.Namespace) -> int:
    from farthing.errors import TargetError

    boards, known, code = _boards(), [], 0
    for name in boards.names():
        try:
            known.append(boards.get(name))
        except TargetError as error:  # the others are shown all the same
            tell(f"farthing: {error}")
            code = 2
    if parsed.json:
        for board in known:
            print(show.as_json(board))
    elif known:
        rows = [
            (board.name, f"{board.address}  {board.platform}  {', '.join(board.engines)}") for board in known
        ]
        print(_rows(rows))
    elif not code:
        print("no targets yet: `farthing target add USER@HOST --name NAME`")
    return code


def _show(parsed: argparse.Namespace) -> int:
    from farthing.bench.remote.install import look

    board = _boards().get(parsed.name)
    if parsed.json:
        print(show.as_json(look(board)))
        return 0
    return _describe(board)


def _update(parsed: argparse.Namespace) -> int:
    from farthing.bench.remote import install

    boards = _boards()
    board = boards.get(parsed.name)
    with show.progress(False) as listener:
        fresh = install.add(
            board.name,
            board.address,
            directory=board.directory,
            engines=parsed.engine or board.engines,
            wheels=parsed.wheels,
            listener=listener,
        )
    boards.put(fresh)
    return _describe(fresh)


def _remove(parsed: argparse.Namespace) -> int:
    from farthing.bench.remote import install
    from farthing.errors import TargetError

    boards, name = _boards(), parsed.name
    if not parsed.keep_remote or name not in boards.names():
        board = boards.get(name)
        try:
            left = install.remove(board)
        except TargetError as error:
            raise type(error)(f"{error}. To forget {name} here only, add --keep-remote") from error
        if left:
            tell(f"{board.directory} on {name} holds other files and stays")
    boards.forget(name)
    print(f"removed {name}")
    return 0
