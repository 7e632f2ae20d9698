"""Power of rails, processors and batteries, and what of it is the device as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from farthing.device.watch.probes.reading import Rail
from farthing.meter import find_meter
from farthing.sysfs import number, text

INPUTS = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails of Jetson modules through which all power comes in (energymon's JetsonPowerRails.md; Thor's guide)."""
PARTS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
"""Rails that together are a module which measures no input."""
CHIPS = ("ina209", "ina219", "ina220", "ina226", "ina230", "ina231", "ina238", "ina260", "ina3221")
"""Power monitors by Texas Instruments, as hwmon names them."""


def monitors(root: Path) -> list[Rail]:
    """Rails that a power monitor measures (Linux, Documentation/hwmon/{ina2xx,ina3221}.rst), and those of JetPack 4."""
    found = []
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        name = text(chip / "name").strip()
        if name in CHIPS:
            found += _ina3221(chip) if name == "ina3221" else _ina2xx(chip, name)
    for chip in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*")):
        found += [
            _rail(text(chip / f"rail_name_{n}"), number(chip / f"in_power{n}_input"), 1e3) for n in range(3)
        ]
    return [
        rail for rail in found if rail is not None and rail.name != "NC"
    ]  # a channel that is not connected


def _ina3221(chip: Path) -> list[Rail | None]:
    """Three channels of volts and amperes; further ones are of shunts, and have no rail."""
    found = []
    for channel in (1, 2, 3):
        millivolts, milliamperes = number(chip / f"in{channel}_input"), number(chip / f"curr{channel}_input")
        known = (
            millivolts is not None
            and milliamperes is not None
            and text(chip / f"in{channel}_enable").strip() != "0"
        )
        power = (
            millivolts * milliamperes
            if known and millivolts is not None and milliamperes is not None
            else None
        )
        found.append(_rail(text(chip / f"in{channel}_label") or f"ina3221 channel {channel}", power, 1e6))
    return found


def _ina2xx(chip: Path, name: str) -> list[Rail | None]:
    label = text(chip / "label") or text(chip / "in1_label") or text(chip / "power1_label") or name
    return [_rail(label, number(chip / "power1_input"), 1e6, name)]


def _rail(name: str, power: int | None, parts: float, source: str = "ina3221") -> Rail | None:
    if power is None or not name.strip():
        return None
    return Rail(name=name.strip()[:60], source=source, power_w=power / parts)


class Packages:
    """Power of processor packages: energy since the last reading, by `farthing.meter`."""

    def __init__(self, root: Path) -> None:
        self._meter = find_meter(root)
        self._last: tuple[float, list[int]] | None = None

    def read(self, now: float) -> list[Rail]:
        """The packages as one rail; none in the first reading, and where there is no meter."""
        if self._meter is None:
            return []
        before, self._last = self._last, None
        try:
            energy = self._meter.read()
        except (OSError, ValueError):
            return []
        self._last = (now, energy)
        if before is None or now <= before[0]:
            return []
        watts = self._meter.spent(before[1], energy) / 1000 / (now - before[0])
        return [Rail(name="processor packages", source="RAPL", power_w=watts)]


class Battery(NamedTuple):
    """Fields of a `Reading` that bear the same names, and what the batteries give."""

    battery_percent: float | None
    battery_status: str
    rails: tuple[Rail, ...]


def battery(root: Path) -> Battery:
    """The batteries the device runs on (Linux, Documentation/ABI/testing/sysfs-class-power); not those of a mouse."""
    charges, states, rails = [], [], []
    for place in sorted(root.glob("sys/class/power_supply/*")):
        if text(place / "type").strip() != "Battery" or text(place / "scope").strip() == "Device":
            continue
        capacity, status = number(place / "capacity"), text(place / "status").strip()
        if capacity is not None and 0 <= capacity <= 100:
            full = number(place / "energy_full") or number(place / "charge_full") or 0
            charges.append((capacity, full))
        states += [status] if status else []
        watts = _given(place)
        if status == "Discharging" and watts is not None:
            rails.append(Rail(name=place.name, source="battery", power_w=watts))
    status = "Discharging" if "Discharging" in states else next(iter(states), "")
    return Battery(_together(charges), status[:30], tuple(rails))


def _together(charges: Sequence[tuple[int, int]]) -> float | None:
    """Charge of several batteries: by their sizes, if all are known."""
    if not charges:
        return None
    sizes = [full for _, full in charges] if all(full > 0 for _, full in charges) else [1] * len(charges)
    return sum(percent * size for (percent, _), size in zip(charges, sizes, strict=True)) / sum(sizes)


def _given(place: Path) -> float | None:
    """Watts that flow out of a battery; some drivers count them as negative."""
    power, current, voltage = (number(place / name) for name in ("power_now", "current_now", "voltage_now"))
    if power is not None:
        return abs(power) / 1e6
    return abs(current) * voltage / 1e12 if current is not None and voltage is not None else None


class Power(NamedTuple):
    """Fields of a `Reading` that bear the same names."""

    power_w: float | None
    power_of: str


def whole(rails: Iterable[Rail]) -> Power:
    """The power of as much of the device as is measured, and what that is.

    An input of the board, or all its parts; else what its batteries give; else its only rail; else the processors.
    Rails that may contain one another are never added up.
    """
    rails = tuple(rails)
    given = {
        source: [rail.power_w for rail in rails if rail.source == source] for source in ("battery", "RAPL")
    }
    monitored = {rail.name: rail.power_w for rail in rails if rail.source not in given}
    for names in (*((name,) for name in INPUTS), *PARTS):
        if all(name in monitored for name in names):
            return Power(sum(monitored[name] for name in names), " + ".join(names))
    if given["battery"]:
        return Power(sum(given["battery"]), "battery")
    if len(monitored) == 1:
        return Power(*next((watts, name) for name, watts in monitored.items()))
    if given["RAPL"]:
        return Power(sum(given["RAPL"]), "processor packages")
    return Power(None, "")
