"""A module's numbers written into the ONNX graph it came from, which follows where layers have shrunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, fx, nn

from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.trainable import norms
from farthing.forge.trainable.binding import Binding
from farthing.forge.trainable.stored import free_name, is_constant, tensor_names, tensor_of
from farthing.forge.trainable.weights import attribute


def write(
    proto: onnx.ModelProto,
    module: fx.GraphModule,
    bindings: Sequence[Binding],
    layers: Mapping[str, str],
    inserted: Mapping[str, str],
) -> bool:
    """Put the numbers of a module where they came from, in place.

    Args:
        proto: the graph that the module was made of.
        module: the module.
        bindings: its parameters and the stored tensors they came from.
        layers: node name -> layer.
        inserted: layer -> norm behind it that is to be folded in.

    Returns:
        Whether something has another shape than before.

    Raises:
        UnsupportedError: two layers share their weights, and no longer agree on them.
    """
    folded = norms.folded(module, inserted)
    store = _Store(proto)
    for binding in bindings:
        parts = [folded.pop(place, attribute(module, place)).detach() for place in binding.places]
        store.put(binding, parts)
    _add_biases(proto, folded, layers)
    for node in proto.graph.node:
        if node.name in layers:
            _set_sizes(node, module.get_submodule(layers[node.name]))
    proto.graph.ClearField("value_info")
    return store.reshaped


class _Store:
    """The stored tensors of a graph.

    Attributes:
        reshaped: whether one was replaced by one of another shape.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.reshaped = False
        for node in filter(is_constant, proto.graph.node):
            if node.attribute[0].name == "value_floats":
                plain = numpy_helper.from_array(np.asarray(node.attribute[0].floats, np.float32))
                node.attribute[0].CopyFrom(helper.make_attribute("value", plain))
        self._tensors = graph.constants(proto)
        self._declared = {value.name: value for value in proto.graph.input if value.name in self._tensors}
        self._written: dict[str, Tensor] = {}

    def put(self, binding: Binding, parts: Sequence[Tensor]) -> None:
        """Store parameters; numbers that are as they were stay as they lie."""
        proto = self._tensors[binding.tensor]
        before = self._written.get(binding.tensor)
        same = before if before is not None else tensor_of(proto)
        if all(map(torch.equal, binding.layout.unpack(same), (part.to(same.dtype) for part in parts))):
            self._written[binding.tensor] = same
            return
        packed = binding.layout.pack([part.to(same.dtype) for part in parts], same).contiguous()
        if before is not None:
            raise UnsupportedError(
                f"weights {binding.tensor!r} belong to several layers, which no longer agree on them: train them "
                "together, and prune neither"
            )
        self._written[binding.tensor] = packed
        self._replace(proto, packed)

    def _replace(self, proto: onnx.TensorProto, packed: Tensor) -> None:
        if tuple(proto.dims) != tuple(packed.shape):
            self.reshaped = True
            if proto.name in self._declared:
                shape = self._declared[proto.name].type.tensor_type.shape
                for dim, size in zip(shape.dim, packed.shape, strict=True):
                    dim.dim_value = size
        kind = helper.tensor_dtype_to_np_dtype(proto.data_type)
        plain = packed.float() if packed.dtype == torch.bfloat16 else packed
        proto.CopyFrom(numpy_helper.from_array(np.asarray(plain.numpy()).astype(kind), proto.name))


def _add_biases(proto: onnx.ModelProto, folded: Mapping[str, Tensor], layers: Mapping[str, str]) -> None:
    """Give layers that had none the bias that a folded norm needs."""
    nodes = {layers[node.name]: node for node in proto.graph.node if node.name in layers}
    taken = tensor_names(proto)
    for place, bias in folded.items():
        node = nodes[place.rpartition(".")[0]]
        name = free_name(f"{node.input[1]}_bias", taken)
        proto.graph.initializer.append(numpy_helper.from_array(bias.numpy(), name))
        del node.input[2:]
        node.input.append(name)


def _set_sizes(node: onnx.NodeProto, layer: nn.Module) -> None:
    """Attributes that state how wide a layer is."""
    stated: dict[str, Any] = {
        "group": getattr(layer, "groups", None),
        "hidden_size": getattr(layer, "hidden_size", None),
    }
    for attribute_ in node.attribute:
        if stated.get(attribute_.name) is not None:
            attribute_.i = stated[attribute_.name]


def drop_unused(proto: onnx.GraphProto) -> None:
    """Take out initializers that nothing reads, and their declarations as inputs, in place."""
    used = {name for node in proto.node for name in graph.reads(node)}
    used |= {value.name for value in proto.output}
    spare = {tensor.name for tensor in proto.initializer} - used
    for places in (proto.initializer, proto.input):
        for number in reversed([number for number, each in enumerate(places) if each.name in spare]):
            del places[number]
