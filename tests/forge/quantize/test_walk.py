"""A graph run piece by piece computes what it computes whole, with the weights that are there at the time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.fuse import Fuse
from farthing.forge.quantize.walk import walk
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

Array = NDArray[Any]
VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))


@pytest.fixture(scope="module")
def proto(cnn: Model, digits_task: Task) -> onnx.ModelProto:
    fused = Fuse()(cnn, VNNI, digits_task)
    return graph.load(fused.file)


@pytest.fixture(scope="module")
def feeds(digits: tuple[Array, Array]) -> list[dict[str, Array]]:
    return [{"image": digits[0][start : start + 5]} for start in (0, 5, 10)]


def test_every_tensor_is_what_the_whole_graph_gives(
    proto: onnx.ModelProto, feeds: list[dict[str, Array]]
) -> None:
    names = [name for node in proto.graph.node for name in node.output]
    whole = [graph.run(proto, feed, names) for feed in feeds]
    for name, found in zip(names, walk(proto, feeds, names), strict=True):
        for one, other in zip(found, whole, strict=True):
            np.testing.assert_allclose(one, other[name], rtol=1e-4, atol=1e-5)


def test_tensors_may_be_asked_for_in_any_order_and_twice(
    proto: onnx.ModelProto, feeds: list[dict[str, Array]]
) -> None:
    names = [node.output[0] for node in proto.graph.node]
    order = [names[-1], "image", names[1], names[-1], names[0]]
    found = list(walk(proto, feeds, order))
    np.testing.assert_array_equal(found[0][2], found[3][2])
    np.testing.assert_array_equal(found[1][0], feeds[0]["image"])
    assert not any(np.array_equal(found[2][0], other) for other in (found[0][0], found[4][0]))


def test_weights_may_change_until_they_are_used(
    proto: onnx.ModelProto, feeds: list[dict[str, Array]]
) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    convolutions = [node for node in changed.graph.node if node.op_type == "Conv"]
    steps = walk(changed, feeds, [node.output[0] for node in convolutions])
    before = next(steps)
    weights = next(t for t in changed.graph.initializer if t.name == convolutions[1].input[1])
    doubled = numpy_helper.to_array(weights) * 2
    weights.CopyFrom(numpy_helper.from_array(doubled, weights.name))
    found = next(steps)
    expected = graph.run(changed, feeds[0], [convolutions[1].output[0]])[convolutions[1].output[0]]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(before[0], next(walk(proto, feeds, [convolutions[0].output[0]]))[0])


def test_what_a_graph_inside_takes_from_outside_is_passed_on() -> None:
    inner = [
        helper.make_graph(
            [helper.make_node(kind, ["a", "b"], [f"{kind} out"])],
            kind,
            [],
            [helper.make_tensor_value_info(f"{kind} out", onnx.TensorProto.FLOAT, ["n"])],
        )
        for kind in ("Add", "Sub")
    ]
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Exp", ["x"], ["b"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=inner[0], else_branch=inner[1]),
    ]
    value = helper.make_tensor_value_info
    whole = helper.make_graph(
        nodes,
        "if",
        [value("x", onnx.TensorProto.FLOAT, ["n"]), value("yes", onnx.TensorProto.BOOL, [])],
        [value("y", onnx.TensorProto.FLOAT, ["n"])],
    )
    proto = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.linspace(-1, 1, 4, dtype=np.float32)
    feeds = [{"x": x, "yes": np.array(True)}, {"x": x, "yes": np.array(False)}]
    (_, found) = walk(proto, feeds, ["b", "y"])
    np.testing.assert_allclose(found[0], np.exp(x) - x, rtol=1e-6)
    np.testing.assert_allclose(found[1], -x - np.exp(x), rtol=1e-6)


def test_a_tensor_that_is_not_there_is_named(proto: onnx.ModelProto, feeds: list[dict[str, Array]]) -> None:
    with pytest.raises(UnsupportedError, match="'nothing' cannot be computed"):
        next(walk(proto, feeds, ["nothing"]))
