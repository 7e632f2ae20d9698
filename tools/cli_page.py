"""Write what each command says with ``--help`` into docs/reference/cli.md: `python tools/cli_page.py`.

The page's prose is written by hand; below each heading that names a command, the first ``text`` block is replaced.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

from farthing.cli import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "cli.md"
WIDTH = 100
HEADING = re.compile(r"^## `farthing ?([a-z]*)`$", re.M)
BLOCK = re.compile(r"^```text\n((?:.*\n)*?)^```$", re.M)


def blocks(page: str) -> dict[str, tuple[int, int]]:
    """Command (empty for ``farthing`` itself) -> where its help text starts and ends in the page."""
    places = {}
    for heading in HEADING.finditer(page):
        block = BLOCK.search(page, heading.end())
        if block is not None:
            places[heading[1]] = block.span(1)
    return places


def help_of(command: str) -> str:
    """What ``farthing COMMAND --help`` prints on a terminal of `WIDTH` columns, without its colours."""
    shown, before = io.StringIO(), dict(os.environ)
    os.environ.update(COLUMNS=str(WIDTH), NO_COLOR="1")
    try:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([*command.split(), "--help"])
    finally:
        os.environ.clear()
        os.environ.update(before)
    return shown.getvalue()


def renewed(page: str) -> str:
    """The page with every help text as it is now."""
    for command, (start, end) in sorted(blocks(page).items(), key=lambda item: -item[1][0]):
        page = page[:start] + help_of(command) + page[end:]
    return page


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
