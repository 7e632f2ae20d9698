"""ONNX models as torch modules that can be trained, and back into the same ONNX graph."""

from farthing.forge.trainable.importing import Trainable, trainable

__all__ = ["Trainable", "trainable"]
