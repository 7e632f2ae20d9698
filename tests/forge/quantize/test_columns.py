"""Layers as rows times columns: the products are what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from farthing.forge import graph
from farthing.forge.quantize.columns import layer_of

Array = NDArray[Any]


def made(node: onnx.NodeProto, weights: Array, rank: int) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    stored = numpy_helper.from_array(weights.astype(np.float32), "w")
    part = helper.make_graph(
        [node],
        "layer",
        [value("x", onnx.TensorProto.FLOAT, [None] * rank)],
        [value("y", onnx.TensorProto.FLOAT, [None] * rank)],
        [stored],
    )
    return helper.make_model(part, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def check(node: onnx.NodeProto, weights: Array, x: Array) -> None:
    """Every output is the product of a row and a column; where outputs lie is known from their order."""
    proto = made(node, weights, x.ndim)
    layer = layer_of(proto.graph.node[0], {tensor.name: tensor for tensor in proto.graph.initializer})
    assert layer is not None
    y = graph.run(proto, {"x": x})["y"]
    count = layer.count(x)
    columns = layer.inputs(x, np.arange(count))
    assert columns.shape == (layer.groups, count, layer.inputs_each)
    rows = layer.matrix(weights)
    np.testing.assert_array_equal(layer.stored(rows), weights)
    products = np.concatenate(list(columns @ rows.swapaxes(1, 2)), axis=1)
    found = np.moveaxis(y, 1, -1) if node.op_type == "Conv" else y
    np.testing.assert_allclose(products, found.reshape(count, -1), rtol=1e-4, atol=1e-4)
    some = np.arange(count)[:: max(1, count // 3)]
    np.testing.assert_array_equal(layer.inputs(x, some), columns[:, some])


@settings(max_examples=60)
@given(data=st.data())
def test_convolutions(data: st.DataObject) -> None:
    draw = data.draw
    rank, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3]))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    inner, outer = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    options: dict[str, Any] = {
        "strides": [draw(st.integers(1, 3)) for _ in range(rank)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(rank)],
        "group": groups,
    }
    auto = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto == "NOTSET":
        options["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    else:
        options["auto_pad"] = auto
    if auto.startswith("SAME"):
        options["dilations"] = [1] * rank  # ONNX Runtime takes no others there
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    x = generator.normal(size=(2, groups * inner, *[draw(st.integers(5, 7)) for _ in range(rank)]))
    weights = generator.normal(size=(groups * outer, inner, *kernel))
    node = helper.make_node("Conv", ["x", "w"], ["y"], **options)
    check(node, weights.astype(np.float32), x.astype(np.float32))


@pytest.mark.parametrize(
    ("node", "weights", "x"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (5, 3), (2, 4, 5)),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), (5, 3), (4, 5)),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), (3, 5), (4, 5)),
    ],
)
def test_products(node: onnx.NodeProto, weights: tuple[int, ...], x: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    check(node, *(generator.normal(size=shape).astype(np.float32) for shape in (weights, x)))


def test_whole_numbers_are_padded_with_what_stands_for_zero() -> None:
    weights = np.ones((1, 1, 3), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1])
    layer = layer_of(node, {"w": numpy_helper.from_array(weights, "w")})
    assert layer is not None
    found = layer.inputs(np.full((1, 1, 3), 9, np.uint8), np.arange(3), zero=7)
    assert found.tolist() == [[[7, 9, 9], [9, 9, 9], [9, 9, 7]]]


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("MatMul", ["x", "other"], ["y"]),
        helper.make_node("MatMul", ["w", "x"], ["y"]),
        helper.make_node("Gemm", ["x", "w"], ["y"], transA=1),
        helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5),
    ],
    ids=lambda node: node.op_type,
)
def test_what_is_no_such_layer(node: onnx.NodeProto) -> None:
    assert layer_of(node, {"w": numpy_helper.from_array(np.ones((2, 2), np.float32), "w")}) is None
