"""What a search offers a network: blocks and products to transformers, four bits where they save something."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from farthing.bench import evaluate
from farthing.forge import graph
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.forge.ladder import attends, ladder
from farthing.forge.quantize.gptq import four_bits
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))
SMALL = ["int8 products", "int8 products, smoothed", "int8 dynamic", "int8 blocks", "int4 blocks"]


def names(model: Model) -> list[str]:
    return [rung.name for rung in ladder(model, ["onnxruntime"], VNNI)]


def test_transformers_get_forms_that_bear_their_outliers(
    reader: Model, words_task: Task, cache_root: Any
) -> None:
    assert names(reader) == ["fused", "int8 minmax", *SMALL, "float16"]
    base = evaluate(reader, words_task)[0].value
    sizes = {}
    for rung in ladder(reader, ["onnxruntime"], VNNI):
        made, _ = apply(rung.steps, reader, VNNI, words_task, Cache(cache_root))
        sizes[rung.name] = made.size_bytes
        if rung.name in SMALL:
            assert evaluate(made, words_task)[0].value > base - 0.02, rung.name
    assert sizes["int4 blocks"] < 0.8 * sizes["int8 blocks"] < 0.4 * sizes["fused"]


def test_a_search_of_a_transformer_finds_one_that_is_small_and_near(
    search: Any, reader: Model, words_task: Task
) -> None:
    result = search(reader, words_task, budget="accuracy_drop<=0.02, size_mb<=0.09", allow_slower=True)
    assert result.met, result.summary.sentence
    assert {"int8 products", "int8 blocks", "int4 blocks"} <= {c.name for c in result.candidates}


def test_convolutions_get_four_bits_where_that_saves_something(make_model: Any) -> None:
    def net(width: int) -> nn.Module:
        torch.manual_seed(0)
        first, last = nn.Conv2d(1, width, 3), nn.Linear(width, 10)
        pool = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(
            first, nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), pool, nn.Flatten(), last
        )

    thin, wide = make_model(net(8)), make_model(net(48))
    assert "int4 weights" not in names(thin)
    assert "int4 weights" in names(wide)
    assert four_bits(graph.load(wide.file)) == 48 * 48 * 9
    assert not {"int8 blocks", "int8 products"} & {*names(wide)}


@pytest.mark.parametrize("kind", ["Transpose", "Constant", "computed"])
def test_weights_by_a_detour_are_no_attention(kind: str) -> None:
    array = np.ones((4, 4), np.float32)
    stored = numpy_helper.from_array(array, "w")
    detours = {
        "Transpose": helper.make_node("Transpose", ["w"], ["v"]),
        "Constant": helper.make_node("Constant", [], ["v"], value=stored),
        "computed": helper.make_node("Transpose", ["x"], ["v"]),
    }
    value = helper.make_tensor_value_info
    part = helper.make_graph(
        [detours[kind], helper.make_node("MatMul", ["x", "v"], ["y"])],
        "product",
        [value("x", onnx.TensorProto.FLOAT, [4, 4])],
        [value("y", onnx.TensorProto.FLOAT, [4, 4])],
        [stored],
    )
    assert attends(helper.make_model(part)) == (kind == "computed")
