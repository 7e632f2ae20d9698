"""From an ONNX file to a torch module, and from the trained module to the file again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.nn import functional

from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.trainable import mending, norms, sharing, trying, writing
from farthing.forge.trainable.binding import Binding
from farthing.forge.trainable.builder import Builder
from farthing.forge.trainable.node import AFTER, Node
from farthing.forge.trainable.operators import form
from farthing.forge.trainable.stored import is_constant, stored
from farthing.forge.trainable.weights import attribute, behind
from farthing.model import Manifest, Model, checked

Array = NDArray[Any]
OLDEST = 7  # before it operators broadcast by attributes


def trainable(model: Model, feeds: Mapping[str, Array] | None = None) -> Trainable:
    """Make a torch module of an ONNX model, and check that it computes the same.

    Args:
        model: an ONNX model, not quantized.
        feeds: real inputs by name to check on, a batch as `farthing.bench.feeds` gives it; random ones if None.

    Raises:
        UnsupportedError: the model is no ONNX file, or has an operator without a trainable form (it is named).
        ConversionError: the module computes something else; the first operator that differs is named.
        FeedError: ``feeds`` lacks an input.
        ModelError: the file is damaged.
    """
    if model.manifest.format != "onnx":
        raise UnsupportedError(
            f"{model.manifest.name} is {model.manifest.format}, and only ONNX models become torch modules: "
            "train the ONNX model that it was made of"
        )
    proto = graph.load(model.file)
    graph.name_nodes(proto)
    moved = sharing.part(proto)
    samples = trying.trials(model.manifest, feeds)
    inputs, outputs = (
        [spec.name for spec in specs] for specs in (model.manifest.inputs, model.manifest.outputs)
    )
    built = build(proto, inputs, outputs, samples)
    real = [] if feeds is None else [trying.complete(model.manifest, feeds)]
    made = Trainable(model, proto, moved, built, [*samples, *real])
    trying.compare(made.module, made.traced, proto, model.manifest, made.samples)
    return made


class Trainable:
    """A torch module made of an ONNX model, and the way back.

    Attributes:
        model: what it was made of.
        module: ``forward(*inputs) -> tuple of outputs``, both in the order of the manifest, in evaluation mode at
            first. Convolutions, linear, recurrent and normalising layers are torch's own; their weights are its
            parameters. The batch, and any other free axis, may have any size.
        layers: ONNX node name -> name of the layer in the module.
        samples: inputs that it is checked on.
        traced: ONNX tensor name -> what computes it in the module's graph.
        inputs: ONNX node name -> names of the tensors it reads, as ``traced`` has them.
    """

    def __init__(
        self,
        model: Model,
        proto: onnx.ModelProto,
        moved: Mapping[sharing.Place, str],
        built: Builder,
        samples: Sequence[Mapping[str, Array]],
    ) -> None:
        self.model = model
        self.layers: Mapping[str, str] = dict(built.layers)
        self.samples = list(samples)
        self.module = fx.GraphModule(built.root, built.graph).eval()
        self.bindings: tuple[Binding, ...] = tuple(built.weights.bindings)
        self.norms: dict[str, str] = {}
        self.inputs = {node.name: tuple(node.input) for node in proto.graph.node}
        self._proto = proto
        self._moved = moved
        kept = set(self.module.graph.nodes)
        self.traced = {
            name: made for name, made in built.values.items() if isinstance(made, fx.Node) and made in kept
        }

    def insert_norms(self, batches: Iterable[Sequence[Tensor]], linear: bool = False) -> None:
        """Put a fresh BatchNorm behind each convolution that has none: networks train badly without.

        Exporters fold batch normalization into the convolution before it. Scale and shift are set to what undoes the
        measured mean and variance, so the module in evaluation mode computes what it computed before; they are folded
        into the convolution again by `to_model`. A convolution after which no other layer comes stays as it is.

        Args:
            batches: inputs to measure on, each in the order of the manifest.
            linear: behind linear layers, too.

        Raises:
            TaskError: no batches.
        """
        added = norms.insert(self.module, self.bindings, batches, linear)
        after = {made.args[0]: made for made in self.module.graph.nodes if made.target in added.values()}
        self.traced = {name: after.get(made, made) for name, made in self.traced.items()}
        self.norms |= added

    def part_biases(self) -> None:
        """Add biases by an operator of their own where the ONNX graph does, so that what comes between has its name.

        A MatMul and the Add behind it are one layer otherwise. Numbers and parameters stay as they are.
        """
        for add in self._proto.graph.node:
            total = self.traced.get(add.output[0]) if add.op_type == "Add" else None
            product = next((n for n in add.input if total is not None and self.traced.get(n) is total), None)
            if total is None or product is None or total.op != "call_module":
                continue
            other = next(name for name in add.input if name != product)
            weight, bias = (
                self._beside(total, "weight"),
                self.traced.get(other) or self._beside(total, "bias"),
            )
            with self.module.graph.inserting_before(total):
                made = self.module.graph.call_function(functional.linear, (total.args[0], weight))
                summed = self.module.graph.call_function(torch.add, (made, bias))
            total.replace_all_uses_with(summed)
            self.module.graph.erase_node(total)
            self.traced |= {product: made, other: bias, add.output[0]: summed}
        self.module.recompile()

    def _beside(self, layer: fx.Node, field: str) -> fx.Node:
        """A parameter of a layer, fetched before the layer is called."""
        with self.module.graph.inserting_before(layer):
            return self.module.graph.get_attr(f"{layer.target}.{field}")

    def gradients(self) -> dict[str, Array]:
        """The gradients in the module, by the names of the stored tensors they belong to, and of their shapes.

        Those of several layers that share a tensor are added up; what has none is left out.
        """
        found: dict[str, Array] = {}
        tensors = stored(self._proto)
        for binding in self.bindings:
            parts = [attribute(self.module, place).grad for place in binding.places]
            if all(part is not None for part in parts):
                packed = binding.layout.pack(
                    [part for part in parts if part is not None], tensors[binding.tensor]
                )
                found[binding.tensor] = found.get(binding.tensor, 0) + packed.numpy()
        return found

    def to_model(self, **changes: Any) -> Model:
        """The same ONNX graph with the module's numbers, and where layers have shrunk with their new sizes.

        Args:
            **changes: fields of the manifest.

        Raises:
            ConversionError: the file would not compute what the module computes.
            UnsupportedError: layers have shrunk where the graph cannot follow.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        if writing.write(proto, self.module, self.bindings, self.layers, self.norms):
            trials = [trying.ordered(self.model.manifest, feeds) for feeds in self.samples[:2]]
            mending.mend(proto, self.module, self.traced, self.layers, trials)
        sharing.join(proto, self._moved)
        writing.drop_unused(proto.graph)
        graph.check(proto, f"the trained {self.model.manifest.name}")
        trying.compare(self.module, self.traced, proto, self.model.manifest, self.samples)
        manifest: Manifest = checked(self.model.manifest, **changes)
        return Model.create(manifest, {"model.onnx": graph.save_bytes(proto)})


def build(
    proto: onnx.ModelProto,
    inputs: Sequence[str],
    outputs: Sequence[str],
    samples: tuple[Mapping[str, Array], Mapping[str, Array]],
) -> Builder:
    """The layers and operators of a graph whose nodes have names of their own; nothing is compared.

    Args:
        proto: a loaded model.
        inputs, outputs: names, in the order that the module is to have.
        samples: inputs of two sizes.

    Raises:
        UnsupportedError: an operator has no trainable form.
    """
    opset = graph.opset(proto)
    if opset < OLDEST:
        raise UnsupportedError(f"opset {opset} is too old to train: export the model with {OLDEST} or newer")
    if proto.functions:
        raise UnsupportedError(
            f"the graph has functions of its own, as {proto.functions[0].name!r}: export it without; {AFTER}"
        )
    nodes = [Node.of(node) for node in proto.graph.node if not is_constant(node)]
    last = {name: place for place, node in enumerate(nodes) for name in node.inputs}
    with torch.no_grad():
        tensors = stored(proto)
        builder = Builder(opset, tensors, nodes, outputs)
        for name in behind(nodes, tensors):
            builder.learn(name)
        for name in inputs:
            first, second = (trying.tensor(each[name]) for each in samples)
            builder.input(name, (first, second))
        for place, node in enumerate(nodes):
            if node.outputs[0] not in builder.values:
                results = form(builder, node)
                builder.values |= {
                    name: made for name, made in zip(node.outputs, results, strict=False) if name
                }
            builder.forget(name for name in builder.values if last.get(name, -1) > place)
        builder.finish(outputs)
    return builder
