"""Which operators a quantized model suffers from, worst first: the order in which they are given back to float."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from farthing import bench
from farthing.engines.onnxruntime import runtime
from farthing.errors import require
from farthing.forge import graph
from farthing.forge.quantize.calibrate import Once, model_feeds, quiet
from farthing.model import Model
from farthing.task import Task

SAMPLES = 16


def ranked(model: Model, quantized: Model, task: Task) -> list[str]:
    """Names of the quantized operators, the most harmful first.

    Harm is the noise-to-signal ratio that an operator adds: at its output, less the largest at its inputs,
    the float model's tensors against the dequantized ones over a few calibration samples.

    Args:
        model: the float model that was quantized.
        quantized: the same in QDQ form.
    """
    noise = _noise(model, quantized, task)
    proto = graph.load(model.file)
    graph.name_nodes(proto)
    harm: dict[str, float] = {}
    for node in proto.graph.node:
        after = [noise[name] for name in node.output if name in noise]
        before = [noise[name] for name in node.input if name in noise]
        if after:
            harm[node.name] = max(after) - max(before, default=0.0)
    return sorted(harm, key=lambda name: -harm[name])


def _noise(model: Model, quantized: Model, task: Task) -> dict[str, float]:
    """Tensor name -> mean squared difference over mean squared signal."""
    runtime()
    debug = require("onnxruntime.quantization.qdq_loss_debug", "forge")
    size = bench.batch_size(model.manifest, min(SAMPLES, len(task.split("calibration"))))
    feeds = model_feeds(model, task, np.arange(min(size, len(task.split("calibration")))))
    with tempfile.TemporaryDirectory(prefix="farthing-") as folder, quiet():
        found: list[dict[str, Any]] = []
        for name, source in (("float", model), ("int8", quantized)):
            place = Path(folder) / f"{name}.onnx"
            debug.modify_model_output_intermediate_tensors(str(source.file), str(place))
            found.append(debug.collect_activations(str(place), Once(feeds)))
        matched = debug.create_activation_matching(found[1], found[0])
    return {
        name: _ratio(pair["float"], pair["post_qdq"]) for name, pair in matched.items() if pair.get("float")
    }


def _ratio(signal: list[Any], noisy: list[Any]) -> float:
    a = np.concatenate([np.ravel(part) for part in signal]).astype(np.float64)
    b = np.concatenate([np.ravel(part) for part in noisy]).astype(np.float64)
    return float(np.mean((a - b) ** 2) / max(float(np.mean(a**2)), 1e-30))
