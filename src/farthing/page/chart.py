"""Charts as SVG that stands in a page: quantities over time, with the limit they should keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from farthing.page.typeset import MINUS, Html, element, joined, number

WIDTH, HEIGHT = 640.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 24.0, 14.0, 30.0
UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))
COLOURS = 6
"""The style has so many: ``e0`` to ``e5``."""


_Place = Callable[[float], float]


class Series(NamedTuple):
    """A quantity over time.

    Attributes:
        name: what it is, in the legend.
        points: seconds, and the value there; None breaks the line.
    """

    name: str
    points: Sequence[tuple[float, float | None]]


def over_time(
    title: str, unit: str, series: Sequence[Series], limit: float | None = None, most: float | None = None
) -> Html:
    """A figure of one or several quantities over time; nothing where none has a value.

    Args:
        title: above it.
        unit: of the values; follows them on the axis.
        series: at most six are told apart by colour.
        limit: a dashed line; None for none.
        most: the end of the axis; None for a little more than the largest value. It begins at 0, or below the least.
    """
    values = [
        value for one in series for _, value in one.points if value is not None and math.isfinite(value)
    ]
    times = [seconds for one in series for seconds, _ in one.points]
    if not values:
        return Html("")
    low, high = min(0.0, *values), max(*values, *([limit] if limit is not None else []), most or 0.0)
    marks = ticks(low, high if high > low else low + 1)
    begin, end = min(times), max(times)

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((seconds - begin) / (end - begin) if end > begin else 0.5)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - marks[0]) / (marks[-1] - marks[0])

    parts = [_level(y(tick), rounded(tick)) for tick in marks]
    parts += [
        _moment(x(begin + tick), f"{rounded(tick / scale)} {sign}")
        for tick, scale, sign in _moments(end - begin)
    ]
    parts += [_line(place % COLOURS, one.points, x, y) for place, one in enumerate(series)]
    if limit is not None:
        parts.append(element("path", class_="limit", d=f"M{LEFT:g} {y(limit):.1f}H{WIDTH - RIGHT:g}"))
    words = f"{title}: from {number(min(values))} to {number(max(values))} {unit}".strip()
    svg = element("svg", *parts, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_label=words)
    head = element("figcaption", title, element("small", unit) if unit else None)
    return element("figure", head, svg, legend([one.name for one in series]), class_="chart")


def _line(colour: int, points: Iterable[tuple[float, float | None]], x: _Place, y: _Place) -> Html:
    """A path broken where values are missing; a lone value is a dot."""
    path, broken = "", True
    for seconds, value in points:
        if value is None or not math.isfinite(value):
            broken = True
            continue
        path += f"{'M' if broken else 'L'}{x(seconds):.1f} {y(value):.1f}"
        path += "h0.1" if broken else ""
        broken = False
    return element("path", class_=f"series e{colour}", d=path)


def _level(height: float, text: str) -> Html:
    line = element("path", class_="grid", d=f"M{LEFT:g} {height:.1f}H{WIDTH - RIGHT:g}")
    return joined([line, element("text", text, x=LEFT - 8, y=f"{height + 4:.1f}", text_anchor="end")])


def _moment(place: float, text: str) -> Html:
    return element("text", text, x=f"{place:.1f}", y=HEIGHT - 8, text_anchor="middle")


def rounded(value: float) -> str:
    """A round number, without zeros that say nothing."""
    return f"{value:,.6g}".replace("-", MINUS)


def ticks(low: float, high: float) -> list[float]:
    """Round values that cover a range.

    >>> ticks(0, 87), ticks(-0.4, 5.1)
    ([0.0, 25.0, 50.0, 75.0, 100.0], [-2.0, 0.0, 2.0, 4.0, 6.0])
    """
    step = _step((high - low) / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * place for place in range(first, last + 1)]


def _step(least: float) -> float:
    """The next number of 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * part for part in (1, 2, 2.5, 5, 10, 20) if power * part >= least * 0.999999)


def _moments(seconds: float) -> list[tuple[float, float, str]]:
    """Moments to name on the axis: seconds, what to divide them by, and the unit that gives."""
    if seconds <= 0:
        return []
    scale, sign = next((pair for pair in UNITS if seconds >= 2 * pair[0]), (1.0, "s"))
    step = _step(seconds / scale / 5) * scale
    return [(place * step, scale, sign) for place in range(int(seconds / step + 1e-9) + 1)]


def legend(names: Sequence[str]) -> Html | None:
    """What each colour stands for, where there are several."""
    if len(names) < 2:
        return None
    entries = [
        element(
            "li",
            element("i", class_=f"swatch e{place % COLOURS}", aria_hidden="true"),
            element("bdi", name),
        )
        for place, name in enumerate(names)
    ]
    return element("ul", *entries, class_="legend")
