"""Files an ONNX file takes weights from are found however its bytes are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.engines import external
from farthing.errors import ModelError

onnx = pytest.importorskip("onnx")


def field(number: int, content: bytes, tail: bytes = b"") -> bytes:
    """A field with a length; ``tail`` lengthens the number of the length without changing it."""
    size, written = len(content), bytearray()
    while size > 0x7F:
        written.append(size & 0x7F | 0x80)
        size >>= 7
    written.append(size)
    if tail:
        written[-1] |= 0x80
    tag = number << 3 | 2
    head = bytes([tag]) if tag < 0x80 else bytes([tag & 0x7F | 0x80, tag >> 7])
    return head + bytes(written) + tail + content


def model_with(entry: bytes) -> bytes:
    """A model whose one initializer has this as an entry of its external data."""
    return field(7, field(5, field(13, entry)))


def found(path: Path, data: bytes) -> set[str]:
    (path / "m.onnx").write_bytes(data)
    return external.locations(path / "m.onnx")


KEY = field(1, b"location")


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        (KEY + field(2, b"w"), {"w"}),
        (field(2, b"w") + KEY, {"w"}),
        (KEY + field(2, b"w") + field(2, b"secret"), {"w", "secret"}),
        (field(1, b"offset") + KEY + field(2, b"secret"), {"secret"}),
        (field(1, b"location", b"\x00") + field(2, b"secret"), {"secret"}),
        (field(1, b"location", b"\x80\x00") + field(2, b"secret", b"\x00"), {"secret"}),
        (KEY + b"\x18\x01" + field(2, b"secret"), {"secret"}),
        (KEY + field(2, b"a" * 300), {"a" * 300}),
        (KEY, {""}),
        (field(1, b"offset") + field(2, b"location"), set()),
    ],
)
def test_an_entry_is_read_as_protobuf_reads_it_or_stricter(
    tmp_path: Path, entry: bytes, names: set[str]
) -> None:
    data = model_with(entry)
    (read,) = onnx.ModelProto.FromString(data).graph.initializer[0].external_data
    assert found(tmp_path, data) == names
    assert read.key != "location" or read.value in names


def test_every_message_that_can_hold_a_tensor_is_walked() -> None:
    """Against the definition in the onnx package, whatever its version."""
    reach: dict[str, dict[int, str]] = {}
    known: dict[str, Any] = {}

    def visit(message: Any) -> None:
        if message.name not in known:
            known[message.name] = message
            for part in message.fields:
                if part.message_type:
                    visit(part.message_type)

    visit(onnx.ModelProto.DESCRIPTOR)
    holders = {"TensorProto"}
    reach["TensorProto"] = {
        known["TensorProto"].fields_by_name["external_data"].number: "StringStringEntryProto"
    }
    while True:
        more = {
            name
            for name, message in known.items()
            if any(part.message_type and part.message_type.name in holders for part in message.fields)
        }
        if more <= holders:
            break
        holders |= more
    for name in holders - {"TensorProto"}:
        reach[name] = {
            part.number: part.message_type.name
            for part in known[name].fields
            if part.message_type and part.message_type.name in holders
        }
    assert reach == external.PARTS


def test_tensors_in_attributes_branches_functions_and_sparse_ones(tmp_path: Path) -> None:
    def tensor(name: str) -> Any:
        made = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
        made.external_data.add(key="location", value=name)
        return made

    proto = onnx.ModelProto(ir_version=8, producer_name="location")
    node = proto.graph.node.add()
    node.attribute.add().t.CopyFrom(tensor("attribute"))
    node.attribute.add().g.initializer.append(tensor("branch"))
    node.attribute.add().graphs.add().node.add().attribute.add().tensors.append(tensor("deep"))
    proto.graph.sparse_initializer.add().indices.CopyFrom(tensor("sparse"))
    proto.functions.add().node.add().attribute.add().sparse_tensor.values.CopyFrom(tensor("function"))
    proto.training_info.add().algorithm.initializer.append(tensor("training"))
    names = {"attribute", "branch", "deep", "sparse", "function", "training"}
    assert found(tmp_path, proto.SerializeToString()) == names


def test_none_where_there_are_none(tmp_path: Path) -> None:
    assert found(tmp_path, b"") == set()
    assert found(tmp_path, b"\xff" * 40) == set(), "what it is, its runtime says"
    assert found(tmp_path, field(2, b"location")) == set()


@pytest.mark.parametrize(
    "head",
    [
        b"\x0b",  # a group
        b"\x02\x00",  # no number
        b"\xba\x80\x80\x80\x80\x80\x00",  # a tag too long
        b"\x3a\x7f",  # longer than the file
        b"\x08" + b"\x80" * 11,
        b"\x09\x00",
    ],
)
def test_what_is_not_sound_is_refused(tmp_path: Path, head: bytes) -> None:
    with pytest.raises(ModelError, match="damaged or no ONNX file"):
        found(tmp_path, field(2, b"location") + head)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, a: bytes, b: bytes) -> None:
    path = tmp_path_factory.mktemp("any")
    try:
        names = found(path, a + b"location" + b)
    except ModelError:
        return
    assert all(isinstance(name, str) for name in names)
