"""How well a network that is being trained answers the validation split."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from farthing import bench
from farthing.engines.base import open_engine
from farthing.errors import TaskError
from farthing.forge.training.samples import Samples
from farthing.metrics import Outputs
from farthing.model import Manifest, Model
from farthing.task import Task

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
MEASURED = 8  # batches of training samples that statistics are measured on
BATCH = 128


class Validation:
    """The task's metric on the validation split, for networks as trained, in float.

    Args:
        manifest: of the model that the networks stand in for.
        reference: that model, whose outputs some metrics compare with; None if there is none.
        samples: for training, some of which statistics of batch normalization are measured on.

    Raises:
        TaskError: no validation split, or one that does not fit.
    """

    def __init__(self, task: Task, manifest: Manifest, reference: Model | None, samples: Samples) -> None:
        self._training = samples
        self._task, self._name = task, manifest.outputs[0].name
        self._samples = Samples(task, manifest, "validation")
        self._reference = self._answers(reference) if task.metric.needs == "reference" else None

    def score(self, module: nn.Module, done: bool = True) -> float:
        """The metric's value, its sign turned if less is better; the module is as before afterwards.

        Args:
            module: the network.
            done: whether its training is over. If not, the running statistics of batch normalization lag behind its
                weights, with few steps an epoch by so much that it answers at random: they are measured anew, as in Wu
                and Johnson 2021 (https://arxiv.org/abs/2105.07576).
        """
        if not done:
            with self._measured(module):
                return self.score(module)
        training = module.training
        module.eval()
        with torch.no_grad():
            parts = [module(*batch.inputs).float().numpy() for batch in self._samples.batches()]
        module.train(training)
        found = {self._name: np.concatenate(parts)}
        split, metric = self._samples.split, self._task.metric
        value = metric.score(found, split.labels, self._reference, split.groups).value
        return metric.upwards(value)

    @contextlib.contextmanager
    def _measured(self, module: nn.Module) -> Iterator[None]:
        """Batch normalization with the statistics that training samples have with the present weights."""
        norms = [part for part in module.modules() if isinstance(part, NORMS)]
        kept = [
            ({name: buffer.clone() for name, buffer in norm.named_buffers()}, norm.momentum) for norm in norms
        ]
        training = module.training
        module.train()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        try:
            with torch.no_grad():
                for picks in self._spread():
                    module(*self._training.batch(picks).inputs)
            yield
        finally:
            module.train(training)
            for norm, (buffers, momentum) in zip(norms, kept, strict=True):
                norm.load_state_dict({**norm.state_dict(), **buffers})
                norm.momentum = momentum

    def _spread(self) -> Iterator[Tensor]:
        """Batches of samples from all over the training data, two samples at least in each."""
        count = len(self._training)
        every = torch.arange(0, count, max(1, count // (MEASURED * BATCH)))[: MEASURED * BATCH]
        parts = max(1, min(MEASURED, len(every) // BATCH))
        for first in range(parts):
            yield every[first::parts]

    def _answers(self, reference: Model | None) -> Outputs:
        if reference is None:
            raise TaskError(
                f"metric {self._task.metric.name} compares with the outputs of a model: give a teacher"
            )
        with open_engine(reference) as engine:
            return bench.outputs(engine, reference.manifest, self._task, self._samples.split)
