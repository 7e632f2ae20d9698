"""Metrics as text: Prometheus exposition format 0.0.4, and OpenMetrics 1.0.0.

Names follow Prometheus's rules: base units (seconds, bytes, celsius), ``_total`` behind counters, few label values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from farthing.config import Section
from farthing.device.watch.histogram import Counts
from farthing.device.watch.monitor import Performance

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of `prometheus`."""

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""Content type of `openmetrics`: for scrapers whose Accept header names ``application/openmetrics-text``."""

Kind = Literal["counter", "gauge", "histogram"]
Models = Mapping[tuple[str, str], Performance]
"""(model, version) -> what its monitors counted."""


class Sample(Section, frozen=True, kw_only=True):
    """One value of a metric, or one histogram, and the labels that tell it from the others."""

    value: float | Counts
    labels: dict[str, str] = {}

    def __post_init__(self) -> None:
        for name in self.labels:
            if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) or name == "le" or name.startswith("__"):
                raise ValueError(f"{name!r} cannot be the name of a label")


class Metric(Section, frozen=True, kw_only=True):
    """A metric: its name, what it means, and its samples.

    Attributes:
        name: in full, as in ``farthing_inference_requests_total``.
        kind: what its values are; those of a ``histogram`` are `Counts`.
        text: what it means, in a sentence without a full stop.
        samples: one for each set of labels.
    """

    name: str
    kind: Kind
    text: str
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", self.name):
            raise ValueError(f"{self.name!r} cannot be the name of a metric")
        if any(isinstance(sample.value, Counts) != (self.kind == "histogram") for sample in self.samples):
            raise ValueError(f"{self.name}: samples of a histogram are counts, and no others are")


def prometheus(metrics: Iterable[Metric]) -> str:
    """Metrics in Prometheus's text format 0.0.4; `PROMETHEUS` is its content type."""
    lines: list[str] = []
    for metric in metrics:
        text = metric.text.replace("\\", r"\\").replace("\n", r"\n")
        lines += [f"# HELP {metric.name} {text}", f"# TYPE {metric.name} {metric.kind}", *_samples(metric)]
    return "".join(f"{line}\n" for line in lines)


def openmetrics(metrics: Iterable[Metric]) -> str:
    """Metrics in the text format of OpenMetrics 1.0.0; `OPENMETRICS` is its content type.

    A counter whose name does not end in ``_total`` is none to OpenMetrics: its type is given as ``unknown``.
    """
    lines: list[str] = []
    for metric in metrics:
        counter = metric.kind == "counter"
        name = metric.name.removesuffix("_total") if counter else metric.name
        kind = "unknown" if counter and name == metric.name else metric.kind
        unit = next((unit for unit in ("seconds", "bytes", "celsius") if name.endswith(f"_{unit}")), "")
        lines += [f"# TYPE {name} {kind}", *([f"# UNIT {name} {unit}"] if unit else [])]
        lines += [f"# HELP {name} {_escaped(metric.text)}", *_samples(metric)]
    return "".join(f"{line}\n" for line in [*lines, "# EOF"])


def _samples(metric: Metric) -> Iterator[str]:
    for sample in metric.samples:
        if isinstance(sample.value, Counts):
            yield from _histogram(metric.name, sample.labels, sample.value)
        else:
            yield f"{metric.name}{_labels(sample.labels)} {_number(sample.value)}"


def _histogram(name: str, labels: Mapping[str, str], counts: Counts) -> Iterator[str]:
    bounds = [_number(float(bound)) for bound in (*counts.bounds, math.inf)]
    for bound, count in zip(bounds, counts.cumulative(), strict=True):
        yield f"{name}_bucket{_labels({**labels, 'le': bound})} {count}"
    yield f"{name}_sum{_labels(labels)} {_number(counts.total)}"
    yield f"{name}_count{_labels(labels)} {counts.count}"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(value)


def inference(models: Models) -> list[Metric]:
    """The metrics of served models; ``outcome`` is ``ok`` or why requests failed (see `monitor.reason`)."""
    outcomes = [
        Sample(value=count, labels={**of_model(who), "outcome": outcome})
        for who, what in models.items()
        for outcome, count in {"ok": what.requests.count, **what.requests.errors}.items()
    ]
    durations = {who: what.requests.durations for who, what in models.items()}
    return [
        Metric(
            name="farthing_inference_requests_total",
            kind="counter",
            text="Requests by how they ended",
            samples=tuple(outcomes),
        ),
        _metric("request_duration_seconds", "histogram", "From a request to its answer", durations),
        _metric(
            "queue_duration_seconds",
            "histogram",
            "How long requests waited for their execution",
            {who: what.queued for who, what in models.items()},
        ),
        _metric(
            "compute_duration_seconds",
            "histogram",
            "How long executions of the model took",
            {who: what.computed for who, what in models.items()},
        ),
        _metric(
            "batch_size",
            "histogram",
            "Samples an execution computed",
            {who: what.batches for who, what in models.items()},
        ),
        _metric(
            "pending_requests",
            "gauge",
            "Requests that wait for their execution",
            {who: what.pending for who, what in models.items()},
        ),
    ]


def _metric(name: str, kind: Kind, text: str, values: Mapping[tuple[str, str], float | Counts]) -> Metric:
    samples = tuple(Sample(value=value, labels=of_model(who)) for who, value in values.items())
    return Metric(name=f"farthing_inference_{name}", kind=kind, text=text, samples=samples)


def of_model(who: tuple[str, str]) -> dict[str, str]:
    """The labels of a (model, version)."""
    return {"model": who[0], "version": who[1]}
