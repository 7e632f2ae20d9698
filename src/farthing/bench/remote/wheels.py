"""The wheels a board needs: Farthing itself, and what pip fetches here for the board's platform."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import farthing
from farthing.config import Section
from farthing.errors import NotInstalled, PluginError, TargetError, nearest
from farthing.links.ssh import printable
from farthing.plugins import BUILTIN

SECONDS = 1800
OLDEST_GLIBC = {"x86_64": 5, "i686": 5}  # manylinux begins at 2.5 there, elsewhere at 2.17
_ALIASES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


class Platform(Section, frozen=True, kw_only=True):
    """What decides which wheels fit a board.

    Attributes:
        python: major and minor version of its Python.
        abi: as in ``cp311``.
        arch: as ``uname -m`` says it; of a 32-bit Python that of the 32-bit machine.
        glibc: minor version of its C library 2.x.
    """

    python: tuple[int, int]
    abi: str
    arch: str
    glibc: int

    def __str__(self) -> str:
        return f"{self.arch}, glibc 2.{self.glibc}, Python {self.python[0]}.{self.python[1]}"

    @property
    def tags(self) -> list[str]:
        """Platform tags of wheels that run there (PEP 600, PEP 599, PEP 571, PEP 513), newest first."""
        found = []
        for minor in range(self.glibc, OLDEST_GLIBC.get(self.arch, 17) - 1, -1):
            found.append(f"manylinux_2_{minor}_{self.arch}")
            found += [f"{_ALIASES[minor]}_{self.arch}"] if minor in _ALIASES else []
        return [*found, f"linux_{self.arch}"]


def sources() -> dict[str, bytes]:
    """The files of the installed Farthing: path in the package -> content."""
    root = Path(farthing.__file__).parent
    return {
        path.relative_to(root.parent).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }


def stamp() -> str:
    """SHA-256 over the files of Farthing here: what a board has is compared with it."""
    found = hashlib.sha256()
    for name, content in sources().items():
        found.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return found.hexdigest()


def own_wheel(directory: Path) -> Path:
    """Farthing as it is installed here, as a wheel (https://packaging.python.org, binary distribution format).

    Raises:
        NotInstalled: Farthing runs here without being installed, so that what it needs is not written down.
    """
    try:
        metadata = importlib.metadata.distribution("farthing").read_text("METADATA")
    except importlib.metadata.PackageNotFoundError:
        metadata = None
    if metadata is None:
        raise NotInstalled(
            "Farthing is not installed here, only run: pip install it, so that a board can have it too"
        )
    info = f"farthing-{farthing.__version__}.dist-info"
    tags = "Wheel-Version: 1.0\nGenerator: farthing\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content = {**sources(), f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": tags.encode()}
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for name, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.writerow([name, f"sha256={digest}", len(data)])
    rows.writerow([f"{info}/RECORD", "", ""])
    path = directory / f"farthing-{farthing.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in {**content, f"{info}/RECORD": record.getvalue().encode()}.items():
            wheel.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return path


def check_engines(engines: Sequence[str]) -> None:
    """Raise PluginError for a name that no built-in engine has: only those can be installed on a board."""
    for name in engines:
        if name not in BUILTIN["engine"]:
            raise PluginError(f"no engine is called {name!r}; {nearest(name, BUILTIN['engine'])}")


def gather(
    platform: Platform, engines: Sequence[str], directory: Path, wheels: Path | None = None
) -> list[Path]:
    """All wheels a board needs to run some engines: Farthing, what it depends on, and pip to install them.

    The versions that are installed here are taken where there are wheels of them, else others that do.

    Args:
        platform: the board's.
        engines: names of engines.
        directory: an empty directory for the wheels.
        wheels: a directory of wheels to look in as well.

    Raises:
        TargetError: a package has no wheel for that platform.
        NotInstalled: there is no pip here.
        PluginError: no engine of that name.
    """
    check_engines(engines)
    own = own_wheel(directory)
    extras = sorted(set(engines) & set(_extras()))
    wanted = [f"{own}[{','.join(extras)}]" if extras else str(own), "pip"]
    pins = directory / "pins.txt"
    pins.write_text("".join(f"{line}\n" for line in _pins()))
    command = _pip(platform, directory, wheels)
    said = _run([*command, "--constraint", str(pins), *wanted])
    if said:
        said = _run([*command, *wanted])
    pins.unlink()
    if said:
        raise TargetError(_reason(said, platform))
    return sorted(directory.glob("*.whl"))


def _extras() -> list[str]:
    return importlib.metadata.metadata("farthing").get_all("Provides-Extra") or []


def _pins() -> Iterator[str]:
    """The versions, here, of what Farthing and its engines ask for by name."""
    names = {
        match[0] for line in importlib.metadata.requires("farthing") or [] if (match := _NAME.match(line))
    }
    for name in sorted(names):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        yield f"{name}=={version.partition('+')[0]}"


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _pip(platform: Platform, directory: Path, wheels: Path | None) -> list[str]:
    words = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-input"]
    words += ["--dest", str(directory), "--only-binary=:all:", "--implementation", "cp"]
    words += ["--python-version", "".join(map(str, platform.python)), "--abi", platform.abi]
    for tag in platform.tags:
        words += ["--platform", tag]
    return [*words, "--find-links", str(wheels)] if wheels else words


def _run(command: Sequence[str]) -> str:
    """What pip says if it fails; empty if all went well."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"pip fetched for {SECONDS} s and was not done: is the network up?") from error
    if done.returncode and "No module named pip" in done.stderr:
        raise NotInstalled(f"{sys.executable} has no pip, which fetches what a board needs: install pip here")
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""


def _reason(said: str, platform: Platform) -> str:
    missing = re.search(r"No matching distribution found for (\S+)", said)
    if missing:
        return (
            f"there is no wheel of {missing[1]} for {platform}: leave out the engine that needs it, or give a "
            "directory with one (--wheels)"
        )
    return f"pip cannot fetch what the board needs: {printable(said, 300)}"
