"""An ARM64 machine under emulation: installation and numbers. Its speed means nothing and is not looked at.

A Debian userland is unpacked, not configured, into a directory, and entered through ``qemu-aarch64-static`` in
namespaces of its own: the machine it is on is left as it was. Needs the Debian packages qemu-user-static and
mmdebstrap, and a mirror.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.remote.conftest import Server, processes
from tests.remote.test_remote import convolution

from farthing.bench import Rule
from farthing.bench.remote import Board, Limits, Remote, install
from farthing.engines.base import open_engine
from farthing.options import EngineOptions
from farthing.testing import fake_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime") is None, reason="compares with ONNX Runtime here"
    ),
]
PATIENT = Limits(connect=120, request=600, load=1200, silence=1200, race=1200, lease=0, attempts=1)
PACKAGES = "python3,python3-venv,libstdc++6,libgomp1,coreutils,dash,base-files"
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
CPUINFO = """processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd08
"""
# The host's /sys stays out: runtimes read the wrong processor there, and crash.
ENTER = """#!/bin/sh
exec unshare --map-root-user --mount sh -c '
set -e
mount -t binfmt_misc binfmt /proc/sys/fs/binfmt_misc
printf "%s" "$2" > /proc/sys/fs/binfmt_misc/register
mount --rbind /proc "$0/proc"
mount --bind "$0/cpuinfo" "$0/proc/cpuinfo"
mount --rbind /dev "$0/dev"
exec chroot "$0" /usr/bin/env -i HOME=/root PATH=/usr/bin:/bin sh -c "$1"
' {root} "$SSH_ORIGINAL_COMMAND" {rule}
"""


def missing(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def userland(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The program that enters the userland."""
    qemu = shutil.which("qemu-aarch64-static")
    if not qemu or not shutil.which("mmdebstrap"):
        missing("no emulator here: install Debian's packages qemu-user-static and mmdebstrap")
    place = tmp_path_factory.mktemp("arm64")
    root = place / "root"
    make = [
        "mmdebstrap",
        "--architectures=arm64",
        "--variant=extract",
        f"--include={PACKAGES}",
        "bookworm",
        root,
    ]
    done = subprocess.run(make, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        missing(f"the ARM64 userland cannot be set up here: {done.stderr[-500:]}")
    for name in ("proc", "dev", "sys", "tmp", "root"):
        (root / name).mkdir(exist_ok=True)
    (root / "cpuinfo").write_text(CPUINFO)
    enter = place / "enter"
    rule = f":arm64:M::{MAGIC}:{MASK}:{qemu}:F"
    enter.write_text(ENTER.format(root=shlex.quote(str(root)), rule=shlex.quote(rule)))
    enter.chmod(0o755)
    tried = subprocess.run(
        [enter], env={"PATH": os.environ["PATH"], "SSH_ORIGINAL_COMMAND": "/usr/bin/python3 -V"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        missing(f"foreign programs cannot be run here (Linux 6.7 or newer is needed): {tried.stderr[-500:]}")
    yield enter
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def arm64(userland: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    server = Server(tmp_path_factory.mktemp("sshd") / "server", settings=[f"ForceCommand {userland}"])
    server.start()
    yield install.add("arm64", server.address, engines=["onnxruntime"], limits=PATIENT)
    server.stop()


def test_what_it_is(arm64: Board) -> None:
    assert arm64.platform.startswith("aarch64, glibc 2.36, Python 3.11")
    seen = install.look(arm64, PATIENT)
    assert (seen.target.arch, seen.target.cpu, seen.target.isa) == ("aarch64", "Cortex-A72", ("asimd",))
    assert set(seen.engines) == {"fake", "onnxruntime"}


def test_numbers_are_those_of_this_machine(arm64: Board, tmp_path: Path) -> None:
    fake, model = fake_model(features=4), convolution(tmp_path)
    generator = np.random.default_rng(0)
    with Remote(arm64, None, PATIENT) as remote:
        for net, shape in ((fake, (3, 4)), (model, (3, 3, 8, 8))):
            feed = {"x": generator.standard_normal(shape).astype(np.float32)}
            with remote.load(net, "", EngineOptions())[0] as there, open_engine(net) as here:
                assert there.version == here.version
                np.testing.assert_allclose(there.run(feed)["y"], here.run(feed)["y"], rtol=1e-4, atol=1e-5)


def test_a_race_and_memory_work_there(arm64: Board, tmp_path: Path) -> None:
    model = convolution(tmp_path)
    rule = Rule(warmup=2, min_count=5, min_seconds=0.0, max_seconds=1.0)
    with Remote(arm64, None, PATIENT) as remote:
        with remote.load(model, "", EngineOptions())[0] as engine:
            feed = {"x": np.zeros((1, 3, 8, 8), np.float32)}
            timed = remote.race([(engine, [feed])], rule)
        assert len(timed[0].calls) >= 5
        peak, added = remote.peak_memory(model, "onnxruntime", EngineOptions())
        assert 0 < added < peak


def test_it_is_taken_off_again(arm64: Board) -> None:
    assert install.remove(arm64, PATIENT) is False
    assert not processes("farthing.bench.worker /root/.local/share/farthing")
