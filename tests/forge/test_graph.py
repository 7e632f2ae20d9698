"""Loading ONNX files: what is refused and how, and what comes out the same."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from farthing.errors import EngineError, FarthingError, ModelError, UnsupportedError
from farthing.forge import graph


def affine(*nodes: onnx.NodeProto, shape: Sequence[Any] = ("batch", 4), opset: int = 17) -> onnx.ModelProto:
    """y = x @ w, w of shape (4, 3), and whatever further nodes are given."""
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], name="product"), *nodes],
            "affine",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
            [numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )


def saved(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def external(directory: Path, location: str) -> Path:
    """The model with its weights in ``location``, which is not written."""
    model = affine()
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "48"}.items():
        tensor.external_data.add(key=key, value=value)
    tensor.ClearField("raw_data")
    return saved(directory / "model.onnx", model)


def test_what_is_loaded_computes_as_it_did(tmp_path: Path) -> None:
    model = graph.load(saved(tmp_path / "anything", affine()))
    x = np.eye(4, dtype=np.float32)[:2]
    assert graph.run(model, {"x": x})["y"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (pickle.dumps({"weights": 1}), "never unpickled"),
        (b"PK\x03\x04 and more", "never unpickled"),
        (b"this is a text about models", "not ONNX"),
        (affine().SerializeToString()[:-40], "cut short"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "cut short"),
    ],
    ids=["empty", "pickle", "zip", "text", "truncated", "no graph"],
)
def test_files_that_are_no_model_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        graph.load(path)
    assert str(path) in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx"):
        graph.load(tmp_path / "none.onnx")


@given(cut=st.floats(0, 0.999), flip=st.integers(0, 200), value=st.integers(0, 255))
def test_damage_never_escapes_the_error_tree(cut: float, flip: int, value: int) -> None:
    data = bytearray(affine().SerializeToString())
    data[flip % len(data)] = value
    for damaged in (bytes(data), bytes(data[: int(len(data) * cut)])):
        try:
            model = graph.parse(damaged, "damaged")
            graph.check(model, "damaged")
            graph.tensor_specs(model)
        except FarthingError:
            pass


def test_weights_in_another_file_are_loaded(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(np.arange(12, dtype=np.float32).tobytes())
    model = graph.load(path)
    assert graph.save_bytes(model) == graph.save_bytes(graph.load(path))
    assert graph.run(model, {"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[18, 22, 26]]


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'weights\.bin', which is missing"):
        graph.load(external(tmp_path, "weights.bin"))


def test_weights_that_are_cut_short(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(b"\0" * 20)
    with pytest.raises(ModelError, match="cut short"):
        graph.load(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "", "."])
def test_weights_outside_the_directory_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 48)
    (tmp_path / "inner").mkdir()
    with pytest.raises(ModelError, match="refused"):
        graph.load(external(tmp_path / "inner", location))


def test_weights_behind_a_link_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 48)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "weights.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="link"):
        graph.load(external(tmp_path / "inner", "weights.bin"))


def test_newer_opset_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="opset 999"):
        graph.load(saved(tmp_path / "m.onnx", affine(opset=999)))


@pytest.mark.parametrize("domain", ["", "com.example"])
def test_unknown_operators_are_named(tmp_path: Path, domain: str) -> None:
    odd = helper.make_node("Frobnicate", ["x"], ["z"], name="odd", domain=domain)
    model = affine(odd)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(UnsupportedError, match=r"Frobnicate.*'odd'"):
        graph.load(saved(tmp_path / "m.onnx", model))


def test_opset_newer_than_the_runtime_knows() -> None:
    with pytest.raises(UnsupportedError, match=r"ONNX Runtime .* cannot load"):
        graph.Session(affine(opset=onnx.defs.onnx_opset_version() + 1))


def test_an_opset_too_old_for_the_runtime_is_said_with_what_to_do() -> None:
    old = helper.make_node("Relu", ["x"], ["y"], consumed_inputs=[0])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    made = helper.make_graph([old], "g", values[:1], values[1:])
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 1)], ir_version=3)
    with pytest.raises(UnsupportedError, match=r"has opset 1, of which .*: export it with opset 7 or above"):
        graph.Session(proto)


def test_broken_rules_are_model_errors(tmp_path: Path) -> None:
    model = affine(helper.make_node("Relu", ["nowhere"], ["z"]))
    with pytest.raises(ModelError, match="rules of ONNX"):
        graph.load(saved(tmp_path / "m.onnx", model))


def test_free_axes_are_named_and_weights_are_no_inputs() -> None:
    model = affine(shape=(None, 4))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    inputs, outputs = graph.tensor_specs(model)
    assert [(s.name, s.dtype, s.shape) for s in inputs] == [("x", "float32", ("free_0", 4))]
    assert [(s.name, s.dtype, s.shape) for s in outputs] == [("y", "float32", ("batch", 3))]


def test_an_output_without_a_shape_gets_the_inferred_one(tmp_path: Path) -> None:
    model = affine()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    loaded = graph.load(saved(tmp_path / "m.onnx", model))
    assert graph.tensor_specs(loaded)[1][0].shape == ("batch", 3)


def test_inner_tensors_can_be_asked_for() -> None:
    model = affine(helper.make_node("Relu", ["y"], ["z"]))
    found = graph.run(model, {"x": np.ones((1, 4), np.float32)}, extra=["z"], optimise=False)
    assert sorted(found) == ["y", "z"]


def test_wrong_feeds_are_engine_errors() -> None:
    with pytest.raises(EngineError, match="failed to run"):
        graph.run(affine(), {"x": np.ones((1, 5), np.float32)})
