"""Normalisation: batch, layer, instance, group, root mean square, local response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from farthing.forge.trainable.binding import AsStored
from farthing.forge.trainable.builder import Builder, Value, bare
from farthing.forge.trainable.node import Node

NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def batch_norm(builder: Builder, node: Node) -> Value:
    """A layer; its mean and variance follow the data while training, as its momentum says."""
    if node.get("training_mode", 0) or (builder.opset < 7 and not node.get("is_test", 0)):
        node.refuse("it computes the mean and variance of what it is fed: export the model for inference")
    x, rank = builder.value(node, 0), builder.rank(builder.value(node, 0))
    shapes = [builder.weights.shape(node.input(place)) for place in range(1, 5)]
    if rank not in NORMS or any(shape is None or len(shape) != 1 for shape in shapes):
        node.refuse("its input has no channels, or its numbers are not stored")
    sources = [builder.weights.source(node.input(place))[0] for place in range(1, 5)]
    if not all(builder.weights.free(tensor, AsStored()) for tensor in sources):
        node.refuse("its numbers are the weights of another layer, too")
    momentum = 1.0 - float(node.get("momentum", 0.9))
    channels = builder.sizes(builder.value(node, 1))[0][0]
    layer = bare(NORMS[rank], channels, eps=float(node.get("epsilon", 1e-5)), momentum=momentum)
    layer.register_buffer("num_batches_tracked", torch.tensor(0))
    name = builder.add(node, layer)
    fields = ["weight", "bias", "running_mean", "running_var"]
    for place, (field, tensor) in enumerate(zip(fields, sources, strict=True)):
        builder.weights.bind(tensor, AsStored(), name, [field], learnt=place < 2)
    return builder.run(name, x)


def layer_norm(builder: Builder, node: Node) -> Value:
    """Over the last axes: a layer where scale and bias are stored and cover them."""
    builder.only_first(node)
    x, eps = builder.value(node, 0), float(node.get("epsilon", 1e-5))
    rank = builder.rank(x)
    axis = int(node.get("axis", -1)) % rank
    sizes = [first for first, _ in builder.sizes(x)[axis:]]
    stored = [builder.weights.shape(node.input(place)) for place in (1, 2) if node.input(place)]
    if all(shape == tuple(sizes) for shape in stored):
        sources = [builder.weights.source(node.input(place))[0] for place in (1, 2) if node.input(place)]
        if all(builder.weights.free(tensor, AsStored()) for tensor in sources):
            name = builder.add(node, bare(nn.LayerNorm, sizes, eps=eps, bias=len(sources) > 1))
            for field, tensor in zip(("weight", "bias"), sources, strict=False):
                builder.weights.bind(tensor, AsStored(), name, [field])
            return builder.run(name, x)
    made = builder.call(centred, x, list(range(axis, rank)), eps)
    made = builder.call(torch.mul, made, builder.weight(node, 1))
    return builder.call(torch.add, made, builder.weight(node, 2)) if node.input(2) else made


def centred(x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """Mean 0 and variance 1 along some axes."""
    variance, mean = torch.var_mean(x, tuple(axes), correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps)


def rms_norm(builder: Builder, node: Node) -> Value:
    """Over the last axes, the mean left as it is."""
    x = builder.value(node, 0)
    axis = int(node.get("axis", -1)) % builder.rank(x)
    axes = list(range(axis, builder.rank(x)))
    made = builder.call(levelled, x, axes, float(node.get("epsilon", 1e-5)))
    return builder.call(torch.mul, made, builder.weight(node, 1))


def levelled(x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """A mean square of 1 along some axes."""
    return x * torch.rsqrt((x * x).mean(tuple(axes), keepdim=True) + eps)


def instance_norm(builder: Builder, node: Node) -> Value:
    """Over the pixels of each channel of each sample."""
    x, eps = builder.value(node, 0), float(node.get("epsilon", 1e-5))
    made = builder.call(centred, x, list(range(2, builder.rank(x))), eps)
    return _scaled(builder, node, made)


def _scaled(builder: Builder, node: Node, x: Value) -> Value:
    """Times a learnt number a channel, plus another."""
    shape = [-1] + [1] * (builder.rank(x) - 2)
    scale, bias = (builder.call(torch.reshape, builder.weight(node, place), shape) for place in (1, 2))
    return builder.call(torch.add, builder.call(torch.mul, x, scale), bias)


def group_norm(builder: Builder, node: Node) -> Value:
    """Over groups of channels."""
    x, groups = builder.value(node, 0), int(node.get("num_groups"))
    made = builder.call(functional.group_norm, x, groups, None, None, float(node.get("epsilon", 1e-5)))
    channels = builder.sizes(x)[1][0]
    if builder.sizes(builder.value(node, 1))[0][0] == channels:
        return _scaled(builder, node, made)
    parts = [
        builder.call(torch.repeat_interleave, builder.weight(node, p), channels // groups) for p in (1, 2)
    ]
    shape = [-1] + [1] * (builder.rank(x) - 2)
    scale, bias = (builder.call(torch.reshape, part, shape) for part in parts)
    return builder.call(torch.add, builder.call(torch.mul, made, scale), bias)


def local_response(builder: Builder, node: Node) -> Value:
    """Across neighbouring channels."""
    size, alpha = int(node.get("size")), float(node.get("alpha", 1e-4))
    beta, k = float(node.get("beta", 0.75)), float(node.get("bias", 1.0))
    return builder.call(neighbourly, builder.value(node, 0), size, alpha, beta, k)


def neighbourly(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Local response normalisation; of an even number of neighbours the smaller half lies before."""
    before = (size - 1) // 2
    padded = functional.pad(x * x, [0, 0] * (x.ndim - 2) + [before, size - 1 - before])
    return x / (k + alpha / size * padded.unfold(1, size, 1).sum(-1)) ** beta


def lp_norm(builder: Builder, node: Node) -> Value:
    """Divided by its length along an axis."""
    x, axis, p = builder.value(node, 0), int(node.get("axis", -1)), int(node.get("p", 2))
    return builder.call(unit, x, axis, p)


def unit(x: Tensor, axis: int, p: int) -> Tensor:
    """See `lp_norm`; what has no length stays 0."""
    length = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(length == 0, torch.ones_like(length), length)


def mean_variance(builder: Builder, node: Node) -> Value:
    """Mean 0 and variance 1 along some axes."""
    return builder.call(centred, builder.value(node, 0), list(node.get("axes", [0, 2, 3])), 1e-9)


def dropout(builder: Builder, node: Node) -> Value:
    """A layer that does nothing but while training."""
    builder.only_first(node)
    ratio = builder.constant(node, 1, "ratio").item() if node.input(1) else float(node.get("ratio", 0.5))
    if node.input(2) and bool(builder.constant(node, 2, "mode").item()):
        node.refuse("it drops numbers at inference, too: export the model for inference")
    if not math.isfinite(ratio) or not 0 <= ratio < 1:
        node.refuse(f"its ratio is {ratio}")
    return builder.run(builder.add(node, nn.Dropout(ratio)), builder.value(node, 0))
