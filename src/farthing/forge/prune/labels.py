"""Channels followed through an ONNX graph: every place along every axis of every tensor knows whose channel it is.

Each convolution and each linear layer names the channels it gives by fresh labels; the other operators pass labels on,
join them (an addition needs the same channels on both sides) or rule out that they go (a softmax over them, the model's
outputs). Channels with joined labels go together, whatever layers lie between: Fang et al. 2023 ("DepGraph",
https://arxiv.org/abs/2301.12900) call that a group. Labels say so place by place, so that flattening and concatenation
need no rules of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from farthing.forge import graph
from farthing.forge.prune import stated
from farthing.forge.trainable.stored import is_constant

Array = NDArray[Any]
Labels = NDArray[np.int64]
Axes = list[Labels | None]
"""For each axis of a tensor the label of each place, None where there are none to follow."""

STAYS = 0
"""The label of what cannot go."""

SAME = frozenset(
    "Relu Clip Sigmoid HardSigmoid HardSwish Tanh LeakyRelu Elu Celu Selu Gelu Erf Sqrt Exp Log Abs Neg Reciprocal "
    "Softplus Softsign Mish Swish Sign Floor Ceil Round Cast CastLike Dropout Identity Not Sin Cos".split()
)
TOGETHER = frozenset(
    "Add Sub Mul Div Pow Max Min Sum Mean Where And Or Equal Less Greater LessOrEqual GreaterOrEqual PRelu Mod".split()
)
POOLS = frozenset(
    "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool Resize Upsample".split()
)
SHAPES = frozenset("Reshape Flatten Squeeze Unsqueeze".split())
OVER = frozenset("Softmax LogSoftmax Hardmax ArgMax ArgMin CumSum LpNormalization".split())


class Following:
    """The labels of a graph.

    Attributes:
        gives: name of a node with weights -> labels of the channels it gives.
        stored: name of a stored tensor -> labels along its axes.
        scales: names of the scales of batch normalization.
        axes: tensor -> labels along its axes.

    Args:
        proto: the graph, its nodes named.
        feeds: inputs to find shapes with.
    """

    def __init__(self, proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> None:
        self._weights = {name: tuple(tensor.dims) for name, tensor in graph.constants(proto).items()}
        self._numbers = stated.numbers(proto)
        nodes = [node for node in proto.graph.node if not is_constant(node)]
        names = [name for node in nodes for name in node.output if name and name not in feeds]
        given = {value.name for value in proto.graph.output}
        found = graph.run(
            proto, feeds, [name for name in dict.fromkeys(names) if name not in given], optimise=False
        )
        self.shapes = self._weights | {name: array.shape for name, array in {**feeds, **found}.items()}
        self._parents = [STAYS]
        self.axes: dict[str, Axes] = {name: [None] * array.ndim for name, array in feeds.items()}
        self.stored: dict[str, Axes] = {name: [None] * len(shape) for name, shape in self._weights.items()}
        self.gives: dict[str, Labels] = {}
        self.scales: list[str] = []
        for node in nodes:
            self._follow(node)
        for name in given:
            self._keep(*self._of(name))

    def root(self, labels: Labels) -> Labels:
        """The one label that stands for all that were joined with each."""
        return np.array([self._find(int(label)) for label in labels], np.int64)

    # Labels -----------------------------------------------------------------------------------------------------

    def _fresh(self, count: int) -> Labels:
        first = len(self._parents)
        self._parents += range(first, first + count)
        return np.arange(first, first + count, dtype=np.int64)

    def _find(self, label: int) -> int:
        while (parent := self._parents[label]) != label:
            self._parents[label] = label = self._parents[parent]
        return label

    def _join(self, one: Labels, other: Labels) -> None:
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            a, b = sorted((self._find(a), self._find(b)))
            self._parents[b] = a  # the smaller stands for both, so that what joins STAYS stays

    def _keep(self, *every: Labels | None) -> None:
        """These cannot go."""
        for labels in every:
            if labels is not None:
                self._join(labels, np.full(len(labels), STAYS))

    # Tensors ----------------------------------------------------------------------------------------------------

    def _of(self, name: str) -> Axes:
        """Labels along the axes of a tensor that is computed."""
        return self.axes.setdefault(name, [None] * len(self.shapes.get(name, ())))

    def _label(self, name: str, axis: int, labels: Labels | None) -> None:
        """Say what lies along an axis of a stored tensor; one that is stored for several nodes is the same for all."""
        if labels is None:
            return
        before = self.stored[name][axis]
        if before is None:
            self.stored[name][axis] = labels
        else:
            self._join(before, labels)

    def _give(self, node: onnx.NodeProto, axes: Axes) -> None:
        self.axes[node.output[0]] = axes

    def _is_stored(self, name: str) -> bool:
        return name in self._weights

    # Operators --------------------------------------------------------------------------------------------------

    def _follow(self, node: onnx.NodeProto) -> None:
        special: dict[str, Callable[[onnx.NodeProto], None]] = {
            "Conv": self._conv,
            "ConvTranspose": self._conv_transpose,
            "Gemm": self._gemm,
            "MatMul": self._matmul,
            "BatchNormalization": self._batch_norm,
            "InstanceNormalization": self._batch_norm,
            "Concat": self._concat,
            "Split": self._split,
            "Transpose": self._transpose,
            "Pad": self._pad,
            "LSTM": self._recurrent,
            "GRU": self._recurrent,
            "RNN": self._recurrent,
            "Shape": lambda node: None,
            "Size": lambda node: None,
        }
        families = (
            (SAME, self._same),
            (TOGETHER, self._together),
            (POOLS, self._pool),
            (SHAPES, self._reshape),
        )
        handler = special.get(node.op_type) or next(
            (handle for kinds, handle in families if node.op_type in kinds), None
        )
        if node.op_type in OVER or node.op_type.startswith("Reduce"):
            handler = self._over
        if handler is None or node.domain not in {"", "ai.onnx"}:
            handler = self._unknown
        handler(node)

    def _unknown(self, node: onnx.NodeProto) -> None:
        """Whatever it does with its channels: they stay, also those that graphs inside it take from outside."""
        for name in graph.reads(node):
            if name in self.axes:
                self._keep(*self.axes[name])
            if name in self.stored:
                self._keep(*self.stored[name])

    def _same(self, node: onnx.NodeProto) -> None:
        for name in node.input[1:]:
            if name in self.axes:
                self._keep(*self.axes[name])
        self._give(node, list(self._of(node.input[0])))

    def _pool(self, node: onnx.NodeProto) -> None:
        """Axes of samples and channels pass, unless they are resized."""
        before, after = self._of(node.input[0]), self.shapes[node.output[0]]
        same = [axis < 2 and size == after[axis] for axis, size in enumerate(self.shapes[node.input[0]])]
        self._keep(*(labels for labels, passes in zip(before, same, strict=True) if not passes))
        self._give(node, [labels if passes else None for labels, passes in zip(before, same, strict=True)])

    def _over(self, node: onnx.NodeProto) -> None:
        """What is reduced, or compared with one another, stays; the other axes pass."""
        before, after = self._of(node.input[0]), self.shapes[node.output[0]]
        over = self._reduced(node, len(before))
        self._keep(*(before[axis] for axis in over))
        left = [None if axis in over else labels for axis, labels in enumerate(before)]
        if len(after) < len(before):
            left = [labels for axis, labels in enumerate(left) if axis not in over]
        self._give(node, left)

    def _reduced(self, node: onnx.NodeProto, rank: int) -> set[int]:
        """The axes that an operator goes over; all that it may, if they are not stated."""
        axes = graph.attribute(node, "axes", None)
        if len(node.input) > 1 and node.input[1]:
            axes = self._numbers.get(node.input[1])
        elif axes is None and graph.attribute(node, "noop_with_empty_axes", 0):
            return set()
        if node.op_type in OVER or not axes:
            return set(range(rank))
        return {axis % rank for axis in axes}

    def _together(self, node: onnx.NodeProto) -> None:
        """Places that meet belong to one channel; a stored vector has a number for each."""
        shape = self.shapes[node.output[0]]
        result: Axes = [None] * len(shape)
        for place, size in enumerate(shape):
            met = list(self._meeting(node, place, size, len(shape)))
            labels = next((labels for *_, labels in met if labels is not None), None)
            if labels is None:
                continue
            for name, axis, other in met:
                if self._is_stored(name):
                    self._label(name, axis, labels)
                else:
                    self._join(labels, np.full(size, STAYS) if other is None else other)
            result[place] = labels
        self._give(node, result)

    def _meeting(
        self, node: onnx.NodeProto, place: int, size: int, rank: int
    ) -> Iterator[tuple[str, int, Labels | None]]:
        """The inputs that are as long as the result along an axis of it."""
        for name in filter(None, node.input):
            shape = self._weights.get(name) or self.shapes.get(name, ())
            axis = place - (rank - len(shape))
            if node.op_type == "PRelu" and len(shape) == 1 and name == node.input[1]:
                axis = 0 if place == rank - 1 else -1
            if axis >= 0 and shape[axis] == size and size > 1:
                yield name, axis, None if self._is_stored(name) else self._of(name)[axis]

    def _conv(self, node: onnx.NodeProto) -> None:
        x, weight = self._of(node.input[0]), node.input[1]
        groups, labels = graph.attribute(node, "group", 1), x[1]
        if not self._is_stored(weight):
            self._unknown(node)
            return
        outs, each = self._weights[weight][:2]
        if groups == 1:
            given = self._fresh(outs)
            self._label(weight, 1, labels)
        elif each == 1 and labels is not None:
            given = np.repeat(labels, outs // groups)
        elif each == 1:
            given = np.full(outs, STAYS)
        else:
            given = self._grouped(outs, groups)
            if labels is not None:
                self._label(weight, 1, self._even(labels, groups)[:each])
        self._finish(node, given, 0, x)

    def _grouped(self, count: int, groups: int) -> Labels:
        return self._even(self._fresh(count), groups)

    def _even(self, labels: Labels, groups: int) -> Labels:
        """Every group of a grouped convolution loses as many: the first channels of all go together, and so on."""
        table = labels.reshape(groups, -1)
        for row in table[1:]:
            self._join(table[0], row)
        return labels

    def _conv_transpose(self, node: onnx.NodeProto) -> None:
        x, weight = self._of(node.input[0]), node.input[1]
        groups = graph.attribute(node, "group", 1)
        if not self._is_stored(weight) or groups != 1:
            self._unknown(node)
            return
        self._label(weight, 0, x[1])
        self._finish(node, self._fresh(self._weights[weight][1]), 1, x)

    def _finish(self, node: onnx.NodeProto, given: Labels, axis: int, x: Axes) -> None:
        """Label what a convolution gives: its weight, its bias and its output; places it slides over stay."""
        self._keep(*x[2:])
        self._label(node.input[1], axis, given)
        if len(node.input) > 2 and node.input[2]:
            if self._is_stored(node.input[2]):
                self._label(node.input[2], 0, given)
            else:
                self._keep(given)
        self.gives[node.name] = given
        self._give(node, [x[0], given, *[None] * (len(self.shapes[node.output[0]]) - 2)])

    def _gemm(self, node: onnx.NodeProto) -> None:
        data, weight = node.input[:2]
        if not self._is_stored(weight) or self._is_stored(data) or graph.attribute(node, "transA", 0):
            self._unknown(node)
            return
        x, back = self._of(data), graph.attribute(node, "transB", 0)
        given = self._fresh(self._weights[weight][0 if back else 1])
        self._label(weight, 1 if back else 0, x[1])
        self._label(weight, 0 if back else 1, given)
        if len(node.input) > 2 and node.input[2]:
            bias = node.input[2]
            if not self._is_stored(bias):
                self._keep(given)
            elif self._weights[bias] and self._weights[bias][-1] == len(given) > 1:
                self._label(bias, len(self._weights[bias]) - 1, given)
        self.gives[node.name] = given
        self._give(node, [x[0], given])

    def _matmul(self, node: onnx.NodeProto) -> None:
        data, weight = node.input[:2]
        if not self._is_stored(weight) or self._is_stored(data) or len(self._weights[weight]) != 2:
            self._unknown(node)
            return
        x = self._of(data)
        given = self._fresh(self._weights[weight][1])
        self._label(weight, 0, x[-1])
        self._label(weight, 1, given)
        self.gives[node.name] = given
        self._give(node, [*x[:-1], given])

    def _batch_norm(self, node: onnx.NodeProto) -> None:
        x = self._of(node.input[0])
        for name in node.input[1:]:
            if self._is_stored(name):
                self._label(name, 0, x[1])
            else:
                self._keep(x[1])
        if node.op_type == "BatchNormalization":
            self.scales.append(node.input[1])
        self._give(node, list(x))

    def _recurrent(self, node: onnx.NodeProto) -> None:
        """The features that go in may become fewer; what comes out stays."""
        x = self._of(node.input[0])
        self._keep(*x[:-1])
        if self._is_stored(node.input[1]):
            self._label(node.input[1], 2, x[-1])
        else:
            self._keep(x[-1])

    def _concat(self, node: onnx.NodeProto) -> None:
        shape = self.shapes[node.output[0]]
        along = graph.attribute(node, "axis", 0) % len(shape)
        every = [
            (self.stored if self._is_stored(n) else self.axes).get(n) or [None] * len(shape)
            for n in node.input
        ]
        result: Axes = []
        for axis in range(len(shape)):
            own = [axes[axis] for axes in every]
            if all(labels is None for labels in own):
                result.append(None)
            elif axis == along:
                sizes = [(self._weights.get(n) or self.shapes[n])[axis] for n in node.input]
                filled = [np.full(s, STAYS) if o is None else o for s, o in zip(sizes, own, strict=True)]
                result.append(np.concatenate(filled))
            else:
                first = next(labels for labels in own if labels is not None)
                for labels in own:
                    self._join(first, np.full(len(first), STAYS) if labels is None else labels)
                result.append(first)
        self._give(node, result)

    def _split(self, node: onnx.NodeProto) -> None:
        """Each part has its own channels; parts of equal size whose sizes are not stated lose as many each."""
        x = self._of(node.input[0])
        along = graph.attribute(node, "axis", 0) % len(x)
        labels = x[along]
        alike = len({self.shapes[name][along] for name in node.output}) == 1
        if labels is not None and not (len(node.input) > 1 and node.input[1] in self._numbers):
            if alike and graph.attribute(node, "split", None) is None:
                self._even(labels, len(node.output))
            else:
                self._keep(labels)
        place = 0
        for name in node.output:
            size = self.shapes[name][along]
            part = None if labels is None else labels[place : place + size]
            self.axes[name] = [part if axis == along else other for axis, other in enumerate(x)]
            place += size

    def _transpose(self, node: onnx.NodeProto) -> None:
        x = self._of(node.input[0])
        order = graph.attribute(node, "perm", list(range(len(x)))[::-1])
        self._give(node, [x[axis] for axis in order])

    def _pad(self, node: onnx.NodeProto) -> None:
        x, before, after = self._of(node.input[0]), self.shapes[node.input[0]], self.shapes[node.output[0]]
        same = [a == b for a, b in zip(before, after, strict=True)]
        self._keep(*(labels for labels, passes in zip(x, same, strict=True) if not passes))
        self._give(node, [labels if passes else None for labels, passes in zip(x, same, strict=True)])

    def _reshape(self, node: onnx.NodeProto) -> None:
        """Axes that are merged carry the labels of the one that has them, as often as it is repeated; and back.

        An axis that is cut into several loses the same places in each part: the longest part keeps the labels.
        """
        before, after = self.shapes[node.input[0]], self.shapes[node.output[0]]
        x, axes = self._of(node.input[0]), Axes([None] * len(after))
        for olds, news in _blocks(before, after):
            labelled = [axis for axis in olds if x[axis] is not None]
            if not labelled:
                continue
            spread = _spread(x[labelled[0]], [before[a] for a in olds], olds.index(labelled[0]))
            table = None if spread is None else spread.reshape([after[a] for a in news])
            place = None if table is None or len(labelled) > 1 else self._varying(table)
            if table is not None and place is None and len(labelled) == len(olds) == 1:
                place = int(np.argmax(table.shape))
                parts = np.moveaxis(table, place, 0).reshape(table.shape[place], -1)
                for other in parts.T[1:]:
                    self._join(parts[:, 0], other)
            if table is None or place is None:
                self._keep(*(x[axis] for axis in labelled))
            else:
                axes[news[place]] = np.moveaxis(table, place, 0).reshape(table.shape[place], -1)[:, 0]
        self._give(node, axes)

    def _varying(self, table: Labels) -> int | None:
        """The one axis along which labels differ."""
        roots = self.root(table.ravel()).reshape(table.shape)
        varying = [a for a in range(roots.ndim) if (roots != roots.take([0], a)).any()]
        return varying[0] if len(varying) == 1 else None


def _spread(labels: Labels | None, sizes: Sequence[int], place: int) -> Labels | None:
    """Labels of one axis, repeated over the others."""
    if labels is None:
        return None
    shape = [1] * len(sizes)
    shape[place] = sizes[place]
    return np.broadcast_to(labels.reshape(shape), tuple(sizes)).ravel()


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of axes before and after that hold the same numbers."""
    olds, news = [a for a, n in enumerate(before) if n != 1], [a for a, n in enumerate(after) if n != 1]
    while olds and news:
        left, right = [olds.pop(0)], [news.pop(0)]
        have, want = before[left[0]], after[right[0]]
        while have != want:
            if have < want and olds:
                left.append(olds.pop(0))
                have *= before[left[-1]]
            elif news:
                right.append(news.pop(0))
                want *= after[right[-1]]
            else:
                return
        yield left, right
