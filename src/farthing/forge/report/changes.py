"""Two searches side by side, as a page."""

from __future__ import annotations

from collections.abc import Sequence

from farthing.forge.compare import Comparison, Figure, Moved, Side
from farthing.measure import Interval
from farthing.page.frame import plain_page
from farthing.page.typeset import (
    MISSING,
    Child,
    Html,
    element,
    joined,
    noted,
    number,
    ratio,
    ratio_range,
    section,
    signed,
    size_unit,
    time_unit,
)

STATES = {"better": "kept", "worse": "exceeded", "same": "kept", "cannot tell": "unknown"}


def render_comparison(found: Comparison) -> str:
    """A comparison as HTML text that needs and loads nothing else."""
    return plain_page(
        f"{found.first.model} on {found.first.task}",
        "Farthing: two searches compared",
        sentence(found),
        _sides(found),
        _figures(found),
        _moved("appeared", "New candidates", found.appeared),
        _moved("vanished", "Candidates that are gone", found.vanished),
        _changed(found.changed),
    )


def sentence(found: Comparison) -> str:
    """What changed, in a sentence."""
    first, second = found.first, found.second
    same = (first.winner, first.engine, first.options) == (second.winner, second.engine, second.options)
    told = (
        f"The winner is still {named(second)}" if same else f"{named(second)} wins in place of {named(first)}"
    )
    words = [
        f"{figure.name} {figure.verdict}" for figure in found.figures if figure.verdict in {"better", "worse"}
    ]
    gone = [
        f"{len(those)} {word}"
        for those, word in (
            (found.appeared, "new"),
            (found.vanished, "gone"),
            (found.changed, "with another verdict"),
        )
        if those
    ]
    moved = ", ".join(gone) or "the same"
    return f"{told}; {', '.join(words) or 'no figure differs for certain'}; candidates: {moved}."


def named(side: Side) -> str:
    """The winner with what runs it."""
    return f"{side.winner} ({side.engine}, {side.options})"


def _sides(found: Comparison) -> Html:
    rows = [
        ("Where", found.first.place, found.second.place),
        ("Winner", named(found.first), named(found.second)),
        ("Budget", *("met" if side.met else "not met" for side in (found.first, found.second))),
        ("Machine", found.first.machine, found.second.machine),
        ("When", found.first.when, found.second.when),
    ]
    body = [
        element("tr", element("th", name, scope="row"), element("td", one), element("td", other))
        for name, one, other in rows
    ]
    differing = element("ul", *(element("li", text) for text in found.conditions), class_="violations")
    return section(
        "sides",
        "The two searches",
        _table(["", "First", "Second"], body),
        element("h3", "What differs between them") if found.conditions else None,
        differing if found.conditions else element("p", "Same machine, data, budget and versions."),
    )


def _table(heads: Sequence[str], rows: Sequence[Html]) -> Html:
    head = element("tr", *(element("th", text, scope="col") for text in heads))
    shown = element("table", element("thead", head), element("tbody", *rows), class_="listing")
    return element("div", shown, class_="wide", tabindex=0, role="group")


def _figures(found: Comparison) -> Html:
    words = (
        "Ratios say how many times better the second winner is; those of speed go through the baseline that both "
        "searches timed in turns with their winners, so that a machine that was slower one day does not count."
    )
    rows = [_figure(figure) for figure in found.figures]
    return section(
        "figures", "Figures of the winners", element("p", words, class_="quiet"),
        _table(["Figure", "First", "Second", "Change", "Verdict"], rows),
    )  # fmt: skip


def _figure(figure: Figure) -> Html:
    state = STATES.get(figure.verdict)
    verdict: Child = (
        element("span", figure.verdict, class_=f"state {state}") if state else figure.why or MISSING
    )
    cells = [_value(figure, figure.before), _value(figure, figure.after), _change(figure), verdict]
    return element("tr", element("th", figure.name, scope="row"), *(element("td", cell) for cell in cells))


def _value(figure: Figure, value: Interval | None) -> Child:
    if value is None:
        return MISSING
    both = [side.value for side in (figure.before, figure.after) if side]
    if figure.unit in {"ms", "MB"}:
        return (time_unit if figure.unit == "ms" else size_unit)(both)(value.value)
    if figure.unit != "share":
        return f"{number(value.value, 4)} {figure.unit}"
    spread = "" if value.low == value.high else f"{100 * value.low:.2f} to {100 * value.high:.2f}"
    return noted(f"{100 * value.value:.2f}", spread)


def _change(figure: Figure) -> Child:
    change = figure.change
    if change is None:
        return MISSING
    if figure.unit != "share":
        return noted(f"{ratio(change.value)}×", ratio_range(change))
    spread = f"{signed(100 * change.low, 2)} to {signed(100 * change.high, 2)}"
    return noted(f"{signed(100 * change.value, 2)} points", spread)


def _moved(identifier: str, title: str, moved: Sequence[Moved]) -> Html:
    if not moved:
        return Html("")
    rows = [
        element("div", element("dt", _name(one)), element("dd", one.before or one.after)) for one in moved
    ]
    return section(identifier, title, element("dl", *rows, class_="reasons"))


def _changed(moved: Sequence[Moved]) -> Html:
    if not moved:
        return Html("")
    rows = [
        element("div", element("dt", _name(one)), element("dd", joined([one.before, " → ", one.after])))
        for one in moved
    ]
    return section("changed", "Candidates with another verdict", element("dl", *rows, class_="reasons"))


def _name(one: Moved) -> Html:
    return noted(element("bdi", one.name), f"{one.engine}, {one.options}")
