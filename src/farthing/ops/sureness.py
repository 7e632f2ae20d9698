"""How sure a classifier is of its answer, 0 to 1, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Measure = Literal["confidence", "entropy"]
Scores = Literal["logits", "probabilities"]


def sureness(measure: Measure, scores: Scores) -> Callable[[Array], Array]:
    """A function from scores (n, classes) to how sure they are, (n,) float64; NaN where they are not numbers.

    Args:
        measure: ``confidence`` or ``entropy``, see `farthing.bundle.Exits`.
        scores: what the scores are.
    """
    return _MEASURES[measure, scores]


def _softmax(logits: Array) -> Array:
    values = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _confidence(probabilities: Array) -> Array:
    return np.asarray(np.max(probabilities, axis=-1), np.float64)


def _certainty(probabilities: Array) -> Array:
    """1 - H / ln(classes)."""
    values = np.asarray(probabilities, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(values == 0, 0.0, values * np.log(values))
    return np.asarray(np.clip(1 + terms.sum(axis=-1) / math.log(values.shape[-1]), 0.0, 1.0))


_MEASURES: dict[tuple[Measure, Scores], Callable[[Array], Array]] = {
    ("confidence", "logits"): lambda scores: _confidence(_softmax(scores)),
    ("confidence", "probabilities"): _confidence,
    ("entropy", "logits"): lambda scores: _certainty(_softmax(scores)),
    ("entropy", "probabilities"): _certainty,
}
