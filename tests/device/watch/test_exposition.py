"""Metrics as text, read back with Prometheus's own parser."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.samples import Sample as Parsed

from farthing.device.watch import exposition, triton
from farthing.device.watch.exposition import Metric, Models, Sample
from farthing.device.watch.histogram import SIZES, Counts, Histogram
from farthing.device.watch.monitor import Monitor
from farthing.testing import FakeClock


def parsed(metrics: list[Metric]) -> list[dict[tuple[str, tuple[tuple[str, str], ...]], float]]:
    """What a scraper reads: once from the Prometheus text, once from the OpenMetrics text."""
    texts = (
        parser.text_string_to_metric_families(exposition.prometheus(metrics)),
        openmetrics_families(exposition.openmetrics(metrics)),
    )
    return [{key(sample): sample.value for family in text for sample in family.samples} for text in texts]


def key(sample: Parsed) -> tuple[str, tuple[tuple[str, str], ...]]:
    return sample.name, tuple(sorted(sample.labels.items()))


def served() -> Models:
    clock = FakeClock()
    busy, idle = Monitor(clock=clock), Monitor(clock=clock)
    for seconds in (0.0004, 0.003, 0.003, 20.0):
        busy.observe(seconds)
    for why in ("deadline", "overload", "overload", "engine", "bad_input", "cancelled"):
        busy.fail(why)
    busy.executed(3, 0.002, [0.0001, 0.001])
    busy.executed(8, 0.004, [0.0])
    return {("net", "2"): busy.performance(pending=5), ('odd "name"\\\n', "1"): idle.performance()}


def test_requests_of_a_model_as_a_scraper_reads_them() -> None:
    for found in parsed(exposition.inference(served())):
        who = (("model", "net"), ("version", "2"))

        def value(name: str, **labels: str) -> float:
            return found[f"farthing_inference_{name}", tuple(sorted((*who, *labels.items())))]  # noqa: B023

        assert value("requests_total", outcome="ok") == 4
        assert value("requests_total", outcome="overload") == 2
        assert value("request_duration_seconds_bucket", le="0.0025") == 1
        assert value("request_duration_seconds_bucket", le="0.005") == 3
        assert value("request_duration_seconds_bucket", le="10.0") == 3
        assert value("request_duration_seconds_bucket", le="+Inf") == 4
        assert value("request_duration_seconds_count") == 4
        assert value("request_duration_seconds_sum") == pytest.approx(20.0064)
        assert value("batch_size_bucket", le="4.0") == 1
        assert value("batch_size_sum") == 11
        assert value("compute_duration_seconds_sum") == pytest.approx(0.006)
        assert value("queue_duration_seconds_count") == 3
        assert value("pending_requests") == 5
        odd = (
            "farthing_inference_requests_total",
            (("model", 'odd "name"\\\n'), ("outcome", "ok"), ("version", "1")),
        )
        assert found[odd] == 0


def test_triton_names_hold_what_triton_means_by_them() -> None:
    """prometheus_client puts ``_total`` behind the names of counters that lack it; Prometheus does not."""
    assert "\nnv_inference_count{" in exposition.prometheus(triton.aliases(served()))
    for found in parsed(triton.aliases(served())):
        who = (("model", "net"), ("version", "2"))
        values = {n.removesuffix("_total"): value for (n, labels), value in found.items() if labels == who}
        assert values == {
            "nv_inference_request_success": 4,
            "nv_inference_count": 11,
            "nv_inference_exec_count": 2,
            "nv_inference_pending_request_count": 5,
            "nv_inference_request_duration_us": 20_006_400,
            "nv_inference_queue_duration_us": 1100,
            "nv_inference_compute_infer_duration_us": 8000,
        }
        failures = {
            dict(labels)["reason"]: value
            for (name, labels), value in found.items()
            if name.startswith("nv_inference_request_failure") and ("model", "net") in labels
        }
        assert failures == {"REJECTED": 3, "CANCELED": 1, "BACKEND": 1, "OTHER": 1}


@given(st.text(), st.text(), st.floats())
def test_any_text_and_number_comes_back(label: str, text: str, value: float) -> None:
    if any(mark in label + text for mark in "\r\x85\u2028\u2029\x0b\x0c\x1c\x1d\x1e"):
        return  # prometheus_client splits lines where Prometheus does not
    metric = Metric(name="x", kind="gauge", text=text, samples=(Sample(value=value, labels={"a": label}),))
    family = next(iter(parser.text_string_to_metric_families(exposition.prometheus([metric]))))
    found = family.samples[0]
    assert found.labels == {"a": label}
    assert found.value == value or math.isnan(value)


def test_openmetrics_knows_units_and_its_end() -> None:
    text = exposition.openmetrics(exposition.inference(served()) + triton.aliases(served()))
    assert text.endswith("\n# EOF\n")
    assert "# UNIT farthing_inference_request_duration_seconds seconds\n" in text
    assert "# TYPE farthing_inference_requests counter\n" in text
    assert "# TYPE nv_inference_count unknown\n" in text


@pytest.mark.parametrize("name", ["1x", "a-b", "", "a b", "é"])
def test_names_that_prometheus_would_refuse_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name of a metric"):
        Metric(name=name, kind="gauge", text="", samples=())
    with pytest.raises(ValueError, match="name of a label"):
        Sample(value=1, labels={name: ""})
    with pytest.raises(ValueError, match="name of a label"):
        Sample(value=1, labels={"le": "1"})


def test_a_histogram_is_counts_and_nothing_else_is() -> None:
    counts = Histogram(SIZES).snapshot()
    assert isinstance(counts, Counts)
    for kind, value in (("gauge", counts), ("histogram", 1.0)):
        with pytest.raises(ValueError, match="samples of a histogram are counts"):
            Metric(name="x", kind=kind, text="", samples=(Sample(value=value),))  # type: ignore[arg-type]
