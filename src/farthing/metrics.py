"""Metrics: what "accuracy" means for a task. Plain numpy; each says whether higher is better and what it needs.

Outputs are the model's output tensors in manifest order, samples along the first axis; the first one counts
unless a metric says otherwise. ``reference`` are the outputs of the model that was given (the float baseline).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from farthing.errors import TaskError
from farthing.measure import Interval, mean_interval, paired_difference

Array = NDArray[Any]
Outputs = Mapping[str, Array]
BOOTSTRAP_ROUNDS = 200
VOID = 255  # the label of pixels that do not count, as PASCAL VOC and Cityscapes write it


class Metric:
    """A way to score outputs.

    Args:
        name: as in the plugin table.
        needs: ``labels`` or ``reference``.
        per_sample: (outputs, truth) -> one score per sample, whose mean is the metric; or
        whole: (outputs, truth) -> the metric over all samples, where no such scores exist; it is asked some 200
            times, for samples drawn with replacement.
        prepare: (outputs, truth) -> (outputs, truth) as ``whole`` wants them, sample by sample: done once, before
            samples are drawn.
        higher_is_better: False for errors.

    ``truth`` is the labels or the reference outputs, as ``needs`` says.
    """

    def __init__(
        self,
        name: str,
        needs: Literal["labels", "reference"],
        *,
        per_sample: Callable[[Outputs, Any], Array] | None = None,
        whole: Callable[[Outputs, Any], float] | None = None,
        prepare: Callable[[Outputs, Any], tuple[Outputs, Any]] | None = None,
        higher_is_better: bool = True,
    ) -> None:
        if (per_sample is None) == (whole is None):
            raise TaskError(f"metric {name}: give either per_sample or whole")
        self.name = name
        self.needs = needs
        self.higher_is_better = higher_is_better
        self._per_sample = per_sample
        self._whole = whole
        self._prepare = prepare

    def __repr__(self) -> str:
        return f"Metric({self.name!r})"

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """The functions it is made of: their code decides what it gives."""
        return tuple(part for part in (self._per_sample, self._whole, self._prepare) if part is not None)

    def score(
        self,
        outputs: Outputs,
        labels: Array | None,
        reference: Outputs | None,
        groups: Array | None = None,
    ) -> Interval:
        """The metric with its 95 % interval (Wilson or normal for means, bootstrap else).

        With ``groups``, a whole number for each sample that says which belong together, the interval is for groups
        that are independent and samples that are not; see `farthing.measure.mean_interval`. The bootstrap then draws
        whole groups, and is too narrow where there are fewer than some ten.

        Raises:
            TaskError: labels or reference outputs are needed but not there or do not fit, outputs hold NaN, or
                the metric is not defined on these samples.
        """
        truth = self._truth(labels, reference)
        _check(outputs, truth)
        if self._per_sample is not None:
            return mean_interval(self._per_sample(outputs, truth), groups)
        return self._resampled(self._valuer(outputs, truth), len_of(outputs), groups=groups)

    def drop(
        self,
        base: Outputs,
        candidate: Outputs,
        labels: Array | None,
        reference: Outputs | None,
        groups: Array | None = None,
    ) -> Interval:
        """How much worse the candidate is than the base on the same samples, with its 95 % interval.

        Above 0 is worse, whether higher or lower values of the metric are better. ``groups`` as for `score`.
        """
        truth = self._truth(labels, reference)
        for outputs in (base, candidate):
            _check(outputs, truth)
        sign = 1.0 if self.higher_is_better else -1.0
        if self._per_sample is not None:
            gap = paired_difference(self._per_sample(base, truth), self._per_sample(candidate, truth), groups)
        else:
            before, after = self._valuer(base, truth), self._valuer(candidate, truth)
            n = len_of(base)
            gap = self._resampled(lambda picks: before(picks) - after(picks), n, 1 / n, groups)
        low, high = sorted((sign * gap.low, sign * gap.high))
        return Interval(value=sign * gap.value, low=low, high=high)

    def upwards(self, value: float) -> float:
        """A value of the metric, its sign turned if less is better: of two results the larger is the better one."""
        return value if self.higher_is_better else -value

    def _truth(self, labels: Array | None, reference: Outputs | None) -> Any:
        truth = labels if self.needs == "labels" else reference
        if truth is None:
            hint = "; without labels, use the metric 'agreement'" if self.needs == "labels" else ""
            raise TaskError(f"metric {self.name} needs {self.needs}, and there are none{hint}")
        return truth

    def _valuer(self, outputs: Outputs, truth: Any) -> Callable[[Array], float]:
        """The metric as a function of the samples picked."""
        whole = self._whole or (lambda outputs, truth: float("nan"))
        if self._prepare is not None:
            outputs, truth = self._prepare(outputs, truth)
        return lambda picks: whole(_take(outputs, picks), _take(truth, picks))

    def _resampled(
        self, value: Callable[[Array], float], n: int, floor: float = 0.0, groups: Array | None = None
    ) -> Interval:
        """The value over all samples with its bootstrap interval, at least ``floor`` to either side."""
        found = value(np.arange(n))
        if not np.isfinite(found):
            raise TaskError(
                f"metric {self.name} is not defined on these samples: they lack a class (or true boxes)"
            )
        generator = np.random.default_rng(0)
        draw = _drawer(n, groups, generator)
        draws = [value(draw()) for _ in range(BOOTSTRAP_ROUNDS)]
        low, high = np.nanpercentile(draws, [2.5, 97.5])
        return Interval(value=found, low=min(float(low), found - floor), high=max(float(high), found + floor))


def _drawer(n: int, groups: Array | None, generator: np.random.Generator) -> Callable[[], Array]:
    """What draws samples with replacement: one by one, or groups as a whole."""
    if groups is None:
        return lambda: generator.integers(0, n, n)
    _, member = np.unique(groups, return_inverse=True)
    parts = np.split(np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1])
    return lambda: np.concatenate([parts[pick] for pick in generator.integers(0, len(parts), len(parts))])


def len_of(outputs: Outputs) -> int:
    """Number of samples in outputs."""
    return len(next(iter(outputs.values())))


def _take(data: Any, picks: Array) -> Any:
    return {key: value[picks] for key, value in data.items()} if isinstance(data, Mapping) else data[picks]


def _check(outputs: Outputs, truth: Any) -> None:
    """Refuse outputs that hold NaN, and truth for another number of samples."""
    known = len_of(truth) if isinstance(truth, Mapping) else len(truth)
    if known != len_of(outputs):
        raise TaskError(f"there are outputs for {len_of(outputs)} samples, but the truth of {known}")
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise TaskError(
                f"output {name!r} holds NaN or infinite values: the model does not compute on this data"
            )


def first(outputs: Outputs) -> Array:
    """The first output."""
    return next(iter(outputs.values()))


def _rows(outputs: Outputs) -> Array:
    array = first(outputs)
    return array.reshape(len(array), -1)


def _classes(outputs: Outputs, least: int = 2) -> Array:
    """The first output as (samples, classes).

    Raises:
        TaskError: it has another form.
    """
    array = first(outputs)
    rows = _rows(outputs)
    if array.ndim < 2 or rows.shape[1] != array.shape[1] or rows.shape[1] < least:
        raise TaskError(
            f"output {next(iter(outputs))!r} has shape {list(array.shape)}, but the metric needs (samples, classes): "
            "choose another metric, or another first output"
        )
    return rows


def _labels(labels: Array, classes: int) -> Array:
    """Labels as (samples,) of int64.

    Raises:
        TaskError: there is not one a sample, or one is out of range.
    """
    flat = labels.reshape(-1)
    if len(flat) != len(labels) or (flat != np.round(flat)).any():
        raise TaskError(
            f"the metric needs one whole number a sample as label, not shape {list(labels.shape)}"
        )
    wrong = flat[(flat < 0) | (flat >= classes)]
    if wrong.size:
        raise TaskError(
            f"label {wrong[0]:g} is out of range: the model has {classes} outputs (0..{classes - 1})"
        )
    return np.asarray(flat, np.int64)


def _top(k: int) -> Callable[[Outputs, Array], Array]:
    def hits(outputs: Outputs, labels: Array) -> Array:
        rows = _classes(outputs)
        column = _labels(labels, rows.shape[1])[:, None]
        own = np.take_along_axis(rows, column, axis=1)
        ahead = (rows > own).sum(axis=1)
        ties_before = ((rows == own) & (np.arange(rows.shape[1]) < column)).sum(axis=1)
        return np.asarray((ahead + ties_before) < k, np.float64)

    return hits


def _same_shape(outputs: Outputs, reference: Outputs) -> tuple[Array, Array]:
    a, b = first(outputs), first(reference)
    if a.shape != b.shape:
        raise TaskError(f"the output has shape {list(a.shape)}, the reference model's {list(b.shape)}")
    return _rows(outputs), _rows(reference)


def _agreement(outputs: Outputs, reference: Outputs) -> Array:
    _classes(outputs)
    found, wanted = _same_shape(outputs, reference)
    return np.asarray(found.argmax(1) == wanted.argmax(1), np.float64)


def _cosine(outputs: Outputs, reference: Outputs) -> Array:
    a, b = (part.astype(np.float64) for part in _same_shape(outputs, reference))
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / np.maximum(scale, 1e-30))


def _absolute_error(outputs: Outputs, labels: Array) -> Array:
    rows = _rows(outputs).astype(np.float64)
    if labels.size != rows.size:
        raise TaskError(
            f"the output has shape {list(first(outputs).shape)}, but the labels {list(labels.shape)}"
        )
    return np.asarray(np.abs(rows - labels.reshape(rows.shape)).mean(1))


def _guesses(outputs: Outputs, labels: Array) -> tuple[Outputs, Array]:
    rows = _classes(outputs)
    return {"guesses": rows.argmax(1)}, _labels(labels, rows.shape[1])


def _macro_f1(outputs: Outputs, truth: Array) -> float:
    """Mean F1 over the classes that occur, in truth or in guesses."""
    guesses = outputs["guesses"]
    size = int(max(guesses.max(), truth.max())) + 1
    right = np.bincount(truth[guesses == truth], minlength=size)
    both = np.bincount(guesses, minlength=size) + np.bincount(truth, minlength=size)
    return float(np.mean(2 * right[both > 0] / both[both > 0]))


def _ranks(values: Array) -> Array:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], np.float64)


def binary_auc(scores: Array, positive: Array) -> float:
    """Area under the ROC curve as the Mann-Whitney statistic; NaN if one class is absent."""
    p, n = int(positive.sum()), int((~positive).sum())
    if not p or not n:
        return float("nan")
    return float((_ranks(scores)[positive].sum() - p * (p + 1) / 2) / (p * n))


def _scores(outputs: Outputs, labels: Array) -> tuple[Outputs, Array]:
    """A score for class 1 in one column if there are two classes (one output or two), else one for each class."""
    rows = (_classes(outputs, 1) if first(outputs).ndim > 1 else _rows(outputs)).astype(np.float64)
    truth = _labels(labels, max(2, rows.shape[1]))
    return {"scores": rows[:, 1:] - rows[:, :1] if rows.shape[1] == 2 else rows}, truth


def _auc(outputs: Outputs, truth: Array) -> float:
    """Area under the ROC curve; for several classes the mean of each against the rest, over the classes that occur."""
    scores = outputs["scores"]
    if scores.shape[1] == 1:
        return binary_auc(scores[:, 0], truth == 1)
    found = np.unique(truth)
    if len(found) < 2:
        return float("nan")
    return float(np.mean([binary_auc(scores[:, label], truth == label) for label in found]))


def _regions(outputs: Outputs, labels: Array) -> tuple[Outputs, Array]:
    """Of each picture and class: pixels in both guess and truth, and pixels in either."""
    array = first(outputs)
    if array.ndim == 4 and array.shape[1:3] == labels.shape[1:] != array.shape[2:]:
        array = np.moveaxis(array, 3, 1)
    if array.ndim != 4 or array.shape[:1] + array.shape[2:] != labels.shape or array.shape[1] < 2:
        raise TaskError(
            f"metric miou needs outputs (samples, classes, height, width) and labels (samples, height, width), not "
            f"{list(first(outputs).shape)} and {list(labels.shape)}"
        )
    classes = array.shape[1]
    counted = labels != VOID if classes <= VOID else np.ones(labels.shape, bool)
    _labels(labels[counted], classes)
    both, either = np.zeros((2, len(labels), classes), np.int64)
    for i, (scores, truth, there) in enumerate(zip(array, labels, counted, strict=True)):
        guess, truth = scores.argmax(0)[there], np.asarray(truth[there], np.int64)
        both[i] = np.bincount(truth[guess == truth], minlength=classes)
        either[i] = np.bincount(truth, minlength=classes) + np.bincount(guess, minlength=classes) - both[i]
    return {"both": both}, either


def _mean_overlap(outputs: Outputs, either: Array) -> float:
    """Mean intersection over union, over the classes that occur in truth or guesses; pixels of all pictures count."""
    both, any_of = outputs["both"].sum(0), either.sum(0)
    return float(np.mean(both[any_of > 0] / any_of[any_of > 0])) if any_of.any() else float("nan")


IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100


def overlaps(boxes: Array, truth: Array) -> Array:
    """Intersection over union of (n, 4) and (m, 4) boxes x1, y1, x2, y2."""
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(part[:, 2:] - part[:, :2], axis=1) for part in (boxes, truth)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12))


def _match(boxes: Array, truth: Array) -> Array:
    """Whether each box, best score first, finds a free truth box: shape (thresholds, boxes)."""
    hits = np.zeros((len(IOU_THRESHOLDS), len(boxes)), bool)
    if not len(boxes) or not len(truth):
        return hits
    shared = overlaps(boxes, truth)
    for t, threshold in enumerate(IOU_THRESHOLDS):
        free = np.ones(len(truth), bool)
        for b, row in enumerate(shared):
            allowed = np.where(free, row, -1.0)
            best = len(allowed) - 1 - int(allowed[::-1].argmax())
            if allowed[best] >= min(threshold, 1 - 1e-10):
                hits[t, b], free[best] = True, False
    return hits


def _class_precision(scores: Array, hits: Array, truths: int) -> float:
    """Mean over IoU thresholds of the precision interpolated at 101 recalls."""
    order = np.argsort(-scores, kind="stable")
    hits = hits[:, order]
    right = np.cumsum(hits, axis=1)
    precision = right / np.arange(1, hits.shape[1] + 1) if hits.shape[1] else right.astype(float)
    total = []
    for found, curve in zip(right / truths, precision, strict=True):
        envelope = np.maximum.accumulate(curve[::-1])[::-1]
        places = np.searchsorted(found, RECALLS, side="left")
        total.append(
            np.where(places < len(envelope), envelope[np.minimum(places, len(envelope) - 1)], 0).mean()
            if len(envelope)
            else 0.0
        )
    return float(np.mean(total))


def _detections(outputs: Outputs, labels: Array) -> tuple[Outputs, Array]:
    """Match each picture's boxes once: class -> (scores, hits, number of true boxes)."""
    missing = {"boxes", "scores", "classes"} - set(outputs)
    if missing:
        raise TaskError(
            f"metric map needs outputs named boxes, scores and classes; missing: {sorted(missing)}"
        )
    if labels.ndim != 3 or labels.shape[2] != 5:
        raise TaskError(f"metric map needs labels of shape (samples, boxes, 5), not {list(labels.shape)}")
    pictures = np.empty(len(labels), object)
    for i, truth in enumerate(labels):
        boxes, scores, classes = (
            np.asarray(outputs[name][i], np.float64) for name in ("boxes", "scores", "classes")
        )
        pictures[i] = {}
        for label in np.union1d(classes[scores > 0], truth[truth[:, 0] >= 0, 0]):
            own = np.flatnonzero((classes == label) & (scores > 0))
            ranked = own[np.argsort(-scores[own], kind="stable")][:MAX_DETECTIONS]
            wanted = truth[truth[:, 0] == label, 1:].astype(np.float64)
            pictures[i][label] = (scores[ranked], _match(boxes[ranked], wanted), len(wanted))
    return {"pictures": pictures}, labels


def _mean_average_precision(outputs: Outputs, labels: Array) -> float:
    """COCO's mAP@[.5,.95], all areas, 100 detections an image (https://cocodataset.org/#detection-eval).

    Outputs are named ``boxes`` (n, k, 4), ``scores`` (n, k) and ``classes`` (n, k), a score of 0 for rows that pad;
    labels have shape (n, m, 5): class, x1, y1, x2, y2, with class -1 for rows that pad.
    """
    by_class: dict[float, list[tuple[Array, Array, int]]] = {}
    for picture in outputs["pictures"]:
        for label, found in picture.items():
            by_class.setdefault(label, []).append(found)
    precisions = []
    for found in by_class.values():
        scores, hits, truths = zip(*found, strict=True)
        if sum(truths):
            precisions.append(
                _class_precision(np.concatenate(scores), np.concatenate(hits, axis=1), sum(truths))
            )
    return float(np.mean(precisions)) if precisions else float("nan")


TOP1 = Metric("top1", "labels", per_sample=_top(1))
TOP5 = Metric("top5", "labels", per_sample=_top(5))
MACRO_F1 = Metric("macro_f1", "labels", whole=_macro_f1, prepare=_guesses)
AUC = Metric("auc", "labels", whole=_auc, prepare=_scores)
MEAN_AVERAGE_PRECISION = Metric("map", "labels", whole=_mean_average_precision, prepare=_detections)
MEAN_OVERLAP = Metric("miou", "labels", whole=_mean_overlap, prepare=_regions)
MEAN_COSINE = Metric("cosine", "reference", per_sample=_cosine)
MEAN_ABSOLUTE_ERROR = Metric("error", "labels", per_sample=_absolute_error, higher_is_better=False)
AGREEMENT = Metric("agreement", "reference", per_sample=_agreement)
