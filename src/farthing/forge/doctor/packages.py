"""Installed packages: what lacks, what is there twice, what is too large, what does not work together, what calls home.

Only their metadata is read, but for the engines, which are asked whether they load.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from farthing import plugins
from farthing.errors import NotInstalled, PluginError
from farthing.forge.doctor.finding import Finding, ok, problem, warning

ORT = re.compile(
    r"onnxruntime(-(gpu|openvino|directml|qnn|training|azure|silicon|rocm|cann|vitisai|migraphx|webgpu))?"
)
OPENCV = re.compile(r"opencv-(contrib-)?python(-headless)?")
NVIDIA = ("dev/nvidia0", "dev/nvidiactl", "proc/driver/nvidia/version", "dev/nvhost-ctrl-gpu", "dev/nvmap")
FORGE = ("torch", "onnx", "onnxscript", "pillow", "rich")
APART = (
    ("onnxruntime", "<1.19", "numpy", ">=2", "it was built for numpy 1 and fails when imported"),
    ("torch", "<2.3", "numpy", ">=2", "it was built for numpy 1: conversions from arrays fail"),
    ("onnx2tf", ">=0", "numpy", ">=2", "it wants numpy 1.26: pip will tear one of them out"),
    ("flwr", ">=0", "torch", ">=0", "it pins protobuf and a web stack: give it an environment of its own"),
    ("neural-compressor", ">=3", "onnxruntime", ">=0", "3.0 took out what 2.x did with ONNX files"),
    ("nvidia-modelopt", ">=0", "onnxruntime", ">=0", "its onnx extra brings a second ONNX Runtime"),
)
"""Package, its versions, another, its versions, and why they do not live together."""
OUTDATED = (
    ("keras", "<3.12", "its safe mode lets a model file run code (CVE-2025-9905, CVE-2025-12058)"),
    ("onnxruntime-training", ">=0", "it ended at 1.19.2 and takes the place of onnxruntime"),
)
_VERSION = re.compile(r"\d+(?:\.\d+)*")
_CLAUSE = re.compile(r"\s*(>=|<=|==|!=|~=|<|>)\s*([\w.*+!-]+)")


def packages(environment: Mapping[str, str], root: Path) -> Iterator[Finding]:
    """Findings about the Python environment."""
    installed = {name: version for name, version in _installed().items() if version}
    yield from _engines()
    yield _forge(installed)
    yield _torch(installed, root)
    for pattern, word in ((ORT, "ONNX Runtime"), (OPENCV, "OpenCV")):
        yield from _twice(installed, pattern, word)
    yield from _together(installed)
    yield from _telemetry(installed, environment)


def _installed() -> dict[str, str]:
    found = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found[re.sub(r"[-_.]+", "-", name).lower()] = distribution.version
    return found


def _engines() -> Iterator[Finding]:
    there: list[str] = []
    lacking: list[tuple[str, str]] = []
    broken: list[tuple[str, str]] = []
    for name in plugins.names("engine"):
        if name in {"fake", "oip"}:
            continue  # they compute nothing of a model's own here
        try:
            there.append(f"{name} {plugins.get('engine', name).installed()}")
        except NotInstalled as error:
            (lacking if "not installed" in str(error) else broken).append((name, str(error)))
        except PluginError as error:
            broken.append((name, str(error)))
    for name, words in broken:
        yield problem(
            "environment", f"engine {name}", words, f"pip install --force-reinstall 'farthing[{name}]'"
        )
    names = ",".join(name for name, _ in lacking)
    also = f"; not installed: {', '.join(name for name, _ in lacking)}" if lacking else ""
    line = f"pip install 'farthing[{names}]'" if lacking else ""
    if there:
        yield ok("environment", "engines", f"{', '.join(there)}{also}", line)
    else:
        yield problem("environment", "engines", f"none runs here{also}", line or "install an engine")


def _forge(installed: Mapping[str, str]) -> Finding:
    lacking = [name for name in FORGE if name not in installed]
    if lacking:
        words = f"{', '.join(lacking)}: not installed; models can be run here, but not all can be made"
        return warning("environment", "forge", words, "pip install 'farthing[forge]'")
    return ok("environment", "forge", ", ".join(f"{name} {installed[name]}" for name in FORGE))


def _torch(installed: Mapping[str, str], root: Path) -> Finding:
    """Whether a torch with CUDA takes room on a machine that cannot use it."""
    if "torch" not in installed:
        return ok("environment", "torch", "not installed: needed for training and conversion only")
    cuda, gpu = _cuda(), any((root / place).exists() for place in NVIDIA)
    megabytes = sum(
        _megabytes(name) for name in installed if name == "torch" or name.startswith(("nvidia-", "triton"))
    )
    words = f"torch {installed['torch']}, {megabytes:,.0f} MB with what it brings"
    if cuda and not gpu:
        mend = (
            "pip uninstall torch triton and the nvidia-* packages, then "
            "pip install torch --index-url https://download.pytorch.org/whl/cpu"
        )
        return warning(
            "environment", "torch", f"{words}, built for CUDA {cuda}; there is no NVIDIA device", mend
        )
    return ok("environment", "torch", f"{words}, {f'built for CUDA {cuda}' if cuda else 'for the CPU'}")


def _cuda() -> str:
    """The CUDA that torch was built for, read from its version file: importing torch takes seconds."""
    try:
        found = importlib.util.find_spec("torch")
        text = Path(str(found.origin)).with_name("version.py").read_text() if found and found.origin else ""
    except (OSError, ImportError, ValueError):
        return ""
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.M)
    return match[1] if match else ""


def _megabytes(name: str) -> float:
    """Size of a distribution by its own record."""
    try:
        record = metadata.distribution(name).read_text("RECORD") or ""
    except metadata.PackageNotFoundError:
        return 0.0
    sizes = (line.rpartition(",")[2] for line in record.splitlines())
    return sum(int(size) for size in sizes if size.isdigit()) / 1e6


def _twice(installed: Mapping[str, str], pattern: re.Pattern[str], word: str) -> Iterator[Finding]:
    there = sorted(name for name in installed if pattern.fullmatch(name))
    if len(there) > 1:
        words = f"{' and '.join(there)} are installed at once and write into one directory: which one runs is chance"
        mend = f"pip uninstall {' '.join(there)}, then install the one you want again"
        yield problem("environment", word, words, mend)
    elif there:
        yield ok("environment", word, f"one of them: {there[0]} {installed[there[0]]}")


def _together(installed: Mapping[str, str]) -> Iterator[Finding]:
    """Versions that do not work together, are to be left behind, or are below what Farthing was tried with."""
    before = len(installed)
    for name, versions, other, others, why in APART:
        if within(installed.get(name), versions) and within(installed.get(other), others):
            words = f"{name} {installed[name]} beside {other} {installed[other]}: {why}"
            yield warning("environment", "versions", words, f"move one of them out, or change {name}")
            before = 0
    for name, versions, why in OUTDATED:
        if within(installed.get(name), versions):
            yield problem(
                "environment", "versions", f"{name} {installed[name]}: {why}", f"pip install -U {name}"
            )
            before = 0
    for name, wanted in _floors():
        if name in installed and not within(installed[name], wanted):
            words = f"{name} {installed[name]}, Farthing wants {name}{wanted}"
            yield problem("environment", "versions", words, f"pip install '{name}{wanted}'")
            before = 0
    if before:
        yield ok("environment", "versions", "none that are known not to work together")


def _floors() -> Iterator[tuple[str, str]]:
    """What Farthing's own metadata ask of other packages, extras included."""
    try:
        wanted = metadata.requires("farthing") or []
    except metadata.PackageNotFoundError:
        return
    for line in dict.fromkeys(text.partition(";")[0].strip() for text in wanted):
        match = re.match(r"([\w.-]+)(\[[^]]*\])?\s*(.*)", line)
        if match and match[3]:
            yield re.sub(r"[-_.]+", "-", match[1]).lower(), match[3].strip("()")


def within(version: str | None, clauses: str) -> bool:
    """Whether a version keeps clauses such as ``>=1.19,<2``; no version keeps none.

    >>> within("2.1.0+cpu", ">=2.1,<3"), within("1.26.4", ">=2"), within(None, ">=0")
    (True, False, False)
    """
    if version is None:
        return False
    return all(_keeps(_release(version), sense, _release(limit)) for sense, limit in _CLAUSE.findall(clauses))


def _release(version: str) -> tuple[int, ...]:
    match = _VERSION.match(version.lstrip("v"))
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _keeps(one: tuple[int, ...], sense: str, other: tuple[int, ...]) -> bool:
    size = max(len(one), len(other))
    a, b = (part + (0,) * (size - len(part)) for part in (one, other))
    same_start = one[: len(other)] == other
    return {
        ">=": a >= b,
        "<=": a <= b,
        ">": a > b,
        "<": a < b,
        "==": same_start,
        "!=": not same_start,
        "~=": a >= b and one[: len(other) - 1] == other[:-1],
    }[sense]


def _telemetry(installed: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[Finding]:
    """What would report home; Farthing switches it off for its own processes, not for yours."""
    calling = []
    if any(ORT.fullmatch(name) for name in installed) and environment.get("ORT_DISABLE_TELEMETRY") != "1":
        calling.append(("ONNX Runtime", "export ORT_DISABLE_TELEMETRY=1"))
    if "openvino-telemetry" in installed and not _declined():
        calling.append(("openvino-telemetry", "opt_in_out --opt_out, or pip uninstall openvino-telemetry"))
    if calling:
        names = " and ".join(name for name, _ in calling)
        words = f"{names}: programs of yours that use it report home; Farthing's do not"
        yield warning("environment", "telemetry", words, "; ".join(mend for _, mend in calling))
    else:
        yield ok("environment", "telemetry", "nothing that is known here reports home")


def _declined() -> bool:
    """Whether the user told OpenVINO's telemetry to keep quiet (``opt_in_out --opt_out`` writes a 0 there)."""
    try:
        return (Path.home() / "intel" / "openvino_telemetry").read_text().strip() == "0"
    except (OSError, RuntimeError):
        return False
