"""What the present machine is: read from ``/proc``, ``/sys`` and ``/dev``, control-group limits respected.

Everything takes a root directory, so that it can be tried on a tree of files. What cannot be read is not known.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from farthing.sysfs import cpu_quota, memory_info, memory_limit, number, text
from farthing.target import INSTRUCTION_SETS, OTHER, THIS, Target

_DETECTED = (
    "sse4_1 avx avx2 fma f16c avx512f avx512bw avx512_vnni avx_vnni avx512_bf16 amx_int8 amx_bf16 "
    "asimd asimddp i8mm bf16 sve sve2"
).split()
_ARM_PARTS = {
    "c07": "Cortex-A7",
    "c0f": "Cortex-A15",
    "d03": "Cortex-A53",
    "d04": "Cortex-A35",
    "d05": "Cortex-A55",
    "d07": "Cortex-A57",
    "d08": "Cortex-A72",
    "d09": "Cortex-A73",
    "d0a": "Cortex-A75",
    "d0b": "Cortex-A76",
    "d0c": "Neoverse-N1",
    "d0d": "Cortex-A77",
    "d40": "Neoverse-V1",
    "d41": "Cortex-A78",
    "d42": "Cortex-A78AE",
    "d44": "Cortex-X1",
    "d46": "Cortex-A510",
    "d47": "Cortex-A710",
    "d49": "Neoverse-N2",
    "d4f": "Neoverse-V2",
}
_NODES = (  # what a process may open
    ("apex_*", "Coral Edge TPU"),
    ("hailo*", "Hailo"),
    ("nvidia[0-9]*", "NVIDIA GPU"),
    ("nvhost-gpu", "NVIDIA GPU"),  # Jetson
    ("nvhost-nvdla*", "NVIDIA DLA"),
    ("ethosu*", "Arm Ethos-U"),
    ("rknpu*", "Rockchip NPU"),
    ("kfd", "AMD GPU"),
)
_PCI = {  # https://pci-ids.ucw.cz
    ("0x1ac1", "0x089a"): "Coral Edge TPU",
    ("0x1e60", "0x2864"): "Hailo",
}
_USB = {  # https://coral.ai/docs/accelerator/get-started: before and after its first use
    ("1a6e", "089a"): "Coral Edge TPU",
    ("18d1", "9302"): "Coral Edge TPU",
}
_MAKERS = {"0x8086": "Intel", "0x1022": "AMD", "0x1002": "AMD", "0x10de": "NVIDIA"}


def describe(root: Path) -> Target:
    """The present machine, as ``root`` shows it."""
    cpuinfo = text(root / "proc/cpuinfo")
    of_each = [set(line.split()) for line in re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.M)]
    flags = set.intersection(*of_each) if of_each else set()  # a process may run on every kind of core
    arch = platform.machine() if platform.machine() in INSTRUCTION_SETS else OTHER
    own = flags.intersection(INSTRUCTION_SETS[arch])  # an emulator may show the flags of what it runs on
    return Target(
        name=THIS,
        arch=arch,
        isa=tuple(flag for flag in _DETECTED if flag in own),
        cores=_cores(root),
        memory_mb=_memory_mb(root),
        cpu=_cpu(cpuinfo),
        board=_board(root),
        caches_kb=_caches_kb(root),
        accelerators=tuple(dict.fromkeys(_accelerators(root))),
    )


def _board(root: Path) -> str:
    """The model in the device tree, which boards with ARM processors have."""
    for place in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if name := text(root / place).strip("\0 \n"):
            return "".join(c if c.isprintable() else "?" for c in name)[:100]
    return ""


def _caches_kb(root: Path) -> tuple[int, ...]:
    """The largest data cache of each level, from the first outwards; a level that nothing says anything of ends it."""
    largest: dict[int, int] = {}
    for cache in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        level, size = number(cache / "level"), re.fullmatch(r"(\d+)([KM])", text(cache / "size").strip())
        if level and size and text(cache / "type").strip() in {"Data", "Unified"}:
            kib = int(size[1]) << (10 if size[2] == "M" else 0)
            largest[level] = max(largest.get(level, 0), kib)
    levels = [level for level in range(1, 5) if all(inner in largest for inner in range(1, level + 1))]
    return tuple(largest[level] for level in levels)


def _accelerators(root: Path) -> Iterator[str]:
    """What a process may open; and what sits on a bus, but has no driver."""
    found = [name for pattern, name in _NODES if any((root / "dev").glob(pattern))]
    for node in sorted((root / "dev/accel").glob("accel[0-9]*")):
        maker = text(root / "sys/class/accel" / node.name / "device/vendor").strip()
        found.append(f"{_MAKERS[maker]} NPU" if maker in _MAKERS else "NPU")
    for node in sorted((root / "dev/dri").glob("renderD[0-9]*")):
        maker = text(root / "sys/class/drm" / node.name / "device/vendor").strip()
        found += [f"{_MAKERS[maker]} GPU"] if maker in _MAKERS else []
    yield from found
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        name = _PCI.get((text(device / "vendor").strip(), text(device / "device").strip()), "")
        if name and name not in found:
            yield f"{name} (no driver)"
    for device in sorted((root / "sys/bus/usb/devices").glob("*")):
        name = _USB.get((text(device / "idVendor").strip(), text(device / "idProduct").strip()), "")
        if name:
            yield f"{name} (USB)"


def _cpu(cpuinfo: str) -> str:
    """The processor's name; ARM kernels give numbers (https://developer.arm.com, MIDR_EL1) of each kind of core."""
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.M)
    if model:
        return model[1].strip()
    makers = re.findall(r"^CPU implementer\s*:\s*0x(\w+)", cpuinfo, re.M)
    parts = re.findall(r"^CPU part\s*:\s*0x(\w+)", cpuinfo, re.M)
    kinds = dict.fromkeys(zip(makers, parts, strict=False))  # in order, each once
    names = [
        _ARM_PARTS.get(part, f"ARM part {part}") if maker == "41" else f"implementer {maker} part {part}"
        for maker, part in kinds
    ]
    return " + ".join(names)


def _cores(root: Path) -> int:
    """Processors this process may use: its affinity, cut by the tightest control-group quota, rounded down."""
    cores, quota = len(os.sched_getaffinity(0)), cpu_quota(root)
    return max(1, int(min(cores, quota.cores) if quota else cores))


def _memory_mb(root: Path) -> int | None:
    """Memory this process may use: the machine's, cut by the tightest control-group limit."""
    total, limit = memory_info(root).get("MemTotal"), memory_limit(root)
    known = [amount for amount in (total, limit.bytes if limit else None) if amount is not None]
    return max(1, min(known) >> 20) if known else None
