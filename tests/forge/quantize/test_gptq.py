"""Weights rounded for what they do: nearer to float than the nearest ones, in 8 bits and in 4."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import nn

from farthing import plugins
from farthing.bench import evaluate
from farthing.errors import ConfigError, NotInstalled, UnsupportedError
from farthing.forge import graph
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.forge.fuse import Compact, Fuse
from farthing.forge.openvino.export import ExportOpenvino
from farthing.forge.quantize.gptq import Gptq
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.tflite.export import ExportTflite
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.recipe import Progress, Step
from farthing.target import Target
from farthing.task import Task

Array = NDArray[Any]
VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))


class Rows(nn.Module):
    """The rows of a picture as channels, for one-dimensional layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.squeeze(1)


@pytest.fixture(scope="module")
def fused(cnn: Model, digits_task: Task) -> Model:
    return Fuse()(cnn, VNNI, digits_task)


@pytest.fixture(scope="module")
def narrow(digits: tuple[Array, Array], digits_task: Task, make_model: Any) -> Model:
    """Convolutions of one dimension, one of them with groups."""
    from farthing.forge.training.loop import train
    from farthing.forge.training.losses import CrossEntropy
    from farthing.forge.training.samples import Samples
    from farthing.forge.training.schedule import Schedule

    torch.manual_seed(0)
    net = nn.Sequential(
        Rows(),
        nn.Conv1d(8, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv1d(32, 32, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Conv1d(32, 48, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 10),
    )
    x, y = digits
    schedule = Schedule(epochs=6, batch=64, lr=0.01, bf16=False)
    train(net, Samples.of_arrays(x[:1000], y[:1000]), CrossEntropy(), schedule)
    return Fuse()(make_model(net), VNNI, digits_task)


def answers(model: Model, x: Array) -> Array:
    return graph.run(model.file.read_bytes(), {model.manifest.inputs[0].name: x})["logits"]


def distance(model: Model, base: Model, x: Array) -> float:
    """Squared error of the logits, relative to their size."""
    wanted = answers(base, x)
    return float(np.mean((answers(model, x) - wanted) ** 2) / np.mean(wanted**2))


def stored_types(model: Model) -> dict[str, int]:
    found: dict[str, int] = {}
    for tensor in graph.load(model.file).graph.initializer:
        if len(tensor.dims) > 1:
            name = TensorProto.DataType.Name(tensor.data_type)
            found[name] = found.get(name, 0) + 1
    return found


@pytest.mark.parametrize("name", ["fused", "narrow"])
@pytest.mark.parametrize("coarse", [{}, {"per_channel": False, "reduce_range": True}], ids=["fine", "coarse"])
def test_8_bits_are_nearer_to_float_than_the_nearest_numbers(
    name: str,
    coarse: dict[str, Any],
    digits: tuple[Array, Array],
    digits_task: Task,
    request: pytest.FixtureRequest,
) -> None:
    base: Model = request.getfixturevalue(name)
    before = base.digest
    plain = StaticInt8(correct_biases=True, **coarse)(base, VNNI, digits_task)
    made = Gptq(**coarse)(base, VNNI, digits_task)
    test = digits[0][1400:]
    assert distance(made, base, test) < (0.9 if coarse else 1.0) * distance(plain, base, test)
    assert made.size_bytes == pytest.approx(plain.size_bytes, abs=64)
    assert Gptq(**coarse)(base, VNNI, digits_task).digest == made.digest
    base.verify()
    assert base.digest == before
    limit = 64 if coarse else 127
    weights = [numpy_helper.to_array(t) for t in graph.load(made.file).graph.initializer if len(t.dims) > 1]
    assert all(np.abs(array.astype(int)).max() <= limit for array in weights)


@pytest.mark.parametrize("name", ["fused", "narrow"])
def test_4_bits_hold_the_accuracy_that_the_nearest_numbers_lose(
    name: str, digits_task: Task, request: pytest.FixtureRequest
) -> None:
    base: Model = request.getfixturevalue(name)
    made = Gptq(bits=4, eight=())(base, VNNI, digits_task)
    assert stored_types(made) == {"INT4": 4}
    assert evaluate(made, digits_task)[0].value > evaluate(base, digits_task)[0].value - 0.02
    assert made.manifest.quantization is not None
    assert made.manifest.quantization.weights == "int4"


def test_first_last_and_grouped_layers_keep_8_bits_unless_told_otherwise(
    narrow: Model, digits_task: Task
) -> None:
    assert stored_types(Gptq(bits=4)(narrow, VNNI, digits_task)) == {"INT4": 1, "INT8": 3}
    names = [node.name for node in graph.load(narrow.file).graph.node if node.op_type in {"Conv", "Gemm"}]
    made = Gptq(bits=4, eight=tuple(names[:2]))(narrow, VNNI, digits_task)
    assert stored_types(made) == {"INT4": 2, "INT8": 2}


def test_4_bits_halve_the_weights_and_run_as_int8(fused: Model, digits_task: Task, tmp_path: Any) -> None:
    eight, four = (
        Compact()(
            Gptq(bits=bits, eight=() if bits == 4 else None)(fused, VNNI, digits_task), VNNI, digits_task
        )
        for bits in (8, 4)
    )
    weights = sum(
        graph.elements(tensor) for tensor in graph.load(eight.file).graph.initializer if len(tensor.dims) > 1
    )
    assert eight.size_bytes - four.size_bytes == pytest.approx(weights / 2, rel=0.05)
    place = str(tmp_path / "optimised.onnx")
    graph.Session(four.file.read_bytes(), save=place)
    kinds = [node.op_type for node in onnx.load(place).graph.node]
    assert kinds.count("QLinearConv") == 3
    assert "Cast" not in kinds, "widened when it is loaded, not when it runs"


def test_other_engines_take_4_bits_as_well(
    fused: Model, digits: tuple[Array, Array], digits_task: Task
) -> None:
    made = Gptq(bits=4, eight=())(fused, VNNI, digits_task)
    expected = answers(made, digits[0][1400:]).argmax(1)
    for export in (ExportOpenvino(), ExportTflite()):
        try:
            written = export(made, VNNI, digits_task)
            name = "openvino" if written.manifest.format == "openvino" else "litert"
            score, _ = evaluate(written, digits_task, "test", engine=name)
        except NotInstalled as error:
            pytest.skip(str(error))
        truth = digits[1][1400:]
        assert score.value == pytest.approx((expected == truth).mean(), abs=0.011)


def test_transformers_have_products_without_biases(reader: Model, words: Array, words_task: Task) -> None:
    x = words[1400:]
    plain = StaticInt8(products_only=True)(reader, VNNI, words_task)
    made = Gptq(products_only=True)(reader, VNNI, words_task)
    assert distance(made, reader, x) < distance(plain, reader, x)
    assert evaluate(made, words_task)[0].value > evaluate(reader, words_task)[0].value - 0.02


def test_products_alone_leave_everything_else_in_float(
    reader: Model, fused: Model, words: Array, words_task: Task, digits_task: Task
) -> None:
    whole = StaticInt8()(reader, VNNI, words_task)
    made = StaticInt8(products_only=True)(reader, VNNI, words_task)
    proto = graph.load(made.file)
    before = {name for node in proto.graph.node if node.op_type == "QuantizeLinear" for name in node.output}
    makers = {name: node.op_type for node in proto.graph.node for name in node.output}
    fed = {
        makers[node.input[0]]
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in makers
    }
    assert before
    assert "MatMul" not in fed - {"Reshape"}, "what comes out of products stays float"
    assert distance(made, reader, words[1400:]) < distance(whole, reader, words[1400:])
    only = StaticInt8(products_only=True)(fused, VNNI, digits_task)
    assert stored_types(only) == {"FLOAT": 3, "INT8": 1}, "convolutions are no matrix products"


def test_it_says_how_far_it_is_and_the_cache_keeps_what_came_of_it(
    fused: Model, digits_task: Task, tmp_path: Any
) -> None:
    told: list[Progress] = []
    step = Step(use="quantize.gptq.v1", options={"rounding_samples": 20})
    workshop = Workshop(listener=told.append)
    made, steps = apply([step], fused, VNNI, digits_task, Cache(tmp_path), workshop)
    assert [event.text for event in told if "layer" in event.text] == [
        f"rounding weights, layer {n} of 4" for n in range(1, 5)
    ]
    told.clear()
    again, _ = apply(steps, fused, VNNI, digits_task, Cache(tmp_path), workshop)
    assert again.digest == made.digest
    assert not told


def test_what_cannot_be_is_refused(fused: Model, digits_task: Task) -> None:
    with pytest.raises(ConfigError, match="corrects them in any case"):
        Gptq(correct_biases=True)
    with pytest.raises(ConfigError, match="computed as int8, not uint8"):
        Gptq(bits=4, weights="uint8")
    with pytest.raises(ConfigError, match="from 1"):
        Gptq(places=0)
    names = [node.name for node in graph.load(fused.file).graph.node]
    with pytest.raises(UnsupportedError, match="no layer whose weights could be stored in 4 bits"):
        Gptq(bits=4, eight=tuple(names))(fused, VNNI, digits_task)


def test_one_calibration_sample_is_enough_to_run(fused: Model, digits_task: Task) -> None:
    made = Gptq(rounding_samples=1)(fused, VNNI, digits_task)
    assert evaluate(made, digits_task)[0].value > 0.9


def test_unsigned_weights_keep_their_zero_points(
    fused: Model, digits: tuple[Array, Array], digits_task: Task
) -> None:
    plain = StaticInt8(weights="uint8", correct_biases=True)(fused, VNNI, digits_task)
    made = Gptq(weights="uint8")(fused, VNNI, digits_task)
    test = digits[0][1400:]
    assert distance(made, fused, test) < distance(plain, fused, test)


def test_every_new_pass_is_known_by_name() -> None:
    for name in ("gptq", "blockwise", "tables", "smooth"):
        assert plugins.get("pass", f"quantize.{name}.v1").__module__.startswith("farthing.forge.quantize")
