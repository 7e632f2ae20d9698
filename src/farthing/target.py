"""Target: the device a model is made for. Budget: what it may cost there."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import msgspec

from farthing.config import Section, canonical, read
from farthing.errors import ConfigError, FarthingError, TargetError, nearest
from farthing.files import digest

THIS = "this"
_FLAGS = (
    "sse4_1 avx avx2 fma f16c avx512f avx512bw avx512_vnni avx_vnni avx512_bf16 amx_int8 amx_bf16 "
    "asimd asimddp i8mm bf16 sve sve2"
).split()


class Target(Section, frozen=True, kw_only=True):
    """A device: what decides which models run well on it. None or empty means not known or not limited.

    Attributes:
        name: ``this`` for the present machine, else its name.
        arch: as ``uname -m`` says it: ``x86_64``, ``aarch64`` ...
        isa: instruction set extensions as Linux names them: ``avx2``, ``avx512_vnni``, ``asimddp`` ...
        cores: processors this process may use.
        memory_mb: memory this process may use, MiB.
        cpu: model name of the processor.
        engines: engines the target can run; empty means any.
        dtypes: element types the target computes with; empty means any.
    """

    name: str
    arch: str
    isa: tuple[str, ...] = ()
    cores: int | None = None
    memory_mb: int | None = None
    cpu: str = ""
    engines: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over all its fields."""
        return digest(canonical(self))

    @property
    def vnni(self) -> bool:
        """Whether x86 8-bit dot products accumulate in 32 bits (AVX512-VNNI or AVX-VNNI)."""
        return bool({"avx512_vnni", "avx_vnni"} & set(self.isa))

    def lacks(self, requires: tuple[str, ...]) -> tuple[str, ...]:
        """The instruction sets of a manifest's ``requires`` that this target does not have.

        ``vnni`` stands for either form of it on x86, and is no concern on other architectures.
        """
        have = {*self.isa, *(("vnni",) if self.vnni or self.arch != "x86_64" else ())}
        return tuple(name for name in requires if name not in have)

    @classmethod
    def find(cls, name: str) -> Target:
        """The present machine for ``this``, else the target described in a YAML, TOML or JSON file.

        Raises:
            TargetError: no target of that name, or a file that does not describe one.
        """
        if name == THIS:
            return cls.detect()
        path = Path(name)
        if path.suffix in {".yaml", ".yml", ".toml", ".json"}:
            try:
                return read(path, cls)
            except FarthingError as error:
                raise TargetError(str(error)) from error
        raise TargetError(
            f"no target is called {name!r}; {nearest(name, [THIS])}, or the path of a file that describes one"
        )

    @classmethod
    def detect(cls, root: Path = Path("/")) -> Target:
        """Describe the present machine from ``/proc`` and ``/sys`` below ``root``, control-group limits respected."""
        cpuinfo = _text(root / "proc/cpuinfo")
        flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.M)[:1]).split())
        model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.M)
        return cls(
            name=THIS,
            arch=platform.machine(),
            isa=tuple(flag for flag in _FLAGS if flag in flags),
            cores=_cores(root),
            memory_mb=_memory_mb(root),
            cpu=model[1].strip() if model else "",
        )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _cores(root: Path) -> int:
    """Processors this process may use: its affinity, cut by a control-group quota (v2, then v1)."""
    cores = len(os.sched_getaffinity(0))
    quota = re.match(r"(\d+) (\d+)", _text(root / "sys/fs/cgroup/cpu.max"))
    limit = int(quota[1]) / int(quota[2]) if quota else None
    if limit is None:
        used = _number(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = _number(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")
        limit = used / period if used and used > 0 and period else None
    return cores if limit is None else max(1, min(cores, int(limit)))


def _memory_mb(root: Path) -> int | None:
    """Memory this process may use: the machine's, cut by a control-group limit (v2, then v1)."""
    total = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo"), re.M)
    limits = [int(total[1]) << 10] if total else []
    for place in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _number(root / place)
        if limit is not None and limit > 0:
            limits.append(limit)
    return min(limits) >> 20 if limits else None


class Budget(Section, frozen=True, kw_only=True):
    """Limits on a model; None means no limit.

    Attributes:
        accuracy_drop: most that the task's metric may fall below the input model's (0.01 = one point).
        accuracy_min: least value of the task's metric.
        latency_ms: most p90 latency, single stream, batch 1, engine only, milliseconds.
        throughput_min: least samples per second, offline scenario.
        peak_memory_mb: most resident memory of a process that loads and runs the model, MB.
        size_mb: most bytes of the model files, MB of 10^6 bytes.
        energy_mj: most energy for one inference, millijoules.
    """

    accuracy_drop: float | None = None
    accuracy_min: float | None = None
    latency_ms: float | None = None
    throughput_min: float | None = None
    peak_memory_mb: float | None = None
    size_mb: float | None = None
    energy_mj: float | None = None

    def __post_init__(self) -> None:
        for name in BUDGET_NAMES:
            limit = getattr(self, name)
            if limit is not None and not (0 <= limit < float("inf")):
                raise ValueError(f"{name} must be a number from 0, not {limit}")

    def __str__(self) -> str:
        limits = [(name, getattr(self, name)) for name in BUDGET_NAMES]
        return ", ".join(f"{name}{_sense(name)}{limit:g}" for name, limit in limits if limit is not None)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``"accuracy_drop<=0.01, latency_ms<=5"``; a ``_min`` limit takes ``>=``.

        Raises:
            ConfigError: an unknown name (the nearest is suggested), the wrong comparison, or not a number.
        """
        limits: dict[str, float] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            match = re.fullmatch(r"(\w+)\s*(<=|>=|=|<|>)\s*(\S+)", part)
            if not match:
                raise ConfigError(f"budget {part!r} is not of the form NAME<=NUMBER, as in accuracy_drop<=0.01")
            name, sense, number = match.groups()
            if name not in BUDGET_NAMES:
                raise ConfigError(f"no budget is called {name!r}; {nearest(name, BUDGET_NAMES)}")
            if sense != _sense(name):
                raise ConfigError(f"budget {part!r}: write {name}{_sense(name)}{number}")
            if name in limits:
                raise ConfigError(f"budget {name} is given twice")
            limits[name] = _parse_number(name, number)
        try:
            return cls(**limits)
        except ValueError as error:
            raise ConfigError(f"budget: {error}") from error


def _parse_number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"budget {name}: {text!r} is not a number (write 0.01, not 1%)") from error


BUDGET_NAMES = tuple(field.name for field in msgspec.structs.fields(Budget))


def _sense(name: str) -> str:
    return ">=" if name.endswith("_min") else "<="
