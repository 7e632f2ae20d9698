"""The table of messages against the descriptors that NVIDIA's client brings."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("google.protobuf")


def fields_of(message: Any) -> dict[str, Any]:
    """Fields of a message, and those of the entries of its maps."""
    from google.protobuf.descriptor_pb2 import DescriptorProto

    proto = DescriptorProto()
    message.CopyToProto(proto)
    fields = {one.name: one for one in proto.field}
    for entry in proto.nested_type:
        if entry.options.map_entry:
            fields |= {f"{entry.name}.{one.name}": one for one in entry.field}
    return {
        name: (one.number, one.type, one.label, one.type_name, one.HasField("oneof_index"))
        for name, one in fields.items()
    }


def test_fields_are_those_of_the_protocol() -> None:
    from farthing.device.serving.server.grpc.messages import messages

    pytest.importorskip("grpc")
    theirs: Any = pytest.importorskip("tritonclient.grpc.service_pb2")
    left_out = {
        "ModelStatistics": {
            "memory_usage",
            "response_stats",
            "ResponseStatsEntry.key",
            "ResponseStatsEntry.value",
        }
    }
    later = {"InferParameter": {"uint64_param"}}  # the protocol's own, which Triton's clients need not know
    for name, kind in messages().items():
        other = theirs
        for part in name.split("."):
            other = getattr(other, part)
        ours, expected = fields_of(kind.DESCRIPTOR), fields_of(other.DESCRIPTOR)
        for field in left_out.get(name, ()):
            expected.pop(field, None)  # older clients do not have all of them
        for field in later.get(name, set()) - set(expected):
            del ours[field]
        assert ours == expected, name


def test_calls_are_those_of_the_protocol() -> None:
    from farthing.device.serving.server.grpc.calls import CALLS
    from farthing.device.serving.server.grpc.messages import SERVICE, messages

    pytest.importorskip("grpc")
    theirs: Any = pytest.importorskip("tritonclient.grpc.service_pb2")
    service = theirs.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE
    for call in CALLS:
        method = service.methods_by_name[call]
        assert method.input_type.name == f"{call}Request"
        assert method.output_type.name == f"{call}Response"
        assert {f"{call}Request", f"{call}Response"} <= set(messages())


def test_they_are_made_once_and_disturb_no_other_pool() -> None:
    from google.protobuf import descriptor_pool

    from farthing.device.serving.server.grpc.messages import messages

    assert messages() is messages()
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("farthing/inference.proto")
