"""Weights in blocks: what the runtime's operator computes, how near to float, and which products it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import nn

from farthing.bench import evaluate
from farthing.errors import ConfigError, UnsupportedError
from farthing.forge import graph
from farthing.forge.fuse import Compact, Fuse
from farthing.forge.order import form_of
from farthing.forge.quantize.blockwise import Blockwise
from farthing.forge.quantize.smooth import Smooth
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.quantize.tables import Tables
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

Array = NDArray[Any]
VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))
OLD = Target(name="old", arch="x86_64", isa=("avx2",))
ARM = Target(name="arm", arch="aarch64", isa=("asimd", "asimddp"))


def answers(model: Model, x: Array) -> Array:
    return graph.run(model.file.read_bytes(), {model.manifest.inputs[0].name: x})["logits"]


def distance(model: Model, base: Model, x: Array) -> float:
    wanted = answers(base, x)
    return float(np.mean((answers(model, x) - wanted) ** 2) / np.mean(wanted**2))


def kinds(model: Model) -> list[str]:
    return [node.op_type for node in graph.load(model.file).graph.node]


def products(model: Model) -> list[onnx.NodeProto]:
    return [node for node in graph.load(model.file).graph.node if node.op_type == "MatMulNBits"]


@pytest.fixture(scope="module")
def plain_mlp(mlp: Model, digits_task: Task) -> Model:
    return Fuse()(mlp, VNNI, digits_task)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_runtime_computes_the_numbers_that_were_meant(
    bits: Any, block: Any, symmetric: bool, plain_mlp: Model, digits: tuple[Array, Array], digits_task: Task
) -> None:
    """A Gemm with a bias: the weights that the file stands for, multiplied by numpy in float."""
    options = {"bits": bits, "block": block, "symmetric": symmetric, "compensate": False}
    made = Blockwise(accuracy_level=1, **options)(plain_mlp, VNNI, digits_task)
    stored = {t.name: numpy_helper.to_array(t) for t in graph.load(made.file).graph.initializer}
    x = digits[0][1400:1410].reshape(10, -1).astype(np.float64)
    nodes = products(made)
    assert len(nodes) == 2
    for place, node in enumerate(nodes):
        numbers, scales = stored[node.input[1]].astype(np.int64), stored[node.input[2]]
        rows, blocks = numbers.shape[:2]
        if bits == 4:
            numbers = np.stack([numbers & 15, numbers >> 4], -1).reshape(rows, blocks, -1)
        zero = np.full((rows, blocks), 2 ** (bits - 1))
        if not symmetric:
            packed = stored[node.input[3]].reshape(rows, -1).astype(np.int64)
            zero = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(rows, -1)
            zero = zero[:, :blocks]
        real = (numbers - zero[..., None]) * scales.reshape(rows, blocks, 1)
        add = next(n for n in graph.load(made.file).graph.node if node.output[0] in n.input)
        x = x @ real.reshape(rows, -1)[:, : x.shape[1]].T + stored[add.input[1]]
        x = np.maximum(x, 0) if place == 0 else x
    np.testing.assert_allclose(answers(made, digits[0][1400:1410]), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("bits", "gap"), [(8, 1e-4), (4, 3e-2)])
def test_a_transformer_stays_near_to_float(
    bits: Any, gap: float, reader: Model, words: Array, words_task: Task
) -> None:
    before = reader.digest
    made = Blockwise(bits=bits)(reader, VNNI, words_task)
    assert len(products(made)) == 13, "six in each layer, and a Gemm for the classes"
    assert distance(made, reader, words[1400:]) < gap
    assert evaluate(made, words_task)[0].value > evaluate(reader, words_task)[0].value - 0.015
    assert Blockwise(bits=bits)(reader, VNNI, words_task).digest == made.digest
    reader.verify()
    assert reader.digest == before
    assert form_of(made) == "reduced"
    small = Compact()(made, VNNI, words_task)
    np.testing.assert_array_equal(answers(small, words[1400:]), answers(made, words[1400:]))


def test_4_bits_gain_by_compensation_and_by_smaller_blocks(
    reader: Model, words: Array, words_task: Task
) -> None:
    x = words[1400:]
    far = {
        (block, compensate): distance(
            Blockwise(bits=4, block=block, compensate=compensate)(reader, VNNI, words_task), reader, x
        )
        for block in (16, 64)
        for compensate in (True, False)
    }
    assert far[16, True] < 0.7 * far[16, False]
    assert far[64, True] < 0.7 * far[64, False]
    assert far[16, False] < far[64, False]


def test_products_that_share_weights_share_their_blocks(make_model: Any, digits_task: Task) -> None:
    generator = np.random.default_rng(0)
    weights = numpy_helper.from_array(generator.normal(size=(64, 64)).astype(np.float32), "w")
    last = numpy_helper.from_array(generator.normal(size=(64, 10)).astype(np.float32), "v")
    nodes = [
        helper.make_node("Flatten", ["image"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Gemm", ["c", "w"], ["d"], transB=1),
        helper.make_node("MatMul", ["d", "v"], ["logits"]),
    ]
    value = helper.make_tensor_value_info
    image = value("image", onnx.TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = value("logits", onnx.TensorProto.FLOAT, ["batch", 10])
    proto = helper.make_model(
        helper.make_graph(nodes, "shared", [image], [logits], [weights, last]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    base = make_model(proto)
    made = Blockwise(accuracy_level=1, compensate=False)(base, VNNI, digits_task)
    first, second, _ = products(made)
    assert first.input[1] == second.input[1]
    assert "Gemm" in kinds(made), "the same weights the other way round stay as they are"
    x = digits_task.split("test").inputs[""][:8]
    assert distance(made, base, x) < 1e-4


def test_operators_left_out_stay_float(reader: Model, words_task: Task) -> None:
    names = [node.name for node in graph.load(reader.file).graph.node if node.op_type == "MatMul"]
    whole, made = (Blockwise(exclude=own)(reader, VNNI, words_task) for own in ((), tuple(names)))
    assert 0 < len(products(made)) < len(products(whole))
    assert made.manifest.quantization is not None
    assert made.manifest.quantization.excluded == tuple(names)


def test_sums_that_may_overflow_are_avoided(reader: Model, words_task: Task) -> None:
    assert Blockwise().resolved(VNNI).accuracy_level == 4
    assert Blockwise().resolved(OLD).accuracy_level == 1
    assert Blockwise(bits=4).resolved(OLD).accuracy_level == 4
    assert Blockwise().resolved(ARM).accuracy_level == 4
    assert Blockwise(accuracy_level=0).resolved(OLD).accuracy_level == 0
    assert Blockwise()(reader, VNNI, words_task).manifest.requires == ("vnni",)
    assert Blockwise()(reader, OLD, words_task).manifest.requires == ()
    assert Blockwise().resolved(VNNI).compensate is False
    assert Blockwise(bits=4).resolved(VNNI).compensate is True


def test_a_network_without_products_is_refused(make_model: Any, digits_task: Task) -> None:
    net = nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UnsupportedError, match="no matrix product with weights to store in blocks"):
        Blockwise()(make_model(net), VNNI, digits_task)
    with pytest.raises(ConfigError, match="from 1"):
        Blockwise(samples=0)


# Tables of embeddings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "least", "gap"), [(8, 3.3, 1e-4), (4, 5.5, 1e-2)])
def test_tables_shrink_and_their_rows_stay(
    bits: Any, least: float, gap: float, reader: Model, words: Array, words_task: Task
) -> None:
    made = Tables(bits=bits)(reader, VNNI, words_task)
    table = 289 * 64 * 4
    assert table / (made.size_bytes - reader.size_bytes + table) > least
    assert distance(made, reader, words[1400:]) < gap
    assert Tables(bits=bits)(reader, VNNI, words_task).digest == made.digest
    assert made.manifest.quantization is not None
    assert made.manifest.quantization.scheme == "tables"
    after = Tables(bits=bits)(StaticInt8(products_only=True)(reader, VNNI, words_task), VNNI, words_task)
    assert after.manifest.quantization is not None
    assert after.manifest.quantization.scheme == "static"


def test_small_tables_and_those_that_others_read_stay(reader: Model, words_task: Task) -> None:
    with pytest.raises(UnsupportedError, match="takes rows of no table of 500 or more"):
        Tables(least=500)(reader, VNNI, words_task)
    proto = graph.load(reader.file)
    table = next(
        node.input[0] for node in proto.graph.node if node.op_type == "Gather" and "words" in node.input
    )
    proto.graph.node.append(helper.make_node("ReduceSum", [table], ["sum"], name="reads it as well"))
    proto.graph.output.append(helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, [1, 1]))
    shared = Model.create(reader.manifest, {"model.onnx": graph.save_bytes(proto)})
    with pytest.raises(UnsupportedError, match="no table"):
        Tables()(shared, VNNI, words_task)


# SmoothQuant ----------------------------------------------------------------------------------------------------


def with_outliers(reader: Model) -> Model:
    """Two channels after each layer normalisation a hundred times as large, their weights as much smaller."""
    proto = graph.load(reader.file)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    factors = np.ones(64, np.float32)
    factors[[3, 40]] = 100.0
    norms = {node.output[0]: node for node in proto.graph.node if node.op_type == "LayerNormalization"}
    for node in [*proto.graph.node]:
        if node.op_type == "MatMul" and node.input[0] in norms and node.input[1] in stored:
            name = f"{node.output[0]}/scaled"
            proto.graph.initializer.append(numpy_helper.from_array(factors, f"{name}/factors"))
            place = [*proto.graph.node].index(node)
            mul = helper.make_node("Mul", [node.input[0], f"{name}/factors"], [name], name=name)
            weights = numpy_helper.to_array(stored[node.input[1]]) / factors[:, None]
            stored[node.input[1]].CopyFrom(numpy_helper.from_array(weights, node.input[1]))
            proto.graph.node[place].input[0] = name
            proto.graph.node.insert(place, mul)
    return Model.create(reader.manifest, {"model.onnx": graph.save_bytes(proto)})


def test_outliers_move_into_the_weights_and_nothing_changes_in_float(
    reader: Model, words: Array, words_task: Task
) -> None:
    x = words[1400:]
    harsh = with_outliers(reader)
    smooth = Smooth()(harsh, VNNI, words_task)
    np.testing.assert_allclose(answers(smooth, x), answers(harsh, x), rtol=1e-2, atol=2e-3)
    eight = StaticInt8(products_only=True)
    rough, fine = (distance(eight(own, VNNI, words_task), harsh, x) for own in (harsh, smooth))
    assert fine < 0.2 * rough
    assert Smooth()(harsh, VNNI, words_task).digest == smooth.digest


def test_a_normalisation_before_products_alone_takes_the_factors(
    words_model: Callable[[nn.Module], Model], words_task: Task
) -> None:
    class First(nn.Module):
        """Normalises first, so that nothing else reads what is normalised."""

        def __init__(self) -> None:
            super().__init__()
            self.words, self.norm = nn.Embedding(289, 16), nn.LayerNorm(16)
            self.inner, self.classes = nn.Linear(16, 32), nn.Linear(32, 10)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.words(words))
            answer: torch.Tensor = self.classes(torch.relu(self.inner(x)).mean(1))
            return answer

    torch.manual_seed(0)
    model = Fuse()(words_model(First()), VNNI, words_task)
    smooth = Smooth()(model, VNNI, words_task)
    assert kinds(smooth).count("Mul") == kinds(model).count("Mul") + 1, "for the classes alone"
    x = words_task.split("test").inputs[""]
    np.testing.assert_allclose(answers(smooth, x), answers(model, x), rtol=1e-4, atol=1e-5)


def test_what_smoothing_refuses(make_model: Any, digits_task: Task) -> None:
    net = nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UnsupportedError, match="no matrix product with weights of its own"):
        Smooth()(make_model(net), VNNI, digits_task)
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        Smooth(strength=0)
