"""Conv and ConvTranspose: layers where the weights are stored, functions where they are computed."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional

from farthing.forge.trainable.binding import AsStored, Vector
from farthing.forge.trainable.builder import Builder, Value, bare
from farthing.forge.trainable.node import Node
from farthing.forge.trainable.operators.windows import Window, crop, padded, window

LAYERS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FUNCTIONS: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
BACK: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BACK_FUNCTIONS: dict[int, Any] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def conv(builder: Builder, node: Node) -> Value:
    """A convolution of 1, 2 or 3 axes."""
    shape = [size for size, _ in builder.sizes(builder.value(node, 1))]
    x, sliding = padded(builder, node, builder.value(node, 0), window(node, shape[2:]), 0.0)
    groups = int(node.get("group", 1))
    if not stored(builder, node):
        bias = builder.weight(node, 2) if node.input(2) else None
        function = FUNCTIONS[len(sliding.kernel)]
        weight = builder.weight(node, 1)
        return builder.call(
            function, x, weight, bias, sliding.strides, sliding.before, sliding.dilations, groups
        )
    layer = bare(
        LAYERS[len(sliding.kernel)],
        shape[1] * groups,
        shape[0],
        sliding.kernel,
        groups=groups,
        **_facts(node, sliding),
    )
    return _run(builder, node, layer, x)


def conv_transpose(builder: Builder, node: Node) -> Value:
    """A transposed convolution of 1, 2 or 3 axes."""
    x, shape = builder.value(node, 0), [size for size, _ in builder.sizes(builder.value(node, 1))]
    sliding, groups = window(node, shape[2:]), int(node.get("group", 1))
    extra = [int(amount) for amount in node.get("output_padding", [0] * len(sliding.kernel))]
    before, after = _cut(builder, node, sliding, extra)
    extra = [amount - min(last, 0) for amount, last in zip(extra, after, strict=True)]
    after = [max(last, 0) for last in after]
    uneven = before != after or min(before) < 0
    inside = [0] * len(before) if uneven else before
    if not stored(builder, node):
        bias = builder.weight(node, 2) if node.input(2) else None
        function, weight = BACK_FUNCTIONS[len(sliding.kernel)], builder.weight(node, 1)
        y = builder.call(function, x, weight, bias, sliding.strides, inside, extra, groups, sliding.dilations)
    else:
        facts = _facts(node, sliding._replace(before=inside))
        layer = bare(
            BACK[len(sliding.kernel)],
            shape[0],
            shape[1] * groups,
            sliding.kernel,
            output_padding=extra,
            groups=groups,
            **facts,
        )
        y = _run(builder, node, layer, x)
    return builder.call(crop, y, before, after) if uneven else y


def stored(builder: Builder, node: Node) -> bool:
    """Whether weights and bias are stored as they are, and so can be those of a layer."""
    if builder.weights.shape(node.input(1)) is None or (
        node.input(2) and builder.weights.shape(node.input(2)) is None
    ):
        return False
    weight, order = builder.weights.source(node.input(1))
    bias = builder.weights.source(node.input(2))[0] if node.input(2) else ""
    plain = list(order) == sorted(order) and builder.weights.free(weight, AsStored())
    return plain and (not bias or builder.weights.free(bias, Vector()))


def _facts(node: Node, sliding: Window) -> dict[str, Any]:
    return {
        "stride": sliding.strides,
        "padding": sliding.before,
        "dilation": sliding.dilations,
        "bias": bool(node.input(2)),
    }


def _run(builder: Builder, node: Node, layer: nn.Module, x: Value) -> Value:
    name = builder.add(node, layer)
    builder.weights.bind(builder.weights.source(node.input(1))[0], AsStored(), name, ["weight"])
    if node.input(2):
        builder.weights.bind(builder.weights.source(node.input(2))[0], Vector(), name, ["bias"])
    return builder.run(name, x)


def _cut(builder: Builder, node: Node, sliding: Window, extra: list[int]) -> tuple[list[int], list[int]]:
    """What is cut off the full result at the start and the end of each axis."""
    auto, shape = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    if shape is None and auto in {"NOTSET", "VALID"}:
        return sliding.before, sliding.after
    sizes = builder.sizes(builder.value(node, 0))[2:]
    before, after = [], []
    for axis, (first, second) in enumerate(sizes):
        stride = sliding.strides[axis]
        full = stride * (first - 1) + extra[axis] + (sliding.kernel[axis] - 1) * sliding.dilations[axis] + 1
        if shape is not None and first != second:
            node.refuse("its output_shape is fixed where its input is free")
        total = full - (int(shape[axis - len(sizes)]) if shape is not None else first * stride)
        early = total // 2 if auto == "SAME_UPPER" else total - total // 2
        before.append(early)
        after.append(total - early)
    return before, after
