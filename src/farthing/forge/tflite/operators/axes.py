"""Operators that only move or choose elements. Those that rename axes cost nothing; int8 stays int8 in all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from farthing.forge.tflite.builder import Builder, as_groups, channels_last
from farthing.forge.tflite.layout import Shape, Size, View, fixed, whole
from farthing.forge.tflite.net import Node, Params
from farthing.forge.tflite.operators.elementwise import aligned, widened
from farthing.forge.tflite.operators.window import pad as add_margins
from farthing.forge.tflite.rewriting import pad_amounts

END = 1 << 30  # slices beyond it mean: to the end


def reshape(builder: Builder, node: Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: another view, from the shapes alone."""
    view, target = builder.view(node.inputs[0], node), builder.net.shape(node.outputs[0], node)
    builder.values[node.outputs[0]] = builder.reshaped(view, target, node)


def transpose(builder: Builder, node: Node) -> None:
    """Another view."""
    view = builder.view(node.inputs[0], node)
    order = node.get("perm", range(len(view.axes))[::-1])
    builder.values[node.outputs[0]] = view.transposed([int(i) for i in order])


def single(builder: Builder, view: View, axis: int) -> tuple[int, list[int], int]:
    """A tensor in which an ONNX axis is one axis: the tensor, the order of ONNX axes, and the place of that axis."""
    order = view.simple()
    return builder.place(view, [[i] for i in order]), order, order.index(axis)


def concat(builder: Builder, node: Node) -> None:
    """CONCATENATION in the layout of the largest part. Int8 parts are brought to the result's scale first."""
    shape = builder.net.shape(node.outputs[0], node)
    axis = int(node.attributes["axis"]) % len(shape)
    asked = _common(builder, node, node.inputs)
    views = [_at(builder, name, node, asked) for name in node.inputs]
    lead = max(views, key=lambda view: (builder.tensors[view.tensor].data is None, not view.straight))
    order = lead.simple()
    tensors = [builder.place(view, [[i] for i in order]) for view in views]
    made = builder.add(
        "CONCATENATION",
        tensors,
        tuple(shape[i] for i in order),
        builder.tensors[tensors[0]].dtype,
        asked,
        "ConcatenationOptions",
        axis=order.index(axis),
        fusedActivationFunction="NONE",
    )
    builder.put(node.outputs[0], made, order)


def _common(builder: Builder, node: Node, names: Sequence[str]) -> Params | None:
    """The scale at which int8 parts are joined: the result's, or the one that all of them have."""
    if not all(builder.is_int8(name) for name in names):
        return None
    own = {builder.params(builder.view(name, node).tensor) for name in names}
    return own.pop() if len(own) == 1 else builder.asked(node.outputs[0])


def _at(builder: Builder, name: str, node: Node, params: Params | None) -> View:
    view = builder.view(name, node)
    return builder.quantized(view, params) if params else builder.real(view)


def split(builder: Builder, node: Node) -> None:
    """Split as one SLICE for each part, or SPLIT if the parts are equal."""
    view = builder.view(node.inputs[0], node)
    axis = int(node.get("axis", 0)) % len(view.shape)
    sizes = [builder.net.sizes(name, node, [axis])[0] for name in node.outputs]
    if sum(sizes) != view.shape[axis].first or view.shape[axis].free:
        node.refuse(f"parts of {sizes} do not make up {view.shape[axis].first}")
    tensor, order, place = single(builder, view, axis)
    source = builder.tensors[tensor]
    shapes = [
        tuple(Size(size, size) if i == place else s for i, s in enumerate(source.shape)) for size in sizes
    ]
    if len(set(sizes)) == 1:
        inputs = [builder.integers([place]), tensor]
        inputs[0] = builder.reshape(inputs[0], ())
        parts = builder.add_all(
            "SPLIT", inputs, shapes, source.dtype, source.params, "SplitOptions", numSplits=len(sizes)
        )
    else:
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        parts = [
            _sliced(builder, tensor, place, start, shape) for start, shape in zip(starts, shapes, strict=True)
        ]
    for name, part in zip(node.outputs, parts, strict=True):
        builder.put(name, part, order)


def _sliced(builder: Builder, tensor: int, place: int, start: int, shape: Shape) -> int:
    """One axis cut to a range, by SLICE; -1 stands for everything of an axis."""
    source = builder.tensors[tensor]
    begin, sizes = [0] * len(shape), [-1 if size.free else size.first for size in shape]
    begin[place] = start
    inputs = [tensor, builder.integers(begin), builder.integers(sizes)]
    return builder.add("SLICE", inputs, shape, source.dtype, source.params, "SliceOptions")


def slices(builder: Builder, node: Node) -> None:
    """Slice with constant bounds: STRIDED_SLICE."""
    view = builder.view(node.inputs[0], node)
    starts, stops, axes, steps = _bounds(builder, node)
    target = builder.net.shape(node.outputs[0], node)
    order = view.simple()
    tensor = builder.place(view, [[i] for i in order])
    source = builder.tensors[tensor]
    begin, end, stride = [0] * len(order), [0] * len(order), [1] * len(order)
    untouched = set(range(len(order)))
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        place = order.index(axis % len(order))
        if view.shape[axis % len(order)].free:
            if (start, step) != (0, 1) or stop < END:
                node.refuse("it cuts a free axis; fix the inputs' sizes")
            continue
        first, last, stride[place] = slice(start, stop, step).indices(view.shape[axis % len(order)].first)
        if not range(first, last, step):
            node.refuse("it leaves nothing")
        begin[place], end[place] = first, last
        untouched.discard(place)
        if last < 0:  # down to the very first: no index says that, the mask does
            end[place] = 0
            untouched.add(place)
    keep = sum(1 << i for i in untouched)
    start_mask = sum(1 << i for i in untouched if stride[i] > 0)
    made = builder.add(
        "STRIDED_SLICE",
        [tensor, *(builder.integers(values) for values in (begin, end, stride))],
        tuple(target[i] for i in order),
        source.dtype,
        source.params,
        "StridedSliceOptions",
        beginMask=start_mask,
        endMask=keep,
    )
    builder.put(node.outputs[0], made, order)


def _bounds(builder: Builder, node: Node) -> tuple[list[int], list[int], list[int], list[int]]:
    if "starts" in node.attributes:
        starts, stops = list(node.attributes["starts"]), list(node.attributes["ends"])
        return starts, stops, list(node.get("axes", range(len(starts)))), [1] * len(starts)
    starts, stops = builder.numbers(node.inputs[1], node), builder.numbers(node.inputs[2], node)
    axes = builder.numbers(node.inputs[3], node) if node.input(3) else list(range(len(starts)))
    steps = builder.numbers(node.inputs[4], node) if node.input(4) else [1] * len(starts)
    return starts, stops, axes, steps


def gather(builder: Builder, node: Node) -> None:
    """GATHER along one axis; a single constant index is a slice."""
    view = builder.view(node.inputs[0], node)
    axis = int(node.get("axis", 0)) % len(view.shape)
    target = builder.net.shape(node.outputs[0], node)
    tensor, order, place = single(builder, view, axis)
    source = builder.tensors[tensor]
    if not builder.is_constant(node.inputs[1]):
        _gather_computed(builder, node, axis)
        return
    size = builder.net.sizes(node.inputs[0], node, [axis])[0] if node.inputs[0] in builder.net.shapes else 0
    indices = builder.constant(node.inputs[1], node).data.astype(np.int64)
    if indices.size and (indices.min() < -size or indices.max() >= size):
        node.refuse(f"an index lies outside 0..{size - 1}")
    indices = np.where(indices < 0, indices + size, indices)
    if indices.size == 1:
        shape = tuple(Size(1, 1) if i == place else s for i, s in enumerate(source.shape))
        made = _sliced(builder, tensor, place, int(indices.ravel()[0]), shape)
    else:
        shape = (*source.shape[:place], *fixed([indices.size]), *source.shape[place + 1 :])
        inputs = [tensor, builder.integers(indices.ravel().tolist())]
        made = builder.add("GATHER", inputs, shape, source.dtype, source.params, "GatherOptions", axis=place)
    picked = whole(made, builder.tensors[made].shape, order)
    builder.values[node.outputs[0]] = builder.reshaped(picked, target, node)


def _gather_computed(builder: Builder, node: Node, axis: int) -> None:
    """Indices that are computed or fed: rows of a table, in ONNX's order of axes."""
    view, where = builder.view(node.inputs[0], node), builder.view(node.inputs[1], node)
    tensor = builder.place(view, [[i] for i in range(len(view.shape))])
    indices = builder.place(where, [[i] for i in range(len(where.shape))])
    shape = (*view.shape[:axis], *where.shape, *view.shape[axis + 1 :])
    source = builder.tensors[tensor]
    if builder.tensors[indices].dtype not in {"int32", "int64"}:
        node.refuse("indices are int32 or int64")
    made = builder.add(
        "GATHER", [tensor, indices], shape, source.dtype, source.params, "GatherOptions", axis=axis
    )
    builder.put(node.outputs[0], made, range(len(shape)))


def pads(builder: Builder, node: Node) -> None:
    """Pad with a constant (PAD, PADV2) or by reflection (MIRROR_PAD)."""
    mode = node.get("mode", "constant")
    if mode not in {"constant", "reflect"}:
        node.refuse(f"TFLite cannot pad by {mode!r}")
    view, amounts = builder.view(node.inputs[0], node), pad_amounts(builder.net, node)
    rank, order = len(view.shape), view.simple()
    if min(amounts, default=0) < 0:
        node.refuse("negative padding cuts; use Slice")
    around = [(amounts[i], amounts[i + rank]) for i in order]
    tensor = builder.place(view, [[i] for i in order])
    if mode == "reflect":
        made = _reflected(builder, tensor, around)
    else:
        made = add_margins(builder, tensor, around, _value(builder, node))
    builder.put(node.outputs[0], made, order)


def _value(builder: Builder, node: Node) -> float:
    if not node.input(2):
        return float(node.get("value", 0.0))
    return float(builder.constant(node.input(2), node).real.ravel()[0])


def _reflected(builder: Builder, tensor: int, around: Sequence[tuple[int, int]]) -> int:
    source = builder.tensors[tensor]
    pairs = zip(source.shape, around, strict=True)
    shape = tuple(Size(size.first + sum(margin), size.second + sum(margin)) for size, margin in pairs)
    inputs = [tensor, builder.stored(np.asarray(around, np.int32))]
    return builder.add(
        "MIRROR_PAD", inputs, shape, source.dtype, source.params, "MirrorPadOptions", mode="REFLECT"
    )


def depth_to_space(builder: Builder, node: Node) -> None:
    """DEPTH_TO_SPACE for channels that count blocks first (DCR); a transposition for those that do not (CRD)."""
    view, target = builder.view(node.inputs[0], node), builder.net.shape(node.outputs[0], node)
    size = int(node.attributes["blocksize"])
    if node.get("mode", "DCR") == "CRD":
        batch, channels, height, width = view.shape
        cut = (
            batch,
            Size(channels.first // size**2, channels.second // size**2),
            *fixed([size, size]),
            height,
            width,
        )
        moved = builder.reshaped(view, cut, node).transposed([0, 1, 4, 2, 5, 3])
        builder.values[node.outputs[0]] = builder.reshaped(moved, target, node)
        return
    _blocks(builder, node, "DEPTH_TO_SPACE", "DepthToSpaceOptions", size)


def space_to_depth(builder: Builder, node: Node) -> None:
    """SPACE_TO_DEPTH."""
    _blocks(builder, node, "SPACE_TO_DEPTH", "SpaceToDepthOptions", int(node.attributes["blocksize"]))


def _blocks(builder: Builder, node: Node, code: str, options: str, size: int) -> None:
    tensor = builder.place(builder.view(node.inputs[0], node), as_groups(channels_last(4)))
    source, target = builder.tensors[tensor], builder.net.shape(node.outputs[0], node)
    shape = tuple(target[i] for i in (0, 2, 3, 1))
    made = builder.add(code, [tensor], shape, source.dtype, source.params, options, blockSize=size)
    builder.put(node.outputs[0], made, channels_last(4))


def expand(builder: Builder, node: Node) -> None:
    """Expand to a shape known ahead: BROADCAST_TO."""
    target = builder.net.shape(node.outputs[0], node)
    view = widened(builder.view(node.inputs[0], node), target)
    if view.shape == target:
        builder.values[node.outputs[0]] = view
        return
    order = view.simple()
    sizes = builder.net.sizes(node.outputs[0], node)
    tensor = builder.place(view, [[i] for i in order])
    source = builder.tensors[tensor]
    inputs = [tensor, builder.integers([sizes[i] for i in order])]
    made = builder.add("BROADCAST_TO", inputs, tuple(target[i] for i in order), source.dtype, source.params)
    builder.put(node.outputs[0], made, order)


def cast(builder: Builder, node: Node) -> None:
    """CAST between float32, int32, int64 and bool."""
    kind = builder.net.types.get(node.outputs[0], "")
    view = builder.float_view(node.inputs[0], node)
    source = builder.tensors[view.tensor]
    known = {"float32": "FLOAT32", "int32": "INT32", "int64": "INT64", "bool": "BOOL"}
    if kind not in known or source.dtype not in known:
        node.refuse(f"from {source.dtype} to {kind or 'an unknown type'}")
    made = builder.add(
        "CAST",
        [view.tensor],
        source.shape,
        kind,
        options="CastOptions",
        inDataType=known[source.dtype],
        outDataType=known[kind],
    )
    builder.values[node.outputs[0]] = view._replace(tensor=made)


def where(builder: Builder, node: Node) -> None:
    """SELECT_V2 in the layout of the largest operand."""
    shape = builder.net.shape(node.outputs[0], node)
    tensors, view = aligned(builder, node, node.inputs, shape, integer=False)
    stored = view.atoms if view.tensor < 0 else builder.tensors[view.tensor].shape
    dtype = builder.tensors[tensors[1]].dtype
    made = builder.add("SELECT_V2", tensors, stored, dtype, options="SelectV2Options")
    builder.values[node.outputs[0]] = view._replace(tensor=made)
