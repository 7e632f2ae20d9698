from __future__ import annotations

import math
import threading
import time
from queue import Queue

from farthing.device.serving.alarm import Alarm


def test_it_rings_at_the_earliest_moment_and_at_those_the_ring_names() -> None:
    rings: Queue[float] = Queue()
    again = iter([time.monotonic() + 0.03, math.inf, math.inf])

    def ring() -> float:
        rings.put(time.monotonic())
        return next(again)

    alarm = Alarm(ring, time.monotonic, "bell")
    start = time.monotonic()
    alarm.at(start + 3600)
    alarm.at(start + 0.01)
    alarm.at(start + 1800)  # later than what is set: what the ring names counts
    assert rings.get(timeout=30) >= start + 0.01
    assert rings.get(timeout=30) >= start + 0.03
    alarm.at(-math.inf)
    rings.get(timeout=30)
    alarm.close()
    alarm.close()


def test_it_costs_no_thread_before_there_is_a_moment_and_none_after_closing() -> None:
    before = threading.active_count()
    alarm = Alarm(lambda: math.inf, time.monotonic, "bell")
    alarm.at(math.inf)
    assert threading.active_count() == before
    alarm.at(1e300)
    assert threading.active_count() == before + 1
    alarm.close()
    assert threading.active_count() == before
    alarm.at(0.0)
    assert threading.active_count() == before


def test_it_may_be_closed_while_it_rings() -> None:
    rang = threading.Event()

    def ring() -> float:
        alarm.close()
        rang.set()
        return time.monotonic()

    alarm = Alarm(ring, time.monotonic, "bell")
    alarm.at(0.0)
    assert rang.wait(30)
    alarm.close()
    assert not any(thread.name == "bell" for thread in threading.enumerate())
