"""``init``: what it finds out, what it asks, and that wrong answers show before anything is written."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from farthing.bench import evaluate
from farthing.errors import ConfigError, ModelError, TaskError
from farthing.forge.convert import convert
from farthing.forge.init import Proposal, Question, propose, take_defaults
from farthing.forge.init.data import look
from farthing.forge.init.labels import labels_of
from farthing.model import Manifest, Model, Preprocess, checked
from farthing.taskfile import read_task

COLOURS = {"blue": (20, 30, 220), "green": (20, 200, 30), "red": (220, 30, 20)}
SIDE = 16


class ByColour(nn.Module):
    """Names the colour of a picture given as BGR in -1..1; anything else it gets wrong on purpose.

    Wrong ranges saturate: it answers class 0 unless values lie within -1..1 and have both signs.
    """

    def __init__(self, softmax: bool = False) -> None:
        super().__init__()
        self.softmax = softmax

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3))
        within = ((x.amax((1, 2, 3)) <= 1.001) & (x.amin((1, 2, 3)) < -0.5)).float().unsqueeze(1)
        logits = means * within * 5
        return logits.softmax(1) if self.softmax else logits


@pytest.fixture(scope="module")
def model() -> Model:
    return convert(ByColour(), name="colours", example=f"1x3x{SIDE}x{SIDE}").model


def paint(root: Path, per_class: int = 10, side: int = SIDE) -> Path:
    """A folder of pictures, one sub-folder a class, a little noise on each."""
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = np.clip(np.array(colour) + generator.normal(0, 10, (side, side + number % 3, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return paint(tmp_path / "photos")


class Person:
    """Answers some questions, takes defaults for the rest, and remembers what was asked."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers
        self.asked: dict[str, Question] = {}

    def __call__(self, question: Question) -> str:
        self.asked[question.key] = question
        return self.answers.get(question.key, "")


def test_a_folder_of_pictures_with_defaults_only(photos: Path, model: Model, tmp_path: Path) -> None:
    made = propose(photos, model, tmp_path / "work", ask=take_defaults)
    assert isinstance(made, Proposal)
    manifest = Model.open(tmp_path / "work" / "model").manifest
    assert manifest.labels == ("blue", "green", "red")
    assert manifest.decode == "logits"
    assert manifest.task == "photos"
    assert manifest.preprocess is not None
    assert manifest.preprocess.colour == "BGR"  # found by measuring
    assert (manifest.preprocess.mean, manifest.preprocess.std) == ((0.5,), (0.5,))
    task = read_task(tmp_path / "work" / "task.yaml")
    assert (task.metric.name, task.labels, task.form) == ("top1", manifest.labels, "image")
    assert {name: len(split) for name, split in task.splits.items()} == {
        "calibration": 6,
        "validation": 12,
        "test": 12,
    }
    assert evaluate(made.model, task)[0].value == 1.0


def test_every_default_taken_is_said_and_written_down(photos: Path, model: Model, tmp_path: Path) -> None:
    made = propose(photos, model, tmp_path / "work", ask=take_defaults)
    text = (tmp_path / "work" / "task.yaml").read_text()
    for key in ("classes", "metric", "splits", "values", "colour", "resize", "filter", "antialias"):
        assert any(sentence.startswith(f"{key}: ") for sentence in made.assumed), key
    assert all(f"# - {sentence}\n" in text for sentence in made.assumed)
    assert any("30 pictures, 3 classes" in sentence for sentence in made.found)
    assert any("-1..1 100%" in sentence for sentence in made.assumed)


def test_answers_are_taken_and_not_called_assumed(photos: Path, model: Model, tmp_path: Path) -> None:
    person = Person(
        classes="blue, green,red", metric="macro_f1", splits="validation 0.5, test 0.5", resize="letterbox",
        filter="bicubic", antialias="no", values="-1..1", colour="BGR",
    )  # fmt: skip
    made = propose(photos, model, tmp_path / "work", ask=person, name="mine")
    assert made.assumed == ()
    assert made.task.name == "mine"
    assert sorted(made.task.splits) == ["test", "validation"]
    resize = made.model.manifest.preprocess.resize if made.model.manifest.preprocess else None
    assert resize is not None
    assert (resize.mode, resize.filter, resize.antialias, resize.height) == (
        "letterbox",
        "bicubic",
        False,
        SIDE,
    )
    assert person.asked["resize"].choices
    assert all(question.text for question in person.asked.values())


def test_values_of_ones_own(photos: Path, model: Model, tmp_path: Path) -> None:
    person = Person(values="other", scale="0.0078431373", mean="1", std="1, 1, 1")
    made = propose(photos, model, tmp_path / "work", ask=person)
    preprocess = made.model.manifest.preprocess
    assert preprocess is not None
    assert (preprocess.mean, preprocess.std) == ((1.0,), (1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="no number"):
        propose(photos, model, tmp_path / "w2", ask=Person(values="other", mean="half"))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"metric": "acuracy"}, "Known: agreement"),
        ({"classes": "blue, green"}, "lacks 'red'"),
        ({"classes": "blue, green, red, red"}, "twice"),
        ({"classes": "blue, green, red, white"}, "4 names, the model has 3"),
        ({"classes": "@/nowhere/labels.txt"}, "cannot read"),
        ({"splits": "half 0.5"}, "no split is called 'half'"),
        ({"splits": "train much"}, "not of the form"),
        ({"resize": "squash"}, "no answer"),
    ],
)
def test_answers_that_cannot_be_used(
    photos: Path, model: Model, tmp_path: Path, answers: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        propose(photos, model, tmp_path / "work", ask=Person(**answers))
    assert not (tmp_path / "work").exists()


def test_a_wrong_order_of_classes_is_remarked(photos: Path, model: Model, tmp_path: Path) -> None:
    made = propose(photos, model, tmp_path / "work", ask=Person(classes="green, red, blue"))
    assert any("chance is 33%" in sentence for sentence in made.assumed)


def test_a_list_of_classes_from_a_file(photos: Path, model: Model, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("blue\ngreen\nred\n\n")
    made = propose(photos, model, tmp_path / "work", ask=Person(classes=f"@{tmp_path / 'labels.txt'}"))
    assert made.model.manifest.labels == ("blue", "green", "red")


def test_what_the_manifest_says_is_not_asked(photos: Path, model: Model, tmp_path: Path) -> None:
    preprocess = Preprocess(colour="BGR", scale=1 / 127.5, mean=(1.0,))
    told = checked(model.manifest, labels=("blue", "green", "red"), preprocess=preprocess, decode="logits")
    known = Model.create(told, {"model.onnx": model.file})
    paint(tmp_path / "even", 4)
    for path in (tmp_path / "even").rglob("*.png"):
        Image.open(path).resize((SIDE, SIDE)).save(path)
    person = Person()
    made = propose(tmp_path / "even", known, tmp_path / "work", ask=person)
    assert sorted(person.asked) == ["metric", "splits"]
    assert made.model.manifest.preprocess == preprocess
    told = checked(told, labels=("blue", "green", "crimson"))
    with pytest.raises(TaskError, match="'red'"):
        propose(photos, Model.create(told, {"model.onnx": model.file}), tmp_path / "w2", ask=person)


def test_existing_files_are_kept_unless_forced(photos: Path, model: Model, tmp_path: Path) -> None:
    propose(photos, model, tmp_path / "work", ask=take_defaults)
    (tmp_path / "work" / "notes.txt").write_text("mine")
    before = (tmp_path / "work" / "task.yaml").read_text()
    with pytest.raises(ConfigError, match="exists"):
        propose(photos, model, tmp_path / "work", ask=Person(metric="macro_f1"))
    assert (tmp_path / "work" / "task.yaml").read_text() == before
    propose(photos, model, tmp_path / "work", ask=Person(metric="macro_f1"), force=True)
    assert "macro_f1" in (tmp_path / "work" / "task.yaml").read_text()
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["model", "notes.txt", "task.yaml"]


def test_splits_that_have_folders(model: Model, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        paint(tmp_path / "set" / split, 3)
    made = propose(tmp_path / "set", model, tmp_path / "work", ask=take_defaults)
    assert {name: len(split) for name, split in made.task.splits.items()} == {
        "train": 9,
        "validation": 9,
        "test": 9,
        "calibration": 9,
    }
    assert "{split}" in (tmp_path / "work" / "task.yaml").read_text()


def test_pictures_for_calibration_need_no_folders_of_classes(model: Model, tmp_path: Path) -> None:
    for split in ("val", "test"):
        paint(tmp_path / "set" / split, 3)
    (tmp_path / "set" / "calib").mkdir()
    for path in paint(tmp_path / "photos", 3).rglob("*.png"):
        path.rename(tmp_path / "set" / "calib" / f"{path.parent.name}-{path.name}")
    made = propose(tmp_path / "set", model, tmp_path / "work", ask=take_defaults)
    assert {name: len(split) for name, split in made.task.splits.items()} == {
        "calibration": 9,
        "validation": 9,
        "test": 9,
    }
    assert made.task.split("calibration").labels is None
    assert any(sentence.startswith("27 pictures, 3 classes") for sentence in made.found)
    assert any("right of 9 samples of the validation split" in sentence for sentence in made.found)


def test_probabilities_are_recognised(photos: Path, tmp_path: Path) -> None:
    model = convert(ByColour(softmax=True), example=f"1x3x{SIDE}x{SIDE}").model
    assert (
        propose(photos, model, tmp_path / "work", ask=take_defaults).model.manifest.decode == "probabilities"
    )


def test_a_bare_onnx_file(photos: Path, model: Model, tmp_path: Path) -> None:
    made = propose(photos, model.file, tmp_path / "work", ask=take_defaults)
    assert any("taken as the batch axis" in sentence for sentence in made.assumed)
    assert made.model.manifest.inputs[0].layout == "NCHW"


def test_pictures_without_labels(model: Model, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in paint(tmp_path / "photos").rglob("*.png"):
        path.rename(flat / f"{path.parent.name}-{path.name}")
    made = propose(flat, model, tmp_path / "work", ask=take_defaults)
    assert made.task.metric.name == "agreement"
    assert made.model.manifest.preprocess is not None
    assert any(
        sentence.startswith("values: imagenet (the usual way; nothing to measure")
        for sentence in made.assumed
    )


# Arrays and tables.


class Linear(nn.Module):
    """Class 1 if the first value is above the second."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(x.shape[0], -1)
        return torch.stack([rows[:, 1], rows[:, 0]], 1)


@pytest.fixture(scope="module")
def rows() -> tuple[Any, Any]:
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    return x, (x[:, 0] > x[:, 1]).astype(np.int64)


def write_csv(path: Path, x: Any, labels: Any) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", "d", "label"])
        writer.writerows([*row, label] for row, label in zip(x.tolist(), labels, strict=True))
    return path


def write_npz(path: Path, x: Any, labels: Any) -> Path:
    np.savez(path, images=x, y=labels, note=np.array("from the lab"))
    return path


def write_parquet(path: Path, x: Any, labels: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"values": list(x), "target": labels}), path)
    return path


@pytest.mark.parametrize("write", [write_csv, write_npz, write_parquet], ids=["csv", "npz", "parquet"])
def test_arrays_and_tables(write: Callable[..., Path], rows: tuple[Any, Any], tmp_path: Path) -> None:
    model = convert(Linear(), example="1x4").model
    data = write(tmp_path / f"data.{write.__name__.removeprefix('write_')}", *rows)
    made = propose(data, model, tmp_path / "work", ask=take_defaults)
    assert made.task.form == "tensor"
    assert made.model.manifest.preprocess is None
    assert made.model.manifest.decode == "logits"
    assert evaluate(made.model, made.task)[0].value == 1.0
    assert "60" in str(sum(len(split) for split in made.task.splits.values()))


@pytest.mark.parametrize("write", [write_csv, write_npz, write_parquet], ids=["csv", "npz", "parquet"])
def test_labels_that_are_words(write: Callable[..., Path], rows: tuple[Any, Any], tmp_path: Path) -> None:
    x, y = rows
    words = np.array(["less", "more"])[y]
    data = write(tmp_path / "data", x, words)
    data = data if data.exists() else data.with_suffix(".npz")
    made = propose(data, convert(Linear(), example="1x4").model, tmp_path / "work", ask=take_defaults)
    assert made.model.manifest.labels == ("less", "more")
    assert evaluate(made.model, made.task)[0].value == 1.0


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_only_column_of_words_is_taken_for_the_labels(
    form: str, rows: tuple[Any, Any], tmp_path: Path
) -> None:
    x, y = rows
    words, data = np.array(["less", "more"])[y].tolist(), tmp_path / f"d.{form}"
    columns = {**dict(zip("abcd", x.T.tolist(), strict=True)), "outcome": words}

    def made(**more: Any) -> Proposal:
        table = {**columns, **more}
        if form == "csv":
            lines = [list(table), *map(list, zip(*table.values(), strict=True))]
            data.write_text("\n".join(",".join(map(str, line)) for line in lines))
        else:
            pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pyarrow.table(table), data)
        model = convert(Linear(), example="1x4").model
        return propose(data, model, tmp_path / "work", ask=take_defaults, force=True)

    taken = made()
    assert taken.model.manifest.labels == ("less", "more")
    assert any(sentence.startswith("labels: outcome (the only text, with") for sentence in taken.assumed)
    for other in ({"place": ["here", "there"] * 30}, {"outcome": ["a", "b", "c"] * 20}):
        assert made(**other).task.metric.name == "agreement"


def test_rows_take_the_shape_of_the_input(rows: tuple[Any, Any], tmp_path: Path) -> None:
    model = convert(Linear(), example="1x1x2x2").model
    for data in (write_csv(tmp_path / "d.csv", *rows), write_npz(tmp_path / "d.npz", *rows)):
        made = propose(data, model, tmp_path / f"work-{data.suffix[1:]}", ask=take_defaults)
        assert evaluate(made.model, made.task)[0].value == 1.0


def test_labels_that_are_numbers_with_fractions(rows: tuple[Any, Any], tmp_path: Path) -> None:
    x, _ = rows
    data = write_csv(tmp_path / "d.csv", x, (x[:, 0] * 2).tolist())
    made = propose(data, convert(nn.Linear(4, 1), example="1x4").model, tmp_path / "work", ask=take_defaults)
    assert made.task.metric.name == "error"
    assert made.model.manifest.decode == ""


def test_arrays_of_pictures(model: Model, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 40)
    x = np.array(list(COLOURS.values()))[y][:, None, None] + generator.integers(-9, 9, (40, SIDE, SIDE, 3))
    np.savez(tmp_path / "d.npz", x=x.clip(0, 255).astype(np.uint8), y=y)
    made = propose(tmp_path / "d.npz", model, tmp_path / "work", ask=take_defaults)
    assert made.task.form == "image"
    assert made.model.manifest.preprocess is not None
    assert made.model.manifest.preprocess.resize is None
    assert evaluate(made.model, made.task)[0].value == 1.0


class TwoInputs(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.stack([right.sum(1), left.sum(1)], 1)


def test_several_inputs_are_matched_by_name(rows: tuple[Any, Any], tmp_path: Path) -> None:
    x, _ = rows
    labels = (x[:, :2].sum(1) > x[:, 2:].sum(1)).astype(int)
    np.savez(tmp_path / "d.npz", left=x[:, :2], right=x[:, 2:], y=labels)
    model = convert(TwoInputs(), example="1x2,1x2").model
    made = propose(tmp_path / "d.npz", model, tmp_path / "work", ask=take_defaults)
    assert evaluate(made.model, made.task)[0].value == 1.0
    np.savez(tmp_path / "e.npz", one=x[:, :2], two=x[:, 2:], y=labels)
    with pytest.raises(ConfigError, match=r"input left"):
        propose(tmp_path / "e.npz", model, tmp_path / "w2", ask=take_defaults)
    person = Person(**{"input left": "one", "input right": "two"})
    assert evaluate(*_pair(propose(tmp_path / "e.npz", model, tmp_path / "w2", ask=person)))[0].value == 1.0


def _pair(made: Proposal) -> tuple[Model, Any]:
    return made.model, made.task


def test_data_that_do_not_fit_the_model(rows: tuple[Any, Any], tmp_path: Path) -> None:
    model = convert(Linear(), example="1x6").model
    with pytest.raises(TaskError, match="fits input"):
        propose(write_npz(tmp_path / "d.npz", *rows), model, tmp_path / "work", ask=take_defaults)
    with pytest.raises(
        TaskError, match=r"input 'x' takes 6 numbers a sample, but .*d\.csv has 4 \(a, b, c, d\)"
    ):
        propose(write_csv(tmp_path / "d.csv", *rows), model, tmp_path / "work", ask=take_defaults)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone", None, "there is no data"),
        ("d.npz", b"PK\x03\x04 broken", "not an npz"),
        ("d.pkl", b"\x80\x04", "pickle"),
        ("d.npy", b"\x93NUMPY\x01\x00", "single array"),
        ("d.bin", b"\x00\x01\x02", "is no folder of pictures, npz, CSV or Parquet file"),
        ("d.h5", b"\x89HDF\r\n\x1a\n", "is no folder of pictures, npz, CSV or Parquet file"),
        ("d.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        ("d.csv", b"", "is empty: a CSV file has a header line"),
        ("d.csv", b"1,2\n3,4\n", "needs a first line that names its columns"),
        ("d.csv", b"a;b\n1;2\n", "parts its columns by ';'"),
        ("d.csv", b"a,b\n", "header line"),
        ("d.csv", b"a,b\n1,2\n1,2,3\n", "line 3 has 3 fields, but the header names 2 columns"),
        ("d.parquet", b"PAR1 broken", "Parquet"),
    ],
)
def test_data_that_cannot_be_used(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=message):
        look(tmp_path / name)


@given(st.data())
def test_damaged_arrays_are_a_task_error_or_looked_at(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    place = tmp_path_factory.mktemp("npz") / "d.npz"
    np.savez_compressed(place, x=np.arange(40.0).reshape(20, 2), y=np.arange(20) % 2)
    content = bytearray(place.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    place.write_bytes(content[: data.draw(st.integers(4, len(content)))])
    with contextlib.suppress(TaskError):
        labels_of(look(place), "y")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no pictures"):
        look(tmp_path)


def test_not_a_model(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"words")
    with pytest.raises(ModelError):
        propose(photos, tmp_path / "m.onnx", tmp_path / "work", ask=take_defaults)
    with pytest.raises(ModelError):
        propose(photos, tmp_path / "none", tmp_path / "work", ask=take_defaults)


def test_a_model_that_takes_no_pictures(photos: Path, tmp_path: Path) -> None:
    model = convert(nn.Linear(4, 3), example="1x4").model
    assert isinstance(model.manifest, Manifest)
    with pytest.raises(ModelError, match="takes no pictures"):
        propose(photos, model, tmp_path / "work", ask=take_defaults)


# What must not pass in silence.


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_labels_of_another_length_are_an_error_that_names_both(rows: tuple[Any, Any], tmp_path: Path) -> None:
    x, y = rows
    model = convert(Linear(), example="1x4").model
    for labels in (
        y[:-1],
        np.concatenate([y, y]),
        y[:-1].astype(np.float32),
        np.array(["less", "more"])[y[:-1]],
    ):
        data = npz(tmp_path / "d.npz", x=x, y=labels)
        with pytest.raises(
            TaskError, match=rf"'y' has {len(labels)} entries, but 'x' has 60: give each sample one"
        ):
            propose(data, model, tmp_path / "work", ask=take_defaults)
    assert not (tmp_path / "work").exists()


def test_arrays_that_are_no_samples_are_left_out_and_named(rows: tuple[Any, Any], tmp_path: Path) -> None:
    x, y = rows
    extra = {"classes": np.array(["less", "more"]), "mean": np.zeros(4), "history": np.zeros(500)}
    made = propose(
        npz(tmp_path / "d.npz", x=x, y=y, **extra), convert(Linear(), example="1x4").model, tmp_path / "work",
        ask=take_defaults,
    )  # fmt: skip
    assert made.task.metric.name == "top1"
    assert (
        "arrays that do not have 60 entries are left out: classes (2), mean (4), history (500)" in made.found
    )


class Answer(nn.Module):
    """One number a sample."""

    def __init__(self, sign: float = 1.0, flat: bool = False) -> None:
        super().__init__()
        self.sign = sign
        self.flat = flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(x.shape[0], -1)
        score = torch.sigmoid(self.sign * (rows[:, :1] - rows[:, 1:2]))
        return score[:, 0] if self.flat else score


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_measured_labels_are_judged_by_their_error(
    rows: tuple[Any, Any], tmp_path: Path, shape: tuple[int, ...], kind: Any
) -> None:
    x, _ = rows
    wanted = 1 / (1 + np.exp(x[:, 1] - x[:, 0]))
    labels = np.round(wanted * 9).astype(kind) if kind is np.int64 else wanted.astype(kind)
    data = npz(tmp_path / "d.npz", x=x, y=labels.reshape(shape))
    made = propose(data, convert(Answer(), example="1x4").model, tmp_path / "work", ask=take_defaults)
    assert made.task.metric.name == "error"
    if kind is np.float32:
        assert evaluate(made.model, made.task)[0].value < 1e-6
        assert "mean absolute error on 12 samples of the calibration split: " in " ".join(made.found)


def test_several_measured_values_a_sample(rows: tuple[Any, Any], tmp_path: Path) -> None:
    x, _ = rows
    data = npz(tmp_path / "d.npz", x=x, y=x[:, [1, 0]])
    made = propose(data, convert(Linear(), example="1x4").model, tmp_path / "work", ask=take_defaults)
    assert made.task.metric.name == "error"
    assert evaluate(made.model, made.task)[0].value == 0


def test_one_number_a_sample_is_never_judged_by_agreement(rows: tuple[Any, Any], tmp_path: Path) -> None:
    data = npz(tmp_path / "d.npz", x=rows[0])
    with pytest.raises(ConfigError, match=r"says nothing without labels: add them.*without --yes"):
        propose(data, convert(Answer(), example="1x4").model, tmp_path / "work", ask=take_defaults)


def binary_labels(y: Any) -> dict[str, Any]:
    return {
        "int": y,
        "float": y.astype(np.float32),
        "bool": y.astype(bool),
        "column": y[:, None].astype(np.float64),
    }


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("form", ["int", "float", "bool", "column", "csv"])
def test_one_output_for_two_classes_is_judged_by_the_area_under_the_curve(
    rows: tuple[Any, Any], tmp_path: Path, form: str, flat: bool
) -> None:
    x, y = rows
    data = (
        write_csv(tmp_path / "d.csv", x, y) if form == "csv"
        else npz(tmp_path / "d.npz", x=x, y=binary_labels(y)[form])
    )  # fmt: skip
    made = propose(
        data, convert(Answer(flat=flat), example="1x4").model, tmp_path / "work", ask=take_defaults
    )
    assert made.task.metric.name == "auc"
    assert evaluate(made.model, made.task)[0].value == 1.0
    assert made.model.manifest.decode == ""


def test_two_words_for_one_output_are_0_and_1(rows: tuple[Any, Any], tmp_path: Path) -> None:
    x, y = rows
    data = write_csv(tmp_path / "d.csv", x, np.array(["no", "yes"])[y])
    model = convert(Answer(), example="1x4").model
    person = Person()
    made = propose(data, model, tmp_path / "work", ask=person)
    assert (made.task.labels, made.task.metric.name) == (("no", "yes"), "auc")
    assert made.model.manifest.labels == ()  # its output is no list of classes
    assert "which is 1" in person.asked["classes"].text
    assert not any("other way round" in sentence for sentence in made.assumed)
    made = propose(data, model, tmp_path / "w2", ask=Person(classes="yes, no"))
    assert any("other way round" in sentence for sentence in made.assumed)


def test_pictures_for_one_output_are_probed_by_the_area_under_the_curve(tmp_path: Path) -> None:
    class Reddish(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            means = x.mean((2, 3))
            return torch.sigmoid(means[:, :1] - means[:, 2:])

    paint(tmp_path / "photos", 10)
    for path in (tmp_path / "photos" / "green").iterdir():
        path.unlink()
    (tmp_path / "photos" / "green").rmdir()
    model = convert(Reddish(), example=f"1x3x{SIDE}x{SIDE}").model
    made = propose(tmp_path / "photos", model, tmp_path / "work", ask=take_defaults)
    assert made.task.metric.name == "auc"
    assert any("area under the ROC curve of 4 labelled pictures: RGB 100%, BGR 0%" in s for s in made.assumed)
    assert evaluate(made.model, made.task)[0].value == 1.0


@pytest.mark.parametrize(
    ("labels", "outputs", "message"),
    [
        (np.zeros(60, int), 2, "'y' is the same for all samples"),
        (np.array(["a", ""] * 30), 2, "sample 1 has no 'y'"),
        (np.array([0.5, np.nan] * 30), 2, "'y' of sample 1 is NaN"),
        (np.array([0.5, 1.5] * 30), 2, "labels are 1 measured values a sample, the model gives 2"),
        (
            np.ones((60, 3)),
            2,
            r"the labels 'y' are float64 \[3\] a sample, but should be .*, or \[2\] numbers",
        ),
        (np.array(["2026-01-01"] * 60, "datetime64[D]"), 2, r"the labels 'y' are datetime64\[D\]"),
        (np.zeros(60, object), 2, "the labels 'y' are object"),
        (np.array([-1, 1] * 30), 1, "two numbers, but not 0 and 1"),
        (np.array(["a", "b", "c"] * 20), 1, "tells two classes apart, but the data have 3: a, b, c"),
    ],
)
def test_labels_that_cannot_be_used(
    rows: tuple[Any, Any], tmp_path: Path, labels: Any, outputs: int, message: str
) -> None:
    data = npz(tmp_path / "d.npz", x=rows[0], y=labels)
    model = convert(Linear() if outputs == 2 else Answer(), example="1x4").model
    with pytest.raises((TaskError, ConfigError), match=message):
        propose(data, model, tmp_path / "work", ask=take_defaults)
    assert not (tmp_path / "work").exists()


def test_arrays_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="are empty: give it samples"):
        look(npz(tmp_path / "d.npz", x=np.zeros((0, 4)), y=np.zeros(0)))
    data = npz(tmp_path / "e.npz", x=np.zeros((60, 4), complex), y=np.arange(60) % 2)
    with pytest.raises(TaskError, match=r"samples have: x complex128 \[4\]"):
        propose(data, convert(Linear(), example="1x4").model, tmp_path / "work", ask=take_defaults)


def test_one_hot_rows_are_no_classes(rows: tuple[Any, Any], tmp_path: Path) -> None:
    x, y = rows
    for labels in (np.eye(2)[y], np.eye(2, dtype=np.int64)[y]):
        data = npz(tmp_path / "d.npz", x=x, y=labels)
        with pytest.raises(TaskError, match=r"'y' holds one-hot rows: .* y\.argmax\(1\)"):
            propose(data, convert(Linear(), example="1x4").model, tmp_path / "work", ask=take_defaults)


def test_columns_that_are_left_out_are_named_with_the_reason(rows: tuple[Any, Any], tmp_path: Path) -> None:
    x, y = rows
    lines = [
        f"{i},{','.join(map(str, row))},word,{'?' if i == 7 else i},{label}"
        for i, (row, label) in enumerate(zip(x.tolist(), y, strict=True))
    ]
    (tmp_path / "d.csv").write_text("\n".join([",a,b,c,d,note,age,label", *lines]))
    made = propose(
        tmp_path / "d.csv", convert(Linear(), example="1x4").model, tmp_path / "work", ask=take_defaults
    )
    left = "one without a name (an index?), note (holds 'word' in sample 0), age (holds '?' in sample 7)"
    assert f"columns left out: {left}" in made.found
    assert evaluate(made.model, made.task)[0].value == 1.0
    with pytest.raises(
        TaskError,
        match=r"takes 5 numbers .* has 4 \(a, b, c, d\); left out: .*age \(holds '\?' in sample 7\)",
    ):
        propose(
            tmp_path / "d.csv", convert(Linear(), example="1x5").model, tmp_path / "w2", ask=take_defaults
        )


def test_folders_that_mislead(photos: Path, tmp_path: Path) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(TaskError, match="empty holds no pictures"):
        look(photos)
    (photos / "empty").rmdir()
    (photos / "red" / "0.png").rename(photos / "cover.png")
    assert look(photos).remarks == ("1 pictures beside the folders of the classes are left out",)
    for name in ("blue", "green"):
        for path in (photos / name).iterdir():
            path.unlink()
        (photos / name).rmdir()
    with pytest.raises(
        TaskError, match=r"in the one class 'red': .* or give .*photos/red for pictures without"
    ):
        look(photos)
    for name in ("train", "test", "more"):
        paint(tmp_path / "set" / name, 1)
    with pytest.raises(TaskError, match=r"called like splits \(train, test\) among more, test, train"):
        look(tmp_path / "set")


def test_splits_that_a_search_will_miss_are_named(model: Model, tmp_path: Path) -> None:
    for split in ("calib", "test"):
        paint(tmp_path / "set" / split, 2)
    made = propose(tmp_path / "set", model, tmp_path / "work", ask=take_defaults)
    assert "there is no folder for validation: a search needs one, to decide by" in made.assumed


class Doubtful(Person):
    """Answers wrongly first."""

    def __init__(self, wrong: dict[str, str], **answers: str) -> None:
        super().__init__(**answers)
        self.wrong = wrong

    def __call__(self, question: Question) -> str:
        super().__call__(question)
        return self.wrong.pop(question.key, self.answers.get(question.key, ""))


@pytest.mark.parametrize(
    ("key", "wrong", "right", "problem"),
    [
        ("classes", "blue, green", "blue, green, red", "lacks 'red'"),
        ("classes", "@/nowhere/labels.txt", "", "cannot read"),
        ("splits", "validation much", "validation 0.5, test 0.5", "not of the form"),
        ("splits", "validation 0.9, test 0.5", "", "sum to at most 1, not 1.4"),
        ("metric", "acuracy", "top1", "Known: agreement"),
        ("mean", "half", "0.5", "no number"),
    ],
)
def test_a_wrong_answer_is_asked_for_again(
    photos: Path, model: Model, tmp_path: Path, key: str, wrong: str, right: str, problem: str
) -> None:
    person = Doubtful({key: wrong}, **{"values": "other", key: right})
    made = propose(photos, model, tmp_path / "work", ask=person)
    assert problem in person.asked[key].why
    assert any(sentence.startswith(f"{key}: ") for sentence in made.assumed) == (not right)
    assert problem not in "".join(made.assumed)


def test_without_anybody_to_answer_the_error_says_so(photos: Path, tmp_path: Path) -> None:
    model = convert(
        nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 5)), example=f"1x3x{SIDE}x{SIDE}"
    ).model
    with pytest.raises(
        ConfigError, match=r"classes: .* all 5 must be named\): run `farthing init` without --yes"
    ):
        propose(photos, model, tmp_path / "work", ask=take_defaults)


def test_a_model_that_needs_an_example_is_sent_to_convert(photos: Path, tmp_path: Path) -> None:
    torch.jit.trace(ByColour(), torch.zeros(1, 3, SIDE, SIDE)).save(tmp_path / "m.pt")  # type: ignore[no-untyped-call]
    with pytest.raises(ModelError, match=r"bring it in first with `farthing convert .*m\.pt --example SHAPE"):
        propose(photos, tmp_path / "m.pt", tmp_path / "work", ask=take_defaults)


def test_names_with_line_breaks_stay_in_their_comment(photos: Path, model: Model, tmp_path: Path) -> None:
    """Names come from files; a line of the task file must not."""
    graph = onnx.load(model.file)
    for node in graph.graph.node:
        node.input[:] = ["x\nseed: 7" if name == "x" else name for name in node.input]
    graph.graph.input[0].name = "x\nseed: 7"
    (tmp_path / "m.onnx").write_bytes(graph.SerializeToString())
    made = propose(photos, tmp_path / "m.onnx", tmp_path / "work", ask=take_defaults)
    assert any("\nseed: 7" in sentence for sentence in made.assumed)
    lines = (tmp_path / "work" / "task.yaml").read_text().splitlines()
    assert not any(line.startswith("seed: 7") for line in lines)
