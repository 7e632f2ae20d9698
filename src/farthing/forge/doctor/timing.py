"""What spoils a timing, on the machine where models are timed: load, clock, heat; and whether energy can be metered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from farthing.forge.doctor.finding import Area, Finding, ok, warning
from farthing.meter import find_meter, temperature
from farthing.sysfs import governors, load_average, turbo
from farthing.target import Target

HOT = 80.0


class Surroundings(NamedTuple):
    """What a machine says of itself; None or empty where it does not.

    Attributes:
        cores: that it may use.
        load: processes that wanted them, on average over the last minute.
        governors: what sets its clocks.
        turbo: whether they may go above the nominal one.
        celsius: of its hottest sensor.
        meter: what tells its energy.
    """

    cores: int
    load: float | None
    governors: tuple[str, ...]
    turbo: bool | None
    celsius: float | None
    meter: str


def surroundings(target: Target, root: Path) -> Surroundings:
    """Those of this machine."""
    meter = find_meter(root)
    return Surroundings(
        cores=target.cores or 1,
        load=load_average(root),
        governors=governors(root),
        turbo=turbo(root),
        celsius=temperature(root),
        meter=meter.source if meter else "",
    )


def timing(area: Area, here: Surroundings) -> Iterator[Finding]:
    """Findings about a machine where models are timed."""
    yield _load(area, here)
    yield _clock(area, here)
    yield _heat(area, here)
    yield ok(area, "energy", here.meter or "unavailable: no meter that this user may read")


def _load(area: Area, here: Surroundings) -> Finding:
    if here.load is None:
        return ok(area, "load", "unavailable")
    if here.load > 0.5 * here.cores:
        words = f"{here.load:.1f} processes wanted {here.cores} cores in the last minute: timings would be of the crowd"
        return warning(area, "load", words, "stop what else runs before anything is timed")
    return ok(area, "load", f"{here.load:.1f} in the last minute")


def _clock(area: Area, here: Surroundings) -> Finding:
    """The governor and turbo: what makes two runs of one model differ."""
    hint = "" if here.turbo is None else f", turbo {'on' if here.turbo else 'off'}"
    if not here.governors:
        return ok(area, "clock", f"unavailable: the kernel does not tell its governor{hint}")
    if here.governors != ("performance",):
        words = f"governor {', '.join(here.governors)}{hint}: clocks follow the load, and timings with them"
        return warning(area, "clock", words, "sudo cpupower frequency-set -g performance, while measuring")
    mend = "switch turbo off for figures that repeat; leave it on for figures as in use" if here.turbo else ""
    return ok(area, "clock", f"governor performance{hint}", mend)


def _heat(area: Area, here: Surroundings) -> Finding:
    if here.celsius is None:
        return ok(area, "temperature", "unavailable: no sensor")
    words = f"{here.celsius:.0f} degrees Celsius"
    if here.celsius >= HOT:
        mend = "let it cool, or cool it better, before anything is timed"
        return warning(area, "temperature", f"{words}: processors slow down there", mend)
    return ok(area, "temperature", words)
