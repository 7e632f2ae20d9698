"""Fine-tuning: a model's own weights, trained on with its task's loss, and with teachers if there are any."""

from __future__ import annotations

from farthing.forge.training.passes import TrainingPass
from farthing.forge.workshop import Workshop
from farthing.model import Model
from farthing.target import Target
from farthing.task import Task

FEW = 4


class FineTune(TrainingPass, frozen=True, kw_only=True):
    """Train the weights of an ONNX model on, as they are in its graph; nothing else in the file changes.

    Attributes:
        norms: put fresh batch normalization behind convolutions while training, where the exporter folded it away; it
            is folded again into the result.
    """

    norms: bool = False

    def work(self, model: Model, target: Target, task: Task, workshop: Workshop) -> Model:
        """Raises TaskError without training data, UnsupportedError for operators that cannot be trained."""
        from farthing.bench import first_feeds
        from farthing.forge.trainable import trainable
        from farthing.forge.training.losses import understood
        from farthing.forge.training.samples import Samples

        samples = Samples(task, understood(model))
        student = trainable(model, first_feeds(task, "train", model.manifest, FEW))
        if self.norms:
            student.insert_norms(batch.inputs for batch in samples.spread())
        self.train(student, samples, model, workshop)
        return student.to_model()
