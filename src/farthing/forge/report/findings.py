"""What a search found, with what every part of its report needs to know: who won, and how figures are shown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from farthing.errors import MeasurementError
from farthing.measure import Measurement
from farthing.page.typeset import Scale, number, size_unit, time_unit
from farthing.recipe import Candidate, Step, Summary

METRICS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "macro_f1": "macro F1",
    "auc": "area under the ROC curve",
    "map": "mAP@[.5,.95]",
    "miou": "mean intersection over union",
    "cosine": "mean cosine with the model as given",
    "error": "mean absolute error",
    "agreement": "agreement with the model as given",
}


class Findings:
    """A summary and what follows from it.

    Attributes:
        base, winner: candidates; the same one, or another thread count of it, where ``unchanged``.
        metric: what the metric is called in a sentence.
        scale, time, size: how the metric, times in ms and sizes in MB are shown on this page.
        timed: candidates with a latency.
        engines: that took part, the baseline's first.

    Raises:
        MeasurementError: the summary lists no candidate.
    """

    def __init__(self, summary: Summary) -> None:
        if not summary.candidates:
            raise MeasurementError(
                "there is nothing to report: the summary lists no candidate; run the search again"
            )
        self.summary = summary
        self.base = summary.candidates[0]
        self.winner = next((c for c in summary.candidates if c.number == summary.winner), self.base)
        self.unchanged = self.winner is self.base or self.winner.status == "baseline"
        self.metric = METRICS.get(summary.metric, summary.metric)
        self.scale = _scale(summary)
        self.timed = [c for c in summary.candidates if c.figures.latency_ms is not None]
        self.time = time_unit([c.figures.latency_ms for c in self.timed])
        self.size = size_unit([c.figures.size_mb for c in summary.candidates])
        self.engines = [*dict.fromkeys(candidate.engine for candidate in summary.candidates)]
        self._differing = _differing(summary.candidates)

    def candidate(self, number: int) -> Candidate:
        """The candidate of a number; the winner if there is none."""
        return next((c for c in self.summary.candidates if c.number == number), self.winner)

    def batches(self) -> str:
        """How the offline scenario fed the winner."""
        measured = self.winner.measurements.get("offline")
        return f"batches of {measured.batch}" if measured else "in batches"

    def steps(self, candidate: Candidate) -> str:
        """The passes in a line, without version and built-in family, with the options that tell candidates apart."""
        return ", ".join(self._step(step) for step in candidate.steps)

    def _step(self, step: Step) -> str:
        options = [_in_words(v, key) for key, v in step.options.items() if (step.use, key) in self._differing]
        name = re.sub(r"^(graph|quantize)\.|\.v\d+$", "", step.use)
        inside = ", ".join(filter(None, options))
        return f"{name}(\N{ZERO WIDTH SPACE}{inside})" if inside else name

    def shown(self, name: str) -> Callable[[float], str]:
        """How a figure that a budget may limit is written, by the limit's name."""
        scale = self.scale
        ways: dict[str, Callable[[float], str]] = {
            "accuracy_drop": lambda value: f"{scale.gap(value).lstrip('+')}{scale.points}",
            "accuracy_min": lambda value: f"{scale.plain(value)}{scale.unit}",
            "latency_ms": self.time,
            "throughput_min": lambda value: f"{number(value, 4)}\N{NO-BREAK SPACE}samples/s",
            "peak_memory_mb": lambda value: f"{number(value)}\N{NO-BREAK SPACE}MB",
            "size_mb": self.size,
            "energy_mj": lambda value: f"{number(value)}\N{NO-BREAK SPACE}mJ",
        }
        return ways[name]


def single(candidate: Candidate) -> Measurement | None:
    """The measurement of a candidate fed one sample at a time."""
    return candidate.measurements.get("single_stream")


def _scale(summary: Summary) -> Scale:
    higher = summary.higher_is_better
    values = [c.accuracy.value for c in summary.candidates if c.accuracy and math.isfinite(c.accuracy.value)]
    return Scale(percent=higher and all(-1 <= value <= 1 for value in values), higher=higher)


def _differing(candidates: Sequence[Candidate]) -> set[tuple[str, str]]:
    """Options, by pass and name, that some candidates have otherwise than others."""
    seen: dict[tuple[str, str], set[str]] = {}
    for step in (step for candidate in candidates for step in candidate.steps):
        for key, value in step.options.items():
            seen.setdefault((step.use, key), set()).add(repr(value))
    return {option for option, values in seen.items() if len(values) > 1}


def _in_words(value: object, key: str) -> str:
    """An option: lists and maps by their length, and long values cut; empty for what is empty."""
    if isinstance(value, list | tuple | dict):
        return f"{len(value)} {key}" if value else ""
    text = f"{key}={value}"
    return text if len(text) <= 60 else f"{text[:57]}..."
