"""Numbers in an ONNX graph that state how wide a layer is, set anew where layers have shrunk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from torch import Tensor, fx

from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.trainable.builder import Size
from farthing.forge.trainable.operators import shapes
from farthing.forge.trainable.operators.recurrent import KINDS
from farthing.forge.trainable.stored import free_name, stored, tensor_names
from farthing.forge.trainable.trying import recorded


def mend(
    proto: onnx.ModelProto,
    module: fx.GraphModule,
    traced: Mapping[str, fx.Node],
    layers: Mapping[str, str],
    trials: Sequence[Sequence[Tensor]],
) -> None:
    """State the sizes that a module's tensors have now, in place.

    Args:
        proto: the graph that the module was made of.
        module: the module.
        traced: ONNX tensor names, and what computes them in the module.
        layers: node names, and the layers that they have become.
        trials: inputs of two sizes, in the order of the module.

    Raises:
        UnsupportedError: a size cannot be stated, because two axes of one tensor are free.
    """
    alone = {
        str(made.target) for made in module.graph.nodes if made.op == "call_module" and len(made.args) == 1
    }
    stateless = {name for name, layer in layers.items() if layer in alone}
    _Mender(proto, _sizes(module, traced, trials), traced, stateless).mend()


def _sizes(
    module: fx.GraphModule, traced: Mapping[str, fx.Node], trials: Sequence[Sequence[Tensor]]
) -> dict[str, list[Size]]:
    """The sizes of tensors in both trials, by their ONNX names."""
    first, second = (recorded(module, inputs) for inputs in trials)
    return {
        name: list(zip(first[made].shape, second[made].shape, strict=True))
        for name, made in traced.items()
        if made in first
    }


class _Mender:
    """A graph, and the sizes that its tensors are to have."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        sizes: Mapping[str, list[Size]],
        traced: Mapping[str, fx.Node],
        stateless: Collection[str],
    ) -> None:
        self._proto = proto
        self._sizes = sizes
        self._traced = traced
        self._stateless = stateless
        self._constants = stored(proto)
        self._taken = tensor_names(proto)
        self._restated = False

    def mend(self) -> None:
        menders: dict[str, Callable[[onnx.NodeProto], None]] = {
            "Reshape": self._reshape,
            "Expand": self._expand,
            "Split": self._split,
            "Resize": self._resize,
            **dict.fromkeys(KINDS, self._recurrent),
        }
        for node in self._proto.graph.node:
            if node.op_type in menders and node.domain in {"", "ai.onnx"}:
                menders[node.op_type](node)
        if self._restated:
            drop_dead(self._proto)

    def _reshape(self, node: onnx.NodeProto) -> None:
        made, after = self._traced.get(node.output[0]), self._sizes.get(node.output[0])
        if made is None or after is None or made.target is not shapes.reshape_by:
            return
        target = self._constants.get(node.input[1])
        literal = bool(graph.attribute(node, "allowzero", 0))
        if target is None:
            if after == made.meta["sizes"]:
                return
        elif self._fits(target, node.input[0], after, literal):
            return
        entries: Any = made.args[1]
        self._state(
            node, 1, [_stated(size, place, entries[place], literal) for place, size in enumerate(after)]
        )

    def _fits(self, target: Tensor, given: str, after: Sequence[Size], literal: bool) -> bool:
        """Whether a stated shape gives the sizes that are to be."""
        before = self._sizes[given]
        for trial in (0, 1):
            numbers = [int(number) for number in target]
            sizes = [before[i][trial] if n == 0 and not literal else n for i, n in enumerate(numbers)]
            if any(n not in {-1, size[trial]} for n, size in zip(sizes, after, strict=True)):
                return False
        return True

    def _expand(self, node: onnx.NodeProto) -> None:
        target, after = self._constants.get(node.input[1]), self._sizes.get(node.output[0])
        if target is None or after is None:
            return
        numbers = [int(number) for number in target]
        for place, (first, second) in enumerate(after[len(after) - len(numbers) :]):
            if numbers[place] > 1 and first == second:
                numbers[place] = first
        if numbers != target.tolist():
            self._state(node, 1, numbers)

    def _split(self, node: onnx.NodeProto) -> None:
        axis = int(graph.attribute(node, "axis", 0))
        parts = [self._sizes[name][axis][0] for name in node.output if name in self._sizes]
        if len(parts) < len(node.output):
            return
        constant = self._constants.get(node.input[1]) if len(node.input) > 1 else None
        if constant is not None and constant.tolist() != parts:
            self._state(node, 1, parts)
        for attribute in node.attribute:
            if attribute.name == "split":
                attribute.ints[:] = parts

    def _resize(self, node: onnx.NodeProto) -> None:
        target = self._constants.get(node.input[3]) if len(node.input) > 3 else None
        after = self._sizes.get(node.output[0])
        if target is None or after is None or len(target) != len(after):
            return
        numbers = [a if a == b else int(old) for old, (a, b) in zip(target, after, strict=True)]
        if numbers != target.tolist():
            self._state(node, 3, numbers)

    def _recurrent(self, node: onnx.NodeProto) -> None:
        """Initial states of zeros are left out: they state how many there are."""
        if node.name in self._stateless and any(node.input[5:7]):
            del node.input[5:]
            self._restated = True

    def _state(self, node: onnx.NodeProto, place: int, numbers: Sequence[int]) -> None:
        """Give a node constant numbers of its own."""
        if sum(number == -1 for number in numbers) > 1:
            raise UnsupportedError(
                f"operator {node.op_type} (node {node.name!r}) cannot follow layers that shrink: two axes of its "
                "result are free; fix one of them when the model is exported"
            )
        name = free_name(f"{node.output[0]}_sizes", self._taken)
        self._proto.graph.initializer.append(numpy_helper.from_array(np.asarray(numbers, np.int64), name))
        node.input[place] = name
        self._restated = True


def _stated(size: Size, place: int, entry: object, literal: bool) -> int:
    """How a Reshape says one size: 0 takes the input's, -1 what is left."""
    if size[0] == size[1] and size[0] > 0:
        return size[0]
    return 0 if entry == ((place,), 1) and not literal else -1


def drop_dead(proto: onnx.ModelProto) -> None:
    """Take out nodes of whose results nothing is made, in place."""
    needed = {value.name for value in proto.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(proto.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(graph.reads(node))
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(kept))
