"""Measure a model on this machine: accuracy, latency, throughput, memory, energy. The same code and file for all.

Scenarios follow MLPerf Inference (Reddi et al., 2019, https://arxiv.org/abs/1911.02549): ``single_stream``
sends the next sample when the last is answered and reports p90; ``offline`` sends batches and reports samples
a second. Several engines are timed interleaved, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import datetime
import gc
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.config import Section, convert, plain
from farthing.engines.base import Engine, Tensors, open_engine
from farthing.errors import MeasurementError, TaskError
from farthing.measure import (
    Floats,
    Interval,
    Measurement,
    Scenario,
    machine_name,
    percentile,
    percentile_bound,
)
from farthing.meter import Rapl, find_meter
from farthing.metrics import Outputs
from farthing.model import Manifest, Model, TensorSpec
from farthing.options import EngineOptions
from farthing.target import Target
from farthing.task import Split, SplitName, Task

Array = NDArray[Any]
EVALUATION_BATCH = 64
OFFLINE_BATCH = 32
LEAST_ROUNDS = 5  # fewer give no honest interval
SLOW_SECONDS = 0.02
CHILD_SECONDS = 300
Tick = Callable[[int, int], None]


class Rule(Section, frozen=True, kw_only=True):
    """How long to measure: calls of each entrant and seconds of the whole race, at least.

    After ``max_seconds`` five rounds are enough.
    """

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
    return {name: _fed(array, specs[name]) for name, array in named.items() if name in specs}


def _fed(array: Array, spec: TensorSpec) -> Array:
    """Samples along the first axis as one input tensor: along its batch axis, or the only one if it has none."""
    placed = array[0] if spec.batch_axis is None else np.moveaxis(array, 0, spec.batch_axis)
    return np.asarray(placed, spec.dtype, order="C")


def outputs(
    engine: Engine,
    manifest: Manifest,
    task: Task,
    split: Split,
    picks: Array | None = None,
    tick: Tick | None = None,
) -> Outputs:
    """What a model answers to the samples of a split: output name -> array, samples along the first axis."""
    order = np.arange(len(split)) if picks is None else np.asarray(picks)
    size = batch_size(manifest, EVALUATION_BATCH)
    parts: list[dict[str, Array]] = []
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        padded = padded_to_batch(chunk, manifest)
        stream = engine.session() if engine.stateful else engine
        answer = stream.run(feeds(task, split, manifest, padded))
        parts.append({s.name: _rows(answer[s.name], s, len(padded))[: len(chunk)] for s in engine.outputs})
        if tick:
            tick(min(start + size, len(order)), len(order))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _rows(array: Array, spec: TensorSpec, count: int) -> Array:
    """An output with its samples along the first axis; one without a batch axis belongs to a single sample."""
    if spec.batch_axis is not None:
        array = np.moveaxis(array, spec.batch_axis, 0)
    elif array.ndim == 0 or len(array) != count:
        array = array[None]
    if len(array) != count:
        raise TaskError(
            f"output {spec.name!r} answers {count} samples with shape {list(array.shape)}: "
            "set its batch_axis in the manifest, and that of the inputs"
        )
    return array


def padded_to_batch(picks: Array, manifest: Manifest) -> Array:
    """Picks repeated to fill the batch of a model that fixes it; as they are for any other model."""
    return np.resize(picks, batch_size(manifest, 1)) if _fixed(manifest) else picks


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


def sample_feeds(
    manifest: Manifest, batch: int, task: Task | None = None, split: SplitName = "validation"
) -> list[Tensors]:
    """Up to eight feeds to time with: real samples of the task, or seeded random numbers where there is no task."""
    size = batch_size(manifest, batch)
    if task is not None:
        data = task.split(split)
        rows = np.resize(np.arange(len(data)), 8 * size).reshape(8, size)
        return [feeds(task, data, manifest, row) for row in rows]
    generator = np.random.default_rng(0)
    return [
        {spec.name: random_array(spec.sized(size), spec.dtype, generator) for spec in manifest.data_inputs}
    ]


def random_array(shape: tuple[int, ...], dtype: str, generator: np.random.Generator) -> Array:
    """Numbers to time with where no data is at hand: standard normal, or whole numbers 0 and 1."""
    kind = np.dtype(dtype).kind
    values = generator.standard_normal(shape) if kind == "f" else generator.integers(0, 2, shape)
    return np.asarray(values).astype(dtype)


class Timed(Section, frozen=True, kw_only=True):
    """One entrant of a race: seconds of every timed call and the median of each round; ``made`` counts all calls."""

    calls: list[float]
    rounds: list[float]
    made: int


def race(
    entrants: Sequence[tuple[Engine, Sequence[Tensors]]], rule: Rule, tick: Tick | None = None
) -> list[Timed]:
    """Time several engines interleaved, round by round, in an order shuffled anew for each (seeded).

    In each round an entrant makes one untimed call (it warms the caches its rivals emptied) and then a block of
    timed ones; one that takes longer than 20 ms makes a single timed call. Garbage collection is off meanwhile.

    Raises:
        EngineError: an engine failed.
    """
    blocks = [_warm(engine, samples, rule) for engine, samples in entrants]
    calls: list[list[float]] = [[] for _ in entrants]
    rounds: list[list[float]] = [[] for _ in entrants]
    made = [max(2, rule.warmup) + 1 for _ in entrants]
    order = np.random.default_rng(0)
    start = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in itertools.count(1):
            for entrant in order.permutation(len(entrants)).tolist():
                count = blocks[entrant]
                engine, samples = entrants[entrant]
                times = _block(engine, samples, count, number, primed=count > 1)
                calls[entrant] += times
                rounds[entrant].append(float(np.median(times)))
                made[entrant] += count + (count > 1)
            spent = time.perf_counter() - start
            if tick:
                tick(int(min(spent, rule.min_seconds) * 100), int(rule.min_seconds * 100))
            enough = spent >= rule.min_seconds and min(map(len, calls)) >= rule.min_count and number >= 10
            if enough or (spent >= rule.max_seconds and number >= LEAST_ROUNDS):
                break
    finally:
        if collecting:
            gc.enable()
    return [Timed(calls=c, rounds=r, made=m) for c, r, m in zip(calls, rounds, made, strict=True)]


def _warm(engine: Engine, samples: Sequence[Tensors], rule: Rule) -> int:
    """Warm up; how many calls make a block of some two milliseconds."""
    typical = float(np.median(_block(engine, samples, max(2, rule.warmup), 0)))
    return int(np.clip(0.002 / max(typical, 1e-7), 1 if typical > SLOW_SECONDS else 3, 100))


def _block(
    engine: Engine, samples: Sequence[Tensors], count: int, offset: int, primed: bool = True
) -> list[float]:
    run, clock, n = engine.run, time.perf_counter, len(samples)
    if primed:
        run(samples[offset % n])
    times = []
    for i in range(count):
        sample = samples[(offset + i) % n]
        begin = clock()
        run(sample)
        times.append(clock() - begin)
    return times


def metered(
    engine: Engine,
    samples: Sequence[Tensors],
    batch: int,
    rule: Rule,
    meter: Rapl | None,
    tick: Tick | None = None,
) -> tuple[Timed, float | None]:
    """Time one engine; also the energy of one sample in millijoules, warm-up calls included.

    None without a meter, or with one that stood still.
    """
    before = meter.read() if meter else []
    timed = race([(engine, samples)], rule, tick)[0]
    spent = meter.spent(before, meter.read()) if meter else 0.0
    return timed, spent / (timed.made * batch) if spent else None


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
        size = batch_size(model.manifest, 1 if scenario == "single_stream" else batch)
        meter = find_meter()
        timed, energy = metered(opened, sample_feeds(model.manifest, size, task), size, rule, meter, tick)
        measured = summarise(model, opened, options, scenario, size, timed)
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
        options=options,
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


def peak_memory(model: Model, engine: str, options: EngineOptions) -> tuple[float, float]:
    """Peak resident memory of a fresh process that loads a model and runs it, batch 1.

    Returns:
        (peak, peak less the bare process with numpy and Farthing loaded), MB of 10^6 bytes.

    Raises:
        MeasurementError: the child process failed; the message ends with what it said.
    """
    order = json.dumps([str(model.path), engine, plain(options)])
    # The working directory may be a stranger's: no module comes from it.
    path = [place for place in sys.path if place not in {"", "."}]
    program = f"import sys; sys.path[:] = {path!r}; import farthing.bench as b; b.child()"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, order],
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"the process that measures memory took over {CHILD_SECONDS} s") from error
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2] or "it was killed; is there too little memory?"
        raise MeasurementError(f"the process that measures memory ended with {done.returncode}: {said}")
    peak, bare = json.loads(done.stdout.rpartition("\n")[2])
    return peak, peak - bare


def _high_water_mb() -> float:
    """Peak resident memory of this process: VmHWM, because ru_maxrss survives exec and would count the parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise MeasurementError("the kernel does not say VmHWM in /proc/self/status")


def child() -> None:
    """What the child process of `peak_memory` does: run a model, write [peak, bare] to its standard output."""
    path, engine, settings = json.loads(sys.argv[1])
    bare = _high_water_mb()
    model = Model.open(path)
    options = convert(settings, EngineOptions, "options")
    with open_engine(model, engine, options) as opened:
        sample = sample_feeds(model.manifest, 1)[0]
        for _ in range(3):
            opened.run(sample)
    sys.stdout.write("\n" + json.dumps([_high_water_mb(), bare]))
