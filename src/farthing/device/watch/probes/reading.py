"""What a device says of itself at one moment. A quantity that cannot be read is None: unavailable, never 0."""

from __future__ import annotations

from farthing.config import Section
from farthing.meter import Temperature


class Rail(Section, frozen=True, kw_only=True):
    """A supply whose power is measured.

    Attributes:
        name: of the rail, as the board's maker calls it; else the chip's.
        source: what measured it: ``ina3221``, ``RAPL``, ``battery``, ``tegrastats``.
        power_w: watts; a rail at rest may read slightly below 0.
    """

    name: str
    source: str
    power_w: float


class Gpu(Section, frozen=True, kw_only=True):
    """A graphics processor.

    Attributes:
        name: the model; ``Jetson`` for the one inside a Jetson, which shares the memory of the CPU.
        percent: time in which it computed.
        throttling: what holds it back.
    """

    name: str
    percent: float | None = None
    frequency_mhz: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttling: tuple[str, ...] = ()


class Reading(Section, frozen=True, kw_only=True):
    """A device at one moment. None, or an empty tuple, where the device does not say.

    Attributes:
        time_s: when, in seconds by the clock of the probes.
        cpu_percent: use since the last reading, of all that this process may use: of the control group's quota where
            there is one, else of the processors it may run on. None in the first reading.
        cpu_by_core_percent: use of each processor of the machine, by number; None for one that is off.
        cpu_cores: what 100 % of ``cpu_percent`` is, in processors.
        machine_cores: processors of the machine that are on.
        quota_held_percent: scheduling periods since the last reading in which the quota stopped the control group.
        load_1min, load_5min, load_15min: threads of the whole machine that run or wait to.
        memory_total_bytes: the machine's, or the control group's limit if that is lower.
        memory_available_bytes: what new work can have without swapping.
        memory_used_bytes: what is not available.
        swap_total_bytes, swap_used_bytes: the machine's, or the control group's limit and use.
        memory_bandwidth_percent: use of the memory controller (Jetson).
        disk_used_bytes, disk_available_bytes: of the file system watched; what only root may use is neither.
        temperatures: every sensor that answers.
        temperature_c: the hottest processor sensor, degrees Celsius.
        cpu_by_core_mhz: the frequency each processor was asked to run at.
        cpu_mhz: the frequency measured (Raspberry Pi); else the highest of ``cpu_by_core_mhz``.
        cpu_cap_percent: what governor, power mode or heat leave of the highest frequency, where they leave least.
        core_v: voltage of the processor's core (Raspberry Pi).
        rails: every supply measured.
        power_w: watts of as much of the device as is measured; ``power_of`` says of what.
        battery_percent: charge of all batteries together.
        battery_status: as the kernel says: ``Charging``, ``Discharging``, ``Full``, ``Not charging``, ``Unknown``.
        throttled: whether heat or a weak supply holds a processor back now; None where nothing would say so.
        throttling: by what.
        throttled_before: what did since the device was started.
        gpus: graphics processors.
    """

    time_s: float
    cpu_percent: float | None = None
    cpu_by_core_percent: tuple[float | None, ...] = ()
    cpu_cores: float | None = None
    machine_cores: int | None = None
    quota_held_percent: float | None = None
    load_1min: float | None = None
    load_5min: float | None = None
    load_15min: float | None = None
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_used_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    memory_bandwidth_percent: float | None = None
    disk_used_bytes: int | None = None
    disk_available_bytes: int | None = None
    temperatures: tuple[Temperature, ...] = ()
    temperature_c: float | None = None
    cpu_by_core_mhz: tuple[float | None, ...] = ()
    cpu_mhz: float | None = None
    cpu_cap_percent: float | None = None
    core_v: float | None = None
    rails: tuple[Rail, ...] = ()
    power_w: float | None = None
    power_of: str = ""
    battery_percent: float | None = None
    battery_status: str = ""
    throttled: bool | None = None
    throttling: tuple[str, ...] = ()
    throttled_before: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()

    @property
    def memory_percent(self) -> float | None:
        """Memory in use, of what there is."""
        return _percent(self.memory_used_bytes, self.memory_total_bytes)

    @property
    def swap_percent(self) -> float | None:
        """Swap in use; None where there is no swap."""
        return _percent(self.swap_used_bytes, self.swap_total_bytes)

    @property
    def disk_percent(self) -> float | None:
        """Disk in use, of what may be used: as ``df`` says it."""
        if self.disk_used_bytes is None or self.disk_available_bytes is None:
            return None
        return _percent(self.disk_used_bytes, self.disk_used_bytes + self.disk_available_bytes)

    @property
    def load_per_core(self) -> float | None:
        """Threads that run or wait to, for each processor of the machine; the mean of a minute."""
        return (
            self.load_1min / self.machine_cores if self.load_1min is not None and self.machine_cores else None
        )

    @property
    def gpu_percent(self) -> float | None:
        """Use of the busiest graphics processor."""
        return max((gpu.percent for gpu in self.gpus if gpu.percent is not None), default=None)


def _percent(part: int | None, whole: int | None) -> float | None:
    return 100 * part / whole if part is not None and whole else None
