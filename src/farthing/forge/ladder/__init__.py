"""The rungs of a search, cheap ones first: which steps are worth trying on a model, for each engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from onnx import ModelProto

from farthing import plugins
from farthing.errors import PluginError, UnsupportedError
from farthing.forge import graph
from farthing.forge.quantize.dynamic import pays
from farthing.forge.quantize.gptq import four_bits
from farthing.forge.quantize.tables import tables
from farthing.model import Model
from farthing.options import Precision
from farthing.recipe import Step
from farthing.target import Target

STATIC = "quantize.static.v1"
FLOAT16 = "quantize.float16.v1"
GPTQ = "quantize.gptq.v1"
DYNAMIC = "quantize.dynamic.v1"
BLOCKS = "quantize.blockwise.v1"
TABLES = "quantize.tables.v1"
WEIGHTS = "quantize.weights.v1"
SMOOTH = "quantize.smooth.v1"
EQUALIZE = "quantize.equalize.v1"
NNCF = "quantize.nncf.v1"
OPENVINO = "export.openvino.v1"
TFLITE = "export.tflite.v1"
FUSE = Step(use="graph.fuse.v1")
COMPACT = Step(use="graph.compact.v1")
DYNAMIC_SHARE = 0.3
LEAST_SMALL = 1 << 14  # weights from which on 4 bits are worth a try: they save half as many bytes
BF16 = {"avx512_bf16", "amx_bf16"}
HALF = {"asimdhp", "avx512_fp16", "zvfh"}
INT8 = (
    "int8",
    "float32",
)  # 8 bits inside, numbers at inputs and outputs and in operators that have no 8-bit form
INTEGERS = {io: f", {io} in and out" for io in ("uint8", "int8")}  # in the names of rungs without any float
RECURRENT = {"LSTM", "GRU", "RNN"}
CALIBRATORS = ("minmax", "percentile")  # entropy is an option only: it takes longest, and helped nowhere
QUANTIZED = {
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
    *("MatMulNBits", "GatherBlockQuantized"),
}


@dataclass(frozen=True)
class Rung:
    """One candidate to try.

    Attributes:
        name: short, for people.
        engine: what runs it.
        steps: what makes it.
        precision: arithmetic of its float operators.
        exact: whether it computes in float32 like the model as given: what the others of its engine are compared with.
        dtypes: element types its operators read and write; ``int8`` stands for ``uint8`` too; empty if not known.
    """

    name: str
    engine: str
    steps: tuple[Step, ...] = ()
    precision: Precision = "float32"
    exact: bool = False
    dtypes: tuple[str, ...] = ("float32",)


def int8(calibrator: str, **options: object) -> Step:
    """A static int8 step."""
    return Step(use=STATIC, options={"calibrator": calibrator, **options})


def ladder(model: Model, engines: Sequence[str], target: Target) -> list[Rung]:
    """The rungs for an ONNX model: all for a float one, no second quantization for one that has been through it.

    Passes that users registered are tried too, each on the fused model, in the first engine that runs ONNX files.

    Args:
        engines: names of engines, each of which runs ONNX files or a format that ONNX models are exported to.

    Raises:
        UnsupportedError: the model is no ONNX file.
    """
    if model.manifest.format != "onnx":
        raise UnsupportedError(
            f"{model.manifest.name} is {model.manifest.format}: the search works on ONNX models; convert the network "
            "that it was made of"
        )
    proto = graph.load(model.file)
    quantized = any(node.op_type in QUANTIZED for node in graph.nodes(proto.graph))
    plain = not quantized and model.manifest.quantization is None
    rungs: list[Rung] = []
    for engine in engines:
        rungs += _LADDERS[target_format(engine)](engine, proto, plain, target)
    own = next((engine for engine in engines if target_format(engine) == "onnx"), None)
    return rungs + [Rung(name, own, (FUSE, Step(use=name)), dtypes=()) for name in own_passes() if own]


def fitting(rungs: Sequence[Rung], target: Target) -> tuple[list[Rung], str]:
    """The rungs that a target can compute, and a sentence on those it cannot; empty if there are none."""
    known = {_kind(name) for name in target.dtypes}
    if not known:
        return list(rungs), ""
    kept, out = [], []
    for rung in rungs:
        lacking = [name for name in rung.dtypes if _kind(name) not in known]
        if lacking:
            out.append(f"{rung.name} in {rung.engine} ({', '.join(lacking)})")
        else:
            kept.append(rung)
    note = f"Target {target.name} computes in {', '.join(target.dtypes)} only, so these were not tried: "
    return kept, f"{note}{'; '.join(out)}." if out else ""


def _kind(dtype: str) -> str:
    return "int8" if dtype == "uint8" else dtype


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


def _openvino(engine: str, proto: ModelProto, plain: bool, target: Target) -> list[Rung]:
    export = Step(use=OPENVINO)
    if not plain:
        return [Rung("exported", engine, (FUSE, export), exact=True, dtypes=())]
    rungs = [Rung("float32", engine, (FUSE, export), exact=True)]
    if BF16 & {*target.isa}:
        rungs.append(Rung("bfloat16", engine, (FUSE, export), "bfloat16", dtypes=("bfloat16", "float32")))
    static = _of_transformer(proto)[:3] if attends(proto) else [(name, (step,)) for name, step in _static()]
    rungs += [Rung(name, engine, (FUSE, *steps, export), dtypes=INT8) for name, steps in static]
    rungs += _stored(engine, proto, export)
    if find_spec("nncf"):
        rungs.append(Rung("int8 nncf", engine, (FUSE, Step(use=NNCF)), dtypes=INT8))
    return rungs


def _tflite(engine: str, proto: ModelProto, plain: bool, target: Target) -> list[Rung]:
    """For a target without float the inputs and outputs are 8 bits as well: uint8, unless it knows int8 alone."""
    integer = bool(target.dtypes) and "float32" not in target.dtypes
    io = "uint8" if "uint8" in target.dtypes else "int8"
    suffix, inside = (INTEGERS[io], INT8[:1]) if integer else ("", INT8)
    quantized = Step(use=TFLITE, options={"io": io} if integer else {})
    if not plain:
        return [
            Rung(f"exported{suffix}", engine, (FUSE, quantized), exact=True, dtypes=inside if integer else ())
        ]
    stored = {
        kind: (FUSE, Step(use=TFLITE, options={"weights": kind})) for kind in ("float32", "float16", "int8")
    }
    return [
        Rung("float32", engine, stored["float32"], exact=True),
        Rung("float16 weights", engine, stored["float16"]),
        Rung("int8 dynamic", engine, stored["int8"], dtypes=INT8),
        *(
            Rung(f"{name}{suffix}", engine, (FUSE, step, quantized), dtypes=inside)
            for name, step in _static()
        ),
    ]


def _onnx(engine: str, proto: ModelProto, plain: bool, target: Target) -> list[Rung]:
    rungs = [Rung("fused", engine, (FUSE, COMPACT), exact=True, dtypes=("float32",) if plain else ())]
    if not plain:
        return rungs
    made = _of_transformer(proto) if attends(proto) else _of_layers(proto)
    rungs += [Rung(name, engine, (FUSE, *steps, COMPACT), dtypes=INT8) for name, steps in made]
    rungs += _stored(engine, proto, COMPACT)
    halved = (FUSE, Step(use=FLOAT16), COMPACT)
    return [*rungs, Rung("float16", engine, halved, dtypes=("float16",))]


def _of_layers(proto: ModelProto) -> list[tuple[str, tuple[Step, ...]]]:
    """What may pay on a network of convolutions and dense layers: name and steps."""
    static = [*_static(), ("int8 per tensor", int8("minmax", per_channel=False))]
    if four_bits(proto) >= LEAST_SMALL:
        static.append(("int4 weights", Step(use=GPTQ, options={"bits": 4})))
    if pays(proto, DYNAMIC_SHARE):
        static.append(("int8 dynamic", Step(use=DYNAMIC)))
    return [(name, (step,)) for name, step in static]


def _of_transformer(proto: ModelProto) -> list[tuple[str, tuple[Step, ...]]]:
    """What may pay on a network that attends, ONNX Runtime's own operators last; tables shrink with the weights."""
    products = int8("minmax", products_only=True)
    eight, four = (Step(use=TABLES, options={"bits": bits}) for bits in (8, 4))
    made = [
        ("int8 products", (products, eight)),
        ("int8 products, smoothed", (Step(use=SMOOTH), products, eight)),
        ("int8 dynamic", (Step(use=DYNAMIC, options={"per_channel": True}), eight)),
        ("int8 blocks", (Step(use=BLOCKS, options={"bits": 8, "block": 128}), eight)),
        ("int4 blocks", (Step(use=BLOCKS, options={"bits": 4, "block": 32, "symmetric": False}), four)),
    ]
    if not tables(proto):
        made = [(name, steps[:-1]) for name, steps in made]
    return [("int8 minmax", (int8("minmax"),)), *made]


def _stored(engine: str, proto: ModelProto, last: Step) -> list[Rung]:
    """Weights alone in 8 bits, where layers keep state: few engines compute those in 8 bits."""
    kinds = {node.op_type for node in proto.graph.node}
    return [stored(engine, last)] if kinds & RECURRENT else []


def stored(engine: str, last: Step) -> Rung:
    """Weights in 8 bits in the file, all that computes in float."""
    return Rung("int8 weights", engine, (FUSE, Step(use=WEIGHTS), last))


def attends(proto: ModelProto) -> bool:
    """Whether two computed tensors are multiplied as matrices, as in attention."""
    stored = {"", *(tensor.name for tensor in proto.graph.initializer)}
    for node in proto.graph.node:
        if stored.issuperset(graph.reads(node)):
            stored.update(node.output)
        elif node.op_type == "MatMul" and not stored.intersection(node.input):
            return True
    return False


def _static() -> list[tuple[str, Step]]:
    plain = [(f"int8 {calibrator}", int8(calibrator)) for calibrator in CALIBRATORS]
    mended = [
        (f"int8 {calibrator}, biases corrected", int8(calibrator, correct_biases=True))
        for calibrator in ("minmax", "mse")
    ]
    return [*plain, *mended]


_LADDERS: dict[str, Callable[[str, ModelProto, bool, Target], list[Rung]]] = {
    "openvino": _openvino,
    "tflite": _tflite,
    "onnx": _onnx,
}
"""By format, those with an exporter first: an engine that also reads ONNX gets files of its own."""


def rounded(rung: Rung) -> bool:
    """Whether a rung computes in 8 bits of scales that calibration data gave."""
    return any(step.use in {STATIC, GPTQ} for step in rung.steps)


def own_passes() -> list[str]:
    """Names of passes that are not built in."""
    return [name for name in plugins.names("pass") if name not in plugins.BUILTIN["pass"]]


def with_exclusions(rung: Rung, names: Sequence[str], words: str = "") -> Rung:
    """An int8 rung with some operators left in float, beside those that it leaves there already.

    Args:
        words: what they are together, for its name; their number if empty.
    """
    if not any(step.use == STATIC for step in rung.steps):
        raise PluginError(f"{rung.name} has no static int8 step to exclude operators from")
    steps = tuple(
        Step(use=step.use, options={**step.options, "exclude": [*step.options.get("exclude", []), *names]})
        if step.use == STATIC
        else step
        for step in rung.steps
    )
    what = words or f"{len(names)} {'operator' if len(names) == 1 else 'operators'}"
    return replace(rung, name=f"{rung.name}, {what} float", steps=steps)


def with_half(rung: Rung) -> Rung:
    """An int8 rung of an ONNX engine whose other operators compute in float16."""
    place = next(i for i, step in enumerate(rung.steps) if step.use == STATIC) + 1
    steps = (*rung.steps[:place], Step(use=FLOAT16), *rung.steps[place:])
    return replace(rung, name=f"{rung.name}16", steps=steps, dtypes=(*rung.dtypes, "float16"))


def has_half(target: Target) -> bool:
    """Whether a target computes in float16: it says so, or its instruction set does."""
    return "float16" in target.dtypes or bool(HALF & {*target.isa})


def compensated(rung: Rung) -> list[Rung]:
    """A static int8 rung whose weights make up for one another's rounding; and the same after equalization."""
    steps = tuple(
        Step(use=GPTQ, options={k: v for k, v in step.options.items() if k != "correct_biases"})
        if step.use == STATIC
        else step
        for step in rung.steps
    )
    name = rung.name.replace(", biases corrected", "")
    return [
        replace(rung, name=f"{name}, rounding compensated", steps=steps),
        replace(
            rung,
            name=f"{name}, equalized, rounding compensated",
            steps=(*steps[:1], Step(use=EQUALIZE), *steps[1:]),
        ),
    ]
