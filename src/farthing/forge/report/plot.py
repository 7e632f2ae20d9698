"""What the plot of a report draws, as plain data in the units of the page; the page's script draws it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from farthing.errors import ConfigError
from farthing.forge.report.findings import Findings, single
from farthing.measure import Interval
from farthing.page.frame import filled, resource
from farthing.page.typeset import MISSING, Html, capital, clean, element, escaped, joined, number, times
from farthing.recipe import Candidate
from farthing.target import Budget

MARKS = {
    "winner": ("winner", '<path class="shape" d="M0-8 8 0 0 8-8 0z"/>'),
    "baseline": ("as given", '<path class="shape" d="M-5.5-5.5h11v11h-11z"/>'),
    "accepted": ("accepted", '<circle class="shape" r="5"/>'),
    "rejected": ("turned down", '<circle class="shape" r="4.5"/>'),
}


def figure(
    found: Findings, title: str = "What was traded for what", marks: Mapping[str, str] | None = None
) -> Html:
    """The frame in which the page's script draws; marks have their engine's colour where several took part.

    Args:
        title: above it.
        marks: status -> what its mark is called in the legend; those of a search if None.
    """
    if not found.timed:
        return Html("")
    several = len(found.engines) > 1
    names = {status: name for status, (name, _) in MARKS.items()} if marks is None else marks
    shown = [
        _entry(f'<g class="mark {status}">{MARKS[status][1]}</g>', name) for status, name in names.items()
    ]
    dots = [_entry(f'<circle class="swatch e{n}" r="6"/>', name) for n, name in enumerate(found.engines)]
    limit = _entry('<path class="limit" d="M-9 0H9"/>', "limit of the budget") if _limits(found) else None
    parts = {
        "title": escaped(title),
        "kind": " by-engine" if several else "",
        "marks": joined(shown),
        "limit": escaped(limit),
        "engines": joined(dots if several else []),
    }
    return Html(filled(resource("figure.html", __package__ or ""), parts))


def _entry(drawing: str, name: str) -> Html:
    """A line of the legend."""
    return element(
        "li", Html(f'<svg viewBox="-9 -9 18 18" aria-hidden="true">{drawing}</svg>'), element("bdi", name)
    )


def embedded(data: object) -> str:
    """JSON that may stand in a script element: no character that HTML or older JavaScript gives a meaning."""
    text = msgspec.json.encode(data).decode()
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


def plot(found: Findings) -> dict[str, Any]:
    """Axes, limits of the budget, and a point for each timed candidate.

    An axis says in ``better`` which end is the good one; a vertical value is ``[value, low, high]``, where the
    ends are None if they say nothing. ``tip`` is what a reader is shown beside the mark.
    """
    return {
        "x": {
            "latency": _axis("p90 latency", found.time.sign, "low"),
            "size": _axis("size", found.size.sign, "low"),
            "throughput": _axis("throughput, samples a second", "", "high"),
        },
        "y": {
            "accuracy": _axis(
                f"{found.metric}, validation",
                found.scale.unit.strip(),
                "high" if found.scale.higher else "low",
            ),
            "drop": _axis("drop against the model as given", found.scale.points.strip(), "low"),
        },
        "limits": _limits(found),
        "engines": len(found.engines),
        "points": [_point(found, candidate) for candidate in found.timed],
    }


def _axis(label: str, unit: str, better: str) -> dict[str, str]:
    return {"label": clean(capital(f"{label}, {unit}" if unit else label)), "unit": unit, "better": better}


def _limits(found: Findings) -> dict[str, float]:
    try:
        budget = Budget.parse(found.summary.budget)
    except ConfigError:
        return {}
    factor = found.scale.factor
    scaled = {
        "latency": (budget.latency_ms, found.time.factor),
        "size": (budget.size_mb, found.size.factor),
        "throughput": (budget.throughput_min, 1.0),
        "accuracy": (budget.accuracy_min, factor),
        "drop": (budget.accuracy_drop, factor),
    }
    limits = {name: limit * by for name, (limit, by) in scaled.items() if limit is not None}
    if "drop" in limits and "accuracy" not in limits and found.base.accuracy:
        sign = 1 if found.scale.higher else -1
        limits["accuracy"] = found.base.accuracy.value * factor - sign * limits["drop"]
    return limits


def _point(found: Findings, candidate: Candidate) -> dict[str, Any]:
    figures, factor = candidate.figures, found.scale.factor
    is_winner = candidate is found.winner and not found.unchanged
    return {
        "n": candidate.number,
        "name": clean(candidate.name),
        "status": "winner" if is_winner else candidate.status,
        "engine": found.engines.index(candidate.engine),
        "latency": _scaled(figures.latency_ms, found.time.factor),
        "size": _scaled(figures.size_mb, found.size.factor),
        "throughput": _scaled(figures.throughput, 1.0),
        "accuracy": _triple(candidate.accuracy, figures.accuracy, factor),
        "drop": _triple(candidate.drop, figures.accuracy_drop, factor),
        "tip": [[name, text] for name, text in _tip(found, candidate) if text and text != MISSING],
        "verdict": clean(candidate.verdict or candidate.status),
    }


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value * factor:.6g}")


def _triple(interval: Interval | None, value: float | None, factor: float) -> list[float | None] | None:
    if interval is None:
        middle = _scaled(value, factor)
        return None if middle is None else [middle, None, None]
    if not math.isfinite(interval.value):
        return None
    return [_scaled(part, factor) for part in (interval.value, interval.low, interval.high)]


def _tip(found: Findings, candidate: Candidate) -> list[tuple[str, str]]:
    figures, scale, measured = candidate.figures, found.scale, single(candidate)
    memory = figures.peak_memory_mb
    accuracy = f"{scale.plain(figures.accuracy)}{scale.unit}" if figures.accuracy is not None else ""
    spread = scale.range(candidate.accuracy) if candidate.accuracy else ""
    drop = f"{scale.gap(figures.accuracy_drop)}{scale.points}" if figures.accuracy_drop is not None else ""
    return [
        ("runs", clean(f"{candidate.engine}, {candidate.options}")),
        ("p50", found.time(measured.p50_ms) if measured else ""),
        ("over the best float32", times(candidate.over_float.value) if candidate.over_float else ""),
        ("p90", found.time(figures.latency_ms)),
        ("p99", found.time(measured.p99_ms) if measured else ""),
        ("throughput", "" if figures.throughput is None else f"{number(figures.throughput, 4)} samples/s"),
        ("size", found.size(figures.size_mb)),
        ("accuracy", f"{accuracy} ({spread})" if spread else accuracy),
        ("drop", drop),
        ("memory", "" if memory is None else f"{number(memory)} MB"),
    ]
