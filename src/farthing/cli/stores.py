"""``farthing store``: the models a device keeps, and the way back."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from farthing.cli import options, show

if TYPE_CHECKING:
    from farthing.device.update.store import Entry, Store

EPILOG = """\
example: farthing store add best --version 2
         farthing store activate net 2          ~/.local/share/farthing/store/net/current is that model now
         farthing store rollback net            and now the one before

`add` copies and checks; nothing changes for whoever uses the model until `activate`. Both happen whole or not at all,
through kills and power cuts. No network is needed.
"""


def store_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing store``."""
    parser.epilog = EPILOG
    parts = parser.add_subparsers(title="what to do", metavar="DO", required=True)
    add = parts.add_parser(
        "add", help="take in a model or bundle: a directory, a zip, the output of a search"
    )
    _common(add, _add)
    add.add_argument("model", help="what to take in")
    add.add_argument("--name", default="", metavar="N", help="call it so (default: the name in its manifest)")
    add.add_argument(
        "--version", default="", metavar="V", help="its version (default: the one in its manifest)"
    )
    add.add_argument("--activate", action="store_true", help="make it current as well")
    add.add_argument(
        "--limit-mb",
        type=_megabytes,
        metavar="X",
        help="most megabytes the store may take; versions added longest ago make room, never those in use (default: "
        "as many as the disk has)",
    )
    listed = parts.add_parser("list", help="versions, what is current, what was before")
    _common(listed, _list)
    options.add_json(listed)
    activate = parts.add_parser("activate", help="make a version current; the one before stays at hand")
    _common(activate, _activate)
    activate.add_argument("name")
    activate.add_argument("version")
    back = parts.add_parser("rollback", help="make the previous version current again")
    _common(back, _rollback)
    back.add_argument("name")
    gc = parts.add_parser(
        "gc", help="remove what nothing needs; never current, previous, or what is being read"
    )
    _common(gc, _gc)
    gc.add_argument(
        "--keep",
        type=_count,
        default=1,
        metavar="N",
        help="other versions of each model to keep (default: %(default)s)",
    )
    verify = parts.add_parser("verify", help="read every byte; what is damaged goes into quarantine")
    _common(verify, _verify)
    verify.add_argument("name", nargs="?", default="", help="one model only")


def _common(parser: argparse.ArgumentParser, do: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="the store (default: $FARTHING_STORE, or ~/.local/share/farthing/store)",
    )
    parser.set_defaults(do=do)


def _megabytes(text: str) -> int:
    """Bytes of so many megabytes."""
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e12:
        raise argparse.ArgumentTypeError(f"a size in megabytes is above 0, not {text}")
    return int(size * 1e6)


def _count(text: str) -> int:
    """So many, or none."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"a number from 0, not {text}")
    return int(text)


def store(parsed: argparse.Namespace) -> int:
    """Run ``farthing store``."""
    do: Callable[[argparse.Namespace], int] = parsed.do
    return do(parsed)


def _store(parsed: argparse.Namespace, limit_bytes: int | None = None) -> Store:
    from farthing.device.update.store import Store

    return Store(parsed.store or options.store_directory(), limit_bytes)


def _add(parsed: argparse.Namespace) -> int:
    kept = _store(parsed, parsed.limit_mb)
    entry = kept.add(options.existing(parsed.model), parsed.name, parsed.version)
    if parsed.activate:
        kept.activate(entry.name, entry.version)
    print(f"{entry.name} {entry.version}  {entry.digest[:12]}  {_size(entry.size_bytes)}")
    if not parsed.activate and not entry.current:
        where = f" --store {shlex.quote(str(parsed.store))}" if parsed.store else ""
        print(
            f"not in use yet: `farthing store activate {entry.name} {entry.version}{where}`", file=sys.stderr
        )
    return 0


def _list(parsed: argparse.Namespace) -> int:
    entries = _store(parsed).list()
    if parsed.json:
        for entry in entries:
            print(show.as_json(entry))
    else:
        print(show.table(("model", "version", "role", "size", "digest"), [_row(entry) for entry in entries]))
    return 0


def _row(entry: Entry) -> tuple[str, ...]:
    role = "current" if entry.current else "previous" if entry.previous else ""
    size = _size(entry.size_bytes) if entry.digest else ""
    return entry.name, entry.version, role, size, entry.digest[:12] or "damaged, in quarantine"


def _size(size: int) -> str:
    return show.megabytes(size / 1e6)


def _activate(parsed: argparse.Namespace) -> int:
    _store(parsed).activate(parsed.name, parsed.version)
    print(f"{parsed.name} {parsed.version} is current")
    return 0


def _rollback(parsed: argparse.Namespace) -> int:
    version = _store(parsed).rollback(parsed.name)
    print(f"{parsed.name} {version} is current again")
    return 0


def _gc(parsed: argparse.Namespace) -> int:
    freed = _store(parsed).gc(parsed.keep)
    print(f"{_size(freed)} freed")
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    damages = _store(parsed).verify(parsed.name)
    for damage in damages:
        print(damage.problem)
    if not damages:
        print("every byte is as it was added")
    return 1 if damages else 0
