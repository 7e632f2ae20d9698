"""Float16: half the size; faster where the hardware computes in it, slower where it must convert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from msgspec.structs import replace

from farthing.errors import UnsupportedError
from farthing.forge import graph
from farthing.forge.apart import in_child
from farthing.forge.quantize.halving import PAIR, halve
from farthing.model import Model, Quantization, checked
from farthing.recipe import FLOATS, PassSection
from farthing.target import Target
from farthing.task import Task

FUSED = {"MatMul", "Transpose"}
"""What ONNX Runtime's optimizer fuses. On some graphs that crashes in float16: causal attention in 1.31, for one."""
SECONDS = 120.0


class Float16(PassSection, frozen=True, kw_only=True):
    """Store and compute in IEEE 754 half precision; inputs and outputs stay float32.

    After ``quantize.static.v1`` what that left in float is halved; what computes in 8 bits stays as it is. Weights that
    float16 cannot hold become its largest number.

    Attributes:
        keep: operator types that stay float32.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    forms: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(FLOATS, "float16"), "int8": "mixed", "reduced": "reduced"
    }  # fmt: skip

    keep: tuple[str, ...] = ()

    def __call__(self, model: Model, target: Target, task: Task) -> Model:
        """Raises UnsupportedError if nothing computes in float32, or ONNX Runtime does not load the result."""
        proto = graph.load(model.file)
        graph.name_nodes(proto)
        known = model.manifest.quantization
        if not halve(proto, self.keep):
            left = "int8 left no operator of" if known else "there is no operator in"
            raise UnsupportedError(f"{left} {model.manifest.name} in float that could be halved")
        mixed = known is not None and any(node.op_type in PAIR for node in proto.graph.node)
        plain = Quantization(scheme="float16", weights="float16", activations="float16")
        quantization = replace(known, floats="float16") if known and mixed else plain
        manifest = checked(model.manifest, quantization=quantization)
        made = Model.create(manifest, {"model.onnx": graph.save_bytes(proto)})
        if {node.op_type for node in proto.graph.node} >= FUSED:
            _check_loads(made)
        return made


def _check_loads(model: Model) -> None:
    """Load a model in a process of its own first: a crash of the runtime would take everything along."""
    answer = in_child(model, "onnxruntime", "", "", (), SECONDS)
    if answer.verdict == "failed" and answer.detail:
        raise UnsupportedError(
            f"ONNX Runtime does not load {model.manifest.name} in float16: {answer.detail}; leave types of operators"
            " in float32, as in `keep: [Transpose]`, which helps where it fuses them with matrix products"
        )
