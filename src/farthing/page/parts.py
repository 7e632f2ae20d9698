"""Parts that pages share: tables whose first column names the row, pairs of a term and its text, notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from farthing.page.typeset import Child, Html, element, section


def listing(heads: Sequence[str], rows: Iterable[Sequence[Child]]) -> Html:
    """A table that scrolls sideways where there is no room; the first cell of a row is its head."""
    head = element("tr", *(element("th", text, scope="col") for text in heads))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:]))
        for row in rows
    ]
    shown = element("table", element("thead", head), element("tbody", *body), class_="listing")
    return element("div", shown, class_="wide", tabindex=0, role="group")


def pairs(rows: Iterable[tuple[str, str]]) -> Html:
    """Terms and what there is to say of each; those without are left out."""
    lines = [element("div", element("dt", term), element("dd", text)) for term, text in rows if text]
    return element("dl", *lines, class_="pairs")


def notes(texts: Sequence[str]) -> Html:
    """A section of notes, if there are any."""
    return (
        section("notes", "Notes", element("ul", *(element("li", text) for text in texts)))
        if texts
        else Html("")
    )
