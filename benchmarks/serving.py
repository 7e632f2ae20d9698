"""The figures of the device runtime: the server beside the bare engine and other servers, the batcher, a hot swap.

    python benchmarks/serving.py [--only CASE] [--json FILE] [--rivals DIR] [--install] [--rounds N] [--seconds S]

Servers run in processes of their own and are loaded by wrk in turns, round by round: what is compared are medians over
rounds, and processor time for one request, which a busy machine disturbs least. The bare engine is the best of several
loops that do nothing but compute. Rivals are installed into environments below DIR on ``--install`` (Triton needs an
interpreter with a shared library: ``--triton-python``); a rival that is not there falls short.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # both before what they speak to is imported
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np

from farthing.device.serving.batch import Batched, BatchRule
from farthing.device.serving.service import Request
from farthing.engines.base import open_engine
from farthing.measure import ratio_of_medians
from harness import overhead, rivals, table
from harness.duel import CALLERS, TINY, Duel, Nets, Setting, ours, sample
from harness.overload import cache_rows, queue_rows
from harness.rivals import RIVALS
from harness.sharding import sharding_rows
from harness.table import Bar, Row
from harness.traffic import Load, Server

CNN_BARS = {"litserve": 1.3, "pytriton": 1.8, "mlserver": 2.5, "bentoml": 3.0, "fastapi": 1.3}
TINY_BARS = {"fastapi": 2.5, "pytriton": 10.0, "mlserver": 10.0, "litserve": 20.0, "bentoml": 20.0}


def _median(loads: Sequence[Load], figure: str) -> float:
    return float(np.median([getattr(one, figure) for one in loads]))


def _against(case: str, fought: dict[str, list[Load]], name: str, bar: Bar, note: str = "") -> Row:
    """Our requests a second over another's."""
    pairs = np.array([[a.rate, b.rate] for a, b in zip(fought["farthing"], fought[name], strict=True)])
    over = ratio_of_medians(pairs)
    mine, theirs = _median(fought["farthing"], "rate"), _median(fought[name], "rate")
    failed = sum(one.failed for one in fought["farthing"])
    cpu = f"CPU {_median(fought['farthing'], 'cpu'):.0f} us a request, {name} {_median(fought[name], 'cpu'):.0f}"
    is_limit = name == "raw"
    return Row(
        case=case,
        ours=mine,
        unit="/s",
        peers={} if is_limit else {name: theirs},
        limit=theirs if is_limit else None,
        ratio=over.value,
        low=over.low,
        high=over.high,
        bar=bar,
        note="; ".join(part for part in (note, cpu, f"{failed} FAILED" if failed else "") if part),
    )


def _absent(case: str, bar: Bar, why: str) -> Row:
    return Row(case=case, ours=None, unit="/s", bar=bar, note=why)


def whole_server(setting: Setting, made: Nets) -> list[Row]:
    """The whole server, protocol, routing and metrics on, beside the bare engine and other servers."""
    with contextlib.ExitStack() as stack:
        duel = Duel(setting, made.models["cnn"], [*CNN_BARS], stack)
        loop = duel.best_loop()
        bare = "bare engine: {} callers, {} threads in the engine, batches of {}".format(*loop)
        many = duel.fight(CALLERS, loop)
        rows = [_against("cnn, 32 callers", many, "raw", Bar(figure="ratio", sign=">=", value=0.87), bare)]
        few = duel.fight(8, loop)
        rows.append(_against("cnn, 8 callers", few, "raw", Bar(figure="ratio", sign=">=", value=0.85), bare))
        rows.append(_alone(duel.fight(1, (1, 1, 1))))
        for name, least in CNN_BARS.items():
            bar = Bar(figure="ratio", sign=">=", value=least)
            case = f"cnn, 32 callers, over {name}"
            missing = duel.missing.get(name)
            rows.append(_absent(case, bar, missing) if missing else _against(case, many, name, bar))
        return [*rows, _lighter("cnn", duel)]


def _alone(fought: dict[str, list[Load]]) -> Row:
    pairs = np.array([[a.p50, b.p50] for a, b in zip(fought["farthing"], fought["raw"], strict=True)])
    over = ratio_of_medians(pairs)
    return Row(
        case="cnn, 1 caller, p50",
        ours=_median(fought["farthing"], "p50"),
        unit="ms",
        peers={
            name: _median(loads, "p50") for name, loads in fought.items() if name not in {"farthing", "raw"}
        },
        limit=_median(fought["raw"], "p50"),
        ratio=over.value,
        low=over.low,
        high=over.high,
        bar=Bar(figure="ratio", sign="<=", value=1.3),
        note="our time over one call of the bare engine",
    )


def _lighter(case: str, duel: Duel) -> Row:
    held = duel.memory()
    mine = held.pop("farthing")
    return Row(
        case=f"{case}, memory",
        ours=mine,
        unit="MB",
        peers=held,
        ratio=mine / min(held.values()) if held else None,
        bar=Bar(figure="ratio", sign="<=", value=1.0),
        note="proportional set size after the load; over the lightest of the others",
    )


def tiny_server(setting: Setting, made: Nets) -> list[Row]:
    """A model of 7 microseconds: what is left is the server."""
    with contextlib.ExitStack() as stack:
        duel = Duel(setting, made.models["tiny"], [*TINY_BARS], stack)
        fought = duel.fight(CALLERS, None)
        mine = fought["farthing"]
        spent = Row(
            case="tiny, 32 callers, CPU a request",
            ours=_median(mine, "cpu"),
            unit="us",
            peers={name: _median(loads, "cpu") for name, loads in fought.items() if name != "farthing"},
            bar=Bar(figure="ours", sign="<=", value=60),
            note=f"p50 {_median(mine, 'p50'):.2f} ms, p99 {_median(mine, 'p99'):.2f} ms",
        )
        rows = [spent]
        for name, least in TINY_BARS.items():
            bar = Bar(figure="ratio", sign=">=", value=least)
            case = f"tiny, 32 callers, over {name}"
            missing = duel.missing.get(name)
            rows.append(_absent(case, bar, missing) if missing else _against(case, fought, name, bar))
        held = duel.memory()
        light = Row(
            case="tiny, memory",
            ours=held.pop("farthing"),
            unit="MB",
            peers=held,
            bar=Bar(figure="ours", sign="<=", value=60),
            note="proportional set size after the load",
        )
        return [*rows, light]


def batcher(setting: Setting, made: Nets) -> list[Row]:
    """What a batch costs beside its computation: CPU of a request less that of its share of a bare run."""
    model = made.models["tiny"]
    rows = []
    for callers, bar in ((CALLERS, 5.0), (1, 10.0)):
        with open_engine(model, "onnxruntime") as engine:
            bare = {engine.inputs[0].name: np.repeat(sample(model), callers, 0)}
            with Batched(engine, BatchRule(max_size=CALLERS)) as service:
                entrants = [
                    functools.partial(_asked, service, callers),
                    functools.partial(_bare, engine.run, bare, callers),
                ]
                took = overhead.taking_turns(entrants, setting.seconds * 2)
        pair = overhead.Pair(*took)
        rows.append(
            Row(
                case=f"batcher, {callers} caller{'s' * (callers > 1)}",
                ours=pair.added.value * 1e6,
                low=pair.added.low * 1e6,
                high=pair.added.high * 1e6,
                unit="us",
                limit=pair.plain * 1e6,
                bar=Bar(figure="ours", sign="<=", value=bar),
                note="CPU of a request over its share of a bare batch; callers are tasks of an event loop",
            )
        )
    return rows


def _asked(service: Batched, callers: int, count: int = 2000) -> float:
    x = {service.inputs[0].name: np.zeros((1, TINY), np.float32)}

    async def caller() -> None:
        for _ in range(count // callers):
            await service.ask(Request(x))

    async def all_callers() -> float:
        began = time.process_time()
        await asyncio.gather(*[caller() for _ in range(callers)])
        return (time.process_time() - began) / (count // callers * callers)

    with contextlib.suppress(ImportError):
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(all_callers())
    return asyncio.run(all_callers())


def _bare(run: Callable[..., Any], feeds: dict[str, Any], callers: int, count: int = 2000) -> float:
    began = time.process_time()
    for _ in range(count // callers):
        run(feeds)
    return (time.process_time() - began) / (count // callers * callers)


def footprint(setting: Setting, made: Nets) -> list[Row]:
    """What a device must hold: packages on disk, memory of a server that waits, seconds until it serves."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(__file__).parent.parent
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", name]
        subprocess.run(
            [*command, "-c", "constraints.txt", ".[onnxruntime,serve]"],
            cwd=root,
            check=True,
            capture_output=True,
        )
        disk = _size(Path(name))
        largest = sorted(Path(name).iterdir(), key=_size, reverse=True)[:4]
        told = ", ".join(f"{place.name} {_size(place) / 1e6:.0f}" for place in largest)
        note = f"{told} MB; installed with --no-compile: bytecode of all modules is another 28 MB"
    starts = []
    for _ in range(setting.rounds):
        with ours(made.models["tiny"])[0] as server:
            starts.append(server.ready_seconds)
            time.sleep(0.5)
            idle = server.memory()
    imported = overhead.taking_turns([functools.partial(_interpreter, "import farthing"), _interpreter], 3.0)
    bare = overhead.Pair(*imported)
    return [
        _most(
            "install: base + onnxruntime + serve",
            disk / 1e6,
            "MB",
            150,
            note,
        ),
        _most("idle server with a small model", idle, "MB", 80, "proportional set size"),
        _most(
            "ready",
            float(np.median(starts)),
            "s",
            1.0,
            "from start of the process to 200 on /v2/health/ready",
        ),
        _most("import farthing", bare.added.value * 1000, "ms", 20, "over a bare interpreter"),
    ]


def _size(place: Path) -> int:
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_blocks * 512 for file in files if file.is_file())


def _interpreter(code: str = "pass") -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def _most(case: str, figure: float, unit: str, most: float, note: str) -> Row:
    return Row(case=case, ours=figure, unit=unit, bar=Bar(figure="ours", sign="<=", value=most), note=note)


def hot_swap(setting: Setting, made: Nets) -> list[Row]:
    """A new version of the model that is served, under load."""
    model = made.models["cnn"]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "net"
        shutil.copytree(model.path, place / "1")
        command = [sys.executable, "-m", "farthing", "serve", name, "--port", "{port}", "--manage"]
        body = rivals.binary("/v2/models/net/infer", sample(model), model.manifest.inputs[0].name)
        quiet, swapped, failed = [], [], 0
        with Server("farthing", command, "/v2/health/ready") as server, ThreadPoolExecutor(1) as aside:
            server.load(body, 8, 1.0)
            for version in range(2, 2 + setting.rounds):
                quiet.append(server.load(body, 8, setting.seconds).p99)
                swap = aside.submit(_swap, server.port, model.path, place, version, setting.seconds / 3)
                told = server.load(body, 8, setting.seconds)
                swap.result()
                failed += told.failed
                swapped.append(told.p99)
            served = _served(server.port)
    over = ratio_of_medians(np.column_stack([swapped, quiet]))
    return [
        Row(
            case="hot swap: p99",
            ours=float(np.median(swapped)),
            unit="ms",
            limit=float(np.median(quiet)),
            ratio=over.value,
            low=over.low,
            high=over.high,
            bar=Bar(figure="ratio", sign="<=", value=2.0),
            note=f"8 callers; {setting.seconds:g} s with a swap in it over as long without; version {served} serves",
        ),
        _most("hot swap: failed requests", failed, "", 0, f"in {setting.rounds} swaps"),
    ]


def _swap(port: int, model: Path, place: Path, version: int, wait: float) -> None:
    time.sleep(wait)
    shutil.copytree(model, place / f".{version}")
    (place / f".{version}").rename(place / str(version))
    url = f"http://127.0.0.1:{port}/v2/repository/models/net/load"
    asked = urllib.request.Request(
        url, data=b"{}", headers={"Content-Type": "application/json"}, method="POST"
    )
    urllib.request.urlopen(asked, timeout=60).read()


def _served(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/net") as answer:
        told = json.load(answer)
    return ", ".join(told.get("versions", []))


def overloaded(setting: Setting, made: Nets) -> list[Row]:
    """A queue that is asked for three times what its engine computes."""
    model = made.models["cnn"]
    return queue_rows(model, {model.manifest.inputs[0].name: sample(model)}, setting.seconds * 2)


def cached(setting: Setting, made: Nets) -> list[Row]:
    """An answer out of the cache."""
    model = made.models["cnn"]
    return cache_rows(model, {model.manifest.inputs[0].name: sample(model)}, setting.seconds)


def sharded(setting: Setting, nets: Nets) -> list[Row]:
    """Two parts of the CNN as a pipeline, over threads and over processes."""
    model = nets.models["cnn"]
    return sharding_rows(
        model, {model.manifest.inputs[0].name: sample(model)}, setting.rounds, setting.seconds / 3
    )


CASES: dict[str, Callable[[Setting, Nets], list[Row]]] = {
    "cnn": whole_server,
    "tiny": tiny_server,
    "batcher": batcher,
    "footprint": footprint,
    "swap": hot_swap,
    "overload": overloaded,
    "cache": cached,
    "sharding": sharded,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a bar is not reached."""
    parser = table.parser("Figures of the device runtime", [*CASES])
    parser.add_argument(
        "--rivals", type=Path, default=Path(".rivals"), metavar="DIR", help="environments of other servers"
    )
    parser.add_argument(
        "--install", action="store_true", help="install the rivals that are not there, from PyPI"
    )
    parser.add_argument(
        "--triton-python",
        default=sys.executable,
        metavar="PYTHON",
        help="interpreter for Triton's environment",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of load on each (default 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one (default 3)")
    parsed: argparse.Namespace = parser.parse_args(arguments)
    place = parsed.rivals.resolve()
    for name in RIVALS if parsed.install else ():
        if not (place / name).is_dir():
            print(f"# installing {name} ...", flush=True)
            rivals.install(name, place, parsed.triton_python if name == "pytriton" else sys.executable)
    setting = Setting(rivals=place, rounds=parsed.rounds, seconds=parsed.seconds)
    with tempfile.TemporaryDirectory() as scratch:
        made = Nets(Path(scratch))
        measures: dict[str, Callable[[], list[Row]]] = {
            name: functools.partial(case, setting, made) for name, case in CASES.items()
        }
        return table.run(measures, parsed.only, parsed.json)


if __name__ == "__main__":
    sys.exit(main())
