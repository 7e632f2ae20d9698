"""A group of nodes of an ONNX graph as a model of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import onnx
from onnx import helper

from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.cut.flow import Ends, Flow
from farthing.forge.cut.observe import Tensor
from farthing.model import Manifest, Model, TensorSpec


def extract(
    flow: Flow, group: dict[int, int], number: int, tensors: Mapping[str, Tensor], manifest: Manifest
) -> tuple[onnx.ModelProto, Manifest]:
    """The graph and the manifest of one part; its tensors are called as they are in the whole.

    Args:
        flow: the whole.
        group: node -> part.
        number: of the part, from 0.
        tensors: what was seen inside the whole.
        manifest: of the whole.

    Raises:
        UnsupportedError: something crosses that is no tensor, or has an element type that cannot be fed.
    """
    ends = flow.ends(group, number)
    for name in ends.inputs + ends.outputs:
        if name not in tensors and name not in flow.outputs:
            raise UnsupportedError(
                f"{name!r} would cross the cut, and is no tensor that can be fed: cut elsewhere"
            )
    proto = onnx.ModelProto()
    proto.CopyFrom(flow.proto)
    proto.ClearField("graph")
    members = flow.members(group, number, ends.outputs)
    read = {name for node in members for name in flow.reads[node]} | set(ends.outputs)
    source, part = flow.proto.graph, proto.graph
    part.name = source.name or "graph"
    part.node.extend(flow.nodes[node] for node in members)
    part.initializer.extend(tensor for tensor in source.initializer if tensor.name in read)
    part.sparse_initializer.extend(s for s in source.sparse_initializer if s.values.name in read)
    values = {value.name: value for value in (*source.input, *source.output)}
    part.input.extend(values.get(name) or _value(tensors[name].spec) for name in ends.inputs)
    part.output.extend(values.get(name) or _value(tensors[name].spec) for name in ends.outputs)
    graph.check(proto, f"part {number + 1} of {manifest.name}")
    return proto, _manifest(manifest, ends, number, max(group.values()) + 1, tensors)


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    kind = (
        onnx.TensorProto.STRING
        if spec.dtype == "str"
        else helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    )
    return helper.make_tensor_value_info(spec.name, kind, list(spec.shape))


def _manifest(
    whole: Manifest, ends: Ends, number: int, parts: int, tensors: Mapping[str, Tensor]
) -> Manifest:
    """What the whole's manifest says, as far as it concerns a part."""
    known = {spec.name: spec for spec in (*whole.inputs, *whole.outputs)}
    inputs = tuple(known.get(name) or tensors[name].spec for name in ends.inputs)
    outputs = tuple(known.get(name) or tensors[name].spec for name in ends.outputs)
    pictures = any(spec.name in ends.inputs for spec in whole.data_inputs[:1])
    answers = any(spec.name in ends.outputs for spec in whole.outputs)
    return msgspec.structs.replace(
        whole,
        name=f"{whole.name}-{number + 1}",
        files={},
        inputs=inputs,
        outputs=outputs,
        preprocess=whole.preprocess if pictures else None,
        decode=whole.decode if answers else "",
        labels=whole.labels if answers else (),
        lineage=(*whole.lineage, f"part {number + 1} of {parts}"),
    )


def as_model(proto: onnx.ModelProto, manifest: Manifest) -> Model:
    """The part as a model in a temporary directory."""
    return Model.create(manifest, {"model.onnx": graph.save_bytes(proto)})


def stored_bytes(proto: onnx.ModelProto) -> dict[str, int]:
    """Stored tensor of the outer graph -> bytes."""
    sparse: Sequence[onnx.SparseTensorProto] = proto.graph.sparse_initializer
    found = {
        tensor.name: graph.tensor_bytes(tensor, graph.elements(tensor)) for tensor in proto.graph.initializer
    }
    for one in sparse:
        found[one.values.name] = sum(
            graph.tensor_bytes(t, graph.elements(t)) for t in (one.values, one.indices)
        )
    return found
