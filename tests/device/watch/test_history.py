"""What is kept of readings, and what is said of all of them."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from farthing.device.watch.history import BATTERY, CPU, MEMORY, QUANTITIES, TEMPERATURE, History
from farthing.device.watch.probes import Reading
from farthing.meter import Temperature


def reading(number: int, **fields: object) -> Reading:
    return Reading(time_s=float(number), **fields)  # type: ignore[arg-type]


@given(st.lists(st.one_of(st.none(), st.floats(0, 100)), max_size=200))
def test_statistics_are_over_every_reading(values: list[float | None]) -> None:
    history = History(most=8)
    for number, value in enumerate(values):
        history.add(reading(number, cpu_percent=value))
    known = [value for value in values if value is not None]
    span = history.span(CPU)
    assert span.count == len(known)
    assert (span.low, span.high, span.last) == (
        min(known, default=None),
        max(known, default=None),
        known[-1] if known else None,
    )
    if span.mean is None:
        assert known == []
    else:
        assert math.isclose(span.mean, math.fsum(known) / len(known), rel_tol=1e-9, abs_tol=1e-9)


@given(st.integers(0, 1000), st.integers(2, 50))
def test_what_is_kept_is_bounded_and_evenly_spread(count: int, most: int) -> None:
    history = History(most)
    for number in range(count):
        history.add(reading(number))
    times = [one.time_s for one in history.kept]
    assert len(times) <= most
    assert times == [float(number) for number in range(0, count, history.stride)], "the first one stays"
    assert count < most or len(times) >= most // 2
    assert history.count == count
    assert (history.last.time_s if history.last else None) == (count - 1 if count else None)


def test_unavailable_is_no_value() -> None:
    history = History()
    history.add(reading(0))
    history.add(reading(1, memory_total_bytes=0, memory_used_bytes=0))
    assert [span.count for span in history.spans()] == [0] * len(QUANTITIES)
    assert history.span(MEMORY).mean is None
    assert history.judged == 0


def test_what_held_it_back_is_counted_and_the_sensor_nearest_its_limit_kept() -> None:
    history = History(most=2)
    for number in range(40):
        hot = Temperature(name="disk", celsius=80.0 if number == 21 else 40.0, critical_c=85.0)
        cpu = Temperature(name="cpu", celsius=90.0, critical_c=110.0)
        history.add(
            reading(
                number,
                temperatures=(cpu, hot, Temperature(name="free", celsius=99.0)),
                temperature_c=90.0,
                throttled=number % 4 == 0,
                throttling=("under-voltage",) if number % 4 == 0 else (),
                battery_percent=50.0,
            )
        )
    assert history.throttling == {"under-voltage": 10}
    assert history.judged == 40
    assert history.nearest is not None
    assert (history.nearest.name, history.nearest.celsius) == ("disk", 80.0), (
        "though that reading is not kept"
    )
    assert history.span(TEMPERATURE).high == 90
    assert history.span(BATTERY).last == 50
