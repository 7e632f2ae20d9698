"""Figures and text as a page shows them: sensible digits, units that suit, HTML that is safe by construction."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from farthing.measure import Interval

MISSING = "–"
MINUS = "\N{MINUS SIGN}"
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Html(str):
    """Text that is HTML already. Any other string is escaped where `element` puts it in."""

    __slots__ = ()


Child = Html | str | None


def clean(text: str) -> str:
    """Text without control characters and lone surrogates, which HTML and UTF-8 cannot hold."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def escaped(child: Child) -> Html:
    """Safe HTML of a child of an element; None gives nothing."""
    if child is None or isinstance(child, Html):
        return child or Html("")
    return Html(html.escape(clean(child), quote=True))


def element(name: str, *children: Child, **attributes: str | float | None) -> Html:
    """An HTML element; ``class_`` stands for class, ``data_v`` for data-v; an attribute that is None is left out.

    >>> element("p", "1 < 2", class_="note")
    '<p class="note">1 &lt; 2</p>'
    """
    pairs = (
        (key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None
    )
    shown = "".join(f' {key}="{escaped(str(value))}"' for key, value in pairs)
    return Html(f"<{name}{shown}>{joined(children)}</{name}>")


def joined(children: Iterable[Child], separator: str = "") -> Html:
    """Children one after the other, escaped where they are not HTML."""
    return Html(separator.join(escaped(child) for child in children))


def number(value: float | None, digits: int = 3) -> str:
    """A number in so many significant digits, thousands grouped, never in exponents.

    >>> number(1234.56), number(0.01234), number(-9.996)
    ('1,235', '0.0123', '−10.0')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    value = float(f"{value:.{digits - 1}e}") if abs(value) < 10**digits else value
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 9)}f}".replace("-", MINUS)


def signed(value: float, places: int) -> str:
    """A difference with its sign; what rounds to nothing has none.

    >>> signed(0.124, 2), signed(-0.001, 2)
    ('+0.12', '0.00')
    """
    text = f"{value:+.{places}f}"
    return (text[1:] if not float(text) else text).replace("-", MINUS)


@dataclass(frozen=True)
class Unit:
    """A unit to show figures in: its sign, and how many of them make one unit of the figure."""

    sign: str
    factor: float

    def of(self, value: float | None) -> str:
        """The number alone, for a column whose head names the unit."""
        return number(None if value is None else value * self.factor)

    def __call__(self, value: float | None) -> str:
        shown = self.of(value)
        return shown if shown == MISSING else f"{shown}\N{NO-BREAK SPACE}{self.sign}"


MS, US, S = Unit("ms", 1.0), Unit("µs", 1000.0), Unit("s", 0.001)
MB, KB = Unit("MB", 1.0), Unit("kB", 1000.0)


def time_unit(values: Sequence[float | None]) -> Unit:
    """The unit for times in milliseconds that stand together."""
    known = [value for value in values if value]
    if known and min(known) < 1 and max(known) < 10:
        return US
    return S if known and min(known) >= 1000 else MS


def size_unit(values: Sequence[float | None]) -> Unit:
    """The unit for sizes in MB of 10^6 bytes that stand together."""
    known = [value for value in values if value]
    return KB if known and min(known) < 1 and max(known) < 10 else MB


def duration(seconds: float) -> str:
    """A length of time for people.

    >>> duration(151.2), duration(7.31)
    ('2 min 31 s', '7.3 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return (
        f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    )


def certain(interval: Interval) -> bool:
    """Whether an interval says no more than its value, or nothing finite."""
    return interval.low == interval.high or not math.isfinite(interval.high - interval.low)


class Scale(NamedTuple):
    """How a metric is shown: a share in percent and its differences in points, anything else plain.

    Attributes:
        percent: whether it is a share.
        higher: whether higher is better.
    """

    percent: bool
    higher: bool

    @property
    def factor(self) -> float:
        return 100.0 if self.percent else 1.0

    @property
    def unit(self) -> str:
        """Unit of the metric, with a space before it."""
        return "\N{NO-BREAK SPACE}%" if self.percent else ""

    @property
    def points(self) -> str:
        """Unit of a difference, with a space before it."""
        return "\N{NO-BREAK SPACE}points" if self.percent else ""

    def plain(self, value: float | None) -> str:
        """The metric without its unit."""
        if value is None or not math.isfinite(value):
            return MISSING
        return f"{value * 100:.2f}" if self.percent else number(value, 4)

    def gap(self, value: float) -> str:
        """A signed difference without its unit."""
        return signed(value * 100, 2) if self.percent else signed(value, 4)

    def change(self, drop: Interval) -> Interval:
        """A drop as the change of the metric that it is: negative where a higher metric is better."""
        if not self.higher:
            return drop
        return Interval(value=-drop.value, low=-drop.high, high=-drop.low)

    def range(self, interval: Interval) -> str:
        """The interval of a metric; empty if it says nothing."""
        if certain(interval):
            return ""
        return f"{self.plain(interval.low)} to {self.plain(interval.high)}{self.unit}"

    def gap_range(self, interval: Interval) -> str:
        """The interval of a difference; empty if it says nothing."""
        return (
            "" if certain(interval) else f"{self.gap(interval.low)} to {self.gap(interval.high)}{self.points}"
        )


def whole(value: float | None) -> str:
    """A count, thousands grouped."""
    return MISSING if value is None else f"{value:,.0f}"


def ratio(value: float | None) -> str:
    """A ratio: to the hundredth while that says something.

    >>> ratio(0.8), ratio(1.532), ratio(34.56)
    ('0.80', '1.53', '34.6')
    """
    return f"{value:.2f}" if value is not None and 0.005 <= value < 9.995 else number(value)


def times(value: float) -> str:
    """A ratio, as in ``1.53×``."""
    return f"{ratio(value)}×"


def faster(value: float) -> str:
    """What a ratio of times, the first over the second, says of the second."""
    return smaller(value, "faster", "slower")


def smaller(value: float, less: str = "smaller", more: str = "larger") -> str:
    """What a ratio of sizes, the first over the second, says of the second.

    >>> smaller(3.912), smaller(0.5), smaller(1.001)
    ('3.91× smaller', '2.00× larger', 'the same')
    """
    if abs(value - 1) < 0.005:
        return "the same"
    return f"{times(value)} {less}" if value > 1 else f"{times(1 / value)} {more}"


def ratio_range(interval: Interval) -> str:
    """The interval of a ratio; empty if it says nothing."""
    if certain(interval):
        return ""
    low, high = ratio(interval.low), ratio(interval.high)
    if low == high:
        low, high = number(interval.low, 4), number(interval.high, 4)
    return f"{low} to {high}×"


def count(amount: int, word: str) -> str:
    """So many of a thing.

    >>> count(1, "thread"), count(2, "thread")
    ('1 thread', '2 threads')
    """
    return f"{amount} {word}{'' if amount == 1 else 's'}"


def capital(text: str) -> str:
    """Text with a capital at its start, the rest as it is (not so for names such as mAP and p90)."""
    return text if text[1:2].isupper() or text[1:2].isdigit() else text[:1].upper() + text[1:]


def noted(text: Child, note: str) -> Html:
    """Text with a smaller note after it, if there is one."""
    return joined([text, element("small", note)], " ") if note else escaped(text)


def section(identifier: str, title: str, *content: Child) -> Html:
    """A section of the page with its heading."""
    return element(
        "section",
        element("h2", title, id=identifier),
        *content,
        class_=identifier,
        aria_labelledby=identifier,
    )
