"""Probes: what a device says of its processors, memory, disk, temperatures, power, battery and throttling.

Everything is read from files below a root directory, and from the tools of the board's maker; nothing needs a
package. What a device does not say is None: unavailable, never 0. Nothing here raises.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from farthing.device.watch.probes import nvidia, tegrastats, vcgencmd
from farthing.device.watch.probes.cpu import Cpu, frequencies, load
from farthing.device.watch.probes.memory import disk, memory
from farthing.device.watch.probes.power import Packages, battery, monitors, whole
from farthing.device.watch.probes.reading import Gpu, Rail, Reading
from farthing.device.watch.probes.tegrastats import Tegra
from farthing.device.watch.probes.throttling import Throttle, Throttling, flags, joined
from farthing.device.watch.probes.tools import Runner, Tools, run
from farthing.device.watch.probes.vcgencmd import Pi
from farthing.meter import Temperature, temperatures
from farthing.sysfs import number

__all__ = ["Gpu", "Probes", "Rail", "Reading", "Runner", "run"]

JETSON_LOAD = ("sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load")
"""Use of a Jetson's GPU in tenths of a percent; tegrastats reads it too."""


class Probes:
    """Reads a device, again and again. One thread at a time may use it.

    Args:
        root: where ``/proc`` and ``/sys`` are. Tools speak of this machine: for a tree of another one, give no runner.
        runner: what runs the tools (tegrastats, vcgencmd, nvidia-smi); None leaves them and NVML out, and a reading
            takes files alone.
        clock: seconds, never going back.
        disk: a path on the file system to watch; None for that of ``root``.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        runner: Runner | None = run,
        clock: Callable[[], float] = time.monotonic,
        disk: Path | None = None,
    ) -> None:
        self._root, self._clock, self._disk = root, clock, disk or root
        self._tools = Tools(runner, clock)
        self._cpu, self._packages, self._throttling = Cpu(root), Packages(root), Throttling(root)
        self._nvidia = nvidia.Nvidia(self._tools, nvidia.nvml if runner else lambda: None)

    def read(self) -> Reading:
        """The device now. Use of the processors, and power from energy counters, are since the last call."""
        now, root = self._clock(), self._root
        use, speeds, room, given = self._cpu.read(now), frequencies(root), memory(root), battery(root)
        tegra = tegrastats.parse(self._tools.ask("tegrastats", "--interval", "100", lines=1))
        pi = vcgencmd.read(self._tools)
        sensors = tuple(temperatures(root)) or tegra.temperatures or _of_pi(pi)
        rails = (*(monitors(root) or tegra.rails), *given.rails, *self._packages.read(now))
        gpus = self._gpus(tegra)
        held = joined([flags(pi.throttled), self._throttling.read(), _of(gpus)])
        power, power_of = whole(rails)
        return Reading(
            time_s=now,
            **use._asdict(),
            **load(root)._asdict(),
            **room._asdict(),
            memory_bandwidth_percent=tegra.emc_percent,
            **disk(self._disk)._asdict(),
            temperatures=sensors,
            temperature_c=max((sensor.celsius for sensor in sensors if sensor.processor), default=None),
            **{**speeds._asdict(), "cpu_mhz": pi.arm_mhz or speeds.cpu_mhz},
            core_v=pi.core_v,
            rails=rails,
            power_w=power,
            power_of=power_of,
            battery_percent=given.battery_percent,
            battery_status=given.battery_status,
            throttled=bool(held.now) if held.known else None,
            throttling=held.now,
            throttled_before=held.before,
            gpus=gpus,
        )

    def _gpus(self, tegra: Tegra) -> tuple[Gpu, ...]:
        """The one of a Jetson, whose NVML knows no figures of it; else those of NVIDIA's driver."""
        if tegra.gpu is not None:
            return (tegra.gpu,)
        for place in JETSON_LOAD:
            load = number(self._root / place)
            if load is not None and 0 <= load <= 1000:
                return (Gpu(name="Jetson", percent=load / 10),)
        return self._nvidia.read()


def _of_pi(pi: Pi) -> tuple[Temperature, ...]:
    return () if pi.celsius is None else (Temperature(name="vcgencmd", celsius=pi.celsius, processor=True),)


def _of(gpus: tuple[Gpu, ...]) -> Throttle:
    held = tuple(reason for gpu in gpus for reason in gpu.throttling)
    return Throttle(bool(held), held)
