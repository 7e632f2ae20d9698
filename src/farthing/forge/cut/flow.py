"""What flows through an ONNX graph: which nodes need which tensors, and what crosses from one group to a later one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import onnx

from farthing.errors import ModelError, nearest
from farthing.forge.graph import reads

RANDOM = frozenset(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split()
)


class Ends(NamedTuple):
    """Names of the tensors that go into a group of nodes, and of those that come out of it."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Flow:
    """The nodes of a graph in their order, and the tensors between them.

    Nodes that compute from stored numbers alone (a weight made real from 8 bits, a constant) belong to no group: each
    group that reads their results gets copies of them, and so nothing constant ever crosses.

    Nodes that no output needs are left out.

    Attributes:
        nodes: of the outer graph; what an If, Loop or Scan node holds inside goes with it.
        reads: tensors that each node reads, those that its inner graphs take from outside included.
        order: numbers of the nodes that depend on the inputs.
        maker: tensor -> number of the node that makes it, of those that depend on the inputs.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph = proto.graph
        self.proto = proto
        self.stored = {tensor.name for tensor in graph.initializer}
        self.stored |= {sparse.values.name for sparse in graph.sparse_initializer}
        self.inputs = tuple(value.name for value in graph.input if value.name not in self.stored)
        self.outputs = tuple(value.name for value in graph.output)
        self.nodes = list(graph.node)
        self.reads = [tuple(dict.fromkeys(reads(node))) for node in self.nodes]
        constant = set(self.stored)
        self._constants: dict[str, int] = {}  # tensor -> node, of those that need no inputs
        self.maker: dict[str, int] = {}
        self.order: list[int] = []
        wanted = self._wanted()
        for number, node in enumerate(self.nodes):
            if number not in wanted:
                continue
            made = [name for name in node.output if name]
            if node.op_type not in RANDOM and constant.issuperset(self.reads[number]):
                constant.update(made)
                self._constants.update(dict.fromkeys(made, number))
            else:
                self.order.append(number)
                self.maker.update(dict.fromkeys(made, number))

    def _wanted(self) -> set[int]:
        """Nodes that some output needs."""
        maker = {name: number for number, node in enumerate(self.nodes) for name in node.output if name}
        found: set[int] = set()
        waiting = list(self.outputs)
        while waiting:
            number = maker.get(waiting.pop())
            if number is not None and number not in found:
                found.add(number)
                waiting += self.reads[number]
        return found

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Tensor -> numbers of the nodes that depend on the inputs and read it, in order."""
        found: dict[str, list[int]] = {}
        for number in self.order:
            for name in self.reads[number]:
                found.setdefault(name, []).append(number)
        return found

    def prefixes(self, places: Sequence[int]) -> dict[int, int]:
        """Node -> group, cut before these places of `order`."""
        bounds = [0, *places, len(self.order)]
        return {
            number: group
            for group, (start, end) in enumerate(itertools.pairwise(bounds))
            for number in self.order[start:end]
        }

    def ancestors(self, steps: Sequence[Sequence[str]]) -> dict[int, int]:
        """Node -> group: the first holds what the first tensors need, and so on; the last group what is left.

        Raises:
            ModelError: no node makes one of the tensors, or a group would be empty.
        """
        group: dict[int, int] = {}
        for step, names in enumerate(steps):
            before = len(group)
            for name in names:
                if name not in self.maker:
                    raise ModelError(f"no node makes the tensor {name!r}; {nearest(name, self.maker)}")
                self._claim(self.maker[name], step, group)
            if len(group) == before:
                raise ModelError(
                    f"nothing is left to compute between {list(names)} and the cut before: give it once"
                )
        rest = {number: len(steps) for number in self.order if number not in group}
        if not rest:
            raise ModelError(f"nothing is left to compute after {list(steps[-1])}: cut earlier")
        return group | rest

    def _claim(self, number: int, step: int, group: dict[int, int]) -> None:
        waiting = [number]
        while waiting:
            node = waiting.pop()
            if node not in group:
                group[node] = step
                waiting += [self.maker[name] for name in self.reads[node] if name in self.maker]

    @cached_property
    def spans(self) -> dict[str, list[int]]:
        """Tensor that depends on the inputs -> places in `order` where it is made and read; inputs only where read."""
        place = {node: at for at, node in enumerate(self.order)}
        found = {name: [place[node]] for name, node in self.maker.items()}
        for name, nodes in self.readers.items():
            if name in self.maker or name in self.inputs:
                found.setdefault(name, []).extend(place[node] for node in nodes)
        return found

    def crossing(self, place: int) -> list[str]:
        """Tensors that cross a cut before a place of `order`: there before it, read after it."""
        return [name for name, places in self.spans.items() if places[0] < place <= places[-1]]

    def ends(self, group: dict[int, int], number: int) -> Ends:
        """What goes into a group and comes out of it; inputs that nobody reads go into the first."""
        members = [node for node in self.order if group[node] == number]
        read = dict.fromkeys(name for node in members for name in self.reads[node])
        if not number:
            read |= dict.fromkeys(name for name in self.inputs if name not in self.readers)
        own = {name for node in members for name in self.nodes[node].output}
        taken = [name for name in read if name not in own and (name in self.maker or name in self.inputs)]
        entry = [name for name in self.inputs if name in taken]
        later = {name for name, nodes in self.readers.items() if any(group[node] > number for node in nodes)}
        last = max(group.values()) == number
        made = [
            name
            for name in dict.fromkeys(o for node in members for o in self.nodes[node].output)
            if name in later or name in self.outputs
        ]
        fixed = [name for name in self.outputs if last and (name in self._constants or name in self.stored)]
        return Ends((*entry, *(name for name in taken if name not in entry)), (*made, *fixed))

    def members(self, group: dict[int, int], number: int, outputs: Iterable[str]) -> list[int]:
        """The nodes of a group, and those that make the constants it reads or gives, in the order of the graph."""
        found = {node for node in self.order if group[node] == number}
        waiting = [name for node in found for name in self.reads[node]] + list(outputs)
        while waiting:
            name = waiting.pop()
            node = self._constants.get(name)
            if node is not None and node not in found:
                found.add(node)
                waiting += self.reads[node]
        return sorted(found)

    def weights(self, node: int) -> frozenset[str]:
        """The stored tensors that a node reads, by way of constants too."""
        found: set[str] = set()
        waiting = list(self.reads[node])
        while waiting:
            name = waiting.pop()
            if name in self.stored:
                found.add(name)
            elif name in self._constants:
                waiting += self.reads[self._constants[name]]
        return frozenset(found)
