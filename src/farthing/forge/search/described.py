"""What networks take and give where no model says it: read off the task's data."""

from __future__ import annotations

import math

from farthing.engines.base import BATCH
from farthing.errors import TaskError
from farthing.model import Manifest, TensorSpec
from farthing.task import CLASS_METRICS, Task


def described(task: Task) -> Manifest:
    """A manifest for networks of a task of arrays: one input of the samples' shape, and one output.

    Classes get a logit each; other labels as many numbers as they have.

    Raises:
        TaskError: pictures (nobody says how to prepare them), several inputs, or no labels to tell outputs from.
    """
    train = task.split("train")
    if task.form == "image" or len(train.inputs) != 1:
        raise TaskError(
            f"task {task.name} has {'pictures' if task.form == 'image' else 'several inputs'}: say what networks "
            "take, by a teacher or a manifest"
        )
    if train.labels is None:
        raise TaskError(f"the train split of task {task.name} has no labels to learn from: give a teacher")
    ((name, samples),) = train.inputs.items()
    classes = task.metric.name in CLASS_METRICS
    known = len(task.labels) or 1 + max(
        int(s.labels.max()) for s in task.splits.values() if s.labels is not None
    )
    width = known if classes else math.prod(train.labels.shape[1:])
    layout = "NCHW" if samples.ndim == 4 else ""
    shape = (BATCH, *samples.shape[1:])
    return Manifest(
        name=task.name,
        format="onnx",
        inputs=(TensorSpec(name=name or "input", dtype="float32", shape=shape, batch_axis=0, layout=layout),),
        outputs=(TensorSpec(name="output", dtype="float32", shape=(BATCH, width), batch_axis=0),),
        task=task.name,
        decode="logits" if classes else "",
        labels=task.labels,
    )
