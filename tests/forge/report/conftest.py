"""Summaries as a search might give them, from made-up figures: no machine called "test machine" was ever timed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from farthing.anatomy import Anatomy, Cell, Layer, Matrix, Placed
from farthing.measure import Figures, Interval, Measurement
from farthing.options import EngineOptions
from farthing.recipe import Candidate, Recipe, Step, Summary, TestScores
from farthing.target import Budget, Target

FUSE, COMPACT = Step(use="graph.fuse.v1"), Step(use="graph.compact.v1")
Build = Callable[..., Summary]


def interval(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def measurement(scenario: Any, p50: float, batch: int, size: float, threads: int) -> Measurement:
    return Measurement(
        model="sha256:test",
        engine="onnxruntime",
        engine_version="0.0-test",
        options=EngineOptions(threads=threads),
        machine="test machine",
        scenario=scenario,
        batch=batch,
        runs=4000 // batch,
        seconds=4.0,
        p50_ms=p50,
        p90_ms=p50 * 1.12,
        p99_ms=p50 * 1.6,
        p90_bound_ms=p50 * 1.13,
        throughput=1000 * batch / p50,
        size_mb=size,
        when="2020-01-01T00:00:00+00:00",
    )


def timed(
    number: int,
    name: str,
    threads: int,
    speed: float,
    size: float,
    drop: float,
    verdict: str,
    status: Any,
    offline: float | None = None,
    steps: tuple[Step, ...] = (),
) -> Candidate:
    p50 = 0.0412 / speed
    single = measurement("single_stream", p50, 1, size, threads)
    batched = measurement("offline", 32 * 0.0262 / offline, 32, size, threads) if offline else None
    return Candidate(
        name=name,
        number=number,
        steps=steps,
        engine="onnxruntime",
        options=EngineOptions(threads=threads),
        model="sha256:test",
        nodes=9 + number % 5,
        figures=Figures(
            accuracy=0.9728 - drop,
            accuracy_drop=drop,
            latency_ms=single.p90_ms,
            size_mb=size,
            throughput=batched.throughput if batched else None,
            peak_memory_mb=58.2 - 4 * speed if batched else None,
        ),
        accuracy=interval(0.9728 - drop, 0.0072),
        drop=interval(drop, 0.0021 if drop else 0.0),
        speedup=interval(speed, 0.03 * speed),
        offline_speedup=interval(offline, 0.02 * offline) if offline else None,
        measurements={"single_stream": single, **({"offline": batched} if batched else {})},
        status=status,
        verdict=verdict,
    )


def untimed(
    number: int, name: str, verdict: str, status: Any, drop: float | None, steps: tuple[Step, ...] = ()
) -> Candidate:
    figures = (
        Figures(size_mb=0.107)
        if drop is None
        else Figures(accuracy=0.9728 - drop, accuracy_drop=drop, size_mb=0.107)
    )
    known = {} if drop is None else {"accuracy": interval(0.9728 - drop, 0.02), "drop": interval(drop, 0.012)}
    return Candidate(
        name=name,
        number=number,
        steps=steps,
        engine="onnxruntime",
        options=EngineOptions(),
        nodes=12,
        figures=figures,
        status=status,
        verdict=verdict,
        **known,
    )


def search() -> list[Candidate]:
    """A small search as it usually goes."""
    int8 = [
        (
            FUSE,
            Step(use="quantize.static.v1", options={"calibrator": name, "samples": 256, "exclude": []}),
            COMPACT,
        )
        for name in ("minmax", "percentile", "entropy")
    ]
    return [
        timed(0, "baseline", 1, 1.0, 0.413, 0.0, "the model as given", "baseline", 1.0),
        timed(1, "baseline", 2, 0.82, 0.413, 0.0, "the model as given", "baseline", 1.31),
        timed(2, "fused", 1, 1.17, 0.409, 0.0, "accepted: 1.17x", "accepted", 1.06, (FUSE, COMPACT)),
        timed(
            3,
            "fused",
            2,
            0.88,
            0.409,
            0.0,
            "rejected: 0.88x on this machine",
            "rejected",
            1.2,
            (FUSE, COMPACT),
        ),
        timed(4, "int8 minmax", 1, 1.49, 0.106, 0.0048, "accepted: 1.49x", "accepted", 1.66, int8[0]),
        timed(
            5,
            "int8 minmax",
            2,
            1.02,
            0.106,
            0.0048,
            "rejected: 1.02x, others are faster",
            "rejected",
            None,
            int8[0],
        ),
        timed(6, "int8 percentile", 1, 1.53, 0.106, 0.0016, "winner: 1.53x", "winner", 1.71, int8[1]),
        timed(
            7,
            "int8 percentile",
            2,
            1.05,
            0.106,
            0.0016,
            "rejected: 1.05x, others are faster",
            "rejected",
            None,
            int8[1],
        ),
        untimed(
            8,
            "int8 entropy",
            "rejected: -1.41 points (limit -1.00 points), on 256 samples",
            "rejected",
            0.0141,
            int8[2],
        ),
        untimed(
            9, "int8 dynamic", "rejected: the same file as int8 minmax", "rejected", 0.0048, (FUSE, COMPACT)
        ),
        timed(
            10,
            "float16",
            1,
            0.78,
            0.209,
            0.0,
            "rejected: 0.78x on this machine",
            "rejected",
            None,
            (FUSE, COMPACT),
        ),
        timed(
            11,
            "float16",
            2,
            0.69,
            0.209,
            0.0,
            "rejected: 0.69x on this machine",
            "rejected",
            None,
            (FUSE, COMPACT),
        ),
        untimed(
            12,
            "prune.mine.v1",
            "failed: node Conv_3 has no weights to prune; give the pass a layer",
            "failed",
            None,
        ),
    ]


@pytest.fixture
def build() -> Build:
    """A function that makes a Summary; keyword arguments replace its fields, ``extra`` adds so many candidates."""

    def made(extra: int = 0, **fields: Any) -> Summary:
        generator = random.Random(0)
        candidates = search()
        for number in range(len(candidates), len(candidates) + extra):
            candidates.append(
                timed(
                    number,
                    f"int8 percentile, {number} operators float",
                    1 + number % 2,
                    generator.uniform(0.6, 1.5),
                    generator.uniform(0.11, 0.4),
                    generator.uniform(-0.001, 0.009),
                    "rejected: others are faster",
                    "rejected",
                    generator.uniform(0.8, 1.6),
                    candidates[6].steps,
                )
            )
        summary = Summary(
            model_name="example-cnn",
            task_name="example-digits",
            metric="top1",
            sentence="int8 percentile with 1 thread, 1.53x as fast, 3.90x smaller, top1 -0.20 points on test "
            "(-0.45 points to +0.05 points): the budget is met.",
            met=True,
            violations=(),
            budget="accuracy_drop<=0.01, latency_ms<=0.05, size_mb<=0.2, energy_mj<=1",
            winner=6,
            notes=("Made-up figures for tests: none of them was measured.",),
            candidates=tuple(candidates),
            test=TestScores(
                baseline=interval(0.971, 0.0073),
                winner=interval(0.969, 0.0076),
                drop=interval(0.002, 0.0025),
                samples=2000,
            ),
            samples={"train": 3000, "calibration": 256, "validation": 1000, "test": 2000},
            machine="test machine, 2 cores, Linux 0.0",
            versions={"farthing": "0.0", "onnxruntime": "0.0-test"},
            command='farthing optimize model --task digits.yaml --budget "accuracy_drop<=0.01"',
            when="2020-01-01T12:00:00+00:00",
            seconds=151.2,
        )
        return msgspec.structs.replace(summary, **fields)

    return made


@pytest.fixture
def recipe() -> Recipe:
    """The recipe of the winner."""
    return Recipe(
        model="sha256:" + "a" * 64,
        task="sha256:" + "b" * 64,
        target=Target(name="this", arch="x86_64", cores=2),
        steps=search()[6].steps,
        engine="onnxruntime",
        options=EngineOptions(),
        budget=Budget(accuracy_drop=0.01),
        versions={"farthing": "0.0"},
    )


def several_engines() -> dict[str, Any]:
    """What a search over three engines adds to a summary: candidates, the insides of two, and the matrix."""
    found = []
    for candidate in search():
        found.append(msgspec.structs.replace(candidate, exact=candidate.name in {"baseline", "fused"}))
    found[6] = msgspec.structs.replace(
        found[6], over_float=interval(1.31, 0.03), over_engine=interval(1.31, 0.03)
    )
    found[2] = msgspec.structs.replace(
        found[2], over_float=interval(1.0, 0.0), over_engine=interval(1.0, 0.0)
    )
    number = len(found)
    for engine, speed, over in (("openvino", 0.9, 0.77), ("litert", 1.3, 1.11)):
        exact = timed(
            number, f"exported to {engine}", 1, speed, 0.41, 0.0, f"rejected: {speed}x", "rejected", speed
        )
        int8 = timed(
            number + 1, f"int8 for {engine}", 1, 2 * speed, 0.11, 0.003, "accepted: 2x", "accepted", 2 * speed
        )
        found += [
            msgspec.structs.replace(exact, engine=engine, exact=True, over_float=interval(over, 0.02)),
            msgspec.structs.replace(
                int8, engine=engine, over_float=interval(2 * over, 0.05), over_engine=interval(1.98, 0.04),
                options=EngineOptions(precision="bfloat16" if engine == "openvino" else "float32"),
            ),
        ]  # fmt: skip
        number += 2
    broken = untimed(
        number, "int8 nncf", "failed: no conversion rule for operation NonMaxSuppression", "failed", None
    )
    found.append(msgspec.structs.replace(broken, engine="openvino"))
    return {"candidates": tuple(found), "anatomy": insides(), "matrix": portable()}


def insides() -> tuple[Anatomy, ...]:
    layers = [
        Layer(name=f"/conv{i}/Conv", operator="Conv", bytes=40_000 // (i + 1), dtype="float32")
        for i in range(14)
    ]
    small = [
        Layer(name=f"/conv{i}/Conv", operator="Conv", bytes=10_000 // (i + 1), dtype="int8, int32")
        for i in range(14)
    ]
    nodes = [
        Placed(
            node=f"/conv{i}/Conv_quant",
            operator="QLinearConv" if i else "QuantizeLinear",
            provider="CPUExecutionProvider",
            microseconds=30.0 / (i + 1),
            shape=(1, 16, 14, 14),
            precision="int8" if i else "uint8",
        )
        for i in range(15)
    ]
    return (
        Anatomy(candidate=0, format="onnx", bytes=413_000, layers=tuple(layers)),
        Anatomy(
            candidate=6,
            format="onnx",
            bytes=106_000,
            layers=tuple(small),
            engine="onnxruntime 0.0-test",
            placement=tuple(nodes),
        ),
    )


def portable() -> Matrix:
    row = {"model": "example-cnn", "precision": "float32"}
    return Matrix(
        models=("example-cnn",),
        engines=("onnxruntime", "openvino", "litert", "torchscript"),
        cells=(
            Cell(engine="onnxruntime", version="0.0-test", verdict="source", **row),
            Cell(engine="openvino", verdict="equal", absolute=2.2e-6, relative=3.1e-7, tolerance=1e-4, **row),
            Cell(
                engine="litert",
                verdict="refused",
                via="export.tflite.v1",
                operator="NonMaxSuppression",
                detail="operator NonMaxSuppression (node 'nms') cannot be written as TFLite",
                **row,
            ),
            Cell(engine="torchscript", verdict="not installed", detail="this needs torch", **row),
        ),
        inputs="8 validation samples of example-digits",
        machine="test machine",
    )


@pytest.fixture
def several(build: Build) -> Summary:
    """A summary of a search over three engines."""
    return build(**several_engines())
