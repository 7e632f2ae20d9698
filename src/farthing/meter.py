"""Energy meters and temperature sensors of the machine; a machine without one says so."""

from __future__ import annotations

from pathlib import Path

ZONES = "sys/class/powercap/intel-rapl:*"
THERMAL = "sys/class/thermal/thermal_zone*/temp"


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


def temperature(root: Path = Path("/")) -> float | None:
    """The hottest thermal zone below ``root`` (Linux, Documentation/driver-api/thermal/sysfs-api.rst), degrees Celsius.

    None where there is none, or none that can be read.
    """
    found = []
    for zone in sorted(root.glob(THERMAL)):
        try:
            found.append(int(zone.read_text()) / 1000)
        except (OSError, ValueError):  # a sensor that is off answers with an error
            continue
    return max(found, default=None)
