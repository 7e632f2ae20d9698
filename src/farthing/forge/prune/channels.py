"""Which channels of a network go together, how much each matters, and taking them out of its graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from farthing.errors import EngineError, ModelError, UnsupportedError
from farthing.forge import graph
from farthing.forge.prune import stated
from farthing.forge.prune.labels import STAYS, Axes, Following, Labels
from farthing.forge.prune.structured import Importance
from farthing.forge.trainable import trying
from farthing.forge.trainable.stored import free_name, tensor_names
from farthing.forge.trainable.writing import drop_unused
from farthing.model import Model

Array = NDArray[Any]
Gradients = Mapping[str, Array]
"""Name of a stored tensor -> the gradient of the loss by it, of the same shape."""


class Coupling:
    """Channels that are taken out together, over all layers that share them.

    Attributes:
        name: the node that gives most of them, the first of several; it stands for all of them in recipes.
        units: a label for each set of channels that goes as one, those that stay in any case left out.
        step: channels of a unit that the node gives: one of each group of a grouped convolution.
        width: channels there are, those that stay in any case counted.
    """

    def __init__(self, name: str, given: Labels, units: Labels) -> None:
        self.name, self.units = name, units
        own = np.isin(given, units)
        self.step = int(own.sum()) // len(np.unique(given[own]))
        self.width = self.step * len(units) + int((~own).sum())

    @property
    def least(self) -> int:
        """The channels that stay in any case."""
        return self.width - self.step * len(self.units)


class Channels:
    """A network whose channels may be taken out.

    Attributes:
        model: the network.
        couplings: by name, in the order of the graph.

    Args:
        model: an ONNX model in float.

    Raises:
        UnsupportedError: it is no ONNX file, or has no channels that could be taken out.
    """

    def __init__(self, model: Model) -> None:
        if model.manifest.format != "onnx":
            raise UnsupportedError(
                f"{model.manifest.name} is {model.manifest.format}: prune the ONNX model that it was made of"
            )
        self.model = model
        self._proto = graph.load(model.file)
        graph.name_nodes(self._proto)
        _unshare(self._proto)
        self._feeds = trying.trials(model.manifest, None)[1]
        self._following = Following(self._proto, self._feeds)
        self._tensors = graph.constants(self._proto)
        root = self._following.root
        self._gives = {name: root(labels) for name, labels in self._following.gives.items()}
        self._axes = {
            name: [None if labels is None else root(labels) for labels in axes]
            for name, axes in self._following.stored.items()
            if name in self._tensors
        }
        coupled = {one.name: one for one in _coupled(self._gives)}
        self.couplings = {name: coupled[name] for name in self._gives if name in coupled}
        if not self.couplings:
            raise UnsupportedError(f"{model.manifest.name} has no layer whose channels could be taken out")

    def importance(self, kind: Importance, gradients: Iterable[Gradients] = ()) -> dict[str, Array]:
        """How much each unit of each coupling matters: name -> float64 of the length of its ``units``, from 0.

        Args:
            kind: ``l1`` and ``l2``, the weights that belong to a channel in all coupled layers, absolute or squared
                (Li et al. 2017, https://arxiv.org/abs/1608.08710), relative to their mean in each layer and coupling;
                ``bn``, the scales of batch normalization, likewise (Liu et al. 2017,
                https://arxiv.org/abs/1708.06519), and ``l2`` where a layer has none; ``taylor``, the square of weights
                times gradients, by which the loss would change, averaged over batches (Molchanov et al. 2019,
                https://arxiv.org/abs/1906.10771), relative to nothing.
            gradients: for ``taylor``, of one batch after another: over all data together those of a trained network
                nearly cancel out.

        Raises:
            UnsupportedError: ``bn`` where no batch normalization is left in the file.
        """
        if kind == "bn" and not self._following.scales:
            raise UnsupportedError(
                f"{self.model.manifest.name} has no batch normalization to rank channels by, or it is folded away: "
                "use importance l2"
            )
        found: dict[str, Array] = {}
        for each in gradients if kind == "taylor" else ({},):
            for name, one in self.couplings.items():
                found[name] = found.get(name, 0.0) + self._scores(one, kind, each)
        for name, scores in found.items():
            if not np.isfinite(scores).all():
                raise UnsupportedError(
                    f"the weights of {name} are no numbers: their importance cannot be told"
                )
        return found

    def _scores(self, one: Coupling, kind: Importance, gradients: Gradients) -> Array:
        places = {int(label): place for place, label in enumerate(one.units)}
        parts: list[Array] = []
        for name, axes in self._axes.items():
            for axis, labels in enumerate(axes):
                if labels is not None and not places.keys().isdisjoint(labels.tolist()):
                    numbers = self._judged(name, axis, kind, gradients)
                    if numbers is not None:
                        parts.append(_summed(numbers, labels, places, whole=kind == "taylor"))
        if not parts:
            return self._scores(one, "l2", {}) if kind == "bn" else np.ones(len(one.units))
        if kind == "taylor":
            total: Array = np.sum(parts, 0)
            return total
        each = [part / max(float(part.mean()), 1e-30) for part in parts]
        scores: Array = np.mean(each, 0)
        return scores / max(float(scores.mean()), 1e-30)

    def _judged(self, name: str, axis: int, kind: Importance, gradients: Gradients) -> Array | None:
        """What a stored tensor says about the channels along an axis of it: a number for each; None if nothing."""
        if kind == "bn" and name not in self._following.scales:
            return None
        array = numpy_helper.to_array(self._tensors[name]).astype(np.float64)
        if kind == "taylor":
            if name not in gradients:
                return None
            array = array * gradients[name]
        elif kind != "bn" and array.ndim < 2:
            return None
        else:
            array = array**2 if kind == "l2" else np.abs(array)
        rest = tuple(place for place in range(array.ndim) if place != axis)
        numbers: Array = array.sum(rest)
        return numbers

    def without(
        self, widths: Mapping[str, int], scores: Mapping[str, Array]
    ) -> tuple[Model, dict[str, Array]]:
        """The network with couplings as wide as asked for, their least important channels gone.

        Args:
            widths: name of a coupling -> channels that its first node is to give; others stay as they are.
            scores: as `importance` gives them.

        Returns:
            The model; and for each node with weights which of the channels it gave are left, as indices.

        Raises:
            UnsupportedError: a name that is no coupling of this network, or a graph that cannot follow.
        """
        gone = [self._doomed(name, width, scores) for name, width in widths.items()]
        removed = np.concatenate([np.zeros(0, np.int64), *gone])
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        _cut(proto, self._axes, removed)
        for node in proto.graph.node:
            if node.op_type in {"Conv", "ConvTranspose"}:
                self._regroup(node, removed)
        self._restate(proto, removed)
        proto.graph.ClearField("value_info")
        drop_unused(proto.graph)
        self._check(proto)
        left = {name: np.flatnonzero(~np.isin(labels, removed)) for name, labels in self._gives.items()}
        return Model.create(self.model.manifest, {"model.onnx": graph.save_bytes(proto)}), left

    def _doomed(self, name: str, width: int, scores: Mapping[str, Array]) -> Labels:
        """The units of a coupling that go."""
        if name not in self.couplings:
            raise UnsupportedError(
                f"{self.model.manifest.name} has no prunable node {name!r}: it has {', '.join(self.couplings)}"
            )
        one = self.couplings[name]
        count = min(max(0, one.width - width) // one.step, len(one.units) - (1 if one.least == 0 else 0))
        return one.units[np.argsort(scores[name], kind="stable")[:count]]

    def _regroup(self, node: onnx.NodeProto, removed: Labels) -> None:
        """A depthwise convolution has as many groups as channels are left."""
        for item in node.attribute:
            labels = self._axes.get(node.input[1], [None])[0]
            tensor = self._tensors.get(node.input[1])
            if (
                item.name == "group"
                and item.i > 1
                and labels is not None
                and tensor is not None
                and tensor.dims[1] == 1
            ):
                item.i = int((~np.isin(labels, removed)).sum()) * item.i // len(labels)

    def _restate(self, proto: onnx.ModelProto, removed: Labels) -> None:
        """State the new sizes where sizes are stated."""
        following = self._following

        def left(name: str) -> list[int | None]:
            return [
                None if labels is None else int((~np.isin(following.root(labels), removed)).sum())
                for labels in following.axes[name]
            ]

        def computed(node: onnx.NodeProto) -> list[int]:
            sizes = list(following.shapes[node.output[0]])
            free = [axis for axis, size in enumerate(sizes) if size == 2]
            return [-1, *sizes[1:]] if self._batch_leads() and free[:1] == [0] else sizes

        stated.restate(proto, left, computed)

    def _batch_leads(self) -> bool:
        """Whether the model has a free batch, first."""
        specs = self.model.manifest.data_inputs
        return any(spec.batch_axis == 0 and spec.fixed_batch is None for spec in specs)

    def _check(self, proto: onnx.ModelProto) -> None:
        """That the graph still computes, and outputs have the shapes they had."""
        name = self.model.manifest.name
        try:
            graph.check(proto, f"the pruned {name}")
            for feeds in trying.trials(self.model.manifest, None):
                before, after = graph.run(self._proto, feeds), graph.run(proto, feeds)
                if any(after[key].shape != array.shape for key, array in before.items()):
                    raise UnsupportedError(f"pruning would change the outputs of {name}")
        except (ModelError, EngineError) as error:
            raise UnsupportedError(f"the graph of {name} cannot follow where channels go: {error}") from error


def _unshare(proto: onnx.ModelProto) -> None:
    """Give every node vectors of its own, in place: exporters store equal ones (biases of zeros) once, or hand them on
    by Identity nodes, which couples nothing.
    """
    _inline(proto)
    vectors = {tensor.name: tensor for tensor in proto.graph.initializer if len(tensor.dims) == 1}
    taken = tensor_names(proto)
    seen: set[str] = set()
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            if name in seen:
                fresh = free_name(f"{name}_{node.name}", taken)
                proto.graph.initializer.add().CopyFrom(vectors[name])
                proto.graph.initializer[-1].name = fresh
                node.input[place] = fresh
            elif name in vectors:
                seen.add(name)


def _inline(proto: onnx.ModelProto) -> None:
    """Take out Identity nodes that hand on stored tensors."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    given = {value.name for value in proto.graph.output}
    aliases: dict[str, str] = {}
    kept = []
    for node in proto.graph.node:
        source = aliases.get(node.input[0], node.input[0]) if node.input else ""
        if node.op_type == "Identity" and source in stored and node.output[0] not in given:
            aliases[node.output[0]] = source
        else:
            kept.append(node)
    fresh = onnx.GraphProto(node=kept)
    for node in graph.nodes(fresh):
        for place, name in enumerate(node.input):
            node.input[place] = aliases.get(name, name)
    del proto.graph.node[:]
    proto.graph.node.extend(fresh.node)


def _coupled(gives: Mapping[str, Labels]) -> list[Coupling]:
    """Nodes that share units give one coupling."""
    found: list[tuple[list[str], set[int]]] = []
    for name, labels in gives.items():
        names, units = [name], {*labels.tolist()} - {STAYS}
        if not units:
            continue
        for other in [one for one in found if not units.isdisjoint(one[1])]:
            found.remove(other)
            names, units = [*other[0], *names], units | other[1]
        found.append((names, units))
    return [_named(names, np.array(sorted(units), np.int64), gives) for names, units in found]


def _named(names: Sequence[str], units: Labels, gives: Mapping[str, Labels]) -> Coupling:
    order = [name for name in gives if name in names]
    name = max(order, key=lambda one: len(np.intersect1d(gives[one], units)))
    return Coupling(name, gives[name], units)


def _summed(numbers: Array, labels: Labels, places: Mapping[int, int], whole: bool) -> Array:
    """Numbers of an axis, added up for each unit; squared after that if ``whole``."""
    sums = np.zeros(len(places))
    for number, label in zip(numbers.tolist(), labels.tolist(), strict=True):
        if label in places:
            sums[places[label]] += number
    return sums**2 if whole else sums


def _cut(proto: onnx.ModelProto, axes: Mapping[str, Axes], removed: Labels) -> None:
    """Take the places of removed labels out of every stored tensor, and out of what is declared of it."""
    declared = {value.name: value for value in proto.graph.input}
    for name, tensor in graph.constants(proto).items():
        array = numpy_helper.to_array(tensor)
        before = array.shape
        for axis, labels in enumerate(axes.get(name, ())):
            if labels is not None and len(labels) == array.shape[axis]:
                array = np.compress(~np.isin(labels, removed), array, axis)
        if array.shape != before:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
            if name in declared:
                dims = declared[name].type.tensor_type.shape.dim
                for dim, size in zip(dims, array.shape, strict=True):
                    dim.dim_value = size
