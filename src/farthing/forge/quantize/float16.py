"""Float16: half the size; faster where the hardware computes in it, slower where it must convert."""

from __future__ import annotations

import warnings
from typing import ClassVar

from farthing.errors import UnsupportedError, require
from farthing.forge import graph
from farthing.model import Model, Quantization, checked
from farthing.recipe import PassSection
from farthing.target import Target
from farthing.task import Task


class Float16(PassSection, frozen=True, kw_only=True):
    """Store and compute in IEEE 754 half precision; inputs and outputs stay float32.

    Attributes:
        keep: operator types that stay float32.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("onnxconverter-common", "onnx")

    keep: tuple[str, ...] = ()

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError if the converter refuses the graph."""
        float16 = require("onnxconverter_common.float16", "forge")
        source = graph.inferred(graph.load(model.file))
        blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *self.keep]
        try:
            with warnings.catch_warnings():
                # Values may round to 0 or infinity: accuracy is judged afterwards.
                warnings.simplefilter("ignore")
                halved = float16.convert_float_to_float16(source, keep_io_types=True, op_block_list=blocked)
        except (ValueError, RuntimeError, AttributeError) as error:
            raise UnsupportedError(
                f"{model.manifest.name} cannot be converted to float16: {error}"
            ) from error
        manifest = checked(
            model.manifest,
            quantization=Quantization(scheme="float16", weights="float16", activations="float16"),
        )
        return Model.create(manifest, {"model.onnx": graph.save_bytes(halved)})
