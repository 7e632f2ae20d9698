"""Measure a model on this machine: accuracy, latency, throughput, memory, energy.

Scenarios follow MLPerf Inference (Reddi et al., 2019, https://arxiv.org/abs/1911.02549): ``single_stream``
sends the next sample when the last is answered and reports p90; ``offline`` sends batches and reports samples
a second.
"""

from __future__ import annotations

import datetime
import time

import numpy as np

from farthing.bench.feeding import OFFLINE_BATCH, batch_size, feeds, outputs, sample_feeds
from farthing.bench.machine import Here, Machine
from farthing.bench.racing import Rule, Tick, Timed
from farthing.engines.base import Engine, open_engine
from farthing.errors import TaskError
from farthing.measure import (
    Floats,
    Interval,
    Measurement,
    Scenario,
    percentile,
    percentile_bound,
)
from farthing.metrics import Outputs
from farthing.model import Manifest, Model
from farthing.options import EngineOptions
from farthing.task import SplitName, Task


def bench(
    model: Model,
    *,
    scenario: Scenario = "single_stream",
    engine: str = "",
    options: EngineOptions | None = None,
    task: Task | None = None,
    batch: int = OFFLINE_BATCH,
    rule: Rule | None = None,
    memory: bool = True,
    machine: Machine | None = None,
    tick: Tick | None = None,
) -> Measurement:
    """Measure one model in one engine under one scenario.

    Args:
        model: the model.
        scenario: ``single_stream`` (batch 1) or ``offline`` (``batch`` samples a call).
        engine, options: what runs it.
        task: real samples to run on; without one, random numbers serve, which is fit for timing only.
        batch: samples a call in ``offline``; a model with a fixed batch keeps its own.
        rule: how long to measure.
        memory: also measure peak memory, in a child process.
        machine: where; this machine if None.
        tick: called with (done, total).

    Raises:
        EngineError: the model does not load or run.
        MeasurementError: the child process failed.
    """
    options, rule = options or EngineOptions(), rule or Rule()
    machine = machine or Here()
    opened, load_ms = machine.load(model, engine, options)
    with opened:
        size = batch_size(model.manifest, 1 if scenario == "single_stream" else batch)
        samples = sample_feeds(model.manifest, size, task)
        timed, energy = machine.metered((opened, samples), size, rule, tick)
        measured = summarise(model, opened, options, scenario, size, timed, machine)
    peak, added = machine.peak_memory(model, engine, options) if memory else (None, None)
    return measured.merged(
        load_ms=load_ms,
        prepare_ms=prepare_ms(model.manifest, task),
        energy_mj=energy,
        energy_source=machine.meter or "unavailable",
        peak_memory_mb=peak,
        memory_mb=added,
    )


def summarise(
    model: Model,
    engine: Engine,
    options: EngineOptions,
    scenario: Scenario,
    batch: int,
    timed: Timed,
    machine: Machine,
) -> Measurement:
    """A Measurement from the times of a race on a machine."""
    calls: Floats = np.asarray(timed.calls)
    bound = percentile_bound(calls, 0.9)
    return Measurement(
        model=model.digest,
        engine=engine.name,
        engine_version=engine.version,
        options=options,
        machine=machine.description,
        scenario=scenario,
        batch=batch,
        runs=len(calls),
        seconds=float(calls.sum()),
        p50_ms=float(np.median(calls)) * 1000,
        p90_ms=percentile(calls, 0.9) * 1000,
        p99_ms=percentile(calls, 0.99) * 1000,
        p90_bound_ms=None if bound is None else bound * 1000,
        throughput=batch * len(calls) / float(calls.sum()),
        size_mb=model.size_bytes / 1e6,
        temperature_c=machine.temperature(),
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def prepare_ms(manifest: Manifest, task: Task | None, count: int = 16) -> float | None:
    """Median time to fetch and preprocess one sample, milliseconds; None without a task of pictures."""
    if task is None or task.form != "image":
        return None
    split = task.split("validation")
    times = []
    for i in range(min(count, len(split))):
        begin = time.perf_counter()
        feeds(task, split, manifest, [i])
        times.append(time.perf_counter() - begin)
    return float(np.median(times)) * 1000


def evaluate(
    model: Model,
    task: Task,
    split: SplitName = "test",
    *,
    engine: str = "",
    options: EngineOptions | None = None,
    reference: Model | None = None,
    tick: Tick | None = None,
) -> tuple[Interval, Outputs]:
    """Score a model on a split of a task: the metric with its interval, and the outputs it comes from.

    Args:
        reference: the float model, for metrics that compare with one (``agreement``, ``cosine``).

    Raises:
        TaskError: the task does not fit the model, or needs a reference that is not given.
        EngineError: the model does not load or run.
    """
    task.check(model.manifest)
    data = task.split(split)
    truth = None
    if task.metric.needs == "reference":
        if reference is None:
            raise TaskError(
                f"metric {task.metric.name} compares with the float model: give it as the reference"
            )
        with open_engine(reference, engine, options) as opened:
            truth = outputs(opened, reference.manifest, task, data)
    with open_engine(model, engine, options) as opened:
        found = outputs(opened, model.manifest, task, data, tick=tick)
    return task.metric.score(found, data.labels, truth), found
