"""Served models under the metric names of Triton Inference Server, for dashboards that are made for it.

Meanings: the metrics page of Triton's user guide. Durations are whole microseconds, added up, request by request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from farthing.device.watch.exposition import Kind, Metric, Models, Sample, of_model
from farthing.device.watch.monitor import Performance

_FAILURES = {"deadline": "REJECTED", "overload": "REJECTED", "cancelled": "CANCELED", "engine": "BACKEND"}

_METRICS: tuple[tuple[str, Kind, str, Callable[[Performance], float]], ...] = (
    (
        "nv_inference_request_success",
        "counter",
        "Number of successful inference requests",
        lambda what: what.requests.count,
    ),
    (
        "nv_inference_count",
        "counter",
        "Number of inferences performed: a batch of n counts n times",
        lambda what: int(what.batches.total),
    ),
    (
        "nv_inference_exec_count",
        "counter",
        "Number of model executions performed",
        lambda what: what.batches.count,
    ),
    (
        "nv_inference_pending_request_count",
        "gauge",
        "Number of requests that await execution",
        lambda what: what.pending,
    ),
    (
        "nv_inference_request_duration_us",
        "counter",
        "Cumulative time from request to answer, in microseconds",
        lambda what: _microseconds(what.requests.durations.total),
    ),
    (
        "nv_inference_queue_duration_us",
        "counter",
        "Cumulative time requests waited, in microseconds",
        lambda what: _microseconds(what.queued.total),
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Cumulative time requests spent in executions, in microseconds",
        lambda what: _microseconds(what.occupied),
    ),
)


def aliases(models: Models) -> list[Metric]:
    """The metrics of `exposition.inference` that Triton has too, under its names and in its units."""
    failures = tuple(
        Sample(value=count, labels={**of_model(who), "reason": why})
        for who, what in models.items()
        for why, count in _failures(what).items()
    )
    return [
        Metric(
            name=name,
            kind=kind,
            text=text,
            samples=tuple(Sample(value=value(what), labels=of_model(who)) for who, what in models.items()),
        )
        for name, kind, text, value in _METRICS
    ] + [
        Metric(
            name="nv_inference_request_failure",
            kind="counter",
            text="Number of failed inference requests",
            samples=failures,
        )
    ]


def _failures(what: Performance) -> Mapping[str, int]:
    """Triton's four reasons, each with its count."""
    counts = dict.fromkeys((*_FAILURES.values(), "OTHER"), 0)
    for why, count in what.requests.errors.items():
        counts[_FAILURES.get(why, "OTHER")] += count
    return counts


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
