"""The doctor finds what is wrong, says how to mend it, and finds nothing where nothing is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from farthing.errors import ModelError
from farthing.forge.doctor import Diagnosis, Finding, examine
from farthing.forge.doctor import packages as packages_module
from farthing.forge.doctor.machine import machine
from farthing.forge.doctor.of_model import of_model
from farthing.forge.doctor.of_task import fingerprints, of_task
from farthing.forge.doctor.packages import packages, within
from farthing.forge.doctor.place import place
from farthing.model import Model, Preprocess, TensorSpec, checked
from farthing.target import Budget
from farthing.task import ImageFiles, Split, Task, find_task
from farthing.testing import fake_model

BUDGET = Budget(accuracy_drop=0.01)


def named(findings: Iterable[Finding], name: str) -> list[Finding]:
    return [finding for finding in findings if finding.name == name]


def one(findings: Iterable[Finding], name: str) -> Finding:
    found = named(findings, name)
    assert len(found) == 1, found
    return found[0]


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# Environment ----------------------------------------------------------------------------------------------------


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes up which packages are installed, in which versions: an environment cannot be broken for a test."""

    def put(**versions: str) -> None:
        known = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(packages_module, "_installed", lambda: known)

    return put


def test_two_runtimes_at_once(install: Any, tmp_path: Path) -> None:
    install(
        onnxruntime="1.31.1", onnxruntime_gpu="1.31.1", opencv_python="4.10", opencv_python_headless="4.10"
    )
    found = list(packages({}, tmp_path))
    assert one(found, "ONNX Runtime").status == "problem"
    assert "pip uninstall onnxruntime onnxruntime-gpu" in one(found, "ONNX Runtime").mend
    assert one(found, "OpenCV").status == "problem"
    install(onnxruntime="1.31.1", onnxruntime_extensions="0.12")
    assert one(packages({}, tmp_path), "ONNX Runtime").status == "ok"


def test_a_torch_for_cuda_without_a_device(
    install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(torch="2.13.0", nvidia_cudnn_cu12="9.1")
    monkeypatch.setattr(packages_module, "_cuda", lambda: "12.8")
    found = one(packages({}, tmp_path), "torch")
    assert found.status == "warning"
    assert "CUDA 12.8" in found.found
    assert "/whl/cpu" in found.mend
    assert one(packages({}, tree(tmp_path, {"dev/nvidiactl": ""})), "torch").status == "ok"
    install()
    assert "not installed" in one(packages({}, tmp_path), "torch").found


def test_the_torch_of_this_environment_is_read_without_importing_it() -> None:
    import torch

    assert packages_module._cuda() == (torch.version.cuda or "")


def test_versions_that_do_not_work_together(install: Any, tmp_path: Path) -> None:
    install(onnxruntime="1.18.0", numpy="2.1.0", keras="3.10", pillow="9.0")
    found = named(packages({}, tmp_path), "versions")
    text = " ".join(finding.found for finding in found)
    assert "onnxruntime 1.18.0 beside numpy 2.1.0" in text
    assert "CVE-2025" in text
    assert {finding.status for finding in found} == {"warning", "problem"}
    install(onnxruntime="1.31.1", numpy="2.1.0")
    assert one(packages({}, tmp_path), "versions").status == "ok"


def test_our_own_floors_are_held(install: Any, tmp_path: Path) -> None:
    install(msgspec="0.17.0")
    found = one(packages({}, tmp_path), "versions")
    assert found.status == "problem"
    assert "msgspec>=" in found.mend


@pytest.mark.parametrize(
    ("version", "clauses", "kept"),
    [
        ("1.19.0", ">=1.19", True),
        ("1.18.9", ">=1.19", False),
        ("2.0", "<2", False),
        ("2.13.0+cpu", ">=2.9,<3", True),
        ("3.12.1", "==3.12.*", True),
        ("3.13", "!=3.12", True),
        ("1.4.5", "~=1.4.2", True),
        ("1.5.0", "~=1.4.2", False),
        ("2025.2.0", ">2024", True),
        ("4", "<=4.0", True),
    ],
)
def test_versions_against_clauses(version: str, clauses: str, kept: bool) -> None:
    assert within(version, clauses) is kept


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=4), st.lists(st.integers(0, 30), min_size=1, max_size=4)
)
def test_versions_compare_as_packaging_says(one: list[int], other: list[int]) -> None:
    from packaging.specifiers import SpecifierSet

    first, second = (".".join(map(str, part)) for part in (one, other))
    for sense in (">=", "<=", "<", ">"):
        assert within(first, sense + second) == SpecifierSet(sense + second).contains(first)


def test_telemetry_and_its_switch(install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    install(onnxruntime="1.31.1", openvino_telemetry="2025.2.0")
    found = one(packages({}, tmp_path), "telemetry")
    assert found.status == "warning"
    assert "ORT_DISABLE_TELEMETRY=1" in found.mend
    assert "opt_in_out" in found.mend
    tree(tmp_path, {"intel/openvino_telemetry": "0"})
    assert one(packages({"ORT_DISABLE_TELEMETRY": "1"}, tmp_path), "telemetry").status == "ok"


# Machine --------------------------------------------------------------------------------------------------------

CPU = "sys/devices/system/cpu"
QUIET = {
    "proc/loadavg": "0.01 0.10 0.20 1/100 1",
    "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n",
    f"{CPU}/cpu0/cpufreq/scaling_governor": "performance\n",
    f"{CPU}/intel_pstate/no_turbo": "1\n",
    "sys/class/thermal/thermal_zone0/temp": "45000\n",
}


def test_a_quiet_machine_is_well(tmp_path: Path) -> None:
    found = list(machine({}, tmp_path / "cache", tree(tmp_path / "root", QUIET)))
    assert {finding.status for finding in found} == {"ok"}
    assert "turbo off" in one(found, "clock").found
    assert "45 degrees" in one(found, "temperature").found


@pytest.mark.parametrize(
    ("files", "name", "words"),
    [
        ({"proc/loadavg": "55.0 1 1"}, "load", "crowd"),
        ({"proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 90000 kB\n"}, "memory", "MiB available"),
        (
            {"proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\nSwapTotal: 4000000 kB\nSwapFree: 9 kB\n"},
            "memory",
            "swapped out",
        ),
        ({f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave\n"}, "clock", "powersave"),
        ({"sys/class/thermal/thermal_zone0/temp": "91000\n"}, "temperature", "91 degrees"),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, "cores", "quota"),
    ],
)  # fmt: skip
def test_what_spoils_a_timing(tmp_path: Path, files: dict[str, str], name: str, words: str) -> None:
    found = list(machine({}, tmp_path / "cache", tree(tmp_path / "root", {**QUIET, **files})))
    if name == "cores" and one(found, "cores").status == "ok":
        pytest.skip("one core: a quota of a half leaves one as well")
    finding = one(found, name)
    assert finding.status == "warning"
    assert words in finding.found
    assert finding.mend


def test_an_empty_root_says_unavailable(tmp_path: Path) -> None:
    found = list(machine({}, tmp_path, tmp_path / "nothing"))
    for name in ("load", "memory", "clock", "temperature", "energy"):
        assert "unavailable" in one(found, name).found
        assert one(found, name).status == "ok"


def test_variables_of_threads(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", QUIET)
    bound = one(machine({"KMP_AFFINITY": "compact", "OMP_WAIT_POLICY": "ACTIVE"}, tmp_path, root), "threads")
    assert bound.status == "warning"
    assert "unset KMP_AFFINITY OMP_WAIT_POLICY" in bound.mend
    assert one(machine({"OMP_NUM_THREADS": "1"}, tmp_path, root), "threads").status == "ok"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = one(machine({}, tmp_path / "file" / "cache", tmp_path), "cache")
    assert finding.status == "problem"
    assert "FARTHING_CACHE" in finding.mend
    assert not (tmp_path / "file" / "cache").exists()


# Model ----------------------------------------------------------------------------------------------------------


def with_manifest(**changes: Any) -> Model:
    model = fake_model()
    return Model.create(checked(model.manifest, **changes), {"model.json": model.file})


def test_a_complete_model_is_well() -> None:
    model = with_manifest(labels=("a", "b", "c"), decode="logits", licence="MIT")
    found = list(of_model(model))
    assert {finding.status for finding in found} == {"ok"}, found
    assert "in fake 1" in one(found, "runs").found


def test_what_a_manifest_leaves_open() -> None:
    found = list(of_model(with_manifest(labels=("a", "b"), decode="logits", requires=("avx1024",))))
    assert one(found, "labels").status == "problem"
    assert "2 labels for an output 'y' of 3" in one(found, "labels").found
    assert one(found, "instruction sets").status == "warning"
    assert one(found, "licence").status == "warning"
    bare = list(of_model(with_manifest()))
    assert one(bare, "decode").status == "warning"
    assert one(list(of_model(with_manifest(decode="logits"))), "labels").status == "warning"


def test_pictures_want_preprocessing() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 32, 32), batch_axis=0, layout="NCHW")
    found = one(of_model(with_manifest(inputs=(spec,))), "preprocess")
    assert found.status == "warning"
    stated = with_manifest(inputs=(spec,), preprocess=Preprocess(colour="RGB", scale=1.0))
    assert one(of_model(stated), "preprocess").status == "ok"
    vector = msgspec.structs.replace(spec, shape=("batch", 3, 4, 5))
    assert one(of_model(with_manifest(inputs=(vector,))), "preprocess").status == "ok"


def test_a_model_that_does_not_run_and_one_of_no_engine() -> None:
    broken = Model.create(fake_model().manifest, {"model.json": b"{}"})
    assert one(of_model(broken), "runs").status == "problem"
    foreign = list(of_model(with_manifest(format="tape")))
    assert one(foreign, "runs").status == "problem"
    assert "no engine runs the format" in one(foreign, "runs").found


def test_a_fixed_batch() -> None:
    spec = fake_model().manifest.inputs[0]
    fixed = with_manifest(inputs=(msgspec.structs.replace(spec, shape=(8, 4)),))
    assert one(of_model(fixed), "batch").status == "warning"


# Task -----------------------------------------------------------------------------------------------------------


def split(count: int, seed: int, classes: int = 2) -> Split:
    generator = np.random.default_rng(seed)
    return Split({"": generator.standard_normal((count, 4), np.float32)}, np.arange(count) % classes)


def task(**splits: Split) -> Task:
    return Task("made-up", splits, "top1")


def test_a_good_task_is_well() -> None:
    made = task(train=split(300, 0), validation=split(2000, 1), test=split(500, 2))
    found = list(of_task(made, fake_model(), BUDGET))
    assert {finding.status for finding in found} == {"ok"}, found


def test_samples_in_two_splits() -> None:
    train, test = split(300, 0), split(200, 2)
    both = Split({"": np.concatenate([split(500, 1).inputs[""], train.inputs[""][:7]])}, np.arange(507) % 2)
    found = list(of_task(task(train=train, validation=both, test=test), None, BUDGET))
    overlaps = named(found, "overlap")
    assert {finding.status for finding in overlaps} == {"problem"}
    assert any("7 samples are in train and in validation" in finding.found for finding in overlaps)
    assert not any("calibration and in train" in finding.found for finding in overlaps), (
        "it is taken from there"
    )


def test_samples_that_are_there_twice() -> None:
    twice = split(300, 1)
    doubled = Split({"": np.concatenate([twice.inputs[""]] * 2)}, np.arange(600) % 2)
    found = one(of_task(task(train=split(300, 0), validation=doubled), None, BUDGET), "repeated")
    assert "300 samples of validation" in found.found
    assert "`groups`" in found.mend
    together = Split(doubled.inputs, doubled.labels, np.tile(np.arange(300), 2))
    found = list(of_task(task(train=split(300, 0), validation=together), None, BUDGET))
    assert not named(found, "repeated"), "their intervals know of it"


def test_too_few_samples_for_the_budget() -> None:
    found = list(of_task(task(train=split(20, 0), validation=split(30, 1)), None, BUDGET))
    assert one(found, "resolution").status == "problem"
    assert one(found, "calibration").status == "warning"
    assert one(found, "test").status == "warning"
    found = list(of_task(task(test=split(30, 1)), None, BUDGET))
    assert one(found, "validation").status == one(found, "calibration").status == "problem"


def test_classes_without_samples_and_lopsided_ones() -> None:
    few = Split({"": split(400, 1).inputs[""]}, np.repeat([0, 2], 200))
    assert (
        "1 of 3 classes"
        in one(of_task(task(train=split(300, 0, 3), validation=few), None, BUDGET), "classes").found
    )
    rare = Split({"": split(400, 1).inputs[""]}, np.repeat([0, 1], [396, 4]))
    assert "1 4" in one(of_task(task(validation=rare), None, BUDGET), "classes").found
    lopsided = Split({"": split(400, 1).inputs[""]}, np.repeat([0, 1], [388, 12]))
    assert "32 times" in one(of_task(task(validation=lopsided), None, BUDGET), "classes").found


def test_a_task_that_does_not_fit_the_model() -> None:
    found = one(of_task(task(validation=split(200, 0)), fake_model(features=9), BUDGET), "model")
    assert found.status == "problem"


def test_broken_pictures_and_repeated_ones(tmp_path: Path) -> None:
    paths = []
    for number in range(4):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (16, 16), (number, 0, 0)).save(paths[-1])
    files = ImageFiles({"": np.array(paths[:3])}, np.array([0, 1, 0]))
    again = ImageFiles({"": np.array(paths[2:])}, np.array([0, 1]))
    made = Task("photos", {"train": files, "validation": again}, "top1", form="image")
    found = list(of_task(made, None, BUDGET))
    assert one(found, "pictures").status == "ok"
    assert "1 samples are in train" in named(found, "overlap")[0].found
    Path(paths[3]).write_bytes(Path(paths[3]).read_bytes()[:45])
    assert one(of_task(made, None, BUDGET), "pictures").status == "problem"
    Path(paths[3]).unlink()
    assert one(of_task(made, None, BUDGET), "pictures").status == "problem"


def test_fingerprints_tell_samples_apart() -> None:
    two = Split({"a": np.array([[1], [1], [2]]), "b": np.array([[1], [1], [1]])})
    assert len(fingerprints(two)) == 2


# Target, and all of it ------------------------------------------------------------------------------------------


def test_targets(tmp_path: Path) -> None:
    assert one(place("no such board", tmp_path, None), "known").status == "problem"
    (tmp_path / "tiny.yaml").write_text("name: tiny\narch: aarch64\nmemory_mb: 1\nengines: [litert]\n")
    model = with_manifest(requires=("asimddp",))
    found = list(place(str(tmp_path / "tiny.yaml"), None, model))
    assert one(found, "known").status == "ok"
    assert one(found, "engine").status == "ok"
    assert one(place("this", None, fake_model()), "memory").status == "ok"


def test_what_does_not_open_is_a_finding(tmp_path: Path) -> None:
    def missing() -> Model:
        raise ModelError("there is no model: give one")

    found = examine(missing, root=tmp_path, cache=tmp_path)
    assert not found.well
    assert [finding.area for finding in found.of("problem")] == ["model"]
    assert "farthing convert" in found.of("problem")[0].mend
    untold = examine(None, lambda: find_task("no/such.yaml"), root=tmp_path, cache=tmp_path)
    assert "farthing init" in untold.of("problem")[0].mend
    assert msgspec.json.decode(msgspec.json.encode(found), type=Diagnosis) == found


def test_every_trouble_comes_with_its_mending(tmp_path: Path) -> None:
    made = task(train=split(20, 0), validation=split(30, 1))
    found = examine(lambda: with_manifest(labels=("a",)), lambda: made, cache=tmp_path, root=tmp_path)
    assert all(finding.mend for finding in found.findings if finding.status != "ok")
    bare = list(of_task(task(test=split(30, 1)), None, BUDGET))
    assert all("`" in one(bare, name).mend for name in ("validation", "calibration")), "by its key"


def test_it_works_with_the_base_dependencies_alone(tmp_path: Path) -> None:
    """Packages that are not there are findings, not tracebacks."""
    fake_model().save(tmp_path / "model")
    blocked = "torch onnx onnxruntime openvino ai_edge_litert PIL rich pyarrow scipy sklearn packaging"
    program = (
        "import sys\n"
        "class Gone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {blocked.split()!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "from pathlib import Path\n"
        "from farthing.forge.doctor import examine\n"
        "from farthing.model import Model\n"
        f"found = examine(lambda: Model.open({str(tmp_path / 'model')!r}), cache=Path({str(tmp_path)!r}))\n"
        "import msgspec; print(msgspec.json.encode(found).decode())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout.strip().splitlines()[-1])["findings"]
    engines = next(finding for finding in findings if finding["name"] == "engines")
    assert "none runs here" in engines["found"]
    assert "onnxruntime" in engines["mend"]
    assert next(finding for finding in findings if finding["name"] == "runs").get("status") == "ok"
