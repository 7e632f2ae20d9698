"""Memory and swap, as far as this process may use them, and the room on a disk."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from farthing.sysfs import memory_info, memory_limit, number, text


class Memory(NamedTuple):
    """Fields of a `Reading` that bear the same names."""

    memory_total_bytes: int | None
    memory_available_bytes: int | None
    memory_used_bytes: int | None
    swap_total_bytes: int | None
    swap_used_bytes: int | None


def memory(root: Path) -> Memory:
    """Memory of the machine, or of the control group if that is limited more tightly.

    A group's memory in use leaves out file pages that were not touched lately: they are dropped when it needs room.
    """
    info, limit = memory_info(root), memory_limit(root)
    total, available = info.get("MemTotal"), info.get("MemAvailable")
    if limit and (total is None or limit.bytes < total):
        total, used = limit.bytes, _group_used(limit.group)
        left = None if used is None else max(0, total - used)
        known = [amount for amount in (left, available) if amount is not None]
        available = min(known) if left is not None else None
    used = max(0, total - available) if total is not None and available is not None else None
    return Memory(total, available, used, *_swap(info, limit.group if limit else None))


def _group_used(group: Path) -> int | None:
    """Bytes in use by a group of version 2 or 1 (Linux, cgroup-v2.rst, cgroup-v1/memory.rst)."""
    for name, inactive in (
        ("memory.current", "inactive_file"),
        ("memory.usage_in_bytes", "total_inactive_file"),
    ):
        used = number(group / name)
        if used is not None:
            idle = re.search(rf"^{inactive} ([0-9]{{1,20}})$", text(group / "memory.stat"), re.M)
            return max(0, used - (int(idle[1]) if idle else 0))
    return None


def _swap(info: dict[str, int], group: Path | None) -> tuple[int | None, int | None]:
    """Swap altogether and in use: the machine's, or that of a limited group of version 2."""
    total, free = info.get("SwapTotal"), info.get("SwapFree")
    limit = number(group / "memory.swap.max") if group else None
    if group and limit is not None and total is not None and 0 <= limit < total:
        return limit, number(group / "memory.swap.current")
    return total, max(0, total - free) if total is not None and free is not None else None


class Disk(NamedTuple):
    """Fields of a `Reading` that bear the same names."""

    disk_used_bytes: int | None = None
    disk_available_bytes: int | None = None


def disk(path: Path) -> Disk:
    """The file system that holds ``path``."""
    try:
        found = os.statvfs(path)
    except (OSError, ValueError):
        return Disk()
    if not found.f_blocks:  # a file system without blocks, such as /proc
        return Disk()
    return Disk((found.f_blocks - found.f_bfree) * found.f_frsize, found.f_bavail * found.f_frsize)
