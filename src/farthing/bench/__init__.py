"""Measure models: feed them, time them interleaved, score them, weigh them. The same code and file for all."""

from __future__ import annotations

from farthing.bench.feeding import (
    OFFLINE_BATCH,
    batch_size,
    feeds,
    first_feeds,
    fitting_batch,
    offline_batch,
    outputs,
    padded_to_batch,
    random_array,
    random_feeds,
    sample_feeds,
)
from farthing.bench.measuring import (
    Compared,
    bench,
    bench_server,
    compare_engines,
    evaluate,
    prepare_ms,
    query,
    race_models,
    summarise,
)
from farthing.bench.memory import peak_memory
from farthing.bench.racing import Rule, Tick, Timed, metered, race
from farthing.bench.server import Served, capacity, serve

__all__ = [
    "OFFLINE_BATCH",
    "Compared",
    "Rule",
    "Served",
    "Tick",
    "Timed",
    "batch_size",
    "bench",
    "bench_server",
    "capacity",
    "compare_engines",
    "evaluate",
    "feeds",
    "first_feeds",
    "fitting_batch",
    "metered",
    "offline_batch",
    "outputs",
    "padded_to_batch",
    "peak_memory",
    "prepare_ms",
    "query",
    "race",
    "race_models",
    "random_array",
    "random_feeds",
    "sample_feeds",
    "serve",
    "summarise",
]
