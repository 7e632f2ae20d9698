"""The report's table of engines: what each is worth in float32 and at its best, and against the best of all."""

from __future__ import annotations

from farthing.forge.report.findings import Findings, single
from farthing.measure import Interval
from farthing.page.typeset import (
    MISSING,
    Child,
    Html,
    element,
    joined,
    noted,
    ratio_range,
    section,
    times,
)
from farthing.recipe import Candidate

HEADS = (
    ("Engine", ""),
    ("Fastest float32", "p50"),
    ("Best taken", "p50"),
    ("Over the best float32", "of any engine"),
    ("Over its own float32", "same engine"),
    ("In batches", "against the model as given"),
    ("Size", ""),
    ("Change", "of accuracy"),
)


def engines(found: Findings) -> Html:
    """A row for each engine that took part; nothing where there was only one."""
    if len(found.engines) < 2:
        return Html("")
    head = element(
        "tr",
        *(
            element("th", noted(name, unit), scope="col", class_=None if unit or name == "Size" else "text")
            for name, unit in HEADS
        ),
    )
    rows = [_row(found, engine) for engine in found.engines]
    shown = element("table", element("thead", head), element("tbody", *rows), class_="engines")
    scroll = element("div", shown, class_="scroll", tabindex=0, role="region", aria_labelledby="engines")
    words = (
        "Ratios are of p50 latencies, one sample at a time, timed in turns; above 1 is faster. The best float32 is the "
        "fastest candidate of any engine that computes in float32: no gain over it is owed to the choice of the engine."
    )
    return section("engines", "Engine by engine", element("p", words, class_="quiet"), scroll)


def _row(found: Findings, engine: str) -> Html:
    mine = [candidate for candidate in found.summary.candidates if candidate.engine == engine]
    won = found.winner in mine and not found.unchanged
    floats = [candidate for candidate in mine if candidate.exact]
    exact = fastest([c for c in floats if c.over_float]) or fastest(
        floats
    )  # finalists were timed in one race
    taken = [candidate for candidate in mine if candidate.status in {"accepted", "winner"}]
    best = found.winner if won else fastest(taken)
    cells: list[Child] = [
        _timed(found, exact, against=True) if exact else _none(mine),
        _timed(found, best) if best else _untaken(found, mine),
        _ratio(best.over_float if best else exact.over_float if exact else None),
        _ratio(best.over_engine) if best else MISSING,
        _ratio(best.offline_speedup if best else exact.offline_speedup if exact else None),
        found.size(best.figures.size_mb if best else exact.figures.size_mb if exact else None),
        _change(found, best),
    ]
    name = joined(
        [
            element("i", class_=f"dot e{found.engines.index(engine)}", aria_hidden="true"),
            element("bdi", engine),
        ]
    )
    head = element("th", name, scope="row", class_="text")
    return element("tr", head, *(element("td", cell) for cell in cells), class_="winner" if won else None)


def _untaken(found: Findings, candidates: list[Candidate]) -> Child:
    """That none was good enough, and what came nearest."""
    best = fastest([candidate for candidate in candidates if not candidate.exact])
    measured = single(best) if best else None
    if best is None or measured is None:
        return "none"
    link = element("a", element("bdi", best.name), href=f"#c{best.number}")
    return joined(
        ["none", element("small", link, f", {best.options}: {found.time(measured.p50_ms)}, turned down")], " "
    )


def fastest(candidates: list[Candidate]) -> Candidate | None:
    """The candidate with the least median latency of those that were timed."""
    timed = [(measured.p50_ms, candidate) for candidate in candidates if (measured := single(candidate))]
    return min(timed, key=lambda pair: pair[0])[1] if timed else None


def _none(candidates: list[Candidate]) -> Child:
    if any(candidate.status == "failed" for candidate in candidates):
        return element("span", "none ran", class_="quiet")
    return element("span", "none was timed", class_="quiet")


def _timed(found: Findings, candidate: Candidate, against: bool = False) -> Child:
    """Its p50, which candidate it is, and ``against`` the best float32 of all how fast."""
    measured, over = single(candidate), candidate.over_float
    link = element("a", element("bdi", candidate.name), href=f"#c{candidate.number}")
    gain = f"; {times(over.value)} the best" if against and over and over.value != 1 else ""
    words = joined([link, f", {candidate.options}{gain}"])
    time = found.time(measured.p50_ms) if measured else MISSING
    return joined([time, element("small", words)], " ")


def _ratio(value: Interval | None) -> Child:
    return MISSING if value is None else noted(times(value.value), ratio_range(value))


def _change(found: Findings, candidate: Candidate | None) -> Child:
    if candidate is None or candidate.drop is None:
        return MISSING
    change = found.scale.change(candidate.drop)
    return noted(found.scale.gap(change.value) + found.scale.points, found.scale.gap_range(change))
