"""Charts of rows: one row a thing, a dot for each value on a common axis. SVG that stands in a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from farthing.page.chart import COLOURS, legend, rounded, ticks
from farthing.page.typeset import Html, element, joined, number

WIDTH, NAMES, RIGHT, TOP, BOTTOM, ROW = 880.0, 250.0, 24.0, 8.0, 34.0, 22.0
LETTERS = 34
"""Of a name; the middle of a longer one is left out."""


class Dots(NamedTuple):
    """A quantity of every row.

    Attributes:
        name: what it is, in the legend.
        values: in the order of the rows; None draws nothing.
    """

    name: str
    values: Sequence[float | None]


def by_row(title: str, unit: str, rows: Sequence[str], dots: Sequence[Dots], zero: bool = True) -> Html:
    """A figure of rows with their values; nothing where none has a value.

    Args:
        title: above it.
        unit: of the values; under the axis.
        rows: their names, from the top.
        dots: at most six are told apart by colour.
        zero: the axis begins at 0, or below the least value.
    """
    known = [value for one in dots for value in one.values if value is not None and math.isfinite(value)]
    if not known:
        return Html("")
    low, high = min(known), max(known)
    low = min(low, 0.0) if zero else low
    marks = ticks(low, high if high > low else low + 1)
    height = TOP + ROW * len(rows) + BOTTOM

    def x(value: float) -> float:
        return NAMES + (WIDTH - NAMES - RIGHT) * (value - marks[0]) / (marks[-1] - marks[0])

    parts = [_mark(x(mark), rounded(mark), height) for mark in marks]
    parts += [_name(place, name) for place, name in enumerate(rows)]
    for colour, one in enumerate(dots):
        parts += [
            _dot(colour % COLOURS, x(value), place, f"{rows[place]}, {one.name}: {number(value)} {unit}")
            for place, value in enumerate(one.values)
            if value is not None and math.isfinite(value)
        ]
    parts.append(element("text", unit, x=WIDTH - RIGHT, y=f"{height - 2:g}", text_anchor="end"))
    words = f"{title}: {len(rows)} rows, from {number(min(known))} to {number(max(known))} {unit}".strip()
    svg = element("svg", *parts, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=words)
    named = legend([one.name for one in dots])
    return element("figure", element("figcaption", title), named, svg, class_="chart dots")


def _mark(place: float, text: str, height: float) -> Html:
    line = element("path", class_="grid", d=f"M{place:.1f} {TOP:g}V{height - BOTTOM:g}")
    label = element("text", text, x=f"{place:.1f}", y=f"{height - BOTTOM + 15:g}", text_anchor="middle")
    return joined([line, label])


def _name(place: int, name: str) -> Html:
    half = LETTERS // 2
    shown = name if len(name) <= LETTERS else f"{name[:half]}…{name[1 - half :]}"
    title = element("title", name) if shown != name else None
    return element("text", title, shown, x=NAMES - 12, y=f"{_middle(place) + 4:g}", text_anchor="end")


def _dot(colour: int, place: float, row: int, words: str) -> Html:
    return element(
        "circle",
        element("title", words),
        class_=f"spot e{colour}",
        cx=f"{place:.1f}",
        cy=f"{_middle(row):g}",
        r=5,
    )


def _middle(row: int) -> float:
    return TOP + ROW * (row + 0.5)
