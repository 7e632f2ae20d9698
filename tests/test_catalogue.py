"""The catalogue: every file is valid, every figure has a source, and a target is found by its name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from farthing import catalogue
from farthing.cli import main
from farthing.config import read
from farthing.errors import ConfigError, TargetError
from farthing.target import Target

MOVING = {"main", "master", "HEAD"}


@pytest.mark.parametrize("name", catalogue.names())
def test_every_device_is_described_by_pages_that_are_named(name: str) -> None:
    found = catalogue.device(name)
    assert found.figures
    for source in found.sources.values():
        assert source.title
        files = re.fullmatch(r"https://github\.com/[^/]+/[^/]+/blob/(\w+)/.+", source.url)
        assert not files or files[1] not in MOVING, f"{source.url} may say something else tomorrow"
    target = Target.find(name)
    assert (target.name, target.board) == (name, found.title)
    assert target.cores == found.value("cores")
    assert target.memory_mb == found.value("memory_mb")


def test_the_catalogue_has_devices_of_every_kind() -> None:
    devices = catalogue.devices()
    assert len(devices) >= 16
    counts = {kind: sum(found.kind == kind for found in devices.values()) for kind in catalogue.KINDS}
    assert min(counts.values()) >= 3, counts
    assert [*counts] == [*dict.fromkeys(found.kind for found in devices.values())], (
        "in the order of their kinds"
    )


def test_no_figure_of_speed_was_made_up() -> None:
    """Nothing was measured on these devices: their figures are those of their sources, none a latency or a rate."""
    assert not {"latency_ms", "throughput", "efficiency"} & set(catalogue.FIGURES)
    for found in catalogue.devices().values():
        for name, figure in found.figures.items():
            assert figure.source in found.sources, name


def test_a_device_that_computes_in_a_few_ways_says_so() -> None:
    assert Target.find("rp2040").dtypes == ("int8",)
    assert Target.find("stm32h743").engines == ("tflm",)
    assert Target.find("raspberry-pi-4").engines == ()
    assert "asimddp" in Target.find("raspberry-pi-5").isa
    assert "asimddp" not in Target.find("raspberry-pi-4").isa


GOOD = """
title = "Door"
kind = "embedded processor"
arch = "aarch64"
[figures]
cores = { value = 4, source = "sheet" }
[sources]
sheet = { title = "Data sheet", url = "https://example.org/door.pdf" }
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "sheet"', 'source = "shete"', "cores is from 'shete', which is none of the sources"),
        ('source = "sheet" }', 'source = "sheet" }\ntopss = { value = 1, source = "sheet" }', "did you mean 'tops'"),
        ("value = 4", "value = 0", "cores must be a count, not 0"),
        ("value = 4", 'value = "four"', "cores must be a count, not 'four'"),
        (", source = \"sheet\" }", " }", "missing required field `source`"),
        ("aarch64", "arm64", "did you mean 'aarch64'"),
        ("embedded processor", "toaster", "toaster"),
        ("https://example.org/door.pdf", "the back of an envelope", "not the address of a document"),
        ("[sources]", '[sources]\nmore = { title = "t", url = "https://example.org/" }', "nothing is from 'more'"),
    ],
)  # fmt: skip
def test_what_has_no_source_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    place = tmp_path / "door.toml"
    place.write_text(GOOD)
    assert read(place, catalogue.Device).target("door").cores == 4
    place.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        read(place, catalogue.Device)


def test_the_nearest_device_is_named() -> None:
    with pytest.raises(TargetError, match="no device is called 'jetson-orin'; did you mean 'jetson-"):
        catalogue.device("jetson-orin")
    with pytest.raises(TargetError, match=r"no device is called '\.\./secret'"):
        catalogue.device("../secret")


def test_targets_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    printed = capsys.readouterr().out
    for name in catalogue.names():
        assert f"\n{name} " in printed
    assert "none was measured" in printed
    assert main(["targets", "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in listed] == [*catalogue.devices()]


def test_targets_shows_one_with_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "coral-dev-board"]) == 0
    printed = capsys.readouterr().out
    assert "Coral Edge TPU" in printed
    assert "1024 MiB" in printed
    assert "https://coral.ai/technology" in printed
    assert main(["targets", "coral-dev-board", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["figures"]["tops"] == {"value": 4, "source": "tpu", "note": ""}
    assert main(["targets", "this"]) == 0
    assert "instruction sets" in capsys.readouterr().out
    assert main(["targets", "coral"]) == 2
    assert "did you mean 'coral-edge-tpu'" in capsys.readouterr().err
