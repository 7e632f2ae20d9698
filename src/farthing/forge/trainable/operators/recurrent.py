"""LSTM, GRU and RNN as torch's layers; initial states of zeros are left to these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from farthing.forge.trainable.binding import GateBiases, Gates
from farthing.forge.trainable.builder import Builder, Value, bare
from farthing.forge.trainable.node import Node


class Kind(NamedTuple):
    """How an operator becomes a layer.

    Attributes:
        layer: torch's layer.
        order: gate ``i`` of torch is gate ``order[i]`` of ONNX.
        activations: those that torch's layer has, as ONNX states them for one direction.
        states: how many tensors a step hands on.
    """

    layer: Any
    order: tuple[int, ...]
    activations: tuple[str, ...]
    states: int


KINDS = {
    "LSTM": Kind(nn.LSTM, (0, 2, 3, 1), ("Sigmoid", "Tanh", "Tanh"), 2),
    "GRU": Kind(nn.GRU, (1, 0, 2), ("Sigmoid", "Tanh"), 1),
    "RNN": Kind(nn.RNN, (0,), ("Tanh",), 1),
}


def recurrent(builder: Builder, node: Node) -> tuple[Value, ...]:
    """All steps (steps, directions, batch, hidden), and the last states (directions, batch, hidden)."""
    kind, direction = KINDS[node.kind], node.get("direction", "forward")
    both = direction == "bidirectional"
    extra = _extra(node, kind, 2 if both else 1)
    bias = bool(node.input(3))
    if any(builder.weights.shape(node.input(place)) is None for place in (1, 2, 3)[: 2 + bias]):
        node.refuse("its weights are computed, not stored")
    inputs, hidden = (builder.sizes(builder.value(node, place))[2][0] for place in (1, 2))
    layer = bare(kind.layer, inputs, hidden, bias=bias, bidirectional=both, **extra)
    name = builder.add(node, layer)
    suffixes = ["", "_reverse"] if both else [""]
    _bind(builder, node, 1, Gates(kind.order), name, [f"weight_ih_l0{s}" for s in suffixes])
    _bind(builder, node, 2, Gates(kind.order), name, [f"weight_hh_l0{s}" for s in suffixes])
    if bias:
        fields = [f"bias_{part}_l0{s}" for s in suffixes for part in ("ih", "hh")]
        _bind(builder, node, 3, GateBiases(kind.order), name, fields)
    x, backwards = builder.value(node, 0), direction == "reverse"
    x = builder.call(torch.flip, x, [0]) if backwards else x
    made = builder.run(name, x, *_states(builder, node, kind))
    y, last = builder.items(made, 2)
    y = builder.call(torch.flip, y, [0]) if backwards else y
    steps = builder.call(by_direction, y, len(suffixes))
    return (steps, *builder.items(last, 2)) if kind.states == 2 else (steps, last)


def _bind(builder: Builder, node: Node, place: int, layout: Any, name: str, fields: Sequence[str]) -> None:
    tensor = builder.weights.source(node.input(place))[0]
    if node.input(place) != tensor or not builder.weights.free(tensor, layout):
        node.refuse(f"its weights {tensor!r} are those of another layer, or transposed")
    builder.weights.bind(tensor, layout, name, fields)


def _extra(node: Node, kind: Kind, directions: int) -> dict[str, Any]:
    """Settings that torch's layer has; any other is refused."""
    stated = tuple(
        str(name, "utf-8") if isinstance(name, bytes) else name for name in node.get("activations", ())
    )
    extra: dict[str, Any] = {}
    if node.kind == "RNN" and stated and set(stated) == {"Relu"}:
        extra["nonlinearity"] = "relu"
    elif stated and stated != kind.activations * directions:
        node.refuse(f"torch's layer has other activations than {', '.join(stated)}")
    if node.kind == "GRU" and not node.get("linear_before_reset", 0):
        node.refuse("torch's layer resets after the product, this one before it (linear_before_reset = 0)")
    if node.get("clip") is not None or node.get("layout", 0) or node.get("input_forget", 0) or node.input(7):
        node.refuse("torch's layer has no clip, layout 1, coupled gates or peepholes")
    if node.input(4):
        node.refuse("sequences of a batch differ in length (sequence_lens)")
    return extra


def _states(builder: Builder, node: Node, kind: Kind) -> list[Any]:
    """The initial states, if there are any but zeros."""
    given = [builder.optional(node, 5 + number) for number in range(kind.states)]
    if all(state is None or builder.is_zero(state) for state in given):
        return []
    if kind.states == 1:
        return given
    known = next(state for state in given if state is not None)
    return [tuple(builder.call(torch.zeros_like, known) if state is None else state for state in given)]


def by_direction(y: Tensor, directions: int) -> Tensor:
    """(steps, batch, directions x hidden) as (steps, directions, batch, hidden)."""
    steps, batch, width = y.shape
    return y.reshape(steps, batch, directions, width // directions).transpose(1, 2)
