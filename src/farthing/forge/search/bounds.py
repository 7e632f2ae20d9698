"""What a network may cost where nobody says: no more work than the model, no more memory than a microcontroller."""

from __future__ import annotations

from msgspec.structs import replace

from farthing import bench
from farthing.forge import graph, macs
from farthing.forge.search.estimate import Limits
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

MICROCONTROLLERS = {"armv6-m", "armv7e-m", "armv8-m", "armv8.1-m", "xtensa"}
KB_OF_MB = 1.048576e3  # of 1000 bytes, of 2^20


def bounded(limits: Limits, model: Model | None, target: Target, task: Task) -> Limits:
    """The limits, with ``macs`` and ``activation_kb`` filled in where they are not given and can be known.

    Args:
        limits: as given.
        model: what does the work so far; a network that takes its place does no more multiply-accumulates. Nothing
            follows from one that is not ONNX, or whose work cannot be counted.
        target: a microcontroller's memory limits the activations.
        task: its training data are run through the model once, to see the sizes of tensors.
    """
    if limits.macs is None and model is not None and (work := _work(model, task)):
        limits = replace(limits, macs=float(work))
    if limits.activation_kb is None and target.arch in MICROCONTROLLERS and target.memory_mb is not None:
        limits = replace(limits, activation_kb=KB_OF_MB * target.memory_mb)
    return limits


def _work(model: Model, task: Task) -> int | None:
    """Multiply-accumulates of one sample, None if they are not known."""
    manifest = model.manifest
    if manifest.format != "onnx":
        return None
    found, _ = macs.count(graph.load(model.file), bench.first_feeds(task, "train", manifest))
    return None if found is None else found // bench.batch_size(manifest, 1)
