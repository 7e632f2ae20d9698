"""Fake quantization: a module that rounds where its file in 8 bits will, and learns with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrize

from farthing.bench import first_feeds
from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.folding import foldable
from farthing.forge.quantize import compensate
from farthing.forge.quantize.calibrate import ranges
from farthing.forge.quantize.qat import QuantizationAware
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.trainable import Trainable, trainable
from farthing.forge.trainable.norms import BACK, BATCH_NORMS
from farthing.forge.training.loop import Hook, Moment
from farthing.forge.training.losses import understood
from farthing.forge.training.samples import Samples
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

Array = NDArray[Any]
Kind = Literal["learned", "observed", "fixed"]
FEW = 4
MOMENTUM = 0.05  # of observed ranges: how far a batch moves them
SETTLED = {"Softmax"}
"""Operators whose results have ranges that the quantizer knows without looking."""
LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}


def static(options: QuantizationAware) -> StaticInt8:
    """The same quantization without training."""
    return StaticInt8(
        calibrator=options.calibrator,
        percentile=options.percentile,
        samples=options.samples,
        activations=options.activations,
        weights=options.weights,
        per_channel=options.per_channel,
        reduce_range=options.reduce_range,
        exclude=options.exclude,
    )


def trained(
    options: QuantizationAware, model: Model, target: Target, task: Task, workshop: Workshop
) -> Model:
    """The model in 8 bits, trained with the rounding; see `QuantizationAware`."""
    if any(foldable(graph.load(model.file))):
        raise UnsupportedError(
            f"{model.manifest.name} has batch normalization that 8 bits would keep apart: put graph.fuse.v1 before "
            "quantize.qat.v1, which folds it"
        )
    fixed = static(options).resolved(target)
    begun = fixed(model, target, task)
    samples = Samples(task, understood(model))
    made = trainable(model, first_feeds(task, "train", model.manifest, FEW))
    fakes = Fakes(made, graph.load(begun.file), fixed, options.ranges)
    options.train(made, samples, model, workshop, [Freezing(fakes, options.freeze)])
    found = fakes.over(ranges(model, task, fixed.calibrator, fixed.percentile, fixed.samples))
    fakes.end()
    return fixed.quantized(made.to_model(), target, task, found)


class Fakes:
    """The rounding that a file in 8 bits has, put into the module of its float model.

    Args:
        made: the float model.
        quantized: the same with Q/DQ pairs.
        options: how it was quantized.
        kind: what becomes of the ranges.
    """

    def __init__(
        self,
        made: Trainable,
        quantized: onnx.ModelProto,
        options: StaticInt8,
        kind: Kind,
    ) -> None:
        self._made = made
        made.part_biases()
        self._layers = list(_weighted(made, quantized))
        for layer, per_channel in self._layers:
            axis = (1 if isinstance(layer, BACK) else 0) if per_channel else None
            rounding = FakeStored(options, options.weights, options.weights == "int8", axis)
            parametrize.register_parametrization(layer, "weight", rounding, unsafe=True)
        self._ranges: list[tuple[FakeRange, tuple[str, ...]]] = []
        limits = LIMITS[options.activations or "uint8"]
        settled = {node.output[0] for node in quantized.graph.node if node.op_type in SETTLED}
        for names, low, high in _ranged(quantized, options.activations or "uint8"):
            fake = FakeRange(low, high, limits, "fixed" if settled.intersection(names) else kind)
            if self._put(f"fake_{len(self._ranges)}", names, fake):
                self._ranges.append((fake, tuple(names)))
        self._stored = [
            (name, FakeStored(options, type_)) for name, type_ in _summands(made, quantized).items()
        ]
        for number, (name, rounding) in enumerate(self._stored):
            self._put(f"fake_stored_{number}", [name], rounding)
        made.module.recompile()
        if not self._ranges:
            raise UnsupportedError(
                f"{made.model.manifest.name} computes nothing in 8 bits that could be trained"
            )

    def _put(self, place: str, names: Sequence[str], fake: nn.Module) -> bool:
        """One rounding behind every tensor that shares it; False if the module has none of them."""
        module, here = self._made.module, [name for name in names if name in self._made.traced]
        if not here:
            return False
        module.add_module(place, fake)
        for name in here:
            value = self._made.traced[name]
            with module.graph.inserting_after(value):
                after = module.graph.call_module(place, (value,))
            for user in [user for user in value.users if user is not after]:
                user.replace_input_with(value, after)
        return True

    def freeze(self) -> None:
        """Ranges stay as they are from now on."""
        for fake, _ in self._ranges:
            fake.moves = False

    def over(self, found: Any) -> Any:
        """Calibrated ranges, replaced by the trained ones where there are any."""
        kind: Any = type(next(iter(found.values())))
        data = dict(found.items())
        for fake, names in self._ranges:
            low, high = (np.asarray(end.detach().numpy(), np.float32) for end in fake.ends())
            data |= {name: kind(lowest=low, highest=high) for name in names if name in data}
        return type(found)(found.calibration_method, data)

    def end(self) -> None:
        """Take the rounding out again; weights keep the values that they were rounded to."""
        for fake, _ in self._ranges:
            fake.rounds = False
        for _, rounding in self._stored:
            rounding.rounds = False
        for layer, _ in self._layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


class Freezing(Hook):
    """Stops the ranges after a share of the steps, and statistics that were not folded away from the beginning on."""

    def __init__(self, fakes: Fakes, share: float) -> None:
        self._fakes, self._share = fakes, share

    def start(self, moment: Moment) -> None:
        for layer in moment.module.modules():
            if isinstance(layer, BATCH_NORMS):  # nothing stands before it that takes it up
                layer.eval()

    def before_step(self, moment: Moment) -> None:
        if moment.step >= self._share * moment.steps:
            self._fakes.freeze()


class FakeRange(nn.Module):
    """Rounds activations as QuantizeLinear and DequantizeLinear do together.

    Attributes:
        moves: whether its range is learned or observed for now.
        rounds: False lets everything through.
    """

    def __init__(self, low: float, high: float, limits: tuple[int, int], kind: Kind) -> None:
        super().__init__()
        self._limits, self._kind = limits, kind
        self.moves, self.rounds = kind != "fixed", True
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("high", torch.tensor(high))
        if kind == "learned":  # as factors: steps of an optimizer then mean the same for every range
            self.factors = nn.Parameter(torch.zeros(2))

    def ends(self) -> tuple[Tensor, Tensor]:
        """Both ends of the range."""
        if self._kind != "learned":
            return self.low, self.high
        factors = self.factors if self.moves else self.factors.detach()
        low, high = (
            end * torch.exp(factor) for end, factor in zip((self.low, self.high), factors, strict=True)
        )
        return low, high

    def forward(self, x: Tensor) -> Tensor:
        if not self.rounds:
            return x
        if self._kind == "observed" and self.moves and self.training:
            with torch.no_grad():
                self.low.lerp_(x.min().clamp_max(0), MOMENTUM)
                self.high.lerp_(x.max().clamp_min(0), MOMENTUM)
        low, high = self.ends()
        least, most = self._limits
        scale = ((high - low) / (most - least)).clamp_min(torch.finfo(torch.float32).tiny)
        zero = _rounded(least - low / scale)
        return (torch.clamp(_rounded(x / scale) + zero, least, most) - zero) * scale


class FakeStored(nn.Module):
    """Rounds stored numbers as the quantizer does: by their largest value now, of each channel or of all.

    Args:
        options: of the quantizer.
        kind: the type they are stored in: that of weights, or of activations for what is added to these.
        symmetric: whether zero lies in the middle.
        axis: along which channels lie; None for one scale.

    Attributes:
        rounds: False lets everything through.
    """

    def __init__(
        self, options: StaticInt8, kind: str, symmetric: bool = False, axis: int | None = None
    ) -> None:
        super().__init__()
        self._symmetric, self._axis, self.rounds = symmetric, axis, True
        reduced = bool(options.reduce_range)
        self._limits = compensate.LIMITS[kind, reduced] if symmetric or reduced else LIMITS[kind]

    def forward(self, weight: Tensor) -> Tensor:
        if not self.rounds:
            return weight
        others = tuple(axis for axis in range(weight.ndim) if axis != self._axis)
        least, most = self._limits
        low = weight.detach().amin(others, keepdim=True).clamp_max(0)
        high = weight.detach().amax(others, keepdim=True).clamp_min(0)
        if self._symmetric:
            high = torch.maximum(-low, high)
            low = -high
        scale = (high - low) / (most - least)
        scale = torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
        zero = torch.zeros_like(scale) if self._symmetric else torch.round(least - low / scale)
        return (torch.clamp(_rounded(weight / scale) + zero, least, most) - zero) * scale


def _rounded(x: Tensor) -> Tensor:
    """Rounded to the nearest whole number; the gradient goes straight through (Bengio et al. 2013,
    https://arxiv.org/abs/1308.3432).
    """
    return x + (torch.round(x) - x).detach()


def _weighted(made: Trainable, quantized: onnx.ModelProto) -> Iterator[tuple[nn.Module, bool]]:
    """Layers whose weights are stored in 8 bits, and whether each channel has a scale."""
    makers = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    twins = {node.name: node for node in quantized.graph.node}
    seen: set[nn.Module] = set()
    for name, place in made.layers.items():
        layer, twin = made.module.get_submodule(place), twins.get(name)
        maker = makers.get(twin.input[1]) if twin is not None and len(twin.input) > 1 else None
        if maker is None or maker.input[0] not in stored or layer in seen:
            continue
        seen.add(layer)
        if isinstance(getattr(layer, "weight", None), Tensor):
            yield layer, len(stored[maker.input[1]].dims) == 1 and stored[maker.input[1]].dims[0] > 1


def _ranged(quantized: onnx.ModelProto, kind: str) -> Iterator[tuple[tuple[str, ...], float, float]]:
    """Tensors that are quantized while running, those of one scale together, and their range."""
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    results = {
        node.input[0]: node.output[0] for node in quantized.graph.node if node.op_type == "DequantizeLinear"
    }
    found: dict[str, tuple[onnx.NodeProto, list[str]]] = {}
    for node in quantized.graph.node:
        if node.op_type == "QuantizeLinear":
            names = found.setdefault(node.input[1], (node, []))[1]
            names += [node.input[0], *([results[node.output[0]]] if node.output[0] in results else [])]
    least, most = LIMITS[kind]
    for node, names in found.values():
        scale = float(numpy_helper.to_array(stored[node.input[1]]))
        zero = int(numpy_helper.to_array(stored[node.input[2]])) if len(node.input) > 2 else 0
        yield tuple(dict.fromkeys(names)), (least - zero) * scale, (most - zero) * scale


def _summands(made: Trainable, quantized: onnx.ModelProto) -> dict[str, str]:
    """Stored tensors that are rounded and are no layer's, as a bias that an Add of its own has: name -> type."""
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    makers = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    found: dict[str, str] = {}
    for node in quantized.graph.node:
        if node.name not in made.inputs or node.name in made.layers:
            continue
        for place, name in enumerate(node.input):
            maker = makers.get(name)
            if maker is not None and maker.input[0] in stored and place < len(made.inputs[node.name]):
                kind = graph.dtype_name(stored[maker.input[0]].data_type)
                if kind in LIMITS:
                    found[made.inputs[node.name][place]] = kind
    return found
