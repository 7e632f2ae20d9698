"""Task files over npz, folders of pictures, CSV and Parquet."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from farthing import plugins
from farthing.errors import TaskError
from farthing.task import ImageFiles, Split, Task, find_task
from farthing.taskfile import read_task, shared_out

Array = NDArray[Any]
X = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
Y = np.arange(40) % 4


def task_at(root: Path, source: dict[str, Any], **fields: Any) -> Path:
    described = {"name": "t", "metric": "top1", "source": source, **fields}
    (root / "task.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    return root / "task.yaml"


def npz_task(root: Path, arrays: dict[str, Array] | None = None, **fields: Any) -> Path:
    np.savez(root / "data.npz", **(arrays or {"x": X, "y": Y}))  # type: ignore[arg-type]
    return task_at(
        root, {"format": "npz", "path": "data.npz", "labels": "y", **fields.pop("source", {})}, **fields
    )


def rows(task: Task) -> dict[str, set[bytes]]:
    return {name: {row.tobytes() for row in split.inputs[""]} for name, split in task.splits.items()}


# --- splits


def test_by_default_most_is_for_judging_and_every_sample_is_used_once(tmp_path: Path) -> None:
    task = read_task(npz_task(tmp_path))
    assert {name: len(split) for name, split in task.splits.items()} == {
        "calibration": 8,
        "validation": 16,
        "test": 16,
    }
    found = rows(task)
    assert set.union(*found.values()) == {row.tobytes() for row in X}
    assert sum(map(len, found.values())) == 40
    assert (
        read_task(tmp_path / "task.yaml").digest
        == task.digest
        == find_task(str(tmp_path / "task.yaml")).digest
    )


def test_the_seed_decides_who_goes_where(tmp_path: Path) -> None:
    first = read_task(npz_task(tmp_path))
    assert read_task(npz_task(tmp_path, seed=0)).digest == first.digest
    assert read_task(npz_task(tmp_path, seed=1)).digest != first.digest


@given(
    st.lists(st.integers(0, 5), min_size=20, max_size=200),
    st.lists(st.sampled_from([0.05, 0.1, 0.15, 0.2, 0.25]), min_size=1, max_size=4),
    st.integers(0, 100),
)
def test_shares_are_kept_for_the_whole_and_for_each_class(
    classes: list[int], shares: list[float], seed: int
) -> None:
    n, labels = len(classes), np.array(classes)
    names = ["train", "calibration", "validation", "test"][: len(shares)]
    found = shared_out(
        Split({"": np.arange(n)[:, None]}, labels), dict(zip(names, shares, strict=True)), seed, "t"
    )
    used = [int(row) for split in found.values() for row in split.inputs[""][:, 0]]
    assert len(set(used)) == len(used)
    for name, share in zip(names, shares, strict=True):
        part = found[name]
        assert part.labels is not None
        assert abs(len(part) - share * n) <= 1
        assert (part.labels == labels[part.inputs[""][:, 0]]).all(), "labels stay with their samples"
        for label in set(classes):
            assert abs((part.labels == label).sum() - share * classes.count(label)) <= 2.5


def test_labels_that_are_no_classes_are_shared_out_too(tmp_path: Path) -> None:
    task = read_task(npz_task(tmp_path, {"x": X, "y": X[:, 0] * 2}, metric="error"))
    for split in task.splits.values():
        assert split.labels is not None
        np.testing.assert_allclose(split.labels, split.inputs[""][:, 0] * 2)


@pytest.mark.parametrize("seed", [-1, -(2**40), 0.5])
def test_a_seed_is_a_whole_number_from_0(tmp_path: Path, seed: float) -> None:
    with pytest.raises(TaskError, match="seed"):
        read_task(npz_task(tmp_path, seed=seed))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": 0.8, "test": 0.3}, "sum to at most 1, not 1.1"),
        ({"train": 0.5, "test": 0.0}, "must be above 0"),
        ({"train": 0.5, "test": -0.1}, "must be above 0"),
        ({}, "`splits` is empty"),
        ({"train": "a", "test": 0.5}, "every split a share, or every split a name"),
        ({"train": "a", "test": "b"}, r"the path needs \{split\} in it"),
        ({"train": 0.9, "tets": 0.1}, "did you mean 'test'"),
        ({"train": 0.99, "test": 0.001}, "the test split is empty, because 40 samples are too few"),
    ],
)
def test_splits_that_make_no_sense(tmp_path: Path, splits: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read_task(npz_task(tmp_path, splits=splits))


def test_named_splits_come_from_files_of_their_own(tmp_path: Path) -> None:
    for word, part in (("tr", slice(0, 30)), ("va", slice(30, 35)), ("te", slice(35, 40))):
        np.savez(tmp_path / f"data-{word}.npz", x=X[part], y=Y[part])
    source = {"format": "npz", "path": "data-{split}.npz", "labels": "y"}
    named = {"train": "tr", "validation": "va", "test": "te"}
    task = read_task(task_at(tmp_path, source, splits=named))
    np.testing.assert_array_equal(task.split("test").inputs[""], X[35:])
    assert len(task.split("calibration")) == 30
    with pytest.raises(
        TaskError, match=r"data-absent.npz does not exist \(paths are relative to the task file\)"
    ):
        read_task(task_at(tmp_path, source, splits={"test": "absent"}))
    with pytest.raises(TaskError, match="two splits have the same name"):
        read_task(task_at(tmp_path, source, splits={"validation": "te", "test": "te"}))


HALVES = {"calibration": "cal", "validation": "val"}


def test_calibration_needs_no_labels_and_the_other_splits_do(tmp_path: Path) -> None:
    """Nothing looks at them: pictures off the device will do."""
    np.savez(tmp_path / "cal.npz", x=X[:10])
    np.savez(tmp_path / "val.npz", x=X[10:], y=Y[10:])
    source = {"format": "npz", "path": "{split}.npz", "labels": "y"}
    task = read_task(task_at(tmp_path, source, splits=HALVES))
    assert task.split("calibration").labels is None
    assert task.split("validation").labels is not None
    with pytest.raises(TaskError, match=r"cal\.npz has no 'y'"):
        read_task(task_at(tmp_path, source, splits={"calibration": "val", "test": "cal"}))
    np.savez(tmp_path / "cal.npz", x=X[:10], y=Y[:9])
    with pytest.raises(
        TaskError, match=r"task t, the calibration split in .*cal\.npz: .*input data 10, labels 9"
    ):
        read_task(task_at(tmp_path, source, splits=HALVES))


def test_calibration_rows_need_no_column_of_labels(tmp_path: Path) -> None:
    (tmp_path / "cal.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "val.csv").write_text("a,b,kind\n1,2,0\n3,4,1\n")
    source = {"format": "csv", "path": "{split}.csv", "labels": "kind"}
    task = read_task(task_at(tmp_path, source, splits=HALVES))
    assert task.split("calibration").inputs[""].tolist() == [[1, 2], [3, 4]]
    assert task.split("calibration").labels is None
    with pytest.raises(TaskError, match=r"cal\.csv has no 'kind'"):
        read_task(task_at(tmp_path, source, splits={"calibration": "val", "test": "cal"}))


# --- npz


def test_several_inputs_and_a_shape(tmp_path: Path) -> None:
    arrays = {"left": np.zeros((40, 6), np.uint8), "right": np.ones((40, 6)), "y": Y}
    source = {"inputs": {"a": "left", "b": "right"}, "shape": [2, 3]}
    task = read_task(npz_task(tmp_path, arrays, source=source))
    assert {name: array.shape[1:] for name, array in task.split("test").inputs.items()} == {
        "a": (2, 3),
        "b": (2, 3),
    }
    assert task.split("test").inputs["a"].dtype == np.uint8


def test_pictures_as_an_array(tmp_path: Path) -> None:
    task = read_task(npz_task(tmp_path, {"x": np.zeros((40, 8, 8, 3), np.uint8), "y": Y}, form="image"))
    assert task.form == "image"


def test_labels_may_be_words(tmp_path: Path) -> None:
    words = np.array(["cat", "dog", "emu", "fox"])[Y]
    task = read_task(npz_task(tmp_path, {"x": X, "y": words}, labels=["fox", "emu", "dog", "cat"], seed=3))
    found = task.split("validation")
    assert found.labels is not None
    for row, label in zip(found.inputs[""], found.labels, strict=True):
        assert words[(row == X).all(1)][0] == task.labels[label]
    with pytest.raises(TaskError, match=r"label 'fox' is none of the task's `labels`; did you mean 'fax'"):
        read_task(npz_task(tmp_path, {"x": X, "y": words}, labels=["fax", "emu", "dog", "cat"]))


@pytest.mark.parametrize(
    ("arrays", "fields", "message"),
    [
        ({"x": X}, {}, "data.npz has no 'y'; Known: x"),
        ({"images": X, "y": Y}, {}, "data.npz has no 'x'"),
        ({"x": X, "y": Y}, {"source": {"inputs": {"": ["x", "y"]}}}, "names several arrays"),
        (
            {"x": X, "y": Y},
            {"source": {"shape": [2, 2]}},
            r"samples have shape \[3\], which does not make \[2, 2\]",
        ),
        (
            {"x": X, "y": Y[:-1]},
            {},
            r"task t, .*data.npz: inputs .* differ in their number of samples: input data 40, labels 39",
        ),
        ({"x": np.float32(1), "y": Y}, {"source": {"shape": [1]}}, "'x' is no array with one entry a sample"),
        ({"x": X, "y": np.array(["a", "b", "c", "d"])[Y]}, {"labels": list("abcda")}, "names 'a' twice"),
        ({"x": X, "y": Y * 1j}, {}, r"labels are complex128 \[40\]"),
        ({"x": X, "y": Y.astype(object)}, {}, "pickles are refused"),
        (
            {"x": np.full_like(X, np.nan), "y": Y},
            {},
            "data.npz: input data of sample 0 holds NaN",
        ),
        ({"x": X[:0], "y": Y[:0]}, {}, "data.npz is empty"),
        ({"x": X, "y": Y}, {"labels": ["a", "b"]}, r"label [23] is out of range \(0..1\)"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, Array], fields: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read_task(npz_task(tmp_path, arrays, **fields))


class Trace:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.place),))


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = npz_task(tmp_path)
    whole = (tmp_path / "data.npz").read_bytes()
    np.save(tmp_path / "one.npy", X)
    contents = [
        b"",
        b"text",
        whole[: len(whole) // 2],
        (tmp_path / "one.npy").read_bytes(),
        pickle.dumps(Trace(tmp_path / "trace")),
    ]
    for content in contents:
        (tmp_path / "data.npz").write_bytes(content)
        with pytest.raises(TaskError, match=r"data.npz is not an npz file"):
            read_task(path)
    assert not (tmp_path / "trace").exists()


def test_an_array_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    path = npz_task(tmp_path)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 1000), }"
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as zipped:
        text = header.ljust(117) + b"\n"
        claim = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 64
        zipped.writestr("x.npy", claim)
        zipped.writestr("y.npy", claim)
    with pytest.raises(TaskError, match="is not an npz file"):
        read_task(path)


def test_an_array_that_unpacks_to_more_than_there_is_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte of zip can stand for a gigabyte of zeros."""
    path = npz_task(tmp_path)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 512}.__getitem__)
    with pytest.raises(TaskError, match=r"unpacks to .* use fewer samples"):
        read_task(path)


def test_only_the_arrays_wanted_are_read(tmp_path: Path) -> None:
    notes = np.array([{"camera": 1}], dtype=object)
    path = npz_task(tmp_path, {"x": X, "y": Y, "notes": notes})
    assert len(read_task(path).split("test")) == 16


@pytest.mark.parametrize(
    "labels", [Y.astype(np.float32), Y[:, None], Y[:, None].astype(np.float64), Y.astype("S")], ids=repr
)
def test_classes_written_in_other_ways(tmp_path: Path, labels: Array) -> None:
    """Whole numbers as floats, in a column, or as bytes: what training code saves."""
    found = read_task(npz_task(tmp_path, {"x": X, "y": labels})).split("test")
    assert found.labels is not None
    assert (found.labels.dtype, found.labels.shape) == (np.int64, (16,))
    for row, label in zip(found.inputs[""], found.labels, strict=True):
        assert Y[(row == X).all(1)][0] == label


def test_yes_and_no_are_classes_too(tmp_path: Path) -> None:
    found = read_task(npz_task(tmp_path, {"x": X, "y": Y > 1}, metric="auc")).split("test")
    assert found.labels is not None
    assert sorted(set(found.labels.tolist())) == [0, 1]


def test_labels_that_are_measured_stay_as_they_are(tmp_path: Path) -> None:
    for values in (Y[:, None].astype(np.float32), X):
        found = read_task(npz_task(tmp_path, {"x": X, "y": values}, metric="error")).split("test")
        assert found.labels is not None
        assert (found.labels.dtype, found.labels.shape[1:]) == (np.float32, values.shape[1:])


@given(st.data())
def test_a_damaged_npz_is_a_task_error_or_a_task(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("npz")
    path = npz_task(root)
    content = bytearray((root / "data.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (root / "data.npz").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(TaskError):
        assert len(read_task(path).splits) == 3


# --- csv


def csv_task(root: Path, text: str | bytes, **fields: Any) -> Path:
    (root / "data.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    source = {"format": "csv", "path": "data.csv", "labels": "kind", **fields.pop("source", {})}
    return task_at(root, source, splits=fields.pop("splits", {"test": 1.0}), **fields)


def test_a_row_is_a_sample(tmp_path: Path) -> None:
    split = read_task(csv_task(tmp_path, "a, b,kind\n1,2,0\n3,4.5,1\n")).split("test")
    order = np.argsort(split.inputs[""][:, 0])
    np.testing.assert_array_equal(split.inputs[""][order], np.array([[1, 2], [3, 4.5]], np.float32))
    assert split.labels is not None
    assert split.labels[order].tolist() == [0, 1]
    assert split.labels.dtype == np.int64


def test_columns_may_be_chosen_and_shaped(tmp_path: Path) -> None:
    text = "a,b,c,d,kind\n1,2,3,4,0\n"
    inputs = {"left": ["b", "a"], "right": ["c", "d"], "one": "d"}
    split = read_task(csv_task(tmp_path, text, source={"inputs": inputs})).split("test")
    assert {name: array.tolist() for name, array in split.inputs.items()} == {
        "left": [[2, 1]],
        "right": [[3, 4]],
        "one": [[4]],
    }
    shaped = read_task(csv_task(tmp_path, text, source={"shape": [2, 2]})).split("test")
    assert shaped.inputs[""].tolist() == [[[1, 2], [3, 4]]]


def test_what_spreadsheets_write(tmp_path: Path) -> None:
    """A byte order mark, carriage returns, quotes, and empty lines at the end."""
    text = '\ufeffkind,a\r\n"cat",1\r\ndog,"2"\r\n\r\n\r\n'
    split = read_task(csv_task(tmp_path, text, labels=["dog", "cat"])).split("test")
    assert split.labels is not None
    assert sorted(zip(split.inputs[""][:, 0], split.labels, strict=True)) == [(1, 1), (2, 0)]


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("", {}, "is empty: a CSV file has a header line"),
        ("\n\n", {}, "is empty: a CSV file has a header line"),
        ("a;kind\n1;0\n", {}, "parts its columns by ';': save it with commas"),
        ("a,kind\n", {}, "no rows below its header"),
        ("1,2\n3,4\n", {}, "needs a first line that names its columns"),
        ("a,a,kind\n1,2,3\n", {}, "names its columns, each once"),
        ("a,kind\n1,0\n2\n", {}, "line 3 has 1 field, but the header names 2 columns"),
        ("a,kind\n\n\n1,0\n2,1,2\n", {}, "line 5 has 3 fields, but the header names 2"),
        ("a,kind\n1,0\nx,0\n", {}, r"column 'a' is an input, but 'x' \(sample 1\) is no number"),
        ("a,kind\n,0\n", {}, "no number"),
        ("a,kind\n" + "1,0\n" * 7 + "nan,0\n1,0\n", {}, "data.csv: input data of sample 7 holds NaN"),
        ("a,kind\n1,cat\n", {}, "label 'cat' is none of the task's `labels`"),
        ("a,kind\n1,\n", {}, "label '' is none"),
        ("a,kind\n1,0.5\n", {}, "labels must be whole numbers"),
        ("a,kind\n1,-1\n", {}, "label -1 is out of range"),
        ("a,kind\n1,inf\n", {}, "a label is NaN or infinite"),
        ("a,knid\n1,0\n", {}, "has no 'kind'; did you mean 'knid'"),
        ("a,kind\n1,0\n", {"source": {"inputs": {"x": ["b"]}}}, "has no 'b'"),
        ("a,kind\n1,0\n", {"source": {"shape": [2]}}, r"does not make \[2\]"),
        (b"a,kind\n\xff,0\n", {}, "is not a CSV file"),
        ("a,kind\n" + "1" * 200_000 + ",0\n", {}, "is not a CSV file"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str | bytes, fields: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read_task(csv_task(tmp_path, text, **fields))


# --- parquet


def test_parquet_is_a_table_too(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {"pixels": [[1.0, 2, 3, 4], [5, 6, 7, 8]], "kind": ["cat", "dog"], "other": [None, 1]}
    parquet.write_table(pyarrow.table(table), tmp_path / "data.parquet")
    source = {
        "format": "parquet",
        "path": "data.parquet",
        "labels": "kind",
        "inputs": {"x": "pixels"},
        "shape": [2, 2],
    }
    split = read_task(task_at(tmp_path, source, labels=["cat", "dog"], splits={"test": 1.0})).split("test")
    assert split.inputs["x"].shape == (2, 2, 2)
    assert split.labels is not None
    assert sorted(split.labels.tolist()) == [0, 1]
    for inputs, message in (
        ({"x": "other"}, "NaN"),
        ({"x": "kind"}, "no number"),
        ({"x": "pixel"}, "did you mean 'pixels'"),
    ):
        fields: Any = {"labels": ["cat", "dog"], "splits": {"test": 1.0}}
        place = task_at(tmp_path, {**source, "inputs": inputs, "shape": []}, **fields)
        with pytest.raises(TaskError, match=message):
            read_task(place)
    parquet.write_table(pyarrow.table({"x": [[1.0], [2.0, 3.0]], "kind": [0, 1]}), tmp_path / "data.parquet")
    with pytest.raises(TaskError):
        read_task(task_at(tmp_path, {**source, "inputs": {"x": "x"}, "shape": []}))
    (tmp_path / "data.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(TaskError, match="is not a Parquet file"):
        read_task(task_at(tmp_path, source))


# --- folders of pictures


def pictures(root: Path, tree: dict[str, int]) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for folder, count in tree.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            shade = np.full((4, 4), 10 * i + len(folder), np.uint8)
            pillow.fromarray(shade).save(root / folder / f"{i}.png")


def folder_task(root: Path, path: str = "pictures", **fields: Any) -> Path:
    return task_at(root, {"format": "folder", "path": path}, **fields)


def test_a_folder_of_folders_is_a_task(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", {"dog": 10, "cat": 20})
    (tmp_path / "pictures" / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "pictures" / "cat" / "._0.png").write_text("what some systems leave beside a picture")
    for hidden in (".cache", "__MACOSX"):
        (tmp_path / "pictures" / hidden).mkdir()
    task = read_task(folder_task(tmp_path))
    assert task.labels == ("cat", "dog")
    assert task.form == "image"
    assert {name: len(split) for name, split in task.splits.items()} == {
        "calibration": 6,
        "validation": 12,
        "test": 12,
    }
    for split in task.splits.values():
        assert isinstance(split, ImageFiles)
        assert split.labels is not None
        for path, label in zip(split.inputs[""], split.labels, strict=True):
            assert Path(path).parent.name == task.labels[label]
    assert task.split("test").take([0])[""][0].shape == (4, 4)


def test_splits_that_lack_a_class_number_the_others_alike(tmp_path: Path) -> None:
    """Were each split numbered by its own folders, `emu` would be 2 in training and 1 in the test, unnoticed."""
    pictures(tmp_path / "train", {"cat": 2, "dog": 2, "emu": 2})
    pictures(tmp_path / "test", {"cat": 1, "emu": 3})
    task = read_task(folder_task(tmp_path, "{split}", splits={"test": "test", "train": "train"}))
    assert task.labels == ("cat", "dog", "emu")
    for split in task.splits.values():
        assert split.labels is not None
        for path, label in zip(split.inputs[""], split.labels, strict=True):
            assert Path(path).parent.name == task.labels[label]


def test_the_order_of_labels_may_be_given(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", {"dog": 3, "cat": 3})
    task = read_task(folder_task(tmp_path, labels=["dog", "cat"], splits={"test": 1.0}))
    split = task.split("test")
    assert split.labels is not None
    assert {
        Path(path).parent.name: int(label) for path, label in zip(split.inputs[""], split.labels, strict=True)
    } == {
        "dog": 0,
        "cat": 1,
    }
    with pytest.raises(TaskError, match="has the folder 'dog', which is not a label; did you mean 'dogs'"):
        read_task(folder_task(tmp_path, labels=["dogs", "cat"]))


def test_a_flat_folder_serves_for_calibration_alone(tmp_path: Path) -> None:
    pictures(tmp_path, {"cal": 3, "val/cat": 2, "val/dog": 2})
    task = read_task(folder_task(tmp_path, "{split}", splits=HALVES))
    assert task.labels == ("cat", "dog")
    assert task.split("calibration").labels is None
    assert task.split("calibration").take([2])[""][0].shape == (4, 4)
    flat = {"calibration": "val", "validation": "cal"}
    with pytest.raises(
        TaskError, match=r"the 3 pictures in .*cal have no labels: put each into .*\(cat, dog\)"
    ):
        read_task(folder_task(tmp_path, "{split}", splits=flat))


def test_a_folder_without_pictures_is_no_class(tmp_path: Path) -> None:
    """It would shift the numbers of the classes behind it."""
    pictures(tmp_path / "pictures", {"cat": 6, "dog": 6})
    (tmp_path / "pictures" / "cow").mkdir()
    (tmp_path / "pictures" / "cow" / "1.heic").write_bytes(b"")
    with pytest.raises(
        TaskError, match=r"pictures/cow holds no pictures \(\.bmp, .*\), but counts as the class 'cow'"
    ):
        read_task(folder_task(tmp_path))
    assert read_task(folder_task(tmp_path, labels=["cat", "cow", "dog"])).labels == ("cat", "cow", "dog")
    with pytest.raises(TaskError, match="names 'cat' twice"):
        read_task(folder_task(tmp_path, labels=["cat", "cow", "dog", "cat"]))


def test_pictures_without_labels_serve_agreement(tmp_path: Path) -> None:
    pictures(tmp_path, {"pictures": 8})
    task = read_task(folder_task(tmp_path, metric="agreement"))
    assert task.labels == ()
    assert all(split.labels is None for split in task.splits.values())
    with pytest.raises(TaskError, match="has no labels, which metric top1 needs"):
        read_task(folder_task(tmp_path, metric="top1"))


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="does not exist"):
        read_task(folder_task(tmp_path))
    (tmp_path / "pictures").write_text("a file")
    with pytest.raises(TaskError, match="is not a folder of pictures"):
        read_task(folder_task(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match="has no pictures"):
        read_task(folder_task(tmp_path, "empty"))


# --- samples that belong together


def grouped(root: Path, form: str, people: Array, **fields: Any) -> Task:
    """The samples X, Y in a file of some form, with a group each; words in tables, bytes or numbers in npz."""
    source = {"format": form, "path": f"data.{form}", "labels": "y", "groups": "person"}
    table = {**{f"x{i}": X[:, i] for i in range(3)}, "y": Y, "person": people}
    if form == "npz":
        np.savez(root / "data.npz", x=X, y=Y, person=people)
    elif form == "csv":
        lines = [",".join(table), *(",".join(map(str, row)) for row in zip(*table.values(), strict=True))]
        (root / "data.csv").write_text("\n".join(lines))
    else:
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table(table), root / "data.parquet")
    return read_task(task_at(root, source, **fields))


def apart(task: Task, people: Array) -> bool:
    """Whether no group is in two splits, by the samples themselves; and groups are those of the samples."""
    who = {row.tobytes(): person for row, person in zip(X, people.tolist(), strict=True)}
    seen: set[Any] = set()
    for split in task.splits.values():
        assert split.groups is not None
        pairs = {(who[row.tobytes()], int(g)) for row, g in zip(split.inputs[""], split.groups, strict=True)}
        names, numbers = {name for name, _ in pairs}, {number for _, number in pairs}
        if len(pairs) != len(names) or len(pairs) != len(numbers) or names & seen:
            return False
        seen |= names
    return len(seen) == len(set(people.tolist()))


@pytest.mark.parametrize("form", ["npz", "csv", "parquet"])
@pytest.mark.parametrize(
    "people",
    [np.arange(40) // 4 * 7, np.array([f"p{i // 4}" for i in range(40)]), np.arange(40) // 4 - 5.0],
    ids=["numbers", "words", "whole floats"],
)
def test_groups_come_from_the_file_and_are_never_cut(tmp_path: Path, form: str, people: Array) -> None:
    task = grouped(tmp_path, form, people)
    assert apart(task, people)
    assert {name: len(split) for name, split in task.splits.items()} == {
        "calibration": 8,
        "validation": 16,
        "test": 16,
    }
    assert task.split("validation").inputs[""].shape[1] == 3, "the group is no input"


def test_intervals_of_a_grouped_task_are_wider(tmp_path: Path) -> None:
    people = np.arange(40) // 10
    named = {"splits": {"validation": 0.99}}
    honest = grouped(tmp_path, "npz", people, **named).split("validation")
    alone = read_task(npz_task(tmp_path, **named)).split("validation")
    assert honest.labels is not None
    assert alone.labels is not None
    spreads = []
    for split in (alone, honest):
        assert split.labels is not None
        who = people[[int(np.flatnonzero((row == X).all(1))[0]) for row in split.inputs[""]]]
        guesses = np.where(who == 1, (split.labels + 1) % 4, split.labels)  # one person of four is misread
        found = plugins.get("metric", "top1").score(
            {"y": np.eye(4)[guesses]}, split.labels, None, split.groups
        )
        assert found.value == 0.75
        spreads.append(found.high - found.low)
    assert spreads[1] > 2 * spreads[0]


@given(
    st.lists(st.tuples(st.integers(0, 14), st.integers(0, 2)), min_size=30, max_size=200),
    st.integers(0, 50),
)
def test_shares_are_kept_about_and_groups_whole(samples: list[tuple[int, int]], seed: int) -> None:
    groups, labels = (np.array(column) for column in zip(*samples, strict=True))
    split = Split({"": np.arange(len(samples))[:, None]}, labels, groups)
    shares = {"validation": 0.5, "test": 0.3}  # a fifth is nobody's
    assume(len(set(groups.tolist())) >= 6)
    found = shared_out(split, shares, seed, "t")
    owners = [set(part.groups.tolist()) for part in found.values() if part.groups is not None]
    assert not owners[0] & owners[1]
    largest = int(np.bincount(groups).max())
    for name, share in shares.items():
        part = found[name]
        rows = part.inputs[""][:, 0]
        assert part.groups is not None
        assert (part.groups == groups[rows]).all()
        assert set(rows.tolist()) == set(np.flatnonzero(np.isin(groups, part.groups)).tolist())
        assert abs(len(part) - share * len(samples)) <= 2 * largest
    again = shared_out(split, shares, seed, "t")
    assert {name: part.digest for name, part in again.items()} == {
        name: part.digest for name, part in found.items()
    }


def test_fewer_groups_than_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="split is empty, because 2 groups are too few"):
        grouped(tmp_path, "npz", np.arange(40) // 20)


@pytest.mark.parametrize(
    ("people", "message"),
    [
        (np.arange(40) / 2, "groups are float64 .* not a whole number or word"),
        (np.full(40, np.nan), "groups are float64"),
        (np.arange(80).reshape(40, 2), r"groups are int64 \[40, 2\]"),
        (np.array(["a"] * 7 + [""] + ["b"] * 32), "sample 7 has no group"),
        (np.arange(39), "differ in their number|one whole number for each of 40 samples"),
    ],
)
def test_groups_that_make_no_sense(tmp_path: Path, people: Array, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        grouped(tmp_path, "npz", people)


def test_a_group_column_that_is_not_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, y=Y, person=Y)
    source = {"format": "npz", "path": "data.npz", "labels": "y", "groups": "persons"}
    with pytest.raises(TaskError, match="has no 'persons'; did you mean 'person'"):
        read_task(task_at(tmp_path, source))
    (tmp_path / "data.csv").write_text("a,y\n1,0\n2,1\n")
    with pytest.raises(TaskError, match="has no 'person'"):
        read_task(task_at(tmp_path, {"format": "csv", "path": "data.csv", "labels": "y", "groups": "person"}))


def test_a_split_for_calibration_may_lack_groups(tmp_path: Path) -> None:
    np.savez(tmp_path / "cal.npz", x=X)
    np.savez(tmp_path / "val.npz", x=X, y=Y, person=Y)
    source = {"format": "npz", "path": "{split}.npz", "labels": "y", "groups": "person"}
    splits = read_task(task_at(tmp_path, source, splits={"calibration": "cal", "validation": "val"})).splits
    assert splits["calibration"].groups is None
    assert splits["validation"].groups is not None
    with pytest.raises(TaskError, match="has no 'y'"):
        read_task(task_at(tmp_path, source, splits={"calibration": "val", "validation": "cal"}))


@pytest.mark.parametrize(
    ("groups", "names", "count"),
    [
        ("{group}_*", ["anna_1.png", "anna_2.png", "ben_1.png", "ben_2.png", "a_b_1.png", "a_b_2.png"], 3),
        ("{group}/*", ["anna/1.png", "anna/2.png", "ben/1.png", "ben/2.png", "cy/1.png", "cy/2.png"], 3),
        ("*-{group}.*", ["1-anna.png", "2-anna.png", "1-b.en.png", "2-b.en.png", "1-c.png", "2-c.png"], 3),
        ("{group}/shot*.png", ["a/shot1.png", "a/shot2.png", "b/shot1.png", "c/shot1.png"], 3),
    ],
)
def test_groups_of_pictures_by_name_and_by_folder(
    tmp_path: Path, groups: str, names: list[str], count: int
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for label in ("cat", "dog"):
        for name in names:
            place = tmp_path / "pictures" / label / name
            place.parent.mkdir(parents=True, exist_ok=True)
            pillow.new("L", (4, 4)).save(place)
    source = {"format": "folder", "path": "pictures", "groups": groups}
    task = read_task(task_at(tmp_path, source, splits={"validation": 0.999}))
    split = task.split("validation")
    assert task.labels == ("cat", "dog")
    assert len(split) == 2 * len(names)
    assert split.groups is not None
    assert len(np.unique(split.groups)) == count, "one name is one group in both classes"


def test_pictures_that_are_in_no_group(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "pictures" / "cat" / "anna").mkdir(parents=True)
    pillow.new("L", (4, 4)).save(tmp_path / "pictures" / "cat" / "anna" / "1.png")
    pillow.new("L", (4, 4)).save(tmp_path / "pictures" / "cat" / "2.png")
    source = {"format": "folder", "path": "pictures"}
    for form, culprit in (("{group}/*", "cat/2.png"), ("{group}_*", "cat/2.png")):
        with pytest.raises(TaskError, match=f"{culprit} is in no group, because `groups` is '"):
            read_task(task_at(tmp_path, {**source, "groups": form}))
    (tmp_path / "pictures" / "cat" / "2.png").unlink()
    with pytest.raises(TaskError, match="holds no pictures"):
        read_task(task_at(tmp_path, {**source, "groups": "{group}_*"}))
    for form in ("person", "{group}{group}", "{group}/*/*", "****{group}"):
        with pytest.raises(TaskError, match="groups of a folder are a pattern such as"):
            read_task(task_at(tmp_path, {**source, "groups": form}))


def test_groups_of_pictures_without_labels(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "pictures").mkdir()
    for name in ("a_1", "a_2", "b_1", "c_1", "c_2", "d_1"):
        pillow.new("L", (4, 4)).save(tmp_path / "pictures" / f"{name}.png")
    source = {"format": "folder", "path": "pictures", "groups": "{group}_*"}
    task = read_task(task_at(tmp_path, source, metric="agreement"))
    assert task.labels == ()
    assert (
        sum(len(np.unique(split.groups)) for split in task.splits.values() if split.groups is not None) == 4
    )


# --- the file itself


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: t\nmetric: top1\nsource: {format: npz}", "missing required field `path`"),
        (
            "name: t\nmetric: top1\nsource: {format: npy, path: a}",
            "'npy' at source.format .* did you mean 'npz'",
        ),
        (
            "name: t\nmetrics: top1\nsource: {format: npz, path: a}",
            "unknown key 'metrics'; did you mean 'metric'",
        ),
        ("name: t\nmetric: top1\nsource: {format: npz, path: a, label: y}", "unknown key 'label' at source"),
        ("name: t\nmetric: top1\nsource: {format: npz, path: a}\nform: images", "did you mean 'image'"),
        ("name: [", "not valid YAML"),
    ],
)
def test_task_files_that_cannot_be_understood(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(TaskError, match=message):
        read_task(tmp_path / "task.yaml")


def test_paths_are_relative_to_the_file_not_to_where_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    npz_task(tmp_path / "inner")
    monkeypatch.chdir(tmp_path)
    assert find_task("inner/task.yaml").name == "t"
