"""Use of the processors since the last reading, load, and frequencies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from farthing.sysfs import CpuQuota, cpu_quota, number, text

_STAT = re.compile(r"^cpu([0-9]{1,5})((?: +[0-9]{1,20}){4,})", re.M)


class Times(NamedTuple):
    """Time a processor has spent, in ticks: busy, and altogether."""

    busy: int
    total: int


class GroupTimes(NamedTuple):
    """What a control group's own account says: CPU seconds, periods, and periods in which its quota stopped it."""

    group: Path
    seconds: float | None
    periods: int | None
    held: int | None


class Use(NamedTuple):
    """Fields of a `Reading` that bear the same names."""

    cpu_percent: float | None
    cpu_by_core_percent: tuple[float | None, ...]
    cpu_cores: float | None
    machine_cores: int | None
    quota_held_percent: float | None


class Cpu:
    """Use of the processors between one reading and the next (Linux, filesystems/proc.rst and cgroup-v2.rst).

    Time that a hypervisor gave to others counts as busy: this machine could not have it.

    Args:
        root: where ``/proc`` and ``/sys`` are.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._when = 0.0
        self._cores: dict[int, Times] = {}
        self._group: GroupTimes | None = None

    def read(self, now: float) -> Use:
        """Use since the last call.

        Args:
            now: seconds by any clock that does not go back.
        """
        cores, quota = core_times(self._root), cpu_quota(self._root)
        allowed = allowed_cores(self._root, cores)
        limited = quota is not None and quota.cores < len(allowed)
        group = group_times(self._root, quota) if quota and limited else None
        elapsed, cores_before, group_before = now - self._when, self._cores, self._group
        self._when, self._cores, self._group = now, cores, group
        if quota and limited:
            percent = _group_percent(group_before, group, elapsed * quota.cores)
        else:
            percent = _percent([(cores_before.get(core), cores[core]) for core in allowed])
        by_core = tuple(
            _percent([(cores_before.get(core), cores[core])]) if core in cores else None
            for core in range(max(cores, default=-1) + 1)
        )
        most = quota.cores if quota and limited else float(len(allowed))
        return Use(percent, by_core, most or None, len(cores) or None, _held_percent(group_before, group))


def core_times(root: Path) -> dict[int, Times]:
    """Ticks of each processor that is on, by number."""
    found = {}
    for core, fields in _STAT.findall(text(root / "proc/stat")):
        ticks = [int(field) for field in fields.split()][:8]  # what guests used is in the users' time already
        idle = ticks[3] + (ticks[4] if len(ticks) > 4 else 0)
        found[int(core)] = Times(sum(ticks) - idle, sum(ticks))
    return found


def allowed_cores(root: Path, cores: dict[int, Times]) -> set[int]:
    """Processors this process may run on; all, where that is not said."""
    listed = re.search(r"^Cpus_allowed_list:\s*([0-9,\-]+)$", text(root / "proc/self/status"), re.M)
    ranges = re.findall(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", listed[1]) if listed else []
    allowed = {core for first, last in ranges for core in range(int(first), int(last or first) + 1)}
    return allowed & set(cores) or set(cores)


def group_times(root: Path, quota: CpuQuota) -> GroupTimes:
    """The account of the group that has the quota; version 1 may keep the seconds in another hierarchy."""
    stat = dict(re.findall(r"^(\w+) ([0-9]{1,20})$", text(quota.group / "cpu.stat"), re.M))
    seconds = int(stat["usage_usec"]) / 1e6 if "usage_usec" in stat else None
    base = root / "sys/fs/cgroup"
    if seconds is None:
        inside = quota.group.relative_to(base).parts[1:]
        for place in (quota.group, base.joinpath("cpuacct", *inside)):
            nanoseconds = number(place / "cpuacct.usage")
            seconds = nanoseconds / 1e9 if seconds is None and nanoseconds is not None else seconds
    periods, held = stat.get("nr_periods"), stat.get("nr_throttled")
    return GroupTimes(quota.group, seconds, int(periods) if periods else None, int(held) if held else None)


def _percent(pairs: list[tuple[Times | None, Times]]) -> float | None:
    """Busy share between two accounts of the same processors; None where nothing passed between them."""
    both = [(before, after) for before, after in pairs if before is not None and after.total > before.total]
    total = sum(after.total - before.total for before, after in both)
    busy = sum(max(0, after.busy - before.busy) for before, after in both)
    return min(100.0, 100 * busy / total) if total else None


def _group_percent(before: GroupTimes | None, after: GroupTimes | None, most_seconds: float) -> float | None:
    if before is None or after is None or before.group != after.group or most_seconds <= 0:
        return None
    if before.seconds is None or after.seconds is None or after.seconds < before.seconds:
        return None
    return min(100.0, 100 * (after.seconds - before.seconds) / most_seconds)


def _held_percent(before: GroupTimes | None, after: GroupTimes | None) -> float | None:
    if before is None or after is None or before.group != after.group:
        return None
    if before.periods is None or after.periods is None or before.held is None or after.held is None:
        return None
    periods = after.periods - before.periods
    return 100 * min(periods, max(0, after.held - before.held)) / periods if periods > 0 else None


class Load(NamedTuple):
    """Fields of a `Reading` that bear the same names."""

    load_1min: float | None = None
    load_5min: float | None = None
    load_15min: float | None = None


def load(root: Path) -> Load:
    """Threads that run or wait to, as means of one, five and fifteen minutes."""
    found = re.match(
        r"([0-9]{1,9}\.[0-9]+) ([0-9]{1,9}\.[0-9]+) ([0-9]{1,9}\.[0-9]+) ", text(root / "proc/loadavg")
    )
    return Load(*map(float, found.groups())) if found else Load()


class Frequencies(NamedTuple):
    """Fields of a `Reading` that bear the same names."""

    cpu_by_core_mhz: tuple[float | None, ...]
    cpu_mhz: float | None
    cpu_cap_percent: float | None


def frequencies(root: Path) -> Frequencies:
    """What each processor was asked to run at, and how low its highest frequency is capped (Linux, cpufreq.rst)."""
    asked, caps = {}, []
    for place in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"):
        core = place.parent.name.removeprefix("cpu")
        kilohertz = number(place / "scaling_cur_freq")
        if core.isascii() and core.isdigit() and len(core) < 6:
            asked[int(core)] = kilohertz / 1000 if kilohertz is not None and kilohertz > 0 else None
        most, limit = number(place / "cpuinfo_max_freq"), number(place / "scaling_max_freq")
        if most and limit and most > 0 and limit > 0:
            caps.append(min(100.0, 100 * limit / most))
    by_core = tuple(asked.get(core) for core in range(max(asked, default=-1) + 1))
    fastest = max((each for each in by_core if each is not None), default=None)
    return Frequencies(by_core, fastest, min(caps, default=None))
