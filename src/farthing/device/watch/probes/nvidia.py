"""NVIDIA graphics processors: through NVML where ``nvidia-ml-py`` is installed, else through ``nvidia-smi``."""

from __future__ import annotations

import csv
import importlib
import re
from collections.abc import Callable
from typing import Any

from farthing.device.watch.probes.reading import Gpu
from farthing.device.watch.probes.tools import Tools

REASONS = {
    0x08: "GPU slowdown",
    0x20: "GPU too hot",
    0x40: "GPU too hot (hardware)",
    0x80: "GPU power brake",
}
"""Bits of NVML's clocks event reasons that heat or a weak supply sets (nvml.h); being idle, or at its limit of power,
is how a GPU is meant to run."""
FIELDS = (
    "name",
    "utilization.gpu",
    "clocks.sm",
    "memory.used",
    "memory.total",
    "temperature.gpu",
    "power.draw",
)
EVENTS = "clocks_throttle_reasons.active"


def reasons(bits: int | None) -> tuple[str, ...]:
    """What holds a GPU back."""
    return tuple(reason for bit, reason in REASONS.items() if bits and bits & bit)


class Nvidia:
    """NVIDIA graphics processors of this machine.

    Args:
        tools: where ``nvidia-smi`` is asked.
        library: gives the module ``pynvml``, initialised; None where there is none.
    """

    def __init__(self, tools: Tools, library: Callable[[], Any | None]) -> None:
        self._tools = tools
        self._library = library
        self._opened: list[Any | None] = []

    def read(self) -> tuple[Gpu, ...]:
        """Every GPU; none where there is no driver to say so."""
        if not self._opened:
            self._opened = [self._library()]
        library = self._opened[0]
        if library is not None:
            return by_nvml(library)
        query = "--query-gpu=" + ",".join(FIELDS)
        said = self._tools.ask("nvidia-smi", f"{query},{EVENTS}", "--format=csv,noheader,nounits")
        return by_smi(said or self._tools.ask("nvidia-smi", query, "--format=csv,noheader,nounits"))


def nvml() -> Any | None:
    """The module ``pynvml``, initialised; None if it is not installed, or finds no driver."""
    try:
        library: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        library.nvmlInit()
    except library.NVMLError:
        return None
    return library


def by_nvml(library: Any) -> tuple[Gpu, ...]:
    """Every GPU that NVML knows; what one does not support (a Jetson, next to everything) is None."""

    def ask(name: str, *arguments: Any) -> Any | None:
        try:
            return getattr(library, name)(*arguments)
        except (library.NVMLError, AttributeError):  # AttributeError: older than the call
            return None

    found = []
    for index in range(ask("nvmlDeviceGetCount") or 0):
        device = ask("nvmlDeviceGetHandleByIndex", index)
        if device is None:
            continue
        name, use, memory = (
            ask(f"nvmlDeviceGet{part}", device) for part in ("Name", "UtilizationRates", "MemoryInfo")
        )
        clock, celsius = ask("nvmlDeviceGetClockInfo", device, 0), ask("nvmlDeviceGetTemperature", device, 0)
        milliwatts, events = (
            ask(f"nvmlDeviceGet{part}", device) for part in ("PowerUsage", "CurrentClocksThrottleReasons")
        )
        found.append(
            Gpu(
                name=name.decode(errors="replace") if isinstance(name, bytes) else name or "NVIDIA GPU",
                percent=None if use is None else float(use.gpu),
                frequency_mhz=None if clock is None else float(clock),
                memory_used_bytes=None if memory is None else int(memory.used),
                memory_total_bytes=None if memory is None else int(memory.total),
                temperature_c=None if celsius is None else float(celsius),
                power_w=None if milliwatts is None else milliwatts / 1000,
                throttling=reasons(events),
            )
        )
    return tuple(found)


def by_smi(said: str) -> tuple[Gpu, ...]:
    """GPUs out of lines of values with commas, in the order of `FIELDS`; ``[N/A]`` and the like are None."""
    found = []
    for row in csv.reader(said.splitlines()):
        cells = [cell.strip() for cell in row]
        if len(cells) not in {len(FIELDS), len(FIELDS) + 1}:
            continue
        percent, megahertz, used, total, celsius, watts = map(_number, cells[1:7])
        events = re.fullmatch(r"0x([0-9a-fA-F]{1,16})", cells[7]) if len(cells) > 7 else None
        found.append(
            Gpu(
                name=cells[0][:100],
                percent=percent,
                frequency_mhz=megahertz,
                memory_used_bytes=None if used is None else int(used * (1 << 20)),
                memory_total_bytes=None if total is None else int(total * (1 << 20)),
                temperature_c=celsius,
                power_w=watts,
                throttling=reasons(int(events[1], 16) if events else None),
            )
        )
    return tuple(found)


def _number(cell: str) -> float | None:
    return float(cell) if re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,6})?", cell) else None
