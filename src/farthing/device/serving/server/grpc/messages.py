"""The messages of the Open Inference Protocol over gRPC, as a table; protobuf makes the classes from it when asked.

Names and numbers are those of ``open_inference_grpc.proto`` (https://github.com/kserve/open-inference-protocol) and,
for the model repository and statistics, of Triton's ``grpc_service.proto``
(https://github.com/triton-inference-server/common). They live in a pool of their own: a client in the same process,
which brings the same names, is not disturbed.
"""

from __future__ import annotations

import functools
from typing import Any

from farthing.errors import require

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
_FILE = "farthing/inference.proto"

_MODEL = "1 name string, 2 version string"
_TENSOR = "1 name string, 2 datatype string, 3 shape int64*"
_SENT = f"{_TENSOR}, 4 parameters map:InferParameter, 5 contents InferTensorContents"
_NAMED = "1 repository_name string, 2 model_name string, 3 parameters map:ModelRepositoryParameter"
_STAGES = (
    "compute_input StatisticDuration, {} compute_infer StatisticDuration, {} compute_output StatisticDuration"
)
_TABLE = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "1 live bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "1 ready bool",
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": "1 ready bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": f"{_MODEL}, 3 extensions string*",
    "ModelMetadataRequest": _MODEL,
    "ModelMetadataResponse": "1 name string, 2 versions string*, 3 platform string, "
    "4 inputs ModelMetadataResponse.TensorMetadata*, 5 outputs ModelMetadataResponse.TensorMetadata*",
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "InferParameter": "1 bool_param bool|, 2 int64_param int64|, 3 string_param string|, 4 double_param double|, "
    "5 uint64_param uint64|",
    "InferTensorContents": "1 bool_contents bool*, 2 int_contents int32*, 3 int64_contents int64*, "
    "4 uint_contents uint32*, 5 uint64_contents uint64*, 6 fp32_contents float*, 7 fp64_contents double*, "
    "8 bytes_contents bytes*",
    "ModelInferRequest": "1 model_name string, 2 model_version string, 3 id string, 4 parameters map:InferParameter, "
    "5 inputs ModelInferRequest.InferInputTensor*, 6 outputs ModelInferRequest.InferRequestedOutputTensor*, "
    "7 raw_input_contents bytes*",
    "ModelInferRequest.InferInputTensor": _SENT,
    "ModelInferRequest.InferRequestedOutputTensor": "1 name string, 2 parameters map:InferParameter",
    "ModelInferResponse": "1 model_name string, 2 model_version string, 3 id string, 4 parameters map:InferParameter, "
    "5 outputs ModelInferResponse.InferOutputTensor*, 6 raw_output_contents bytes*",
    "ModelInferResponse.InferOutputTensor": _SENT,
    "ModelRepositoryParameter": "1 bool_param bool|, 2 int64_param int64|, 3 string_param string|, "
    "4 bytes_param bytes|",
    "RepositoryIndexRequest": "1 repository_name string, 2 ready bool",
    "RepositoryIndexResponse": "1 models RepositoryIndexResponse.ModelIndex*",
    "RepositoryIndexResponse.ModelIndex": f"{_MODEL}, 3 state string, 4 reason string",
    "RepositoryModelLoadRequest": _NAMED,
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": _NAMED,
    "RepositoryModelUnloadResponse": "",
    "StatisticDuration": "1 count uint64, 2 ns uint64",
    "InferStatistics": "1 success StatisticDuration, 2 fail StatisticDuration, 3 queue StatisticDuration, "
    f"4 {_STAGES.format(5, 6)}, 7 cache_hit StatisticDuration, 8 cache_miss StatisticDuration",
    "InferBatchStatistics": f"1 batch_size uint64, 2 {_STAGES.format(3, 4)}",
    "ModelStatistics": f"{_MODEL}, 3 last_inference uint64, 4 inference_count uint64, 5 execution_count uint64, "
    "6 inference_stats InferStatistics, 7 batch_stats InferBatchStatistics*",
    "ModelStatisticsRequest": _MODEL,
    "ModelStatisticsResponse": "1 model_stats ModelStatistics*",
}
"""Message -> its fields: number, name and type; ``*``: many, ``|``: one of those so marked, ``map:``: by key."""

_SCALARS = frozenset({"bool", "bytes", "double", "float", "int32", "int64", "string", "uint32", "uint64"})


@functools.cache
def messages() -> dict[str, Any]:
    """The message classes by name; one inside another is ``Outer.Inner``.

    Raises:
        NotInstalled: protobuf is missing: ``pip install 'farthing[grpc]'``.
    """
    protobuf = require("google.protobuf.descriptor_pb2", "grpc")
    factory = require("google.protobuf.message_factory", "grpc")
    pool = require("google.protobuf.descriptor_pool", "grpc").DescriptorPool()
    file = protobuf.FileDescriptorProto(name=_FILE, package=PACKAGE, syntax="proto3")
    described: dict[str, Any] = {}
    for name, fields in _TABLE.items():
        outer, _, own = name.rpartition(".")
        described[name] = described[outer].nested_type.add() if outer else file.message_type.add()
        described[name].name = own
        for field in filter(None, fields.split(", ")):
            _describe(described[name], f"{PACKAGE}.{name}", *field.split(" "))
    pool.Add(file)
    return {name: factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _TABLE}


def _describe(message: Any, path: str, number: str, name: str, kind: str) -> None:
    """Add a field to the description of a message."""
    mapped = kind.removeprefix("map:")
    if mapped != kind:
        entry = f"{name.capitalize()}Entry"
        inner = message.nested_type.add(name=entry)
        inner.options.map_entry = True
        _describe(inner, "", "1", "key", "string")
        _describe(inner, "", "2", "value", mapped)
        kind = f"{path.removeprefix(f'{PACKAGE}.')}.{entry}*"
    bare = kind.rstrip("*|")
    field = message.field.add(name=name, number=int(number))
    field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
    if bare in _SCALARS:
        field.type = getattr(field, f"TYPE_{bare.upper()}")
    else:
        field.type, field.type_name = field.TYPE_MESSAGE, f".{PACKAGE}.{bare}"
    if kind.endswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
