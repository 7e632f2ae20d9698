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


class Metric:
    """A way to score outputs.

    Args:
        name: as in the plugin table.
        needs: ``labels`` or ``reference``.
        per_sample: (outputs, truth) -> one score per sample, whose mean is the metric; or
        whole: (outputs, truth) -> the metric over all samples, where no such scores exist.
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
        higher_is_better: bool = True,
    ) -> None:
        if (per_sample is None) == (whole is None):
            raise TaskError(f"metric {name}: give either per_sample or whole")
        self.name = name
        self.needs = needs
        self.higher_is_better = higher_is_better
        self._per_sample = per_sample
        self._whole = whole

    def __repr__(self) -> str:
        return f"Metric({self.name!r})"

    def score(self, outputs: Outputs, labels: Array | None, reference: Outputs | None) -> Interval:
        """The metric with its 95 % interval (Wilson or normal for means, bootstrap else).

        Raises:
            TaskError: labels or reference outputs are needed but not there, or outputs hold NaN.
        """
        truth = self._truth(labels, reference)
        _refuse_nan(outputs)
        if self._per_sample is not None:
            return mean_interval(self._per_sample(outputs, truth))
        return self._resampled(lambda picks: self._value(_take(outputs, picks), _take(truth, picks)), len_of(outputs))

    def drop(
        self, base: Outputs, candidate: Outputs, labels: Array | None, reference: Outputs | None
    ) -> Interval:
        """How much worse the candidate is than the base on the same samples, with its 95 % interval; above 0 is worse."""
        truth = self._truth(labels, reference)
        _refuse_nan(candidate)
        sign = 1.0 if self.higher_is_better else -1.0
        if self._per_sample is not None:
            gap = paired_difference(self._per_sample(base, truth), self._per_sample(candidate, truth))
        else:
            gap = self._resampled(
                lambda picks: self._value(_take(base, picks), _take(truth, picks))
                - self._value(_take(candidate, picks), _take(truth, picks)),
                len_of(base),
            )
        low, high = sorted((sign * gap.low, sign * gap.high))
        return Interval(value=sign * gap.value, low=low, high=high)

    def _truth(self, labels: Array | None, reference: Outputs | None) -> Any:
        truth = labels if self.needs == "labels" else reference
        if truth is None:
            hint = "; without labels, use the metric 'agreement'" if self.needs == "labels" else ""
            raise TaskError(f"metric {self.name} needs {self.needs}, and there are none{hint}")
        return truth

    def _value(self, outputs: Outputs, truth: Any) -> float:
        return self._whole(outputs, truth) if self._whole is not None else 0.0

    def _resampled(self, value: Callable[[Any], float], n: int) -> Interval:
        generator = np.random.default_rng(0)
        draws = [value(generator.integers(0, n, n)) for _ in range(BOOTSTRAP_ROUNDS)]
        low, high = np.nanpercentile(draws, [2.5, 97.5])
        return Interval(value=value(np.arange(n)), low=float(low), high=float(high))


def len_of(outputs: Outputs) -> int:
    """Number of samples in outputs."""
    return len(next(iter(outputs.values())))


def _take(data: Any, picks: Array) -> Any:
    return {key: value[picks] for key, value in data.items()} if isinstance(data, Mapping) else data[picks]


def _refuse_nan(outputs: Outputs) -> None:
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise TaskError(f"output {name!r} holds NaN or infinite values: the model does not compute on this data")


def first(outputs: Outputs) -> Array:
    """The first output."""
    return next(iter(outputs.values()))


def _rows(outputs: Outputs) -> Array:
    array = first(outputs)
    return array.reshape(len(array), -1)


def _top(k: int) -> Callable[[Outputs, Array], Array]:
    def hits(outputs: Outputs, labels: Array) -> Array:
        rows = _rows(outputs)
        own = np.take_along_axis(rows, labels.reshape(-1, 1).astype(np.int64), axis=1)
        ahead = (rows > own).sum(axis=1)
        ties_before = ((rows == own) & (np.arange(rows.shape[1]) < labels.reshape(-1, 1))).sum(axis=1)
        return np.asarray((ahead + ties_before) < k, np.float64)

    return hits


def _agreement(outputs: Outputs, reference: Outputs) -> Array:
    return np.asarray(_rows(outputs).argmax(1) == _rows(reference).argmax(1), np.float64)


def _cosine(outputs: Outputs, reference: Outputs) -> Array:
    a, b = _rows(outputs).astype(np.float64), _rows(reference).astype(np.float64)
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / np.maximum(scale, 1e-30))


def _absolute_error(outputs: Outputs, labels: Array) -> Array:
    rows = _rows(outputs)
    return np.asarray(np.abs(rows - labels.reshape(rows.shape)).mean(1), np.float64)


def _macro_f1(outputs: Outputs, labels: Array) -> float:
    guesses, truth = _rows(outputs).argmax(1), labels.reshape(-1)
    scores = []
    for label in np.union1d(guesses, truth):
        right = np.sum((guesses == label) & (truth == label))
        scores.append(2 * right / (np.sum(guesses == label) + np.sum(truth == label)))
    return float(np.mean(scores))


def _ranks(values: Array) -> Array:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], np.float64)


def _binary_auc(scores: Array, positive: Array) -> float:
    """Area under the ROC curve as the Mann-Whitney statistic; NaN if one class is absent."""
    p, n = int(positive.sum()), int((~positive).sum())
    if not p or not n:
        return float("nan")
    return float((_ranks(scores)[positive].sum() - p * (p + 1) / 2) / (p * n))


def _auc(outputs: Outputs, labels: Array) -> float:
    rows, truth = _rows(outputs), labels.reshape(-1)
    if rows.shape[1] <= 2:
        return _binary_auc(rows[:, -1] - (rows[:, 0] if rows.shape[1] == 2 else 0), truth == 1)
    one_against_rest = [_binary_auc(rows[:, label], truth == label) for label in np.unique(truth)]
    return float(np.nanmean(one_against_rest))


IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100


def _iou(boxes: Array, truth: Array) -> Array:
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
    overlaps = _iou(boxes, truth)
    for t, threshold in enumerate(IOU_THRESHOLDS):
        free = np.ones(len(truth), bool)
        for b, row in enumerate(overlaps):
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
        total.append(np.where(places < len(envelope), envelope[np.minimum(places, len(envelope) - 1)], 0).mean()
                     if len(envelope) else 0.0)
    return float(np.mean(total))


def _mean_average_precision(outputs: Outputs, labels: Array) -> float:
    """COCO's mAP@[.5,.95], all areas, 100 detections an image (https://cocodataset.org/#detection-eval).

    Outputs are named ``boxes`` (n, k, 4), ``scores`` (n, k) and ``classes`` (n, k); labels have shape
    (n, m, 5): class, x1, y1, x2, y2, with class -1 for rows that pad.
    """
    missing = {"boxes", "scores", "classes"} - set(outputs)
    if missing:
        raise TaskError(f"metric map needs outputs named boxes, scores and classes; missing: {sorted(missing)}")
    by_class = []
    for label in np.unique(labels[..., 0][labels[..., 0] >= 0]):
        scores, hits, truths = [], [], 0
        for i, rows in enumerate(labels):
            own = (outputs["classes"][i] == label) & (outputs["scores"][i] > 0)
            ranked = np.flatnonzero(own)[np.argsort(-outputs["scores"][i][own], kind="stable")][:MAX_DETECTIONS]
            truth = rows[rows[:, 0] == label, 1:]
            scores.append(outputs["scores"][i][ranked])
            hits.append(_match(outputs["boxes"][i][ranked], truth))
            truths += len(truth)
        by_class.append(_class_precision(np.concatenate(scores), np.concatenate(hits, axis=1), truths))
    return float(np.mean(by_class)) if by_class else float("nan")


TOP1 = Metric("top1", "labels", per_sample=_top(1))
TOP5 = Metric("top5", "labels", per_sample=_top(5))
MACRO_F1 = Metric("macro_f1", "labels", whole=_macro_f1)
AUC = Metric("auc", "labels", whole=_auc)
MEAN_AVERAGE_PRECISION = Metric("map", "labels", whole=_mean_average_precision)
MEAN_COSINE = Metric("cosine", "reference", per_sample=_cosine)
MEAN_ABSOLUTE_ERROR = Metric("error", "labels", per_sample=_absolute_error, higher_is_better=False)
AGREEMENT = Metric("agreement", "reference", per_sample=_agreement)
