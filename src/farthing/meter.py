"""Energy meters and temperature sensors of the machine; a machine without one says so."""

from __future__ import annotations

from pathlib import Path

from farthing.config import Section
from farthing.sysfs import number, text

ZONES = "sys/class/powercap/intel-rapl:*"
THERMAL = "sys/class/thermal/thermal_zone*"
HWMON = "sys/class/hwmon/hwmon*/temp*_input"
PROCESSORS = ("coretemp", "k10temp", "zenpower", "via_cputemp", "cpu_thermal", "soc_thermal", "scpi_sensors")
"""Chips of hwmon that measure processors, where the kernel makes no thermal zone of them."""
ALARM = "PMIC"
"""Its zone on a Jetson says 50 or 100 degrees, whatever they are: an alarm level (Linux, max77620_thermal.c)."""
PLAUSIBLE = (-100.0, 250.0)


class Rapl:
    """Energy counters of the powercap interface (Linux, Documentation/power/powercap): whole packages, microjoules."""

    source = "RAPL package counters"

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]

    def read(self) -> list[int]:
        """The counters now, microjoules, one a package."""
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]

    def spent(self, start: list[int], end: list[int]) -> float:
        """Millijoules between two readings, one wrap of each counter allowed for."""
        return sum((b - a) % (limit + 1) for a, b, limit in zip(start, end, self._ranges, strict=True)) / 1000


def find_meter(root: Path = Path("/")) -> Rapl | None:
    """The machine's energy meter below ``root``; None if there is none or it may not be read."""
    try:
        zones = [zone for zone in sorted(root.glob(ZONES)) if _is_package(zone)]
        meter = Rapl(zones)
        meter.read()
    except (OSError, ValueError):
        return None
    return meter if zones else None


def _is_package(zone: Path) -> bool:
    """Whether a zone is a processor package: no part of one (``core``), nor the whole platform (``psys``)."""
    return (zone / "name").read_text().startswith("package")


class Temperature(Section, frozen=True, kw_only=True):
    """What one sensor says.

    Attributes:
        name: the type of its thermal zone, or its chip and label in hwmon.
        celsius: degrees Celsius.
        critical_c: the temperature at which the system switches itself off, as the sensor gives it.
        processor: whether it sits in or beside a processor: thermal zones, and the chips known for that.
    """

    name: str
    celsius: float
    critical_c: float | None = None
    processor: bool = False


def temperatures(root: Path = Path("/")) -> list[Temperature]:
    """Every sensor below ``root`` that answers: thermal zones, and sensors of hwmon that are no such zone.

    Sources: Linux, Documentation/driver-api/thermal/sysfs-api.rst and Documentation/hwmon/sysfs-interface.rst.
    """
    found, zones = [], set()
    for zone in sorted(root.glob(THERMAL)):
        name = text(zone / "type").strip() or zone.name
        zones.add(name.replace("-", "_"))
        if not name.startswith(ALARM):
            found += _sensor(name, zone / "temp", _critical(zone), processor=True)
    for sensor in sorted(root.glob(HWMON)):
        chip = text(sensor.with_name("name")).strip() or sensor.parent.name
        if chip not in zones:
            place = sensor.name.removesuffix("_input")
            label = text(sensor.with_name(f"{place}_label")).strip()
            critical = number(sensor.with_name(f"{place}_crit"))
            found += _sensor(f"{chip} {label}".strip(), sensor, critical, chip in PROCESSORS)
    return found


def _sensor(name: str, file: Path, critical: int | None, processor: bool) -> list[Temperature]:
    """One sensor; none if it does not answer, or with what drivers say where nothing is measured (-274, -256)."""
    milli = number(file)
    if milli is None or not PLAUSIBLE[0] < milli / 1000 < PLAUSIBLE[1]:
        return []
    limit = critical / 1000 if critical and 0 < critical / 1000 < PLAUSIBLE[1] else None
    return [Temperature(name=name, celsius=milli / 1000, critical_c=limit, processor=processor)]


def _critical(zone: Path) -> int | None:
    for kind in sorted(zone.glob("trip_point_*_type")):
        if text(kind).strip() == "critical":
            return number(kind.with_name(kind.name.removesuffix("type") + "temp"))
    return None


def temperature(root: Path = Path("/")) -> float | None:
    """The hottest sensor of a processor below ``root``, degrees Celsius; None where there is none that answers."""
    return max((sensor.celsius for sensor in temperatures(root) if sensor.processor), default=None)
