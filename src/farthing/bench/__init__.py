"""Measure models: feed them, time them interleaved, score them, weigh them. The same code and file for all."""

from __future__ import annotations

from farthing.bench.feeding import (
    OFFLINE_BATCH,
    batch_size,
    feeds,
    outputs,
    padded_to_batch,
    random_array,
    sample_feeds,
)
from farthing.bench.measuring import bench, evaluate, prepare_ms, summarise
from farthing.bench.memory import peak_memory
from farthing.bench.racing import Rule, Tick, Timed, metered, race

__all__ = [
    "OFFLINE_BATCH",
    "Rule",
    "Tick",
    "Timed",
    "batch_size",
    "bench",
    "evaluate",
    "feeds",
    "metered",
    "outputs",
    "padded_to_batch",
    "peak_memory",
    "prepare_ms",
    "race",
    "random_array",
    "sample_feeds",
    "summarise",
]
