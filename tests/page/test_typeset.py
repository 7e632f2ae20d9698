"""Figures and text as pages show them."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.page.typeset import clean, element, number, signed, size_unit, time_unit


class Parsed(HTMLParser):
    """What a browser's parser would make of it: elements with their attributes, and the text in them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(), st.text())
def test_an_element_holds_any_text(text: str, value: str) -> None:
    parsed = Parsed(element("p", text, title=value))
    assert parsed.elements == [("p", {"title": clean(value)})]
    assert parsed.text == clean(text)


@given(st.floats(min_value=1e-6, max_value=1e12))
def test_a_number_keeps_three_digits(value: float) -> None:
    read = float(number(value).replace(",", ""))
    assert read == pytest.approx(value, rel=0.0051)
    assert "e" not in number(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (None, "–"),
        (math.nan, "–"),
        (99.96, "100"),
        (0.9996, "1.00"),
        (1234567.0, "1,234,567"),
        (-2.5, "−2.50"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_signs_and_units() -> None:
    assert (signed(0.2, 2), signed(-0.2, 2), signed(0.0001, 2), signed(-0.0001, 2)) == (
        "+0.20",
        "−0.20",
        "0.00",
        "0.00",
    )
    assert time_unit([0.03, 0.5, None]).sign == "µs"
    assert time_unit([0.5, 40.0]).sign == "ms"
    assert time_unit([]).sign == "ms"
    assert size_unit([0.1, 0.4]).sign == "kB"
    assert size_unit([11.2, 44.0]).sign == "MB"
