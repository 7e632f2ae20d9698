"""ONNX Runtime's models, written with onnx.helper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from farthing.model import Manifest, Model, TensorSpec
from rows import BIAS, DECAY, WEIGHTS, Array, Row, spec


def onnx_model(
    nodes: Sequence[tuple[Any, ...]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    weights: dict[str, Array] | None = None,
    opset: int = 17,
) -> Model:
    """An ONNX model of nodes (operator, inputs, outputs[, attributes]), written with onnx.helper."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper

    def value(one: TensorSpec) -> Any:
        kinds = {"bool": onnx.TensorProto.BOOL, "str": onnx.TensorProto.STRING}
        kind = kinds.get(one.dtype) or helper.np_dtype_to_tensor_dtype(np.dtype(one.dtype))
        return helper.make_tensor_value_info(one.name, kind, list(one.shape))

    graph = helper.make_graph(
        [
            helper.make_node(op, *names, **(more[0] if more else {}))
            for op, *names, more in map(_with_more, nodes)
        ],
        "g",
        [value(one) for one in inputs],
        [value(one) for one in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    manifest = Manifest(name="m", format="onnx", inputs=tuple(inputs), outputs=tuple(outputs))
    return Model.create(manifest, {"model.onnx": proto.SerializeToString()})


def _with_more(node: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*node[:3], node[3:])


GEMM = ("Gemm", ["x", "w", "b"], ["y"])
AFFINE = {"w": WEIGHTS, "b": BIAS}


def onnx_affine(batch: int | str) -> Model:
    return onnx_model([GEMM], [spec("x", batch, 4)], [spec("y", batch, 3)], AFFINE)


def onnx_large() -> Model:
    weights = {"w": np.eye(512, dtype=np.float32), "b": np.zeros(512, np.float32)}
    return onnx_model([GEMM], [spec("x", "batch", 512)], [spec("y", "batch", 512)], weights)


def onnx_stateful(batch: int | str = "batch") -> Model:
    nodes = [
        ("Gemm", ["x", "w", "b"], ["z"]),
        ("Mul", ["h", "d"], ["faded"]),
        ("Add", ["faded", "z"], ["y"]),
        ("Identity", ["y"], ["h_next"]),
    ]
    inputs = [spec("x", batch, 4), spec("h", batch, 3, role="state")]
    outputs = [spec("y", batch, 3), spec("h_next", batch, 3, role="state")]
    return onnx_model(nodes, inputs, outputs, {**AFFINE, "d": np.float32(DECAY).reshape(1)})


def onnx_suppress() -> Model:
    nodes = [
        ("Unsqueeze", ["boxes", "axis0"], ["b"]),
        ("Unsqueeze", ["scores", "axes01"], ["s"]),
        ("NonMaxSuppression", ["b", "s", "most", "overlap", "least"], ["found"]),
        ("Gather", ["found", "two"], ["kept"], {"axis": 1}),
    ]
    inputs = [spec("boxes", "n", 4, batch_axis=None), spec("scores", "n", batch_axis=None)]
    outputs = [spec("kept", "k", dtype="int64", batch_axis=None)]
    constants = {
        "axis0": np.array([0]),
        "axes01": np.array([0, 1]),
        "most": np.array([100]),
        "overlap": np.array([0.5], np.float32),
        "least": np.array([0.1], np.float32),
        "two": np.array(2),
    }
    return onnx_model(nodes, inputs, outputs, constants)


def onnx_unknown_operator() -> Model:
    return onnx_model([("Telepathy", ["x"], ["y"])], [spec("x", 1, 4)], [spec("y", 1, 4)])


def onnx_future_opset() -> Model:
    return onnx_model([("Identity", ["x"], ["y"])], [spec("x", 1, 4)], [spec("y", 1, 4)], opset=9999)


ROW = Row(
    engine="onnxruntime",
    package="onnxruntime",
    environment={"ORT_DISABLE_TELEMETRY": "1"},
    threads=(1, 2, 4),
    affine=onnx_affine,
    large=onnx_large,
    stateful=onnx_stateful,
    fixed_state=lambda: onnx_stateful(2),
    identity=lambda dtype: onnx_model(
        [("Identity", ["x"], ["y"])], [spec("x", "n", 2, dtype=dtype)], [spec("y", "n", 2, dtype=dtype)]
    ),
    dtypes=tuple(
        "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 str".split()
    ),
    free=lambda: onnx_model(
        [("MatMul", ["x", "w"], ["z"]), ("Add", ["z", "b"], ["y"])],
        [spec("x", "batch", "time", 4)],
        [spec("y", "batch", "time", 3)],
        AFFINE,
    ),
    two=lambda: onnx_model(
        [("Sub", ["a", "b"], ["y"])],
        [spec("a", "batch", 4), spec("b", "batch", 4)],
        [spec("y", "batch", 4)],
    ),
    parameter=lambda: onnx_model(
        [("Mul", ["x", "gain"], ["y"])],
        [spec("x", "batch", 4), spec("gain", batch_axis=None, role="parameter")],
        [spec("y", "batch", 4)],
    ),
    suppress=onnx_suppress,
    unsupported=(onnx_unknown_operator, onnx_future_opset),
)
