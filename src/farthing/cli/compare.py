"""``farthing compare``: the results of two searches side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from farthing.cli import options, show

if TYPE_CHECKING:
    from farthing.forge.compare import Comparison, Figure, Moved
    from farthing.measure import Interval

EPILOG = """\
Ratios of times are given where both searches ran on the same machine, found in the same state, and timed the same
baseline; elsewhere figures stand side by side. Sizes need no machine, accuracies need the same data.

example: farthing compare best-monday best --html changes.html
"""


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing compare``."""
    parser.epilog = EPILOG
    parser.add_argument("first", metavar="FIRST", help="output directory of a search, or its result.json")
    parser.add_argument("second", metavar="SECOND", help="the same of a later one")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the comparison as a page, too")
    options.add_json(parser)


def compare(parsed: argparse.Namespace) -> int:
    """Run ``farthing compare``."""
    from farthing.forge.compare import compare as beside

    found = beside(Path(parsed.first), Path(parsed.second))
    if parsed.html:
        from farthing import files
        from farthing.forge.report.changes import render_comparison

        files.write(parsed.html, render_comparison(found).encode())
    print(show.as_json(found) if parsed.json else _text(found))
    return 0


def _text(found: Comparison) -> str:
    from farthing.forge.report.changes import named, sentence

    rows = [
        ["winner", named(found.first), named(found.second), "", ""],
        ["budget", *("met" if side.met else "not met" for side in (found.first, found.second)), "", ""],
        *(_row(figure) for figure in found.figures),
    ]
    head = ["", found.first.place, found.second.place, "change", "verdict"]
    lines = [show.table(head, rows, width=show.room()), ""]
    lines += [f"differs: {text}" for text in found.conditions]
    for word, moved in (("new", found.appeared), ("gone", found.vanished), ("changed", found.changed)):
        lines += [f"{word}: {_moved(one)}" for one in moved]
    return "\n".join([*lines, sentence(found)])


def _row(figure: Figure) -> list[str]:
    share = figure.unit == "share"
    values = [_value(value, figure.unit) for value in (figure.before, figure.after)]
    change = show.interval(figure.change, 100 if share else 1, 2, " points" if share else "x")
    return [figure.name, *values, change, figure.verdict or figure.why]


def _value(value: Interval | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit in {"ms", "MB"}:
        return (show.milliseconds if unit == "ms" else show.megabytes)(value.value)
    return f"{value.value:.4f}" if unit == "share" else f"{value.value:.4g} {unit}"


def _moved(one: Moved) -> str:
    verdicts = " -> ".join(filter(None, [one.before, one.after]))
    return f"{one.name} ({one.engine}, {one.options}): {verdicts}"
