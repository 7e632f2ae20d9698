"""QuantizeLinear and DequantizeLinear: mostly names for what is int8 already."""

from __future__ import annotations

from farthing.forge.tflite.builder import Builder
from farthing.forge.tflite.net import Node
from farthing.forge.tflite.scales import params_of


def quantize(builder: Builder, node: Node) -> None:
    """QUANTIZE, unless the operator before gave the result at that scale; also from one scale to another."""
    params, _ = params_of(builder.net, node)
    if not params.single:
        node.refuse("activations have one scale")
    builder.values[node.outputs[0]] = builder.quantized(builder.view(node.inputs[0], node), params)


def dequantize(builder: Builder, node: Node) -> None:
    """The same tensor: operators that need float32 ask for it."""
    view = builder.view(node.inputs[0], node)
    params, kind = params_of(builder.net, node)
    own = builder.params(view.tensor)
    if own != params:
        node.refuse(f"it reads {kind} at another scale than it was written")
    builder.values[node.outputs[0]] = view
