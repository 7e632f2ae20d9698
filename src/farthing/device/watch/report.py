"""The report of a device that was watched: one HTML page that needs nothing else and runs no script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from farthing.config import plain
from farthing.device.watch import history
from farthing.device.watch.history import Quantity, Span
from farthing.device.watch.probes import Reading
from farthing.device.watch.record import Record
from farthing.page.chart import Series, over_time
from farthing.page.frame import plain_page
from farthing.page.typeset import MISSING, Html, capital, count, duration, element, joined, number, section

UNAVAILABLE = "unavailable"
MOST_LINES = 6
_Named = Callable[[Reading], Iterable[tuple[str, float]]]


def render(record: Record) -> str:
    """The report as HTML text."""
    return plain_page(
        record.machine or "This machine",
        "Farthing monitor",
        verdict(record),
        _advice(record),
        _charts(record),
        _summary(record),
        _sensors(record),
        _thresholds(record),
        _conditions(record),
    )


def verdict(record: Record) -> str:
    """What was found, in a sentence."""
    problems = sum(advice.level == "problem" for advice in record.advice)
    warnings = len(record.advice) - problems
    found = [
        *([count(problems, "problem")] if problems else []),
        *([count(warnings, "warning")] if warnings else []),
    ]
    said = " and ".join(found) if found else "nothing stands out"
    if not record.judged:
        said += "; whether heat or the supply held it back, this device does not say"
    return f"{capital(said)}. {count(record.count, 'reading')} in {duration(record.seconds)}."


def _advice(record: Record) -> Html:
    rows = [
        element(
            "li",
            element(
                "span", advice.level, class_=f"state {'exceeded' if advice.level == 'problem' else 'unknown'}"
            ),
            f" {capital(advice.quantity)}: {advice.found}",
            element("p", advice.next),
        )
        for advice in record.advice
    ]
    return section("what-to-do", "What to do", element("ul", *rows, class_="advice")) if rows else Html("")


# Charts -----------------------------------------------------------------------------------------------------------


def _charts(record: Record) -> Html:
    """A chart for each quantity that was ever there."""
    limits = record.thresholds
    charts = [
        _chart(record, history.CPU, limits.cpu_percent, 100),
        _chart(record, history.LOAD, limits.load_per_core),
        _chart(record, history.MEMORY, limits.memory_percent, 100),
        _several(record, "Temperature", "°C", _temperatures, limits.temperature_c),
        _several(record, f"Power{_of_what(record)}", "W", _power),
        _several(record, "Processor frequency", "MHz", lambda reading: _numbered(reading.cpu_by_core_mhz)),
        _several(record, "Graphics processors", "%", _gpus, most=100),
        _chart(record, history.BATTERY, limits.battery_percent, 100),
        _chart(record, history.QUOTA, limits.quota_held_percent, 100),
        _chart(record, history.DISK, limits.disk_percent, 100),
    ]
    shown = [chart for chart in charts if chart]
    return section("over-time", "Over time", element("div", *shown, class_="charts")) if shown else Html("")


def _chart(record: Record, quantity: Quantity, limit: float | None = None, most: float | None = None) -> Html:
    points = [(_since(record, reading), quantity.of(reading)) for reading in record.readings]
    return over_time(capital(quantity.name), quantity.unit, [Series(quantity.name, points)], limit, most)


def _several(
    record: Record, title: str, unit: str, of: _Named, limit: float | None = None, most: float | None = None
) -> Html:
    """A chart of many, as each reading names them; of too many the highest, so that none that matters is missing."""
    values = [(_since(record, reading), _distinct(of(reading))) for reading in record.readings]
    highest: dict[str, float] = {}
    for _, found in values:
        for name, value in found.items():
            highest[name] = max(value, highest.get(name, value))
    drawn = set(sorted(highest, key=lambda name: highest[name], reverse=True)[:MOST_LINES])
    if len(highest) > MOST_LINES:
        title = f"{title}, the {MOST_LINES} highest of {len(highest)}"
    lines = [
        Series(name, [(seconds, found.get(name)) for seconds, found in values])
        for name in highest
        if name in drawn
    ]
    return over_time(title, unit, lines, limit, most)


def _distinct(named: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Values by name; of one name again and again, such as that of two equal sensors, numbered."""
    found: dict[str, float] = {}
    seen: Counter[str] = Counter()
    for name, value in named:
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name} ({seen[name]})"] = value
    return found


def _since(record: Record, reading: Reading) -> float:
    return reading.time_s - record.readings[0].time_s


def _temperatures(reading: Reading) -> list[tuple[str, float]]:
    return [(sensor.name, sensor.celsius) for sensor in reading.temperatures]


def _power(reading: Reading) -> list[tuple[str, float]]:
    rails = [(rail.name, rail.power_w) for rail in reading.rails if rail.name != reading.power_of]
    return [(reading.power_of, reading.power_w), *rails] if reading.power_w is not None else rails


def _gpus(reading: Reading) -> list[tuple[str, float]]:
    used = [(place, gpu.name, gpu.percent) for place, gpu in enumerate(reading.gpus)]
    return [(f"{name} ({place})", percent) for place, name, percent in used if percent is not None]


def _numbered(values: tuple[float | None, ...]) -> list[tuple[str, float]]:
    return [(f"processor {place}", value) for place, value in enumerate(values) if value is not None]


def _of_what(record: Record) -> str:
    named = dict.fromkeys(reading.power_of for reading in record.readings if reading.power_of)
    return f" of {', '.join(named)}" if named else ""


# Tables -----------------------------------------------------------------------------------------------------------


def _summary(record: Record) -> Html:
    heads = ("Quantity", "Mean", "Lowest", "Highest", "Last", "Readings")
    return section("summary", "Summary", _table(heads, [_row(span) for span in record.spans]))


def _row(span: Span) -> list[str]:
    name = capital(f"{span.quantity}, {span.unit}" if span.unit else span.quantity)
    if not span.count:
        return [name, UNAVAILABLE, *[MISSING] * 3, "0"]
    return [name, *map(number, (span.mean, span.low, span.high, span.last)), f"{span.count:,}"]


def _sensors(record: Record) -> Html:
    """The last reading of every sensor and rail."""
    last = record.readings[-1] if record.readings else None
    rows = [
        [
            sensor.name,
            f"{number(sensor.celsius)} °C",
            f"{number(sensor.critical_c)} °C" if sensor.critical_c else MISSING,
        ]
        for sensor in (last.temperatures if last else ())
    ]
    rows += [[rail.name, f"{number(rail.power_w)} W", rail.source] for rail in (last.rails if last else ())]
    if not rows:
        return Html("")
    return section(
        "sensors", "Sensors at the end", _table(("Sensor", "Value", "Critical at, or source"), rows)
    )


def _thresholds(record: Record) -> Html:
    rows = [[name, number(value)] for name, value in plain(record.thresholds).items()]
    return section("thresholds", "Thresholds", _table(("Threshold", "Value"), rows, "alone"))


def _conditions(record: Record) -> Html:
    drawn = "every reading is drawn" if record.stride == 1 else f"one reading in {record.stride} is drawn"
    rows = [
        ("Started", record.started),
        ("Length", duration(record.seconds)),
        ("Distance of readings", f"{number(record.every_s)} s; {drawn}, all of them count in the summary"),
    ]
    pairs = [element("div", element("dt", name), element("dd", text)) for name, text in rows]
    return section("conditions", "How it was watched", element("dl", *pairs, class_="pairs"))


def _table(heads: Iterable[str], rows: Iterable[list[str]], kind: str = "") -> Html:
    head = element("tr", *(element("th", text, scope="col") for text in heads))
    body = [
        element(
            "tr",
            element("th", element("bdi", cells[0]), scope="row"),
            *(element("td", cell) for cell in cells[1:]),
        )
        for cells in rows
    ]
    shown = element(
        "table", element("thead", head), element("tbody", joined(body)), class_=f"listing {kind}".strip()
    )
    return element("div", shown, class_="wide", tabindex=0, role="group")
