"""The report of a search: one HTML page that needs nothing else, loads nothing and runs only the script it carries.

Every value on it is escaped, and a content security policy admits no script and no style but the page's own, by
their hashes: names of models and tasks come from files that others may have written.
"""

from __future__ import annotations

from farthing.config import to_yaml
from farthing.forge.report.engines import engines
from farthing.forge.report.findings import Findings, single
from farthing.forge.report.inside import placement, portability, sizes
from farthing.forge.report.plot import embedded, figure, plot
from farthing.forge.report.tables import budget, candidates, comparison, verdict_groups
from farthing.measure import Interval
from farthing.page.frame import filled, page, resource
from farthing.page.parts import notes, pairs
from farthing.page.typeset import (
    Child,
    Html,
    clean,
    duration,
    element,
    joined,
    noted,
    ratio,
    ratio_range,
    section,
    times,
)
from farthing.recipe import Candidate, Recipe, Summary

__all__ = ["render"]


def render(summary: Summary, recipe: Recipe) -> str:
    """The report of a search as HTML text.

    Args:
        summary: what was found.
        recipe: how to make the winner again.

    Raises:
        MeasurementError: the summary lists no candidate.
    """
    found = Findings(summary)
    parts: dict[str, str] = {
        "budget": budget(found),
        "comparison": comparison(found),
        "engines": engines(found),
        "figure": figure(found),
        "candidates": candidates(found),
        "rest": _rest(found),
        "sizes": sizes(found),
        "placement": placement(found),
        "portability": portability(found.summary.matrix),
        "test": _test(found),
        "notes": notes(summary.notes),
        "conditions": _conditions(found),
        "again": _again(summary, recipe),
    }
    return page(
        f"{summary.model_name} on {summary.task_name}: Farthing report",
        "Farthing report",
        joined([_head(found), _hero(found)]),
        Html(filled(resource("search.html", __name__), parts)),
        resource("page.js", __name__),
        embedded(plot(found)),
    )


# Top of the page ------------------------------------------------------------------------------------------------


def _head(found: Findings) -> Html:
    """What was optimised, whether the budget is met, and the verdict in one sentence."""
    summary = found.summary
    word, kind = ("Budget met", "met") if summary.met else ("Budget not met", "unmet")
    title = joined([element("bdi", summary.model_name), " on ", element("bdi", summary.task_name)])
    verdict = element(
        "p", element("strong", word, class_=f"badge {kind}"), " ", summary.sentence, class_="verdict"
    )
    return joined([element("h1", title), verdict])


def _hero(found: Findings) -> Html:
    """The few figures that matter most: what the winner gained, or what the model is like if it stays as it is."""
    cards = _standing(found) if found.unchanged else _gained(found)
    return element("ul", *cards, class_="hero") if any(cards) else Html("")


def _card(value: str, unit: str, label: str, detail: str) -> Html:
    figure = element("span", value, element("small", unit) if unit else None, class_="value")
    words = element("span", label, class_="label")
    return element(
        "li", joined([figure, words, element("span", detail, class_="detail") if detail else None], " ")
    )


def _gained(found: Findings) -> list[Child]:
    winner = found.winner
    return [
        _latency_card(found),
        _speed_card(winner.offline_speedup, f"the speed of the model as given, {found.batches()}"),
        _size_card(found),
        _accuracy_card(found),
    ]


def _latency_card(found: Findings) -> Child:
    """The gain over the fastest float32 of any engine where several took part: choosing an engine is no merit."""
    winner, own = found.winner, found.winner.over_engine
    if winner.over_float is None or len(found.engines) < 2:
        return _speed_card(winner.speedup, "the speed, one sample at a time")
    spread = ratio_range(winner.over_float)
    words = [
        f"95 % interval {spread}" if spread else "",
        f"{times(own.value)} over its own engine's" if own else "",
    ]
    label = "the speed of the fastest float32 candidate of any engine"
    return _card(ratio(winner.over_float.value), "×", label, "; ".join(filter(None, words)))


def _speed_card(gain: Interval | None, label: str) -> Child:
    if gain is None:
        return None
    spread = ratio_range(gain)
    return _card(ratio(gain.value), "×", label, f"95 % interval {spread}" if spread else "")


def _size_card(found: Findings) -> Child:
    before, after = found.base.figures.size_mb, found.winner.figures.size_mb
    if not before or not after:
        return None
    gain, word = (before / after, "smaller") if before >= after else (after / before, "larger")
    return _card(ratio(gain), "×", word, f"{found.size(before)} to {found.size(after)}")


def _accuracy_card(found: Findings) -> Child:
    test = found.summary.test
    drop = test.drop if test else found.winner.drop
    if drop is None:
        return None
    change = found.scale.change(drop)
    spread = found.scale.gap_range(change)
    label = f"{found.metric}, {'test' if test else 'validation'} data"
    value = found.scale.gap(change.value)
    return _card(value, found.scale.points, label, f"95 % interval {spread}" if spread else "")


def _standing(found: Findings) -> list[Child]:
    measured, size, accuracy = single(found.base), found.base.figures.size_mb, found.base.accuracy
    speed = (
        _card(found.time.of(measured.p50_ms), f" {found.time.sign}", "p50 latency", "") if measured else None
    )
    bytes_ = _card(found.size.of(size), f" {found.size.sign}", "size", "") if size else None
    if accuracy is None:
        return [speed, bytes_]
    spread = found.scale.range(accuracy)
    words = f"95 % interval {spread}" if spread else ""
    label = f"{found.metric}, validation data"
    return [speed, bytes_, _card(found.scale.plain(accuracy.value), found.scale.unit, label, words)]


# Rest of the page -----------------------------------------------------------------------------------------------


def _rest(found: Findings) -> Html:
    """What was not taken, and why; candidates with the same reason share a line."""
    groups = verdict_groups(found)
    if not groups:
        return section("rest", "Not taken, and why", element("p", "Nothing else was tried."))
    parts = [joined([element("h3", title), _reasons(found, members)]) for title, members in groups]
    return section("rest", "Not taken, and why", *parts)


def _reasons(found: Findings, members: list[Candidate]) -> Html:
    lines: dict[str, list[Candidate]] = {}
    for candidate in members:
        lines.setdefault(candidate.verdict or candidate.status, []).append(candidate)
    rows = []
    for verdict, alike in lines.items():
        names = joined([_named(found, candidate) for candidate in alike], ", ")
        rows.append(element("div", element("dt", names), element("dd", verdict)))
    return element("dl", *rows, class_="reasons")


def _named(found: Findings, candidate: Candidate) -> Html:
    engine = candidate.engine if len(found.engines) > 1 else ""
    runs = ", ".join(
        filter(None, [engine, str(candidate.options) if candidate.figures.latency_ms is not None else ""])
    )
    return noted(element("a", element("bdi", candidate.name), href=f"#c{candidate.number}"), runs)


def _test(found: Findings) -> Html:
    """The one look at the test split."""
    test = found.summary.test
    if test is None:
        words = "The task has no test split."
        if not found.unchanged:
            words += " The accuracies here come from the data that chose the winner, which flatters it."
        return section("test", "Test data", element("p", words))
    scale, change = found.scale, found.scale.change(test.drop)
    shown = [
        ("As given", _spread(f"{scale.plain(test.baseline.value)}{scale.unit}", scale.range(test.baseline))),
        ("Winner", _spread(f"{scale.plain(test.winner.value)}{scale.unit}", scale.range(test.winner))),
        (
            "Change, sample by sample",
            _spread(f"{scale.gap(change.value)}{scale.points}", scale.gap_range(change)),
        ),
    ]
    words = f"{test.samples:,} samples that the search never saw, scored once, at the end. Metric: {found.metric}."
    return section("test", "Test data", element("p", words), pairs(shown))


def _spread(value: str, spread: str) -> str:
    return f"{value} (95 % interval {spread})" if spread else value


def _conditions(found: Findings) -> Html:
    """Where, when, with what and on what data: without these a figure means nothing."""
    summary = found.summary
    measured = [m for c in found.timed if (m := single(c))]
    sizes = ", ".join(f"{name} {amount:,}" for name, amount in summary.samples.items())
    runs = sorted({m.runs for m in measured})
    calls = "" if not runs else f"{runs[0]:,}" if len(runs) == 1 else f"{runs[0]:,} to {runs[-1]:,}"
    rows = [
        ("Machine", summary.machine),
        ("Engines", ", ".join(sorted({f"{m.engine} {m.engine_version}" for m in measured}))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in summary.versions.items())),
        ("Task", f"{summary.task_name}, by {found.metric}"),
        ("Samples", sizes),
        (
            "Latency",
            f"MLPerf single stream, batch 1, the engine alone; {calls} timed calls each" if calls else "",
        ),
        ("When", f"{summary.when}, {duration(summary.seconds)} in all" if summary.when else ""),
    ]
    return section("conditions", "Machine, versions, data", pairs(rows))


def _again(summary: Summary, recipe: Recipe) -> Html:
    """The command and the recipe, each to be copied."""
    command = _copyable("Command", summary.command) if summary.command else None
    words = (
        None
        if command
        else element("p", "The search was called from Python; the recipe says how to make its winner.")
    )
    text = clean(to_yaml(recipe)).rstrip()
    return section("again", "Make it again", command, words, _copyable("recipe.yaml", text))


def _copyable(title: str, text: str) -> Html:
    head = element("h3", title, element("button", "Copy", type="button", class_="copy needs-script"))
    return element("div", head, element("pre", element("code", text), tabindex=0), class_="copyable")
