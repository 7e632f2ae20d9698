"""The rungs of a search, cheap ones first: which steps are worth trying on a model, for each engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from farthing import plugins
from farthing.errors import PluginError, UnsupportedError
from farthing.forge import graph
from farthing.forge.quantize.dynamic import pays
from farthing.model import Model
from farthing.options import Precision
from farthing.recipe import Step

STATIC = "quantize.static.v1"
FUSE = Step(use="graph.fuse.v1")
COMPACT = Step(use="graph.compact.v1")
DYNAMIC_SHARE = 0.3
CALIBRATORS = ("minmax", "percentile", "entropy")
QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"}


@dataclass(frozen=True)
class Rung:
    """One candidate to try.

    Attributes:
        name: short, for people.
        engine: what runs it.
        steps: what makes it.
        precision: arithmetic of its float operators.
        exact: whether it computes in float32 like the model as given: what the others of its engine are compared with.
    """

    name: str
    engine: str
    steps: tuple[Step, ...] = ()
    precision: Precision = "float32"
    exact: bool = False


def int8(calibrator: str, **options: object) -> Step:
    """A static int8 step."""
    return Step(use=STATIC, options={"calibrator": calibrator, **options})


def ladder(model: Model, engines: Sequence[str]) -> list[Rung]:
    """The rungs for an ONNX model: all for a float one, no second quantization for one that has been through it.

    Passes that users registered are tried too, each on the fused model, in the first engine that runs ONNX files.

    Args:
        engines: names of engines, each of which runs ONNX files or a format that ONNX models are exported to.

    Raises:
        UnsupportedError: the model is no ONNX file.
    """
    if model.manifest.format != "onnx":
        raise UnsupportedError(
            f"{model.manifest.name} is {model.manifest.format}: the search works on ONNX models"
        )
    proto = graph.load(model.file)
    quantized = any(node.op_type in QUANTIZED for node in graph.nodes(proto.graph))
    plain = not quantized and model.manifest.quantization is None
    rungs: list[Rung] = []
    for engine in engines:
        rungs += _LADDERS[target_format(engine)](engine, proto, plain)
    own = next((engine for engine in engines if target_format(engine) == "onnx"), None)
    return rungs + [Rung(name, own, (FUSE, Step(use=name))) for name in own_passes() if own]


def target_format(engine: str) -> str:
    """The format in which an engine gets its candidates: its own, if ONNX models are exported to that; else ONNX.

    Raises:
        PluginError, NotInstalled: as `farthing.plugins.get`.
        UnsupportedError: it runs neither.
    """
    formats = plugins.get("engine", engine).formats
    for name in _LADDERS:
        if name in formats:
            return name
    raise UnsupportedError(f"engine {engine} runs {', '.join(sorted(formats))}: nothing makes that from ONNX")


def _onnx(engine: str, proto: object, plain: bool) -> list[Rung]:
    rungs = [Rung("fused", engine, (FUSE, COMPACT), exact=True)]
    if not plain:
        return rungs
    rungs += [Rung(name, engine, (FUSE, step, COMPACT)) for name, step in _static()]
    if pays(proto, DYNAMIC_SHARE):
        rungs.append(Rung("int8 dynamic", engine, (FUSE, Step(use="quantize.dynamic.v1"), COMPACT)))
    return [*rungs, Rung("float16", engine, (FUSE, Step(use="quantize.float16.v1"), COMPACT))]


def _static() -> list[tuple[str, Step]]:
    named = [(f"int8 {calibrator}", int8(calibrator)) for calibrator in CALIBRATORS]
    return [*named, ("int8 per tensor", int8("minmax", per_channel=False))]


_LADDERS: dict[str, Callable[[str, object, bool], list[Rung]]] = {"onnx": _onnx}
"""By format, those with an exporter first: an engine that also reads ONNX gets files of its own."""


def own_passes() -> list[str]:
    """Names of passes that are not built in."""
    return [name for name in plugins.names("pass") if name not in plugins.BUILTIN["pass"]]


def with_exclusions(rung: Rung, names: list[str]) -> Rung:
    """An int8 rung with some operators left in float."""
    if not any(step.use == STATIC for step in rung.steps):
        raise PluginError(f"{rung.name} has no static int8 step to exclude operators from")
    steps = tuple(
        Step(use=step.use, options={**step.options, "exclude": names}) if step.use == STATIC else step
        for step in rung.steps
    )
    plural = "operator" if len(names) == 1 else "operators"
    return replace(rung, name=f"{rung.name}, {len(names)} {plural} float", steps=steps)
