"""Small files of ``/proc`` and ``/sys``: what they say, or that they say nothing; and the limits of control groups.

Everything takes the directory that stands for ``/``, so that it can be tried on a tree of files. Nothing here raises:
a file that is missing, vanishes, is forbidden or holds nonsense says nothing.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_UNLIMITED = 1 << 60
"""From here on a number of bytes means that there is no limit: control groups of version 1 say so with a huge one."""


def text(path: Path) -> str:
    """What a file says; empty if it says nothing."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """The whole number that a file holds; None if it holds none."""
    found = text(path).strip()
    return int(found) if re.fullmatch(r"-?[0-9]{1,30}", found) else None


def groups(root: Path, controller: str) -> list[Path]:
    """Directories of the control groups this process is in, innermost first, of both kinds (v2 and v1).

    In a container the groups are often mounted as the root, whatever ``/proc/self/cgroup`` says.
    """
    base = root / "sys/fs/cgroup"
    found = []
    for line in text(root / "proc/self/cgroup").splitlines():
        controllers, _, inside = line.partition(":")[2].partition(":")
        mounts = [base, base / "unified"] if not controllers else [base / controller, base / controllers]
        if not controllers or controller in controllers.split(","):
            own = PurePosixPath(inside.lstrip("/"))
            found += [
                mount / group for mount in mounts for group in (own, *own.parents) if ".." not in group.parts
            ]
    return [*dict.fromkeys([*found, base, base / controller])]


class CpuQuota(NamedTuple):
    """The CPU time a control group may use.

    Attributes:
        cores: CPU seconds a second.
        group: its directory.
    """

    cores: float
    group: Path


def cpu_quota(root: Path) -> CpuQuota | None:
    """The tightest CPU quota of the control groups this process is in; None if there is none."""
    found = []
    for group in groups(root, "cpu"):
        quota = re.match(r"([0-9]{1,18}) ([0-9]{1,18})\b", text(group / "cpu.max"))
        used, period = number(group / "cpu.cfs_quota_us"), number(group / "cpu.cfs_period_us")
        if quota and int(quota[1]) and int(quota[2]):
            found.append(CpuQuota(int(quota[1]) / int(quota[2]), group))
        elif used and used > 0 and period and period > 0:
            found.append(CpuQuota(used / period, group))
    return min(found, key=lambda one: one.cores, default=None)


class MemoryLimit(NamedTuple):
    """The memory a control group may use, and the group's directory."""

    bytes: int
    group: Path


def memory_limit(root: Path) -> MemoryLimit | None:
    """The tightest memory limit of the control groups this process is in; None if there is none."""
    found = []
    for group in groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = number(group / name)
            if limit is not None and 0 < limit < _UNLIMITED:
                found.append(MemoryLimit(limit, group))
    return min(found, key=lambda one: one.bytes, default=None)


def memory_info(root: Path) -> dict[str, int]:
    """Fields of ``/proc/meminfo`` that are sizes, in bytes."""
    lines = re.findall(r"^(\w+):\s*([0-9]{1,15}) kB$", text(root / "proc/meminfo"), re.M)
    return {name: int(kib) << 10 for name, kib in lines}


def load_average(root: Path) -> float | None:
    """Processes that ran or wanted to, on average over the last minute; None if it is not said."""
    found = re.match(r"([0-9]{1,9}\.?[0-9]*) ", text(root / "proc/loadavg"))
    return float(found[1]) if found else None


def governors(root: Path) -> tuple[str, ...]:
    """What sets the clocks of the processors, each once; empty if the kernel does not tell."""
    places = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    return tuple(sorted({text(place).strip() for place in places} - {""}))


def turbo(root: Path) -> bool | None:
    """Whether processors may run faster than their nominal clock; None if the kernel does not tell."""
    cpu = root / "sys/devices/system/cpu"
    intel, other = text(cpu / "intel_pstate/no_turbo").strip(), text(cpu / "cpufreq/boost").strip()
    if intel:
        return intel != "1"
    return {"1": True, "0": False}.get(other)
