"""What ``tegrastats`` says: one line with everything, in the forms of JetPack 3 to 7.

Source: NVIDIA, Jetson Linux Developer Guide, "tegrastats Utility", releases 28 to 38; lines as boards print them are
among the tests. The forms differ in the suffix and number of the power figures (``3177/3177``, ``2399mW/2399mW``,
``5139mW/5139mW/5139mW``: now, mean, highest), in the case of the sensors' names, in one temperature or two, in the
frequencies of the GPU (``0%@76``, ``63%@[621]``, ``0%@[0,0]``, ``@[314,314,314]`` without use), and in processors
that are ``off``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from farthing.device.watch.probes.reading import Gpu, Rail
from farthing.meter import ALARM, PLAUSIBLE, Temperature

_MEMORY = re.compile(r"\b(RAM|SWAP) ([0-9]{1,9})/([0-9]{1,9})MB")
_CORES = re.compile(r"\bCPU \[([^\]]*)\](?:@([0-9]{1,6}))?", re.I)
_CORE = re.compile(r"([0-9]{1,3})%(?:@([0-9]{1,6}))?")
_GPU = re.compile(r"\bGR3D(?:_FREQ)? (?:([0-9]{1,3})%)?(?:@\[?([0-9]{1,6}(?:,[0-9]{1,6})*)\]?)?")
_EMC = re.compile(r"\bEMC(?:_FREQ)? ([0-9]{1,3})%")
_TEMPERATURE = re.compile(r"(?<![\w@])([A-Za-z]\w{0,40})@(-?[0-9]{1,6}(?:\.[0-9]{1,6})?)C")
_RAIL = re.compile(r"(?<!\S)([A-Za-z]\w{0,40}) (-?[0-9]{1,9})(?:mW(?:/-?[0-9]{1,9}mW)*|/-?[0-9]{1,9})(?!\S)")


class Tegra(NamedTuple):
    """One line. What it does not say is None or empty.

    Attributes:
        ram_used_bytes, ram_total_bytes, swap_used_bytes, swap_total_bytes: of the board.
        cores: use in percent and frequency in MHz of each processor; None and None for one that is off.
        emc_percent: use of the memory controller.
        gpu: the graphics processor.
        temperatures: sensors that are on.
        rails: power now.
    """

    ram_used_bytes: int | None = None
    ram_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    swap_total_bytes: int | None = None
    cores: tuple[tuple[float | None, float | None], ...] = ()
    emc_percent: float | None = None
    gpu: Gpu | None = None
    temperatures: tuple[Temperature, ...] = ()
    rails: tuple[Rail, ...] = ()


def parse(line: str) -> Tegra:
    """What a line says; nothing at all if it is none of tegrastats'."""
    sizes = {name: (int(used) << 20, int(total) << 20) for name, used, total in _MEMORY.findall(line)}
    if "RAM" not in sizes:
        return Tegra()
    emc = _EMC.search(line)
    temperatures, swap = tuple(_temperatures(line)), sizes.get("SWAP")
    return Tegra(
        ram_used_bytes=sizes["RAM"][0],
        ram_total_bytes=sizes["RAM"][1],
        swap_used_bytes=swap[0] if swap else None,
        swap_total_bytes=swap[1] if swap else None,
        cores=_cores(line),
        emc_percent=float(emc[1]) if emc else None,
        gpu=_gpu(line, {sensor.name.lower(): sensor.celsius for sensor in temperatures}),
        temperatures=temperatures,
        rails=tuple(_rails(line)),
    )


def _cores(line: str) -> tuple[tuple[float | None, float | None], ...]:
    found = _CORES.search(line)
    if not found:
        return ()
    cores = [_CORE.fullmatch(core.strip()) for core in found[1].split(",")]
    return tuple(
        (float(core[1]), float(core[2] or found[2]) if core[2] or found[2] else None)
        if core
        else (None, None)
        for core in cores
    )


def _gpu(line: str, temperatures: dict[str, float]) -> Gpu | None:
    found = _GPU.search(line)
    if not found:
        return None
    frequencies = [float(part) for part in found[2].split(",")] if found[2] else []
    return Gpu(
        name="Jetson",
        percent=float(found[1]) if found[1] else None,
        frequency_mhz=max(frequencies, default=None),
        temperature_c=temperatures.get("gpu"),
    )


def _temperatures(line: str) -> list[Temperature]:
    found = [(name, float(celsius)) for name, celsius in _TEMPERATURE.findall(line)]
    return [
        Temperature(name=name, celsius=celsius, processor=True)
        for name, celsius in found
        if PLAUSIBLE[0] < celsius < PLAUSIBLE[1] and not name.startswith(ALARM)  # -256: a sensor that is off
    ]


def _rails(line: str) -> list[Rail]:
    found = [(name, int(milliwatts) / 1000) for name, milliwatts in _RAIL.findall(line)]
    return [Rail(name=name, source="tegrastats", power_w=watts) for name, watts in found if name != "NC"]
