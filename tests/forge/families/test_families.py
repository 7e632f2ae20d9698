"""Families of networks: what they are said to cost, held against the files that are exported from them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.config import canonical, convert, plain
from farthing.errors import ConfigError
from farthing.forge import graph, macs, nets
from farthing.forge.convert import convert as exported
from farthing.forge.families import FAMILIES, Architecture, Cost, Layer, Stage
from farthing.forge.fuse import Fuse
from farthing.model import Model
from farthing.target import Target
from farthing.task import Split, Task

HERE = Target(name="here", arch="x86_64")
PICTURE, SIGNAL = (3, 13, 10), (6, 50)
MOBILENET_V2 = Architecture(
    family="mobilenet",
    stem=Stage(width=32, stride=2),
    stages=tuple(
        Stage(expansion=expansion, width=width, depth=depth, stride=stride)
        for expansion, width, depth, stride in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        )
    ),
    head=1280,
    activation="relu6",
)  # fmt: skip


def sample(family: str, padding: str = "same", **options: Any) -> Architecture:
    """Every trait of a family: strides, depth, two kernels, a stem, a short cut with and without a convolution."""
    expansion = 3 if family == "mobilenet" else 1
    stages = [
        Stage(width=8, depth=2, stride=2, kernel=5, expansion=expansion),
        Stage(width=12, depth=2, stride=2, pool=(2, 2)),
    ]
    given = {"family": family, "stem": {"width": 8}, "stages": plain(stages), "padding": padding, **options}
    return convert(given, Architecture, "a test")


CASES = [
    *((sample(f, padding), shape) for f in FAMILIES for padding in ("same", "even") for shape in (PICTURE, SIGNAL)),
    (sample("plain", pooling="flatten", hidden=[16], norm=False, activation="relu6"), PICTURE),
    (sample("dscnn", head=24, pooling="flatten"), SIGNAL),
    (sample("resnet", activation="none"), SIGNAL),
]  # fmt: skip


def fused(architecture: Architecture, shape: tuple[int, ...]) -> Model:
    torch.manual_seed(0)
    net = architecture.build(shape, 7).eval()
    model = exported(net, name="net", example=np.ones((2, *shape), np.float32)).model
    return Fuse()(
        model, HERE, Task("none", {"validation": Split({"": np.ones((1, *shape), np.float32)})}, "agreement")
    )


def seen(model: Model, shape: tuple[int, ...]) -> Cost:
    """The cost as the exported file has it: its initializers, its operators, the shapes and lives of its tensors."""
    proto = graph.load(model.file)
    feeds = {model.manifest.inputs[0].name: np.ones((1, *shape), np.float32)}
    learnt = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if node.op_type in {"Conv", "Gemm"}]
    weights, biases = ([name for node in nodes for name in node.input[i : i + 1]] for i in (1, 2))
    total, why = macs.count(proto, feeds)
    assert total is not None, why
    return Cost(
        weights=sum(math.prod(learnt[name]) for name in weights),
        biases=sum(math.prod(learnt[name]) for name in biases),
        macs=total,
        activations=alive(proto, feeds),
    )


def alive(proto: Any, feeds: Any) -> int:
    """Most numbers alive at once, activations being part of the operator before them."""
    every = [name for node in proto.graph.node for name in node.output]
    values = {
        **feeds,
        **graph.run(proto, feeds, [n for n in every if n != proto.graph.output[0].name], optimise=False),
    }
    other: dict[str, str] = {}

    def real(name: str) -> str:
        return real(other[name]) if name in other else name

    steps: list[tuple[list[str], str]] = []
    for node in proto.graph.node:
        inputs = [real(name) for name in node.input if name in values]
        if node.op_type in {"Relu", "Clip", "Flatten", "Pad"}:
            other[node.output[0]] = inputs[0]
        else:
            steps.append((inputs, node.output[0]))
    most, live = 0, set(feeds)
    for number, (_, output) in enumerate(steps):
        live.add(output)
        most = max(most, sum(values[name].size for name in live))
        later = {name for inputs, _ in steps[number + 1 :] for name in inputs}
        live &= later
    return most


@pytest.mark.parametrize(
    ("architecture", "shape"), CASES, ids=lambda case: getattr(case, "family", None) or str(len(case))
)
def test_what_a_network_costs_is_what_its_file_holds(
    architecture: Architecture, shape: tuple[int, ...]
) -> None:
    assert architecture.cost(shape, 7) == seen(fused(architecture, shape), shape)


def test_published_networks_have_their_published_sizes() -> None:
    v2 = MOBILENET_V2.cost((3, 224, 224), 1000)
    assert round(v2.macs / 1e6) == 301  # Sandler et al. 2018, table 4, give 300 M
    assert nets.parameters(MOBILENET_V2.build((3, 224, 224), 1000)) == 3_504_872
    assert round(nets.RESNET18.cost((3, 224, 224), 1000).macs / 1e6) == 1814
    assert nets.DIGITS_CNN.cost((1, 28, 28), 10).parameters == 421_642


def test_bytes_of_an_int8_model() -> None:
    cost = Architecture(family="plain", stages=(Stage(width=4, stride=2),)).cost((1, 8, 8), 10)
    assert (cost.weights, cost.biases) == (36 + 40, 14)
    assert (cost.weight_bytes, cost.float_weight_bytes) == (76 + 56, 4 * 90)
    assert cost.activation_bytes == 64 + 4 * 4 * 4
    assert cost.float_activation_bytes == 4 * cost.activation_bytes


@settings(max_examples=40, deadline=None)
@given(
    places=st.integers(1, 40),
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 4),
    axes=st.integers(1, 2),
)
def test_same_padding_gives_a_place_for_every_stride_begun(
    places: int, kernel: int, stride: int, axes: int
) -> None:
    layer = Layer(kind="conv", inputs=1, outputs=1, kernel=kernel, stride=stride)
    assert layer.shape((1, *[places] * axes))[1:] == (math.ceil(places / stride),) * axes


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    widths=st.lists(st.sampled_from([4, 8, 12]), min_size=1, max_size=3),
    depth=st.integers(1, 2),
    stride=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5]),
    shape=st.sampled_from([(1, 9, 6), (2, 16, 16), (3, 31), (1, 5)]),
    padding=st.sampled_from(["same", "even"]),
)
def test_the_module_has_the_shapes_and_parameters_that_are_computed(
    family: str, widths: list[int], depth: int, stride: int, kernel: int, shape: tuple[int, ...], padding: str
) -> None:
    stages = [{"width": width, "depth": depth, "stride": stride, "kernel": kernel} for width in widths]
    made = convert({"family": family, "stages": stages, "padding": padding}, Architecture, "a test")
    net = made.build(shape, 5).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, *shape)).shape == (2, 5)
    cost = made.cost(shape, 5)
    norms = sum(layer.outputs for block in made.blocks(shape, 5) for layer in block.layers if layer.norm)
    assert (
        nets.parameters(net) == cost.parameters + norms
    )  # a norm has two numbers a channel, the bias it becomes one


def test_an_architecture_is_plain_data() -> None:
    made = sample("mobilenet")
    assert convert(plain(made), Architecture, "a test") == made
    assert canonical(made) == canonical(sample("mobilenet"))
    assert canonical(made) != canonical(sample("mobilenet", head=8))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"family": "plain", "stages": []}, "needs a stage"),
        ({"family": "plain", "stages": [{"width": 8, "expansion": 2}]}, "only mobilenet has an expansion"),
        ({"family": "resnet", "stages": [{"width": 0}]}, "width of a stage"),
        ({"family": "resnet", "stages": [{"width": 8, "kernel": 4}]}, "is odd"),
        ({"family": "restnet", "stages": [{"width": 8}]}, "did you mean 'resnet'"),
        ({"family": "plain", "stages": [{"width": 8}], "hidden": [0]}, "hidden of features from 1"),
        ({"family": "plain", "stages": [{"width": 8, "pool": [0, 2]}]}, "a window and a stride"),
    ],
)
def test_an_impossible_architecture_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        convert(given, Architecture, "a test")


def test_samples_that_are_too_small_or_of_another_form_are_refused() -> None:
    pooled = Architecture(family="plain", stages=(Stage(width=8, pool=(2, 2)),) * 3)
    with pytest.raises(ConfigError, match="fewer strides and poolings"):
        pooled.build((1, 4, 4), 10)
    for shape in ((8,), (1, 2, 3, 4), (0, 8)):
        with pytest.raises(ConfigError, match="channels, length"):
            pooled.build(shape, 10)
