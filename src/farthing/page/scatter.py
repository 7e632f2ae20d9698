"""Charts of points: one quantity against another that spans orders of magnitude. SVG that stands in a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from farthing.page.chart import COLOURS, legend, rounded, ticks
from farthing.page.typeset import Html, element, joined

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640.0, 320.0, 60.0, 24.0, 14.0, 44.0
STEPS = (1.0, 2.0, 5.0)


class Points(NamedTuple):
    """A group of points.

    Attributes:
        name: what they are, in the legend.
        points: across (above 0), upwards, and what to say of each.
    """

    name: str
    points: Sequence[tuple[float, float, str]]


def against(title: str, across: str, upwards: str, groups: Sequence[Points]) -> Html:
    """A figure of points, across on a scale where equal steps are equal factors; nothing where there are none.

    Args:
        title: above it.
        across, upwards: what the axes show, with its unit.
        groups: at most six are told apart by colour.
    """
    every = [point for group in groups for point in group.points if point[0] > 0]
    if not every:
        return Html("")
    low, high = min(p[1] for p in every), max(p[1] for p in every)
    levels = ticks(low, high if high > low else low + abs(low) * 0.01 + 1e-6)
    marks = _factors(min(p[0] for p in every), max(p[0] for p in every))
    first, last = math.log(marks[0]), math.log(marks[-1])

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log(value) - first) / (last - first)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - levels[0]) / (levels[-1] - levels[0])

    parts = [_level(y(level), rounded(level)) for level in levels]
    parts += [_mark(x(mark), rounded(mark)) for mark in marks]
    for colour, group in enumerate(groups):
        parts += [_spot(colour % COLOURS, x(a), y(u), words) for a, u, words in group.points if a > 0]
    parts.append(element("text", across, x=WIDTH - RIGHT, y=HEIGHT - 6, text_anchor="end"))
    words = f"{title}: {len(every)} points, {upwards} against {across}"
    svg = element("svg", *parts, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_label=words)
    head = element("figcaption", title, element("small", upwards))
    return element("figure", head, legend([group.name for group in groups]), svg, class_="chart")


def _factors(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last below a range to the first above it.

    >>> _factors(3.1, 40)
    [2.0, 5.0, 10.0, 20.0, 50.0]
    """
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    every = [float(f"{step}e{power}") for power in powers for step in STEPS]
    first = max(place for place, value in enumerate(every) if value <= low)
    last = min(place for place, value in enumerate(every) if value >= high)
    return every[first : max(last, first + 1) + 1]


def _spot(colour: int, x: float, y: float, words: str) -> Html:
    title = element("title", words)
    return element("circle", title, class_=f"spot e{colour}", cx=f"{x:.1f}", cy=f"{y:.1f}", r=5)


def _level(height: float, text: str) -> Html:
    line = element("path", class_="grid", d=f"M{LEFT:g} {height:.1f}H{WIDTH - RIGHT:g}")
    return joined([line, element("text", text, x=LEFT - 8, y=f"{height + 4:.1f}", text_anchor="end")])


def _mark(place: float, text: str) -> Html:
    return element("text", text, x=f"{place:.1f}", y=f"{HEIGHT - BOTTOM + 18:g}", text_anchor="middle")
