"""The rungs of a search, cheap ones first: which steps are worth trying on a model."""

from __future__ import annotations

from farthing import plugins
from farthing.errors import PluginError, UnsupportedError
from farthing.forge import graph
from farthing.forge.quantize.dynamic import pays
from farthing.model import Model
from farthing.recipe import Step

FUSE = Step(use="graph.fuse.v1")
COMPACT = Step(use="graph.compact.v1")
DYNAMIC_SHARE = 0.3
QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"}


class Rung:
    """One candidate to try: a name and its steps."""

    def __init__(self, name: str, *steps: Step) -> None:
        self.name = name
        self.steps = steps


def int8(calibrator: str, **options: object) -> Step:
    """A static int8 step."""
    return Step(use="quantize.static.v1", options={"calibrator": calibrator, **options})


def ladder(model: Model) -> list[Rung]:
    """The rungs for an ONNX model: all for a float one, no second quantization for one that has been through it.

    Passes that users registered are tried too, each on the fused model.

    Raises:
        UnsupportedError: the model is no ONNX file.
    """
    if model.manifest.format != "onnx":
        raise UnsupportedError(
            f"{model.manifest.name} is {model.manifest.format}: the search works on ONNX models"
        )
    rungs = [Rung("fused", FUSE, COMPACT)]
    proto = graph.load(model.file)
    quantized = any(node.op_type in QUANTIZED for node in graph.nodes(proto.graph))
    if not quantized and model.manifest.quantization is None:
        for calibrator in ("minmax", "percentile", "entropy"):
            rungs.append(Rung(f"int8 {calibrator}", FUSE, int8(calibrator), COMPACT))
        rungs.append(Rung("int8 per tensor", FUSE, int8("minmax", per_channel=False), COMPACT))
        if pays(proto, DYNAMIC_SHARE):
            rungs.append(Rung("int8 dynamic", FUSE, Step(use="quantize.dynamic.v1"), COMPACT))
        rungs.append(Rung("float16", FUSE, Step(use="quantize.float16.v1"), COMPACT))
    return rungs + [Rung(name, FUSE, Step(use=name)) for name in own_passes()]


def own_passes() -> list[str]:
    """Names of passes that are not built in."""
    return [name for name in plugins.names("pass") if name not in plugins.BUILTIN["pass"]]


def with_exclusions(rung: Rung, names: list[str]) -> Rung:
    """An int8 rung with some operators left in float."""
    steps = [
        Step(use=step.use, options={**step.options, "exclude": names})
        if step.use == "quantize.static.v1"
        else step
        for step in rung.steps
    ]
    if not any(step.use == "quantize.static.v1" for step in steps):
        raise PluginError(f"{rung.name} has no static int8 step to exclude operators from")
    plural = "operator" if len(names) == 1 else "operators"
    return Rung(f"{rung.name}, {len(names)} {plural} float", *steps)
