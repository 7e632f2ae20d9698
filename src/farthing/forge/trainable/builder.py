"""What operators are written into: a torch.fx graph that grows while it is tried on two sets of sizes."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from farthing.forge.trainable.binding import AsStored, Binding, Permuted, Vector
from farthing.forge.trainable.node import Node
from farthing.forge.trainable.weights import Weights, attribute

Value: TypeAlias = fx.Node | Tensor
"""What an ONNX tensor is while importing: something computed when the module runs, or a constant."""
Size: TypeAlias = tuple[int, int]
"""The size of an axis in both trials; one that depends on the batch or another free axis differs."""


class Builder:
    """A module in the making.

    Each operator runs as it is added, on two sets of inputs whose free axes differ, so that an operator may look at
    the sizes it will see, and at which of them are free. What depends on constants alone is computed at once.

    Args:
        opset: version of the ONNX operators.
        stored: initializers and the values of Constant nodes, by name.
        nodes: the operators to come.
        outputs: names of the model's outputs.

    Attributes:
        root: holds the layers, parameters and constants.
        graph: the operators so far.
        values: ONNX tensor name -> what it is.
        layers: ONNX node name -> name of its layer.
        weights: stored tensors, and the parameters that they become.
    """

    def __init__(
        self, opset: int, stored: Mapping[str, Tensor], nodes: Iterable[Node], outputs: Iterable[str]
    ) -> None:
        self.opset = opset
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, Value] = dict(stored)
        self.layers: dict[str, str] = {}
        self.weights = Weights(self.root, stored)
        self._trials: dict[fx.Node, tuple[Any, Any]] = {}
        self._trained: set[fx.Node] = set()
        self._measured: set[fx.Node] = set()  # what depends on sizes and constants alone
        self._constants: dict[int, tuple[Tensor, fx.Node]] = {}
        self._outputs = frozenset(outputs)
        self._readers: dict[str, list[Node]] = {}
        for node in nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)

    # Inputs of operators.

    def input(self, name: str, trials: tuple[Tensor, Tensor]) -> None:
        """Add an input of the model, with what it is fed in both trials."""
        made = self.graph.placeholder(self._free_name(name))
        self.values[name] = made
        self._trials[made] = trials

    def value(self, node: Node, place: int) -> Value:
        """An input of an operator that must be there."""
        name = node.input(place)
        if name not in self.values:
            node.refuse(f"its input {place} ({name!r}) is missing, or is no tensor")
        return self.values[name]

    def optional(self, node: Node, place: int) -> Value | None:
        """An input of an operator, None if it is left out."""
        return self.value(node, place) if node.input(place) else None

    def constant(self, node: Node, place: int, what: str) -> Tensor:
        """An input that must be constant."""
        value = self.value(node, place)
        if not isinstance(value, Tensor):
            node.refuse(f"its input {place} ({what}) is computed when it runs")
        return value

    def integers(self, node: Node, place: int, attribute: str) -> list[int] | None:
        """Whole numbers that newer opsets give as a constant input, older ones as an attribute; None if left out."""
        if node.input(place):
            return [int(number) for number in self.constant(node, place, attribute).reshape(-1)]
        given = node.get(attribute)
        return None if given is None else [int(number) for number in given]

    def sole_reader(self, name: str, kind: str) -> Node | None:
        """The operator that alone reads a tensor, if it is of a kind, and the tensor is no output."""
        readers = self._readers.get(name, [])
        alone = len(readers) == 1 and readers[0].kind == kind and name not in self._outputs
        return readers[0] if alone else None

    def only_first(self, node: Node) -> None:
        """Refuse an operator of whose further results something is made."""
        for name in node.outputs[1:]:
            if name in self._readers or name in self._outputs:
                node.refuse(f"something is made of its result {name!r}")

    def done(self, node: Node, value: Value) -> None:
        """Give the result of an operator that is part of one before it."""
        self.values[node.outputs[0]] = value

    def trial(self, value: Value) -> tuple[Any, Any]:
        """What a value is in both trials."""
        return self._trials[value] if isinstance(value, fx.Node) else (value, value)

    def sizes(self, value: Value) -> list[Size]:
        """The sizes of a tensor's axes in both trials."""
        first, second = self.trial(value)
        return list(zip(first.shape, second.shape, strict=True))

    def rank(self, value: Value) -> int:
        """How many axes a tensor has."""
        return int(self.trial(value)[0].ndim)

    def is_float(self, value: Value) -> bool:
        """Whether a tensor holds floating-point numbers."""
        return bool(self.trial(value)[0].is_floating_point())

    def depends_on_training(self, value: Value) -> bool:
        """Whether a parameter comes before a value."""
        return value in self._trained

    # Operators.

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
        """Add a function; where all it takes is constant, its result."""
        if not any(isinstance(leaf, fx.Node) for leaf in pytree.tree_leaves((args, kwargs))):
            result: Tensor = function(*args, **kwargs)
            return result
        args, kwargs = pytree.tree_map(self._placed, (args, kwargs))
        made = self.graph.call_function(function, args, kwargs)
        self._try(made, function, args, kwargs)
        return made

    def measure(self, function: Callable[..., Tensor], x: Value, *args: Any) -> Value:
        """Add a function that looks at the sizes of a tensor and at none of its numbers."""
        made = self.call(function, x, *args)
        if isinstance(made, fx.Node):
            self._measured.add(made)
        return made

    def is_zero(self, value: Value) -> bool:
        """Whether a tensor is zero whatever the model is fed."""
        known = not isinstance(value, fx.Node) or value in self._measured
        return known and not any(bool(each.any()) for each in self.trial(value))

    def items(self, value: Value, count: int) -> tuple[Value, ...]:
        """The parts of a result that is a tuple."""
        return tuple(self.call(operator.getitem, value, number) for number in range(count))

    def add(self, node: Node, module: nn.Module) -> str:
        """Add the layer of an operator and return its name; its parameters are bound next."""
        name = self._free_name(node.name or node.kind)
        self.root.add_module(name, module.eval())
        self.layers[node.name] = name
        return name

    def run(self, name: str, *args: Any) -> fx.Node:
        """Let a layer compute."""
        placed = pytree.tree_map(self._placed, args)
        made = self.graph.call_module(name, placed)
        self._try(made, self.root.get_submodule(name), placed, {})
        self._trained.add(made)
        return made

    def _placed(self, leaf: Any) -> Any:
        """A constant as a buffer of the module; anything else as it is."""
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in self._constants:
            name = self._free_name(f"constant_{len(self._constants)}")
            self.root.register_buffer(name, leaf)
            made = self.graph.get_attr(name)
            self._trials[made] = (leaf, leaf)
            self._measured.add(made)
            self._constants[id(leaf)] = (leaf, made)
        return self._constants[id(leaf)][1]

    def _try(self, made: fx.Node, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        results = []
        for trial in (0, 1):

            def fed(leaf: Any, trial: int = trial) -> Any:
                return self._trials[leaf][trial] if isinstance(leaf, fx.Node) else leaf

            positional, named = pytree.tree_map(fed, (args, kwargs))
            results.append(function(*positional, **named))
        self._trials[made] = (results[0], results[1])
        if isinstance(results[0], Tensor):
            made.meta["sizes"] = self.sizes(made)
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, fx.Node)]
        if any(leaf in self._trained for leaf in given):
            self._trained.add(made)
        if all(leaf in self._measured for leaf in given):
            self._measured.add(made)

    def forget(self, kept: Iterable[str]) -> None:
        """Let go of what the trials gave, but for some tensors and the parameters."""
        alive = {self.values.get(name) for name in kept}
        self._trials = {
            made: trials for made, trials in self._trials.items() if made in alive or made.op == "get_attr"
        }

    def finish(self, names: Iterable[str]) -> None:
        """Give the outputs, as a tuple, and drop what none of them needs."""
        results = tuple(self._placed(self.values[name]) for name in names)
        self.graph.output(results)
        for made in reversed(self.graph.nodes):
            if not made.users and made.op not in {"placeholder", "output"}:
                self.graph.erase_node(made)

    # Stored tensors.

    def parameter(self, node: Node, place: int) -> Value | None:
        """An input as a parameter of its own, in ONNX's layout; None if it is no stored tensor."""
        name = node.input(place)
        if self.weights.shape(name) is None:
            return None
        tensor, order = self.weights.source(name)
        made = self._learnt(tensor, node)
        return made if list(order) == sorted(order) else self.call(torch.permute, made, list(order))

    def learn(self, tensor: str) -> None:
        """Let whatever reads a stored tensor read a parameter."""
        self.values[tensor] = self._fetched(
            self.weights.bind(tensor, AsStored(), "", [self._free_name(tensor)])
        )

    def _learnt(self, tensor: str, node: Node) -> Value:
        """A stored tensor, made of the parameter that it has become."""
        binding = self.weights.binding(tensor)
        if binding is None:
            binding = self.weights.bind(tensor, AsStored(), "", [self._free_name(tensor)])
        made = self._fetched(binding)
        if isinstance(binding.layout, Permuted):
            return self.call(torch.permute, made, list(binding.layout.back))
        if isinstance(binding.layout, Vector):
            return self.call(torch.reshape, made, list(self.weights[tensor].shape))
        if not isinstance(binding.layout, AsStored):
            node.refuse(f"its weights {tensor!r} are those of a recurrent layer, too")
        return made

    def _fetched(self, binding: Binding) -> fx.Node:
        made = self.graph.get_attr(binding.places[0])
        part = attribute(self.root, binding.places[0])
        self._trials[made] = (part, part)
        self._trained.add(made)
        return made

    def weight(self, node: Node, place: int) -> Value:
        """An input that is learnt where it is stored, and computed or constant where it is not."""
        found = self.parameter(node, place)
        return self.value(node, place) if found is None else found

    def _free_name(self, wanted: str) -> str:
        plain = re.sub(r"\W+", "_", wanted, flags=re.ASCII).strip("_") or "value"
        plain = plain if not plain[0].isdigit() else f"_{plain}"
        name, number = plain, 1
        while hasattr(self.root, name) or hasattr(fx.GraphModule, name) or name in RESERVED:
            name, number = f"{plain}_{number}", number + 1
        return name


RESERVED = {"graph", "meta", "code"}


def bare(kind: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """A layer whose numbers are still to come: none are drawn."""
    return kind(*args, device="meta", **kwargs).to_empty(device="cpu")
