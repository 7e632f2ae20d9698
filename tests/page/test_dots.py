"""Charts of rows: where the dots are, and that names stay readable."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from farthing.page.dots import LETTERS, NAMES, RIGHT, WIDTH, Dots, by_row

values = st.one_of(st.none(), st.floats(-1e6, 1e6))


def circles(html: str) -> list[dict[str, str]]:
    return [circle.attrib for circle in ET.fromstring(html).iter("circle")]


def test_a_dot_is_where_its_value_is() -> None:
    html = by_row(
        "Noise", "dB", ["first", "second"], [Dots("int8", [0.0, 100.0]), Dots("float16", [None, 50.0])]
    )
    dots = [(float(c["cx"]), c["cy"], c["class"]) for c in circles(html)]
    right = WIDTH - RIGHT
    assert [dot[0] for dot in dots] == [NAMES, right, (NAMES + right) / 2]
    assert dots[0][1] != dots[1][1] == dots[2][1]
    assert [dot[2] for dot in dots] == ["spot e0", "spot e0", "spot e1"]
    assert "second, float16: 50.0 dB" in html
    assert ">int8<" in html


def test_nothing_known_gives_nothing() -> None:
    assert by_row("Noise", "dB", ["a"], [Dots("int8", [None])]) == ""
    assert by_row("Noise", "dB", [], []) == ""
    assert by_row("Noise", "dB", ["a"], [Dots("int8", [math.nan])]) == ""


def test_the_middle_of_a_long_name_is_left_out_and_shown_when_pointed_at() -> None:
    name = "/model.22/" + "x" * 60 + "/Concat_3"
    html = by_row("Noise", "dB", [name], [Dots("int8", [3.0])])
    [text] = [text for text in ET.fromstring(html).iter("text") if text.find("title") is not None]
    title = text.find("title")
    assert title is not None
    assert title.text == name
    shown = title.tail or ""
    assert len(shown) == LETTERS
    assert shown.startswith("/model.22/")
    assert shown.endswith("/Concat_3")


@given(st.lists(st.tuples(values, values), min_size=1, max_size=20), st.booleans())
def test_every_dot_is_inside(rows: list[tuple[float | None, float | None]], zero: bool) -> None:
    first, second = zip(*rows, strict=True)
    html = by_row(
        "a < b", "°C", [f"<{n}>" for n in range(len(rows))], [Dots("1", first), Dots("2", second)], zero
    )
    known = [value for value in (*first, *second) if value is not None]
    assert (html == "") == (not known)
    if known:
        height = float(ET.fromstring(html).find("svg").attrib["viewBox"].split()[3])  # type: ignore[union-attr]
        assert len(circles(html)) == len(known)
        assert all(NAMES - 0.1 <= float(c["cx"]) <= WIDTH - RIGHT + 0.1 for c in circles(html))
        assert all(0 < float(c["cy"]) < height for c in circles(html))
