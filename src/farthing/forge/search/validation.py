"""How well a network that is being trained answers the validation split."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from farthing import bench
from farthing.engines.base import open_engine
from farthing.errors import TaskError
from farthing.forge.training.samples import Samples
from farthing.metrics import Outputs
from farthing.model import Manifest, Model
from farthing.task import Task


class Validation:
    """The task's metric on the validation split, for networks as trained, in float.

    Args:
        manifest: of the model that the networks stand in for.
        reference: that model, whose outputs some metrics compare with; None if there is none.

    Raises:
        TaskError: no validation split, or one that does not fit.
    """

    def __init__(self, task: Task, manifest: Manifest, reference: Model | None) -> None:
        self._task, self._name = task, manifest.outputs[0].name
        self._samples = Samples(task, manifest, "validation")
        self._reference = self._answers(reference) if task.metric.needs == "reference" else None

    def score(self, module: nn.Module) -> float:
        """The metric's value, its sign turned if less is better; the module's mode is as before afterwards."""
        training = module.training
        module.eval()
        with torch.no_grad():
            parts = [module(*batch.inputs).float().numpy() for batch in self._samples.batches()]
        module.train(training)
        found = {self._name: np.concatenate(parts)}
        split, metric = self._samples.split, self._task.metric
        value = metric.score(found, split.labels, self._reference, split.groups).value
        return metric.upwards(value)

    def _answers(self, reference: Model | None) -> Outputs:
        if reference is None:
            raise TaskError(
                f"metric {self._task.metric.name} compares with the outputs of a model: give a teacher"
            )
        with open_engine(reference) as engine:
            return bench.outputs(engine, reference.manifest, self._task, self._samples.split)
