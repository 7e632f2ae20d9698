"""Whole networks: random stacks of layers, small trained nets, and published ones in slow tests."""

from __future__ import annotations

import io
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper
from torch import nn

from farthing import bench
from farthing.assets import ASSETS, fetch
from farthing.errors import AssetError
from farthing.forge import graph, nets
from farthing.forge.fuse import Fuse
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.training.loop import train
from farthing.forge.training.losses import CrossEntropy
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.model import Model
from farthing.target import Target
from farthing.task import Split, Task

Array = NDArray[Any]
VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))
LAYERS = "conv strided depthwise grouped relu relu6 leaky swish norm pool mean add concat pad shuffle".split()


class Stack:
    """A graph that grows by a layer at a time; ``x`` is its end so far, of ``channels`` and ``size``."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.channels, self.size, self.x = 3, 12, "image"

    def constant(self, *shape: int, scale: float = 0.3, offset: float = 0.0) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = (self.generator.standard_normal(shape) * scale + offset).astype(np.float32)
        return name

    def whole(self, *values: int) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(values)
        return name

    def then(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        node = helper.make_node(kind, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes)
        self.nodes.append(node)
        return name

    def conv(self, x: str, outputs: int, groups: int = 1, **attributes: Any) -> str:
        weights = self.constant(
            outputs, self.channels // groups, 3, 3, scale=(2 / 9 / self.channels * groups) ** 0.5
        )
        bias = self.constant(outputs, scale=0.1)
        return self.then("Conv", x, weights, bias, group=groups, pads=[1, 1, 1, 1], **attributes)

    def add(self, layer: str) -> None:
        """One more layer."""
        x, channels = self.x, self.channels
        simple: dict[str, Callable[[], str]] = {
            "depthwise": lambda: self.conv(x, channels, channels),
            "relu": lambda: self.then("Relu", x),
            "relu6": lambda: self.then("Clip", x, self.scalar(0), self.scalar(6)),
            "leaky": lambda: self.then("LeakyRelu", x, alpha=0.1),
            "swish": lambda: self.then("Mul", x, self.then("Sigmoid", x)),
            "add": lambda: self.then("Add", x, self.conv(x, channels)),
        }
        if layer in simple:
            self.x = simple[layer]()
        elif layer == "conv":
            self.channels, self.x = 8, self.conv(x, 8)
        elif layer == "grouped" and channels % 4 == 0:
            self.x = self.conv(x, channels, 4)
        elif layer == "norm":
            statistic = [self.constant(channels, scale=0.1, offset=offset) for offset in (1, 0, 0)]
            self.x = self.then(
                "BatchNormalization", x, *statistic, self.constant(channels, scale=0.01, offset=1)
            )
        elif layer == "concat":
            self.x = self.then("Concat", x, self.then("Relu", x), axis=1)
            self.channels = 2 * channels
        elif layer == "shuffle" and channels % 2 == 0:
            shapes = [
                self.whole(0, 2, channels // 2, self.size, self.size),
                self.whole(0, channels, self.size, self.size),
            ]
            turned = self.then("Transpose", self.then("Reshape", x, shapes[0]), perm=[0, 2, 1, 3, 4])
            self.x = self.then("Reshape", turned, shapes[1])
        else:
            self.shrink(layer)

    def shrink(self, layer: str) -> None:
        """Layers that change height and width."""
        x = self.x
        if layer == "pad" and self.size < 16:
            self.x, self.size = self.then("Pad", x, self.whole(0, 0, 1, 0, 0, 0, 0, 1)), self.size + 1
        elif layer == "strided" and self.size >= 4:
            self.x, self.size = self.conv(x, self.channels, strides=[2, 2]), (self.size + 1) // 2
        elif layer in {"pool", "mean"} and self.size >= 4:
            kind = "MaxPool" if layer == "pool" else "AveragePool"
            self.x, self.size = self.then(kind, x, kernel_shape=[2, 2], strides=[2, 2]), self.size // 2

    def scalar(self, value: float) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.float32(value)
        return name

    def head(self, flatten: bool) -> None:
        """Logits."""
        if flatten:
            width, flat = self.channels * self.size**2, self.then("Flatten", self.x)
        else:
            width, flat = self.channels, self.then("Flatten", self.then("GlobalAveragePool", self.x))
        weights, bias = self.constant(5, width, scale=width**-0.5), self.constant(5)
        self.nodes.append(helper.make_node("Gemm", [flat, weights, bias], ["logits"], name="head", transB=1))

    def proto(self, lab: Any) -> onnx.ModelProto:
        made: onnx.ModelProto = lab.network(
            self.nodes, {"image": ("n", 3, 12, 12)}, self.constants, ["logits"]
        )
        return made


stacks = st.tuples(
    st.integers(0, 1000), st.lists(st.sampled_from(LAYERS), min_size=1, max_size=7), st.booleans()
)


@given(stacks)
@settings(max_examples=40)
def test_random_stacks_of_layers_compute_the_same_without_transposes(
    lab: Any, drawn: tuple[int, list[str], bool]
) -> None:
    seed, layers, flatten = drawn
    stack = Stack(seed)
    for layer in layers:
        stack.add(layer)
    stack.head(flatten)
    found = lab.check(stack.proto(lab), picture=True, tolerance=2e-5, kernels=["AUTO"])
    shuffles = sum(node.op_type == "Transpose" for node in stack.nodes)
    assert found.get("TRANSPOSE", 0) <= shuffles


@given(stacks)
@settings(max_examples=15)
def test_random_stacks_in_8_bits_stay_close(lab: Any, drawn: tuple[int, list[str], bool]) -> None:
    seed, layers, flatten = drawn
    stack = Stack(seed)
    for layer in layers:
        stack.add(layer)
    stack.head(flatten)
    pictures = np.random.default_rng(seed).standard_normal((16, 3, 12, 12)).astype(np.float32)
    task = Task("random", {"calibration": Split({"": pictures}, np.zeros((16, 1), np.float32))}, "error")
    source = Fuse()(lab.model(stack.proto(lab), picture=True), VNNI, task)
    quantized = StaticInt8()(source, VNNI, task)
    made = lab.export(quantized)
    want = graph.run(graph.load(quantized.file), {"image": pictures}, optimise=False)["logits"]
    got = lab.run(made, lab.laid(made, {"image": pictures}))["logits"]
    # kernels round ties of a mean away from zero, ONNX to even: over many pixels that adds up to some steps
    assert np.abs(got - want).max() <= (0.03 + 0.01 * len(layers)) * np.ptp(want) + 1e-6


def agreement(lab: Any, source: Model, task: Task, tolerance: float | None = None, count: int = 300) -> float:
    """Share of test samples to which a model and its TFLite form give the same class; logits within a tolerance."""
    made = lab.export(source)
    split = task.split("test")
    rows = np.arange(min(count, len(split)))
    feeds = [bench.feeds(task, split, model.manifest, rows) for model in (source, made)]
    want = next(iter(graph.run(graph.load(source.file), feeds[0]).values()))
    got = next(iter(lab.run(made, feeds[1]).values()))
    if tolerance is not None:
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())
    return float((got.argmax(1) == want.argmax(1)).mean())


@pytest.mark.parametrize("net", ["cnn", "mlp"])
def test_trained_nets_float_and_int8(
    lab: Any, net: str, request: pytest.FixtureRequest, digits_task: Task
) -> None:
    fused = Fuse()(request.getfixturevalue(net), VNNI, digits_task)
    assert agreement(lab, fused, digits_task, 1e-5) == 1.0
    quantized = StaticInt8()(fused, VNNI, digits_task)
    assert agreement(lab, quantized, digits_task) >= 0.99


def test_batch_normalization_is_folded_without_another_pass(lab: Any, cnn: Model, digits_task: Task) -> None:
    assert agreement(lab, cnn, digits_task, 1e-5) == 1.0
    assert not {"MUL", "ADD"} & set(lab.codes(lab.export(cnn)))


def exported(net: nn.Module, *shape: int) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {0: "n"}, "y": {0: "n"}}
        torch.onnx.export(
            net.eval(), (torch.zeros(2, *shape),), buffer, dynamo=False, opset_version=17,
            input_names=["x"], output_names=["y"], dynamic_axes=axes,
        )  # fmt: skip
    return onnx.load_model_from_string(buffer.getvalue())


def test_a_one_dimensional_net(lab: Any) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv1d(6, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2)]
    layers += [nn.Conv1d(16, 24, 5, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 7)]
    found = lab.check(exported(nn.Sequential(*layers), 6, 64))
    assert found["TRANSPOSE"] == 1, "from (n, c, l) at the border"


class Detector(nn.Module):
    """A backbone, a way back up with short cuts, and heads for a map, boxes and a list of scores."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)]
        )
        self.up = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 4, 2, 1)])
        self.heat, self.boxes, self.scores = (
            nn.Conv2d(8, 1, 1),
            nn.Conv2d(8, 4, 1),
            nn.Conv2d(16, 6, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kept = []
        for layer in self.down:
            x = torch.relu(layer(x))
            kept.append(x)
        middle = torch.relu(self.up[0](x)) + kept[1]
        top = self.up[1](middle) + kept[0]
        wide = nn.functional.interpolate(top, scale_factor=2.0, mode="bilinear")
        scores = self.scores(middle).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 3).softmax(-1)
        return self.heat(wide).sigmoid(), self.boxes(top), scores


def test_a_detector_with_several_outputs(lab: Any) -> None:
    torch.manual_seed(0)
    buffer = io.BytesIO()
    names = ["heat", "boxes", "scores"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Detector().eval(), (torch.zeros(1, 3, 32, 48),), buffer, dynamo=False, opset_version=17,
            input_names=["image"], output_names=names,
        )  # fmt: skip
    found = lab.check(onnx.load_model_from_string(buffer.getvalue()), picture=True)
    assert found["TRANSPOSE"] == 1, (
        "the boxes alone go back to ONNX's order; scores were channels last in ONNX too"
    )


def fetched(name: str) -> Any:
    try:
        return fetch(ASSETS[name])
    except AssetError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_cnn", "resnet8"])
def test_nets_trained_on_mnist(lab: Any, name: str) -> None:
    from farthing import tasks

    fetched("mnist-5k")
    task = tasks.mnist_5k()
    torch.manual_seed(0)
    net = getattr(nets, name)()
    raw = task.split("train")
    pictures = next(iter(raw.take(range(len(raw))).values())).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    train(net, Samples.of_arrays(pictures, raw.labels), CrossEntropy(), Schedule(epochs=2))
    source = lab.model(exported(net, 1, 28, 28), picture=True)
    source = Model.create(scaled(source), {"model.onnx": source.file})
    fused = Fuse()(source, VNNI, task)
    assert agreement(lab, fused, task, 1e-5, 1000) == 1.0
    assert agreement(lab, StaticInt8()(fused, VNNI, task), task, None, 1000) >= 0.99


def scaled(model: Model) -> Any:
    from farthing.model import Preprocess, checked

    return checked(model.manifest, preprocess=Preprocess(colour="GRAY", scale=1 / 255))


@pytest.mark.slow
def test_centerface(lab: Any) -> None:
    proto = onnx.load(fetched("centerface"))
    axes = next(value for value in proto.graph.input if value.name == "input.1").type.tensor_type.shape.dim
    for axis, size in zip(axes, (1, 3, 96, 128), strict=True):
        axis.dim_value = size
    for value in proto.graph.output:
        value.type.tensor_type.shape.ClearField("dim")
        for size in (1, {"537": 1, "538": 2, "539": 2, "540": 10}[value.name], 24, 32):
            value.type.tensor_type.shape.dim.add(dim_value=size)
    found = lab.check(proto, picture=True)
    assert found["TRANSPOSE"] == 3, "its outputs are in ONNX's order"


@pytest.mark.slow
def test_efficientnet_lite0_with_its_published_weights(lab: Any) -> None:
    from farthing.forge.pretrained import efficientnet_lite0

    fetched("efficientnet-lite0")
    source = efficientnet_lite0()
    pictures = np.random.default_rng(0).integers(0, 256, (24, 7, 7, 3), np.uint8).repeat(32, 1).repeat(32, 2)
    task = Task("noise", {"calibration": Split({"": pictures[:8]}, np.zeros(8, np.int64)),
                          "test": Split({"": pictures[8:]}, np.zeros(16, np.int64))}, "top1", form="image")  # fmt: skip
    fused = Fuse()(source, VNNI, task)
    assert agreement(lab, fused, task, 1e-4) == 1.0
    assert "TRANSPOSE" not in lab.codes(lab.export(fused))
    quantized = StaticInt8()(fused, VNNI, task)
    made = lab.export(quantized)
    assert lab.codes(made)["DEQUANTIZE"] == lab.codes(made)["QUANTIZE"] == 1
    feeds = [bench.feeds(task, task.split("test"), m.manifest, range(16)) for m in (quantized, made)]
    want = next(iter(graph.run(graph.load(quantized.file), feeds[0]).values()))
    got = next(iter(lab.run(made, feeds[1]).values()))
    for one, other in zip(want, got, strict=True):
        assert float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)) > 0.999


@pytest.mark.slow
def test_litert_torch_writes_no_better_file(lab: Any, tmp_path: Any) -> None:
    """The same net by its makers' converter: the same operators, the same answers, no faster."""
    litert_torch = pytest.importorskip("litert_torch")
    runtime = pytest.importorskip("ai_edge_litert.interpreter")
    torch.manual_seed(0)
    net = nets.resnet8(3)
    nets.settle(net, (4, 3, 32, 32))
    made = lab.export(lab.model(exported(net, 3, 32, 32), picture=True))
    last = litert_torch.to_channel_last_io(net.eval(), args=[0]).eval()
    litert_torch.convert(last, (torch.zeros(1, 32, 32, 3),)).export(str(tmp_path / "peer.tflite"))
    peer = Model.create(made.manifest, {"model.tflite": tmp_path / "peer.tflite"})
    assert lab.codes(made) == lab.codes(peer)
    assert made.size_bytes < peer.size_bytes
    picture = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    runners = [runtime.Interpreter(model_content=m.file.read_bytes(), num_threads=1) for m in (made, peer)]
    answers, times = [], [[], []]  # type: list[Array], list[list[float]]
    for runner in runners:
        runner.allocate_tensors()
        runner.set_tensor(runner.get_input_details()[0]["index"], picture)
        runner.invoke()
        answers.append(runner.get_tensor(runner.get_output_details()[0]["index"]).copy())
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-6)
    for turn in range(2000):
        for place in (0, 1) if turn % 2 else (1, 0):
            began = time.perf_counter()
            runners[place].invoke()
            times[place].append(time.perf_counter() - began)
    assert statistics.median(times[0]) < 1.1 * statistics.median(times[1])
