"""Tables of embeddings in 8 or 4 bits: half of a small language model is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.quantize.blocks import Blocks, int4
from farthing.forge.quantize.blockwise import DOMAIN
from farthing.model import Model, Quantization, checked
from farthing.recipe import FLOATS, PassSection
from farthing.target import Target
from farthing.task import Task

Array = NDArray[Any]
BLOCK = 32


class Tables(PassSection, frozen=True, kw_only=True):
    """Store the tables that ``Gather`` takes rows of in few bits, and widen what is taken.

    8 bits have a scale for each row, and are standard ONNX; 4 bits have one for each block of 32 numbers, and are
    ONNX Runtime's operator ``GatherBlockQuantized``.

    Attributes:
        bits: of a number.
        least: rows that a table must have.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    forms: ClassVar[Mapping[str, str]] = {
        form: form for form in (*FLOATS, "int8", "mixed", "dynamic", "blocks", "stored", "reduced")
    }
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")

    bits: Literal[8, 4] = 8
    least: int = 256

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError if the graph takes rows of no table."""
        proto = graph.load(model.file)
        names = tables(proto, self.least)
        if not names:
            raise UnsupportedError(f"{model.manifest.name} takes rows of no table of {self.least} or more")
        look_up, store = (_rows_taken, _rows) if self.bits == 8 else (_blocks_taken, _blocks)
        nodes = [
            made for node in proto.graph.node for made in (look_up(node) if _takes(node, names) else [node])
        ]
        small = [part for tensor in proto.graph.initializer if tensor.name in names for part in store(tensor)]
        kept = [tensor for tensor in proto.graph.initializer if tensor.name not in names]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        del proto.graph.initializer[:]
        proto.graph.initializer.extend([*kept, *small])
        if self.bits == 4 and all(entry.domain != DOMAIN for entry in proto.opset_import):
            proto.opset_import.add(domain=DOMAIN, version=1)
        alone = Quantization(scheme="tables", weights=f"int{self.bits}", activations="float32")
        manifest = checked(model.manifest, quantization=model.manifest.quantization or alone)
        return Model.create(manifest, {"model.onnx": graph.save_bytes(proto)})


def tables(proto: ModelProto, least: int = Tables().least) -> set[str]:
    """Names of the stored tables of numbers that Gather takes rows of, and that nothing else reads."""
    found = {
        tensor.name
        for tensor in proto.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 and tensor.dims[0] >= least
    }
    looked_up: set[str] = set()
    for node in proto.graph.node:
        if node.op_type == "Gather" and node.input[0] in found and not graph.attribute(node, "axis", 0):
            looked_up.add(node.input[0])
            found -= set(graph.reads(node)) - {node.input[0]}
        else:
            found -= set(graph.reads(node))
    return found & looked_up


def _takes(node: NodeProto, names: set[str]) -> bool:
    return node.op_type == "Gather" and node.input[0] in names


def _rows_taken(node: NodeProto) -> Iterator[NodeProto]:
    """Rows of whole numbers, and their scales."""
    (table, picks), result = node.input, node.output[0]
    for part in ("rows", "scales"):
        yield helper.make_node(
            "Gather", [f"{table}/{part}", picks], [f"{result}/{part}"], name=f"{result}/{part}"
        )
    wide = f"{result}/wide"
    yield helper.make_node("Cast", [f"{result}/rows"], [wide], name=wide, to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [wide, f"{result}/scales"], [result], name=node.name)


def _rows(table: TensorProto) -> Iterator[TensorProto]:
    """The rows in whole numbers, and their scales."""
    rows = numpy_helper.to_array(table).astype(np.float64)
    scales = np.abs(rows).max(1, keepdims=True) / 127
    scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
    whole = np.clip(np.round(rows / scales), -127, 127).astype(np.int8)
    yield numpy_helper.from_array(whole, f"{table.name}/rows")
    yield numpy_helper.from_array(scales, f"{table.name}/scales")


def _blocks_taken(node: NodeProto) -> Iterator[NodeProto]:
    (table, picks), result = node.input, node.output[0]
    yield helper.make_node(
        "GatherBlockQuantized",
        [f"{table}/blocks", picks, f"{table}/scales"],
        [result],
        name=node.name,
        domain=DOMAIN,
        gather_axis=0,
        quantize_axis=1,
        block_size=BLOCK,
    )


def _blocks(table: TensorProto) -> Iterator[TensorProto]:
    """Blocks of whole numbers, and their scales."""
    made = Blocks(numpy_helper.to_array(table).astype(np.float64), 4, BLOCK)
    whole = made.numbers.reshape(len(made.numbers), -1)[:, : made.inputs].astype(np.int8) - 8
    yield int4(whole, f"{table.name}/blocks")
    yield numpy_helper.from_array(made.scale.astype(np.float32), f"{table.name}/scales")
