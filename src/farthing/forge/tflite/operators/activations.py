"""Activations, and other functions of one number."""

from __future__ import annotations

import math

import numpy as np

from farthing.forge.tflite.builder import Builder
from farthing.forge.tflite.layout import firsts
from farthing.forge.tflite.net import Constant, Node, Params
from farthing.forge.tflite.operators.elementwise import combine, unary, widened
from farthing.forge.tflite.operators.reduction import PROBABILITY, tells_apart

SIMPLE = {
    "Abs": ("ABS", "AbsOptions"),
    "Neg": ("NEG", "NegOptions"),
    "Exp": ("EXP", "ExpOptions"),
    "Log": ("LOG", ""),
    "Sqrt": ("SQRT", ""),
    "Sin": ("SIN", ""),
    "Cos": ("COS", "CosOptions"),
    "Floor": ("FLOOR", ""),
    "Ceil": ("CEIL", ""),
    "Round": ("ROUND", ""),
    "Not": ("LOGICAL_NOT", "LogicalNotOptions"),
    "Sign": ("SIGN", "SignOptions"),
}
SCALES = {"LOGISTIC": PROBABILITY, "TANH": Params((1 / 128,), (0,))}


def simple(builder: Builder, node: Node) -> None:
    """A function that TFLite has as it is, computed in float."""
    code, options = SIMPLE[node.kind]
    unary(builder, node, code, options, int8=False)


def bounded(builder: Builder, node: Node) -> None:
    """Sigmoid and Tanh: LOGISTIC and TANH."""
    code = "LOGISTIC" if node.kind == "Sigmoid" else "TANH"
    fixed = SCALES[code]
    if not tells_apart(builder, node, fixed):
        unary(builder, node, code, int8=False)
        return
    view = builder.view(node.inputs[0], node)
    made = builder.add(code, [view.tensor], builder.tensors[view.tensor].shape, params=fixed)
    builder.values[node.outputs[0]] = view._replace(tensor=made)


def leaky_relu(builder: Builder, node: Node) -> None:
    """LEAKY_RELU."""
    unary(builder, node, "LEAKY_RELU", "LeakyReluOptions", alpha=float(node.get("alpha", 0.01)))


def elu(builder: Builder, node: Node) -> None:
    """ELU; TFLite knows only alpha 1."""
    if node.get("alpha", 1.0) != 1.0:
        node.refuse("TFLite's ELU has alpha 1")
    unary(builder, node, "ELU", int8=False)


def hard_swish(builder: Builder, node: Node) -> None:
    """HARD_SWISH."""
    unary(builder, node, "HARD_SWISH", "HardSwishOptions")


def gelu(builder: Builder, node: Node) -> None:
    """GELU, exact or by tanh."""
    unary(
        builder,
        node,
        "GELU",
        "GeluOptions",
        int8=False,
        approximate=node.get("approximate", "none") == "tanh",
    )


def hard_sigmoid(builder: Builder, node: Node) -> None:
    """``max(0, min(1, alpha x + beta))`` as a product, a sum and a clip; slope 1/6 as ``relu6(x + 3) / 6``."""
    alpha, beta = float(node.get("alpha", 0.2)), float(node.get("beta", 0.5))
    shape = builder.net.shape(node.outputs[0], node)
    name, middle = node.outputs[0], f"{node.outputs[0]}/middle"
    sixth = math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5
    steps = [("ADD", 3.0), ("MUL", 1 / 6)] if sixth else [("MUL", alpha), ("ADD", beta)]
    source = node.inputs[0]
    for (code, value), made in zip(steps, (middle, name if sixth else f"{name}/line"), strict=True):
        builder.net.constants[f"{made}/{code}"] = Constant(np.asarray(value, np.float32))
        activation = "RELU6" if sixth and code == "ADD" else "NONE"
        plain = Node(node.kind, node.name, node.inputs, node.outputs, activation=activation)
        combine(
            builder, plain, code, f"{code.title()}Options", (source, f"{made}/{code}"), (made, shape), None
        )
        source = made
    if not sixth:
        view = builder.values[source]
        builder.values[name] = view._replace(tensor=builder.activated(view.tensor, "RELU_0_TO_1"))


def reciprocal(builder: Builder, node: Node) -> None:
    """``1 / x``."""
    one, shape = f"{node.outputs[0]}/one", builder.net.shape(node.outputs[0], node)
    builder.net.constants[one] = Constant(np.asarray(1, np.float32))
    combine(builder, node, "DIV", "DivOptions", (one, node.inputs[0]), (node.outputs[0], shape), None)


def prelu(builder: Builder, node: Node) -> None:
    """PRELU with a constant slope, one for the tensor or one a channel."""
    slope, asked = builder.constant(node.inputs[1], node), builder.asked(node.outputs[0])
    shape = builder.shape(node.inputs[0], node)
    spread_out = slope.data.reshape([1] * (len(shape) - slope.data.ndim) + list(slope.data.shape))
    if any(size not in {1, own} for size, own in zip(spread_out.shape, firsts(shape), strict=True)):
        node.refuse(f"a slope {list(slope.data.shape)} for {list(firsts(shape))}")
    names = (node.inputs[0], node.inputs[1])
    integer = asked is not None and all(builder.is_int8(name) for name in names)
    view = builder.view(node.inputs[0], node) if integer else builder.float_view(node.inputs[0], node)
    order = widened(view, shape).simple()
    tensor = builder.place(view, [[axis] for axis in order])
    if spread_out.shape[order[0]] != 1:
        node.refuse(f"a slope {list(slope.data.shape)} that differs from sample to sample")
    laid = Constant(spread_out.transpose(order)[0], slope.params)
    alpha = builder.stored(laid.data, laid.params) if integer else builder.stored(laid.real)
    source = builder.tensors[tensor]
    made = builder.add("PRELU", [tensor, alpha], source.shape, source.dtype, asked if integer else None)
    builder.put(node.outputs[0], made, order)


def softplus(builder: Builder, node: Node) -> None:
    """``max(x, 0) + log(1 + exp(-|x|))``, which does not overflow."""
    view = builder.float_view(node.inputs[0], node)
    shape = builder.tensors[view.tensor].shape
    one = builder.stored(np.asarray(1, np.float32))
    tail = builder.add("ABS", [view.tensor], shape, options="AbsOptions")
    for code, options in (("NEG", "NegOptions"), ("EXP", "ExpOptions")):
        tail = builder.add(code, [tail], shape, options=options)
    tail = builder.add("ADD", [tail, one], shape, options="AddOptions", fusedActivationFunction="NONE")
    tail = builder.add("LOG", [tail], shape)
    head = builder.add("RELU", [view.tensor], shape)
    made = builder.add("ADD", [head, tail], shape, options="AddOptions", fusedActivationFunction="NONE")
    builder.values[node.outputs[0]] = view._replace(tensor=made)
