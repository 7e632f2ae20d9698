"""The built-in tasks, on the real data."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from farthing.assets import ASSETS, fetch, place
from farthing.errors import AssetError, TaskError
from farthing.model import Manifest, TensorSpec
from farthing.task import SPLITS, Task, find_task
from farthing.tasks import MNIST_PREPROCESS, digits, mnist_5k

Array = NDArray[Any]
TASKS: dict[str, Callable[[Path | None], Task]] = {"mnist-5k": mnist_5k, "digits": digits}


def real(name: str) -> Task:
    """The task, if its data is at hand or can be fetched."""
    if not importlib.util.find_spec("pip") and not place(ASSETS[name]).is_file():
        pytest.skip("the data is not cached, and there is no pip to fetch it with")
    return find_task(name)


def everything(task: Task) -> tuple[Array, Array]:
    """Samples and labels of all splits, in the order of the splits."""
    parts = [task.split(name) for name in SPLITS]
    labels = [part.labels for part in parts if part.labels is not None]
    return np.concatenate([part.inputs[""] for part in parts]), np.concatenate(labels)


@pytest.mark.parametrize(
    ("name", "sizes", "kind", "shape"),
    [
        ("mnist-5k", [3000, 250, 750, 1000], np.uint8, (28, 28)),
        ("digits", [898, 180, 360, 359], np.float32, (1, 8, 8)),
    ],
)
def test_splits_are_of_the_stated_sizes_and_kinds(
    name: str, sizes: list[int], kind: Any, shape: tuple[int, ...]
) -> None:
    task = real(name)
    assert [len(task.split(split)) for split in SPLITS] == sizes
    assert task.metric.name == "top1"
    assert task.labels == tuple("0123456789")
    assert "BSD-3-Clause" in task.licence
    for split in SPLITS:
        assert task.split(split).inputs[""].dtype == kind
        assert task.split(split).inputs[""].shape[1:] == shape


@pytest.mark.parametrize("name", TASKS)
def test_splits_are_disjoint_complete_and_stratified(name: str) -> None:
    task = real(name)
    samples, labels = everything(task)
    with gzip.open(fetch(ASSETS[name])) as file:
        raw = np.loadtxt(file, delimiter=",", dtype=np.float32)
    scale = 16 if name == "digits" else 1
    ours = np.column_stack([samples.reshape(len(samples), -1).astype(np.float32) * scale, labels])
    assert sorted(map(bytes, ours.astype(np.float32))) == sorted(map(bytes, raw)), (
        "every row once, none twice"
    )
    whole = np.bincount(labels) / len(labels)
    for split in SPLITS:
        part = task.split(split).labels
        assert part is not None
        assert np.abs(np.bincount(part, minlength=10) - whole * len(part)).max() <= 1.5
        assert len(set(part[:10])) > 5, "no split is sorted by class"


@pytest.mark.parametrize("name", TASKS)
def test_the_same_data_every_time(name: str) -> None:
    assert real(name).digest == real(name).digest


def test_digits_are_scikit_learn_s() -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    samples, labels = everything(real("digits"))
    wanted = load_digits()
    ours = np.column_stack([samples.reshape(-1, 64) * 16, labels]).astype(int)
    theirs = np.column_stack([wanted.data, wanted.target]).astype(int)
    assert sorted(map(tuple, ours)) == sorted(map(tuple, theirs))
    assert samples.max() == 1.0


def test_the_preprocessing_of_mnist_brings_it_to_mean_zero_and_deviation_one() -> None:
    pixels = real("mnist-5k").split("train").inputs[""].astype(np.float64)
    prepared = (pixels * MNIST_PREPROCESS.scale - MNIST_PREPROCESS.mean[0]) / MNIST_PREPROCESS.std[0]
    assert abs(prepared.mean()) < 0.02
    assert abs(prepared.std() - 1) < 0.02


def test_mnist_fits_a_model_that_says_how_to_preprocess() -> None:
    task = real("mnist-5k")
    x = TensorSpec(name="x", dtype="float32", shape=("n", 1, 28, 28), batch_axis=0, layout="NCHW")
    y = TensorSpec(name="y", dtype="float32", shape=("n", 10), batch_axis=0)
    task.check(Manifest(name="m", format="onnx", inputs=(x,), outputs=(y,), preprocess=MNIST_PREPROCESS))
    with pytest.raises(TaskError, match="does not say how to preprocess"):
        task.check(Manifest(name="m", format="onnx", inputs=(x,), outputs=(y,)))


def test_a_cache_of_one_s_own_is_used(tmp_path: Path) -> None:
    spot = place(ASSETS["digits"], tmp_path)
    spot.parent.mkdir(parents=True)
    real("digits")
    spot.write_bytes(place(ASSETS["digits"]).read_bytes())
    assert digits(tmp_path).digest == real("digits").digest
    told: list[str] = []
    assert find_task("digits", tmp_path, told.append).digest == real("digits").digest
    assert told == []
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["digits.csv.gz"]


def test_without_data_and_without_a_network_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(AssetError, match=r"put the file at .*digits.csv.gz"):
        digits(tmp_path)
    told: list[str] = []
    for task in (mnist_5k, digits):
        with pytest.raises(AssetError):
            task(tmp_path, told.append)
    assert [line.partition(" ")[0] for line in told] == ["fetching", "fetching"]
    assert "licence: BSD-3-Clause" in told[0]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
