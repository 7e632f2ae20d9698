"""An ONNX graph as plain data to convert from: operators, constants as arrays, shapes at two choices of free axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from farthing.errors import UnsupportedError
from farthing.forge.tflite.layout import Shape, firsts

Array = NDArray[Any]


@dataclass(frozen=True)
class Params:
    """How integers stand for numbers: ``(stored - zero) * scale``, one pair or one for each index of ``axis``."""

    scale: tuple[float, ...]
    zero: tuple[int, ...]
    axis: int = 0

    @property
    def single(self) -> bool:
        """Whether one scale serves the whole tensor."""
        return len(self.scale) == 1

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is 0."""
        return not any(self.zero)


@dataclass(frozen=True)
class Constant:
    """A stored tensor; int8 or int32 with ``params`` if it stands for real numbers."""

    data: Array
    params: Params | None = None

    @property
    def real(self) -> Array:
        """The numbers it stands for."""
        if self.params is None:
            return self.data
        shape = [1] * self.data.ndim
        if not self.params.single:
            shape[self.params.axis] = -1
        scale = np.reshape(np.array(self.params.scale, np.float32), shape if self.data.ndim else ())
        zero = np.reshape(np.array(self.params.zero, np.int32), shape if self.data.ndim else ())
        return ((self.data.astype(np.int32) - zero).astype(np.float32) * scale).astype(np.float32)

    def transposed(self, order: Sequence[int]) -> Constant:
        """The same with its axes in another order."""
        params = self.params
        if params is not None and not params.single:
            params = replace(params, axis=list(order).index(params.axis))
        return Constant(np.ascontiguousarray(self.data.transpose(order)), params)

    def with_scales(self, axis: int) -> Constant:
        """The same with scales along that axis only; those along another are multiplied out."""
        fitting = self.params is None or self.params.single or self.params.axis == axis
        return self if fitting else Constant(self.real)


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes:
        kind: its ONNX type.
        name: its name in the ONNX file, for messages.
        inputs, outputs: names of tensors; an input left out is empty.
        attributes: as in ONNX.
        activation: what TFLite is to apply to the result: ``NONE``, ``RELU``, ``RELU6`` or ``RELU_N1_TO_1``.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    activation: str = "NONE"

    def refuse(self, why: str) -> NoReturn:
        """Raise the UnsupportedError of an operator that TFLite cannot say."""
        raise UnsupportedError(
            f"operator {self.kind} (node {self.name!r}) cannot be written as TFLite: {why}"
        )

    def input(self, place: int) -> str:
        """The name of an input; empty if it is left out."""
        return self.inputs[place] if place < len(self.inputs) else ""

    def get(self, name: str, default: Any) -> Any:
        """An attribute, or what stands for it."""
        return self.attributes.get(name, default)


@dataclass
class Net:
    """A graph whose constant parts are computed.

    Attributes:
        opset: version of the ONNX operators.
        nodes: operators, each after those it needs.
        constants: stored tensors by name.
        varying: constants that depend on the size of a free axis: only their effect on shapes may be used.
        shapes, types: of all tensors, as far as they are known; types by their numpy names.
        inputs: names of the inputs.
        outputs: name of an output -> the tensor it shows.
    """

    opset: int
    nodes: list[Node]
    constants: dict[str, Constant]
    varying: frozenset[str]
    shapes: dict[str, Shape]
    types: dict[str, str]
    inputs: tuple[str, ...]
    outputs: dict[str, str]

    def readers(self) -> dict[str, list[Node]]:
        """The operators that read each tensor."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(node)
        return found

    def makers(self) -> dict[str, Node]:
        """The operator that makes each tensor."""
        return {name: node for node in self.nodes for name in node.outputs}

    def sole_reader(self, name: str, readers: Mapping[str, list[Node]]) -> Node | None:
        """The only operator that reads a tensor, if there is just one and the tensor is no output."""
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and name not in self.outputs.values() else None

    def replace_nodes(self, gone: Iterable[Node], changed: Mapping[str, Node]) -> None:
        """Take operators out, and put others in the place of those that made the first output of the new ones.

        Args:
            gone: operators to take out.
            changed: first output of an operator as it is -> the operator in its place.
        """
        out = {id(node) for node in gone}
        self.nodes = [changed.get(node.outputs[0], node) for node in self.nodes if id(node) not in out]

    def rename(self, old: str, new: str) -> None:
        """Let everything that reads one tensor read another."""
        self.nodes = [
            replace(node, inputs=tuple(new if name == old else name for name in node.inputs))
            if old in node.inputs
            else node
            for node in self.nodes
        ]
        self.outputs = {name: new if shown == old else shown for name, shown in self.outputs.items()}

    def prune(self) -> None:
        """Drop operators whose results nothing needs."""
        needed = set(self.outputs.values())
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if needed & set(node.outputs):
                kept.append(node)
                needed |= set(node.inputs)
        self.nodes = kept[::-1]

    def shape(self, name: str, node: Node) -> Shape:
        """A tensor's shape, or an UnsupportedError in the name of the operator that must know it."""
        if name not in self.shapes:
            node.refuse(
                f"the shape of {name!r} is only known when it runs; export the model with fixed shapes"
            )
        if any(size.first == 0 or size.second == 0 for size in self.shapes[name]):
            node.refuse(f"{name!r} {describe(self.shapes[name])} is empty")
        return self.shapes[name]

    def sizes(self, name: str, node: Node, axes: Iterable[int] | None = None) -> list[int]:
        """Sizes of the axes of a tensor that must be fixed, all of them or some."""
        shape = self.shape(name, node)
        picked = [shape[axis] for axis in (range(len(shape)) if axes is None else axes)]
        if any(size.free for size in picked):
            node.refuse(
                f"{name!r} {describe(shape)} has a free axis there; fix the inputs' sizes, the batch as well"
            )
        return list(firsts(tuple(picked)))


def describe(shape: Shape) -> str:
    """A shape in words, free axes as ``?``."""
    return "[" + ", ".join("?" if size.free else str(size.first) for size in shape) + "]"
