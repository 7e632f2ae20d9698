"""What holds the processors back: heat, a weak supply, too much current."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from farthing.sysfs import number, text

UNDER_VOLTAGE = "under-voltage"
FLAGS = (UNDER_VOLTAGE, "frequency capped", "throttled", "soft temperature limit")
"""Bits 0 to 3 of a Raspberry Pi's ``get_throttled``; 16 to 19 say that it happened since the start.

Source: https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd
"""
SLOWING = re.compile(
    r"Processor|.*(cpufreq|devfreq|throttle-alert|hot-surface-alert|-balanced)|intel_powerclamp"
)
"""Cooling devices that slow processors down, beside those that turn fans."""
COUNTERS = (
    ("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count", "processor too hot"),  # x86
    ("sys/class/hwmon/hwmon*/oc*_event_cnt", "over-current"),  # Jetson
)


class Throttle(NamedTuple):
    """What one source says.

    Attributes:
        known: whether it says anything; the other fields say nothing otherwise.
        now: what holds a processor back.
        before: what did since the device was started.
    """

    known: bool
    now: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


def joined(parts: Iterable[Throttle]) -> Throttle:
    """What several sources say together, each reason once."""
    said = [part for part in parts if part.known]
    now = dict.fromkeys(reason for part in said for reason in part.now)
    before = dict.fromkeys(reason for part in said for reason in part.before)
    return Throttle(bool(said), tuple(now), tuple(before))


def flags(bits: int | None) -> Throttle:
    """What ``get_throttled`` of a Raspberry Pi says; None where it was not asked."""
    if bits is None:
        return Throttle(False)
    now = tuple(reason for bit, reason in enumerate(FLAGS) if bits >> bit & 1)
    return Throttle(True, now, tuple(reason for bit, reason in enumerate(FLAGS, 16) if bits >> bit & 1))


class Throttling:
    """What sysfs says of throttling, with the counters of the last reading.

    Args:
        root: where ``/sys`` is.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._last: dict[Path, int] = {}

    def read(self) -> Throttle:
        """What holds the processors back; counters count as now if they went up since the last call."""
        return joined([cooling(self._root), supply(self._root), self._counters()])

    def _counters(self) -> Throttle:
        counts, now, before = {}, [], []
        for pattern, reason in COUNTERS:
            for file in self._root.glob(pattern):
                count = number(file)
                if count is not None:
                    counts[file] = count
                    now += [reason] if count > self._last.get(file, count) else []
                    before += [reason] if count > 0 else []
        self._last = counts
        return Throttle(bool(counts), tuple(now), tuple(before))


def cooling(root: Path) -> Throttle:
    """Cooling devices of the thermal framework (Linux, Documentation/driver-api/thermal/sysfs-api.rst)."""
    states: dict[str, int] = {}
    for device in sorted(root.glob("sys/class/thermal/cooling_device*")):
        kind, state = text(device / "type").strip(), number(device / "cur_state")
        if state is not None and SLOWING.match(kind):
            states[kind] = max(state, states.get(kind, 0))
    return Throttle(
        bool(states), tuple(f"cooling by {kind[:60]}" for kind, state in states.items() if state > 0)
    )


def supply(root: Path) -> Throttle:
    """The alarm of a Raspberry Pi's supply (Linux, Documentation/hwmon/raspberrypi-hwmon.rst)."""
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if text(chip / "name").strip() == "rpi_volt":
            alarm = number(chip / "in0_lcrit_alarm")
            return Throttle(alarm is not None, (UNDER_VOLTAGE,) if alarm else ())
    return Throttle(False)
