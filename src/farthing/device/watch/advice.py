"""Whether a device is well, by thresholds that others use too, and what to do where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from farthing.config import Section
from farthing.device.watch.history import BATTERY, CAP, CPU, DISK, LOAD, MEMORY, QUOTA, TEMPERATURE, History
from farthing.device.watch.probes.throttling import UNDER_VOLTAGE

COOLER = "cool it (heat sink, fan, shade), or spend less: fewer threads, a smaller model, a lower power mode"
CALMER = "a smaller or quantized model (farthing optimize), fewer requests or frames, or a faster device"


class Thresholds(Section, frozen=True, kw_only=True):
    """From where on a quantity is worth a word.

    Attributes:
        cpu_percent: mean use. Prometheus' node mixin, ``cpuHighUsageThreshold``.
        load_per_core: mean load for each processor. The same, ``systemSaturationPerCoreThreshold``.
        quota_held_percent: mean share of periods cut by the quota. Kubernetes' mixin, ``cpuThrottlingPercent``.
        memory_percent: highest use. Prometheus' node mixin, ``memoryHighUtilizationThreshold``.
        disk_percent: highest use. The kubelet evicts when less than 10 % is left (``nodefs.available``).
        temperature_c: highest. A Raspberry Pi throttles from 80 °C on (its documentation, "Frequency management and
            thermal control"); other boards may be let become hotter.
        critical_margin_c: how near a sensor may come to its own critical temperature; a problem, not a warning.
        battery_percent, battery_empty_percent: charge while discharging: a warning, and a problem. UPower,
            ``PercentageLow`` and ``PercentageCritical``.
        cpu_cap_percent: what a governor or power mode should leave of the highest frequency.
    """

    cpu_percent: float = 90.0
    load_per_core: float = 2.0
    quota_held_percent: float = 25.0
    memory_percent: float = 90.0
    disk_percent: float = 90.0
    temperature_c: float = 80.0
    critical_margin_c: float = 5.0
    battery_percent: float = 20.0
    battery_empty_percent: float = 5.0
    cpu_cap_percent: float = 99.0


class Advice(Section, frozen=True, kw_only=True):
    """Something that is not as it should be.

    Attributes:
        level: a ``problem`` costs speed or data now; a ``warning`` may soon.
        quantity: what it is about.
        found: what was seen.
        next: what to do.
    """

    level: Literal["warning", "problem"]
    quantity: str
    found: str
    next: str


def advise(history: History, thresholds: Thresholds) -> tuple[Advice, ...]:
    """What is not as it should be, problems first. What is unavailable is not judged."""
    found = [*_held(history), *_heat(history, thresholds), *_charge(history, thresholds)]
    found += [*_use(history, thresholds), *_room(history, thresholds), *_cap(history, thresholds)]
    return tuple(sorted(found, key=lambda advice: advice.level))  # "problem" comes before "warning"


def _held(history: History) -> Iterator[Advice]:
    for reason, readings in history.throttling.most_common():
        remedy = (
            "use the supply and the cable that the board's maker names" if reason == UNDER_VOLTAGE else COOLER
        )
        share = f"in {readings} of {history.judged or readings} readings"
        yield Advice(
            level="problem", quantity="throttling", found=f"held back {share}: {reason}", next=remedy
        )
    last = history.last
    for reason in last.throttled_before if last else ():
        if reason not in history.throttling:
            yield Advice(
                level="warning",
                quantity="throttling",
                found=f"held back before, since the device was started: {reason}",
                next="watch it again under its real load",
            )


def _heat(history: History, thresholds: Thresholds) -> Iterator[Advice]:
    high, nearest = history.span(TEMPERATURE).high, history.nearest
    limit = nearest.critical_c if nearest else None
    if nearest and limit is not None and nearest.celsius >= limit - thresholds.critical_margin_c:
        found = f"{nearest.name} was at {nearest.celsius:.1f} °C; at {limit:.1f} °C the device switches itself off"
        yield Advice(level="problem", quantity=TEMPERATURE.name, found=found, next=COOLER)
    elif high is not None and high >= thresholds.temperature_c:
        found = f"up to {high:.1f} °C (threshold {thresholds.temperature_c:g})"
        yield Advice(level="warning", quantity=TEMPERATURE.name, found=found, next=COOLER)


def _charge(history: History, thresholds: Thresholds) -> Iterator[Advice]:
    left, last = history.span(BATTERY).last, history.last
    if (
        left is None
        or last is None
        or last.battery_status != "Discharging"
        or left > thresholds.battery_percent
    ):
        return
    yield Advice(
        level="problem" if left <= thresholds.battery_empty_percent else "warning",
        quantity=BATTERY.name,
        found=f"{left:.0f} % left, and discharging",
        next="charge it, or let the device do less: a smaller model, or less often",
    )


def _use(history: History, thresholds: Thresholds) -> Iterator[Advice]:
    use, load, held = (history.span(quantity).mean for quantity in (CPU, LOAD, QUOTA))
    cores = history.last.cpu_cores if history.last else None
    if use is not None and use >= thresholds.cpu_percent:
        found = f"{use:.0f} % in use on average, of {cores or 0:g} processors (threshold {thresholds.cpu_percent:g})"
        yield Advice(level="warning", quantity=CPU.name, found=found, next=CALMER)
    if load is not None and load >= thresholds.load_per_core:
        found = f"{load:.1f} threads run or wait for each processor (threshold {thresholds.load_per_core:g})"
        yield Advice(
            level="warning",
            quantity=LOAD.name,
            found=found,
            next="fewer threads or processes: more than processors only take turns, and wait longer",
        )
    if held is not None and held >= thresholds.quota_held_percent:
        yield Advice(
            level="warning",
            quantity=QUOTA.name,
            found=f"the quota of {cores or 0:g} processors stopped it in {held:.0f} % of the periods",
            next="raise it (docker run --cpus, systemd CPUQuota=), or use no more threads than it has processors",
        )


def _room(history: History, thresholds: Thresholds) -> Iterator[Advice]:
    memory, disk = history.span(MEMORY).high, history.span(DISK).high
    if memory is not None and memory >= thresholds.memory_percent:
        yield Advice(
            level="warning",
            quantity=MEMORY.name,
            found=f"up to {memory:.0f} % in use (threshold {thresholds.memory_percent:g})",
            next="a smaller model or batch, fewer processes, or more memory for the control group: "
            "with none left, the kernel ends a process",
        )
    if disk is not None and disk >= thresholds.disk_percent:
        yield Advice(
            level="warning",
            quantity=DISK.name,
            found=f"{disk:.0f} % in use (threshold {thresholds.disk_percent:g})",
            next="make room: old logs and models, and what `farthing cache` lists",
        )


def _cap(history: History, thresholds: Thresholds) -> Iterator[Advice]:
    low = history.span(CAP).low
    if low is not None and low < thresholds.cpu_cap_percent:
        yield Advice(
            level="warning",
            quantity=CAP.name,
            found=f"processors may run at no more than {low:.0f} % of their highest frequency",
            next="if that is not meant: raise scaling_max_freq (cpupower frequency-set --max), "
            "or another power mode (nvpmodel on a Jetson)",
        )
