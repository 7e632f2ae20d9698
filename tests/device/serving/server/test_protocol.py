from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from farthing.device.serving.server import protocol
from farthing.device.serving.server.protocol import Inference, decode, encode, raw_inference
from farthing.engines.openinference import DTYPES, from_bytes, to_bytes
from farthing.errors import ProtocolError
from farthing.model import TensorSpec

NUMBERS = {name: dtype for name, dtype in DTYPES.items() if dtype != "str"}


def body_of(header: object, *tensors: bytes) -> tuple[bytes, int]:
    text = json.dumps(header).encode()
    return b"".join([text, *tensors]), len(text)


def binary(name: str, array: Any, datatype: str, size: int | None = None) -> dict[str, Any]:
    data = to_bytes(array)
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": datatype,
        "parameters": {"binary_data_size": len(data) if size is None else size},
    }


def refused(header: object, *tensors: bytes) -> str:
    body, length = body_of(header, *tensors)
    with pytest.raises(ProtocolError) as caught:
        decode(body, length)
    return str(caught.value)


@st.composite
def tensors(draw: st.DrawFn, datatypes: Any = tuple(DTYPES)) -> tuple[str, Any]:
    datatype = draw(st.sampled_from(datatypes))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    if datatype == "BYTES":
        array = np.empty(shape, object)
        array.ravel()[:] = draw(
            st.lists(st.text(max_size=9), min_size=array.size, max_size=array.size)
        )  # a view: shapes here are contiguous
        return datatype, array
    return datatype, draw(hnp.arrays(DTYPES[datatype], shape))


@given(st.lists(tensors(), min_size=1, max_size=4), st.text(max_size=20))
def test_binary_tensors_arrive_as_they_left(arrays: list[tuple[str, Any]], name: str) -> None:
    header = {
        "id": name,
        "inputs": [binary(f"{name}{i}", array, datatype) for i, (datatype, array) in enumerate(arrays)],
    }
    asked = decode(*body_of(header, *[to_bytes(array) for _, array in arrays]))
    assert asked.id == name
    for i, (_, array) in enumerate(arrays):
        np.testing.assert_array_equal(asked.feeds[f"{name}{i}"], array)
        assert asked.feeds[f"{name}{i}"].dtype == array.dtype
        assert asked.feeds[f"{name}{i}"].flags.aligned


@given(tensors(), st.booleans())
def test_json_tensors_arrive_as_they_left(given_: tuple[str, Any], nested: bool) -> None:
    datatype, array = given_
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return
    data = array.tolist() if nested and array.ndim else array.ravel().tolist()
    header = {"inputs": [{"name": "x", "shape": list(array.shape), "datatype": datatype, "data": data}]}
    if nested and array.ndim > 1 and not array.size:
        return  # [] may stand for (0, 3) and (0, 4)
    found = decode(json.dumps(header).encode()).feeds["x"]
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


@given(st.lists(tensors(), min_size=1, max_size=3), st.booleans())
def test_an_answer_reads_as_what_was_computed(arrays: list[tuple[str, Any]], as_bytes: bool) -> None:
    outputs = {f"y{i}": array for i, (_, array) in enumerate(arrays)}
    asked = Inference({}, "me", binary=as_bytes)
    if not as_bytes and any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in outputs.values()):
        with pytest.raises(ProtocolError, match="ask for it as binary_data"):
            encode("net", "1", asked, outputs)
        return
    body, length = encode("net", "1", asked, outputs)
    header = json.loads(body[:length])
    assert (header["model_name"], header["model_version"], header["id"]) == ("net", "1", "me")
    at = length or 0
    for described, (name, array) in zip(header["outputs"], outputs.items(), strict=True):
        assert described["name"] == name
        assert described["shape"] == list(array.shape)
        if as_bytes:
            size = described["parameters"]["binary_data_size"]
            found = from_bytes(name, described["datatype"], described["shape"], body, at, size)
            at += size
        else:
            found = np.array(described["data"], array.dtype).reshape(array.shape)
        np.testing.assert_array_equal(found, array)
    assert not as_bytes or at == len(body)


def valid() -> tuple[bytes, int]:
    x, words = np.arange(6, dtype=np.float32).reshape(2, 3), np.array(["a", "bc"], object)
    header = {
        "id": "1",
        "parameters": {"priority": 2, "timeout": 1_500_000, "binary_data_output": True},
        "inputs": [binary("x", x, "FP32"), binary("w", words, "BYTES")],
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}],
    }
    return body_of(header, to_bytes(x), to_bytes(words))


def test_parameters_are_understood() -> None:
    asked = decode(*valid())
    assert (asked.priority, asked.timeout, asked.binary) == (2, 1.5, True)
    outputs = {"z": np.zeros(1, np.int8), "y": np.ones(1, np.int8), "other": np.zeros(9)}
    body, length = encode("m", "", asked, outputs)
    first, second = json.loads(body[:length])["outputs"]
    assert first == {"name": "y", "datatype": "INT8", "shape": [1], "data": [1]}
    assert second["parameters"] == {"binary_data_size": 1}
    assert body[length:] == b"\0"


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-5, 300)))
@example(b'{"inputs":' + b"[" * 100_000, None)
@example(b'{"inputs":[],"other":' + b"[" * 100_000, None)
@example(b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT64","data":[' + b"9" * 9000 + b"]}]}", None)
def test_any_bytes_are_understood_or_refused(body: bytes, header: int | None) -> None:
    with suppress(ProtocolError):  # any other error fails
        decode(body, header)


@given(st.data())
def test_a_spoiled_request_is_understood_or_refused(data: st.DataObject) -> None:
    body, header = valid()
    spoiled = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(spoiled) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                spoiled[at] = data.draw(st.integers(0, 255))
            case "cut":
                del spoiled[at : at + data.draw(st.integers(1, 20))]
            case _:
                spoiled[at:at] = data.draw(st.binary(max_size=8))
        if not spoiled:
            return
    try:
        asked = decode(bytes(spoiled), header)
    except ProtocolError:
        return
    assert all(array.size <= len(spoiled) for array in asked.feeds.values())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {
            "inputs": st.lists(
                st.fixed_dictionaries(
                    {
                        "name": st.text(max_size=3) | JSON,
                        "shape": st.lists(st.integers(-1, 5), max_size=3) | JSON,
                    },
                    optional={
                        "datatype": st.sampled_from([*DTYPES, "FP8"]) | JSON,
                        "data": JSON,
                        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "a"]), JSON)
                        | JSON,
                    },
                ),
                max_size=3,
            )
        },
        optional={"id": JSON, "parameters": JSON, "outputs": JSON},
    ),
    st.binary(max_size=32),
)
def test_any_header_is_understood_or_refused(header: object, tail: bytes) -> None:
    body, length = body_of(header, tail)
    with suppress(ProtocolError):
        decode(body, length)


X = {"name": "x", "shape": [2], "datatype": "FP32"}
WORDS = {**X, "datatype": "BYTES"}


@pytest.mark.parametrize(
    ("header", "tail", "said"),
    [
        ({}, b"", "required field `inputs`"),
        ([], b"", "Expected `object`"),
        ({"inputs": [X]}, b"", "neither data nor a binary_data_size"),
        ({"inputs": [{**X, "data": [1, 2], "parameters": {"binary_data_size": 8}}]}, b"12345678", "give one"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": 8.0}}]}, b"12345678", "whole number"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": True}}]}, b"1", "whole number"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": -8}}]}, b"", "whole number"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": 8}}]}, b"1234567", "8 bytes, but 7 are left"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": 8}}]}, b"123456789", "1 bytes of the body belong to no"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": 7}}]}, b"1234567", "FP32 [2] has 8 bytes, not 7"),
        ({"inputs": [{**X, "parameters": {"shared_memory_region": "a"}}]}, b"", "shared memory"),
        ({"inputs": [{**X, "data": [1]}]}, b"", "data has 1 elements, but its shape is [2]"),
        ({"inputs": [{**X, "data": [[1, 2]]}]}, b"", "data is not FP32 [2]"),
        ({"inputs": [{**X, "data": [1, "2"]}]}, b"", "Expected `float`, got `str`"),
        ({"inputs": [{**X, "data": [1, 1e39]}]}, b"", "overflow"),
        ({"inputs": [{**X, "data": [1, float("nan")]}]}, b"", "malformed"),
        ({"inputs": [{**X, "datatype": "FP16", "data": [1, 1e5]}]}, b"", "overflow"),
        ({"inputs": [{**X, "datatype": "FP31", "data": [1, 2]}]}, b"", "did you mean 'FP32'?"),
        ({"inputs": [{**X, "datatype": "FP31", "parameters": {"binary_data_size": 8}}]}, b"12345678", "'FP31'"),
        ({"inputs": [{**X, "datatype": "UINT8", "data": [1, 256]}]}, b"", "<= 255"),
        ({"inputs": [{**X, "datatype": "UINT64", "data": [1, 2**64]}]}, b"", "too large"),
        ({"inputs": [{**X, "datatype": "INT8", "data": [-129, 0]}]}, b"", ">= -128"),
        ({"inputs": [{**X, "datatype": "BOOL", "parameters": {"binary_data_size": 2}}]}, b"\0\2", "0 or 1"),
        ({"inputs": [{**WORDS, "parameters": {"binary_data_size": 8}}]}, b"\1\0\0\0a\0\0\0", "cut off"),
        ({"inputs": [{**WORDS, "parameters": {"binary_data_size": 8}}]}, b"\5\0\0\0" + b"a" * 4, "5 by"),
        ({"inputs": [{**WORDS, "parameters": {"binary_data_size": 4}}]}, bytes(4), "cannot hold 2"),
        ({"inputs": [{**WORDS, "shape": [1], "parameters": {"binary_data_size": 8}}]}, bytes(8), "not 2"),
        ({"inputs": [{**WORDS, "shape": [1], "parameters": {"binary_data_size": 5}}]}, b"\1\0\0\0\xff", "UTF-8"),
        ({"inputs": [{**X, "shape": [-1], "data": [1]}]}, b"", ">= 0"),
        ({"inputs": [{**X, "shape": [1] * 17, "data": [1]}]}, b"", "length <= 16"),
        ({"inputs": [{**X, "shape": [2.0], "data": [1]}]}, b"", "got `float`"),
        ({"inputs": [{**X, "data": [1, 2]}] * 2}, b"", "same name"),
        ({"inputs": [{**X, "data": [1, 2]}] * 257}, b"", "length <= 256"),
        ({"inputs": [], "parameters": {"timeout": -1}}, b"", "'timeout' is a whole number from 0"),
        ({"inputs": [], "parameters": {"priority": "high"}}, b"", "'priority' is a whole number from 0"),
        ({"inputs": [], "parameters": {"binary_data_output": 1}}, b"", "true or false"),
        ({"inputs": [], "parameters": {"deep": {}}}, b"", "parameters"),
        ({"inputs": [], "parameters": {"sequence_id": 3}}, b"", "sequences are not offered"),
        ({"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}, b"", "classification"),
        ({"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, b"", "true or false"),
        ({"inputs": [], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "a"}}]}, b"", "shared memory"),
        ({"inputs": [], "id": 7}, b"", "`$.id`"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(header: object, tail: bytes, said: str) -> None:
    assert said in refused(header, tail)


def test_a_header_longer_than_the_body_is_refused() -> None:
    body, _ = valid()
    for length in (0, len(body) + 1, 10**12):
        with pytest.raises(ProtocolError, match="the header is said to have"):
            decode(body, length)


def test_an_output_there_is_not_is_refused() -> None:
    asked = Inference({}, outputs=[protocol.Wanted("label")])
    with pytest.raises(ProtocolError, match="did you mean 'labels'"):
        encode("m", "1", asked, {"labels": np.zeros(1)})
    with pytest.raises(ProtocolError, match="no tensors of complex64"):
        encode("m", "1", Inference({}), {"labels": np.zeros(1, np.complex64)})


def spec(*shape: int | str, dtype: str = "float32", name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, batch_axis=0)


def test_a_raw_body_takes_the_shape_of_the_only_input() -> None:
    asked = raw_inference(np.arange(8, dtype=np.float32).tobytes(), [spec("batch", 4)])
    assert asked.binary
    np.testing.assert_array_equal(asked.feeds["x"], np.arange(8).reshape(2, 4))
    assert raw_inference(struct.pack("<4f", 1, 2, 3, 4), [spec(2, 2)]).feeds["x"].shape == (2, 2)


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([spec("batch", 4), spec("batch", name="z")], "this one has 2"),
        ([spec("batch", "width")], "several free axes"),
        ([spec("batch", 3)], "has 12 bytes, not 16"),
        ([spec(5)], "has 20 bytes, not 16"),
        ([spec("batch", 0)], "has 0 bytes, not 16"),
        ([spec("batch", dtype="str")], "send texts with a header"),
    ],
)
def test_a_raw_body_that_does_not_fit_is_refused(specs: list[TensorSpec], said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        raw_inference(bytes(16), specs)


def test_metadata_says_what_is_free() -> None:
    found = protocol.tensor_metadata([spec("batch", 3, dtype="uint8"), spec(2, dtype="str")])
    assert [(one.datatype, one.shape) for one in found] == [("UINT8", [-1, 3]), ("BYTES", [2])]


@given(st.lists(st.text(max_size=5), max_size=5))
def test_text_of_either_kind_of_array_is_written(texts: list[str]) -> None:
    plain = [text.replace("\0", "") for text in texts]  # numpy's own strings end at zeros
    assert to_bytes(np.array(plain, object)) == to_bytes(np.array(plain, str))
