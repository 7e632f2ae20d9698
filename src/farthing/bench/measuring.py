"""Measure a model on this machine: accuracy, latency, throughput, memory, energy.

Scenarios follow MLPerf Inference (Reddi et al., 2019, https://arxiv.org/abs/1911.02549): ``single_stream``
sends the next sample when the last is answered and reports p90; ``multi_stream`` does so with queries of eight samples
and reports p99; ``server`` lets samples arrive at random (Poisson) and reports p99 with the waiting; ``offline`` sends
batches and reports samples a second.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from farthing import plugins
from farthing.bench.feeding import OFFLINE_BATCH, batch_size, feeds, outputs, sample_feeds
from farthing.bench.machine import Here, Machine
from farthing.bench.racing import Rule, Tick, Timed
from farthing.bench.server import capacity
from farthing.config import Section
from farthing.engines.base import Engine, open_engine
from farthing.errors import ConfigError, EngineError, RaceError, TaskError
from farthing.measure import (
    Floats,
    Interval,
    Measurement,
    Scenario,
    Verdict,
    compare,
    percentile,
    percentile_bound,
)
from farthing.metrics import Outputs
from farthing.model import Manifest, Model, as_model
from farthing.options import EngineOptions
from farthing.task import SplitName, Task, as_task

STREAMS = 8
LEAST_QUERIES = 500


def bench(
    model: Model | Path | str,
    *,
    scenario: Scenario = "single_stream",
    engine: str = "",
    options: EngineOptions | None = None,
    task: Task | Path | str | None = None,
    batch: int = OFFLINE_BATCH,
    rule: Rule | None = None,
    memory: bool = True,
    machine: Machine | None = None,
    tick: Tick | None = None,
) -> Measurement:
    """Measure one model in one engine under one scenario.

    Args:
        model: the model, or its path.
        scenario: ``single_stream`` (batch 1), ``multi_stream`` (queries of eight samples) or ``offline`` (``batch``
            samples a call); for ``server`` see `bench_server`.
        engine, options: what runs it.
        task: real samples to run on, or what `farthing.find_task` finds them by; without one, random numbers serve,
            which is fit for timing only.
        batch: samples a call in ``offline``; a model with a fixed batch keeps its own.
        rule: how long to measure.
        memory: also measure peak memory, in a child process.
        machine: where; this machine if None.
        tick: called with (done, total).

    Raises:
        ConfigError: the ``server`` scenario.
        EngineError: the model does not load or run.
        MeasurementError: the child process failed.
    """
    if scenario == "server":
        raise ConfigError("the server scenario has a rate or a bound on p99: call bench_server")
    model, task = as_model(model), None if task is None else as_task(task)
    options, machine = options or EngineOptions(), machine or Here()
    opened, load_ms = machine.load(model, engine, options)
    with opened:
        size, rule = query(model.manifest, scenario, batch, rule or Rule())
        samples = sample_feeds(model.manifest, size, task)
        timed, energy = machine.metered((opened, samples), size * rule.calls, rule, tick)
        measured = summarise(model, opened, options, scenario, size * rule.calls, timed, machine)
    return _completed(measured, model, task, memory, machine).merged(
        load_ms=load_ms, energy_mj=energy, energy_source=machine.meter or "unavailable"
    )


def query(manifest: Manifest, scenario: Scenario, batch: int, rule: Rule) -> tuple[int, Rule]:
    """Samples of one call, and the rule with as many calls as make one query of a scenario."""
    wanted = {"offline": batch, "multi_stream": STREAMS}.get(scenario, 1)
    size = batch_size(manifest, wanted)
    calls = -(-STREAMS // size) if scenario == "multi_stream" else 1
    return size, replace(rule, calls=calls)


def bench_server(
    model: Model,
    *,
    rate: float | None = None,
    bound_ms: float = 15.0,
    workers: int = 1,
    engine: str = "",
    options: EngineOptions | None = None,
    task: Task | None = None,
    rule: Rule | None = None,
    memory: bool = True,
    machine: Machine | None = None,
    tick: Tick | None = None,
) -> Measurement:
    """Measure one model under the server scenario: latencies count from a query's arrival.

    Args:
        rate: queries a second to offer; None finds the highest whose p99 stays within ``bound_ms``.
        bound_ms: limit of p99 for that, milliseconds (15 is MLPerf's for its image classifier).
        workers: threads that answer.
        rule: at least 500 queries are offered, whatever it says: fewer say nothing of p99.

    Raises:
        EngineError: the model does not load or run, or takes one caller at a time and ``workers`` are more.
        MeasurementError: no rate keeps the bound.
        ConfigError: a rate that is not above zero.
    """
    options, machine = options or EngineOptions(), machine or Here()
    rule = rule or Rule()
    rule = replace(rule, min_count=max(rule.min_count, LEAST_QUERIES))
    opened, load_ms = machine.load(model, engine, options)
    with opened:
        entrant = opened, sample_feeds(model.manifest, 1, task)
        if rate is None:
            alone = machine.race([entrant], replace(rule, min_seconds=0.5, min_count=50))[0]
            fastest = workers / float(np.median(alone.calls))
            rate, served = capacity(
                lambda offered: machine.serve(entrant, offered, rule, workers, tick), fastest, bound_ms
            )
        else:
            served = machine.serve(entrant, rate, rule, workers, tick)
        timed = Timed(calls=served.latencies, rounds=[], made=len(served.latencies))
        measured = summarise(model, opened, options, "server", 1, timed, machine)
    throughput = len(served.latencies) / served.seconds
    return _completed(measured, model, task, memory, machine).merged(
        load_ms=load_ms, offered=rate, workers=workers, seconds=served.seconds, throughput=throughput
    )


def _completed(
    measured: Measurement, model: Model, task: Task | None, memory: bool, machine: Machine
) -> Measurement:
    """With memory and the time to prepare a sample, which are measured on their own."""
    peak, added = machine.peak_memory(model, measured.engine, measured.options) if memory else (None, None)
    return measured.merged(prepare_ms=prepare_ms(model.manifest, task), peak_memory_mb=peak, memory_mb=added)


class Compared(Section, frozen=True, kw_only=True):
    """One entrant of a comparison.

    Attributes:
        measurement: its figures.
        ratio: how many times faster than the first entrant it is, by p50 of a call; None for the first.
        verdict: what the interval of that allows to say.
    """

    measurement: Measurement
    ratio: Interval | None = None
    verdict: Verdict = "same"


def compare_engines(
    entrants: Sequence[tuple[Model, str, EngineOptions]],
    *,
    scenario: Scenario = "single_stream",
    task: Task | None = None,
    batch: int = OFFLINE_BATCH,
    rule: Rule | None = None,
    machine: Machine | None = None,
    tick: Tick | None = None,
) -> list[Compared]:
    """Time models, engines or options against one another, interleaved, in one run.

    Args:
        entrants: model, engine (empty for the first that runs it) and options of each; the first is compared with.
        scenario: one whose calls can be interleaved: ``single_stream``, ``multi_stream`` or ``offline``.

    Raises:
        ConfigError: the ``server`` scenario, or queries that hold different numbers of samples.
        RaceError: one does not load or run.
    """
    if scenario == "server":
        raise ConfigError("queries of the server scenario cannot be interleaved: measure one after the other")
    machine, rule = machine or Here(), rule or Rule()
    shapes = {query(model.manifest, scenario, batch, rule) for model, _, _ in entrants}
    if len(shapes) != 1:
        raise ConfigError(
            f"these models take queries of different sizes in {scenario}: compare them one by one"
        )
    (first, base), *others = race_models(entrants, scenario, task, batch, rule, machine, tick)
    found = [Compared(measurement=first)]
    for measured, timed in others:
        ratio = timed.over(base)
        found.append(Compared(measurement=measured, ratio=ratio, verdict=compare(ratio)))
    return found


def race_models(
    entrants: Sequence[tuple[Model, str, EngineOptions]],
    scenario: Scenario,
    task: Task | None,
    batch: int,
    rule: Rule,
    machine: Machine,
    tick: Tick | None = None,
) -> list[tuple[Measurement, Timed]]:
    """Load models on a machine and time them interleaved, each on samples of its own shape.

    Args:
        entrants, scenario, task, batch, rule, machine, tick: as `compare_engines` takes them; in ``multi_stream`` all
            take queries of one size.

    Raises:
        RaceError: one does not load or run.
    """
    queries = [query(model.manifest, scenario, batch, rule) for model, _, _ in entrants]
    with ExitStack() as stack:
        opened, loads = [], []
        for place, ((model, engine, options), (size, _)) in enumerate(zip(entrants, queries, strict=True)):
            try:
                loaded, load_ms = machine.load(model, engine, options)
            except EngineError as error:
                raise RaceError(str(error), place) from error
            opened.append((stack.enter_context(loaded), sample_feeds(model.manifest, size, task)))
            loads.append(load_ms)
        timed = machine.race(opened, queries[0][1], tick)
        found = []
        for place, (model, _, options) in enumerate(entrants):
            (loaded, _), (size, own), times = opened[place], queries[place], timed[place]
            measured = summarise(model, loaded, options, scenario, size * own.calls, times, machine)
            found.append((measured.merged(load_ms=loads[place]), times))
    return found


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


def _reference(model: Model, engine: str, options: EngineOptions | None) -> Engine:
    """The float model in the engine of the model it is the reference of, else in the first that runs its format."""
    if engine and model.manifest.format in plugins.get("engine", engine).formats:
        return open_engine(model, engine, options)
    return open_engine(model)


def evaluate(
    model: Model | Path | str,
    task: Task | Path | str,
    split: SplitName = "test",
    *,
    engine: str = "",
    options: EngineOptions | None = None,
    reference: Model | Path | str | None = None,
    tick: Tick | None = None,
) -> tuple[Interval, Outputs]:
    """Score a model on a split of a task: the metric with its interval, and the outputs it comes from.

    Args:
        model: the model, or its path.
        task: the task, or what `farthing.find_task` finds it by.
        reference: the float model, for metrics that compare with one (``agreement``, ``cosine``).

    Raises:
        TaskError: the task does not fit the model, or needs a reference that is not given.
        EngineError: the model does not load or run.
    """
    model, task = as_model(model), as_task(task)
    reference = None if reference is None else as_model(reference)
    task.check(model.manifest)
    data = task.split(split)
    truth = None
    if task.metric.needs == "reference":
        if reference is None:
            raise TaskError(
                f"metric {task.metric.name} compares with the float model: give it as the reference"
            )
        with _reference(reference, engine, options) as opened:
            truth = outputs(opened, reference.manifest, task, data)
    with open_engine(model, engine, options) as opened:
        found = outputs(opened, model.manifest, task, data, tick=tick)
    return task.metric.score(found, data.labels, truth, data.groups), found
