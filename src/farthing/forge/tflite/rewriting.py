"""What is simplified before anything is written: nodes that do nothing, batch normalization, activations, padding."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.errors import ModelError
from farthing.forge.tflite.layout import fixed
from farthing.forge.tflite.net import Constant, Net, Node
from farthing.forge.tflite.scales import params_of, stored

Array = NDArray[Any]
FUSING = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "AveragePool", "MaxPool"}
FUSING |= {"BatchNormalization"}
BROADCASTING = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"}
LIMITS = {(0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}


def simplify(net: Net) -> None:
    """Bring a net to the form that the writers of operators expect, in place; the numbers stay, to rounding.

    Raises:
        ModelError: inputs or attributes that are not what ONNX says.
        UnsupportedError: as the writers of operators raise it.
    """
    steps = (drop_idle, drop_expansions, take_stored, find_gelu, find_hard_swish, fold_normalization)
    try:
        for rewrite in (*steps, fuse_padding, fuse_bias, fuse_activations):
            rewrite(net)
            net.prune()
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"inputs or attributes of the graph break the rules of ONNX ({type(error).__name__}: {error})"
        ) from error


def drop_idle(net: Net) -> None:
    """Nodes that pass their input on."""
    for node in list(net.nodes):
        kind = net.types.get(node.outputs[0])
        same_type = node.kind in {"Cast", "CastLike"} and kind == net.types.get(node.inputs[0], "")
        dropout = node.kind == "Dropout" and not any(net.readers().get(name) for name in node.outputs[1:])
        if node.kind == "Identity" or same_type or dropout:
            net.rename(node.outputs[0], node.inputs[0])


def take_stored(net: Net) -> None:
    """Constants behind DequantizeLinear keep their integers; so do those that are transposed after it."""
    for node in list(net.nodes):
        constant = stored(net, node)
        source = net.constants.get(node.input(0))
        if node.kind == "Transpose" and source is not None and source.params is not None:
            constant = source.transposed([int(i) for i in node.get("perm", range(source.data.ndim)[::-1])])
        if constant is not None:
            net.constants[node.outputs[0]] = constant
            net.shapes[node.outputs[0]] = fixed(constant.data.shape)
            net.nodes.remove(node)


def drop_expansions(net: Net) -> None:
    """An Expand whose readers broadcast by themselves is left out."""
    for node in [node for node in net.nodes if node.kind == "Expand"]:
        readers = net.readers().get(node.outputs[0], [])
        alone = node.outputs[0] not in net.outputs.values() and node.outputs[0] in net.shapes
        if alone and all(_broadcasts_alike(net, reader, node) for reader in readers):
            net.rename(node.outputs[0], node.inputs[0])


def _broadcasts_alike(net: Net, reader: Node, expand: Node) -> bool:
    """Whether an operator gives a result of the same shape without an Expand before one of its operands."""
    names = [expand.inputs[0] if name == expand.outputs[0] else name for name in reader.inputs]
    known = all(name in net.shapes for name in (*names, reader.outputs[0]))
    if not known or reader.kind not in BROADCASTING:
        return False
    whole = net.shapes[reader.outputs[0]]
    both = [tuple(size[k] for size in net.shapes[name]) for k in (0, 1) for name in names]
    halves = (both[: len(names)], both[len(names) :])
    return all(np.broadcast_shapes(*halves[k]) == tuple(size[k] for size in whole) for k in (0, 1))


def _scalar(net: Net, name: str) -> float | None:
    """The value of a constant of one number."""
    constant = net.constants.get(name)
    return float(constant.real.ravel()[0]) if constant is not None and constant.data.size == 1 else None


def _operands(net: Net, node: Node | None, kind: str) -> tuple[str, float] | None:
    """The tensor and the number that a node of a kind combines."""
    if node is None or node.kind != kind or node.activation != "NONE":
        return None
    for name, other in (node.inputs, node.inputs[::-1]):
        value = _scalar(net, other)
        if value is not None and name not in net.constants:
            return name, value
    return None


def find_gelu(net: Net) -> None:
    """``0.5 x (1 + erf(x / sqrt 2))``, in any order of its factors, is TFLite's GELU (Hendrycks and Gimpel 2016)."""
    for node in list(net.nodes):
        if node.kind == "Erf" and node in net.nodes:
            _find_gelu(net, node)


def _find_gelu(net: Net, erf: Node) -> None:
    makers, readers = net.makers(), net.readers()
    inner = makers.get(erf.inputs[0])
    scaled = _operands(net, inner, "Mul") or _operands(net, inner, "Div")
    if scaled is None or inner is None:
        return
    x = scaled[0]
    if not math.isclose(scaled[1] if inner.kind == "Mul" else 1 / scaled[1], math.sqrt(0.5), rel_tol=1e-5):
        return
    plus = net.sole_reader(erf.outputs[0], readers)
    if (_operands(net, plus, "Add") or ("", 0.0))[1] != 1.0 or plus is None:
        return
    factors, last = [plus.outputs[0]], plus
    while (times := net.sole_reader(last.outputs[0], readers)) is not None and times.kind == "Mul":
        factors += [name for name in times.inputs if name != last.outputs[0]]
        last = times
        if _is_gelu(net, makers, factors[1:], x):
            net.replace_nodes([], {last.outputs[0]: Node("Gelu", last.name, (x,), last.outputs)})
            return


def _is_gelu(net: Net, makers: dict[str, Node], factors: list[str], x: str) -> bool:
    """Whether factors beside ``1 + erf`` multiply to ``x / 2``."""
    half = [_operands(net, makers.get(name), "Mul") for name in factors]
    if any(found == (x, 0.5) for found in half):
        return len(factors) == 1
    return len(factors) == 2 and x in factors and any(_scalar(net, name) == 0.5 for name in factors)


def find_hard_swish(net: Net) -> None:
    """``x * HardSigmoid(x)`` with slope 1/6 and offset 1/2 is HARD_SWISH (Howard et al. 2019).

    Where the gate passes a Q/DQ pair its rounding, half a step of 1/255 of x, is left out: that moves the int8 result
    by one step at most.
    """
    makers, readers = net.makers(), net.readers()
    changed = {}
    for node in net.nodes:
        if node.kind != "Mul":
            continue
        for gate, x in (node.inputs, node.inputs[::-1]):
            soft = _behind_pair(net, gate, makers, readers)
            if soft is None or soft.kind != "HardSigmoid" or not _is_sixth(soft):
                continue
            if soft.inputs[0] == x or _same_source(makers, soft.inputs[0], x):
                changed[node.outputs[0]] = Node("HardSwish", node.name, (x,), node.outputs)
                break
    net.replace_nodes([], changed)


def _behind_pair(net: Net, name: str, makers: dict[str, Node], readers: dict[str, list[Node]]) -> Node | None:
    """What makes a tensor, seen through a Q/DQ pair; None if others read it too."""
    node = makers.get(name)
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        if node is not None and node.kind == kind:
            node = makers.get(node.inputs[0])
    return node if node is not None and net.sole_reader(node.outputs[0], readers) else None


def _same_source(makers: dict[str, Node], first: str, second: str) -> bool:
    """Whether two tensors are the same one, dequantized twice."""
    nodes = [makers.get(name) for name in (first, second)]
    found = [node.inputs for node in nodes if node is not None and node.kind == "DequantizeLinear"]
    return len(found) == 2 and found[0] == found[1]


def _is_sixth(node: Node) -> bool:
    return math.isclose(node.get("alpha", 0.2), 1 / 6, rel_tol=1e-6) and node.get("beta", 0.5) == 0.5


def fold_normalization(net: Net) -> None:
    """Batch normalization right after a convolution goes into its weights (Jacob et al. 2018, section 3.2)."""
    makers, readers = net.makers(), net.readers()
    for node in [node for node in net.nodes if node.kind == "BatchNormalization"]:
        before = makers.get(node.inputs[0])
        if before is None or before.kind not in {"Conv", "ConvTranspose"} or before not in net.nodes:
            continue
        parts = [net.constants.get(name) for name in (*before.inputs[1:], *node.inputs[1:])]
        whole = all(part is not None and part.params is None for part in parts)
        if net.sole_reader(before.outputs[0], readers) is node and whole and len(node.outputs) == 1:
            _fold(net, before, node)
            makers, readers = net.makers(), net.readers()


def normalization(net: Net, node: Node) -> tuple[Array, Array]:
    """Factor and offset of a BatchNormalization node with constant statistics, one a channel, float64."""
    constants = [net.constants.get(name) for name in node.inputs[1:5]]
    if any(constant is None for constant in constants) or node.get("training_mode", 0):
        node.refuse("its statistics must be constants; export the model in evaluation mode")
    gamma, beta, mean, variance = (c.real.astype(np.float64) for c in constants if c is not None)
    factor = gamma / np.sqrt(variance + node.get("epsilon", 1e-5))
    return factor, beta - mean * factor


def _fold(net: Net, conv: Node, norm: Node) -> None:
    factor, offset = normalization(net, norm)
    weights = net.constants[conv.inputs[1]].real.astype(np.float64)
    groups = int(conv.get("group", 1))
    if conv.kind == "Conv":
        weights = weights * factor.reshape(-1, *[1] * (weights.ndim - 1))
    else:
        spread = factor.reshape(groups, 1, -1, *[1] * (weights.ndim - 2))
        weights = (weights.reshape(groups, -1, *weights.shape[1:]) * spread).reshape(weights.shape)
    bias = net.constants[conv.inputs[2]].real.astype(np.float64) if conv.input(2) else 0.0
    names = (f"{norm.outputs[0]}/weights", f"{norm.outputs[0]}/bias")
    for name, values in zip(names, (weights, bias * factor + offset), strict=True):
        net.constants[name] = Constant(np.asarray(values, np.float32))
        net.shapes[name] = fixed(net.constants[name].data.shape)
    inputs = (conv.inputs[0], *names)
    net.replace_nodes([norm], {conv.outputs[0]: replace(conv, inputs=inputs, outputs=norm.outputs)})


def fuse_padding(net: Net) -> None:
    """A Pad with zeros before a convolution becomes the convolution's own padding, quantized or not."""
    for node in list(net.nodes):
        pad = _padding_before(net, node) if node.kind == "Conv" else None
        if pad is None or node.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
            continue
        amounts = pad_amounts(net, pad)
        rank = len(amounts) // 2
        own = node.get("pads", [0] * 2 * (rank - 2))
        if any(amounts[i] for i in (0, 1, rank, rank + 1)) or min(amounts) < 0:
            continue
        inner = [*amounts[2:rank], *amounts[rank + 2 :]]
        pads = [a + b for a, b in zip(own, inner, strict=True)]
        attributes = {**node.attributes, "pads": pads, "auto_pad": "NOTSET"}
        inputs = (pad.inputs[0], *node.inputs[1:])
        net.replace_nodes([], {node.outputs[0]: replace(node, inputs=inputs, attributes=attributes)})


def _padding_before(net: Net, node: Node) -> Node | None:
    """The Pad node, filling with zeros, whose result a node reads at once or through a Q/DQ pair of the same scale."""
    makers = net.makers()
    pad = makers.get(node.inputs[0])
    if pad is not None and pad.kind == "DequantizeLinear":
        quantize = makers.get(pad.inputs[0])
        inner = makers.get(quantize.inputs[0]) if quantize and quantize.kind == "QuantizeLinear" else None
        before = makers.get(inner.inputs[0]) if inner and inner.kind == "Pad" else None
        same = before is not None and before.kind == "DequantizeLinear" and quantize is not None
        if before is None or quantize is None or not same:
            return None
        pad = inner if params_of(net, before) == params_of(net, quantize) else None
    if pad is None or pad.kind != "Pad" or pad.get("mode", "constant") != "constant" or pad.input(3):
        return None
    value = _scalar(net, pad.input(2)) if pad.input(2) else pad.get("value", 0.0)
    known = "pads" in pad.attributes or pad.input(1) in net.constants
    return pad if value == 0 and known else None


def pad_amounts(net: Net, node: Node) -> list[int]:
    """How much a Pad node adds before each axis, then after each."""
    if "pads" in node.attributes:
        return [int(amount) for amount in node.attributes["pads"]]
    amounts = net.constants.get(node.input(1))
    if amounts is None or node.input(1) in net.varying:
        node.refuse("how much it pads is computed when it runs")
    given = [int(amount) for amount in amounts.data]
    chosen = net.constants.get(node.input(3))
    if chosen is None:
        return given
    rank, axes = len(net.shape(node.inputs[0], node)), [int(axis) for axis in chosen.data]
    full = [0] * 2 * rank
    for place, axis in enumerate(axes):
        full[axis % rank], full[axis % rank + rank] = given[place], given[place + len(axes)]
    return full


def fuse_bias(net: Net) -> None:
    """An addition of one number a column after a MatMul with constant weights is its bias."""
    readers = net.readers()
    for node in [node for node in net.nodes if node.kind == "MatMul"]:
        weights = net.constants.get(node.inputs[1])
        add = net.sole_reader(node.outputs[0], readers)
        if weights is None or weights.data.ndim != 2 or add is None or add.kind != "Add":
            continue
        other = next((name for name in add.inputs if name != node.outputs[0]), "")
        bias = net.constants.get(other)
        if bias is not None and bias.data.size == bias.data.shape[-1:][0] == weights.data.shape[1]:
            inputs = (*node.inputs, other)
            net.replace_nodes([add], {node.outputs[0]: replace(node, inputs=inputs, outputs=add.outputs)})


def fuse_activations(net: Net) -> None:
    """A ReLU or a clip to 0..6 or -1..1 becomes part of the operator before it."""
    for _ in range(len(net.nodes)):
        makers, readers = net.makers(), net.readers()
        changed, gone = {}, []
        for node in net.nodes:
            name = LIMITS.get(limits(net, node) or (0.0, 0.0))
            before = makers.get(node.inputs[0]) if name and node.inputs else None
            if before is None or before.kind not in FUSING or before.activation != "NONE":
                continue
            if net.sole_reader(before.outputs[0], readers) is node and len(before.outputs) == 1:
                changed[before.outputs[0]] = replace(before, outputs=node.outputs, activation=name or "NONE")
                gone.append(node)
        net.replace_nodes(gone, changed)
        if not gone:
            return


def limits(net: Net, node: Node) -> tuple[float, float] | None:
    """What a Relu or Clip node keeps its values between; None if it is neither, or its limits are computed."""
    if node.kind == "Relu":
        return 0.0, math.inf
    if node.kind != "Clip":
        return None
    ends: list[float] = []
    for place, name, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        value = _scalar(net, node.input(place)) if node.input(place) else float(node.get(name, default))
        if value is None or node.input(place) in net.varying:
            return None
        ends.append(math.copysign(math.inf, value) if abs(value) > 3.4e38 else value)
    return ends[0], ends[1]
