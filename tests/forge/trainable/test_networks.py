"""Networks of many kinds, from both of torch's exporters: imported, trained, written back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from farthing.assets import ASSETS, fetch
from farthing.errors import AssetError
from farthing.forge import graph, nets, pretrained
from farthing.forge.convert import convert
from farthing.forge.encoders import Encoder
from farthing.forge.trainable import Trainable, trainable
from farthing.model import Model

Array = NDArray[Any]


def watch() -> nn.Module:
    """A 1-D network for windows of a smart watch."""
    return nn.Sequential(
        nn.Conv1d(6, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 3, padding=1, groups=2), nn.BatchNorm1d(32), nn.PReLU(32),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 7),
    )  # fmt: skip


class Reconstruction(nn.Module):
    """An autoencoder whose answer is the mean squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.inwards = nn.Sequential(
            nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 4), nn.ReLU(), nn.Linear(4, 32)
        )
        self.back = nn.Sequential(nn.ReLU(), nn.Linear(32, 9))

    def forward(self, x: Tensor) -> Tensor:
        gap = self.back(self.inwards(x)) - x
        return (gap * gap).mean(1, keepdim=True)


class UNet(nn.Module):
    """Two levels down and up, with skips; up by transposed convolutions or by resizing."""

    def __init__(self, up: str) -> None:
        super().__init__()
        self.one, self.two, self.deep = block(3, 8), block(8, 16), block(16, 32)
        self.pool = nn.MaxPool2d(2)
        if up == "transposed":
            self.up2: nn.Module = nn.ConvTranspose2d(32, 16, 2, 2)
            self.up1: nn.Module = nn.ConvTranspose2d(16, 8, 4, 2, 1)
        else:
            self.up2 = nn.Sequential(nn.Upsample(scale_factor=2, mode=up), nn.Conv2d(32, 16, 1))
            self.up1 = nn.Sequential(nn.Upsample(scale_factor=2, mode=up), nn.Conv2d(16, 8, 1))
        self.back2, self.back1 = block(32, 16), block(16, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(self.pool(one))
        deep = self.deep(self.pool(two))
        two = self.back2(torch.cat([two, self.up2(deep)], 1))
        one = self.back1(torch.cat([one, self.up1(two)], 1))
        out: Tensor = self.head(one)
        return out


def block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


class Recurrent(nn.Module):
    """Two recurrent layers both ways, and a head on the last step."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.layers = kind(6, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.layers(x)
        out: Tensor = self.head(steps.mean(1))
        return out


def encoder() -> nn.Module:
    """A small BERT."""
    return Encoder(words=50, layers=2, width=32, heads=4, inner=64, length=128)


class Kind(NamedTuple):
    build: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...], ...]
    layers: set[type[nn.Module]]
    words: bool = False


NETS = {
    "watch": Kind(watch, ((6, 100),), {nn.Conv1d, nn.PReLU, nn.Linear}),
    "autoencoder": Kind(Reconstruction, ((9,),), {nn.Linear}),
    "unet transposed": Kind(lambda: UNet("transposed"), ((3, 32, 32),), {nn.Conv2d, nn.ConvTranspose2d}),
    "unet bilinear": Kind(lambda: UNet("bilinear"), ((3, 32, 32),), {nn.Conv2d}),
    "unet nearest": Kind(lambda: UNet("nearest"), ((3, 32, 32),), {nn.Conv2d}),
    "lstm": Kind(lambda: Recurrent(nn.LSTM), ((20, 6),), {nn.LSTM, nn.Linear}),
    "gru": Kind(lambda: Recurrent(nn.GRU), ((20, 6),), {nn.GRU, nn.Linear}),
    "encoder": Kind(encoder, ((16,), (16,)), {nn.Embedding, nn.Linear}, words=True),
}
QUICK = {"watch", "unet transposed", "encoder"}  # torch.export takes its time
PROGRAMS = [pytest.param(name, True, marks=[] if name in QUICK else pytest.mark.slow) for name in NETS]
BIG = {"resnet18": (lambda: nets.resnet18(10), "1x3x64x64"), "lite0": (nets.efficientnet_lite0, "1x3x96x96")}


def example(kind: Kind, count: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs for so many samples; tokens below 50, and a mask whose last tokens are hidden."""
    generator = torch.Generator().manual_seed(seed)
    if not kind.words:
        return tuple(torch.randn(count, *shape, generator=generator) for shape in kind.inputs)
    tokens = torch.randint(0, 50, (count, *kind.inputs[0]), generator=generator)
    mask = torch.ones_like(tokens)
    mask[:, -3:] = 0
    return tokens, mask


def exported(kind: Kind, dynamo: bool) -> Model:
    torch.manual_seed(0)
    net = kind.build()
    if not kind.words:
        nets.settle(net, (8, *kind.inputs[0]))
    inputs = example(kind, 2)
    given = inputs if len(inputs) > 1 else inputs[0]
    if not dynamo:
        return convert(net.eval(), example=given).model
    free = torch.export.Dim("batch", min=1)
    program = torch.export.export(net.eval(), inputs, dynamic_shapes=tuple({0: free} for _ in inputs))
    return convert(program, example=given).model


def numbers(model: Model) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(model.file).graph.initializer}


def learn(made: Trainable, inputs: tuple[Tensor, ...]) -> None:
    """One step of training."""
    made.module.train()
    optimizer = torch.optim.SGD(made.module.parameters(), lr=0.05)
    result = made.module(*inputs)[0]
    target = torch.randn(result.shape, generator=torch.Generator().manual_seed(5))
    torch.autograd.backward((result - target).square().mean())
    missing = [
        name for name, p in made.module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert not missing
    optimizer.step()
    made.module.eval()


def check(made: Trainable, after: Model, inputs: tuple[Tensor, ...]) -> None:
    """The written file computes what the module computes."""
    names = [spec.name for spec in after.manifest.inputs]
    found = graph.run(graph.load(after.file), {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    with torch.no_grad():
        results = made.module(*inputs)
    for spec, wanted in zip(after.manifest.outputs, results, strict=True):
        assert found[spec.name].shape == wanted.shape
        scale = float(wanted.abs().max())
        np.testing.assert_allclose(found[spec.name], wanted.numpy(), atol=2e-4 * scale, rtol=0)


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")  # of torch.export, about its own LSTM
@pytest.mark.parametrize(("name", "dynamo"), [*((name, False) for name in NETS), *PROGRAMS])
def test_imported_trained_and_written_back(name: str, dynamo: bool) -> None:
    kind = NETS[name]
    model = exported(kind, dynamo)
    made = trainable(model)
    assert {type(made.module.get_submodule(layer)) for layer in made.layers.values()} >= kind.layers
    again = made.to_model()
    before = numbers(model)
    assert {n: a.tobytes() for n, a in numbers(again).items()}.items() <= {
        n: a.tobytes() for n, a in before.items()
    }.items()
    learn(made, example(kind, 8))
    after = made.to_model()
    for count in (1, 5):
        check(made, after, example(kind, count, seed=1))
    learnt = {binding.tensor for binding in made.bindings}
    changed = {
        n for n, array in numbers(after).items() if n in before and array.tobytes() != before[n].tobytes()
    }
    assert changed <= learnt
    left = (learnt & set(before)) - changed
    assert all(name.endswith("key.bias") for name in left), left  # a softmax does not see it


@pytest.mark.parametrize("name", ["watch", "unet transposed", "unet bilinear"])
def test_norms_of_other_convolutions_are_folded_again(name: str) -> None:
    kind = NETS[name]
    model = exported(kind, dynamo=False)
    made = trainable(model)
    made.insert_norms([example(kind, 8), example(kind, 4, seed=2)])
    assert made.norms
    check(made, model, example(kind, 3, seed=1))
    learn_norms(made, example(kind, 8))
    after = made.to_model()
    check(made, after, example(kind, 3, seed=1))
    assert len(onnx.load(after.file).graph.node) == len(onnx.load(model.file).graph.node)


def learn_norms(made: Trainable, inputs: tuple[Tensor, ...]) -> None:
    """Statistics and scales that are not those the norms began with."""
    made.module.train()
    made.module(*(4 * x for x in inputs))
    made.module.eval()
    with torch.no_grad():
        for name, norm in made.module.named_modules():
            if name in made.norms.values():
                norm.weight.mul_(1.5)
                norm.bias.add_(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", BIG)
def test_larger_networks(name: str) -> None:
    build, size = BIG[name]
    torch.manual_seed(0)
    net = build()
    shape = tuple(map(int, size.split("x")[1:]))
    nets.settle(net, (4, *shape))
    made = trainable(convert(net.eval(), example=size).model)
    made.insert_norms([[torch.randn(8, *shape)]])
    learn(made, (torch.randn(8, *shape),))
    check(made, made.to_model(), (torch.randn(3, *shape),))


@pytest.mark.slow
def test_a_sentence_encoder_that_packages_ship() -> None:
    at_hand("minilm")
    model = pretrained.minilm(tokens=16)
    made = trainable(model)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 20000, (4, 16), generator=generator)
    inputs = tokens, torch.ones_like(tokens)
    check(made, made.to_model(), inputs)
    learn(made, inputs)
    check(made, made.to_model(), inputs)


@pytest.mark.slow
def test_a_detector_that_packages_ship() -> None:
    at_hand("centerface")
    model = pretrained.centerface(height=96, width=128)
    made = trainable(model)
    picture = torch.rand(2, 3, 96, 128) * 255
    made.insert_norms([(picture,)])
    made.module.train()
    sum(result.square().mean() for result in made.module(picture)).backward()
    assert all(p.grad is not None for p in made.module.parameters())
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.mul_(1.01)
    made.module.eval()
    after = made.to_model()
    check(made, after, (picture,))
    assert len(onnx.load(after.file).graph.node) == len(onnx.load(model.file).graph.node)


def at_hand(name: str) -> None:
    try:
        fetch(ASSETS[name])
    except AssetError as error:
        pytest.skip(str(error))
