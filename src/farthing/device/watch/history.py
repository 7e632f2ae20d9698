"""Readings over time: what each quantity did, in memory that does not grow however long a device is watched."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from farthing.config import Section
from farthing.device.watch.probes import Reading
from farthing.meter import Temperature

KEPT = 2000


class Quantity(NamedTuple):
    """Something a reading says.

    Attributes:
        name: for people.
        unit: of its values.
        of: takes it out of a reading; None where that does not say.
    """

    name: str
    unit: str
    of: Callable[[Reading], float | None]


CPU = Quantity("CPU", "%", lambda reading: reading.cpu_percent)
LOAD = Quantity("load per processor", "", lambda reading: reading.load_per_core)
QUOTA = Quantity("periods cut by the quota", "%", lambda reading: reading.quota_held_percent)
MEMORY = Quantity("memory", "%", lambda reading: reading.memory_percent)
SWAP = Quantity("swap", "%", lambda reading: reading.swap_percent)
DISK = Quantity("disk", "%", lambda reading: reading.disk_percent)
TEMPERATURE = Quantity("temperature", "°C", lambda reading: reading.temperature_c)
POWER = Quantity("power", "W", lambda reading: reading.power_w)
BATTERY = Quantity("battery", "%", lambda reading: reading.battery_percent)
FREQUENCY = Quantity("CPU frequency", "MHz", lambda reading: reading.cpu_mhz)
CAP = Quantity("cap of the CPU frequency", "%", lambda reading: reading.cpu_cap_percent)
GPU = Quantity("GPU", "%", lambda reading: reading.gpu_percent)
BANDWIDTH = Quantity("memory controller", "%", lambda reading: reading.memory_bandwidth_percent)
QUANTITIES = (
    CPU,
    LOAD,
    QUOTA,
    MEMORY,
    SWAP,
    DISK,
    TEMPERATURE,
    POWER,
    BATTERY,
    FREQUENCY,
    CAP,
    GPU,
    BANDWIDTH,
)


class Span(Section, frozen=True, kw_only=True):
    """What a quantity did while it was watched.

    Attributes:
        quantity, unit: which one.
        count: readings that gave it; 0 means unavailable, and the other fields are None.
        low, mean, high, last: of its values.
    """

    quantity: str
    unit: str
    count: int = 0
    low: float | None = None
    mean: float | None = None
    high: float | None = None
    last: float | None = None

    def joined(self, value: float) -> Span:
        """The span with one value more."""
        mean = value if self.mean is None else self.mean + (value - self.mean) / (self.count + 1)
        return Span(
            quantity=self.quantity,
            unit=self.unit,
            count=self.count + 1,
            low=value if self.low is None else min(self.low, value),
            mean=mean,
            high=value if self.high is None else max(self.high, value),
            last=value,
        )


class History:
    """Readings, one after the other. Statistics are over all of them; to be drawn, some are kept, evenly spread.

    Args:
        most: readings kept at most. When there are more, every second one goes.

    Attributes:
        count: all readings.
        kept: those kept, in order.
        stride: how many readings stand behind one that is kept.
        last: the latest reading.
        nearest: the sensor that came nearest to its own critical temperature, as it was then.
        throttling: reading by reading, what held the processors back: reason -> readings.
        judged: readings that could say whether something did.
    """

    def __init__(self, most: int = KEPT) -> None:
        self._most = max(2, most)
        self._spans = {
            quantity.name: Span(quantity=quantity.name, unit=quantity.unit) for quantity in QUANTITIES
        }
        self.count, self.stride, self.judged = 0, 1, 0
        self.kept: list[Reading] = []
        self.last: Reading | None = None
        self.nearest: Temperature | None = None
        self.throttling: Counter[str] = Counter()

    def add(self, reading: Reading) -> None:
        """Take in the next reading."""
        for quantity in QUANTITIES:
            value = quantity.of(reading)
            if value is not None:
                self._spans[quantity.name] = self._spans[quantity.name].joined(value)
        sensors = [sensor for sensor in (self.nearest, *reading.temperatures) if sensor]
        self.nearest = min(sensors, key=_margin, default=None)
        self.judged += reading.throttled is not None
        self.throttling.update(reading.throttling)
        if self.count % self.stride == 0:
            self.kept.append(reading)
        if len(self.kept) > self._most:
            self.kept, self.stride = self.kept[::2], self.stride * 2
        self.count += 1
        self.last = reading

    def span(self, quantity: Quantity) -> Span:
        """What one quantity did."""
        return self._spans[quantity.name]

    def spans(self) -> tuple[Span, ...]:
        """What every quantity did."""
        return tuple(self._spans.values())


def _margin(sensor: Temperature) -> float:
    return math.inf if sensor.critical_c is None else sensor.critical_c - sensor.celsius
