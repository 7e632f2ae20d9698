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
        "quantize.dynamic.v1": "farthing.forge.quantize.dynamic:DynamicInt8",
        "quantize.float16.v1": "farthing.forge.quantize.float16:Float16",
        "quantize.equalize.v1": "farthing.forge.quantize.equalize:Equalize",
        "quantize.nncf.v1": "farthing.forge.quantize.nncf:NncfInt8",
        "prune.structured.v1": "farthing.forge.prune.structured:StructuredPrune",
