"""Messages to tensors and back: every type, raw and typed, and all that can be wrong with them."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from mirror import TYPES, sample

pytest.importorskip("google.protobuf")

from farthing.device.serving.server.grpc.messages import messages
from farthing.device.serving.server.grpc.tensors import _FIELDS, answered, plain, understood
from farthing.device.serving.server.protocol import Inference, Wanted
from farthing.engines.openinference import DATATYPES, DTYPES, to_bytes
from farthing.errors import ProtocolError


def request(**fields: Any) -> Any:
    return messages()["ModelInferRequest"](**fields)


def tensor(datatype: str, shape: Any, field: str = "", elements: Any = (), name: str = "x") -> dict[str, Any]:
    said: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
    return {**said, "contents": {field: list(elements)}} if field else said


def typed(dtype: str, array: Any) -> dict[str, Any]:
    elements = array.ravel().tolist()
    field = _FIELDS[DATATYPES[dtype]]
    return tensor(
        DATATYPES[dtype],
        array.shape,
        field,
        [one.encode() for one in elements] if dtype == "str" else elements,
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("raw", [True, False])
def test_every_type_comes_in(dtype: str, raw: bool) -> None:
    array = sample(dtype)
    if raw:
        asked = request(inputs=[tensor(DATATYPES[dtype], array.shape)], raw_input_contents=[to_bytes(array)])
    elif dtype == "float16":
        with pytest.raises(ProtocolError, match="FP16 comes in raw_input_contents only"):
            understood(request(inputs=[tensor("FP16", [0])]))
        return
    else:
        asked = request(inputs=[typed(dtype, array)])
    found = understood(asked).feeds["x"]
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


@given(data=st.data(), dtype=st.sampled_from([one for one in TYPES if one not in {"str", "float16"}]))
def test_numbers_go_there_and_back(data: st.DataObject, dtype: str) -> None:
    shape = data.draw(arrays.array_shapes(max_dims=4, max_side=4))
    array = data.draw(arrays.arrays(dtype, shape))
    there = understood(request(inputs=[typed(dtype, array)]))
    back = messages()["ModelInferResponse"].FromString(answered(messages(), "net", "1", there, there.feeds))
    assert (back.outputs[0].datatype, tuple(back.outputs[0].shape)) == (DATATYPES[dtype], shape)
    found = np.frombuffer(back.raw_output_contents[0], dtype).reshape(shape)
    np.testing.assert_array_equal(found, array)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(body: bytes) -> None:
    from google.protobuf.message import DecodeError

    with contextlib.suppress(DecodeError, ProtocolError):
        understood(messages()["ModelInferRequest"].FromString(body))


@given(
    datatype=st.sampled_from([*DTYPES, "FP31", ""]),
    shape=st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 5), max_size=18),
    raw=st.none() | st.binary(max_size=64),
    field=st.sampled_from(["", *set(_FIELDS.values())]),
    count=st.integers(0, 5),
)
def test_whatever_is_said_of_a_tensor_is_held_against_what_comes(
    datatype: str, shape: list[int], raw: bytes | None, field: str, count: int
) -> None:
    elements: list[Any] = [b"\xff"] * count if field == "bytes_contents" else [1] * count
    one = tensor(datatype, shape, field, elements)
    try:
        asked = understood(request(inputs=[one], raw_input_contents=[] if raw is None else [raw]))
    except ProtocolError:
        return
    assert list(asked.feeds["x"].shape) == shape
    if raw is None:
        assert asked.feeds["x"].size == (count if field else 0)
    else:
        assert to_bytes(asked.feeds["x"]) == raw


X = tensor("FP32", [2], "fp32_contents", [1, 2])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"inputs": [X, X]}, "two tensors have the same name"),
        ({"inputs": [X], "raw_input_contents": [bytes(8)]}, "'x' comes both raw and in contents"),
        (
            {"inputs": [tensor("FP32", [2])], "raw_input_contents": [bytes(8)] * 2},
            "holds 2 tensors, but there are 1",
        ),
        ({"inputs": [tensor("FP32", [2])], "raw_input_contents": [bytes(7)]}, "has 8 bytes, not 7"),
        ({"inputs": [tensor("FP32", [2])]}, "fp32_contents has 0 elements, but its shape is [2]"),
        (
            {"inputs": [tensor("FP32", [2], "fp64_contents", [1, 2])]},
            "FP32 belongs in fp32_contents, not fp64",
        ),
        ({"inputs": [tensor("INT8", [1], "int_contents", [128])]}, "out of the range of INT8"),
        ({"inputs": [tensor("UINT8", [1], "uint_contents", [256])]}, "out of the range of UINT8"),
        ({"inputs": [tensor("FP32", [-1])]}, "input 'x'"),
        ({"inputs": [tensor("FP32", [1] * 17)]}, "input 'x'"),
        ({"inputs": [tensor("FP32", [1], name="x" * 1025)]}, "input 'xxx"),
        ({"inputs": [tensor("FP31", [1])]}, "no datatype is called 'FP31'"),
        ({"inputs": [tensor("BYTES", [1], "bytes_contents", [b"\xff"])]}, "text 0 is not UTF-8"),
        ({"inputs": [tensor("FP32", [1], name=str(i)) for i in range(257)]}, "at most 256"),
        ({"inputs": [], "id": "i" * 1025}, "the id has more than 1024"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        understood(request(**fields))
    assert said in str(caught.value)


def parameters(**values: Any) -> dict[str, Any]:
    kind = messages()["InferParameter"]
    fields = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return {name: kind(**{fields[type(value)]: value}) for name, value in values.items()}


def test_parameters() -> None:
    asked = understood(
        request(inputs=[X], parameters=parameters(priority=2, timeout=5_000_000, note="n", share=0.5))
    )
    assert (asked.priority, asked.timeout, asked.binary) == (2, 5.0, True)
    for name, value in (("timeout", -1), ("timeout", "soon"), ("sequence_id", 7), ("sequence_start", True)):
        with pytest.raises(ProtocolError, match=name):
            understood(request(inputs=[X], parameters=parameters(**{name: value})))
    with pytest.raises(ProtocolError, match="'none' has no value"):
        plain({"none": messages()["InferParameter"]()})
    shared = {**X, "parameters": parameters(shared_memory_region="r")}
    with pytest.raises(ProtocolError, match="shared memory is not offered"):
        understood(request(inputs=[shared]))
    for wanted in ({"classification": 2}, {"shared_memory_region": "r"}):
        with pytest.raises(ProtocolError, match="not offered"):
            understood(request(inputs=[X], outputs=[{"name": "y", "parameters": parameters(**wanted)}]))


def test_answers() -> None:
    outputs = {"a": np.ones((1, 2), np.float16), "b": np.array(["ü", ""], object)}
    asked = Inference({}, "seven", [Wanted("b"), Wanted("a")], binary=True)
    said = {"source": "net", "confidence": 0.5}
    found = messages()["ModelInferResponse"].FromString(
        answered(messages(), "net", "2", asked, outputs, said)
    )
    assert (found.model_name, found.model_version, found.id) == ("net", "2", "seven")
    assert [(one.name, one.datatype) for one in found.outputs] == [("b", "BYTES"), ("a", "FP16")]
    assert list(found.raw_output_contents) == [b"\2\0\0\0\xc3\xbc\0\0\0\0", outputs["a"].tobytes()]
    assert found.parameters["source"].string_param == "net"
    assert found.parameters["confidence"].double_param == 0.5
    with pytest.raises(ProtocolError, match="no output 'c'"):
        answered(messages(), "net", "2", Inference({}, outputs=[Wanted("c")]), outputs)
    with pytest.raises(ProtocolError, match="complex64"):
        answered(messages(), "net", "2", Inference({}), {"c": np.ones(1, np.complex64)})
