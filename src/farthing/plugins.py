"""Names to objects: built-in parts from a literal table, third-party ones by ``register`` or entry point.

Nothing is imported before it is asked for. A package announces its parts under the entry-point groups
``farthing.engine``, ``farthing.pass``, ``farthing.task``, ``farthing.metric`` and ``farthing.decoder``; a script calls
`register`.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal, TypeVar

from farthing.errors import PluginError, absent, nearest

Kind = Literal["engine", "pass", "task", "metric", "decoder"]
PartT = TypeVar("PartT")

BUILTIN: dict[Kind, dict[str, str]] = {
    "engine": {
        "onnxruntime": "farthing.engines.onnxruntime:OnnxRuntimeEngine",
        "openvino": "farthing.engines.openvino:OpenVinoEngine",
        "litert": "farthing.engines.litert:LiteRtEngine",
        "torchscript": "farthing.engines.torchscript:TorchScriptEngine",
        "fake": "farthing.engines.fake:FakeEngine",
        "oip": "farthing.engines.oip:OipEngine",
    },
    "pass": {
        "graph.fuse.v1": "farthing.forge.fuse:Fuse",
        "graph.compact.v1": "farthing.forge.fuse:Compact",
        "quantize.static.v1": "farthing.forge.quantize.static:StaticInt8",
        "quantize.gptq.v1": "farthing.forge.quantize.gptq:Gptq",
        "quantize.blockwise.v1": "farthing.forge.quantize.blockwise:Blockwise",
        "quantize.weights.v1": "farthing.forge.quantize.weights:WeightsOnly",
        "quantize.tables.v1": "farthing.forge.quantize.tables:Tables",
        "quantize.smooth.v1": "farthing.forge.quantize.smooth:Smooth",
        "quantize.dynamic.v1": "farthing.forge.quantize.dynamic:DynamicInt8",
        "quantize.float16.v1": "farthing.forge.quantize.float16:Float16",
        "quantize.equalize.v1": "farthing.forge.quantize.equalize:Equalize",
        "quantize.nncf.v1": "farthing.forge.quantize.nncf:NncfInt8",
        "quantize.qat.v1": "farthing.forge.quantize.qat:QuantizationAware",
        "train.finetune.v1": "farthing.forge.training.finetune:FineTune",
        "distill.student.v1": "farthing.forge.training.distill:Student",
        "search.architecture.v1": "farthing.forge.search.architecture:SearchArchitecture",
        "prune.structured.v1": "farthing.forge.prune.structured:StructuredPrune",
        "prune.unstructured.v1": "farthing.forge.prune.unstructured:UnstructuredPrune",
        "exits.train.v1": "farthing.forge.exits.training:ExitTraining",
        "export.openvino.v1": "farthing.forge.openvino.export:ExportOpenvino",
        "export.tflite.v1": "farthing.forge.tflite.export:ExportTflite",
    },
    "task": {
        "mnist-5k": "farthing.tasks:mnist_5k",
        "digits": "farthing.tasks:digits",
        "watch": "farthing.tasks:watch",
        "shuttle": "farthing.tasks:shuttle",
        "imagenet-photos": "farthing.tasks:imagenet_photos",
        "faces": "farthing.tasks:faces",
        "sentences": "farthing.tasks:sentences",
    },
    "metric": {
        "top1": "farthing.metrics:TOP1",
        "top5": "farthing.metrics:TOP5",
        "macro_f1": "farthing.metrics:MACRO_F1",
        "auc": "farthing.metrics:AUC",
        "map": "farthing.metrics:MEAN_AVERAGE_PRECISION",
        "miou": "farthing.metrics:MEAN_OVERLAP",
        "cosine": "farthing.metrics:MEAN_COSINE",
        "error": "farthing.metrics:MEAN_ABSOLUTE_ERROR",
        "agreement": "farthing.metrics:AGREEMENT",
    },
    "decoder": {
        "logits": "farthing.ops.decode:logits",
        "probabilities": "farthing.ops.decode:probabilities",
        "detections": "farthing.ops.decode:detections",
    },
}
_registered: dict[tuple[Kind, str], Any] = {}


def register(kind: Kind, name: str, part: Any) -> None:
    """Make a part known under a name, for the life of this process.

    Args:
        kind: what it is: ``engine``, ``pass``, ``task``, ``metric`` or ``decoder``.
        name: its name; a pass carries a version, as in ``prune.mine.v1``, because recipes store it.
        part: the object itself: an engine class, a pass (class or function), a function that returns a Task, a Metric,
            a decoder (`farthing.ops.decode.Decoder`).

    Raises:
        PluginError: no such kind, no name, or one that is already taken by another part.
    """
    if kind not in BUILTIN:
        raise PluginError(f"no kind of part is called {kind!r}; {nearest(str(kind), BUILTIN)}")
    text: object = name  # Python checks no types
    if not (isinstance(text, str) and text):
        raise PluginError(f"the name of the {kind} is {text!r}: give it some text to be found by")
    if name in BUILTIN[kind] or _registered.get((kind, name), part) is not part:
        raise PluginError(f"the {kind} name {name!r} is already taken: choose another")
    _registered[kind, name] = part


def names(kind: Kind) -> list[str]:
    """All names of a kind, sorted, those of installed entry points included."""
    announced = {entry.name for entry in _entry_points(kind)}
    return sorted(announced | set(BUILTIN[kind]) | {name for k, name in _registered if k == kind})


def get(kind: Kind, name: str) -> Any:
    """The part of that kind and name, imported if need be.

    Raises:
        PluginError: no such name (the nearest right one is suggested), or its entry point does not load.
        NotInstalled: the part's module needs a package that is not installed.
    """
    if (kind, name) in _registered:
        return _registered[kind, name]
    if name in BUILTIN[kind]:
        return _builtin(kind, name)
    for entry in _entry_points(kind):
        if entry.name == name:
            return _registered.setdefault((kind, name), _load(entry, kind))  # searching takes milliseconds
    raise PluginError(f"no {kind} is called {name!r}; {nearest(name, names(kind))}")


def _builtin(kind: Kind, name: str) -> Any:
    module, _, attribute = BUILTIN[kind][name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise absent(error, "forge" if kind == "pass" else name) from error


def _load(entry: Any, kind: Kind) -> Any:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"the {kind} {entry.name!r} of entry point {entry.value!r} does not load: {error}"
        ) from error


def _entry_points(kind: Kind) -> Any:
    from importlib.metadata import entry_points  # costs some 50 ms to import: only for names we do not know

    return entry_points(group=f"farthing.{kind}")
