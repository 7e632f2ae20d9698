"""Watching a device for a while, and what came of it: plain data, for the report and for programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from farthing.config import Section
from farthing.device.watch.advice import Advice, Thresholds, advise
from farthing.device.watch.history import History, Span
from farthing.device.watch.probes import Probes, Reading


class Record(Section, frozen=True, kw_only=True):
    """A device watched for a while.

    Attributes:
        machine: what it is, for people.
        started: date and time of day, ISO 8601.
        seconds: from the first reading to the last.
        every_s: seconds between readings.
        count: readings taken.
        spans: what each quantity did; those with a ``count`` of 0 are unavailable.
        throttling: what held processors back -> in how many readings.
        judged: readings that could say whether something did.
        advice: what is not as it should be, by ``thresholds``.
        stride: of how many readings one is in ``readings``.
        readings: what was read, evenly spread.
    """

    machine: str
    started: str
    seconds: float
    every_s: float
    count: int
    spans: tuple[Span, ...]
    throttling: dict[str, int]
    judged: int
    advice: tuple[Advice, ...]
    thresholds: Thresholds
    stride: int
    readings: tuple[Reading, ...]


def readings(
    probes: Probes,
    every_s: float,
    for_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[Reading]:
    """Readings at even distances; one that took too long leaves out those it overran.

    Args:
        probes: what reads the device.
        every_s: seconds from one to the next, above 0.
        for_s: seconds from the first to the last; None goes on for ever.
        clock: seconds, never going back.
        wait: sleeps for so many seconds.
    """
    begin = clock()
    turn = 0
    while for_s is None or turn * every_s <= for_s + 1e-9:
        if (rest := begin + turn * every_s - clock()) > 0:
            wait(rest)
        yield probes.read()
        turn = max(turn + 1, int((clock() - begin) / every_s))


def recorded(history: History, machine: str, started: str, every_s: float, thresholds: Thresholds) -> Record:
    """What came of watching: the readings of a history, summed up and judged."""
    first = history.kept[0].time_s if history.kept else 0.0
    return Record(
        machine=machine,
        started=started,
        seconds=(history.last.time_s - first) if history.last else 0.0,
        every_s=every_s,
        count=history.count,
        spans=history.spans(),
        throttling=dict(history.throttling.most_common()),
        judged=history.judged,
        advice=advise(history, thresholds),
        thresholds=thresholds,
        stride=history.stride,
        readings=tuple(history.kept),
    )
