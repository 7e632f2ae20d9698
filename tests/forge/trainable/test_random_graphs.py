"""Random small graphs of operators that have a trainable form: torch gives what ONNX Runtime gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import torch
from hypothesis import given, reject, settings
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from farthing.errors import ModelError
from farthing.forge import graph
from farthing.forge.trainable import trainable
from farthing.model import Manifest, Model, TensorSpec

Array = NDArray[Any]
SIZES = st.integers(1, 3)
PLAIN = [
    "Relu",
    "Sigmoid",
    "Tanh",
    "HardSwish",
    "Softplus",
    "Abs",
    "Elu",
    "HardSigmoid",
    "LeakyRelu",
    "Erf",
    "Neg",
]


class Drawing:
    """A graph in the making: pictures (n, channels, height, width), and all tensors so far with their sizes."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.sizes = {"x": (4, 7, 8)}
        self.name = "x"
        self._random = np.random.default_rng(draw(st.integers(0, 99)))

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def stored(self, *shape: int, array: Array | None = None) -> str:
        name = f"w{len(self.weights)}"
        fresh = self._random.standard_normal(shape).astype(np.float32) * 0.5
        self.weights[name] = fresh if array is None else array
        return name

    def whole(self, *numbers: int) -> str:
        return self.stored(array=np.asarray(numbers, np.int64))

    def add(self, kind: str, *inputs: str, sizes: tuple[int, ...] | None = None, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"{kind}{name}", **attributes))
        self.sizes[name] = self.sizes[self.name] if sizes is None else sizes
        return name

    # One operator, or a few.

    def conv(self) -> str:
        c, h, w = self.sizes[self.name]
        groups = self.pick(1, 1, *([2] if c % 2 == 0 else []), c)
        out = groups * self.draw(SIZES)
        kernel, strides, dilations = self._window(h, w)
        pads = [self.draw(st.integers(0, 2)) for _ in range(4)]
        after = self._after((h, w), kernel, strides, dilations, pads)
        inputs = [self.name, self.stored(out, c // groups, *kernel)] + (
            [self.stored(out)] if self.pick(0, 1) else []
        )
        settings = {"group": groups, "strides": strides, "dilations": dilations}
        if dilations == [1, 1] and self.pick(0, 0, 1):  # ONNX Runtime has no other
            after = [-(-h // strides[0]), -(-w // strides[1])]
            return self.add(
                "Conv",
                *inputs,
                sizes=(out, *after),
                auto_pad=self.pick("SAME_UPPER", "SAME_LOWER"),
                **settings,
            )
        return self.add("Conv", *inputs, sizes=(out, *after), pads=pads, **settings)

    def conv_transpose(self) -> str:
        c, h, w = self.sizes[self.name]
        groups = self.pick(1, *([2] if c % 2 == 0 else []))
        each, kernel, strides = (
            self.draw(SIZES),
            [self.pick(2, 3) for _ in "hw"],
            [self.pick(1, 2) for _ in "hw"],
        )
        pads, extra = [self.pick(0, 1) for _ in range(4)], [self.pick(0, s - 1) for s in strides]
        after = [
            (size - 1) * s + k - pads[i] - pads[i + 2] + extra[i]
            for i, (size, s, k) in enumerate(zip((h, w), strides, kernel, strict=True))
        ]
        if min(after) < 1 or max(after) > 16:
            return self.name
        inputs = [self.name, self.stored(c, each, *kernel), self.stored(each * groups)]
        settings = {"strides": strides, "pads": pads, "output_padding": extra, "group": groups}
        return self.add("ConvTranspose", *inputs, sizes=(each * groups, *after), **settings)

    def norm(self) -> str:
        c = self.sizes[self.name][0]
        variance = self.stored(array=np.abs(self._random.standard_normal(c).astype(np.float32)) + 0.1)
        return self.add(
            "BatchNormalization", self.name, *(self.stored(c) for _ in range(3)), variance, epsilon=1e-3
        )

    def activate(self) -> str:
        kind = self.pick(*PLAIN, "Clip", "PRelu")
        if kind == "Clip":
            ends = [self.stored(array=np.float32(end)) for end in (-0.5, 1.5)]
            return self.add("Clip", self.name, *self.pick([ends[0], ends[1]], ["", ends[1]], [ends[0]]))
        if kind == "PRelu":
            return self.add("PRelu", self.name, self.stored(self.pick(1, self.sizes[self.name][0]), 1, 1))
        return self.add(kind, self.name)

    def pool(self) -> str:
        c, h, w = self.sizes[self.name]
        kernel, strides, _ = self._window(h, w)
        pads = [self.draw(st.integers(0, k - 1)) for k in kernel] * 2
        after = self._after((h, w), kernel, strides, [1, 1], pads)
        if self.pick(0, 1):
            return self.add(
                "MaxPool", self.name, sizes=(c, *after), kernel_shape=kernel, strides=strides, pads=pads
            )
        counted = self.pick(0, 1)
        return self.add(
            "AveragePool",
            self.name,
            sizes=(c, *after),
            kernel_shape=kernel,
            strides=strides,
            pads=pads,
            count_include_pad=counted,
        )

    def _window(self, h: int, w: int) -> tuple[list[int], list[int], list[int]]:
        kernel = [self.draw(st.integers(1, min(3, size))) for size in (h, w)]
        dilations = [
            self.pick(1, 2) if 2 * (k - 1) < size else 1 for k, size in zip(kernel, (h, w), strict=True)
        ]
        return kernel, [self.pick(1, 2) for _ in "hw"], dilations

    @staticmethod
    def _after(size: tuple[int, ...], kernel: Any, strides: Any, dilations: Any, pads: Any) -> list[int]:
        return [
            (size[i] + pads[i] + pads[i + 2] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
            for i in (0, 1)
        ]

    def combine(self) -> str:
        alike = [name for name, sizes in self.sizes.items() if sizes == self.sizes[self.name]]
        kind, c = self.pick("Add", "Mul", "Sub", "Max"), self.sizes[self.name][0]
        other = (
            self.pick(*alike) if self.pick(0, 1) else self.stored(*self.pick((c, 1, 1), (1,), (1, c, 1, 1)))
        )
        return self.add(kind, *self.pick([self.name, other], [other, self.name]))

    def concat(self) -> str:
        c, *rest = self.sizes[self.name]
        fitting = [name for name, sizes in self.sizes.items() if sizes[1:] == tuple(rest)]
        other = self.pick(*fitting)
        channels = c + self.sizes[other][0]
        return (
            self.add("Concat", self.name, other, sizes=(channels, *rest), axis=1)
            if channels < 20
            else self.name
        )

    def cut(self) -> str:
        c, h, w = self.sizes[self.name]
        first = self.draw(st.integers(0, c - 1))
        bounds = [self.whole(number) for number in (first, c, 1)]
        return self.add("Slice", self.name, *bounds, sizes=(c - first, h, w))

    def pad(self) -> str:
        c, h, w = self.sizes[self.name]
        amounts = [self.draw(st.integers(0, min(h, w) - 1)) % 3 for _ in range(4)]
        pads = self.whole(0, 0, *amounts[:2], 0, 0, *amounts[2:])
        sizes = (c, h + amounts[0] + amounts[2], w + amounts[1] + amounts[3])
        return self.add("Pad", self.name, pads, sizes=sizes, mode=self.pick("constant", "reflect", "edge"))

    def resize(self) -> str:
        c, h, w = self.sizes[self.name]
        factors = self.pick((2.0, 2.0), (1.0, 1.5), (2.0, 1.0), (0.5, 1.5))
        after = (int(h * factors[0]), int(w * factors[1]))
        if min(after) < 2 or max(after) > 16:
            return self.name
        mode = self.pick("nearest", "linear", "cubic")
        settings: dict[str, Any] = {"mode": mode}
        settings["coordinate_transformation_mode"] = self.pick("asymmetric", "half_pixel", "align_corners")
        if mode == "nearest":
            settings["coordinate_transformation_mode"] = "asymmetric"
            settings["nearest_mode"] = self.pick("floor", "round_prefer_floor")
        scales = self.stored(array=np.asarray([1, 1, *factors], np.float32))
        return self.add("Resize", self.name, "", scales, sizes=(c, *after), **settings)

    def shuffle(self) -> str:
        c, h, w = self.sizes[self.name]
        groups = self.pick(*(g for g in (1, 2, 3, 4) if c % g == 0))
        apart = self.add("Reshape", self.name, self.whole(0, groups, c // groups, h, w), sizes=(0,))
        turned = self.add("Transpose", apart, sizes=(0,), perm=[0, 2, 1, 3, 4])
        return self.add(
            "Reshape", turned, self.whole(*self.pick((-1, c, h, w), (0, c, h, -1))), sizes=(c, h, w)
        )

    def squeeze(self) -> str:
        """Squeeze and excitation, more or less."""
        c, *_ = self.sizes[self.name]
        mean = self.add(self.pick("GlobalAveragePool", "GlobalMaxPool"), self.name, sizes=(c, 1, 1))
        gate = self.add(
            "Sigmoid", self.add("Conv", mean, self.stored(c, c, 1, 1), sizes=(c, 1, 1)), sizes=(c, 1, 1)
        )
        return self.add("Mul", self.name, gate)

    def softmax(self) -> str:
        return self.add(self.pick("Softmax", "LogSoftmax"), self.name, axis=self.pick(1, -1))

    def normalize(self) -> str:
        c, h, w = self.sizes[self.name]
        if self.pick(0, 1):
            return self.add("InstanceNormalization", self.name, self.stored(c), self.stored(c))
        axis = self.pick(-1, 1)
        shape = (w,) if axis == -1 else (c, h, w)
        return self.add("LayerNormalization", self.name, self.stored(*shape), self.stored(*shape), axis=axis)

    def head(self) -> str:
        """A dense layer over everything, by Gemm or MatMul."""
        c, h, w = self.sizes[self.name]
        count = c * h * w
        flat = (
            self.add("Flatten", self.name, sizes=(0,))
            if self.pick(0, 1)
            else self.add("Reshape", self.name, self.whole(-1, count), sizes=(0,))
        )
        if self.pick(0, 1):
            return self.add(
                "Gemm",
                flat,
                self.stored(3, count),
                self.stored(3),
                sizes=(0,),
                transB=1,
                alpha=self.pick(1.0, 0.5),
            )
        product = self.add("MatMul", flat, self.stored(count, 3), sizes=(0,))
        return self.add(
            "Add", *self.pick([product, self.stored(3)], [self.stored(1, 3), product]), sizes=(0,)
        )


STEPS: list[Callable[[Drawing], str]] = [
    Drawing.conv, Drawing.conv, Drawing.conv_transpose, Drawing.norm, Drawing.activate, Drawing.activate, Drawing.pool,
    Drawing.combine, Drawing.concat, Drawing.cut, Drawing.pad, Drawing.resize, Drawing.shuffle, Drawing.squeeze,
    Drawing.softmax, Drawing.normalize,
]  # fmt: skip


@st.composite
def models(draw: st.DrawFn) -> Model:
    """A model of up to seven steps, with a head or without."""
    drawing = Drawing(draw)
    drawing.name = drawing.conv()
    for step in draw(st.lists(st.sampled_from(STEPS), max_size=6)):
        drawing.name = step(drawing)
    if draw(st.booleans()):
        drawing.name = drawing.head()
    drawing.nodes.append(helper.make_node("Identity", [drawing.name], ["y"]))
    proto = helper.make_model(
        helper.make_graph(
            drawing.nodes,
            "random",
            [helper.make_tensor_value_info("x", 1, ["n", *drawing.sizes["x"]])],
            [
                onnx.ValueInfoProto(
                    name="y", type=onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=1))
                )
            ],
            [numpy_helper.from_array(array, name) for name, array in drawing.weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    try:
        rank = graph.run(proto, {"x": np.zeros((1, *drawing.sizes["x"]), np.float32)})["y"].ndim
    except ModelError:  # its optimiser joins padding and pooling to what it then refuses
        reject()
    shape = proto.graph.output[0].type.tensor_type.shape
    for axis in range(rank):
        shape.dim.add(dim_param="n" if axis == 0 else f"d{axis}")
    specs = [TensorSpec(name="x", dtype="float32", shape=("n", *drawing.sizes["x"]), batch_axis=0)]
    outputs = [
        TensorSpec(name="y", dtype="float32", shape=("n", *(f"d{i}" for i in range(1, rank))), batch_axis=0)
    ]
    manifest = Manifest(name="random", format="onnx", inputs=tuple(specs), outputs=tuple(outputs))
    return Model.create(manifest, {"model.onnx": proto.SerializeToString()})


@given(models())
@settings(max_examples=40)
def test_torch_gives_what_onnx_runtime_gives(model: Model) -> None:
    """Untouched, with norms put in, and with other numbers; each is compared where it is made and written."""
    made = trainable(model)
    stored = {t.name: t.SerializeToString() for t in onnx.load(model.file).graph.initializer}
    again = made.to_model()
    kept = {t.name: t.SerializeToString() for t in onnx.load(again.file).graph.initializer}
    assert kept.items() <= stored.items()
    made.insert_norms([[torch.randn(4, 4, 7, 8, generator=torch.Generator().manual_seed(0))]])
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.mul_(1.1)
    after = made.to_model()
    assert len(onnx.load(after.file).graph.node) == len(onnx.load(model.file).graph.node)
