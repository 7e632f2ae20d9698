from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.config import Section, convert, to_yaml
from farthing.errors import ConfigError, TargetError
from farthing.options import EngineOptions
from farthing.target import BUDGET_NAMES, Budget, Target

XEON = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz
flags\t\t: fpu sse4_1 avx f16c fma avx2 avx512f avx512bw avx512_vnni
"""
LAPTOP = "processor\t: 0\nmodel name\t: 12th Gen\nflags\t\t: sse4_1 avx avx2 fma avx_vnni\n\n" * 4
OLD = "processor\t: 0\nmodel name\t: Atom\nflags\t\t: fpu sse4_1\n"
PI4 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""
PI5 = PI4.replace("0xd08", "0xd0b").replace("cpuid", "cpuid asimdrdm lrcpc dcpop asimddp")
BIG_LITTLE = (
    "processor\t: 0\nFeatures\t: asimd asimddp i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd05\n\n"
    "processor\t: 4\nFeatures\t: asimd asimddp i8mm bf16 sve2\nCPU implementer\t: 0x41\nCPU part\t: 0xd41\n"
)
APPLE = "processor\t: 0\nFeatures\t: asimd asimddp\nCPU implementer\t: 0x61\nCPU part\t: 0x022\n"


def machine(root: Path, cpuinfo: str = XEON, tree: Mapping[str, str | int] | None = None) -> Path:
    """A tree of /proc and /sys; a name that begins with ``@`` lies in the root of the control groups."""
    contents = {
        "proc/cpuinfo": cpuinfo,
        "proc/meminfo": "MemTotal:       16384000 kB\nMemFree: 1 kB\n",
        **(tree or {}),
    }
    for name, text in contents.items():
        place = root / name.replace("@", "sys/fs/cgroup/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(str(text))
    return root


SERVICE = {"proc/self/cgroup": "0::/system.slice/door.service"}


@pytest.mark.parametrize(
    ("cpuinfo", "cpu", "has", "lacks", "vnni"),
    [
        (XEON, "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", {"avx512_vnni", "avx2"}, {"amx_int8"}, True),
        (LAPTOP, "12th Gen", {"avx_vnni", "fma"}, {"avx512f"}, True),
        (OLD, "Atom", {"sse4_1"}, {"avx"}, False),
        (PI4, "Cortex-A72", {"asimd"}, {"asimddp"}, False),
        (PI5, "Cortex-A76", {"asimd", "asimddp"}, {"i8mm"}, False),
        (BIG_LITTLE, "Cortex-A55 + Cortex-A78", {"asimddp", "i8mm"}, {"bf16", "sve2"}, False),
        (APPLE, "implementer 61 part 022", {"asimddp"}, set(), False),
        ("", "", set(), {"avx2", "asimd"}, False),
        ("\x00\xff nonsense", "", set(), {"avx2"}, False),
    ],
    ids=["xeon", "laptop", "atom", "pi4", "pi5", "big.LITTLE", "apple", "none", "nonsense"],
)
def test_processors(
    tmp_path: Path,
    cpuinfo: str,
    cpu: str,
    has: set[str],
    lacks: set[str],
    vnni: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64" if "Features" in cpuinfo else "x86_64")
    found = Target.detect(machine(tmp_path, cpuinfo))
    assert found.cpu == cpu
    assert has <= set(found.isa)
    assert not lacks & set(found.isa)
    assert found.vnni is vnni
    assert found.name == "this"


HERE = len(os.sched_getaffinity(0))


def test_an_emulator_may_show_the_flags_of_what_it_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert Target.detect(machine(tmp_path, XEON)).isa == ()


@pytest.mark.skipif(HERE < 2, reason="needs two processors to cut")
@pytest.mark.parametrize(
    ("tree", "cores"),
    [
        ({}, HERE),
        ({"@cpu.max": "max 100000"}, HERE),
        ({"@cpu.max": "100000 100000"}, 1),
        ({"@cpu.max": "150000 100000"}, 1),
        ({"@cpu.max": "20000 100000"}, 1),
        ({"@cpu.max": "100000 0"}, HERE),
        ({"@cpu/cpu.cfs_quota_us": 100000, "@cpu/cpu.cfs_period_us": 100000}, 1),
        ({"@cpu/cpu.cfs_quota_us": -1, "@cpu/cpu.cfs_period_us": 100000}, HERE),
        (  # a systemd service: the quota is on the service's own group
            {**SERVICE, "@system.slice/door.service/cpu.max": "50000 100000"},
            1,
        ),
        (  # ... or on the slice around it
            {**SERVICE, "@system.slice/cpu.max": "50000 100000"},
            1,
        ),
        (  # another service's quota is none of ours
            {**SERVICE, "@system.slice/other.service/cpu.max": "50000 100000"},
            HERE,
        ),
        (  # version 1, controllers mounted together
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc",
                "@cpu,cpuacct/docker/abc/cpu.cfs_quota_us": 100000,
                "@cpu,cpuacct/docker/abc/cpu.cfs_period_us": 100000,
            },
            1,
        ),
        ({"proc/self/cgroup": "0::/../../../escape\nnonsense\n::::", "etc/cpu.max": "1 1"}, HERE),
    ],
)
def test_cores_are_cut_by_control_groups(tmp_path: Path, tree: dict[str, str | int], cores: int) -> None:
    assert Target.detect(machine(tmp_path, tree=tree)).cores == cores


@pytest.mark.parametrize(
    ("tree", "memory_mb"),
    [
        ({}, 16000),
        ({"proc/meminfo": ""}, None),
        ({"@memory.max": "max"}, 16000),
        ({"@memory.max": 512 << 20}, 512),
        ({"@memory.max": 64 << 30}, 16000),
        ({"@memory/memory.limit_in_bytes": 256 << 20}, 256),
        ({"@memory/memory.limit_in_bytes": 9223372036854771712}, 16000),
        ({"proc/meminfo": "", "@memory/memory.limit_in_bytes": 9223372036854771712}, None),
        (
            {"proc/self/cgroup": "0::/a/b", "@a/b/memory.max": 300 << 20, "@a/memory.max": 200 << 20},
            200,
        ),
        ({"proc/self/cgroup": "2:memory:/d/a", "@memory/d/a/memory.limit_in_bytes": 128 << 20}, 128),
        ({"proc/self/cgroup": "0::/a", "@unified/a/memory.max": 100 << 20}, 100),
    ],
)
def test_memory_is_cut_by_control_groups(
    tmp_path: Path, tree: dict[str, str | int], memory_mb: int | None
) -> None:
    assert Target.detect(machine(tmp_path, tree=tree)).memory_mb == memory_mb


def test_an_empty_root_is_a_machine_nothing_is_known_of(tmp_path: Path) -> None:
    found = Target.detect(tmp_path)
    assert (found.isa, found.memory_mb, found.cpu, found.cores) == ((), None, "", HERE)


def test_this_machine() -> None:
    found = Target.find("this")
    assert found == Target.detect()
    assert found.digest == Target.detect().digest
    assert found.cores
    assert found.memory_mb
    assert found.memory_mb > 100


def test_a_target_is_read_from_a_file(tmp_path: Path) -> None:
    door = Target(
        name="door", arch="aarch64", isa=("asimd",), cores=4, memory_mb=1024, engines=("onnxruntime",)
    )
    (tmp_path / "door.yaml").write_text(to_yaml(door))
    assert Target.find(str(tmp_path / "door.yaml")) == door
    assert door.digest != Target(name="door", arch="aarch64").digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a", "missing required field `arch`"),
        ("name: a\narch: aarch64\ncors: 3", "unknown key 'cors'; did you mean 'cores'"),
        ("name: a\narch: aarch64\ncores: 0", "cores must be from 1, not 0"),
        ("name: a\narch: aarch64\nmemory_mb: -5", "memory_mb must be above 0, not -5"),
        ("name: a\narch: x86-64", "no architecture is called 'x86-64'; did you mean 'x86_64'"),
        ("name: a\narch: AMD64", "no architecture is called 'AMD64'; did you mean 'x86_64'"),
        ("name: a\narch: arm64", "no architecture is called 'arm64'; did you mean 'aarch64'"),
        ("name: a\narch: riscv", "no architecture is called 'riscv'; did you mean 'riscv(32|64)'"),
        ("name: a\narch: z80", "no architecture is called 'z80'; Known: .*, other, "),
        ("name: a\narch: x86_64\nisa: [avx2, avx512vnni]", "'avx512vnni'; did you mean 'avx512_vnni'"),
        ("name: a\narch: x86_64\nisa: [VNNI]", "'VNNI'; did you mean 'avx512_vnni'"),
        ("name: a\narch: aarch64\nisa: [dotprod]", "'dotprod'; did you mean 'asimddp'"),
        (
            "name: a\narch: aarch64\nisa: [neno]",
            "no instruction set of aarch64 is called 'neno'; did you mean 'neon'",
        ),
        (
            "name: a\narch: aarch64\nisa: [avx2]",
            "no instruction set of aarch64 is called 'avx2'; .*Known: asimd, ",
        ),
        ("name: a\narch: riscv64\nisa: [rvv]", "'rvv'; did you mean 'v'"),
    ],
)
def test_files_that_describe_no_target(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(TargetError, match=message):
        Target.find(str(tmp_path / "t.yaml"))
    with pytest.raises(TargetError, match="cannot read"):
        Target.find(str(tmp_path / "absent.yaml"))


def test_an_architecture_that_is_not_listed_has_instruction_sets_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("name: dsp\narch: other\nisa: [hvx]")
    assert Target.find(str(tmp_path / "t.yaml")).isa == ("hvx",)


def test_a_machine_that_is_not_listed_is_described_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "alpha")
    assert Target.detect(machine(tmp_path)).arch == "other"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("thsi", "did you mean 'this'"),
        ("raspberry-4", "did you mean 'raspberry-pi-4'"),
        ("zx80", "Known: alif"),
    ],
)
def test_an_unknown_target(name: str, hint: str) -> None:
    with pytest.raises(TargetError, match=f"no target is called '{name}'; .*{hint}.*path of a file"):
        Target.find(name)


def test_what_a_manifest_requires_is_held_against_the_target() -> None:
    old, new = (Target(name="t", arch="x86_64", isa=isa) for isa in (("avx2",), ("avx2", "avx_vnni")))
    arm = Target(name="t", arch="aarch64", isa=("asimd",))
    assert [target.lacks(("vnni",)) for target in (old, new, arm)] == [("vnni",), (), ()]
    assert arm.lacks(("asimd", "asimddp")) == ("asimddp",)
    assert old.lacks(()) == ()


# --- budgets


limits = st.floats(min_value=0, allow_nan=False, allow_infinity=False) | st.integers(0, 10**6)
budgets = st.builds(Budget, **{name: st.none() | limits for name in BUDGET_NAMES})


@given(budgets)
def test_a_budget_reads_back_from_its_text(budget: Budget) -> None:
    assert Budget.parse(str(budget)) == budget
    assert Budget.parse(str(budget).replace(",", " ,  ").replace("=", "= ")) == budget


def test_the_issue_s_example() -> None:
    budget = Budget.parse("accuracy_drop<=0.01, latency_ms<=5, size_mb<=1")
    assert budget == Budget(accuracy_drop=0.01, latency_ms=5.0, size_mb=1.0)
    assert str(budget) == "accuracy_drop<=0.01, latency_ms<=5, size_mb<=1"
    assert Budget.parse("throughput_min >= 1e3, accuracy_min>=.9").throughput_min == 1000
    assert Budget.parse(" , ") == Budget()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acuracy_drop<=0.01", "no budget is called 'acuracy_drop'; did you mean 'accuracy_drop'"),
        ("latency<=5", "did you mean 'latency_ms'"),
        ("latency_ms>=5", "write latency_ms<=5"),
        ("latency_ms<5", "write latency_ms<=5"),
        ("accuracy_min<=0.9", "write accuracy_min>=0.9"),
        ("latency_ms<=5, latency_ms<=6", "latency_ms is given twice"),
        ("latency_ms<=5ms", "'5ms' is not a number"),
        ("accuracy_drop<=1%", r"'1%' is not a number \(write 0.01, not 1%\)"),
        ("size_mb", "is not of the form NAME<=NUMBER"),
        ("size_mb<=", "is not of the form"),
        ("size_mb<=1 2", "is not of the form"),
        ("size_mb<=-1", "size_mb must be a number from 0, not -1"),
        ("size_mb<=nan", "must be a number from 0"),
        ("size_mb<=inf", "must be a number from 0"),
    ],
)
def test_budgets_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy_drop<=1", r"accuracy_drop<=1 would let top1 fall by 100 points: .* one point is 0\.01"),
        ("accuracy_drop<=0.5", "would let top1 fall by 50 points"),
        ("accuracy_min>=90", r"accuracy_min>=90 is more than top1 can be: .* 90 per cent is 0\.9"),
    ],
)
def test_limits_in_points_are_refused_for_a_share(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget.parse(text).of_share("top1")


def test_limits_that_a_share_may_have() -> None:
    for text in ("accuracy_drop<=0.49", "accuracy_drop<=0", "accuracy_min>=1, size_mb<=90", ""):
        assert Budget.parse(text).of_share("top1") == Budget.parse(text)


@given(st.text(max_size=30) | st.text(st.sampled_from(list("size_mb<=>,. 01e-")), max_size=20))
def test_any_text_is_a_budget_or_a_config_error(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except ConfigError:
        return
    assert all(re.fullmatch(r"\w+[<>]=\S+", part) for part in filter(None, str(budget).split(", ")))


# --- what else a machine has


def cache_tree(cpu: int, sizes: Mapping[tuple[int, str], str]) -> dict[str, str | int]:
    """The files of a processor's caches: (level, type) -> size."""
    tree: dict[str, str | int] = {}
    for number, ((level, kind), size) in enumerate(sizes.items()):
        place = f"sys/devices/system/cpu/cpu{cpu}/cache/index{number}"
        tree |= {f"{place}/level": f"{level}\n", f"{place}/type": f"{kind}\n", f"{place}/size": f"{size}\n"}
    return tree


PI4_TREE = {
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    **cache_tree(0, {(1, "Data"): "32K", (1, "Instruction"): "48K", (2, "Unified"): "1024K"}),
    "sys/bus/usb/devices/2-1/idVendor": "18d1\n",
    "sys/bus/usb/devices/2-1/idProduct": "9302\n",
    "sys/bus/usb/devices/usb1/idVendor": "1d6b\n",
    "sys/bus/usb/devices/usb1/idProduct": "0002\n",
}
ORIN_TREE = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    **cache_tree(0, {(1, "Data"): "64K", (2, "Unified"): "256K", (3, "Unified"): "2048K"}),
    **cache_tree(5, {(1, "Data"): "64K", (2, "Unified"): "256K", (3, "Unified"): "2M"}),
    "dev/nvhost-gpu": "",
    "dev/nvhost-ctrl": "",
}
CONTAINER_TREE = {
    **cache_tree(0, {(1, "Data"): "48K", (2, "Unified"): "2M", (3, "Unified"): "24M"}),
    "@memory.max": 512 << 20,
    "dev/accel/accel0": "",
    "sys/class/accel/accel0/device/vendor": "0x8086\n",
    "dev/dri/renderD128": "",
    "sys/class/drm/renderD128/device/vendor": "0x8086\n",
    "sys/bus/pci/devices/0000:00:02.0/vendor": "0x8086\n",
    "sys/bus/pci/devices/0000:00:02.0/device": "0x7d55\n",
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x1e60\n",
    "sys/bus/pci/devices/0000:01:00.0/device": "0x2864\n",
}


@pytest.mark.parametrize(
    ("cpuinfo", "tree", "board", "caches", "accelerators", "memory_mb"),
    [
        (PI4, PI4_TREE, "Raspberry Pi 4 Model B Rev 1.4", (32, 1024), ("Coral Edge TPU (USB)",), 16000),
        (PI5, ORIN_TREE, "NVIDIA Jetson Orin Nano Developer Kit", (64, 256, 2048), ("NVIDIA GPU",), 16000),
        (LAPTOP, CONTAINER_TREE, "", (48, 2048, 24576), ("Intel NPU", "Intel GPU", "Hailo (no driver)"), 512),
        (LAPTOP, {**CONTAINER_TREE, "dev/hailo0": "", "dev/apex_0": ""}, "", (48, 2048, 24576),
         ("Coral Edge TPU", "Hailo", "Intel NPU", "Intel GPU"), 512),
        (XEON, {"dev/nvidia0": "", "dev/nvidia1": "", "dev/nvidiactl": ""}, "", (), ("NVIDIA GPU",), 16000),
        (XEON, {"dev/nvidiactl": "", "dev/accelerate": ""}, "", (), (), 16000),
        (XEON, cache_tree(0, {(2, "Unified"): "1M", (3, "Unified"): "nonsense"}), "", (), (), 16000),
        (PI4, {"sys/firmware/devicetree/base/model": "Board\x1b[31m\0"}, "Board?[31m", (), (), 16000),
    ],
    ids=["pi 4", "jetson", "container", "with drivers", "two GPUs", "no GPU", "no first level", "escape"],
)  # fmt: skip
def test_board_caches_and_accelerators(
    tmp_path: Path,
    cpuinfo: str,
    tree: dict[str, str | int],
    board: str,
    caches: tuple[int, ...],
    accelerators: tuple[str, ...],
    memory_mb: int,
) -> None:
    found = Target.detect(machine(tmp_path, cpuinfo, tree))
    assert found.board == board
    assert found.caches_kb == caches
    assert found.accelerators == accelerators
    assert found.memory_mb == memory_mb


def test_big_cores_have_the_larger_caches(tmp_path: Path) -> None:
    little = cache_tree(0, {(1, "Data"): "32K", (2, "Unified"): "128K", (3, "Unified"): "3M"})
    big = cache_tree(4, {(1, "Data"): "64K", (2, "Unified"): "512K", (3, "Unified"): "3M"})
    assert Target.detect(machine(tmp_path, tree={**little, **big})).caches_kb == (64, 512, 3072)


# --- the same machine, and what it holds


def test_a_description_of_this_machine_is_this_machine(tmp_path: Path) -> None:
    here = Target.detect(machine(tmp_path, PI4, PI4_TREE))
    assert here.is_machine(here)
    assert msgspec.structs.replace(here, name="door", engines=("litert",), dtypes=("int8",)).is_machine(here)
    older = Target(
        name="door", arch=here.arch, isa=here.isa, cores=here.cores, memory_mb=here.memory_mb, cpu=here.cpu
    )
    assert older.is_machine(here), "what it does not say does not differ"
    for change in (
        {"cores": 64},
        {"cpu": "Z80"},
        {"caches_kb": (16,)},
        {"board": "another"},
        {"memory_mb": 1},
    ):
        assert not msgspec.structs.replace(here, **change).is_machine(here)


def test_files_that_do_not_fit_the_memory_do_not_fit_the_budget() -> None:
    chip = Target(name="chip", arch="armv7e-m", memory_mb=0.25)
    assert chip.held(Budget()).size_mb == pytest.approx(0.262144)
    assert chip.held(Budget(size_mb=0.1, accuracy_drop=0.02)) == Budget(size_mb=0.1, accuracy_drop=0.02)
    assert chip.held(Budget(size_mb=5)).size_mb == pytest.approx(0.262144)
    assert Target(name="unknown", arch="x86_64").held(Budget(size_mb=5)) == Budget(size_mb=5)


def test_memory_of_a_microcontroller_is_a_fraction_and_reads_as_it_was_written(tmp_path: Path) -> None:
    for memory_mb in (0.25, 1024):
        chip = Target(name="chip", arch="armv7e-m", memory_mb=memory_mb)
        (tmp_path / "chip.yaml").write_text(to_yaml(chip))
        assert Target.find(str(tmp_path / "chip.yaml")).digest == chip.digest


@pytest.mark.parametrize("limits", [{"size_mb": -1}, {"latency_ms": float("nan")}, {"accuracy_drop": "1%"}])
def test_impossible_limits_are_a_config_error_in_python_too(limits: Any) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(limits))} must be a number from 0, not "):
        Budget(**limits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": -1}, "threads must be from 1 to 1024, not -1"),
        ({"threads": "two"}, "not 'two'"),
        ({"precision": "float31"}, "did you mean 'float32'"),
        ({"providers": "CUDA"}, r"providers are a tuple of names, as in \('CUDA',\)"),
    ],
)
def test_impossible_options_are_a_config_error_in_python_too(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineOptions(**options)


class Holder(Section, frozen=True, kw_only=True):
    budget: Budget


def test_a_file_with_impossible_limits_is_named_with_the_place_in_it() -> None:
    with pytest.raises(ConfigError, match=r"recipe.yaml: size_mb must be .*, not -1(\.0)? - at `budget`"):
        convert({"budget": {"size_mb": -1}}, Holder, "recipe.yaml")
