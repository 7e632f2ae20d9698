"""Models that packages ship, as ours: the figures their authors give, on the photos at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from farthing import bench
from farthing.assets import ASSETS, fetch
from farthing.errors import AssetError
from farthing.forge.nets import efficientnet_lite0 as build
from farthing.forge.nets import parameters
from farthing.forge.pretrained import centerface, efficientnet_lite0
from farthing.task import Task, find_task
from farthing.tasks.gallery import COUNTED, IMAGENET


def at_hand(name: str, photos: bool) -> None:
    try:
        fetch(ASSETS[name])
        find_task("faces" if not photos else "imagenet-photos")
    except AssetError as error:
        pytest.skip(str(error))


def test_the_network_has_the_parameters_its_authors_count() -> None:
    assert parameters(build()) == 4_652_008


@pytest.mark.slow
def test_efficientnet_lite0_knows_photos_of_imagenet(tmp_path: Path) -> None:
    at_hand("efficientnet-lite0", photos=True)
    model = efficientnet_lite0(tmp_path / "model")
    whole = find_task("imagenet-photos")
    splits = {name: whole.split(name).subset(range(0, 500, 50)) for name in ("validation", "test")}
    task = Task("whole photos", splits, "top1", form="image")
    right = sum(bench.evaluate(model, task, name)[0].value * 10 for name in ("validation", "test"))
    assert right >= 17, f"{right} of {len(IMAGENET)}"


@pytest.mark.slow
def test_centerface_finds_the_counted_faces(tmp_path: Path) -> None:
    at_hand("centerface", photos=False)
    model = centerface(tmp_path / "model")
    task = find_task("faces")
    for name in ("calibration", "validation", "test"):
        assert bench.evaluate(model, task, name)[0].value >= 0.95, COUNTED
    small = centerface(height=96, width=160)
    assert small.manifest.inputs[0].shape[1:] == (3, 96, 160)
