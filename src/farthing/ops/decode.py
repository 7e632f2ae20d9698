"""What a model's outputs mean: one function per model family, found by the manifest's ``decode``.

Others come as plugins of the kind ``decoder``. Decoders know nothing of engines, and get plain arrays with the samples
along the first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing import plugins
from farthing.config import Section
from farthing.errors import ConfigError, ModelError, PluginError


class Prediction(Section, frozen=True, kw_only=True):
    """The likeliest classes of one sample, best first.

    Attributes:
        labels: names of the classes, or their numbers as text where the manifest names none.
        scores: their probabilities, 0..1.
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Detections:
    """Objects found in one picture, as arrays of the same length n; an index, slice or mask selects some.

    Attributes:
        boxes: float32 [n, 4]: x1, y1, x2, y2 in pixels.
        scores: float32 [n], best first.
        classes: int64 [n].
        labels: names of the classes, in the order of their numbers; empty if the manifest names none.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,) or self.classes.shape != (count,):
            shapes = [list(part.shape) for part in (self.boxes, self.scores, self.classes)]
            raise ModelError(
                f"boxes, scores and classes {shapes} do not belong together: they should be [n, 4], [n], [n]"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, pick: slice | NDArray[np.bool_] | NDArray[np.integer[Any]]) -> Detections:
        return Detections(self.boxes[pick], self.scores[pick], self.classes[pick], self.labels)

    def label(self, index: int) -> str:
        """Name of the class of one object."""
        return _name(self.labels, int(self.classes[index]))


Outputs = Mapping[str, NDArray[Any]]
Decoder = Callable[[Outputs, Sequence[str], int], Sequence[Prediction | Detections]]


def decode(
    name: str, outputs: Outputs, labels: Sequence[str], top: int = 5
) -> Sequence[Prediction | Detections]:
    """Read the outputs of a model, by the name of the decoder in its manifest.

    Args:
        name: ``logits``, ``probabilities``, ``detections`` or the name of a registered decoder.
        outputs: output name -> array, samples along the first axis, in the order of the manifest.
        labels: class names in the order of the output; empty if there are none.
        top: most classes of a Prediction.

    Returns:
        One Prediction or Detections for each sample.

    Raises:
        ModelError: no decoder of that name, or outputs that are not of its kind.
        ConfigError: ``top`` is not above 0.
    """
    try:
        decoder: Decoder = plugins.get("decoder", name)
    except PluginError as error:
        raise ModelError(
            f"{error}: correct the manifest's decode, or install or register its decoder"
        ) from error
    return decoder(outputs, labels, top)


def logits(outputs: Outputs, labels: Sequence[str], top: int) -> list[Prediction]:
    """The likeliest classes, of a model whose first output is logits; see `classify`."""
    return classify(_first(outputs), "logits", labels, top)


def probabilities(outputs: Outputs, labels: Sequence[str], top: int) -> list[Prediction]:
    """The likeliest classes, of a model whose first output is probabilities; see `classify`."""
    return classify(_first(outputs), "probabilities", labels, top)


def softmax(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities from logits along the last axis, without overflow."""
    values = np.asarray(scores, np.float64)
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which the caller looks for
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def classify(
    output: NDArray[Any], decode: str = "logits", labels: Sequence[str] = (), top: int = 5
) -> list[Prediction]:
    """The likeliest classes of each sample.

    Args:
        output: [samples, classes]; further axes of size 1 are allowed.
        decode: ``logits``, brought to probabilities by softmax, or ``probabilities``, taken as they are.
        labels: class names; empty names them by number.
        top: most classes to give.

    Raises:
        ModelError: another shape, another number of labels, or NaN.
        ConfigError: ``top`` is not above 0.
    """
    if top < 1:
        raise ConfigError(f"top is the number of classes to show: at least 1, not {top}")
    shape: tuple[int, ...] = output.shape
    if len(shape) < 2 or shape[1] < 1 or any(size != 1 for size in shape[2:]):
        raise ModelError(f"the output {list(shape)} is not [samples, classes]: correct the manifest's decode")
    rows = output.reshape(shape[:2]).astype(np.float64)
    if labels and len(labels) != shape[1]:
        raise ModelError(
            f"the manifest has {len(labels)} labels, but the model gives {shape[1]} scores: correct it"
        )
    scores = softmax(rows) if decode == "logits" else rows
    if np.isnan(scores).any():
        raise ModelError(
            "the model's output holds NaN or infinite scores: check its input, and the model itself"
        )
    order = np.argsort(-rows, axis=1, kind="stable")[:, :top]
    return [
        Prediction(
            labels=tuple(_name(labels, index) for index in best.tolist()), scores=tuple(row[best].tolist())
        )
        for row, best in zip(scores, order, strict=True)
    ]


def _name(labels: Sequence[str], index: int) -> str:
    return labels[index] if 0 <= index < len(labels) else str(index)


def detections(outputs: Outputs, labels: Sequence[str] = (), top: int = 0) -> list[Detections]:
    """The objects in each picture, of a model that ends in non-maximum suppression; rows without a score are padding.

    Args:
        outputs: ``boxes`` [samples, n, 4] as x1, y1, x2, y2 in pixels of the input, ``scores`` [samples, n] and
            ``classes`` [samples, n].
        labels: class names.
        top: of no use here: all objects are given.

    Raises:
        ModelError: an output is missing or of another shape.
    """
    missing = [name for name in ("boxes", "scores", "classes") if name not in outputs]
    if missing:
        raise ModelError(
            f"decode 'detections' needs outputs named boxes, scores and classes; missing: {missing}"
        )
    boxes, scores, classes = (outputs[name] for name in ("boxes", "scores", "classes"))
    if boxes.ndim != 3 or boxes.shape != (*scores.shape, 4) or scores.shape != classes.shape:
        shapes = f"{list(boxes.shape)}, {list(scores.shape)}, {list(classes.shape)}"
        raise ModelError(
            f"boxes, scores and classes are {shapes}: they should be [samples, n, 4], [samples, n] twice"
        )
    found = []
    for places, values, kinds in zip(boxes, scores, classes, strict=True):
        values = values.astype(np.float32)
        order = np.argsort(-values, kind="stable")
        order = order[values[order] > 0]
        found.append(
            Detections(
                places[order].astype(np.float32),
                values[order],
                kinds[order].astype(np.int64),
                tuple(labels),
            )
        )
    return found


def _first(outputs: Outputs) -> NDArray[Any]:
    return next(iter(outputs.values()))
