"""Metrics against scikit-learn and pycocotools, and what they refuse."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from farthing.errors import TaskError
from farthing.metrics import (
    AGREEMENT,
    AUC,
    MACRO_F1,
    MEAN_ABSOLUTE_ERROR,
    MEAN_AVERAGE_PRECISION,
    MEAN_COSINE,
    MEAN_OVERLAP,
    TOP1,
    TOP5,
    Metric,
)

Array = NDArray[Any]
LABELLED = [TOP1, TOP5, MACRO_F1, AUC]


def scores(n: int, classes: int, seed: int = 0, ties: bool = False) -> Array:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((n, classes)).astype(np.float32)
    return np.round(rows * 2) / 2 if ties else rows


def labels(n: int, classes: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).integers(0, classes, n)


def value(metric: Metric, outputs: Array, truth: Array) -> float:
    return metric.score({"y": outputs}, truth, None).value


# --- against scikit-learn


@pytest.mark.parametrize(("n", "classes"), [(50, 10), (300, 7), (200, 6)])
def test_top_k_is_scikit_learn_s(n: int, classes: int) -> None:
    oracle = pytest.importorskip("sklearn.metrics").top_k_accuracy_score
    rows, truth = scores(n, classes), labels(n, classes)
    for metric, k in ((TOP1, 1), (TOP5, 5)):
        assert value(metric, rows, truth) == pytest.approx(oracle(truth, rows, k=k, labels=range(classes)))


@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 1000), st.booleans())
def test_mean_overlap_is_scikit_learn_s(n: int, classes: int, seed: int, last: bool) -> None:
    """Pixels of all pictures together; 255 does not count; classes may lie along the second axis or the last."""
    oracle = pytest.importorskip("sklearn.metrics").jaccard_score
    generator = np.random.default_rng(seed)
    maps = generator.standard_normal((n, classes, 9, 11)).astype(np.float32)
    truth = generator.integers(0, classes, (n, 9, 11))
    truth[generator.random(truth.shape) < 0.2] = 255
    guesses, there = maps.argmax(1), truth != 255
    wanted = oracle(truth[there], guesses[there], average="macro")
    assert value(MEAN_OVERLAP, np.moveaxis(maps, 1, 3) if last else maps, truth) == pytest.approx(wanted)


def test_mean_overlap_by_hand() -> None:
    """Class 0: 2 pixels of 3 in either; class 1: 1 of 2; class 2 is nowhere."""
    truth = np.array([[[0, 0, 1, 1]]])
    maps = np.eye(3)[[0, 0, 0, 1]].T[None, :, None]
    assert value(MEAN_OVERLAP, maps, truth) == pytest.approx((2 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize(
    ("shape", "truth", "message"),
    [
        ((2, 3), np.zeros(2, int), "needs outputs"),
        ((2, 3, 4, 4), np.zeros((2, 5, 5), int), "needs outputs"),
        ((2, 1, 4, 4), np.zeros((2, 4, 4), int), "needs outputs"),
        ((2, 3, 4, 4), np.full((2, 4, 4), 3), "label 3 is out of range"),
        ((2, 3, 4, 4), np.full((2, 4, 4), -1), "label -1 is out of range"),
        ((2, 3, 4, 4), np.full((2, 4, 4), 255), "not defined on these samples"),
    ],
)
def test_what_mean_overlap_cannot_judge(shape: tuple[int, ...], truth: Array, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        value(MEAN_OVERLAP, np.zeros(shape, np.float32), truth)


@given(st.integers(1, 40), st.integers(2, 8), st.integers(0, 1000))
def test_among_ties_the_first_class_wins_as_argmax_has_it(n: int, classes: int, seed: int) -> None:
    rows, truth = scores(n, classes, seed, ties=True), labels(n, classes, seed)
    assert value(TOP1, rows, truth) == pytest.approx(np.mean(rows.argmax(1) == truth))
    best = np.argsort(-rows, axis=1, kind="stable")[:, :5]
    assert value(TOP5, rows, truth) == pytest.approx(np.mean((best == truth[:, None]).any(1)))


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_scikit_learn_s(seed: int) -> None:
    oracle = pytest.importorskip("sklearn.metrics").f1_score
    rows, truth = (
        scores(60, 12, seed),
        labels(60, 9, seed),
    )  # three classes only ever guessed, perhaps some never
    assert value(MACRO_F1, rows, truth) == pytest.approx(oracle(truth, rows.argmax(1), average="macro"))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("columns", [1, 2])
def test_binary_auc_is_scikit_learn_s(ties: bool, columns: int) -> None:
    oracle = pytest.importorskip("sklearn.metrics").roc_auc_score
    for seed in range(5):
        rows, truth = scores(80, columns, seed, ties), labels(80, 2, seed)
        wanted = oracle(truth, rows[:, 0] if columns == 1 else rows[:, 1] - rows[:, 0])
        assert value(AUC, rows, truth) == pytest.approx(wanted)
        if columns == 1:
            assert value(AUC, rows[:, 0], truth) == pytest.approx(wanted)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_of_several_classes_is_scikit_learn_s_one_against_rest(ties: bool) -> None:
    oracle = pytest.importorskip("sklearn.metrics").roc_auc_score
    rows, truth = scores(120, 5, 3, ties), labels(120, 5)
    softmax = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    if not ties:  # the softmax changes the order between samples: compare on it
        rows = softmax
    wanted = np.mean([oracle(truth == label, rows[:, label]) for label in range(5)])
    assert value(AUC, rows, truth) == pytest.approx(wanted)
    assert value(AUC, softmax, truth) == pytest.approx(oracle(truth, softmax, multi_class="ovr"))


# --- against pycocotools


def coco(boxes: Array, confidence: Array, classes: Array, truth: Array) -> float:
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = [
        {
            "image_id": i,
            "category_id": int(c),
            "bbox": [x, y, w - x, h - y],
            "area": (w - x) * (h - y),
            "iscrowd": 0,
        }
        for i, rows in enumerate(truth)
        for c, x, y, w, h in rows
        if c >= 0
    ]
    found = [
        {"image_id": i, "category_id": int(c), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": s}
        for i in range(len(boxes))
        for (x1, y1, x2, y2), s, c in zip(boxes[i].tolist(), confidence[i].tolist(), classes[i], strict=True)
        if s > 0
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "images": [{"id": i} for i in range(len(truth))],
            "annotations": [{"id": n + 1, **one} for n, one in enumerate(annotations)],
            "categories": [{"id": c} for c in sorted({one["category_id"] for one in annotations})],
        }
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def scene(
    seed: int, images: int = 12, detections: int = 30, truths: int = 6, classes: int = 4
) -> tuple[Any, ...]:
    """True boxes, and detections of which most are jittered copies of them; some rows pad."""
    generator = np.random.default_rng(seed)
    corner = generator.random((images, truths, 2)) * 200
    real = np.concatenate([corner, corner + 10 + generator.random((images, truths, 2)) * 90], axis=2)
    kinds = generator.integers(0, classes, (images, truths))
    kinds[generator.random((images, truths)) < 0.2] = -1
    picks = generator.integers(0, truths, (images, detections))
    boxes = np.take_along_axis(real, picks[..., None], axis=1) + generator.normal(
        0, 6, (images, detections, 4)
    )
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    kept = generator.random((images, detections)) < 0.8
    others = generator.integers(0, classes, (images, detections))
    guesses = np.where(kept, np.take_along_axis(kinds, picks, axis=1), others)
    confidence = np.round(generator.random((images, detections)), 2)  # equal scores, and zeros that pad
    confidence[guesses < 0] = 0
    return boxes, confidence, guesses, np.concatenate([kinds[..., None], real], axis=2)


def detections(boxes: Array, confidence: Array, guesses: Array) -> dict[str, Array]:
    return {"boxes": boxes, "scores": confidence, "classes": guesses}


@pytest.mark.parametrize("seed", range(6))
def test_map_is_pycocotools(seed: int) -> None:
    boxes, confidence, guesses, truth = scene(seed)
    found = MEAN_AVERAGE_PRECISION.score(detections(boxes, confidence, guesses), truth, None)
    assert found.value == pytest.approx(coco(boxes, confidence, guesses, truth), abs=1e-6)
    assert found.low < found.value < found.high
    assert 0.05 < found.value < 0.95


def test_map_takes_a_hundred_detections_of_a_class_and_picture() -> None:
    boxes, confidence, guesses, truth = scene(1, images=4, detections=500, classes=2)
    found = MEAN_AVERAGE_PRECISION.score(detections(boxes, confidence, guesses), truth, None)
    assert found.value == pytest.approx(coco(boxes, confidence, guesses, truth), abs=1e-6)


def test_map_counts_missed_classes_and_perfect_boxes() -> None:
    _, _, _, truth = scene(2)
    perfect = detections(truth[..., 1:], (truth[..., 0] >= 0).astype(float), truth[..., 0])
    assert MEAN_AVERAGE_PRECISION.score(perfect, truth, None).value == pytest.approx(1.0)
    blind = {**perfect, "scores": perfect["scores"] * (truth[..., 0] != 1)}
    assert MEAN_AVERAGE_PRECISION.score(blind, truth, None).value == pytest.approx(3 / 4)


def test_map_in_float32_is_that_of_float64() -> None:
    boxes, confidence, guesses, truth = scene(3)
    small = detections(boxes.astype(np.float32), confidence.astype(np.float32), guesses.astype(np.int64))
    wide = detections(boxes.astype(np.float32).astype(np.float64), confidence, guesses)
    one, other = (MEAN_AVERAGE_PRECISION.score(found, truth, None).value for found in (small, wide))
    assert one == pytest.approx(other)


@pytest.mark.parametrize(
    ("outputs", "truth", "message"),
    [
        ({"y": np.zeros((2, 3))}, np.zeros((2, 1, 5)), r"missing: \['boxes', 'classes', 'scores'\]"),
        (
            detections(np.zeros((2, 1, 4)), np.zeros((2, 1)), np.zeros((2, 1))),
            np.zeros((2, 4)),
            "shape .*, not",
        ),
        (
            detections(np.zeros((2, 1, 4)), np.ones((2, 1)), np.zeros((2, 1))),
            np.full((2, 1, 5), -1),
            "true boxes",
        ),
    ],
)
def test_map_says_what_it_needs(outputs: dict[str, Array], truth: Array, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        MEAN_AVERAGE_PRECISION.score(outputs, truth, None)


# --- metrics without labels


def test_agreement_is_the_share_of_equal_answers() -> None:
    float_model, small = scores(200, 10), scores(200, 10)
    small[:30] = -small[:30]
    wanted = np.mean(float_model.argmax(1) == small.argmax(1))
    assert AGREEMENT.score({"y": small}, None, {"y": float_model}).value == pytest.approx(wanted)
    assert AGREEMENT.score({"y": float_model}, None, {"y": float_model}).value == 1


def test_cosine_is_one_for_a_scaled_answer_and_survives_zeros() -> None:
    rows = scores(50, 8)
    assert MEAN_COSINE.score({"y": rows * 3}, None, {"y": rows}).value == pytest.approx(1)
    assert MEAN_COSINE.score({"y": -rows}, None, {"y": rows}).value == pytest.approx(-1)
    assert MEAN_COSINE.score({"y": rows * 0}, None, {"y": rows}).value == 0
    pictures = scores(6, 24).reshape(6, 2, 3, 4)
    assert MEAN_COSINE.score({"y": pictures}, None, {"y": pictures}).value == pytest.approx(1)


def test_error_is_lower_the_better_and_does_not_wrap_around() -> None:
    truth = np.array([[10], [250]], np.uint8)
    outputs = {"y": np.array([[20], [240]], np.uint8)}
    assert MEAN_ABSOLUTE_ERROR.score(outputs, truth, None).value == 10
    worse = {"y": np.array([[40], [220]], np.uint8)}
    assert MEAN_ABSOLUTE_ERROR.drop(outputs, worse, truth, None).value == 20
    assert MEAN_ABSOLUTE_ERROR.drop(worse, outputs, truth, None).value == -20


def test_unsigned_scores_do_not_wrap_around() -> None:
    rows, truth = np.array([[200, 10], [3, 5], [90, 80], [1, 250]], np.uint8), np.array([0, 1, 0, 1])
    assert value(AUC, rows, truth) == 1.0


# --- intervals and drops


@pytest.mark.parametrize("metric", LABELLED)
def test_the_interval_holds_the_value_and_shrinks_with_samples(metric: Metric) -> None:
    widths = []
    for n in (100, 1600):
        rows, truth = scores(n, 8), labels(n, 8)
        rows[np.arange(n), truth] += 1
        found = metric.score({"y": rows}, truth, None)
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize("metric", LABELLED)
def test_the_drop_is_the_difference_of_scores_and_is_paired(metric: Metric) -> None:
    rows, truth = scores(500, 8), labels(500, 8)
    rows[np.arange(500), truth] += 1
    worse = rows.copy()
    worse[:25] = scores(25, 8, seed=9)
    drop = metric.drop({"y": rows}, {"y": worse}, truth, None)
    before, after = (metric.score({"y": found}, truth, None) for found in (rows, worse))
    assert drop.value == pytest.approx(before.value - after.value)
    assert drop.low <= drop.value <= drop.high
    assert drop.high - drop.low < before.high - before.low, "pairs cancel what both have in common"
    back = metric.drop({"y": worse}, {"y": rows}, truth, None)
    assert back.value == pytest.approx(-drop.value)


@pytest.mark.parametrize("metric", [*LABELLED, MEAN_AVERAGE_PRECISION])
def test_equal_answers_are_no_certainty(metric: Metric) -> None:
    if metric is MEAN_AVERAGE_PRECISION:
        boxes, confidence, guesses, truth = scene(0)
        outputs = detections(boxes, confidence, guesses)
    else:
        outputs, truth = {"y": scores(40, 8)}, labels(40, 8)
    found = metric.drop(outputs, outputs, truth, None)
    n = len(truth)
    assert (found.low, found.value, found.high) == pytest.approx((-1 / n, 0, 1 / n))


def test_the_same_outputs_give_the_same_interval() -> None:
    rows, truth = scores(100, 8), labels(100, 8)
    assert MACRO_F1.score({"y": rows}, truth, None) == MACRO_F1.score({"y": rows}, truth, None)


def test_the_bootstrap_of_macro_f1_covers_about_as_often_as_it_says() -> None:
    def sample(n: int, generator: np.random.Generator) -> tuple[Array, Array]:
        truth = generator.integers(0, 3, n)
        rows = generator.standard_normal((n, 3))
        rows[np.arange(n), truth] += 1.5
        return rows, truth

    truth_value = value(MACRO_F1, *sample(200_000, np.random.default_rng(100)))
    generator, held = np.random.default_rng(0), 0
    for _ in range(50):
        rows, truth = sample(200, generator)
        found = MACRO_F1.score({"y": rows}, truth, None)
        held += found.low <= truth_value <= found.high
    assert 0.84 <= held / 50 <= 1.0


# --- what they refuse


@pytest.mark.parametrize("metric", LABELLED)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_numbers(metric: Metric, bad: float) -> None:
    rows = scores(20, 6)
    rows[3, 2] = bad
    with pytest.raises(TaskError, match="output 'y' holds NaN or infinite values"):
        metric.score({"y": rows}, labels(20, 6), None)
    with pytest.raises(TaskError, match="holds NaN"):
        metric.drop({"y": scores(20, 6)}, {"y": rows}, labels(20, 6), None)
    with pytest.raises(TaskError, match="holds NaN"):
        metric.drop({"y": rows}, {"y": scores(20, 6)}, labels(20, 6), None)


@pytest.mark.parametrize("metric", LABELLED)
def test_labels_out_of_range_or_of_another_number(metric: Metric) -> None:
    rows = scores(20, 6)
    for wrong in (6, -1):
        truth = labels(20, 6)
        truth[7] = wrong
        with pytest.raises(TaskError, match=f"label {wrong} is out of range: the model has 6 outputs"):
            metric.score({"y": rows}, truth, None)
    with pytest.raises(TaskError, match="outputs for 20 samples, but the truth of 19"):
        metric.score({"y": rows}, labels(19, 6), None)
    with pytest.raises(TaskError, match="one whole number a sample"):
        metric.score({"y": rows}, labels(20, 6) + 0.5, None)
    with pytest.raises(TaskError, match="one whole number a sample"):
        metric.score({"y": rows}, np.stack([labels(20, 6)] * 2, axis=1), None)


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 6, 4, 4)])
def test_class_metrics_need_a_column_for_each_class(shape: tuple[int, ...]) -> None:
    outputs = {"y": np.zeros(shape, np.float32)}
    for metric in (TOP1, TOP5, MACRO_F1):
        with pytest.raises(TaskError, match=r"'y' has shape .* needs \(samples, classes\)"):
            metric.score(outputs, labels(20, 2), None)
    with pytest.raises(TaskError, match=r"\(samples, classes\)"):
        AGREEMENT.score(outputs, None, outputs)


def test_outputs_with_trailing_axes_of_one_are_classes() -> None:
    rows, truth = scores(20, 6), labels(20, 6)
    assert value(TOP1, rows.reshape(20, 6, 1, 1), truth) == value(TOP1, rows, truth)


def test_one_class_alone_has_no_auc() -> None:
    for rows in (scores(20, 1), scores(20, 2), scores(20, 4)):
        with pytest.raises(TaskError, match="metric auc is not defined on these samples"):
            AUC.score({"y": rows}, np.zeros(20, int), None)


def test_a_reference_of_another_shape() -> None:
    for metric in (AGREEMENT, MEAN_COSINE):
        with pytest.raises(
            TaskError, match=r"the output has shape \[20, 6\], the reference model's \[20, 5\]"
        ):
            metric.score({"y": scores(20, 6)}, None, {"y": scores(20, 5)})
    with pytest.raises(TaskError, match="but the labels"):
        MEAN_ABSOLUTE_ERROR.score({"y": scores(20, 6)}, np.zeros((20, 5)), None)


def test_what_a_metric_needs_is_said_when_it_is_not_there() -> None:
    with pytest.raises(TaskError, match=r"metric top1 needs labels, and there are none; .*'agreement'"):
        TOP1.score({"y": scores(2, 2)}, None, None)
    with pytest.raises(TaskError, match="metric agreement needs reference"):
        AGREEMENT.score({"y": scores(2, 2)}, labels(2, 2), None)


# --- a metric of one's own


def test_a_user_s_metric_needs_one_function() -> None:
    def share_above(outputs: Any, truth: Array) -> Array:
        return np.asarray(outputs["y"][:, 0] > truth, float)

    mine = Metric("mine", "labels", per_sample=share_above)
    assert mine.score({"y": np.array([[1.0], [0.0]])}, np.array([0.5, 0.5]), None).value == 0.5
    whole = Metric("median", "labels", whole=lambda outputs, truth: float(np.median(outputs["y"])))
    found = whole.score({"y": np.arange(101.0)[:, None]}, np.zeros(101), None)
    assert found.value == 50
    assert found.low < 50 < found.high
    for wrong in ({}, {"per_sample": share_above, "whole": lambda outputs, truth: 0.0}):
        with pytest.raises(TaskError, match="give either per_sample or whole"):
            Metric("mine", "labels", **wrong)  # type: ignore[arg-type]


# --- samples that belong together


def repeated(count: int, each: int, classes: int = 4) -> tuple[Array, Array, Array]:
    """Scores, labels and groups of ``count`` photos seen ``each`` times: a model errs on a photo, not on a view."""
    rows, truth = scores(count, classes, 3), labels(count, classes, 4)
    rows[np.arange(count), truth] += 1.5
    return np.repeat(rows, each, 0), np.repeat(truth, each), np.repeat(np.arange(count), each)


@pytest.mark.parametrize("metric", LABELLED, ids=repr)
def test_views_of_one_photo_do_not_narrow_an_interval(metric: Metric) -> None:
    rows, truth, groups = repeated(40, 25)
    naive = metric.score({"y": rows}, truth, None)
    found = metric.score({"y": rows}, truth, None, groups)
    photos = metric.score({"y": rows[::25]}, truth[::25], None)
    assert found.value == pytest.approx(naive.value) == pytest.approx(photos.value)
    width = photos.high - photos.low
    assert found.high - found.low == pytest.approx(width, rel=0.3, abs=1e-9)
    assert width == 0 or naive.high - naive.low < 0.5 * width


@pytest.mark.parametrize("metric", [TOP1, MACRO_F1], ids=repr)
def test_nor_the_interval_of_a_drop(metric: Metric) -> None:
    rows, truth, groups = repeated(40, 25)
    worse = rows + np.repeat(scores(40, 4, 5), 25, 0)
    naive = metric.drop({"y": rows}, {"y": worse}, truth, None)
    found = metric.drop({"y": rows}, {"y": worse}, truth, None, groups)
    assert found.value == naive.value
    assert found.high - found.low > 2 * (naive.high - naive.low)
