"""Float16: half the size; faster where the hardware computes in it, slower where it must convert."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from msgspec.structs import replace

from farthing.errors import UnsupportedError, require
from farthing.forge import graph
from farthing.forge.quantize.rest import PAIR, halve
from farthing.model import Model, Quantization, checked
from farthing.recipe import FLOATS, PassSection
from farthing.target import Target
from farthing.task import Task


class Float16(PassSection, frozen=True, kw_only=True):
    """Store and compute in IEEE 754 half precision; inputs and outputs stay float32.

    After ``quantize.static.v1`` what that left in float is halved; what computes in 8 bits stays as it is.

    Attributes:
        keep: operator types that stay float32.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("onnxconverter-common", "onnx")
    forms: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(FLOATS, "float16"), "int8": "mixed", "reduced": "reduced"
    }  # fmt: skip

    keep: tuple[str, ...] = ()

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError if the converter refuses the graph, or int8 left nothing in float."""
        float16 = require("onnxconverter_common.float16", "forge")
        source = graph.load(model.file)
        blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *self.keep]
        known = model.manifest.quantization
        if known and any(node.op_type in PAIR for node in source.graph.node):
            return _rest(model, source, blocked, known)
        try:
            with warnings.catch_warnings():
                # Values may round to 0 or infinity: accuracy is judged afterwards.
                warnings.simplefilter("ignore")
                halved = float16.convert_float_to_float16(
                    graph.inferred(source), keep_io_types=True, op_block_list=blocked
                )
        except (ValueError, RuntimeError, AttributeError) as error:
            raise UnsupportedError(
                f"{model.manifest.name} cannot be converted to float16: {error}"
            ) from error
        manifest = checked(
            model.manifest,
            quantization=Quantization(scheme="float16", weights="float16", activations="float16"),
        )
        return Model.create(manifest, {"model.onnx": graph.save_bytes(halved)})


def _rest(model: Model, source: Any, blocked: list[str], known: Quantization) -> Model:
    """A quantized model with its float operators in float16."""
    graph.name_nodes(source)
    if not halve(source, blocked):
        raise UnsupportedError(
            f"int8 left no operator of {model.manifest.name} in float that could be halved"
        )
    manifest = checked(model.manifest, quantization=replace(known, floats="float16"))
    return Model.create(manifest, {"model.onnx": graph.save_bytes(source)})
