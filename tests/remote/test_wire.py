"""Frames: what goes in comes out, bit for bit; what is not a frame of ours is refused before it costs anything."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from farthing.bench.racing import Rule
from farthing.bench.remote import wire
from farthing.errors import FeedError, LinkError
from farthing.options import EngineOptions

ARRAYS = st.dictionaries(
    st.text(max_size=8),
    hnp.arrays(
        st.sampled_from(["bool", "int8", "uint16", "int64", "float16", "float32", "float64", "complex64"]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    max_size=4,
)


def reader(content: bytes) -> Callable[[memoryview], None]:
    source = io.BytesIO(content)

    def read_into(target: memoryview) -> None:
        if source.readinto(target) != len(target):
            raise EOFError

    return read_into


def frame(*arguments: Any) -> bytes:
    return b"".join(bytes(piece) for piece in wire.pack(*arguments))


@given(ARRAYS, st.integers(0, 1 << 60))
def test_tensors_come_out_as_they_went_in(tensors: dict[str, Any], number: int) -> None:
    got = wire.unpack(reader(frame(number, wire.Run(handle=3), tensors)), wire.Request)
    assert got[:2] == (number, wire.Run(handle=3))
    assert got[2].keys() == tensors.keys()
    for name, array in tensors.items():
        assert (got[2][name].dtype, got[2][name].shape) == (array.dtype, array.shape)
        assert got[2][name].tobytes() == array.tobytes()
        assert got[2][name].flags.writeable


@pytest.mark.parametrize(
    "message",
    [
        wire.Hello(protocol=1, who="me", wait=-1.0),
        wire.Load(digest="d", engine="", options=EngineOptions(threads=2, spin=True)),
        wire.Race(entries=(wire.Entry(handle=1, feeds=("a",)),), rule=Rule(), metered_batch=8),
        wire.Serve(entry=wire.Entry(handle=1, feeds=("a",)), rate=3.5, rule=Rule(), workers=2),
    ],
)
def test_messages_come_out_as_they_went_in(message: Any) -> None:
    assert wire.unpack(reader(frame(1, message)), wire.Request) == (1, message, {})


def test_views_and_foreign_orders() -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    got = wire.unpack(reader(frame(1, wire.Run(handle=1), {"x": turned})), wire.Request)[2]["x"]
    np.testing.assert_array_equal(got, turned)
    for array in (turned.astype(">f4"), np.array(["text"]), np.array([None])):
        with pytest.raises(FeedError, match="only plain numbers are sent"):
            wire.pack(1, wire.Run(handle=1), {"x": array})


def test_too_much_is_refused_before_it_is_sent() -> None:
    vast = np.broadcast_to(np.float64(0), (1 << 26,))
    with pytest.raises(FeedError, match="more than 256 MiB of tensors at once"):
        wire.pack(1, wire.Run(handle=1), {"x": vast})
    with pytest.raises(FeedError, match="header"):
        wire.pack(1, wire.Hello(protocol=1, who="x" * (2 << 20), wait=0))


def header(**changes: Any) -> bytes:
    whole = {"number": 1, "message": {"type": "yes"}, "tensors": []} | changes
    text = json.dumps(whole).encode()
    return struct.pack("<I", len(text)) + text


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "dtype": "float32", "shape": [2]} | changes


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\x05\x00\x00\x00hello",
        b"\x02\x00\x00\x00\xff\xfe",
        struct.pack("<I", 200_000) + b"[" * 200_000,
        header(message={"type": "nothing"}),
        header(message={"type": "run", "handle": 1}),
        header(extra=1),
        header(number="1"),
        header(tensors=[tensor(shape=[1 << 40])]),
        header(tensors=[tensor(shape=[1 << 20, 1 << 20])]),
        header(tensors=[tensor(shape=[0, 1 << 40, 1 << 40])]),
        header(tensors=[tensor(shape=[-1])]),
        header(tensors=[tensor(shape=[1] * 65)]),
        header(tensors=[tensor(dtype="object")]),
        header(tensors=[tensor(dtype="str")]),
        header(tensors=[tensor(shape=[0]), tensor(shape=[0])]),
        header(tensors=[tensor(name=str(i), shape=[0]) for i in range(2000)]),
        header(tensors=[tensor(dtype="bool", shape=[1])]) + b"\x07",
        header(message={"type": "warmth", "celsius": float("nan")}),
        header(message={"type": "warmth", "celsius": 1e999}),
    ],
)
def test_what_is_no_frame_is_refused(content: bytes) -> None:
    with pytest.raises(LinkError):
        wire.unpack(reader(content), wire.Answer)


@given(st.binary(max_size=200))
def test_noise_never_does_more_than_end_the_conversation(noise: bytes) -> None:
    for content in (noise, struct.pack("<I", len(noise)) + noise):
        with pytest.raises((LinkError, EOFError)):
            wire.unpack(reader(content), wire.Answer)


def test_a_key_names_names_types_shapes_and_values() -> None:
    feeds: list[dict[str, Any]] = [
        {"x": np.zeros(4, np.float32)},
        {"y": np.zeros(4, np.float32)},
        {"x": np.zeros(4, np.int32)},
        {"x": np.zeros((2, 2), np.float32)},
        {"x": np.ones(4, np.float32)},
        {"x": np.zeros(4, np.float32), "y": np.zeros(0, np.float32)},
    ]
    keys = [wire.key_of(feed) for feed in feeds]
    assert len(set(keys)) == len(keys)
    assert wire.key_of({"x": np.zeros((4, 4), np.float32)[:, 0]}) == keys[0]
