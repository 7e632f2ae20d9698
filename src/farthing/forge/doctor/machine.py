"""The machine: cores, quota, memory, room on disks, and settings of threads that fight with ours."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import farthing
from farthing.forge.doctor.finding import Finding, ok, problem, warning
from farthing.forge.doctor.timing import surroundings, timing
from farthing.measure import machine_name
from farthing.sysfs import memory_info
from farthing.target import Target

MB = 1 << 20
ROOM_MB = 2048
FREE_MB = 1024
PINNING = ("KMP_AFFINITY", "GOMP_CPU_AFFINITY", "OMP_PROC_BIND", "OMP_PLACES")
COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_THREAD_LIMIT",
)


def machine(
    environment: Mapping[str, str], cache: Path, root: Path, timed_here: bool = True
) -> Iterator[Finding]:
    """Findings about this machine; what only spoils timings is left out where nothing is timed."""
    target = Target.detect(root)
    python = f"Python {sys.version.split()[0]}, Farthing {farthing.__version__}"
    yield ok("machine", "machine", f"{machine_name(target.cpu, target.cores)}; {python}")
    if timed_here:
        yield _cores(target)
        yield from timing("machine", surroundings(target, root))
    yield from _threads(environment, target)
    yield _memory(root)
    yield _cache(cache)
    yield _room("temporary files", Path(tempfile.gettempdir()), "the environment variable TMPDIR moves them")


def _cores(target: Target) -> Finding:
    """Whether a quota cuts the cores: it hands out slices of time, and whoever has used theirs up waits."""
    allowed, all_of_them = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    if target.cores is not None and target.cores < allowed:
        words = f"a control group's quota leaves {target.cores} of {allowed} cores: latencies will have a long tail"
        return warning(
            "machine", "cores", words, "measure without a quota: pin the container to whole cores instead"
        )
    if allowed < all_of_them:
        return ok("machine", "cores", f"{allowed} of {all_of_them}, by affinity")
    return ok("machine", "cores", f"{allowed}, no quota")


def _threads(environment: Mapping[str, str], target: Target) -> Iterator[Finding]:
    """Variables that overrule, or get in the way of, the threads that Farthing asks for."""
    pinned = [f"{name}={environment[name]}" for name in PINNING if environment.get(name)]
    counts = [f"{name}={environment[name]}" for name in COUNTS if environment.get(name)]
    active = environment.get("OMP_WAIT_POLICY", "").lower() == "active"
    if pinned or active:
        given = [*pinned, *(["OMP_WAIT_POLICY=active"] if active else [])]
        words = f"{', '.join(given)}: threads are bound or spin whatever Farthing asks for"
        yield warning(
            "machine", "threads", words, f"unset {' '.join(each.partition('=')[0] for each in given)}"
        )
    elif counts and (target.cores or 1) > 1:
        words = f"{', '.join(counts)}: training and conversion keep to that; engines get the threads that are asked for"
        yield ok("machine", "threads", words, "unset it to train with all cores")
    else:
        yield ok("machine", "threads", "no variable interferes")


def _memory(root: Path) -> Finding:
    sizes = memory_info(root)
    if "MemAvailable" not in sizes:
        return ok("machine", "memory", "unavailable")
    free, total = sizes["MemAvailable"] // MB, sizes.get("MemTotal", 0) // MB
    swapped = (sizes.get("SwapTotal", 0) - sizes.get("SwapFree", 0)) // MB
    words = f"{free:,} of {total:,} MiB available, {swapped:,} MiB swapped out"
    if free < FREE_MB:
        return warning("machine", "memory", words, "stop what takes memory: swapping spoils every timing")
    if swapped > total // 20:
        return warning(
            "machine", "memory", words, "something was swapped out: stop it, or expect slow first calls"
        )
    return ok("machine", "memory", words)


def _cache(cache: Path) -> Finding:
    """Whether results can be kept, and how much is."""
    there = next((place for place in (cache, *cache.parents) if place.exists()), Path("/"))
    mend = "give another directory in the environment variable FARTHING_CACHE, or mend its owner and mode"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return problem("machine", "cache", f"{cache} cannot be written: results would not be kept", mend)
    try:
        size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) / 1e6
        room = shutil.disk_usage(there).free // MB
    except OSError as error:
        return problem("machine", "cache", f"{cache} cannot be read: {error}", mend)
    words = f"{cache}: {size:,.0f} MB kept, {room:,} MiB of room"
    if room < ROOM_MB:
        return warning("machine", "cache", words, "farthing cache --clear, or make room on that disk")
    return ok("machine", "cache", words)


def _room(name: str, place: Path, hint: str) -> Finding:
    try:
        room = shutil.disk_usage(place).free // MB
    except OSError as error:
        return problem("machine", name, f"{place} cannot be used: {error.strerror or error}", hint)
    if room < ROOM_MB:
        return warning("machine", name, f"{place}: {room:,} MiB of room", f"make room there; {hint}")
    return ok("machine", name, f"{place}: {room:,} MiB of room")
