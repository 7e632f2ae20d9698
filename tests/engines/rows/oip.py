"""Models of the engine ``oip``: descriptions of a server that runs as long as the tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from farthing.model import Manifest, Model, TensorSpec
from rows import BIAS, WEIGHTS, Array, Row, spec
from rows.serving import Hosted, Server


@cache
def server() -> Server:
    return Server()


def hosted(
    name: str,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    compute: Callable[[Mapping[str, Array]], Array],
    at: Server | None = None,
    **settings: Any,
) -> Model:
    """A model that the server computes by ``compute``, which gives its only output."""
    there = at or server()
    there.models[name] = Hosted(inputs, outputs, lambda feeds: {outputs[0].name: compute(feeds)})
    content = json.dumps({"url": there.url, "model": name, **settings}).encode()
    manifest = Manifest(name="m", format="oip", inputs=tuple(inputs), outputs=tuple(outputs))
    return Model.create(manifest, {"remote.json": content})


def affine(batch: int | str, at: Server | None = None, **settings: Any) -> Model:
    return hosted(
        f"affine-{batch}",
        [spec("x", batch, 4)],
        [spec("y", batch, 3)],
        lambda feeds: feeds["x"] @ WEIGHTS + BIAS,
        at,
        **settings,
    )


def large() -> Model:
    weights = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    return hosted(
        "large",
        [spec("x", "batch", 512)],
        [spec("y", "batch", 512)],
        lambda feeds: feeds["x"] @ weights,
    )


def identity(dtype: str) -> Model:
    return hosted(
        f"identity-{dtype}",
        [spec("x", "batch", 2, dtype=dtype)],
        [spec("y", "batch", 2, dtype=dtype)],
        lambda feeds: feeds["x"],
    )


def suppress(feeds: Mapping[str, Array]) -> Array:
    """Greedy: the best box left is kept, and those that overlap it by more than half of the union go."""
    boxes, scores = feeds["boxes"], feeds["scores"]
    left, kept = [int(n) for n in np.argsort(-scores) if scores[n] > 0.1], []
    while left:
        best, *left = left
        kept.append(best)
        low, high = np.maximum(boxes[best, :2], boxes[left, :2]), np.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = np.clip(high - low, 0, None).prod(1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        left = [
            n for n, area in zip(left, shared, strict=True) if area <= (areas[best] + areas[n] - area) / 2
        ]
    return np.array(kept, np.int64)


ROW = Row(
    engine="oip",
    affine=affine,
    large=large,
    identity=identity,
    dtypes=tuple(
        "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 str".split()
    ),
    free=lambda: hosted(
        "free",
        [spec("x", "batch", "time", 4)],
        [spec("y", "batch", "time", 3)],
        lambda feeds: feeds["x"] @ WEIGHTS + BIAS,
    ),
    two=lambda: hosted(
        "two",
        [spec("a", "batch", 4), spec("b", "batch", 4)],
        [spec("y", "batch", 4)],
        lambda feeds: feeds["a"] - feeds["b"],
    ),
    parameter=lambda: hosted(
        "parameter",
        [spec("x", "batch", 4), spec("gain", batch_axis=None, role="parameter")],
        [spec("y", "batch", 4)],
        lambda feeds: feeds["x"] * feeds["gain"],
    ),
    suppress=lambda: hosted(
        "suppress",
        [spec("boxes", "n", 4, batch_axis=None), spec("scores", "n", batch_axis=None)],
        [spec("kept", "k", dtype="int64", batch_axis=None)],
        suppress,
    ),
    damaged=(
        b"{}",
        b'{"url": "http://127.0.0.1:1"}',
        b'{"url": "file:///etc/passwd", "model": "m"}',
        b'{"url": "http://name:secret@127.0.0.1:1", "model": "m"}',
        b'{"url": "http://127.0.0.1:99999", "model": "m"}',
        b'{"url": "http://127.0.0.1:1", "model": "m", "token": "secret"}',
        b'{"url": "http://127.0.0.1:1", "model": "m", "timeout_ms": 0}',
        b'{"url": "http://127.0.0.1:1", "model": "m", "retry": {"share": 2}}',
        b'{"url": "http://127.0.0.1:1", "model": "m", "breaker": {"open_ms": -1}}',
    ),
)
