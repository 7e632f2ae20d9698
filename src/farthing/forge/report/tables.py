"""Tables of the report: the budget limit by limit, winner beside baseline, every candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from farthing.errors import ConfigError
from farthing.forge.report.findings import Findings, single
from farthing.measure import Interval, compare, within
from farthing.page.typeset import (
    MISSING,
    Child,
    Html,
    Unit,
    capital,
    element,
    faster,
    joined,
    noted,
    number,
    ratio,
    ratio_range,
    section,
    smaller,
    whole,
)
from farthing.recipe import Candidate
from farthing.target import BUDGET_NAMES, Budget

LIMITS = {
    "accuracy_drop": "Loss of accuracy",
    "accuracy_min": "Accuracy",
    "latency_ms": "Latency, p90",
    "throughput_min": "Throughput",
    "peak_memory_mb": "Peak memory",
    "size_mb": "Size",
    "energy_mj": "Energy, an inference",
}
MEMORY = Unit("MB", 1.0)


def table(heads: Sequence[Child], rows: Sequence[Sequence[Child]], kind: str = "") -> Html:
    """A plain table; the first cell of a row is its head."""
    head = element("tr", *(element("th", text, scope="col") for text in heads))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:]))
        for row in rows
    ]
    return element("table", element("thead", head), element("tbody", *body), class_=f"plain {kind}".strip())


# Budget ---------------------------------------------------------------------------------------------------------


def budget(found: Findings) -> Html:
    """Limit by limit: what was allowed, what was found, whether it is kept; then what stands against it."""
    rows = _budget_rows(found)
    shown = table(["Limit", "Allowed", "Found", "Verdict"], rows, "limits") if rows else None
    words = None if rows else element("p", "No limits." if not found.summary.budget else found.summary.budget)
    broken = element("ul", *(element("li", text) for text in found.summary.violations), class_="violations")
    return section("budget", "Budget", shown, words, broken if found.summary.violations else None)


def _budget_rows(found: Findings) -> list[list[Child]]:
    try:
        limits = Budget.parse(found.summary.budget)
    except ConfigError:
        return []
    pairs = [(name, getattr(limits, name)) for name in BUDGET_NAMES]
    return [_budget_row(found, name, limit) for name, limit in pairs if limit is not None]


def _budget_row(found: Findings, name: str, limit: float) -> list[Child]:
    show, values = found.shown(name), _against(found, name)
    state, word = _state(found, name, limit, [value for _, value in values])
    lines = [f"{show(value)}{place and f' ({place})'}" for place, value in values if value is not None]
    shown = joined([element("div", line) for line in lines]) if lines else MISSING
    bound = f"at {'least' if name.endswith('_min') else 'most'} {show(limit)}"
    return [LIMITS[name], bound, shown, element("span", word, class_=f"state {state}")]


def _against(found: Findings, name: str) -> list[tuple[str, float | None]]:
    """What a limit is held against, with the split it was found on."""
    test, figures = found.summary.test, found.winner.figures
    if name == "accuracy_drop":
        return [("validation", figures.accuracy_drop), *([("test", test.drop.value)] if test else [])]
    if name == "accuracy_min":
        return [("validation", figures.accuracy), *([("test", test.winner.value)] if test else [])]
    return [("", getattr(figures, name.removesuffix("_min")))]


def _state(found: Findings, name: str, limit: float, values: Sequence[float | None]) -> tuple[str, str]:
    if any(text.startswith(f"cannot tell whether {name}") for text in found.summary.violations):
        return "unknown", "cannot tell"
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "unknown", "could not be measured"
    least = name.endswith("_min")
    kept = all(within(value, limit, least=least) for value in known)
    return ("kept", "kept") if kept else ("exceeded", "missed" if least else "exceeded")


# Winner and baseline --------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A figure of baseline and winner, and what became of it."""

    title: str
    before: Child
    after: Child
    change: Child

    @property
    def empty(self) -> bool:
        return self.before == MISSING == self.after


def comparison(found: Findings) -> Html:
    """The winner's figures beside the baseline's; the baseline's alone if nothing beat it."""
    rows = [row for row in _rows(found) if not row.empty]
    heads: list[Child] = ["Figure", _heading("As given", found.base)]
    if not found.unchanged:
        heads += [_heading(found.winner.name, found.winner), "Change"]
    title = "The model as it is" if found.unchanged else "Winner and baseline"
    return section(
        "comparison",
        title,
        table(heads, [row[: len(heads)] for row in rows], "alone" if found.unchanged else "figures"),
    )


def _heading(name: str, candidate: Candidate) -> Html:
    return noted(element("bdi", name), f"{candidate.engine}, {candidate.options}")


def _rows(found: Findings) -> list[Row]:
    test = found.summary.test
    return [
        _row(found, "Latency, p50", _timing("p50_ms"), found.time, faster, found.winner.speedup),
        _row(found, "Latency, p90", _timing("p90_ms"), found.time, faster, bound="p90_bound_ms"),
        _row(found, "Latency, p99", _timing("p99_ms"), found.time, faster),
        _row(
            found,
            f"Samples a second, {found.batches()}",
            lambda c: c.figures.throughput,
            lambda value: number(value, 4),
            lambda gain: faster(1 / gain),
            found.winner.offline_speedup,
        ),
        _row(found, "Size", lambda c: c.figures.size_mb, found.size, smaller),
        _row(found, "Operators", lambda c: c.nodes, whole, lambda gain: ""),
        _row(
            found,
            "Peak memory",
            lambda c: c.figures.peak_memory_mb,
            MEMORY,
            lambda gain: smaller(gain, "less", "more"),
        ),
        _accuracy(found, "validation", found.base.accuracy, found.winner.accuracy, found.winner.drop),
        *([_accuracy(found, "test", test.baseline, test.winner, test.drop)] if test else []),
        _row(found, "Time to load", _timing("load_ms"), found.time, faster),
        _row(found, "Preprocessing, a sample", _timing("prepare_ms"), found.time, lambda gain: ""),
        _energy(found),
    ]


def _timing(name: str) -> Callable[[Candidate], float | None]:
    def figure(candidate: Candidate) -> float | None:
        measured = single(candidate)
        if measured is None:
            return candidate.figures.latency_ms if name == "p90_ms" else None
        value: float | None = getattr(measured, name)
        return value

    return figure


def _row(
    found: Findings,
    title: str,
    figure: Callable[[Candidate], float | None],
    show: Callable[[float | None], str],
    change: Callable[[float], str],
    gain: Interval | None = None,
    bound: str = "",
) -> Row:
    """A row; ``gain`` is the change as it was measured, interleaved, ``bound`` the field with an upper bound."""
    before, after = figure(found.base), figure(found.winner)
    words: Child = change(before / after) if before and after else MISSING
    if gain is not None:
        words = noted(_gain(gain), ratio_range(gain))
    shown = [
        _bounded(show, value, _timing(bound)(c) if bound else None)
        for c, value in ((found.base, before), (found.winner, after))
    ]
    return Row(title, shown[0], shown[1], words)


def _gain(gain: Interval) -> str:
    verdict = compare(gain)
    return {"cannot tell": "cannot tell", "same": "the same"}.get(verdict, faster(gain.value))


def _bounded(show: Callable[[float | None], str], value: float | None, bound: float | None) -> Child:
    return show(value) if bound is None else noted(show(value), f"at most {show(bound)}")


def _accuracy(
    found: Findings, split: str, before: Interval | None, after: Interval | None, drop: Interval | None
) -> Row:
    words: Child = MISSING
    if drop is not None:
        change = found.scale.change(drop)
        words = noted(found.scale.gap(change.value) + found.scale.points, found.scale.gap_range(change))
    return Row(
        f"{capital(found.metric)}, {split}", _with_range(found, before), _with_range(found, after), words
    )


def _with_range(found: Findings, interval: Interval | None) -> Child:
    if interval is None:
        return MISSING
    value = f"{found.scale.plain(interval.value)}{found.scale.unit}"
    return noted(value, found.scale.range(interval))


def _energy(found: Findings) -> Row:
    """Energy, or that there was no meter: it is never left out silently."""
    before, after = found.base.figures.energy_mj, found.winner.figures.energy_mj
    shown: list[Child] = [
        element("span", "unavailable", class_="quiet") if value is None else f"{number(value)} mJ"
        for value in (before, after)
    ]
    words = smaller(before / after, "less", "more") if before and after else MISSING
    return Row("Energy, an inference", shown[0], shown[1], words)


# Candidates -----------------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """A column of figures: its head, its unit, the figure, and how that is written."""

    head: str
    unit: str
    figure: Callable[[Candidate], float | None]
    show: Callable[[float | None], str]


def candidates(found: Findings, title: str = "All candidates", options: str = "the recipe") -> Html:
    """Every candidate with its figures and verdict.

    Args:
        title: of the section.
        options: what has all options of the steps.
    """
    columns = _columns(found)
    heads = [
        element("th", "No.", scope="col"),
        element("th", "Name and steps", scope="col", class_="text"),
        *([element("th", "Engine", scope="col", class_="text")] if len(found.engines) > 1 else []),
        *(element("th", column.head, element("small", column.unit), scope="col") for column in columns),
        element("th", "Verdict", scope="col", class_="text"),
    ]
    rows = [_candidate(found, columns, candidate) for candidate in found.summary.candidates]
    shown = element("table", element("thead", element("tr", *heads)), element("tbody", *rows), id="all")
    scroll = element("div", shown, class_="scroll", tabindex=0, role="region", aria_labelledby="candidates")
    words = (
        f"Accuracy is {found.metric} on validation data; a drop above 0 is a loss against the model as given."
    )
    steps = f"Steps name the options in which candidates differ; {options} has all of them."
    note = element("p", f"Latency is of the engine alone, batch 1. {words} {steps}", class_="quiet")
    return section("candidates", title, note, scroll)


def _columns(found: Findings) -> list[Column]:
    scale, base = found.scale, found.base.figures.size_mb
    return [
        Column("Threads", "", lambda c: c.options.threads, whole),
        Column("Nodes", "", lambda c: c.nodes, whole),
        Column("Size", found.size.sign, lambda c: c.figures.size_mb, found.size.of),
        Column(
            "Smaller", "×", lambda c: base / c.figures.size_mb if base and c.figures.size_mb else None, ratio
        ),
        Column("p50", found.time.sign, _timing("p50_ms"), found.time.of),
        Column("p90", found.time.sign, _timing("p90_ms"), found.time.of),
        Column("Faster", "×, p50", lambda c: c.speedup.value if c.speedup else None, ratio),
        *(_over_float() if len(found.engines) > 1 else []),
        Column("Throughput", "samples/s", lambda c: c.figures.throughput, lambda value: number(value, 4)),
        Column("Accuracy", scale.unit.strip(), lambda c: c.figures.accuracy, scale.plain),
        Column(
            "Drop",
            scale.points.strip(),
            lambda c: c.figures.accuracy_drop,
            lambda v: MISSING if v is None else scale.gap(v),
        ),
        Column("Memory", "MB, peak", lambda c: c.figures.peak_memory_mb, number),
    ]


def _over_float() -> list[Column]:
    """What finalists gain over the fastest float32 candidates."""
    return [
        Column("Over float", "×, any engine", lambda c: c.over_float.value if c.over_float else None, ratio),
        Column("Over own", "×, same engine", lambda c: c.over_engine.value if c.over_engine else None, ratio),
    ]


def _candidate(found: Findings, columns: Sequence[Column], candidate: Candidate) -> Html:
    status = "winner" if candidate is found.winner and not found.unchanged else candidate.status
    title = noted(element("bdi", candidate.name), found.steps(candidate))
    name = element("th", title, scope="row", class_="text", data_v=candidate.name)
    cells = [_cell(column, candidate) for column in columns]
    if len(found.engines) > 1:
        cells.insert(0, _engine(found, candidate))
    verdict = element(
        "td", element("i", class_="dot", aria_hidden="true"), candidate.verdict or status, class_="text"
    )
    number_cell = element("td", str(candidate.number), data_v=candidate.number)
    return element("tr", number_cell, name, *cells, verdict, id=f"c{candidate.number}", class_=status)


def _engine(found: Findings, candidate: Candidate) -> Html:
    """What ran it, and what is special about how, the number of threads aside."""
    plain = replace(candidate.options, threads=1)
    dot = element("i", class_=f"dot e{found.engines.index(candidate.engine)}", aria_hidden="true")
    name = joined([dot, element("bdi", candidate.engine)])
    special = str(plain).removeprefix("1 thread").removeprefix(", ")
    return element("td", noted(name, special), data_v=f"{candidate.engine} {special}", class_="text engine")


def _cell(column: Column, candidate: Candidate) -> Html:
    value = column.figure(candidate)
    shown = column.show(value)
    return element("td", shown, data_v=None if value is None or shown == MISSING else f"{value:.8g}")


def verdict_groups(found: Findings) -> list[tuple[str, list[Candidate]]]:
    """Candidates that did not win, by how far they came."""
    rest = [c for c in found.summary.candidates if c is not found.winner and c.status != "baseline"]
    groups: list[tuple[str, Callable[[Candidate], bool]]] = [
        ("Could have been taken, but another was better", lambda c: c.status in ("accepted", "winner")),
        ("Timed, and turned down", lambda c: c.status == "rejected" and c.figures.latency_ms is not None),
        ("Turned down before timing", lambda c: c.status == "rejected" and c.figures.latency_ms is None),
        ("Could not be made or run", lambda c: c.status == "failed"),
    ]
    return [(title, chosen) for title, belongs in groups if (chosen := [c for c in rest if belongs(c)])]
