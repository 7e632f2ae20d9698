"""From an ONNX file to a `Net`: free axes tried at two sizes, everything that is constant computed ahead of time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from farthing.errors import ModelError, UnsupportedError
from farthing.forge import graph
from farthing.forge.tflite.layout import Shape, Size
from farthing.forge.tflite.net import Constant, Net, Node
from farthing.model import TensorSpec

Array = NDArray[Any]
OLDEST = 9
STORED_APART = 4  # the first IR version whose stored tensors need not be inputs, too
BATCH, OTHER = (1, 2), (64, 96)  # what free axes are set to: a batch of 1 is what the file declares
SMALL = 1024  # numbers: larger constants are kept out of shape inference
LARGEST = 1 << 28  # numbers in a constant that is computed: no more are made from a few bytes
ROUNDS = 100
FAILURES: tuple[type[Exception], ...] = (
    onnx.shape_inference.InferenceError,
    RuntimeError,
    ValueError,
    TypeError,
)
STAY = {"DequantizeLinear"}  # int8 weights stay int8


def read(proto: onnx.ModelProto, specs: Sequence[TensorSpec]) -> Net:
    """A loaded ONNX model as a net.

    Args:
        proto: the model.
        specs: its inputs as the manifest declares them; axes with a name instead of a size stay free.

    Raises:
        UnsupportedError: an old opset, parts of the graph inside others, or shapes that cannot be followed.
    """
    opset = graph.opset(proto)
    if opset < OLDEST:
        raise UnsupportedError(
            f"opset {opset} is too old to write as TFLite: fuse the model first, or export it with {OLDEST} or newer"
        )
    graph.name_nodes(proto)
    sizes = _choices(specs)
    first, second = (_World(proto, {n: [s[k] for s in shape] for n, shape in sizes.items()}) for k in (0, 1))
    if [node.outputs for node in first.nodes] != [node.outputs for node in second.nodes]:
        raise UnsupportedError(
            "the graph changes with the batch size: fix the inputs' sizes and convert it again"
        )
    varying = {
        name for name, array in first.constants.items() if not _same(array, second.constants.get(name))
    }
    shapes = {
        name: tuple(map(Size, shape, second.shapes[name]))
        for name, shape in first.shapes.items()
        if len(second.shapes.get(name, ())) == len(shape) and name in second.shapes
    }
    constants = {name: Constant(array) for name, array in first.constants.items()}
    outputs = {value.name: value.name for value in proto.graph.output}
    names = tuple(spec.name for spec in specs)
    return Net(opset, first.nodes, constants, frozenset(varying), shapes, first.types, names, outputs)


def _choices(specs: Sequence[TensorSpec]) -> dict[str, Shape]:
    """For each input its shape at both choices; axes of one name have one size."""
    batch = {
        spec.shape[spec.batch_axis]
        for spec in specs
        if spec.batch_axis is not None and isinstance(spec.shape[spec.batch_axis], str)
    }

    def size(given: int | str) -> Size:
        return Size(given, given) if isinstance(given, int) else Size(*(BATCH if given in batch else OTHER))

    return {spec.name: tuple(map(size, spec.shape)) for spec in specs}


def _same(a: Array, b: Array | None) -> bool:
    return b is not None and a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


class _World:
    """The graph with its free axes set: shapes inferred and constants computed until nothing more is known."""

    def __init__(self, proto: onnx.ModelProto, sizes: Mapping[str, Sequence[int]]) -> None:
        self.proto = proto
        self.sizes = sizes
        self.constants: dict[str, Array] = {t.name: _array(t) for t in proto.graph.initializer}
        self.graph_nodes = [node for node in proto.graph.node if not self._stored(node)]
        self.shapes: dict[str, list[int]] = {}
        self.types: dict[str, str] = {}
        for _ in range(ROUNDS):
            self._infer()
            if not self._fold():
                break
        self.shapes |= {name: list(array.shape) for name, array in self.constants.items()}
        self.types |= {name: array.dtype.name for name, array in self.constants.items()}
        self.nodes = [_node(node) for node in self.graph_nodes]

    def _stored(self, node: onnx.NodeProto) -> bool:
        """Take the value of a Constant node among the constants."""
        if node.op_type != "Constant" or node.domain not in {"", "ai.onnx"}:
            return False
        attribute = node.attribute[0]
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            value = _array(value)
        elif attribute.name not in {"value_float", "value_floats", "value_int", "value_ints"}:
            raise UnsupportedError(f"constant {node.output[0]!r} is a {attribute.name}: TFLite has none such")
        kind = None if attribute.name == "value" else np.float32 if "float" in attribute.name else np.int64
        self.constants[node.output[0]] = np.asarray(value, kind)
        return True

    def _infer(self) -> None:
        """Shapes and types of all tensors as far as onnx can tell."""
        version = max(self.proto.ir_version, STORED_APART)
        light = onnx.ModelProto(ir_version=version, opset_import=self.proto.opset_import)
        light.graph.name = "light"
        light.graph.node.extend(self.graph_nodes)
        for value in self.proto.graph.input:
            if value.name in self.sizes:
                element = value.type.tensor_type.elem_type
                light.graph.input.append(
                    helper.make_tensor_value_info(value.name, element, self.sizes[value.name])
                )
        self._declare(light)
        for value in self.proto.graph.output:
            bare = light.graph.output.add(name=value.name)
            bare.type.tensor_type.elem_type = value.type.tensor_type.elem_type
        try:
            known = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
        except FAILURES as error:
            raise ModelError(f"the shapes of the graph contradict one another: {error}") from error
        for value in (*known.input, *known.value_info, *known.output):
            self._note(value)

    def _declare(self, light: onnx.ModelProto) -> None:
        used = {name for node in self.graph_nodes for name in node.input}
        for name, array in self.constants.items():
            if name not in used:
                continue
            if array.size <= SMALL:
                light.graph.initializer.append(numpy_helper.from_array(array, name))
            else:
                element = helper.np_dtype_to_tensor_dtype(array.dtype)
                light.graph.input.append(helper.make_tensor_value_info(name, element, array.shape))

    def _note(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        if kind.elem_type:
            self.types[value.name] = graph.dtype_name(kind.elem_type)
        dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
        if kind.HasField("shape") and all(dim >= 0 for dim in dims):
            self.shapes[value.name] = dims

    def _fold(self) -> bool:
        """Compute what is constant by now; whether anything was."""
        asked = [
            node for node in self.graph_nodes if node.op_type in {"Shape", "Size"} and self._answer(node)
        ]
        known = set(self.constants)
        ready = []
        for node in self.graph_nodes:
            if node.op_type in STAY or node in asked or not set(node.input) - {""} <= known:
                continue
            if _pure(node) and all(self._small(name) for name in node.output if name):
                ready.append(node)
                known |= set(node.output)
        if ready:
            self._compute(ready)
        done = {id(node) for node in (*asked, *ready)}
        self.graph_nodes = [node for node in self.graph_nodes if id(node) not in done]
        return bool(done)

    def _answer(self, node: onnx.NodeProto) -> bool:
        """Answer a Shape or Size node from the inferred shapes."""
        shape = self.shapes.get(node.input[0])
        if shape is None and node.input[0] in self.constants:
            shape = list(self.constants[node.input[0]].shape)
        if shape is None:
            return False
        bounds = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        picked = shape[slice(bounds.get("start", 0), bounds.get("end"))]
        answer = math.prod(shape) if node.op_type == "Size" else picked
        self.constants[node.output[0]] = np.asarray(answer, np.int64)
        return True

    def _small(self, name: str) -> bool:
        """Whether the size of a result is known; one too large is refused."""
        if name not in self.shapes:
            return False
        if math.prod(self.shapes[name]) > LARGEST:
            raise UnsupportedError(
                f"constant {name!r} would hold {math.prod(self.shapes[name]):,} numbers: refused"
            )
        return True

    def _compute(self, nodes: Sequence[onnx.NodeProto]) -> None:
        made = [name for node in nodes for name in node.output if name]
        used = {name for node in nodes for name in node.input}
        part = onnx.ModelProto(
            ir_version=min(self.proto.ir_version, 10), opset_import=self.proto.opset_import
        )
        part.graph.name = "constants"
        part.graph.node.extend(nodes)
        part.graph.initializer.extend(
            numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in used
        )
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        self.constants |= {name: np.asarray(array) for name, array in graph.run(part, {}).items()}


def _pure(node: onnx.NodeProto) -> bool:
    """Whether a node gives the same result every time, and holds no graph of its own."""
    random = node.op_type.startswith("Random") or node.op_type in {"Multinomial", "Bernoulli"}
    inner = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
    return not random and not inner


def _array(tensor: onnx.TensorProto) -> Array:
    if tensor.data_type == onnx.TensorProto.STRING:
        raise UnsupportedError(f"constant {tensor.name!r} is text: TFLite models compute with numbers")
    return np.asarray(numpy_helper.to_array(tensor))


def _node(node: onnx.NodeProto) -> Node:
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        attributes[attribute.name] = value.decode() if isinstance(value, bytes) else value
    kind = node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"
    return Node(kind, node.name, tuple(node.input), tuple(node.output), attributes)
