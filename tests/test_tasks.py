"""The built-in tasks, on the real data."""

from __future__ import annotations

import gzip
import importlib.util
import pickle
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from farthing.assets import ASSETS, fetch, fetch_all, place
from farthing.errors import AssetError, TaskError
from farthing.model import Manifest, TensorSpec
from farthing.task import SPLITS, Task, find_task
from farthing.tasks import MNIST_PREPROCESS, digits, mnist_5k
from farthing.tasks.exercises import SUBJECTS
from farthing.tasks.gallery import COUNTED, IMAGENET
from farthing.tasks.portraits import CONFIDENCE, HEIGHT, WIDTH, centres, found

Array = NDArray[Any]
TASKS: dict[str, Callable[[Path | None], Task]] = {"mnist-5k": mnist_5k, "digits": digits}


def real(name: str) -> Task:
    """The task, if its data is at hand or can be fetched."""
    needed = [ASSETS[name]] if name in ASSETS else [photo.asset for photo in COUNTED.values()]
    needed += [asset for _, asset in IMAGENET] if name == "imagenet-photos" else []
    for client in {asset.source for asset in needed if not place(asset).is_file()}:
        if client == "npm" and not shutil.which("npm"):
            pytest.skip("the photos are not cached, and there is no npm to fetch them with")
        if client == "pypi" and not importlib.util.find_spec("pip"):
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


# --- watch


def test_no_person_of_the_watch_is_in_two_splits() -> None:
    task = real("watch")
    people = [set(np.unique(task.split(name).groups)) for name in SPLITS]
    assert people == [set(SUBJECTS[name]) for name in SPLITS]
    assert sum(map(len, people)) == len(set().union(*people)) == 10
    for name in SPLITS:
        part = task.split(name)
        assert part.inputs[""].shape[1:] == (6, 100)
        assert part.inputs[""].dtype == np.float32
        assert part.labels is not None
        assert set(part.labels) == set(range(7)), "each exercise is in each split"
    assert task.labels[0] == "PEN"


def test_windows_of_the_watch_are_of_one_recording_each() -> None:
    part = real("watch").split("test")
    windows = part.inputs[""]
    assert part.labels is not None
    assert part.groups is not None
    follows = (windows[:-1, :, 50:] == windows[1:, :, :50]).all((1, 2))
    kind = np.stack([part.labels, part.groups], 1)
    assert (kind[:-1] == kind[1:]).all(1)[follows].all()
    assert (~follows).sum() == 3 * 14 - 1, "three people, seven exercises, two arms"


def test_an_interval_over_people_is_wide() -> None:
    task = real("watch")
    part = task.split("test")
    assert part.labels is not None
    rows = np.eye(7)[part.labels] + np.random.default_rng(0).standard_normal((len(part), 7)) * 0.7
    rows[part.groups == 8] = np.eye(7)[
        (part.labels[part.groups == 8] + 1) % 7
    ]  # one person moves differently
    naive = task.metric.score({"y": rows}, part.labels, None)
    found_interval = task.metric.score({"y": rows}, part.labels, None, part.groups)
    assert found_interval.high - found_interval.low > 5 * (naive.high - naive.low)


def test_nothing_but_arrays_is_loaded_from_the_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = np.empty((), object)
    evil[()] = find_task  # stands for any class or function
    np.save(tmp_path / "evil.npy", evil)
    monkeypatch.setattr("farthing.tasks.exercises.fetch", lambda *_: tmp_path / "evil.npy")
    with pytest.raises(TaskError, match="does not hold the recordings") as caught:
        find_task("watch")
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)
    (tmp_path / "evil.npy").write_bytes(b"nonsense")
    with pytest.raises(TaskError, match="does not hold the recordings"):
        find_task("watch")


# --- shuttle


def test_the_shuttle_trains_on_what_is_normal_and_is_scored_on_both() -> None:
    task = real("shuttle")
    labels = {name: task.split(name).labels for name in SPLITS}
    assert not labels["train"].any()  # type: ignore[union-attr]
    assert not labels["calibration"].any()  # type: ignore[union-attr]
    for name in ("validation", "test"):
        share = labels[name].mean()  # type: ignore[union-attr]
        assert share == pytest.approx(3511 / 49097, rel=0.01)
    known = task.split("train").inputs[""]
    assert np.abs(known.mean(0)).max() < 1e-3
    assert np.abs(known.std(0) - 1).max() < 1e-3
    everything = np.concatenate([task.split(name).inputs[""] for name in SPLITS])
    assert len(np.unique(everything, axis=0)) == len(everything), "no reading is in two splits"


def test_the_error_of_a_reconstruction_is_a_score() -> None:
    task = real("shuttle")
    train, test = task.split("train").inputs[""], task.split("test")
    axes = np.linalg.svd(train - train.mean(0), full_matrices=False)[2][:4]
    rows = test.inputs[""] - train.mean(0)
    error = ((rows - rows @ axes.T @ axes) ** 2).mean(1, keepdims=True)
    found_auc = task.metric.score({"error": error}, test.labels, None)
    assert found_auc.value > 0.9
    assert task.metric.score({"error": -error}, test.labels, None).value == pytest.approx(1 - found_auc.value)


# --- imagenet-photos


def test_no_photo_is_in_two_splits_and_its_views_belong_together() -> None:
    task = real("imagenet-photos")
    assert task.metric.name == "agreement"
    assert {name: len(split) for name, split in task.splits.items()} == {
        "calibration": 260,
        "validation": 500,
        "test": 500,
    }
    first = {}
    for name, split in task.splits.items():
        assert split.inputs[""].shape[1:] == (256, 256, 3)
        assert split.groups is not None
        each = np.bincount(split.groups)
        assert set(each) == {20 if name == "calibration" else 50}
        starts = np.flatnonzero(np.diff(split.groups, prepend=-1))
        first[name] = {split.inputs[""][start].tobytes() for start in starts}
        assert len(np.unique(split.inputs[""].reshape(len(split), -1)[:, ::97], axis=0)) == len(split)
        if split.labels is not None:
            assert (split.labels == np.repeat(split.labels[starts], 50)).all()
            assert set(split.labels) <= set(range(1000))
    assert sum(map(len, first.values())) == len(set().union(*first.values())) == 33
    assert real("imagenet-photos").digest == task.digest, "the same views every time"


# --- faces


def boxes_of(rows: Array) -> Array:
    return rows[rows[:, 0] >= 0, 1:]


def test_counted_faces_lie_in_the_picture_and_views_of_a_photo_agree_on_their_number() -> None:
    task = real("faces")
    counts = []
    for split in task.splits.values():
        assert split.labels is not None
        assert split.groups is not None
        numbers = np.array([len(boxes_of(rows)) for rows in split.labels])
        for group in np.unique(split.groups):
            assert len(set(numbers[split.groups == group])) == 1
            counts.append(int(numbers[split.groups == group][0]))
        for picture, rows in zip(split.inputs[""], split.labels, strict=True):
            assert picture.shape == (HEIGHT, WIDTH, 3)
            for x1, y1, x2, y2 in boxes_of(rows):
                assert 0 <= x1 < x2 <= WIDTH
                assert 0 <= y1 < y2 <= HEIGHT
                assert picture[int(y1) : int(y2), int(x1) : int(x2)].mean() > 10, "no face is in the bars"
    assert sorted(counts) == [0, 0, 0, 0, 0, 0, 1, 3, 3, 3, 4, 4, 5]


def test_faces_are_found_if_each_is_and_nothing_else() -> None:
    truth = np.array([[[0, 10, 10, 50, 60], [0, 100, 10, 140, 60], [-1, 0, 0, 0, 0]]], np.float32)
    right = [[12, 10, 50, 60], [100, 12, 140, 60]]
    rest = [0, 0, 0, 0]
    cases = {
        1: [([*right, rest], [0.9, 0.8, 0]), ([*reversed(right), [300, 300, 340, 350]], [0.9, 0.6, 0.4])],
        0: [
            ([*right, [300, 300, 340, 350]], [0.9, 0.8, 0.7]),
            ([right[0], right[0], rest], [0.9, 0.8, 0]),
            ([right[0], [100, 100, 140, 160], rest], [0.9, 0.8, 0]),
            ([*right, rest], [0.9, 0.4, 0]),
            ([rest, rest, rest], [0, 0, 0]),
        ],
    }
    for wanted, answers in cases.items():
        for boxes, scores in answers:
            outputs = {"boxes": np.array([boxes], np.float32), "scores": np.array([scores], np.float32)}
            assert found(outputs, truth).tolist() == [wanted], (boxes, scores)
    nobody = np.full((1, 3, 5), -1, np.float32)
    assert found({"boxes": np.zeros((1, 2, 4)), "scores": np.zeros((1, 2))}, nobody).tolist() == [1]


def test_centerface_s_maps_are_read_as_its_authors_do() -> None:
    heat, size, offset = np.zeros((1, 8, 10)), np.zeros((2, 8, 10)), np.zeros((2, 8, 10))
    heat[0, 3, 5], size[:, 3, 5], offset[:, 3, 5] = 0.9, (np.log(4), np.log(2)), (0.25, -0.5)
    heat[0, 3, 6], size[:, 3, 6], offset[1, 3, 6] = (
        0.7,
        (np.log(4), np.log(2)),
        -1.2,
    )  # on the first: suppressed
    heat[0, 6, 1], heat[0, 0, 0] = 0.6, CONFIDENCE - 0.01
    boxes = centres(heat, size, offset)
    # the middle is (place + offset + 0.5) * 4, height 4 * 4 and width 2 * 4 pixels
    assert boxes.tolist() == [[16, 7, 24, 23], [4, 24, 8, 28]]
    maps = {"a": heat[None], "b": size[None], "c": offset[None], "d": np.zeros((1, 10, 8, 10))}
    truth = np.array([[[0, 16, 7, 24, 23], [0, 4, 24, 8, 28], [-1, 0, 0, 0, 0]]])
    assert found(maps, truth).tolist() == [1]
    with pytest.raises(TaskError, match=r"boxes and scores, or those of CenterFace, not .*'y': \[7\]"):
        found({"y": np.zeros((1, 7))}, truth)


# --- several files of one package


def test_a_package_of_several_files_is_downloaded_once(tmp_path: Path) -> None:
    real("imagenet-photos")
    calls: list[Sequence[str]] = []
    said: list[str] = []

    def run(command: Sequence[str], directory: Path) -> tuple[int, str]:
        calls.append(command)
        with zipfile.ZipFile(directory / "foolbox-0-py3-none-any.whl", "w") as wheel:
            for _, asset in IMAGENET:
                wheel.writestr(asset.member, place(asset).read_bytes())
        return 0, ""

    assets = [asset for _, asset in IMAGENET]
    files = fetch_all(assets, tmp_path, said.append, run)
    assert len(calls) == 1
    assert [path.read_bytes() for path in files] == [place(asset).read_bytes() for asset in assets]
    assert said == [f"fetching {assets[0]} and 19 more; licence: {assets[0].licence}"]
    assert fetch_all(assets, tmp_path, said.append, run) == files
    assert len(calls) == len(said) == 1


@pytest.mark.slow
def test_sentences_are_different_texts_of_wordnet_in_tokens_of_minilm() -> None:
    task = real_sentences()
    assert [len(task.split(name)) for name in SPLITS] == [2048, 128, 256, 512]
    assert task.metric.name == "cosine"
    assert "WordNet" in task.licence
    rows = np.concatenate([task.split(name).inputs["tokens"] for name in SPLITS])
    masks = np.concatenate([task.split(name).inputs["mask"] for name in SPLITS])
    assert rows.shape == masks.shape == (2944, 32)
    assert (rows[:, 0] == 101).all()
    assert ((rows == 102).sum(1) == 1).all(), "one end each"
    assert ((rows == 0) == (masks == 0)).all()
    assert len({row.tobytes() for row in rows}) > 2900, "hardly any two alike in their first 32 tokens"
    assert masks.sum(1).min() >= 8
    assert task.digest == find_task("sentences").digest


def real_sentences() -> Task:
    try:
        return find_task("sentences")
    except AssetError as error:
        pytest.skip(str(error))
