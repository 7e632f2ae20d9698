"""What ``vcgencmd`` says on a Raspberry Pi.

Source: https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd
"""

from __future__ import annotations

import re
from typing import NamedTuple

from farthing.device.watch.probes.tools import Tools

COMMAND = "vcgencmd"


class Pi(NamedTuple):
    """What the firmware says; None where it says nothing.

    Attributes:
        celsius: temperature of the processor.
        core_v: volts of its core.
        arm_mhz: frequency of the ARM cores, as measured.
        throttled: the bits of ``get_throttled``.
    """

    celsius: float | None = None
    core_v: float | None = None
    arm_mhz: float | None = None
    throttled: int | None = None


def read(tools: Tools) -> Pi:
    """Ask the firmware; four short commands, or one where there is none to ask."""
    if not (said := tools.ask(COMMAND, "get_throttled")):
        return Pi()
    return Pi(
        celsius(tools.ask(COMMAND, "measure_temp")),
        volts(tools.ask(COMMAND, "measure_volts", "core")),
        megahertz(tools.ask(COMMAND, "measure_clock", "arm")),
        throttled(said),
    )


def celsius(said: str) -> float | None:
    """Degrees out of ``temp=48.3'C``."""
    found = re.search(r"^temp=(-?[0-9]{1,4}(?:\.[0-9]{1,6})?)'C", said, re.M)
    return float(found[1]) if found else None


def volts(said: str) -> float | None:
    """Volts out of ``volt=0.8500V``."""
    found = re.search(r"^volt=([0-9]{1,4}(?:\.[0-9]{1,6})?)V", said, re.M)
    return float(found[1]) if found else None


def megahertz(said: str) -> float | None:
    """Megahertz out of ``frequency(48)=1500398464``; 0 is how a clock says that it is not known."""
    found = re.search(r"^frequency\([0-9]{1,6}\)=([0-9]{1,12})\b", said, re.M)
    return int(found[1]) / 1e6 if found and int(found[1]) else None


def throttled(said: str) -> int | None:
    """Bits out of ``throttled=0x50005``."""
    found = re.search(r"^throttled=(?:0x)?([0-9a-fA-F]{1,8})\b", said, re.M)
    return int(found[1], 16) if found else None
