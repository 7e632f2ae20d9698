"""A model in two parts as a pipeline, beside the whole model: requests a second, and processor time for one."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from farthing.device.serving.parts.processes import Processes, open_processes
from farthing.device.serving.parts.shard import open_sharded
from farthing.device.serving.parts.thread import OwnThread
from farthing.device.serving.service import Answer, Direct, Request, Service
from farthing.engines.base import Engine, Tensors, open_engine
from farthing.forge.cut import Cut, cut
from farthing.measure import ratio_of_medians
from farthing.model import Model
from farthing.options import EngineOptions
from harness.table import Bar, Row

PARTS = 2
OUTSTANDING = 8
ONE = EngineOptions(threads=1)


class Copies(Direct):
    """The whole model in as many threads as there are parts: what the same cores give without any cut."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._threads = ThreadPoolExecutor(PARTS)

    def submit(self, request: Request) -> Future[Answer]:
        computed = super().submit
        return self._threads.submit(lambda: computed(request).result())

    def close(self, grace: float = 0.0) -> None:
        self._threads.shutdown()
        super().close(grace)


class Pace(NamedTuple):
    """Answers a second, and milliseconds of processor time for one, in all processes that take part."""

    rate: float
    cpu: float


def pace(service: Service, feeds: Tensors, seconds: float) -> Pace:
    """With `OUTSTANDING` requests under way all the time."""
    room, failures = threading.Semaphore(OUTSTANDING), 0

    def done(future: Future[Answer]) -> None:
        nonlocal failures
        failures += future.exception() is not None
        room.release()

    for _ in range(OUTSTANDING):
        service.submit(Request(feeds)).result()
    began, spent, count = time.perf_counter(), processor_seconds(service), 0
    while time.perf_counter() - began < seconds:
        room.acquire()
        service.submit(Request(feeds)).add_done_callback(done)
        count += 1
    for _ in range(OUTSTANDING):
        room.acquire()
    if failures:
        raise RuntimeError(f"{failures} of {count} requests failed")
    took, spent = time.perf_counter() - began, processor_seconds(service) - spent
    return Pace(count / took, 1000 * spent / count)


def processor_seconds(service: Service) -> float:
    """Processor time of this process and of those of a service, so far."""
    ticks = 0
    for pid in service.processes if isinstance(service, Processes) else ():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def taken_in_turns(
    entrants: dict[str, Callable[[], Service]], feeds: Tensors, rounds: int, seconds: float
) -> dict[str, list[Pace]]:
    """Paces of each entrant, round by round."""
    with ExitStack() as stack:
        services = {name: stack.enter_context(make()) for name, make in entrants.items()}
        found: dict[str, list[Pace]] = {name: [] for name in entrants}
        for _ in range(rounds):
            for name, service in services.items():
                found[name].append(pace(service, feeds, seconds))
        return found


def sharding_rows(model: Model, feeds: Tensors, rounds: int = 7, seconds: float = 1.0) -> list[Row]:
    """Pipelines over threads and over processes, each beside the whole model at one thread.

    Args:
        model: in ONNX.
        feeds: one request.
        rounds: in which all of them take their turns.
        seconds: of one turn.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = cut(model, Path(folder) / "parts", parts=PARTS, feeds=feeds)
        bundle = made.bundle.path
        found = taken_in_turns(
            {
                "whole": lambda: OwnThread(open_engine(model, "onnxruntime", ONE)),
                "copies": lambda: Copies(open_engine(model, "onnxruntime", ONE)),
                "in order": lambda: open_sharded(bundle, "in order", engine="onnxruntime", options=ONE),
                "threads": lambda: open_sharded(bundle, "threads", engine="onnxruntime", options=ONE),
                "processes": lambda: open_processes(bundle, engine="onnxruntime", options=ONE),
            },
            feeds,
            rounds,
            seconds,
        )
    return [_row(how, found, made) for how in ("threads", "processes")]


def _row(how: str, found: dict[str, list[Pace]], made: Cut) -> Row:
    rates = {name: [one.rate for one in paces] for name, paces in found.items()}
    cpu = {name: float(np.median([one.cpu for one in paces])) for name, paces in found.items()}
    over = ratio_of_medians(np.column_stack([rates[how], rates["whole"]]))
    slowest = max(part.seconds for part in made.parts)
    whole, order, copies = (float(np.median(rates[name])) for name in ("whole", "in order", "copies"))
    parts = ", ".join(f"{part.seconds * 1e3:.2f} ms, {part.crossing_bytes} bytes on" for part in made.parts)
    return Row(
        case=f"pipeline of {PARTS} parts over {how}",
        ours=float(np.median(rates[how])),
        unit="/s",
        peers={"whole, one thread": whole, "parts in order": order, f"whole, {PARTS} threads": copies},
        limit=1 / slowest,
        ratio=over.value,
        low=over.low,
        high=over.high,
        bar=Bar(figure="ratio", sign=">=", value=1.0),
        note=f"over the whole model, {OUTSTANDING} requests; parts: {parts}; whole {made.seconds * 1e3:.2f} ms"
        f"; CPU {cpu[how]:.2f} ms a request, in order {cpu['in order']:.2f} ms, whole {cpu['whole']:.2f} ms",
    )
