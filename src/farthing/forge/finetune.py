"""Fine-tuning: a model's own weights, trained on with its task's loss, and with teachers if there are any."""

from __future__ import annotations

import numpy as np

from farthing.forge.training.passes import TrainingPass
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

FEW = 4
MEASURED = 512


class FineTune(TrainingPass, frozen=True, kw_only=True):
    """Train the weights of an ONNX model on, as they are in its graph; nothing else in the file changes.

    Attributes:
        norms: put fresh batch normalization behind convolutions while training, where the exporter folded it away; it
            is folded again into the result.
    """

    norms: bool = False

    def work(self, model: Model, target: Target, task: Task, workshop: Workshop) -> Model:
        """Raises TaskError without training data, UnsupportedError for operators that cannot be trained."""
        from farthing.bench import feeds, padded_to_batch
        from farthing.forge.trainable import trainable
        from farthing.forge.training.lesson import lesson
        from farthing.forge.training.loop import train
        from farthing.forge.training.losses import understood
        from farthing.forge.training.samples import Samples

        samples = Samples(task, understood(model))
        picks = padded_to_batch(np.arange(min(FEW, len(samples))), model.manifest)
        few = feeds(task, samples.split, model.manifest, picks)
        student = trainable(model, few)
        if self.norms:
            student.insert_norms(batch.inputs for batch in samples.batches(most=MEASURED))
        teachers = self.teaching(model, workshop)
        with lesson(student, samples, self.schedule, teachers, self.distillation, workshop.listener) as (
            module,
            loss,
        ):
            train(module, samples, loss, self.schedule, workshop=workshop)
        student.module.eval()
        return student.to_model()
