"""Watching for a while, and the page that comes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.config import plain
from farthing.device.watch.advice import Thresholds
from farthing.device.watch.history import History
from farthing.device.watch.probes import Gpu, Probes, Rail, Reading
from farthing.device.watch.record import Record, readings, recorded
from farthing.device.watch.report import render, verdict
from farthing.meter import Temperature
from farthing.testing import FakeClock


def record(*read: Reading, machine: str = "a board") -> Record:
    history = History()
    for reading in read:
        history.add(reading)
    return recorded(history, machine, "2026-11-21T15:00:00+00:00", 1.0, Thresholds())


def full(second: int, name: str = "cpu") -> Reading:
    return Reading(
        time_s=100.0 + second,
        cpu_percent=50.0,
        memory_total_bytes=100,
        memory_used_bytes=95,
        temperatures=(Temperature(name=name, celsius=60.0 + second, critical_c=105.0, processor=True),),
        temperature_c=60.0 + second,
        rails=(
            Rail(name=name, source="ina3221", power_w=5.0),
            Rail(name="part", source="ina3221", power_w=-0.1),
        ),
        power_w=5.0,
        power_of=name,
        cpu_by_core_mhz=(1500.0, None),
        gpus=(Gpu(name=name, percent=20.0),),
        throttled=True,
        throttling=(name,),
    )


# When it is read --------------------------------------------------------------------------------------------------


def watched(
    every: float, seconds: float | None, took: Callable[[int], float], most: int = 1000
) -> list[float]:
    """Moments of the readings, if the ``n``-th takes ``took(n)`` seconds."""
    clock, moments = FakeClock(50.0), []

    class Slow(Probes):
        def read(self) -> Reading:
            moments.append(clock())
            clock.advance(took(len(moments) - 1))
            return Reading(time_s=moments[-1])

    for _, _ in zip(
        range(most),
        readings(Slow(Path("/nowhere"), None), every, seconds, clock, clock.advance),
        strict=False,
    ):
        pass
    return [moment - 50 for moment in moments]


def test_readings_come_at_even_distances_however_long_they_take() -> None:
    assert watched(1.0, 3.0, lambda n: 0.25) == [0, 1, 2, 3]
    assert watched(0.1, 0.3, lambda n: 0.01) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert watched(1.0, 0.0, lambda n: 5.0) == [0], "one at least"
    assert watched(1.0, None, lambda n: 0.0, most=5) == [0, 1, 2, 3, 4], "without an end"


def test_one_that_takes_too_long_leaves_out_those_it_overran() -> None:
    assert watched(1.0, 6.0, lambda n: 2.5 if n == 1 else 0.0) == [0, 1, 3.5, 4, 5, 6]


# The page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_what_was_found_and_loads_nothing() -> None:
    html = render(record(full(0), full(1), full(2)))
    page = Page(html)
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert charts == [
        "CPU: from 50.0 to 50.0 %",
        "Memory: from 95.0 to 95.0 %",
        "Temperature: from 60.0 to 62.0 °C",
        "Power of cpu: from −0.100 to 5.00 W",
        "Processor frequency: from 1,500 to 1,500 MHz",
        "Graphics processors: from 20.0 to 20.0 %",
    ], "nothing is drawn of what is unavailable"
    assert "1 problem and 1 warning. 3 readings in 2.0 s." in page.text
    assert "held back in 3 of 3 readings: cpu" in page.text
    assert "unavailable" in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe", "object"}
    assert not re.search(r"(src|href)\s*=|url\(|@import", html)
    assert "default-src 'none'" in html
    assert not any("style" in attributes for _, attributes in page.tags), "the policy would refuse it"


def test_of_many_sensors_the_hottest_are_drawn_and_equal_names_told_apart() -> None:
    names = ["acpitz", "acpitz", "c", "d", "e", "f", "g", "hot"]
    sensors = tuple(
        Temperature(name=name, celsius=40.0 + place, processor=True) for place, name in enumerate(names)
    )
    page = Page(render(record(*(Reading(time_s=float(n), temperatures=sensors) for n in range(3)))))
    (chart,) = (attributes["aria-label"] for tag, attributes in page.tags if tag == "svg")
    assert chart == "Temperature, the 6 highest of 8: from 42.0 to 47.0 °C"
    drawn = page.text[page.text.index("6 highest of 8") : page.text.index("Summary")]
    assert "hot" in drawn
    assert "acpitz" not in drawn
    few = Page(render(record(*(Reading(time_s=float(n), temperatures=sensors[:2]) for n in range(3)))))
    assert "acpitz (2)" in few.text, "the hotter of two of one name is not lost"


def test_a_device_that_says_nothing_has_a_page_too() -> None:
    for found in (record(Reading(time_s=5.0)), record()):
        page = Page(render(found))
        assert not any(tag == "svg" for tag, _ in page.tags)
        assert "nothing stands out" in verdict(found).lower()
        assert "does not say" in verdict(found), "unavailable is not well"


@given(st.text(max_size=30))
def test_nothing_hostile_gets_out_of_its_place(name: str) -> None:
    hostile = f'{name}"><script>alert(1)</script>'
    page = Page(render(record(full(0, hostile), full(1, hostile), machine=hostile)))
    assert not any(tag == "script" for tag, _ in page.tags)
    render(record(full(0, hostile))).encode("utf-8")


def test_a_record_is_plain_data_that_reads_back() -> None:
    found = record(full(0), Reading(time_s=101.0), full(2))
    again = msgspec.json.decode(msgspec.json.encode(plain(found)), type=Record)
    assert again == found
    assert render(again) == render(found)
    assert found.readings[1].temperature_c is None, "null, not 0"
