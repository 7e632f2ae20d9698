"""Samples: fed as the bench feeds them, from memory or from disk alike, and refused where training makes no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farthing.bench import feeds
from farthing.errors import ConfigError, TaskError, UnsupportedError
from farthing.forge.training.augment import affine, augmented, flip, jitter
from farthing.forge.training.samples import Samples
from farthing.model import Manifest, Preprocess, Resize, TensorSpec
from farthing.task import ImageFiles, Split, Task

GENERATOR = np.random.default_rng(0)


def spec(name: str, *shape: int, dtype: str = "float32", axis: int | None = 0, **facts: Any) -> TensorSpec:
    sizes: list[int | str] = [*shape]
    if axis is not None:
        sizes.insert(axis, "batch")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(sizes), batch_axis=axis, **facts)


def manifest(*inputs: TensorSpec, **facts: Any) -> Manifest:
    return Manifest(name="net", format="onnx", inputs=inputs, outputs=(), **facts)


def test_pictures_are_what_the_bench_feeds(tmp_path: Path) -> None:
    """Decoded, resized and scaled by the same code; kept or not, the tensors are the same."""
    pillow = pytest.importorskip("PIL.Image")
    paths = []
    for number in range(5):
        pixels = GENERATOR.integers(0, 256, (20 + number, 30, 3), np.uint8)
        paths.append(str(tmp_path / f"{number}.png"))
        pillow.fromarray(pixels).save(paths[-1])
    preprocess = Preprocess(
        colour="BGR",
        scale=1 / 255,
        mean=(0.4, 0.5, 0.6),
        resize=Resize(height=16, width=16, filter="bilinear", antialias=True),
    )
    facts = manifest(spec("image", 3, 16, 16, layout="NCHW"), preprocess=preprocess)
    split = ImageFiles({"": np.array(paths)}, np.array([0, 1, 0, 1, 1]))
    task = Task("photos", {"train": split}, "top1", labels=("a", "b"), form="image")
    picks = torch.tensor([3, 0, 4])
    wanted = feeds(task, split, facts, picks.numpy())["image"]
    for memory in (0, 1 << 29):
        samples = Samples(task, facts, memory=memory)
        batch = samples.batch(picks)
        np.testing.assert_array_equal(batch.inputs[0].numpy(), wanted)
        assert batch.labels is not None
        assert batch.labels.tolist() == [1, 0, 1]
        assert len(samples) == 5


def test_several_inputs_in_the_manifests_order_and_along_their_batch_axis() -> None:
    words, mask = GENERATOR.integers(0, 50, (7, 4)), GENERATOR.normal(size=(7, 4, 2)).astype(np.float32)
    facts = manifest(spec("mask", 4, 2, axis=1), spec("words", 4, dtype="int64"))
    task = Task("text", {"train": Split({"words": words, "mask": mask})}, "cosine")
    batch = Samples(task, facts).batch(torch.tensor([6, 2]))
    assert batch.labels is None
    assert [part.dtype for part in batch.inputs] == [torch.float32, torch.int64]
    np.testing.assert_array_equal(batch.inputs[0].numpy(), np.moveaxis(mask[[6, 2]], 0, 1))
    np.testing.assert_array_equal(batch.inputs[1].numpy(), words[[6, 2]])


def test_all_in_order() -> None:
    x = GENERATOR.normal(size=(10, 3)).astype(np.float32)
    samples = Samples.of_arrays(x)
    parts = [batch.inputs[0] for batch in samples.batches(4)]
    assert [len(part) for part in parts] == [4, 4, 2]
    np.testing.assert_array_equal(torch.cat(parts).numpy(), x)


@pytest.mark.parametrize(("count", "sizes"), [(3, [3]), (300, [150, 150]), (2000, [250, 250, 250, 250])])
def test_some_are_from_all_over_the_split(count: int, sizes: list[int]) -> None:
    """Data are often sorted by class: the first samples may all be of one."""
    samples = Samples.of_arrays(np.arange(1000, dtype=np.float32)[:, None], np.repeat(np.arange(4), 250))
    parts = list(samples.spread(count))
    assert [len(part) for part in parts] == sizes
    picks = torch.cat([part.picks for part in parts])
    assert (picks[0], picks[-1]) == (0, 999)
    assert torch.all(picks.diff() > 0)
    assert picks.diff().max() <= -(-999 // (min(count, 1000) - 1))


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (np.array([0, 1], np.uint8), torch.int64),
        (np.array([True, False]), torch.int64),
        (np.array([0.5, 1.5]), torch.float32),
    ],
    ids=["uint8", "bool", "float64"],
)
def test_labels_are_whole_numbers_or_floats(labels: Any, kind: torch.dtype) -> None:
    found = Samples.of_arrays(np.zeros((2, 3), np.float32), labels).batch(torch.arange(2)).labels
    assert found is not None
    assert found.dtype == kind


def test_a_task_without_training_data_is_told_what_to_add() -> None:
    task = Task("t", {"validation": Split({"": np.zeros((2, 3), np.float32)})}, "cosine")
    with pytest.raises(TaskError, match=r"task t has no train split.*`splits: \{train: 0.6"):
        Samples(task, manifest(spec("x", 3)))


def test_a_pass_that_does_not_declare_train_is_told_so() -> None:
    split = Split({"": np.zeros((2, 3), np.float32)})
    task = Task("t", {"train": split, "calibration": split}, "cosine").only(("calibration",))
    with pytest.raises(TaskError, match="add 'train' to its `reads`"):
        Samples(task, manifest(spec("x", 3)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((spec("x", 3, axis=None),), "input 'x' of net has no batch axis"),
        ((spec("x", 3), spec("kept", 2, role="state")), "keeps state between calls"),
    ],
    ids=["no batch", "state"],
)
def test_models_that_cannot_be_trained(inputs: tuple[TensorSpec, ...], message: str) -> None:
    outputs = tuple(one for one in inputs if one.role == "state")
    facts = Manifest(name="net", format="onnx", inputs=inputs, outputs=outputs)
    task = Task("t", {"train": Split({"x": np.zeros((2, 3), np.float32)})}, "cosine")
    with pytest.raises(UnsupportedError, match=message):
        Samples(task, facts)


def test_samples_that_do_not_fit_the_model() -> None:
    task = Task("t", {"train": Split({"": np.zeros((2, 4), np.float32)})}, "cosine")
    with pytest.raises(TaskError, match=r"samples of shape \[4\] do not fit input 'x'"):
        Samples(task, manifest(spec("x", 3)))


# --- augmentation


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_affine_moves_each_picture_its_own_way() -> None:
    picture = torch.zeros(1, 1, 16, 16)
    picture[..., 6:10, 6:10] = 1
    moved = affine(picture.repeat(8, 1, 1, 1), random())
    assert moved.shape == (8, 1, 16, 16)
    assert not torch.allclose(moved[0], moved[1])
    assert float(moved.min()) >= 0
    assert bool((moved.sum((1, 2, 3)) > 8).all())


def test_affine_invents_no_values() -> None:
    """What comes in from outside is like the border: pictures may have been normalized to any range."""
    moved = affine(torch.full((4, 3, 9, 9), -0.42), random())
    torch.testing.assert_close(moved, torch.full((4, 3, 9, 9), -0.42))


def test_flip_mirrors_some_and_leaves_the_others() -> None:
    pictures = torch.arange(64.0).reshape(16, 1, 2, 2)
    flipped = flip(pictures, random())
    same = [torch.equal(a, b) for a, b in zip(pictures, flipped, strict=True)]
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(pictures, flipped, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 2 < sum(same) < 14


def test_jitter_keeps_about_what_there_was() -> None:
    signals = torch.randn((50, 6, 100), generator=random(1))
    moved = jitter(signals, random())
    assert 0.05 < float((moved - signals).std()) < 0.25
    assert not torch.allclose(moved[0] / signals[0], moved[1] / signals[1])


def test_pictures_with_channels_last() -> None:
    pictures = torch.randn((4, 8, 9, 3), generator=random(1))
    wanted = affine(pictures.movedim(3, 1), random()).movedim(1, 3)
    assert torch.equal(augmented(pictures, "affine", random(), "NHWC"), wanted)


@pytest.mark.parametrize(
    ("tensor", "kind", "message"),
    [
        (torch.zeros(2, 3), "affine", "is for pictures"),
        (torch.zeros(2, 3, 4), "flip", "choose `jitter` for signals"),
        (torch.zeros((2, 3), dtype=torch.int64), "jitter", "cannot be augmented"),
    ],
    ids=["vectors", "signals", "integers"],
)
def test_what_cannot_be_augmented(tensor: torch.Tensor, kind: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        augmented(tensor, kind, random())


def test_labels_in_the_picture_do_not_move_with_it() -> None:
    samples = Samples.of_arrays(np.zeros((2, 3, 8, 8), np.float32), np.zeros((2, 8, 8), int))
    assert samples.batch(torch.arange(2), "jitter", random()).plain is False
    with pytest.raises(TaskError, match="not their labels"):
        samples.batch(torch.arange(2), "flip", random())


def test_a_schedule_knows_its_augmentations() -> None:
    from farthing.config import convert
    from farthing.forge.training.schedule import Schedule

    with pytest.raises(ConfigError, match="did you mean 'affine'"):
        convert({"augment": "afine"}, Schedule, "schedule")
