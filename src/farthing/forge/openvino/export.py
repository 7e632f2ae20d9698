"""ONNX to OpenVINO: the same network in the format of Intel's runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from farthing.errors import UnsupportedError
from farthing.forge.openvino.graph import from_onnx, to_model
from farthing.model import Model, Quantization, checked
from farthing.recipe import FLOATS, PassSection
from farthing.target import Target
from farthing.task import Task


class ExportOpenvino(PassSection, frozen=True, kw_only=True):
    """Write an ONNX model as OpenVINO's two files (``model.xml``, ``model.bin``); axes that were free stay free.

    A graph with Q/DQ nodes runs in 8 bits with the very scales of these nodes; operators without them compute in float.

    Attributes:
        weights: how float weights are stored; ``float16`` are widened when the file is loaded.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("openvino", "onnx")
    forms: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys((*FLOATS, "float16"), "openvino"),
        **dict.fromkeys(("int8", "dynamic", "stored", "reduced"), "openvino-int8"),
    }  # fmt: skip

    weights: Literal["float32", "float16"] = "float32"

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError naming what OpenVINO cannot convert."""
        manifest = model.manifest
        if manifest.format != "onnx":
            raise UnsupportedError(
                f"{manifest.name} is {manifest.format}: only ONNX models are written as OpenVINO"
            )
        half = self.weights == "float16"
        kept = manifest.quantization
        if half and kept is None:
            kept = Quantization(scheme="float16", weights="float16", activations="float32")
        return to_model(from_onnx(model), checked(manifest, format="openvino", quantization=kept), half)
