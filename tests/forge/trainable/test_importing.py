"""ONNX files as torch modules and back: what they compute, what is written, what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import nn

from farthing.errors import ConversionError, FeedError, TaskError, UnsupportedError
from farthing.forge import graph, nets
from farthing.forge.convert import convert
from farthing.forge.trainable import Trainable, operators, trainable
from farthing.forge.trainable.operators import activations
from farthing.model import Manifest, Model, TensorSpec, checked

Array = NDArray[Any]
NETS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "digits_cnn": (nets.digits_cnn, "1x1x28x28"),
    "resnet8": (nets.resnet8, "1x1x28x28"),
}


def settled(build: Callable[[], nn.Module], example: str) -> nn.Module:
    """A net with random weights and plausible statistics."""
    torch.manual_seed(0)
    net = build()
    nets.settle(net, (8, *map(int, example.split("x")[1:])))
    return net.eval()


@pytest.fixture(scope="module", params=NETS)
def model(request: pytest.FixtureRequest) -> Model:
    build, example = NETS[request.param]
    return convert(settled(build, example), example=example).model


def initializers(model: Model) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in onnx.load(model.file).graph.initializer}


def facts(model: Model) -> list[tuple[str, str, list[str], list[str]]]:
    """All of a graph but its numbers."""
    return [(n.name, n.op_type, list(n.input), list(n.output)) for n in onnx.load(model.file).graph.node]


def answers(model: Model, x: Array) -> Array:
    return next(iter(graph.run(onnx.load(model.file), {model.manifest.inputs[0].name: x}).values()))


def batch(model: Model, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(model.manifest.inputs[0].sized(count), generator=generator)


def nudge(made: Trainable, steps: int = 3) -> None:
    """A few steps of training on noise."""
    made.module.train()
    optimizer = torch.optim.SGD(made.module.parameters(), lr=0.01)
    for step in range(steps):
        loss = made.module(batch(made.model, 16, step))[0].logsumexp(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made.module.eval()


def test_untouched_it_is_written_as_it_was(model: Model) -> None:
    again = trainable(model).to_model()
    assert facts(again) == facts(model)
    assert initializers(again) == initializers(model)
    assert again.manifest.inputs == model.manifest.inputs


def test_trained_it_computes_what_the_module_computes(model: Model) -> None:
    before = initializers(model)
    made = trainable(model)
    nudge(made)
    after = made.to_model(version="2")
    x = batch(model, 5, 9)
    with torch.no_grad():
        np.testing.assert_allclose(answers(after, x.numpy()), made.module(x)[0].numpy(), atol=1e-4, rtol=1e-4)
    assert facts(after) == facts(model)
    assert all(before[name] != value for name, value in initializers(after).items())
    assert initializers(model) == before
    assert after.manifest.version == "2"


def test_every_parameter_learns(model: Model) -> None:
    made = trainable(model)
    made.module(batch(model, 4))[0].square().sum().backward()
    grads = {name: parameter.grad for name, parameter in made.module.named_parameters()}
    assert len(grads) == len(initializers(model))
    assert all(grad is not None and bool(grad.abs().sum() > 0) for grad in grads.values())


def test_layers_are_torch_layers_by_the_names_of_their_nodes(model: Model) -> None:
    made = trainable(model)
    weighted = [n.name for n in onnx.load(model.file).graph.node if n.op_type in {"Conv", "Gemm"}]
    assert list(made.layers) == weighted
    kinds = {type(made.module.get_submodule(name)) for name in made.layers.values()}
    assert kinds == {nn.Conv2d, nn.Linear}


def test_norms_change_nothing_train_and_are_folded_again(model: Model) -> None:
    made = trainable(model)
    x = batch(model, 5, 9)
    with torch.no_grad():
        before = made.module(x)[0].numpy()
    made.insert_norms([[batch(model, 32, seed)] for seed in (1, 2)])
    with torch.no_grad():
        np.testing.assert_allclose(made.module(x)[0].numpy(), before, atol=1e-5 * np.abs(before).max())
    norms = [part for part in made.module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == sum(node.op_type == "Conv" for node in onnx.load(model.file).graph.node)
    nudge(made)
    after = made.to_model()
    assert facts(after) == facts(model)
    with torch.no_grad():
        wanted = made.module(x)[0].numpy()
    np.testing.assert_allclose(answers(after, x.numpy()), wanted, atol=1e-4 * np.abs(wanted).max())
    assert not np.allclose(wanted, before, atol=1e-3)


def test_norms_need_samples(model: Model) -> None:
    with pytest.raises(TaskError, match="no samples"):
        trainable(model).insert_norms([])


def small(
    *nodes: onnx.NodeProto, weights: dict[str, Array], opset: int = 17, width: int = 6, batch: int | str = "n"
) -> Model:
    """A model of a few operators from x (batch, width) to y."""
    shape = [batch, width]
    x, y = (helper.make_tensor_value_info(name, 1, shape) for name in "xy")
    y.type.tensor_type.ClearField("shape")
    proto = helper.make_model(
        helper.make_graph(
            list(nodes), "small", [x], [y], [numpy_helper.from_array(a, n) for n, a in weights.items()]
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    count = batch if isinstance(batch, int) else 2
    answered = graph.run(proto, {"x": np.zeros((count, width), np.float32)})["y"]
    result = (batch, *answered.shape[1:])
    y.type.CopyFrom(helper.make_tensor_value_info("y", 1, result).type)
    proto.graph.output[0].CopyFrom(y)
    spec = TensorSpec(name="x", dtype="float32", shape=(batch, width), batch_axis=0)
    out = TensorSpec(name="y", dtype=answered.dtype.name, shape=result, batch_axis=0)
    manifest = Manifest(name="small", format="onnx", inputs=(spec,), outputs=(out,))
    return Model.create(manifest, {"model.onnx": proto.SerializeToString()})


def w(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_weights_that_two_layers_share_stay_one() -> None:
    nodes = [
        helper.make_node("Gemm", [a, "w", "b"], [b], transB=1, name=b) for a, b in itertools.pairwise("xty")
    ]
    model = small(*nodes, weights={"w": w(6, 6), "b": w(6)})
    made = trainable(model)
    assert len(list(made.module.parameters())) == 2
    nudge(made)
    after = made.to_model()
    assert set(initializers(after)) == {"w", "b"}
    assert initializers(after)["w"] != initializers(model)["w"]


@pytest.mark.parametrize("alias", [False, True], ids=["stored once", "handed on"])
def test_vectors_that_were_equal_by_chance_are_learnt_apart(alias: bool) -> None:
    """Exporters store equal tensors once, and may hand them on by Identity."""
    nodes = [
        *([helper.make_node("Identity", ["b"], ["same"], name="alias")] if alias else []),
        helper.make_node("Gemm", ["x", "v", "b"], ["h"], transB=1, name="first"),
        helper.make_node("Gemm", ["h", "w", "same" if alias else "b"], ["y"], transB=1, name="second"),
    ]
    model = small(*nodes, weights={"v": w(6, 6), "w": w(6, 6, seed=1), "b": np.zeros(6, np.float32)})
    made = trainable(model)
    assert len(list(made.module.parameters())) == 4
    untouched = made.to_model()
    assert facts(untouched) == facts(model)
    assert initializers(untouched) == initializers(model)
    nudge(made)
    after = made.to_model()
    biases = [array for name, array in initializers(after).items() if name not in {"v", "w"}]
    assert len(set(biases)) == len(biases) == 2


def test_weights_that_no_longer_agree_are_refused() -> None:
    nodes = [helper.make_node("Gemm", [a, "w"], [b], transB=1, name=b) for a, b in itertools.pairwise("xty")]
    made = trainable(small(*nodes, weights={"w": w(6, 6)}))
    made.module.get_submodule(made.layers["t"]).weight = nn.Parameter(torch.zeros(6, 6))
    with pytest.raises(UnsupportedError, match="'w' belong to several layers"):
        made.to_model()


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (1,), None])
def test_gemm_and_its_factors(transposed: int, shape: tuple[int, ...] | None) -> None:
    weights = {"w": w(5, 6) if transposed else w(6, 5)} | ({"c": w(*shape)} if shape else {})
    names = ["x", *weights]
    model = small(
        helper.make_node("Gemm", names, ["y"], transB=transposed, alpha=0.5, beta=2.0), weights=weights
    )
    made = trainable(model)
    assert initializers(made.to_model()) == initializers(model)
    nudge(made)
    assert initializers(made.to_model()) != initializers(model)


def test_matmul_and_bias_are_one_layer() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"], name="product"),
        helper.make_node("Add", ["b", "t"], ["y"], name="shift"),
    ]
    model = small(*nodes, weights={"w": w(6, 4), "b": w(1, 4)})
    made = trainable(model)
    layer = made.module.get_submodule(made.layers["product"])
    assert isinstance(layer, nn.Linear)
    assert layer.bias is not None
    nudge(made)
    after = made.to_model()
    assert facts(after)[0][0] == "product"
    stored = {t.name: tuple(t.dims) for t in onnx.load(after.file).graph.initializer}
    assert stored == {"w": (6, 4), "b": (1, 4)}


def test_transposed_weights_are_those_of_a_layer() -> None:
    """As exporters write them that fold no constants."""
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0], name="turned"),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="product"),
    ]
    made = trainable(small(*nodes, weights={"w": w(4, 6)}))
    assert isinstance(made.module.get_submodule(made.layers["product"]), nn.Linear)
    nudge(made)
    after = made.to_model()
    assert facts(after) == facts(made.model)
    assert initializers(after)["w"] != w(4, 6).tobytes()


def test_weights_that_are_computed_are_learnt_where_they_are_stored() -> None:
    """As masks and weight normalization leave them."""
    nodes = [
        helper.make_node("Mul", ["v", "mask"], ["masked"]),
        helper.make_node("ReduceL2", ["masked"], ["length"], axes=[1]),
        helper.make_node("Div", ["masked", "length"], ["unit"]),
        helper.make_node("Gemm", ["x", "unit"], ["y"], transB=1),
    ]
    mask = np.ones((4, 6), np.float32)
    mask[:, ::2] = 0
    made = trainable(small(*nodes, weights={"v": w(4, 6), "mask": mask}))
    assert {binding.tensor for binding in made.bindings} == {"v"}
    nudge(made)
    assert initializers(made.to_model())["v"] != w(4, 6).tobytes()


def test_a_tensor_that_a_norm_follows_is_what_the_norm_gives(model: Model) -> None:
    made = trainable(model)
    made.insert_norms([[batch(model, 8)]])
    conv = next(node for node in onnx.load(model.file).graph.node if node.op_type == "Conv")
    assert made.traced[conv.output[0]].target == made.norms[made.layers[conv.name]]


def test_constants_that_are_nodes_and_weights_that_are_inputs() -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(w(6, 4))),
        helper.make_node("Gemm", ["x", "w", "b"], ["y"]),
    ]
    model = small(*nodes, weights={"b": w(4)})
    proto = onnx.load(model.file)
    proto.graph.input.append(helper.make_tensor_value_info("b", 1, [4]))
    model = Model.create(model.manifest, {"model.onnx": proto.SerializeToString()})
    made = trainable(model)
    nudge(made)
    written = made.to_model()
    after = onnx.load(written.file)
    assert [value.name for value in after.graph.input] == ["x", "b"]
    stored = numpy_helper.to_array(after.graph.node[0].attribute[0].t)
    assert stored.shape == (6, 4)
    assert not np.array_equal(stored, w(6, 4))


def test_a_fixed_batch_is_free_in_the_module() -> None:
    """Training feeds more at once than the file takes."""
    nodes = [
        helper.make_node("Reshape", ["x", "apart"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["b", "flat"], ["c"]),
        helper.make_node("Gemm", ["c", "w"], ["y"]),
    ]
    weights = {"apart": np.int64([1, 2, 3]), "flat": np.int64([1, 6]), "w": w(6, 4)}
    model = small(*nodes, weights=weights, batch=1)
    made = trainable(model)
    x = torch.randn(5, 6)
    with torch.no_grad():
        together, apart = made.module(x)[0], [made.module(row)[0] for row in x.split(1)]
    torch.testing.assert_close(together, torch.cat(apart))


def test_scalars_and_input_scaling_are_not_learnt() -> None:
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["a"]),
        helper.make_node("Gemm", ["a", "w"], ["b"]),
        helper.make_node("Mul", ["b", "half"], ["c"]),
        helper.make_node("Mul", ["c", "scale"], ["y"]),
    ]
    weights = {"mean": w(6), "w": w(6, 4), "half": np.float32(0.5), "scale": w(4)}
    made = trainable(small(*nodes, weights=weights))
    assert {binding.tensor for binding in made.bindings} == {"w", "scale"}


def test_an_operator_without_a_trainable_form_is_named() -> None:
    model = small(helper.make_node("Unique", ["x"], ["y"], name="odd"), weights={})
    with pytest.raises(UnsupportedError, match=r"operator Unique \(node 'odd'\).*quantize.static"):
        trainable(model)


def test_a_quantized_model_is_refused_in_its_own_words() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="narrow"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    model = small(*nodes, weights={"s": np.float32(0.1), "z": np.uint8(128)})
    with pytest.raises(
        UnsupportedError, match=r"QuantizeLinear \(node 'narrow'\): the model is quantized already"
    ):
        trainable(model)


def test_weights_beside_the_file_are_taken_into_it(tmp_path: Path) -> None:
    whole = small(helper.make_node("Gemm", ["x", "w"], ["y"]), weights={"w": w(6, 4)})
    proto = onnx.load(whole.file)
    onnx.save(
        proto, tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    content = {name: tmp_path / name for name in ("model.onnx", "weights")}
    made = trainable(Model.create(whole.manifest, content))
    nudge(made)
    after = made.to_model()
    assert list(after.manifest.files) == ["model.onnx"]
    assert initializers(after)["w"] != w(6, 4).tobytes()


def test_a_model_that_keeps_state_is_checked_from_its_beginning() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "before"], ["after"], name="cell"),
        helper.make_node("Tanh", ["after"], ["y"]),
    ]
    names = {"x": (1, 6), "before": (1, 4), "y": (1, 4), "after": (1, 4)}
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in names.items()]
    weights = [numpy_helper.from_array(w(6, 4), "w")]
    proto = helper.make_model(
        helper.make_graph(nodes, "stream", values[:2], values[2:], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    specs = [
        TensorSpec(name=n, dtype="float32", shape=shape, role="state" if n in {"before", "after"} else "data")
        for n, shape in names.items()
    ]
    manifest = Manifest(name="stream", format="onnx", inputs=tuple(specs[:2]), outputs=tuple(specs[2:]))
    model = Model.create(manifest, {"model.onnx": proto.SerializeToString()})
    made = trainable(model, {"x": np.ones((1, 6), np.float32)})
    y, after = made.module(torch.ones(1, 6), torch.ones(1, 4))
    assert y.shape == after.shape == (1, 4)
    with pytest.raises(FeedError, match="'x' of stream is missing"):
        trainable(model, {"before": np.ones((1, 4), np.float32)})


def test_the_first_operator_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"]),
        helper.make_node("Softsign", ["a"], ["b"], name="culprit"),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    model = small(*nodes, weights={"w": w(6, 4)})
    monkeypatch.setitem(activations.SIMPLE, "Softsign", torch.tanh)
    with pytest.raises(ConversionError, match=r"first operator that differs is Softsign \(node 'culprit'\)"):
        trainable(model)


def test_other_formats_are_refused(model: Model) -> None:
    other = Model(model.path, checked(model.manifest, format="fake"))
    with pytest.raises(UnsupportedError, match="is fake"):
        trainable(other)


def test_every_operator_of_the_table_is_one_of_onnx() -> None:
    unknown = [kind for kind in operators.FORMS if "." not in kind and not onnx.defs.has(kind)]
    assert not unknown
