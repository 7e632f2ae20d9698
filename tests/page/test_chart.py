"""Charts: where the lines are, where they break, and that the axes cover them."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.page.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Series, over_time

Points = list[tuple[float, float | None]]


def drawn(html: str) -> list[list[list[tuple[float, float]]]]:
    """Of each series its unbroken stretches, in units of the drawing."""
    paths = [
        path.attrib["d"]
        for path in ET.fromstring(html).iter("path")
        if path.attrib["class"].startswith("series")
    ]
    return [
        [
            [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", stretch)]
            for stretch in re.findall(r"M[^M]*", path)
        ]
        for path in paths
    ]


def texts(html: str) -> list[str]:
    return [text.text or "" for text in ET.fromstring(html).iter("text")]


def test_a_line_is_where_its_values_are_and_breaks_where_they_are_missing() -> None:
    points: Points = [(10, 0.0), (11, 100.0), (12, None), (13, 50.0), (14, math.nan)]
    html = over_time("Use", "%", [Series("use", points)], most=100)
    [[first, second]] = drawn(html)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    assert first[0] == (LEFT, bottom)
    assert first[1] == pytest.approx((LEFT + (right - LEFT) / 4, TOP), abs=0.06)
    assert second == [pytest.approx((LEFT + (right - LEFT) * 3 / 4, (TOP + bottom) / 2), abs=0.06)]


def test_nothing_known_gives_nothing() -> None:
    assert over_time("Use", "%", []) == ""
    assert over_time("Use", "%", [Series("use", [(0, None), (1, math.inf)])], limit=5) == ""


def test_axes_have_round_numbers() -> None:
    html = over_time(
        "Power", "W", [Series("a", [(0, 3.1), (600, 11.0)]), Series("b", [(0, -0.4)])], limit=14.0
    )
    assert texts(html) == ["−5", "0", "5", "10", "15", "0 min", "2 min", "4 min", "6 min", "8 min", "10 min"]
    assert 'class="limit"' in html
    assert ">a<" in html, "a legend where there are several"
    seconds = over_time("Use", "%", [Series("use", [(0, 1.0), (3, 2.0)])])
    assert texts(seconds)[-4:] == ["0 s", "1 s", "2 s", "3 s"]


@given(
    st.lists(
        st.lists(
            st.tuples(st.floats(0, 1e7), st.one_of(st.none(), st.floats(-1e6, 1e9))), min_size=1, max_size=30
        ),
        min_size=1,
        max_size=8,
    ),
    st.one_of(st.none(), st.floats(0, 1e6)),
)
def test_every_point_is_inside(series: list[Points], limit: float | None) -> None:
    html = over_time(
        "a < b",
        "°C",
        [Series(f"{n}", sorted(points, key=lambda p: p[0])) for n, points in enumerate(series)],
        limit,
    )
    if not html:
        assert all(value is None for points in series for _, value in points)
        return
    for stretches in drawn(html):
        for x, y in (point for stretch in stretches for point in stretch):
            assert LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1
            assert TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1
    assert len(texts(html)) < 40


def test_text_is_escaped() -> None:
    html = over_time("<b>", '"', [Series("<i>", [(0, 1.0)]), Series("&", [(0, 2.0)])])
    assert "<b>" not in html
    assert "<i>" not in html
