"""Where exits can be put: tensors of features that all later ones are computed from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import onnx

from farthing.bench import first_feeds
from farthing.errors import ModelError, TaskError, UnsupportedError, nearest
from farthing.forge import graph, macs
from farthing.forge.cut.flow import Flow
from farthing.forge.cut.observe import Tensor, observe
from farthing.forge.exits.training import ExitTraining
from farthing.model import Model, TensorSpec
from farthing.task import CLASS_METRICS, Task

LATEST = 0.9  # share of the work behind which an exit saves next to nothing


class Site(NamedTuple):
    """A tensor that an exit can be put behind.

    Attributes:
        tensor: its name.
        share: of all multiply-accumulates, that are done by then.
        size: whether it is flat (where its numbers were is lost), and its bytes for one sample.
    """

    tensor: str
    share: float
    size: tuple[bool, int]


def check_classifier(model: Model, task: Task) -> None:
    """Refuse what early exits have no meaning for.

    Raises:
        UnsupportedError: a model that is not ONNX, or is no classifier with one output.
        TaskError: a task that does not tell classes apart.
    """
    manifest = model.manifest
    if manifest.format != "onnx":
        raise UnsupportedError(
            f"{manifest.name} is {manifest.format}: exits can be added to ONNX models only"
        )
    if task.metric.name not in CLASS_METRICS:
        known = ", ".join(sorted(CLASS_METRICS))
        raise TaskError(
            f"task {task.name} is measured by {task.metric.name}: early exits are for classifiers ({known})"
        )
    if len(manifest.outputs) != 1:
        names = ", ".join(spec.name for spec in manifest.outputs)
        raise UnsupportedError(
            f"{manifest.name} has the outputs {names}: exits are added to a classifier with one; a model that has its "
            "exits already is cut with `farthing cut --exits`"
        )
    shape = manifest.outputs[0].shape
    if len(shape) != 2 or shape[1] == 1:
        raise UnsupportedError(
            f"{manifest.name} gives {list(shape)}, which are no scores of (samples, classes): it is not a classifier"
        )


def planned(options: ExitTraining, model: Model, task: Task) -> tuple[str, ...]:
    """The places of the options, held against the model, or planned ones.

    Raises:
        ModelError: no node makes one of the places, or nothing is computed between two of them.
        UnsupportedError: no classifier, a place that is no tensor of features, or none to be found.
        TaskError: no training data, or a task that does not tell classes apart.
    """
    check_classifier(model, task)
    network = _Network(model, first_feeds(task, "train", model.manifest))
    if options.places:
        for name in options.places:
            network.check(name)
        network.flow.ancestors([[name] for name in options.places])
        return options.places
    return network.plan(options.count)


class _Network:
    """A graph with its sizes and its work."""

    def __init__(self, model: Model, fed: Mapping[str, graph.Array]) -> None:
        self.name = model.manifest.name
        proto: onnx.ModelProto = graph.load(model.file)
        self.flow = Flow(proto)
        self._tensors, one = observe(proto, self.flow, model.manifest.inputs, fed)
        self._work, self._why = macs.by_node(proto, one)
        self._last = self._tensors[model.manifest.outputs[0].name].spec

    def check(self, name: str) -> None:
        """Refuse a tensor that an exit cannot read."""
        if name not in self.flow.maker:
            raise ModelError(
                f"no node of {self.name} makes the tensor {name!r}; {nearest(name, self.flow.maker)}"
            )
        if not self._features(name):
            raise UnsupportedError(
                f"{name!r} in {self.name} is no float tensor of (samples, channels, ...): put the exit elsewhere"
            )

    def _features(self, name: str) -> bool:
        found: Tensor | None = self._tensors.get(name)
        return found is not None and _is_features(found.spec, self._last)

    def plan(self, count: int) -> tuple[str, ...]:
        """So many places, at even shares of the work."""
        sites = self._sites()
        if not sites:
            raise UnsupportedError(
                f"{self.name} has no place for an exit: no layer is behind one that does a good part of the work, "
                "where one tensor of features alone goes on; name tensors in `places` (`--at` of `farthing exits`)"
            )
        chosen: dict[float, Site] = {}
        for number in range(1, count + 1):
            best = min(sites, key=lambda site: abs(site.share - number / (count + 1)))
            chosen[best.share] = best
        return tuple(chosen[share].tensor for share in sorted(chosen))

    def _sites(self) -> list[Site]:
        """The best tensor for each share of the work: the last of the smallest that are not flat."""
        if self._work is None:
            raise UnsupportedError(
                f"the work of {self.name} is not known ({self._why}): name tensors in `places` (`--at` of `farthing "
                "exits`)"
            )
        whole, done = max(1, sum(self._work.values())), 0
        found: dict[int, Site] = {}
        for place, node in enumerate(self.flow.order[:-1], 1):
            done += self._work.get(node, 0)
            crossing = self.flow.crossing(place)
            if not 0 < done <= LATEST * whole or len(crossing) != 1 or not self._features(crossing[0]):
                continue
            tensor = self._tensors[crossing[0]]
            site = Site(crossing[0], done / whole, (len(tensor.spec.shape) == 2, tensor.bytes))
            if done not in found or site.size <= found[done].size:
                found[done] = site
        return [*found.values()]


def _is_features(spec: TensorSpec, last: TensorSpec) -> bool:
    """Whether a tensor holds (samples, channels, ...) with the samples of the last output."""
    return (
        spec.dtype == "float32"
        and 2 <= len(spec.shape) <= 5
        and spec.shape[0] == last.shape[0]
        and all(isinstance(size, int) for size in spec.shape[1:2])
    )
