"""Target: the device a model is made for. Budget: what it may cost there."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from farthing.config import Section, canonical, read
from farthing.errors import ConfigError, FarthingError, TargetError, nearest
from farthing.files import digest

THIS = "this"
MOST_DROP = 0.5  # whoever writes more of a share means points
_X86 = (
    "mmx sse sse2 pni ssse3 sse4_1 sse4_2 sse4a popcnt bmi1 bmi2 avx f16c fma avx2 gfni vaes vpclmulqdq "
    "avx_vnni avx_ifma avx_vnni_int8 avx_vnni_int16 avx_ne_convert "
    "avx512f avx512cd avx512er avx512pf avx512bw avx512dq avx512vl avx512ifma avx512vbmi avx512_vbmi2 "
    "avx512_vnni avx512_bitalg avx512_vpopcntdq avx512_bf16 avx512_fp16 avx512_4vnniw avx512_4fmaps "
    "avx512_vp2intersect amx_tile amx_int8 amx_bf16 amx_fp16 amx_complex"
)
_ARM = (
    "vfp vfpv3 vfpv4 vfpd32 neon fp fphp asimd asimdhp asimdrdm asimdfhm asimddp fcma jscvt i8mm bf16 sve sve2 "
    "svei8mm svebf16 svef32mm svef64mm sme sme2 smei8i32 smef16f32 smeb16f32 smef32f32"
)
_RISCV = "m a f d c v zfh zfhmin zba zbb zbs zvfh zvfhmin zvfbfmin zvfbfwma zvbb zve32x zve32f zve64x zve64f zve64d"
OTHER = "other"
INSTRUCTION_SETS = {  # what vector and matrix kernels are chosen by, as Linux names it; none listed: any name
    **dict.fromkeys(("x86_64", "i686"), tuple(_X86.split())),
    **dict.fromkeys(("aarch64", "armv8l", "armv7l", "armv7", "armv6l"), tuple(_ARM.split())),
    **dict.fromkeys(("riscv64", "riscv32"), tuple(_RISCV.split())),
    **dict.fromkeys(("armv7e-m", "armv8-m", "armv8.1-m"), ("dsp", "fp", "fp64", "mve")),
    **dict.fromkeys(("armv6-m", "xtensa", "ppc64le", "s390x", "loongarch64", "mips64", OTHER), ()),
}
_ALSO_CALLED = {
    "amd64": "x86_64",
    "x64": "x86_64",
    "x86": "x86_64",
    "arm64": "aarch64",
    "armv8": "aarch64",
    "arm": "armv7l",
    "dotprod": "asimddp",
    "fp16": "asimdhp",
    "sse3": "pni",
    "vnni": "avx512_vnni",
    "rvv": "v",
}


class Target(Section, frozen=True, kw_only=True):
    """A device: what decides which models run well on it. None or empty means not known or not limited.

    Attributes:
        name: ``this`` for the present machine, else its name.
        arch: as ``uname -m`` says it: ``x86_64``, ``aarch64`` ...; for microcontrollers as compilers do, ``armv7e-m``;
            ``other`` for one not in `INSTRUCTION_SETS`.
        isa: instruction set extensions as Linux names them: ``avx2``, ``avx512_vnni``, ``asimddp`` ...; of
            those in `INSTRUCTION_SETS`, or of any name where it lists none.
        cores: processors this process may use.
        memory_mb: memory this process may use, MiB; of a microcontroller a fraction.
        cpu: model name of the processor, as in ``Cortex-A72``.
        engines: engines the target can run; empty means any.
        dtypes: element types the target computes with; empty means any.
        board: name of the board, as in ``Raspberry Pi 4 Model B Rev 1.4``.
        caches_kb: data caches from the first level outwards, each the largest a core has or shares, KiB.
        accelerators: what computes beside the processor, as in ``NVIDIA GPU`` or ``Coral Edge TPU``.
    """

    name: str
    arch: str
    isa: tuple[str, ...] = ()
    cores: int | None = None
    memory_mb: int | float | None = None
    cpu: str = ""
    engines: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    board: str = ""
    caches_kb: tuple[int, ...] = ()
    accelerators: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.cores is not None and self.cores < 1:
            raise ConfigError(f"cores must be from 1, not {self.cores}")
        if self.memory_mb is not None and not 0 < self.memory_mb < float("inf"):
            raise ConfigError(f"memory_mb must be above 0, not {self.memory_mb}")
        if self.arch not in INSTRUCTION_SETS:
            hint = nearest(_ALSO_CALLED.get(self.arch.lower(), self.arch), INSTRUCTION_SETS)
            raise ConfigError(f"no architecture is called {self.arch!r}; {hint}")
        known = INSTRUCTION_SETS[self.arch]
        unknown = [name for name in self.isa if known and name not in known]
        if unknown:
            hint = nearest(_ALSO_CALLED.get(unknown[0].lower(), unknown[0]), known)
            raise ConfigError(f"no instruction set of {self.arch} is called {unknown[0]!r}; {hint}")

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

    def is_machine(self, machine: Target) -> bool:
        """Whether it describes that machine: what decides speed is the same, and nothing else it says differs.

        Its name, engines and dtypes are what somebody wants of it, and do not count.
        """
        for name in ("arch", "isa", "cores", "memory_mb", "cpu"):
            if getattr(self, name) != getattr(machine, name):
                return False
        extra = [
            (getattr(self, name), getattr(machine, name)) for name in ("board", "caches_kb", "accelerators")
        ]
        return all(not own or own == other for own, other in extra)

    def held(self, budget: Budget) -> Budget:
        """The budget with a limit on size, if it has none as tight: files larger than the memory cannot be loaded."""
        if self.memory_mb is None:
            return budget
        most = self.memory_mb * 1.048576  # MiB to MB
        return msgspec.structs.replace(
            budget, size_mb=most if budget.size_mb is None else min(most, budget.size_mb)
        )

    @classmethod
    def find(cls, name: str) -> Target:
        """The present machine for ``this``, a device of the catalogue, or what a YAML, TOML or JSON file describes.

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
        from farthing import catalogue  # makes Targets

        if name in catalogue.names():
            return catalogue.device(name).target(name)
        raise TargetError(
            f"no target is called {name!r}; {nearest(name, [THIS, *catalogue.names()])}, or the path of a file that "
            "describes one"
        )

    @classmethod
    def detect(cls, root: Path = Path("/")) -> Target:
        """Describe the present machine from ``/proc``, ``/sys`` and ``/dev`` below ``root`` (`farthing.detection`)."""
        from farthing.detection import describe  # makes Targets

        return describe(root)


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
            if limit is not None and not (isinstance(limit, int | float) and 0 <= limit < float("inf")):
                raise ConfigError(f"{name} must be a number from 0, not {limit!r}")

    def of_share(self, metric: str) -> Budget:
        """The same budget, for a metric that is a share of 1.

        Raises:
            ConfigError: an accuracy limit that can only have been meant in points or per cent.
        """
        if self.accuracy_drop is not None and self.accuracy_drop >= MOST_DROP:
            raise ConfigError(
                f"budget accuracy_drop<={_short(self.accuracy_drop)} would let {metric} fall by "
                f"{_short(100 * self.accuracy_drop)} points: accuracy_drop is a fraction, one point is 0.01"
            )
        if self.accuracy_min is not None and self.accuracy_min > 1:
            raise ConfigError(
                f"budget accuracy_min>={_short(self.accuracy_min)} is more than {metric} can be: "
                "accuracy_min is a fraction, 90 per cent is 0.9"
            )
        return self

    def __str__(self) -> str:
        limits = [(name, getattr(self, name)) for name in BUDGET_NAMES]
        return ", ".join(
            f"{name}{_sense(name)}{_short(limit)}" for name, limit in limits if limit is not None
        )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``"accuracy_drop<=0.01, latency_ms<=5"``; a ``_min`` limit takes ``>=``.

        Raises:
            ConfigError: an unknown name (the nearest is suggested), the wrong comparison, or not a number.
        """
        limits: dict[str, float] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            match = re.fullmatch(r"(\w+)\s*(<=|>=|=|<|>)\s*([^\s<>=]\S*)", part)
            if not match:
                raise ConfigError(
                    f"budget {part!r} is not of the form NAME<=NUMBER, as in accuracy_drop<=0.01"
                )
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
        except ConfigError as error:
            raise ConfigError(f"budget: {error}") from error


def _short(number: float) -> str:
    """The shortest text that reads as the same number."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(float(number))


def _parse_number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"budget {name}: {text!r} is not a number (write 0.01, not 1%)") from error


BUDGET_NAMES = tuple(field.name for field in msgspec.structs.fields(Budget))


def _sense(name: str) -> str:
    return ">=" if name.endswith("_min") else "<="
