"""Tasks in memory: what is refused when they are made, and when they are held against a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from farthing import plugins
from farthing.errors import PluginError, TaskError
from farthing.metrics import Metric
from farthing.model import Manifest, Preprocess, TensorSpec
from farthing.picture import load
from farthing.task import SPLITS, ImageFiles, Split, Task, find_task

Array = NDArray[Any]


def split(n: int = 10, classes: int = 3, **inputs: Array) -> Split:
    return Split(inputs or {"": np.zeros((n, 4), np.float32)}, np.arange(n) % classes)


def manifest(*inputs: TensorSpec, classes: int | str = 3, **changes: Any) -> Manifest:
    given_inputs = inputs or (TensorSpec(name="x", dtype="float32", shape=("batch", 4), batch_axis=0),)
    output = TensorSpec(name="y", dtype="float32", shape=("batch", classes), batch_axis=0)
    return Manifest(name="net", format="onnx", inputs=given_inputs, outputs=(output,), **changes)


def spec(name: str, *shape: int | str, **more: Any) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape, **{"batch_axis": 0, **more})


# --- splits


def test_a_split_gives_samples_by_number() -> None:
    data = Split({"a": np.arange(12).reshape(6, 2), "b": np.arange(6)}, np.arange(6) * 10)
    taken = data.take([5, 0, 0])
    assert taken["a"].tolist() == [[10, 11], [0, 1], [0, 1]]
    assert taken["b"].tolist() == [5, 0, 0]
    some = data.subset([4, 1])
    assert len(some) == 2
    assert some.labels is not None
    assert some.labels.tolist() == [40, 10]
    assert len(data) == 6


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        ({"": np.zeros((3, 2))}, np.zeros(4)),
        ({"a": np.zeros(3), "b": np.zeros(2)}, None),
        ({}, None),
        ({}, np.zeros(3)),
        ({"": np.float32(3)}, None),
        ({"": np.zeros(3)}, np.int64(3)),
    ],
)
def test_splits_that_do_not_hang_together(inputs: dict[str, Array], labels: Array | None) -> None:
    with pytest.raises(TaskError):
        Split(inputs, labels)


def test_a_split_may_say_which_samples_belong_together() -> None:
    x, y = np.zeros((6, 2)), np.arange(6)
    photos = Split({"": x}, y, groups=np.array([7, 7, 2, 2, 2, 5]))
    part = photos.subset([0, 4, 5]).groups
    assert part is not None
    assert part.tolist() == [7, 2, 5]
    assert Split({"": x}, y).groups is None
    assert len({photos.digest, Split({"": x}, y).digest, Split({"": x}, y, groups=np.arange(6)).digest}) == 3
    for wrong in (np.zeros(5, int), np.zeros((6, 1), int), np.zeros(6)):
        with pytest.raises(TaskError, match="groups are one whole number for each of 6 samples"):
            Split({"": x}, y, groups=wrong)


def test_the_digest_covers_names_types_shapes_values_and_labels() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    y = np.array([0, 1, 2])
    variants = [
        Split({"": x}, y),
        Split({"x": x}, y),
        Split({"": x.reshape(3, 1, 2)}, y),
        Split({"": x.astype(np.float64)}, y),
        Split({"": x[::-1]}, y),
        Split({"": x}, y[::-1]),
        Split({"": x}),
        Split({"": x, "labels": y}),
    ]
    assert len({one.digest for one in variants}) == len(variants)
    assert Split({"": np.asfortranarray(x)}, y.copy()).digest == variants[0].digest


def test_the_digest_of_a_task_covers_all_that_decides_a_score() -> None:
    base = {"test": split(), "train": split(20)}
    variants = [
        Task("t", base, "top1"),
        Task("t", {"test": split()}, "top1"),
        Task("t", base, "macro_f1"),
        Task("t", base, "top1", labels=("a", "b", "c")),
        Task("t", base, "top1", labels=("b", "a", "c")),
        Task("t", {**base, "test": split(9)}, "top1"),
    ]
    assert len({task.digest for task in variants}) == len(variants)
    assert Task("other name", dict(reversed(base.items())), "top1").digest == variants[0].digest


def test_calibration_comes_from_all_over_the_training_data() -> None:
    """Data sorted by class are common: the first samples would be of one class."""
    sorted_by_class = Split({"": np.arange(5000.0)[:, None]}, np.repeat(np.arange(10), 500))
    task = Task("t", {"train": sorted_by_class}, "top1")
    calibration = task.split("calibration")
    assert calibration.labels is not None
    assert len(calibration) == 256
    assert np.bincount(calibration.labels).min() >= 25
    few = Task("t", {"train": split(3)}, "top1").split("calibration")
    assert len(few) == 3
    own = Task("t", {"train": split(300), "calibration": split(7)}, "top1").split("calibration")
    assert len(own) == 7


# --- what a task refuses


def pair(*values: Any, labels: Any = (0, 0), name: str = "") -> dict[str, Split]:
    """A test split of two samples of one number."""
    return {
        "test": Split(
            {name: np.array(values or [0.0, 0.0])[:, None]}, None if labels is None else np.array(labels)
        )
    }


@pytest.mark.parametrize(
    ("splits", "metric", "more", "message"),
    [
        ({}, "top1", {}, "task t has no splits; known: train, calibration, validation, test"),
        ({"tets": split()}, "top1", {}, "no split is called 'tets'; did you mean 'test'"),
        ({"test": split(0)}, "top1", {}, "task t: the test split is empty"),
        (pair(labels=None), "top1", {}, "has no labels, which metric top1 needs; or use 'agreement'"),
        (pair(1.0, np.nan), "top1", {}, "input data of sample 1 holds NaN"),
        (pair(np.inf, 1.0, name="a"), "top1", {}, "input a of sample 0 holds NaN"),
        (pair("a", "b"), "top1", {}, "not numbers"),
        (pair(labels=[0.0, np.nan]), "error", {}, "a label is NaN or infinite"),
        (pair(labels=[0.0, 1.0]), "top1", {}, "labels must be whole numbers, one a sample"),
        (pair(labels=[[0, 0], [1, 1]]), "auc", {}, "labels must be whole numbers, one a sample"),
        (
            {"test": split()},
            "top1",
            {"labels": ("a", "b")},
            r"the test split: label 2 is out of range \(0..1\)",
        ),
        (pair(labels=[0, -1]), "top1", {}, r"label -1 is out of range \(0 and above\)"),
        ({"test": split()}, "top1", {"form": "image"}, r"pictures are uint8 .* not float32 \[10, 4\]"),
        (
            {"test": split(2, a=np.zeros((2, 8, 8, 4), np.uint8))},
            "top1",
            {"form": "image"},
            "pictures are uint8",
        ),
    ],
)
def test_tasks_that_cannot_be_used(splits: Any, metric: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Task("t", splits, metric, **more)


def test_calibration_needs_no_labels() -> None:
    bare = Split({"": np.zeros((4, 4))})
    task = Task("t", {"calibration": bare, "validation": split(), "test": split()}, "top1")
    assert task.split("calibration").labels is None
    task.check(manifest())


def test_numbered_classes_may_share_a_name() -> None:
    """ImageNet has two cranes."""
    assert Task("t", {"test": split()}, "top1", labels=("crane", "emu", "crane")).labels[2] == "crane"


def test_what_is_no_split_is_refused_with_the_right_way_to_write_it() -> None:
    x, y = np.zeros((3, 2)), np.zeros(3, int)
    with pytest.raises(TaskError, match=r'a ndarray was given: .* write Split\({"": array}, labels\)'):
        Split(x, y)  # type: ignore[arg-type]
    for wrong in (x, {"": x}, None):
        with pytest.raises(TaskError, match=r"the train split is a .*: make a farthing\.Split of it"):
            Task("t", {"train": wrong}, "top1")  # type: ignore[dict-item]
    with pytest.raises(TaskError, match="input left 3, input right 2, labels 3"):
        Split({"left": x, "right": x[:2]}, y)


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(PluginError, match="did you mean 'top1'"):
        Task("t", {"test": split()}, "topp1")


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 8, 8, 1), (3, 8, 8, 3)])
def test_pictures_in_memory(shape: tuple[int, ...]) -> None:
    Task("t", {"test": Split({"": np.zeros(shape, np.uint8)}, np.zeros(3, int))}, "top1", form="image")


def test_a_missing_split_says_how_to_get_one() -> None:
    task = Task("t", {"test": split()}, "top1")
    for name in SPLITS[:3]:
        with pytest.raises(TaskError, match=f"task t has no {name} split: add one"):
            task.split(name)


# --- a task against a model


def test_a_task_that_fits_fits() -> None:
    Task("t", {"test": split()}, "top1").check(manifest())
    Task("t", {"test": split()}, "top1").check(manifest(classes="classes"))
    Task("t", {"test": split(a=np.zeros((10, 4)), b=np.zeros((10, 7, 2)))}, "top1").check(
        manifest(spec("a", "n", 4), spec("b", "n", "time", 2))
    )
    turned = manifest(spec("x", 4, "n", batch_axis=1))
    Task("t", {"test": split()}, "top1").check(turned)
    Task("t", {"test": split()}, "top1").check(manifest(spec("x", 4, batch_axis=None)))
    flat = Manifest(name="m", format="onnx", inputs=(spec("x", "n", 4),), outputs=(spec("y", "n", 3, 1, 1),))
    Task("t", {"test": split()}, "top1").check(flat)


@pytest.mark.parametrize(
    ("task_inputs", "model_inputs", "message"),
    [
        (
            {"": np.zeros((10, 5))},
            [spec("x", "n", 4)],
            r"shape \[5\] do not fit input 'x' of model net, .* \[4\]",
        ),
        ({"": np.zeros((10, 4, 1))}, [spec("x", "n", 4)], r"shape \[4, 1\]"),
        ({"": np.zeros((10, 4))}, [spec("a", "n", 4), spec("b", "n", 4)], "has 2 inputs: name each"),
        ({"a": np.zeros((10, 4))}, [spec("a", "n", 4), spec("b", "n", 4)], "does not feed 'b'"),
        ({"aa": np.zeros((10, 4))}, [spec("a", "n", 4)], "does not feed 'a'"),
        (
            {"a": np.zeros((10, 4)), "c": np.zeros(10)},
            [spec("a", "n", 4)],
            "feeds 'c', which model net lacks",
        ),
    ],
)
def test_inputs_that_do_not_fit_a_model(
    task_inputs: Any, model_inputs: list[TensorSpec], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        Task("t", {"test": split(**task_inputs)}, "top1").check(manifest(*model_inputs))


def test_every_split_is_checked_not_only_the_first() -> None:
    splits = {"train": split(), "test": split(3, a=np.zeros((3, 5))), "validation": split()}
    splits["test"] = Split({"": np.zeros((3, 5))}, np.zeros(3, int))
    with pytest.raises(TaskError, match=r"shape \[5\]"):
        Task("t", splits, "top1").check(manifest())


def test_more_classes_than_outputs() -> None:
    task = Task("t", {"validation": split(classes=2), "test": split(classes=4)}, "top1")
    with pytest.raises(
        TaskError, match=r"the test split has label 3, but model net has 3 outputs \(labels 0..2\)"
    ):
        task.check(manifest())


def test_names_of_classes_must_be_in_one_order() -> None:
    """Labels are numbers: another order scores well-trained models as noise, and nobody would know."""
    task = Task("t", {"test": split()}, "top1", labels=("cat", "dog", "emu"))
    task.check(manifest())
    task.check(manifest(labels=("cat", "dog", "emu")))
    with pytest.raises(TaskError, match="label 1 is 'dog' in task t, but 'emu' in the manifest of net"):
        task.check(manifest(labels=("cat", "emu", "dog")))
    with pytest.raises(TaskError, match="label 2 is 'emu' in task t, but 'nothing'"):
        task.check(manifest(labels=("cat", "dog")))


def test_pictures_need_a_manifest_that_says_how_to_preprocess() -> None:
    task = Task(
        "t", {"test": Split({"": np.zeros((3, 8, 8), np.uint8)}, np.zeros(3, int))}, "top1", form="image"
    )
    with pytest.raises(TaskError, match="does not say how to preprocess them: add `preprocess`"):
        task.check(manifest())
    task.check(manifest(preprocess=Preprocess(colour="GRAY", scale=1 / 255)))


# --- finding tasks


def made() -> Task:
    return Task("made", {"test": split()}, "top1")


CONSTANT = made()


def test_tasks_are_found_by_module_and_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import numpy as np\nfrom farthing.task import Split, Task\n"
        "def made():\n    return Task('mine', {'test': Split({'': np.zeros((2, 1))}, np.zeros(2, int))}, 'top1')\n"
        "constant = made()\nwrong = 3\n"
        "def fails():\n    raise RuntimeError('no camera')\n"
        "def empty():\n    return Task('mine', {}, 'top1')\n"
        "def uneven():\n    return Split({'': np.zeros((2, 1))}, np.zeros(3))\n"
    )
    (tmp_path / "user_slip.py").write_text("import numpy.nowhere\n")
    (tmp_path / "user_mess.py").write_text("1 / 0\n")
    (tmp_path / "user_task.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert find_task("user_task:made").name == "mine"
    assert find_task("user_task:constant").name == "mine"
    with pytest.raises(TaskError, match=r"there is no module 'nomod'$"):  # 'random' is another word
        find_task("nomod:x")
    for name, message in (
        ("user_task:wrong", "gives a int, not a farthing.Task"),
        ("user_task:maed", "no task at 'user_task:maed': user_task has no 'maed'; did you mean 'made'?"),
        ("user_tsak:made", "there is no module 'user_tsak'; did you mean 'user_task'?"),
        ("no.such.module:made", "there is no module 'no'"),
        (":made", "no task at"),
        ("user_task:", "user_task has no ''"),
        ("user_slip:made", "importing it ended with ModuleNotFoundError: No module named 'numpy.nowhere'"),
        ("user_mess:made", "importing it ended with ZeroDivisionError: division by zero"),
        (
            "user_task:fails",
            "the task user_task:fails could not be made: it ended with RuntimeError: no camera",
        ),
        ("user_task:empty", "user_task:empty: task mine has no splits"),
        ("user_task:uneven", "user_task:uneven: inputs and labels of a split differ"),
        ("json:loads", "the task json:loads could not be made: it ended with TypeError: loads() missing"),
    ):
        with pytest.raises(TaskError, match=re.escape(message)):
            find_task(name)


def test_tasks_are_found_by_registered_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_registered", {})
    plugins.register("task", "ours", made)
    plugins.register("task", "ready", CONSTANT)
    assert find_task("ours").name == "made"
    assert find_task("ready") is CONSTANT
    with pytest.raises(TaskError, match=r"did you mean 'mnist-5k'.*or give the path of a task file"):
        find_task("mnist5k")
    with pytest.raises(TaskError, match=r"cannot read absent.yaml"):
        find_task("absent.yaml")


def test_a_metric_of_one_s_own_serves_a_task() -> None:
    mine = Metric("mine", "labels", per_sample=lambda outputs, truth: np.ones(len(truth)))
    assert Task("t", {"test": split()}, mine).metric is mine


# --- pictures on disk


def picture(path: Path, array: Array, **more: Any) -> str:
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(array).save(path, **more)
    return str(path)


RAINBOW = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def test_picture_files_are_decoded_when_taken(tmp_path: Path) -> None:
    paths = [picture(tmp_path / "a.png", RAINBOW), picture(tmp_path / "b.png", RAINBOW[..., 0])]
    data = ImageFiles({"": np.array(paths)}, np.array([1, 0]))
    taken = data.take([1, 0])[""]
    np.testing.assert_array_equal(taken[0], RAINBOW[..., 0])
    np.testing.assert_array_equal(taken[1], RAINBOW)
    some = data.subset([1])
    assert isinstance(some, ImageFiles)
    assert some.take([0])[""][0].shape == (6, 9)


def test_the_digest_of_pictures_is_of_their_content(tmp_path: Path) -> None:
    one = ImageFiles({"": np.array([picture(tmp_path / "a.png", RAINBOW)])}, np.array([0]))
    moved = ImageFiles({"": np.array([picture(tmp_path / "other.png", RAINBOW)])}, np.array([0]))
    other = ImageFiles({"": np.array([picture(tmp_path / "c.png", RAINBOW[::-1])])}, np.array([0]))
    assert one.digest == moved.digest != other.digest
    (tmp_path / "c.png").unlink()
    gone = ImageFiles({"": np.array([str(tmp_path / "c.png")])}, np.array([0]))
    with pytest.raises(TaskError, match=r"cannot read the picture .*c.png"):
        gone.digest  # noqa: B018


def test_pictures_are_turned_upright_and_lose_their_alpha(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    exif = pillow.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise for display
    turned = picture(tmp_path / "a.png", RAINBOW, exif=exif)
    np.testing.assert_array_equal(load(turned), np.rot90(RAINBOW, -1))
    alpha = np.dstack([RAINBOW, np.full((6, 9), 128, np.uint8)])
    np.testing.assert_array_equal(load(picture(tmp_path / "b.png", alpha)), RAINBOW)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    whole = Path(picture(tmp_path / "a.png", RAINBOW)).read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(TaskError, match=r"b.png .*is not a picture"):
            load(tmp_path / "b.png")
    with pytest.raises(TaskError, match=r"absent.png"):
        load(tmp_path / "absent.png")


def test_deep_pictures_are_refused_not_clipped(tmp_path: Path) -> None:
    deep = picture(tmp_path / "a.png", np.full((4, 4), 40_000, np.uint16))
    with pytest.raises(TaskError, match="more than 8 bits"):
        load(deep)


@given(st.integers(1, 300))
def test_calibration_never_repeats_a_sample(n: int) -> None:
    task = Task("t", {"train": Split({"": np.arange(float(n))[:, None]}, np.zeros(n, int))}, "top1")
    values = task.split("calibration").inputs[""][:, 0]
    assert len(set(values)) == len(values) == min(n, 256)


def test_a_view_shows_the_declared_splits_alone_and_copies_nothing() -> None:
    splits = {
        name: Split({"": np.ones((4, 2))}, np.zeros(4, int)) for name in ("train", "validation", "test")
    }
    task = Task("t", splits, "top1", labels=("a", "b"))
    view = task.only(("calibration", "train"))
    assert set(view.splits) == {"calibration", "train"}
    assert view.split("calibration") is task.split("calibration")
    assert (view.metric, view.labels, view.form) == (task.metric, task.labels, task.form)
    assert set(task.splits) == {"calibration", *splits}, "the task itself is as it was"
    for ask in (lambda: view.split("test"), lambda: view.splits["test"]):
        with pytest.raises(TaskError, match=r"looks at the test split, but .* add 'test' to its `reads`"):
            ask()
    fewer = Task("t", {"train": splits["train"]}, "top1")
    with pytest.raises(TaskError, match="has no test split: add one"):
        fewer.only(("train",)).split("test")
