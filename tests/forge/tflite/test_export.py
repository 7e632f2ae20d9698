# ruff: noqa: E501 - one case a line reads best
"""The pass: what becomes of the manifest, what the file holds, and what is refused by which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from farthing.errors import FarthingError, ModelError, NotInstalled, UnsupportedError
from farthing.forge import graph
from farthing.forge.tflite import export as module
from farthing.model import Model, TensorSpec, checked

Array = NDArray[Any]


def w(*shape: int, seed: int = 5) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(0.2)


def op(kind: str, *inputs: str, y: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), y.split(), name=f"the {kind} to {y}", **attributes)


def classifier(lab: Any) -> onnx.ModelProto:
    nodes = [
        op("Conv", "image", "w", "b", y="a", pads=[1, 1, 1, 1]),
        op("Relu", "a", y="r"),
        op("MaxPool", "r", y="p", kernel_shape=[2, 2], strides=[2, 2]),
        op("Flatten", "p", y="f"),
        op("Gemm", "f", "v", "c", y="logits", transB=1),
    ]
    constants = {"w": w(8, 3, 3, 3), "b": w(8), "v": w(10, 8 * 16), "c": w(10)}
    proto: onnx.ModelProto = lab.network(nodes, {"image": ("n", 3, 8, 8)}, constants, ["logits"])
    return proto


def opened(made: Model) -> Any:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    return schema.ModelT.InitFromPackedBuf(made.file.read_bytes(), 0)


# The manifest


def test_a_picture_goes_in_channels_last(lab: Any) -> None:
    source = lab.model(classifier(lab), picture=True, labels=tuple("0123456789"), decode="logits")
    made = lab.export(source)
    assert made.manifest == checked(
        source.manifest,
        format="tflite",
        files=made.manifest.files,
        inputs=(
            TensorSpec(name="image", dtype="float32", shape=("n", 8, 8, 3), batch_axis=0, layout="NHWC"),
        ),
    )
    assert list(made.manifest.files) == ["model.tflite"]
    assert lab.codes(made) == {"CONV_2D": 1, "MAX_POOL_2D": 1, "FULLY_CONNECTED": 1}


def test_pictures_fed_by_the_manifest_give_the_same_answers(lab: Any) -> None:
    from farthing.ops.image import prepare_batch

    source = lab.model(classifier(lab), picture=True)
    made = lab.export(source)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    fed = [prepare_batch(pictures, m.manifest.preprocess, m.manifest.inputs[0]) for m in (source, made)]
    want = graph.run(graph.load(source.file), {"image": fed[0]})["logits"]
    np.testing.assert_allclose(lab.run(made, {"image": fed[1]})["logits"], want, rtol=1e-4, atol=1e-3)


def test_other_inputs_and_all_outputs_keep_their_axes(lab: Any) -> None:
    proto = lab.network([op("Conv", "x", "w")], {"x": ("n", 3, 8, 8)}, {"w": w(4, 3, 1, 1)})
    made = lab.export(lab.model(proto))
    assert made.manifest.inputs[0].shape == ("n", 3, 8, 8)
    assert lab.check(proto) == {"TRANSPOSE": 2, "CONV_2D": 1}


def test_a_float_model_says_how_its_weights_are_stored(lab: Any) -> None:
    source = lab.model(classifier(lab), picture=True)
    assert lab.export(source).manifest.quantization is None
    half, dynamic = (lab.export(source, weights=kind).manifest.quantization for kind in ("float16", "int8"))
    assert (half.scheme, half.weights) == ("float16", "float16")
    assert (dynamic.scheme, dynamic.weights, dynamic.per_channel) == ("dynamic", "int8", True)


def test_the_same_model_gives_the_same_bytes_and_stays_as_it_is(lab: Any) -> None:
    source = lab.model(classifier(lab), picture=True)
    first, second = lab.export(source), lab.export(source)
    assert first.digest == second.digest
    source.verify()


def test_several_inputs_and_outputs_keep_their_names_and_order(lab: Any) -> None:
    nodes = [op("Add", "b", "a", y="sum"), op("Mul", "a", "b", y="product")]
    proto = lab.network(nodes, {"b": ("n", 4), "a": ("n", 4)}, outputs=["product", "sum"])
    lab.check(proto)
    file = opened(lab.export(lab.model(proto)))
    signature = file.signatureDefs[0]
    assert signature.signatureKey == b"serving_default"
    assert [entry.name for entry in signature.inputs] == [b"b", b"a"]
    assert [entry.name for entry in signature.outputs] == [b"product", b"sum"]


@pytest.mark.parametrize("outputs", [["y", "z"], ["y"]])
def test_an_input_or_one_tensor_may_be_output_twice(lab: Any, outputs: list[str]) -> None:
    nodes = [op("Identity", "x", y="y"), op("Identity", "x", y="z")][: len(outputs)]
    lab.check(lab.network(nodes, {"x": ("n", 4)}, outputs=outputs))


def test_whole_numbers_in_and_out(lab: Any) -> None:
    one = lab.network([op("Gather", "t", "x")], {"x": lab.input(("n", 3), "int64")}, {"t": w(5, 4)})
    lab.check(one)
    lab.check(lab.network([op("ArgMax", "x", axis=1)], {"x": ("n", 3)}))


# The file


def test_equal_weights_are_stored_once_and_at_aligned_places(lab: Any) -> None:
    nodes = [op("Conv", "x", "w", y="a"), op("Relu", "a", y="r"), op("Conv", "r", "v")]
    same = w(16, 16, 3, 3)
    proto = lab.network(nodes, {"x": ("n", 16, 9, 9)}, {"w": same, "v": same.copy()})
    made = lab.export(lab.model(proto))
    data = made.file.read_bytes()
    stored = np.ascontiguousarray(same.transpose(0, 2, 3, 1)).tobytes()
    assert data.count(stored) == 1
    assert data.index(stored) % 16 == 0
    assert len(data) < len(stored) + 2500
    assert all(buffer.offset == 0 == buffer.size for buffer in opened(made).buffers), (
        "inline, as TFLM wants them"
    )


def test_float16_weights_halve_the_file_and_int8_quarter_it(lab: Any) -> None:
    nodes = [op("Conv", "x", "w", y="a", pads=[1, 1, 1, 1]), op("Flatten", "a", y="f"), op("Gemm", "f", "v")]
    constants = {"w": w(32, 16, 3, 3), "v": w(32 * 64, 20)}
    proto = lab.network(nodes, {"x": ("n", 16, 8, 8)}, constants)
    whole = lab.export(lab.model(proto)).size_bytes
    for kind, share, tolerance in (("float16", 0.51, 2e-3), ("int8", 0.27, 0.05)):
        assert lab.export(lab.model(proto), weights=kind).size_bytes < share * whole
        lab.check(proto, tolerance=tolerance, weights=kind)


def test_weights_that_float16_cannot_hold_stay_float32(lab: Any) -> None:
    weights = w(64, 64)
    weights[3, 3] = 1e6
    proto = lab.network([op("MatMul", "x", "w")], {"x": ("n", 64)}, {"w": weights})
    assert lab.check(proto, weights="float16") == {"FULLY_CONNECTED": 1}


# Shapes


def test_shapes_that_the_graph_works_out_itself(lab: Any) -> None:
    nodes = [
        op("Shape", "x", y="s"),
        op("Gather", "s", "zero", y="n0"),
        op("Unsqueeze", "n0", "axes", y="n1"),
        op("Concat", "n1", "rest", y="target", axis=0),
        op("Reshape", "x", "target", y="f"),
        op("MatMul", "f", "w"),
    ]
    constants = {"zero": np.asarray(0), "axes": np.asarray([0]), "rest": np.asarray([-1]), "w": w(24, 5)}
    assert lab.check(lab.network(nodes, {"x": ("n", 4, 6)}, constants)) == {"FULLY_CONNECTED": 1}


def test_a_batch_that_becomes_part_of_another_axis(lab: Any) -> None:
    nodes = [op("Reshape", "x", "a", y="r"), op("Relu", "r", y="s"), op("Reshape", "s", "b")]
    constants = {"a": np.asarray([-1, 6]), "b": np.asarray([-1, 4, 6])}
    lab.check(lab.network(nodes, {"x": ("n", 4, 6)}, constants))


def test_a_fixed_batch_stays_fixed(lab: Any) -> None:
    made = lab.export(lab.model(lab.network([op("Relu", "x")], {"x": (2, 5)})))
    tensors = opened(made).subgraphs[0].tensors
    assert all(tensor.shapeSignature is None for tensor in tensors)


def test_height_and_width_may_be_free(lab: Any) -> None:
    nodes = [
        op("Conv", "x", "w", y="a", pads=[1, 1, 1, 1]),
        op("Conv", "a", "v", y="b", pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    nodes += [op("Relu", "b", y="c"), op("ConvTranspose", "c", "u", strides=[2, 2])]
    constants = {"w": w(4, 3, 3, 3), "v": w(4, 4, 3, 3), "u": w(4, 2, 2, 2)}
    proto = lab.network(nodes, {"x": (1, 3, "h", "w")}, constants)
    source = lab.model(proto)
    made = lab.export(source)
    for height, width in ((64, 64), (10, 22)):
        feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, height, width)).astype(np.float32)}
        want = graph.run(proto, feeds)["y"]
        np.testing.assert_allclose(lab.run(made, feeds)["y"], want, atol=1e-5)


# Refusals: the operator, its node, and why

REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str]] = {
    "unknown": ([op("Erf", "x")], {}, "Erf.*the Erf.*GELU"),
    "no writer": ([op("Einsum", "x", "x", equation="nchw,nchw->n")], {}, "Einsum.*the Einsum"),
    "3-D window": ([op("Unsqueeze", "x", "u", y="a"), op("Conv", "a", "w")], {"u": np.asarray([2]), "w": w(2, 4, 1, 1, 1)}, "Conv.*the Conv"),
    "cubic": ([op("Resize", "x", "", "s", mode="cubic")], {"s": np.float32([1, 1, 2, 2])}, "Resize.*cubic"),
    "nearest ceil": ([op("Resize", "x", "", "s", mode="nearest", nearest_mode="ceil")], {"s": np.float32([1, 1, 2, 2])}, "Resize.*other pixels"),
    "linear downscale by 1.7": ([op("Resize", "x", "", "s", mode="linear", coordinate_transformation_mode="asymmetric")], {"s": np.float32([1, 1, 0.55, 0.55])}, "Resize.*other pixels"),
    "edge": ([op("Pad", "x", "p", mode="edge")], {"p": np.asarray([0, 0, 1, 1, 0, 0, 1, 1])}, "Pad.*edge"),
    "dilated pool": ([op("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 2])], {}, "MaxPool.*dilated"),
    "elu": ([op("Elu", "x", alpha=0.5)], {}, "Elu.*alpha"),
    "argmax last": ([op("ArgMax", "x", axis=1, select_last_index=1)], {}, "ArgMax.*first of equal"),
    "dilated deconv": ([op("ConvTranspose", "x", "w", dilations=[2, 2])], {"w": w(4, 2, 3, 3)}, "ConvTranspose.*dilation"),
    "computed weights": ([op("Conv", "x", "x")], {}, "Conv.*must be a constant"),
    "computed slope": ([op("PRelu", "x", "x")], {}, "PRelu.*must be a constant"),
    "text": ([op("Shape", "x", y="s"), op("Cast", "s", y="t", to=TensorProto.FLOAT), op("Mul", "x", "t")], {}, "Mul.*free axis"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_tflite_cannot_say_is_refused(lab: Any, name: str) -> None:
    nodes, constants, words = REFUSED[name]
    shape = ("n", 4, 9, 4) if name != "computed weights" else (1, 4, 1, 1)
    source = lab.model(lab.network(nodes, {"x": shape}, constants))
    with pytest.raises(UnsupportedError, match=words):
        lab.export(source)


KINDS: dict[str, tuple[str, str, str]] = {
    "sum of bytes": (
        "Add",
        "int8",
        "takes int8 there for quantized numbers",
    ),  # ends the process in LiteRT 2.3
    "comparison of bytes": ("Greater", "uint8", "takes uint8 there for quantized numbers"),
    "product of bytes": (
        "Mul",
        "uint8",
        "takes uint8 there for quantized numbers",
    ),  # wrong numbers in LiteRT
    "power of integers": ("Pow", "int64", "TFLite has none for int64"),
    "sum of short integers": ("Add", "int16", "TFLite has none for int16"),
    "sum of doubles": ("Add", "float64", "TFLite has none for float64"),
}


@pytest.mark.parametrize("name", KINDS)
def test_element_types_that_kernels_lack_are_refused(lab: Any, name: str) -> None:
    kind, dtype, words = KINDS[name]
    nodes = [op(kind, "x", "x")]
    source = lab.model(lab.network(nodes, {"x": lab.input(("n", 4), dtype)}))
    with pytest.raises(UnsupportedError, match=f"{kind}.*the {kind}.*{words}"):
        lab.export(source)


def test_bytes_that_are_only_moved_stay_bytes(lab: Any) -> None:
    nodes = [op("Transpose", "x", y="t", perm=[0, 2, 1]), op("Concat", "t", "t", axis=2)]
    proto = lab.network(nodes, {"x": lab.input((1, 3, 4), "int8")})
    made = lab.export(lab.model(proto))
    feeds = {"x": np.random.default_rng(0).integers(-128, 128, (1, 3, 4), np.int8)}
    np.testing.assert_array_equal(lab.run(made, feeds)["y"], graph.run(proto, feeds)["y"])


def test_an_input_of_a_type_that_tflite_lacks_is_refused(lab: Any) -> None:
    source = lab.model(lab.network([op("Identity", "x")], {"x": lab.input(("n", 4), "float64")}))
    with pytest.raises(UnsupportedError, match="float64 cannot be written as TFLite"):
        lab.export(source)


def test_stored_tensors_of_old_files_are_known(lab: Any) -> None:
    """Files of IR version 3 list their stored tensors among the inputs as well."""
    constants = {"axes": np.asarray([0]), "to": np.asarray([4, 1])}
    nodes = [op("Reshape", "x", "to", y="r"), op("Transpose", "r", y="t"), op("Squeeze", "t", "axes")]
    proto = lab.network(nodes, {"x": (2, 2)}, constants)
    source = lab.model(proto)
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    old = Model.create(source.manifest, {"model.onnx": proto.SerializeToString()})
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 2)).astype(np.float32)}
    found = lab.run(lab.export(old), feeds)["y"]
    assert found.shape == (4,)
    np.testing.assert_array_equal(found, graph.run(proto, feeds)["y"])


def test_a_slope_for_each_sample_is_refused(lab: Any) -> None:
    source = lab.model(lab.network([op("PRelu", "x", "s")], {"x": (3, 4, 5)}, {"s": w(3, 4, 5)}))
    with pytest.raises(UnsupportedError, match=r"PRelu.*from sample to sample"):
        lab.export(source)


def test_a_constant_output_is_refused(lab: Any) -> None:
    nodes = [op("Relu", "x", y="y"), op("Add", "c", "c", y="z")]
    source = lab.model(lab.network(nodes, {"x": ("n", 4)}, {"c": w(3)}, ["y", "z"]))
    with pytest.raises(UnsupportedError, match="constant"):
        lab.export(source)


def test_an_old_opset_is_refused(lab: Any) -> None:
    source = lab.model(lab.network([op("Relu", "x")], {"x": ("n", 4)}, opset=8))
    with pytest.raises(UnsupportedError, match="opset 8 is too old"):
        lab.export(source)


def test_an_inner_graph_is_refused(lab: Any) -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"])], "b", [], [helper.make_tensor_value_info("r", 1, ["n", 4])]
    )
    nodes = [helper.make_node("If", ["c"], ["y"], name="the If", then_branch=body, else_branch=body)]
    proto = lab.network(nodes, {"x": ("n", 4), "c": lab.input((), "bool")})
    with pytest.raises(UnsupportedError, match=r"If.*the If"):
        lab.export(lab.model(proto))


def test_a_constant_made_huge_by_a_few_bytes_is_refused(lab: Any) -> None:
    nodes = [
        op("ConstantOfShape", "s", y="big"),
        op("ReduceSum", "big", y="sum", keepdims=0),
        op("Add", "x", "sum"),
    ]
    source = lab.model(lab.network(nodes, {"x": ("n", 4)}, {"s": np.asarray([1 << 20, 1 << 20])}))
    with pytest.raises(UnsupportedError, match="would hold"):
        lab.export(source)


def test_shapes_that_do_not_fit_are_a_typed_error(lab: Any) -> None:
    proto = lab.network([op("MatMul", "x", "w")], {"x": ("n", 4)}, {"w": w(4, 3)})
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    with pytest.raises(ModelError):
        lab.export(lab.model(proto))


BREAKS: dict[str, Any] = {
    "pads": [1, 1], "kernel_shape": [0, 3], "strides": [0, 0], "dilations": [-1, 1], "group": 0, "auto_pad": "WRONG",
    "axis": 9, "perm": [0, 0], "epsilon": float("nan"), "alpha": float("inf"), "keepdims": 7, "blocksize": 0,
}  # fmt: skip


@given(st.data())
@settings(max_examples=60)
def test_broken_graphs_are_typed_errors_or_whole_files(lab: Any, data: st.DataObject) -> None:
    proto = classifier(lab)
    node = data.draw(st.sampled_from(list(proto.graph.node)))
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(BREAKS)))
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, BREAKS[name])])
    else:
        names = [tensor.name for tensor in proto.graph.initializer]
        node.input[data.draw(st.integers(0, len(node.input) - 1))] = data.draw(
            st.sampled_from(["", *names, "image"])
        )
    source = lab.model(proto, picture=True)
    try:
        made = lab.export(source)
    except FarthingError:
        return
    assert opened(made).subgraphs


def test_another_format_is_refused(lab: Any) -> None:
    source = lab.model(classifier(lab), picture=True)
    made = lab.export(source)
    with pytest.raises(UnsupportedError, match="only ONNX"):
        lab.export(made)


def test_without_litert_the_extra_is_named(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, extra: str) -> Any:
        raise NotInstalled(f"{name} is not installed: pip install 'farthing[{extra}]'")

    source = lab.model(classifier(lab), picture=True)
    monkeypatch.setattr(module.schema, "require", missing)
    with pytest.raises(NotInstalled, match=r"farthing\[litert\]"):
        lab.export(source)
