"""The rungs of each engine: what is tried, what is left out, and that every one of them gives a model that runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from farthing import plugins
from farthing.engines.base import open_engine
from farthing.errors import PluginError, UnsupportedError
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.forge.ladder import Rung, fitting, ladder, target_format, with_exclusions
from farthing.forge.quantize.static import StaticInt8
from farthing.model import Model, checked
from farthing.options import EngineOptions
from farthing.target import Target
from farthing.task import Task

PLAIN = Target(name="plain", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))
BF16 = Target(name="bf16", arch="x86_64", isa=("avx512f", "avx512_vnni", "avx512_bf16"))
TPU = Target(name="tpu", arch="aarch64", dtypes=("int8", "uint8"))
ENGINES = [
    name for name, package in (("openvino", "openvino"), ("litert", "ai_edge_litert")) if find_spec(package)
]


def names(rungs: list[Rung], engine: str) -> list[str]:
    return [rung.name for rung in rungs if rung.engine == engine]


def test_engines_get_the_format_that_is_their_own() -> None:
    assert target_format("onnxruntime") == "onnx"
    if "openvino" in ENGINES:
        assert target_format("openvino") == "openvino", "though it reads ONNX as well"
    if "litert" in ENGINES:
        assert target_format("litert") == "tflite"


def test_the_rungs_of_each_engine(cnn: Model, mlp: Model) -> None:
    found = ladder(cnn, ["onnxruntime", *ENGINES], PLAIN)
    assert names(found, "onnxruntime")[:2] == ["fused", "int8 minmax"]
    assert "int8 dynamic" not in names(found, "onnxruntime"), "a net of convolutions"
    assert "int8 dynamic" in names(ladder(mlp, ["onnxruntime"], PLAIN), "onnxruntime")
    for engine in ENGINES:
        own = names(found, engine)
        assert own[0] == "float32"
        assert {"int8 minmax", "int8 percentile", "int8 mse, biases corrected"} < set(own)
    assert not any("entropy" in rung.name for rung in found), "slow, and better nowhere: an option of recipes"
    exact = [rung for rung in found if rung.exact]
    assert [rung.engine for rung in exact] == ["onnxruntime", *ENGINES], (
        "one each, to compare the others with"
    )


@pytest.mark.skipif("openvino" not in ENGINES, reason="openvino is not installed")
def test_bfloat16_is_tried_where_the_processor_has_it(cnn: Model) -> None:
    assert "bfloat16" not in names(ladder(cnn, ["openvino"], PLAIN), "openvino")
    rung = next(rung for rung in ladder(cnn, ["openvino"], BF16) if rung.name == "bfloat16")
    assert rung.precision == "bfloat16"
    assert not rung.exact
    assert rung.steps == ladder(cnn, ["openvino"], BF16)[0].steps, "the file is the float32 one"


def test_what_has_been_quantized_is_not_quantized_again(cnn: Model, digits_task: Task) -> None:
    quantized = StaticInt8()(cnn, PLAIN, digits_task)
    marked = Model.create(
        checked(quantized.manifest, quantization=None), {"m.onnx": quantized.file.read_bytes()}
    )
    for model in (quantized, marked):
        assert [rung.exact for rung in ladder(model, ["onnxruntime", *ENGINES], PLAIN)] == [True] * (
            1 + len(ENGINES)
        )


def test_only_onnx_models_are_searched(cnn: Model) -> None:
    other = Model(cnn.path, replace(cnn.manifest, format="tflite"))
    with pytest.raises(UnsupportedError, match="digits is tflite: the search works on ONNX models"):
        ladder(other, ["onnxruntime"], PLAIN)


def test_a_target_leaves_out_what_it_cannot_compute(cnn: Model) -> None:
    rungs = ladder(cnn, ["onnxruntime", *ENGINES], TPU)
    kept, note = fitting(rungs, TPU)
    assert {rung.engine for rung in kept} <= {"litert"}
    assert all(rung.name.endswith("uint8 in and out") for rung in kept)
    assert note.startswith(
        "Target tpu computes in int8, uint8 only, so these were not tried: fused in onnxruntime"
    )
    assert "float16 in onnxruntime (float16)" in note


def test_a_target_without_half_precision_or_without_limits(cnn: Model) -> None:
    rungs = ladder(cnn, ["onnxruntime", *ENGINES], BF16)
    assert fitting(rungs, BF16) == (rungs, "")
    kept, note = fitting(rungs, replace(BF16, dtypes=("float32", "uint8")))
    left = [rung.name for rung in rungs if rung not in kept]
    assert set(left) == {"float16", *(["bfloat16"] if "openvino" in ENGINES else [])}
    assert all(name in note for name in left)


@pytest.mark.parametrize("engine", ["onnxruntime", *ENGINES])
def test_every_rung_gives_a_model_that_its_engine_runs(
    engine: str, cnn: Model, digits: Any, digits_task: Task, cache_root: Path
) -> None:
    target = Target.detect()
    x = digits[0][1400:1797]
    with open_engine(cnn) as floating:
        expected = floating.run({"image": x})["logits"].argmax(1)
    for rung in ladder(cnn, [engine], target):
        model, _ = apply(rung.steps, cnn, target, digits_task, Cache(cache_root))
        assert model.manifest.format == target_format(engine)
        with open_engine(model, engine, EngineOptions(precision=rung.precision)) as opened:
            found = opened.run({opened.inputs[0].name: x.reshape(-1, *opened.inputs[0].shape[1:])})
        same = float((next(iter(found.values())).argmax(1) == expected).mean())
        assert same > (0.999 if rung.exact else 0.97), rung.name


@pytest.mark.skipif("litert" not in ENGINES, reason="ai-edge-litert is not installed")
def test_full_integer_models_take_and_give_uint8(cnn: Model, digits_task: Task, cache_root: Path) -> None:
    kept, _ = fitting(ladder(cnn, ["litert"], TPU), TPU)
    model, _ = apply(kept[0].steps, cnn, TPU, digits_task, Cache(cache_root))
    assert {spec.dtype for spec in (*model.manifest.inputs, *model.manifest.outputs)} == {"uint8"}


def test_exclusions_go_into_the_static_step_of_any_engine(
    cnn: Model, digits_task: Task, cache_root: Path
) -> None:
    for rung in (
        rung for rung in ladder(cnn, ["onnxruntime", *ENGINES], PLAIN) if rung.name == "int8 minmax"
    ):
        again = with_exclusions(rung, ["/0/Conv"])
        assert again.name == "int8 minmax, 1 operator float"
        model, steps = apply(again.steps, cnn, PLAIN, digits_task, Cache(cache_root))
        assert [step.options["exclude"] for step in steps if "exclude" in step.options] == [["/0/Conv"]]
        assert model.manifest.quantization is not None
        assert model.manifest.quantization.excluded == ("/0/Conv",)
    with pytest.raises(PluginError, match="has no static int8 step"):
        with_exclusions(ladder(cnn, ["onnxruntime"], PLAIN)[0], ["/0/Conv"])


def test_passes_of_users_are_tried_on_onnx(cnn: Model, registry: None) -> None:
    plugins.register("pass", "mine.idle.v1", lambda model, target, task: model)
    rungs = ladder(cnn, [*ENGINES, "onnxruntime"], PLAIN)
    assert rungs[-1].name == "mine.idle.v1"
    assert rungs[-1].engine == "onnxruntime"
    assert rungs[-1] in fitting(rungs, TPU)[0], "what a user's pass computes in is not known"
    assert np.all([rung.name != "mine.idle.v1" for rung in ladder(cnn, ENGINES, PLAIN)])
