"""``farthing doctor``: what stands in the way of a good run, and how to mend it."""

from __future__ import annotations

import argparse
import os
import textwrap
from functools import partial
from typing import TYPE_CHECKING

from farthing.cli import options, show

if TYPE_CHECKING:
    from farthing.forge.doctor import Diagnosis, Finding

EPILOG = """\
Looks at the real environment, machine, model, task and target; installs nothing, changes nothing, sends nothing.
Exit code 1: something is a problem. Warnings cost speed, or the worth of a figure, and do not count.

example: farthing doctor work/model --task work/task.yaml
"""
MARKS = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing doctor``."""
    parser.epilog = EPILOG
    parser.add_argument("model", nargs="?", help="model directory, zip, output of a search, or model file")
    options.add_task(parser, required=False)
    parser.add_argument(
        "--target",
        default="this",
        metavar="NAME",
        help="a board, one of the catalogue, or a file (default: this)",
    )
    parser.add_argument(
        "--budget",
        default="accuracy_drop<=0.01",
        metavar="LIMITS",
        help="what the samples must show (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="leave out what is well")
    options.add_json(parser)


def doctor(parsed: argparse.Namespace) -> int:
    """Run ``farthing doctor``."""
    from farthing.forge.doctor import examine
    from farthing.target import Budget

    found = examine(
        partial(options.open_model, parsed.model) if parsed.model else None,
        partial(options.open_task, parsed.task) if parsed.task else None,
        parsed.target,
        budget=Budget.parse(parsed.budget),
        environment=os.environ,
        cache=options.cache_directory(),
        boards=options.boards_directory(),
    )
    print(show.as_json(found) if parsed.json else _text(found, parsed.quiet))
    return 0 if found.well else 1


def _text(found: Diagnosis, quiet: bool) -> str:
    lines: list[str] = []
    area = ""
    for finding in found.findings:
        if quiet and finding.status == "ok":
            continue
        if finding.area != area:
            lines += [*([""] if lines else []), finding.area]
            area = finding.area
        lines += _lines(finding)
    counts = [(len(found.of(status)), status) for status in ("problem", "warning", "ok")]
    words = [f"{amount} {word}{'s' * (amount != 1 and word != 'ok')}" for amount, word in counts]
    return "\n".join([*lines, *([""] if lines else []), ", ".join(words)])


def _lines(finding: Finding) -> list[str]:
    """A finding folded to the terminal, with the way to mend it below."""
    width = show.room() or 1000
    head = f"  {MARKS[finding.status]}  {finding.name}: "
    lines = textwrap.wrap(f"{head}{finding.found}", width, subsequent_indent=" " * 11, break_long_words=False)
    if finding.mend:
        lines += textwrap.wrap(
            f"{' ' * 11}-> {finding.mend}", width, subsequent_indent=" " * 14, break_long_words=False
        )
    return lines
