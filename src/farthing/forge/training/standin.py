"""Stand-ins: networks of an architecture given as data, which take the place of a model, inputs and outputs alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.convert import convert
from farthing.forge.families import Architecture, Shape
from farthing.forge.training.distillation import Distillation
from farthing.forge.training.lesson import lesson
from farthing.forge.training.loop import Hook, train
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Manifest, Model, TensorSpec, checked

FEW = 8


class ChannelsLast(nn.Module):
    """A network of pictures with channels first, for pictures with channels last."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.inner(x.permute(0, 3, 1, 2))
        return made


def network(architecture: Architecture, samples: Samples, seed: int = 0) -> nn.Module:
    """A network of an architecture, its weights drawn anew, that takes the samples as their model takes them.

    Args:
        architecture: of what lies between input and logits.
        samples: their manifest says what goes in and comes out; with ``decode: probabilities`` a softmax (of one number
            a sigmoid) is added.
        seed: of the weights.

    Raises:
        UnsupportedError: the model takes or gives something else than one tensor of floats.
        ConfigError: samples are too small for the architecture.
    """
    shape, outputs = form(samples)
    last = len(shape) == 3 and samples.manifest.data_inputs[0].layout == "NHWC"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = architecture.build(shape, outputs)
    if samples.manifest.decode == "probabilities":
        module = nn.Sequential(module, nn.Softmax(1) if outputs > 1 else nn.Sigmoid())
    return ChannelsLast(module) if last else module


def form(samples: Samples) -> tuple[Shape, int]:
    """The shape of a sample, channels first, and how many numbers a stand-in gives for it.

    Raises:
        UnsupportedError: the model takes or gives something else than one tensor of floats.
    """
    spec, outputs = _ends(samples.manifest)
    shape = tuple(samples.batch(torch.arange(1)).inputs[0].shape[1:])
    return ((shape[2], *shape[:2]) if len(shape) == 3 and spec.layout == "NHWC" else shape), outputs


def trained(
    architecture: Architecture,
    samples: Samples,
    schedule: Schedule,
    teachers: Sequence[Model],
    distillation: Distillation,
    workshop: Workshop,
    hooks: Sequence[Hook] = (),
) -> nn.Module:
    """A network of an architecture, its weights drawn by the schedule's seed and trained; in evaluation mode.

    Args:
        architecture, samples: as `network` takes them.
        schedule, workshop, hooks: as `farthing.forge.training.loop.train` takes them.
        teachers, distillation: whom it learns from, and what.

    Raises:
        FarthingError: as `network`, `farthing.forge.training.lesson.lesson` and the loop raise.
    """
    student = network(architecture, samples, schedule.seed)
    with lesson(student, samples, schedule, teachers, distillation, workshop.listener) as (module, loss):
        train(module, samples, loss, schedule, workshop=workshop, hooks=hooks)
    return student


def _ends(manifest: Manifest) -> tuple[TensorSpec, int]:
    """The one input of a model, and how many numbers it gives for a sample."""
    inputs, outputs = manifest.data_inputs, manifest.outputs
    sizes = [size for spec in outputs for axis, size in enumerate(spec.shape) if axis != spec.batch_axis]
    size = sizes[0] if len(outputs) == len(sizes) == 1 else None
    first = inputs[0]
    if len(inputs) != 1 or first.dtype != "float32" or first.batch_axis != 0 or not isinstance(size, int):
        shown = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in (*inputs, *outputs))
        raise UnsupportedError(
            f"a student takes one float32 input with the batch first, and gives (batch, numbers); {manifest.name} has "
            f"{shown}"
        )
    return first, size


def exported(module: nn.Module, old: Manifest, samples: Samples) -> Model:
    """A trained stand-in as an ONNX model: the tensors' names and all facts are those of the model it stands for.

    Args:
        module: the stand-in.
        old: manifest of that model.
        samples: some of which the file is checked on.

    Raises:
        ConversionError: the file computes something else than the module.
    """
    real = samples.batch(torch.arange(min(FEW, len(samples)))).inputs[0].numpy()
    blank = checked(old, inputs=(), outputs=(), files={}, format="onnx", requires=(), quantization=None)
    made = convert(module, name=old.name, example=real[:2], samples={"": real}, manifest=blank).model
    proto = graph.load(made.file)
    pairs = [(made.manifest.inputs[0], old.data_inputs[0]), (made.manifest.outputs[0], old.outputs[0])]
    _rename(proto, {new.name: was.name for new, was in pairs})
    given, found = (replace(new, name=was.name, layout=was.layout) for new, was in pairs)
    manifest = checked(made.manifest, inputs=(given,), outputs=(found,))
    return Model.create(manifest, {"model.onnx": graph.save_bytes(proto)})


def _rename(proto: Any, names: dict[str, str]) -> None:
    """Give tensors other names, in place; an inner one that has such a name already goes out of the way."""
    own = {name: f"{name}_inner" for name in names.values() if name not in names}
    every = {**own, **names}
    for named in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer, *proto.graph.value_info):
        named.name = every.get(named.name, named.name)
    for node in proto.graph.node:
        node.input[:] = [every.get(name, name) for name in node.input]
        node.output[:] = [every.get(name, name) for name in node.output]
