"""The same model twice: how often the interval of a speed ratio leaves out 1, though nothing differs (an A/A test)."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from farthing.bench import Rule, compare_engines
from farthing.measure import Interval
from farthing.model import Manifest, Model, TensorSpec
from farthing.options import EngineOptions

RACES = 24
SURELY_NOT_BY_CHANCE = 5  # 5 % of races may leave 1 out; of 24, five or more do so once in 160 times


def product(size: int) -> Model:
    """y = x @ weights in ONNX Runtime, some tens of microseconds."""
    weights = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, size])],
        [numpy_helper.from_array(weights, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    spec = {"dtype": "float32", "shape": (1, size), "batch_axis": 0}
    manifest = Manifest(
        name="product",
        format="onnx",
        inputs=(TensorSpec(name="x", **spec),),
        outputs=(TensorSpec(name="y", **spec),),
    )
    return Model.create(manifest, {"model.onnx": proto.SerializeToString()})


@pytest.mark.slow
def test_the_same_model_twice_is_seldom_told_apart() -> None:
    model, options = product(512), EngineOptions()
    rule = Rule(warmup=3, min_count=100, min_seconds=0.8)
    found: list[Interval] = []
    for _ in range(RACES):
        _, again = compare_engines([(model, "", options), (model, "", options)], rule=rule)
        assert again.ratio is not None
        found.append(again.ratio)
    apart = [str(ratio) for ratio in found if not ratio.low <= 1 <= ratio.high]
    assert len(apart) < SURELY_NOT_BY_CHANCE, apart
