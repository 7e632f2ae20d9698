"""Fuse and compact: the numbers stay, the graph shrinks, and nothing outside is touched."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from farthing.errors import UnsupportedError
from farthing.files import file_digest
from farthing.forge import graph
from farthing.forge.fuse import Compact, Fuse
from farthing.forge.quantize.dynamic import DynamicInt8
from farthing.forge.quantize.equalize import Equalize
from farthing.forge.quantize.float16 import Float16
from farthing.forge.quantize.static import StaticInt8
from farthing.model import Manifest, Model, TensorSpec
from farthing.recipe import PassSection
from farthing.target import Target
from farthing.task import Task

VNNI = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))
ALL_PASSES = [Fuse(), Compact(), StaticInt8(), DynamicInt8(), Float16(), Equalize(clips=True)]


def count(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in graph.load(model.file).graph.node)


def answers(model: Model, x: NDArray[Any]) -> NDArray[Any]:
    return graph.run(model.file.read_bytes(), {"image": x})["logits"]


def tree(directory: Path) -> dict[str, str]:
    return {str(path): file_digest(path) for path in directory.rglob("*") if path.is_file()}


def test_batch_normalization_goes_into_the_convolutions(cnn: Model, digits: Any, digits_task: Task) -> None:
    fused = Fuse()(cnn, VNNI, digits_task)
    assert count(cnn)["BatchNormalization"] == 3
    assert count(fused) == {"Conv": 3, "Relu": 3, "MaxPool": 2, "Flatten": 1, "Gemm": 1}
    np.testing.assert_allclose(answers(fused, digits[0][:200]), answers(cnn, digits[0][:200]), atol=1e-4)


def test_constants_are_folded(digits_task: Task, digits: Any) -> None:
    """Weights computed in the graph, as exporters write them, become weights; a node that does nothing goes."""
    weights = np.random.default_rng(0).normal(size=(10, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("Mul", ["wt", "two"], ["w2"]),
        helper.make_node("Identity", ["image"], ["same"]),
        helper.make_node("Reshape", ["same", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w2"], ["logits"]),
    ]
    extra = {"w": weights, "two": np.float32(2.0), "shape": np.array([-1, 64])}
    model = digits_model(nodes, extra)
    fused = Fuse()(model, VNNI, digits_task)
    assert count(fused) == {"Reshape": 1, "MatMul": 1}
    np.testing.assert_allclose(answers(fused, digits[0][:9]), answers(model, digits[0][:9]), atol=1e-4)


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_an_old_opset_is_brought_to_one_that_int8_can_use(
    opset: int, cnn_net: Any, make_model: Any, digits: Any, digits_task: Task
) -> None:
    model = make_model(cnn_net, opset=opset)
    with pytest.raises(UnsupportedError, match=f"opset {opset}, int8 needs 13"):
        StaticInt8()(model, VNNI, digits_task)
    fused = Fuse()(model, VNNI, digits_task)
    assert graph.load(fused.file).opset_import[0].version == 13
    np.testing.assert_allclose(answers(fused, digits[0][:50]), answers(model, digits[0][:50]), atol=1e-4)
    assert count(StaticInt8()(fused, VNNI, digits_task))["QuantizeLinear"] > 3


def test_what_the_runtime_cannot_load_is_not_fused(digits_task: Task) -> None:
    node = helper.make_node("Foo", ["image"], ["logits"], domain="com.microsoft")
    with pytest.raises(UnsupportedError, match=r"model\.onnx cannot be fused"):
        Fuse()(digits_model([node]), VNNI, digits_task)


@pytest.mark.parametrize("source", ["cnn", "mlp"])
def test_compact_is_exact_and_keeps_inputs_and_outputs(
    source: str, request: pytest.FixtureRequest, digits: Any, digits_task: Task
) -> None:
    model = Fuse()(request.getfixturevalue(source), VNNI, digits_task)
    small = Compact()(model, VNNI, digits_task)
    assert small.size_bytes < model.size_bytes - 300
    assert small.manifest.inputs == model.manifest.inputs
    assert [value.name for value in graph.load(small.file).graph.input] == ["image"]
    assert [value.name for value in graph.load(small.file).graph.output] == ["logits"]
    assert np.array_equal(answers(small, digits[0][:200]), answers(model, digits[0][:200]))


def test_compact_halves_a_small_quantized_net(cnn: Model, digits: Any, digits_task: Task) -> None:
    quantized = StaticInt8()(Fuse()(cnn, VNNI, digits_task), VNNI, digits_task)
    small = Compact()(quantized, VNNI, digits_task)
    assert small.size_bytes < 0.8 * quantized.size_bytes
    assert np.array_equal(answers(small, digits[0][:200]), answers(quantized, digits[0][:200]))
    assert np.array_equal(answers(Compact()(small, VNNI, digits_task), digits[0]), answers(small, digits[0]))


def digits_model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Any] | None = None,
    inputs: tuple[str, ...] = (),
    shape: tuple[int, ...] = (10,),
    **more: Any,
) -> Model:
    """A model of digits out of hand-made nodes; ``inputs`` are weights that are listed as inputs too."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    listed = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in tensors
        if tensor.name in inputs
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", *shape])
    proto = helper.make_model(
        helper.make_graph(nodes, "net", [image, *listed], [logits], tensors, **more),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    manifest = Manifest(
        name="net",
        format="onnx",
        inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8), batch_axis=0),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", *shape), batch_axis=0),),
    )
    return Model.create(manifest, {"model.onnx": proto.SerializeToString()})


def flat(name: str = "flat") -> onnx.NodeProto:
    return helper.make_node("Flatten", ["image"], [name], doc_string="a long remark " * 20, name="n" * 200)


def test_names_inside_branches_are_shortened_and_still_found(digits_task: Task, digits: Any) -> None:
    """An If whose branches use outer weights, reuse one another's names, and hold an operator of Microsoft's."""
    weights = np.random.default_rng(1).normal(size=(64, 10)).astype(np.float32)
    float_out = helper.make_tensor_value_info("a_long_result_name", TensorProto.FLOAT, None)
    low = helper.make_graph(
        [helper.make_node("MatMul", ["flattened_picture", "same_weights"], ["a_long_result_name"])],
        "then",
        [],
        [float_out],
    )
    high = helper.make_graph(
        [
            helper.make_node("MatMul", ["flattened_picture", "dense_weights"], ["inner_product"]),
            helper.make_node("Gelu", ["inner_product"], ["a_long_result_name"], domain="com.microsoft"),
        ],
        "else",
        [],
        [float_out],
    )
    nodes = [
        flat("flattened_picture"),
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "threshold"], ["is_bright"]),
        helper.make_node("If", ["is_bright"], ["logits"], then_branch=low, else_branch=high),
    ]
    model = digits_model(
        nodes, {"dense_weights": weights, "same_weights": weights, "threshold": np.float32(0.3)}
    )
    small = Compact()(model, VNNI, digits_task)
    proto = graph.load(small.file)
    assert len(proto.graph.initializer) == 2, "equal weights are stored once, for inner graphs too"
    names = {name for node in graph.nodes(proto.graph) for name in (*node.input, *node.output)}
    assert {name for name in names if len(name) > 1} == {"image", "logits"}
    assert small.size_bytes < model.size_bytes / 1.5
    for x in (digits[0][:3] * 0, digits[0][:3] * 0 + 1, digits[0][3:4]):
        assert np.array_equal(answers(small, x), answers(model, x))


def test_an_inner_name_like_an_outer_weight_is_not_mixed_up(digits_task: Task, digits: Any) -> None:
    """A Loop body that defines "twin", a name the outer graph gives to a duplicate weight."""
    w = np.eye(10, dtype=np.float32)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["x", "twin"], ["x_next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_next", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(np.float32([[5.0]]), "twin")],
    )
    nodes = [
        flat(),
        helper.make_node("MatMul", ["flat", "w64"], ["small"]),
        helper.make_node("Loop", ["three", "", "small"], ["looped"], body=body),
        helper.make_node("MatMul", ["looped", "eye"], ["first"]),
        helper.make_node("MatMul", ["first", "eye2"], ["logits"]),
    ]
    weights = {"w64": np.ones((64, 10), np.float32), "three": np.int64(3), "eye": w, "eye2": w}
    model = digits_model(nodes, weights)
    small = Compact()(model, VNNI, digits_task)
    x = digits[0][:4]
    np.testing.assert_allclose(answers(model, x)[0, 0], x[0].sum() + 15, rtol=1e-5)
    assert np.array_equal(answers(small, x), answers(model, x))


def test_weights_listed_as_inputs_can_still_be_given(digits_task: Task, digits: Any) -> None:
    """Old exporters list weights as inputs, which a caller may override: such a one is neither merged nor renamed."""
    w = np.random.default_rng(2).normal(size=(64, 10)).astype(np.float32)
    nodes = [
        flat(),
        helper.make_node("MatMul", ["flat", "kept"], ["one"]),
        helper.make_node("MatMul", ["flat", "given"], ["two"]),
        helper.make_node("Sub", ["one", "two"], ["logits"]),
    ]
    model = digits_model(nodes, {"kept": w, "given": w}, inputs=("given",))
    small = Compact()(model, VNNI, digits_task)
    assert answers(small, digits[0][:5]).max() == 0
    feeds = {"image": digits[0][:5], "given": np.zeros_like(w)}
    found = [graph.run(m.file.read_bytes(), feeds)["logits"] for m in (model, small)]
    assert np.abs(found[0]).max() > 1
    assert np.array_equal(*found)


def test_short_names_make_way_for_inputs_and_outputs_of_one_letter(digits_task: Task) -> None:
    image = helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 4])
    result = helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 4])
    weights = [numpy_helper.from_array(np.full(4, k, np.float32), f"c{k}") for k in range(3)]
    nodes = [
        helper.make_node("Add", ["a", "c0"], ["s0"]),
        helper.make_node("Mul", ["s0", "c1"], ["s1"]),
        helper.make_node("Add", ["s1", "c2"], ["b"]),
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [image], [result], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    spec = {"dtype": "float32", "shape": ("n", 4), "batch_axis": 0}
    manifest = Manifest(
        name="net",
        format="onnx",
        inputs=(TensorSpec(name="a", **spec),),
        outputs=(TensorSpec(name="b", **spec),),
    )
    small = Compact()(Model.create(manifest, {"m": proto.SerializeToString()}), VNNI, digits_task)
    assert graph.run(small.file.read_bytes(), {"a": np.ones((1, 4), np.float32)})["b"].tolist() == [[3.0] * 4]


@settings(max_examples=25)
@given(
    dtypes=st.lists(
        st.sampled_from(["float32", "float16", "int8", "uint8", "int32", "int64", "bool"]), max_size=5
    ),
    value=st.integers(-128, 127),
)
def test_constants_of_every_type_survive(dtypes: list[str], value: int) -> None:
    """Equal numbers of different types or shapes are different constants; typed and raw storage are the same."""
    tensors: list[Any] = []
    for i, dtype in enumerate(dtypes):
        for shape in ((2,), (2, 1)):
            array = np.full(shape, value).astype(dtype)
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            tensors.append(helper.make_tensor(f"t{i}{len(shape)}", kind, shape, array.ravel().tolist()))
            tensors.append(numpy_helper.from_array(array, f"r{i}{len(shape)}"))
    used = [helper.make_node("Cast", [tensor.name], [f"{tensor.name}_f"], to=1) for tensor in tensors]
    rows = [
        helper.make_node("Reshape", [f"{tensor.name}_f", "two"], [f"{tensor.name}_o"]) for tensor in tensors
    ]
    names = [f"{tensor.name}_o" for tensor in tensors] or ["x2"]
    nodes = [
        helper.make_node("Identity", ["x"], ["x2"]),
        *used,
        *rows,
        helper.make_node("Concat", names, ["y"], axis=0),
    ]
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", 1, [2])],
            [helper.make_tensor_value_info("y", 1, ["n"])],
            [*tensors, numpy_helper.from_array(np.array([2]), "two")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    manifest = Manifest(
        name="net",
        format="onnx",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(2,)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("n",)),),
    )
    model = Model.create(manifest, {"m": proto.SerializeToString()})
    small = Compact()(model, VNNI, None)  # type: ignore[arg-type]
    assert len(graph.load(small.file).graph.initializer) == 2 * len(set(dtypes)) + 1
    x = {"x": np.float32([1, 2])}
    found = [graph.run(m.file.read_bytes(), x)["y"] for m in (model, small)]
    assert np.array_equal(*found)


@pytest.mark.parametrize("made", ALL_PASSES, ids=lambda made: type(made).__name__)
def test_a_pass_leaves_its_input_alone_and_repeats_itself(
    made: PassSection, cnn: Model, mlp: Model, digits_task: Task
) -> None:
    model = mlp if isinstance(made, DynamicInt8 | Equalize) else cnn
    before = tree(model.path)
    first, second = made(model, VNNI, digits_task), made(model, VNNI, digits_task)
    assert tree(model.path) == before
    assert first.digest == second.digest
    assert first.path != model.path


IN_ANOTHER_PROCESS = """
import sys
import numpy as np
from farthing.forge.apply import apply
from farthing.forge.cache import Cache
from farthing.model import Model
from farthing.recipe import Step
from farthing.target import Target
from farthing.task import Split, Task
from pathlib import Path
data = np.load(sys.argv[2])
task = Task("digits", {"calibration": Split({"": data["x"]}, data["y"])}, "top1")
options = {"quantize.static.v1": {"calibrator": sys.argv[4], "correct_biases": sys.argv[4] == "mse"}}
steps = [Step(use=name, options=options.get(name, {})) for name in sys.argv[5:]]
target = Target(name="vnni", arch="x86_64", isa=("avx512_vnni",))
print(apply(steps, Model.open(sys.argv[1]), target, task, Cache(Path(sys.argv[3])))[0].digest)
"""


CHAINS = {
    "compact": ("entropy", "graph.fuse.v1", "quantize.static.v1", "graph.compact.v1"),
    "openvino": ("mse", "graph.fuse.v1", "quantize.equalize.v1", "quantize.static.v1", "export.openvino.v1"),
    "nncf": ("", "graph.fuse.v1", "quantize.nncf.v1"),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_two_processes_make_the_same_artefact(chain: str, tmp_path: Path, cnn: Model, digits: Any) -> None:
    """Whatever differs between processes (hash seeds, temporary names, times) does not get into the file."""
    if chain != "compact":
        pytest.importorskip(chain)
    np.savez(tmp_path / "d.npz", x=digits[0][:64], y=digits[1][:64])
    found = set()
    for seed in ("0", "1"):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                IN_ANOTHER_PROCESS,
                cnn.path,
                tmp_path / "d.npz",
                tmp_path / f"cache{seed}",
                *CHAINS[chain],
            ],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1
