"""OpenVINO's models: IR of two files, written with OpenVINO's own operators."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from farthing.engines.openvino import runtime
from farthing.model import Manifest, Model, TensorSpec
from rows import BIAS, DECAY, WEIGHTS, Array, Row, spec

Build = Callable[..., Any]
"""OpenVINO's operators and one node per input -> one node per output."""


def ir_model(
    build: Build, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], **edits: bytes
) -> Model:
    """An IR model; ``edits`` replace text in the XML: ``MatMul=b"Telepathy"``."""
    ov = runtime()
    import openvino.opset13 as ops

    parameters = []
    for one in inputs:
        shape = [size if isinstance(size, int) else -1 for size in one.shape]
        parameters.append(ops.parameter(shape, np.dtype(one.dtype), name=one.name))
        parameters[-1].output(0).set_names({one.name})
    built = build(ops, *parameters)
    nodes, sinks = built if isinstance(built[0], list) else (built, [])
    results = [ops.result(node) for node in nodes]
    for result, one in zip(results, outputs, strict=True):
        result.output(0).set_names({one.name})
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "m.xml"
        ov.save_model(ov.Model(results, sinks, parameters, "m"), path, compress_to_fp16=False)
        text = path.read_bytes().rstrip()
        for old, new in edits.items():
            text = text.replace(b'type="%s"' % old.encode(), b'type="%s"' % new)
        manifest = Manifest(name="m", format="openvino", inputs=tuple(inputs), outputs=tuple(outputs))
        return Model.create(manifest, {"m.xml": text, "m.bin": path.with_suffix(".bin").read_bytes()})


def linear(ops: Any, x: Any, weights: Array = WEIGHTS, bias: Array = BIAS) -> Any:
    return ops.add(ops.matmul(x, ops.constant(weights), False, False), ops.constant(bias))


def affine(batch: int | str, **edits: bytes) -> Model:
    inputs, outputs = [spec("x", batch, 4)], [spec("y", batch, 3)]
    return ir_model(lambda ops, x: [linear(ops, x)], inputs, outputs, **edits)


def large() -> Model:
    def build(ops: Any, x: Any) -> Any:
        return [linear(ops, x, np.eye(512, dtype=np.float32), np.zeros(512, np.float32))]

    return ir_model(build, [spec("x", "batch", 512)], [spec("y", "batch", 512)])


def stateful(batch: int | str = "batch") -> Model:
    def build(ops: Any, x: Any, h: Any) -> Any:
        y = ops.add(ops.multiply(h, ops.constant(np.float32(DECAY))), linear(ops, x))
        return [y, y]

    inputs = [spec("x", batch, 4), spec("h", batch, 3, role="state")]
    outputs = [spec("y", batch, 3), spec("h_next", batch, 3, role="state")]

    def apart(ops: Any, x: Any, h: Any) -> Any:
        y, _ = build(ops, x, h)
        return [y, ops.add(y, ops.constant(np.float32(0)))]  # two names for two tensors

    return ir_model(apart, inputs, outputs)


def inner_state() -> Model:
    def build(ops: Any, x: Any) -> Any:
        last = ops.read_value(ops.constant(np.zeros((1, 3), np.float32)), "h", np.float32, [1, 3])
        y = ops.add(ops.multiply(last, ops.constant(np.float32(DECAY))), linear(ops, x))
        return [y], [ops.assign(y, "h")]

    return ir_model(build, [spec("x", 1, 4)], [spec("y", 1, 3)])


def identity(dtype: str) -> Model:
    def build(ops: Any, x: Any) -> Any:
        return [ops.reshape(x, ops.constant(np.array([-1, 2])), False)]

    return ir_model(build, [spec("x", "n", 2, dtype=dtype)], [spec("y", "n", 2, dtype=dtype)])


def suppress(ops: Any, boxes: Any, scores: Any) -> Any:
    found = ops.non_max_suppression(
        ops.unsqueeze(boxes, ops.constant(np.array([0]))),
        ops.unsqueeze(scores, ops.constant(np.array([0, 1]))),
        ops.constant(np.array(100)),
        ops.constant(np.float32(0.5)),
        ops.constant(np.float32(0.1)),
        box_encoding="corner",
        sort_result_descending=True,
        output_type="i64",
    )
    count = ops.reshape(found.output(2), ops.constant(np.array([1])), False)
    rows = ops.slice(found.output(0), np.array([0]), count, np.array([1]), np.array([0]))
    return [ops.gather(rows, ops.constant(np.array(2)), ops.constant(np.array(1)))]


ROW = Row(
    engine="openvino",
    package="openvino",
    pool=True,
    threads=tuple(count for count in (1, 2, 4) if count <= len(os.sched_getaffinity(0))),
    affine=affine,
    large=large,
    stateful=stateful,
    fixed_state=lambda: stateful(2),
    inner_state=inner_state,
    identity=identity,
    dtypes=tuple("bool int8 int16 int32 uint8 uint16 uint32 uint64 float16 float32 float64".split()),
    free=lambda: ir_model(
        lambda ops, x: [linear(ops, x)], [spec("x", "batch", "time", 4)], [spec("y", "batch", "time", 3)]
    ),
    two=lambda: ir_model(
        lambda ops, a, b: [ops.subtract(a, b)],
        [spec("a", "batch", 4), spec("b", "batch", 4)],
        [spec("y", "batch", 4)],
    ),
    parameter=lambda: ir_model(
        lambda ops, x, gain: [ops.multiply(x, gain)],
        [spec("x", "batch", 4), spec("gain", batch_axis=None, role="parameter")],
        [spec("y", "batch", 4)],
    ),
    suppress=lambda: ir_model(
        suppress,
        [spec("boxes", "n", 4, batch_axis=None), spec("scores", "n", batch_axis=None)],
        [spec("kept", "k", dtype="int64", batch_axis=None)],
    ),
    unsupported=(lambda: affine(1, MatMul=b"Telepathy"),),
)
