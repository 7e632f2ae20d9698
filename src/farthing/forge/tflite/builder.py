"""The TFLite graph while it is written: tensors, operators, and ONNX tensors as views of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from farthing.errors import UnsupportedError
from farthing.forge.tflite.layout import (
    ONE,
    Groups,
    Shape,
    Size,
    View,
    firsts,
    fixed,
    merged,
    product,
    runs,
    whole,
)
from farthing.forge.tflite.net import Constant, Net, Node, Params, describe
from farthing.forge.tflite.scales import params_of

Array = NDArray[Any]
Storage = Literal["float32", "float16", "int8"]
MAX_AXES = 6  # of a TRANSPOSE
WORTH = 1024  # weights of fewer numbers stay float32: what they save the bookkeeping eats
VERSION = {"BROADCAST_TO": 2, "TRANSPOSE_CONV": 3}  # others are 1 in float
INT8_VERSION = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "TRANSPOSE_CONV": 3,
} | dict.fromkeys(
    "ADD ARG_MAX AVERAGE_POOL_2D CONCATENATION DEQUANTIZE LEAKY_RELU LOGISTIC MAX_POOL_2D MEAN MUL PAD PADV2 RELU "
    "RELU6 REDUCE_MAX REDUCE_MIN RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SLICE SOFTMAX SPLIT STRIDED_SLICE SUB SUM "
    "TANH TRANSPOSE".split(),
    2,
)


@dataclass
class Tensor:
    """A TFLite tensor; ``data`` is set if it is stored, ``name`` if it is an input or output."""

    shape: Shape
    dtype: str
    params: Params | None = None
    data: Array | None = None
    name: str = ""


@dataclass(frozen=True)
class Operator:
    """A TFLite operator: its builtin code, tensors by number (-1 for none) and options by schema name."""

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    version: int
    options: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


class Builder:
    """Collects tensors and operators.

    Attributes:
        net: what is being written.
        storage: how weights of float operators are stored.
        values: ONNX tensors that are computed, as views.
        tensors, operators: what was made so far.
    """

    def __init__(self, net: Net, storage: Storage = "float32") -> None:
        self.net = net
        self.storage = storage
        self.values: dict[str, View] = {}
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.readers = net.readers()
        self._known: dict[Any, int] = {}

    # What ONNX names

    def view(self, name: str, node: Node) -> View:
        """An ONNX tensor that is computed, or a constant put down as a tensor."""
        if name not in self.values:
            data = self.constant(name, node).data
            self.values[name] = whole(
                self.stored(data, self.constant(name, node).params), fixed(data.shape), range(data.ndim)
            )
        return self.values[name]

    def shape(self, name: str, node: Node) -> Shape:
        """Its ONNX shape."""
        return self.values[name].shape if name in self.values else self.net.shape(name, node)

    def is_constant(self, name: str) -> bool:
        """Whether an ONNX tensor is stored."""
        return name in self.net.constants

    def constant(self, name: str, node: Node) -> Constant:
        """A stored ONNX tensor; an UnsupportedError if it is computed, or depends on the size of the batch."""
        if name not in self.net.constants:
            node.refuse(f"its input {name!r} must be a constant")
        if name in self.net.varying:
            node.refuse(f"its input {name!r} depends on the size of a free axis; fix the inputs' sizes")
        return self.net.constants[name]

    def numbers(self, name: str, node: Node) -> list[int]:
        """A stored ONNX tensor as whole numbers."""
        return [int(value) for value in self.constant(name, node).data.ravel()]

    def is_int8(self, name: str) -> bool:
        """Whether an ONNX tensor is there as int8: computed, or stored with one scale."""
        if name in self.values:
            return self.tensors[self.values[name].tensor].params is not None
        constant = self.net.constants.get(name)
        return bool(
            constant and constant.params and constant.params.single and constant.data.dtype == np.int8
        )

    def asked(self, name: str) -> Params | None:
        """The scale of an ONNX tensor that is only ever read quantized, always alike; None for all others."""
        if name in self.net.outputs.values():
            return None
        found = [
            params_of(self.net, reader)
            if reader.kind == "QuantizeLinear" and reader.inputs[0] == name
            else None
            for reader in self.readers.get(name, [])
        ]
        first = found[0][0] if found and found[0] else None
        return first if first and first.single and all(one and one[0] == first for one in found) else None

    # Tensors

    def stored(self, data: Array, params: Params | None = None) -> int:
        """A stored tensor; equal ones are the same."""
        data = np.ascontiguousarray(data)
        key = ("stored", data.dtype.name, data.shape, data.tobytes(), params)
        if key not in self._known:
            self._known[key] = self._tensor(Tensor(fixed(data.shape), data.dtype.name, params, data))
        return self._known[key]

    def integers(self, values: Sequence[int]) -> int:
        """Whole numbers that an operator takes as a tensor: axes, sizes and the like."""
        return self.stored(np.asarray(values, np.int32))

    def weights(self, data: Array, axis: int) -> int:
        """Weights of a float operator as ``storage`` says; ``axis`` counts its outputs."""
        data = np.ascontiguousarray(data, np.float32)
        if self.storage == "float32" or data.size < WORTH:
            return self.stored(data)
        if self.storage == "int8":
            return self.stored(*symmetric(data, axis))
        with np.errstate(over="ignore"):
            half = data.astype(np.float16)
        if not np.isfinite(half).all():
            return self.stored(data)
        return self.add("DEQUANTIZE", [self.stored(half)], fixed(data.shape), options="DequantizeOptions")

    def _tensor(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def input(self, name: str, shape: Shape, dtype: str, params: Params | None = None) -> int:
        """A tensor that the caller feeds."""
        return self._tensor(Tensor(shape, dtype, params, name=name))

    # Operators

    def add(
        self,
        code: str,
        inputs: Sequence[int],
        shape: Shape,
        dtype: str = "float32",
        params: Params | None = None,
        options: str = "",
        version: int = 0,
        **fields: Any,
    ) -> int:
        """An operator with one result; the same operator on the same tensors is written once."""
        return self.add_all(code, inputs, [shape], dtype, params, options, version, **fields)[0]

    def add_all(
        self,
        code: str,
        inputs: Sequence[int],
        shapes: Sequence[Shape],
        dtype: str = "float32",
        params: Params | None = None,
        options: str = "",
        version: int = 0,
        **fields: Any,
    ) -> list[int]:
        """An operator with any number of results of one type."""
        dtype = "int8" if params else dtype
        text = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        key = (code, tuple(inputs), tuple(shapes), dtype, params, tuple(sorted(text.items())))
        if key not in self._known:
            results = [self._tensor(Tensor(shape, dtype, params)) for shape in shapes]
            quantized = any(i >= 0 and self.tensors[i].dtype == "int8" for i in inputs) or params is not None
            number = version or (INT8_VERSION if quantized else VERSION).get(code, 1)
            self.operators.append(Operator(code, tuple(inputs), tuple(results), number, options, fields))
            self._known[key] = results[0]
        first = self._known[key]
        return list(range(first, first + len(shapes)))

    def put(self, name: str, tensor: int, axes: Sequence[int | None]) -> None:
        """Name a tensor as an ONNX tensor; its i-th axis is the ONNX axis ``axes[i]``, None if ONNX lacks it."""
        self.values[name] = whole(tensor, self.tensors[tensor].shape, axes)

    def params(self, tensor: int) -> Params | None:
        """How the integers of a tensor stand for numbers; None if they do not."""
        return self.tensors[tensor].params

    # Layout and type

    def place(self, view: View, groups: Groups) -> int:
        """A tensor whose i-th axis is the i-th group of axes of a view; moved only if need be."""
        wanted = tuple(product(view.shape[axis] for axis in group) for group in groups)
        order = view.order(groups)
        direct = self._direct(view, groups)
        inexpressible = sum(size.free for size in wanted) > 1 and self.tensors[view.tensor].shape != wanted
        if order == sorted(order) and not (direct and inexpressible):
            return self.reshape(view.tensor, wanted)
        if direct:
            return self._transpose(view.tensor, direct)
        kept = sorted(order)
        sizes, permutation = merged([view.atoms[i] for i in kept], [kept.index(i) for i in order])
        if len(sizes) > MAX_AXES:
            raise UnsupportedError(f"a transposition of {len(sizes)} axes at once is more than TFLite can do")
        return self.reshape(self._transpose(self.reshape(view.tensor, tuple(sizes)), permutation), wanted)

    def _direct(self, view: View, groups: Groups) -> list[int]:
        """The permutation that alone gives the groups, if there is one."""
        if self.tensors[view.tensor].shape != view.atoms or any(len(group) != 1 for group in groups):
            return []
        axes = [view.axes[group[0]] for group in groups]
        single = len(axes) == len(view.atoms) <= MAX_AXES and all(len(axis) == 1 for axis in axes)
        return [axis[0] for axis in axes] if single else []

    def _transpose(self, tensor: int, permutation: Sequence[int]) -> int:
        source = self.tensors[tensor]
        if source.data is not None:
            laid = Constant(source.data, source.params).transposed(permutation)
            return self.stored(laid.data, laid.params)
        shape = tuple(source.shape[i] for i in permutation)
        inputs = [tensor, self.integers(permutation)]
        return self.add("TRANSPOSE", inputs, shape, source.dtype, source.params, "TransposeOptions")

    def reshape(self, tensor: int, shape: Shape) -> int:
        """The same elements in another shape."""
        source = self.tensors[tensor]
        if source.shape == shape:
            return tensor
        if source.data is not None:
            return self.stored(source.data.reshape(firsts(shape)), source.params)
        made = next((op for op in self.operators if tensor in op.outputs and op.code == "RESHAPE"), None)
        if made:
            return self.reshape(made.inputs[0], shape)
        target = [size.signature for size in shape]
        if target.count(-1) > 1:
            raise UnsupportedError(
                f"a reshape to {describe(shape)} with several free axes cannot be written as TFLite: fix one of them"
            )
        return self.add(
            "RESHAPE",
            [tensor, self.integers(target)],
            shape,
            source.dtype,
            source.params,
            "ReshapeOptions",
            newShape=target,
        )

    def copy(self, tensor: int) -> int:
        """The same tensor again, as another."""
        source = self.tensors[tensor]
        fresh = self._tensor(Tensor(source.shape, source.dtype, source.params))
        target = [size.signature for size in source.shape]
        inputs = (tensor, self.integers(target))
        fields = {"newShape": target}
        self.operators.append(Operator("RESHAPE", inputs, (fresh,), 1, "ReshapeOptions", fields))
        return fresh

    def reshaped(self, view: View, shape: Shape, node: Node) -> View:
        """A view in another ONNX shape; the elements move only if axes that lie apart must be joined and cut."""
        try:
            found = view.reshaped(shape)
            if found is None:
                groups = [old for old, _ in runs(view.shape, shape)]
                tensor = self.place(view, groups)
                found = whole(tensor, self.tensors[tensor].shape, range(len(groups))).reshaped(shape)
        except ValueError as error:
            node.refuse(str(error))
        if found is None:
            node.refuse(
                f"{describe(view.shape)} cannot become {describe(shape)} without its free axes being known"
            )
        return found

    def physical(self, view: View) -> int:
        """The tensor of a view with its atoms as axes."""
        return self.reshape(view.tensor, view.atoms)

    def real(self, view: View) -> View:
        """A view of the same numbers as float32."""
        tensor = self.tensors[view.tensor]
        if tensor.params is None:
            return view
        if tensor.data is not None:
            return view._replace(tensor=self.stored(Constant(tensor.data, tensor.params).real))
        result = self.add("DEQUANTIZE", [view.tensor], tensor.shape, options="DequantizeOptions")
        return view._replace(tensor=result)

    def quantized(self, view: View, params: Params) -> View:
        """A view of the same numbers at a scale, rounded and clipped to int8."""
        tensor = self.tensors[view.tensor]
        if tensor.params == params:
            return view
        version = 2 if tensor.params else 1
        result = self.add(
            "QUANTIZE", [view.tensor], tensor.shape, params=params, options="QuantizeOptions", version=version
        )
        return view._replace(tensor=result)

    def convert(self, tensor: int, dtype: str, params: Params) -> int:
        """The same numbers as integers of another type; QUANTIZE does it without rounding."""
        source = self.tensors[tensor]
        if source.dtype == dtype:
            return tensor
        made = self.add(
            "QUANTIZE", [tensor], source.shape, params=params, options="QuantizeOptions", version=2
        )
        self.tensors[made].dtype = dtype
        return made

    def float_view(self, name: str, node: Node) -> View:
        """An ONNX tensor as float32."""
        return self.real(self.view(name, node))

    def activated(self, tensor: int, activation: str) -> int:
        """The result of an operator that cannot apply an activation itself."""
        if activation == "NONE":
            return tensor
        source = self.tensors[tensor]
        return self.add(activation, [tensor], source.shape, source.dtype, source.params)


def symmetric(data: Array, axis: int) -> tuple[Array, Params]:
    """Weights as int8 of -127..127, a scale for each index of an axis, zero point 0."""
    rest = tuple(i for i in range(data.ndim) if i != axis)
    largest = np.abs(data).max(axis=rest, keepdims=True).astype(np.float32)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    stored = np.clip(np.rint(data / scale), -127, 127).astype(np.int8)
    scales = tuple(float(value) for value in scale.ravel())
    return stored, Params(scales, (0,) * len(scales), axis)


def channels_last(rank: int) -> list[int | None]:
    """Axes of an ONNX tensor in the order of a TFLite picture; a signal gets a height of 1."""
    return [0, 2, 3, 1] if rank == 4 else [0, None, 2, 1]


def as_groups(axes: Sequence[int | None]) -> list[list[int]]:
    """The same as groups for `Builder.place`."""
    return [[] if axis is None else [axis] for axis in axes]


def static(shape: Sequence[int]) -> Shape:
    """Fixed sizes as a shape."""
    return tuple(Size(size, size) if size != 1 else ONE for size in shape)
