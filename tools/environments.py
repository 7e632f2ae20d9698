"""Prove that the device side needs no more than Farthing says: `python tools/environments.py bare lowest`.

``bare`` installs Farthing with its base dependencies and nothing else, and runs tools/bare.py there.
``lowest`` installs the lowest version that every base dependency and small extra admits, and runs the device side's
tests there. Both environments are kept, and made anew when the requirements change; Farthing itself is built and
installed as a wheel each time, so what is proved is what a user gets.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")
]

# Small extras whose floors are run. What `forge` needs is large; its floors are not run.
FLOORS_OF = ("onnxruntime", "image", "parquet", "serve", "grpc")
# To write tests' ONNX files, for photos and oracles, and to run the tests; what wants numpy 2 is left to the resolver.
TEST_TOOLS = ("pytest", "pytest-xdist", "hypothesis", "sybil", "onnx", "prometheus_client", "scikit-learn")
NOT_PINNED = {"ml-dtypes", "scikit-learn", "scipy"}
# The tests of what runs on a workstation or a server.
WORKSTATION = (
    "tests/apps",
    "tests/cli",
    "tests/forge",
    "tests/hub",
    "tests/test_assets.py",  # fetches with this environment's pip, which it does not have
    "tests/test_benchmarks.py",
    "tests/test_docs.py",
    "tests/test_examples.py",
)


def name_of(requirement: str) -> str:
    """The project's name in a requirement, normalised."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0]).lower()


def floors() -> list[str]:
    """Base dependencies and small extras, each pinned to the lowest version it admits."""
    wanted = [
        *PROJECT["dependencies"],
        *(line for extra in FLOORS_OF for line in PROJECT["optional-dependencies"][extra]),
    ]
    return [requirement.replace(">=", "==") for requirement in wanted]


def environment(name: str, requirements: list[str], constraints: list[str]) -> Path:
    """The Python of a virtual environment that holds the requirements, made when it is not there yet."""
    home = ROOT / f".venv-{name}"
    python, stamp = home / "bin" / "python", home / ".ready"
    digest = hashlib.sha256("\n".join([sys.version, *requirements, "", *constraints]).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return python
    shutil.rmtree(home, ignore_errors=True)
    run(sys.executable, "-m", "venv", "--without-pip", str(home))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.write("\n".join(constraints))
        pins.flush()
        pip(python, "install", "-c", pins.name, *requirements)
    stamp.write_text(digest)
    return python


def install_farthing(python: Path) -> None:
    """Build the wheel from this checkout and put it in place of what is there."""
    with tempfile.TemporaryDirectory() as place:
        pip(Path(sys.executable), "wheel", "--no-deps", "--no-build-isolation", "-w", place, str(ROOT))
        wheel = next(Path(place).glob("*.whl"))
        pip(python, "install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
    pip(python, "check")


def pip(python: Path, *arguments: str) -> None:
    run(
        sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", "--python", str(python), *arguments
    )


def run(*command: str, cwd: Path = ROOT) -> None:
    subprocess.run(command, cwd=cwd, check=True, stdin=subprocess.DEVNULL)


def bare() -> None:
    """Base dependencies only; then the same questions in this environment, where everything is there to be imported."""
    python = environment("bare", PROJECT["dependencies"], PINS)
    install_farthing(python)
    for interpreter in (python, Path(sys.executable)):
        with (
            tempfile.TemporaryDirectory() as elsewhere
        ):  # -I and another directory: only what is installed counts
            run(str(interpreter), "-I", str(ROOT / "tools" / "bare.py"), cwd=Path(elsewhere))


def lowest() -> None:
    """The lowest versions, and the tests of all that a device needs."""
    pinned = floors()
    taken = {name_of(line) for line in pinned} | NOT_PINNED
    others = [line for line in PINS if name_of(line) not in taken]
    python = environment("lowest", [*pinned, *TEST_TOOLS], [*pinned, *others])
    install_farthing(python)
    print("lowest versions:", ", ".join(pinned), flush=True)
    options = ["-q", "-o", f"cache_dir={python.parent.parent / 'pytest'}", "-o", "filterwarnings="]
    options += ["-m", "not slow and not browser", "tests", *[f"--ignore={path}" for path in WORKSTATION]]
    try:
        run(str(python), "-m", "pytest", "-n", "2", "--dist", "loadfile", *options)
    except subprocess.CalledProcessError:  # two at a time may be late for one another: what failed runs alone
        run(str(python), "-m", "pytest", "--last-failed", *options)


def main() -> int:
    """Run the proofs named on the command line, in order."""
    proofs = {"bare": bare, "lowest": lowest}
    try:
        for name in sys.argv[1:] or proofs:
            proofs[name]()
    except subprocess.CalledProcessError as error:
        print(f"failed: {' '.join(error.cmd)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
