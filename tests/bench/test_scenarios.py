"""Scenarios: queries of several samples, queries that arrive at random, and comparisons in one run."""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from farthing import bench
from farthing.bench import Rule, Served, capacity, serve
from farthing.bench.server import holds
from farthing.engines.base import Tensors
from farthing.errors import ConfigError, EngineError, MeasurementError
from farthing.model import Model, TensorSpec
from farthing.options import EngineOptions
from farthing.testing import fake_model

SAMPLES = [{"x": np.full((1, 1), k, np.float32)} for k in range(4)]
QUICK = Rule(warmup=2, min_count=20, min_seconds=0.0)


class Busy:
    """An engine that answers after so many seconds, and notes who was inside at once."""

    name, version, stateful = "busy", "1", False

    def __init__(self, seconds: float, concurrency: str = "threads", broken_after: int = 10**9) -> None:
        self.seconds, self.concurrency, self.left = seconds, concurrency, broken_after
        self.inputs = self.outputs = (TensorSpec(name="x", dtype="float32", shape=("n", 1), batch_axis=0),)
        self.inside = self.most = self.calls = 0
        self.turn = threading.Lock()

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        with self.turn:
            self.calls += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
            if self.calls > self.left:
                raise EngineError("broken")
        time.sleep(self.seconds)
        with self.turn:
            self.inside -= 1
        return {"x": feeds["x"]}


def served(engine: Busy, rate: float, count: int = 60, workers: int = 1) -> Served:
    rule = Rule(warmup=2, min_count=count, min_seconds=0.0)
    return serve(engine, SAMPLES, rate, rule, workers)  # type: ignore[arg-type]


@pytest.fixture
def model() -> Model:
    return fake_model(features=2, outputs=1)


def test_below_its_capacity_a_server_hardly_waits_and_above_it_waiting_grows() -> None:
    calm, flooded = served(Busy(0.002), rate=50), served(Busy(0.002), rate=5000)
    assert np.median(calm.latencies) < 0.5 * np.median(flooded.latencies)
    thirds = np.array_split(np.asarray(flooded.latencies), 3)
    assert np.median(thirds[0]) < np.median(thirds[1]) < np.median(thirds[2])
    assert min(calm.latencies) >= 0.002, "an answer takes at least the engine's time"


def test_a_server_run_takes_as_long_as_its_arrivals() -> None:
    found = served(Busy(0.0), rate=400, count=80)
    gaps = np.random.default_rng(0).exponential(1 / 400, 80)
    assert found.seconds >= gaps[1:].sum()
    assert len(found.latencies) == 80


def test_workers_answer_at_once_if_the_engine_lets_them() -> None:
    engine = Busy(0.005)
    served(engine, rate=2000, count=30, workers=3)
    assert engine.most == 3
    with pytest.raises(EngineError, match="one caller at a time"):
        served(Busy(0.0, "serial"), rate=100, workers=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_engine_ends_the_run(workers: int) -> None:
    with pytest.raises(EngineError, match="broken"):
        served(Busy(0.0, broken_after=20), rate=5000, workers=workers)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate above 0, less than 10,000,000 a second"):
        served(Busy(0.0), rate)


def queue(rate: float, service: float = 0.01, count: int = 800) -> Served:
    """What a server with a fixed service time would give, computed by Lindley's recursion instead of waiting."""
    arrivals = np.cumsum(np.random.default_rng(1).exponential(1 / rate, count))
    free, latencies = 0.0, []
    for arrival in arrivals:
        free = max(free, float(arrival)) + service
        latencies.append(free - float(arrival))
    return Served(latencies=latencies, seconds=free)


def test_capacity_is_the_highest_rate_that_keeps_the_bound() -> None:
    rate, found = capacity(queue, fastest=100.0, bound_ms=40.0)
    assert 30 < rate < 80
    assert np.quantile(found.latencies, 0.99) <= 0.040
    assert not holds(queue(rate * 1.3), 40.0), "more breaks it"


def test_a_bound_that_no_rate_keeps_is_an_error() -> None:
    with pytest.raises(MeasurementError, match="8 ms cannot be kept"):
        capacity(queue, fastest=100.0, bound_ms=8.0)  # an answer alone takes 10 ms


def test_a_query_of_eight_is_a_batch_or_eight_calls(model: Model) -> None:
    free = bench.bench(model, scenario="multi_stream", rule=QUICK, memory=False)
    assert (free.scenario, free.batch) == ("multi_stream", 8)
    manifest = model.manifest
    fixed_specs = tuple(
        TensorSpec(name=s.name, dtype=s.dtype, shape=(1, *s.shape[1:]), batch_axis=0) for s in manifest.inputs
    )
    size, rule = bench.query(manifest, "multi_stream", 32, QUICK)
    assert (size, rule.calls) == (8, 1)
    size, rule = bench.query(msgspec.structs.replace(manifest, inputs=fixed_specs), "multi_stream", 32, QUICK)
    assert (size, rule.calls) == (1, 8)
    slow = Busy(0.0)
    timed = bench.race([(slow, SAMPLES)], Rule(warmup=2, min_count=5, min_seconds=0.0, calls=8))[0]  # type: ignore[list-item]
    assert slow.calls >= 8 * len(timed.calls)


def test_the_server_scenario_of_a_model(model: Model) -> None:
    found = bench.bench_server(model, rate=2000.0, rule=QUICK, memory=False)
    assert (found.scenario, found.offered, found.runs) == ("server", 2000.0, 500)
    assert found.p99_ms >= found.p50_ms > 0
    assert found.throughput < 4000
    with pytest.raises(ConfigError, match="bench_server"):
        bench.bench(model, scenario="server")


def test_models_compared_in_one_run(model: Model) -> None:
    wide = fake_model(features=2048, outputs=512)
    options = EngineOptions()
    first, same, slower = bench.compare_engines(
        [(model, "", options), (model, "fake", options), (wide, "", options)],
        rule=Rule(warmup=2, min_count=60, min_seconds=0.2),
    )
    assert first.ratio is None
    assert same.ratio is not None
    assert 0.5 < same.ratio.value < 2
    assert slower.verdict == "worse"
    assert slower.ratio is not None
    assert slower.ratio.high < 1
    with pytest.raises(ConfigError, match="cannot be interleaved"):
        bench.compare_engines([(model, "", options)], scenario="server")
