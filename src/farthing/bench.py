"""Measure a model on this machine: accuracy, latency, throughput, memory, energy. The same code and file for all.

Scenarios follow MLPerf Inference (Reddi et al., 2019, https://arxiv.org/abs/1911.02549): ``single_stream``
sends the next sample when the last is answered and reports p90; ``offline`` sends batches and reports samples
a second. Several engines are timed interleaved, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import datetime
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.config import Section
from farthing.engines.base import Engine, EngineOptions, Tensors, open_engine
from farthing.errors import MeasurementError, TaskError
from farthing.measure import Floats, Measurement, Scenario, machine_name, percentile, percentile_bound
from farthing.metrics import Outputs
from farthing.meter import find_meter
from farthing.model import Manifest, Model
from farthing.target import Target
from farthing.task import Split, SplitName, Task

Array = NDArray[Any]
EVALUATION_BATCH = 64
OFFLINE_BATCH = 32
Tick = Callable[[int, int], None]


class Rule(Section, frozen=True, kw_only=True):
    """How long to measure: at least so many calls and seconds, and never more than ``max_seconds`` once begun."""

    warmup: int = 10
    min_count: int = 200
    min_seconds: float = 2.0
    max_seconds: float = 60.0


def feeds(task: Task, split: Split, manifest: Manifest, picks: Sequence[int] | Array) -> dict[str, Array]:
    """Some samples of a split as the model's input tensors, preprocessed as its manifest says."""
    raw = split.take(picks)
    specs = {spec.name: spec for spec in manifest.data_inputs}
    if task.form == "image":
        from farthing.ops.image import prepare_batch

        task.check(manifest)
        spec = next(iter(specs.values()))
        if manifest.preprocess is None:
            raise TaskError(f"the manifest of {manifest.name} does not say how to preprocess pictures")
        return {spec.name: prepare_batch(next(iter(raw.values())), manifest.preprocess, spec)}
    named = {name or next(iter(specs)): array for name, array in raw.items()}
    return {
        name: (array if specs[name].batch_axis is not None else array[0]).astype(specs[name].dtype, copy=False)
        for name, array in named.items()
        if name in specs
    }


def outputs(
    engine: Engine, manifest: Manifest, task: Task, split: Split, picks: Array | None = None, tick: Tick | None = None
) -> Outputs:
    """What a model answers to the samples of a split: output name -> array, samples along the first axis."""
    order = np.arange(len(split)) if picks is None else np.asarray(picks)
    size = batch_size(manifest, EVALUATION_BATCH)
    parts: list[dict[str, Array]] = []
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        padded = np.resize(chunk, size) if _fixed(manifest) else chunk
        stream = engine.session() if engine.stateful else engine
        answer = stream.run(feeds(task, split, manifest, padded))
        parts.append({name: _rows(array, len(padded))[: len(chunk)] for name, array in answer.items()})
        if tick:
            tick(min(start + size, len(order)), len(order))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _rows(array: Array, count: int) -> Array:
    """An output with its samples along the first axis; one without a batch axis belongs to a single sample."""
    return array if array.ndim and len(array) == count else array[None]


def _fixed(manifest: Manifest) -> bool:
    return any(spec.fixed_batch for spec in manifest.data_inputs)


def batch_size(manifest: Manifest, wanted: int) -> int:
    """``wanted``, or what the model fixes: its batch, or 1 for a model that keeps state or has no batch axis."""
    if any(spec.role == "state" for spec in manifest.inputs):
        return 1
    sizes = [spec.fixed_batch for spec in manifest.data_inputs if spec.fixed_batch]
    if sizes:
        return sizes[0]
    return wanted if any(spec.batch_axis is not None for spec in manifest.data_inputs) else 1


def sample_feeds(manifest: Manifest, batch: int, task: Task | None = None, split: SplitName = "validation") -> list[Tensors]:
    """Up to eight feeds to time with: real samples of the task, or seeded random numbers where there is no task."""
    size = batch_size(manifest, batch)
    if task is not None:
        data = task.split(split)
        rows = np.resize(np.arange(len(data)), 8 * size).reshape(8, size)
        return [feeds(task, data, manifest, row) for row in rows]
    generator = np.random.default_rng(0)
    return [{spec.name: random_array(spec.sized(size), spec.dtype, generator) for spec in manifest.data_inputs}]


def random_array(shape: tuple[int, ...], dtype: str, generator: np.random.Generator) -> Array:
    """Numbers to time with where no data is at hand: standard normal, or whole numbers 0 and 1."""
    kind = np.dtype(dtype).kind
    values = generator.standard_normal(shape) if kind == "f" else generator.integers(0, 2, shape)
    return np.asarray(values).astype(dtype)


class Timed(Section, frozen=True, kw_only=True):
    """Times of one entrant of a race: every timed call, and the median of each interleaved round, seconds."""

    calls: list[float]
    rounds: list[float]


def race(entrants: Sequence[tuple[Engine, Sequence[Tensors]]], rule: Rule, tick: Tick | None = None) -> list[Timed]:
    """Time several engines interleaved, round by round, in an order that rotates.

    In each round an entrant makes one untimed call (it warms the caches its rivals emptied) and then a block of
    timed ones. Garbage collection is off while the clock runs.

    Raises:
        EngineError: an engine failed.
    """
    blocks = [_warm(engine, samples, rule) for engine, samples in entrants]
    calls: list[list[float]] = [[] for _ in entrants]
    rounds: list[list[float]] = [[] for _ in entrants]
    start = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(1_000_000):
            for place in range(len(entrants)):
                entrant = (number + place) % len(entrants)
                times = _block(*entrants[entrant], blocks[entrant], number)
                calls[entrant] += times
                rounds[entrant].append(float(np.median(times)))
            spent = time.perf_counter() - start
            if tick:
                tick(int(min(spent, rule.min_seconds) * 100), int(rule.min_seconds * 100))
            enough = spent >= rule.min_seconds and min(map(len, calls)) >= rule.min_count and number >= 9
            if enough or spent >= rule.max_seconds:
                break
    finally:
        if collecting:
            gc.enable()
    return [Timed(calls=c, rounds=r) for c, r in zip(calls, rounds, strict=True)]


def _warm(engine: Engine, samples: Sequence[Tensors], rule: Rule) -> int:
    """Warm up; how many calls make a block of some two milliseconds."""
    times = _block(engine, samples, max(2, rule.warmup), 0)
    return int(np.clip(0.002 / max(float(np.median(times)), 1e-7), 3, 100))


def _block(engine: Engine, samples: Sequence[Tensors], count: int, offset: int) -> list[float]:
    run, clock, n = engine.run, time.perf_counter, len(samples)
    run(samples[offset % n])
    times = []
    for i in range(count):
        sample = samples[(offset + i) % n]
        begin = clock()
        run(sample)
        times.append(clock() - begin)
    return times


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
        tick: called with (done, total).

    Raises:
        EngineError: the model does not load or run.
        MeasurementError: the child process failed.
    """
    options, rule = options or EngineOptions(), rule or Rule()
    begin = time.perf_counter()
    with open_engine(model, engine, options) as opened:
        load_ms = (time.perf_counter() - begin) * 1000
        size = 1 if scenario == "single_stream" else batch_size(model.manifest, batch)
        samples = sample_feeds(model.manifest, size, task)
        meter = find_meter()
        before = meter.read() if meter else []
        timed = race([(opened, samples)], rule, tick)[0]
        energy = meter.spent(before, meter.read()) / (len(timed.calls) * size) if meter else None
        measured = summarise(model, opened, options, scenario, batch_size(model.manifest, size), timed)
    peak, added = peak_memory(model, engine, options) if memory else (None, None)
    return measured.merged(
        load_ms=load_ms,
        prepare_ms=prepare_ms(model.manifest, task),
        energy_mj=energy,
        energy_source=meter.source if meter else "unavailable",
        peak_memory_mb=peak,
        memory_mb=added,
    )


def summarise(
    model: Model, engine: Engine, options: EngineOptions, scenario: Scenario, batch: int, timed: Timed
) -> Measurement:
    """A Measurement from the times of a race."""
    calls: Floats = np.asarray(timed.calls)
    bound = percentile_bound(calls, 0.9)
    target = Target.detect()
    return Measurement(
        model=model.digest,
        engine=engine.name,
        engine_version=engine.version,
        threads=options.threads,
        machine=machine_name(target.cpu, target.cores),
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
) -> tuple[Any, Outputs]:
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
            raise TaskError(f"metric {task.metric.name} compares with the float model: give it as the reference")
        with open_engine(reference, engine, options) as opened:
            truth = outputs(opened, reference.manifest, task, data)
    with open_engine(model, engine, options) as opened:
        found = outputs(opened, model.manifest, task, data, tick=tick)
    return task.metric.score(found, data.labels, truth), found


def peak_memory(model: Model, engine: str, options: EngineOptions) -> tuple[float, float]:
    """Peak resident memory of a fresh process that loads a model and runs it, batch 1.

    Returns:
        (peak, peak less the bare process with numpy and Farthing loaded), MB of 10^6 bytes.

    Raises:
        MeasurementError: the child process failed.
    """
    order = json.dumps([str(model.path), engine, options.threads, list(options.providers)])
    child = subprocess.run(
        [sys.executable, "-m", "farthing.bench", order], capture_output=True, text=True, timeout=300, check=False
    )
    try:
        peak, bare = json.loads(child.stdout)
    except ValueError as error:
        raise MeasurementError(f"the process that measures memory failed: {child.stderr.strip()[-500:]}") from error
    return peak, peak - bare


def _high_water_mb() -> float:
    """Peak resident memory of this process: VmHWM, because ru_maxrss survives exec and would count the parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise MeasurementError("the kernel does not say VmHWM in /proc/self/status")


def _child(order: str) -> Iterator[float]:
    path, engine, threads, providers = json.loads(order)
    bare = _high_water_mb()
    model = Model.open(path)
    with open_engine(model, engine, EngineOptions(threads=threads, providers=tuple(providers))) as opened:
        sample = sample_feeds(model.manifest, 1)[0]
        for _ in range(3):
            opened.run(sample)
    yield _high_water_mb()
    yield bare


if __name__ == "__main__":
    sys.stdout.write(json.dumps(list(_child(sys.argv[1]))))
