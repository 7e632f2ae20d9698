"""How pictures become the model's input: asked, with the answer that scores best on labelled pictures as default."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.engines.base import open_engine
from farthing.errors import ConfigError, FarthingError
from farthing.forge.init.question import Interview
from farthing.metrics import binary_auc
from farthing.model import Filter, Model, Preprocess, Resize, TensorSpec
from farthing.ops.image import prepare_batch
from farthing.options import EngineOptions

Array = NDArray[Any]
Colour = Literal["RGB", "BGR", "GRAY"]
PROBE_SECONDS = 20.0
PROBE_SAMPLES = 64
NEAR = 0.02  # accuracies this close are called the same, and convention decides

VALUES: dict[str, tuple[float, tuple[float, ...], tuple[float, ...]]] = {
    "0..1": (1 / 255, (0.0,), (1.0,)),
    "-1..1": (1 / 255, (0.5,), (0.5,)),
    "imagenet": (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": (1 / 255, (0.1307,), (0.3081,)),
    "raw 0..255": (1.0, (0.0,), (1.0,)),
}
FITS = ("stretch", "cover", "cover 8/7", "letterbox")


class Sample:
    """Some pictures and, where known, their labels.

    Args:
        images: uint8 arrays, RGB or grey.
        labels: one a picture, or None.
    """

    def __init__(self, images: Sequence[Array], labels: Array | None) -> None:
        self.images = list(images)
        self.labels = labels

    def first(self, count: int) -> Sample:
        """The first ``count`` of them."""
        return Sample(self.images[:count], None if self.labels is None else self.labels[:count])

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """Heights and widths that occur."""
        return {(image.shape[0], image.shape[1]) for image in self.images}


class Probe:
    """Scores ways to preprocess on labelled pictures, for no longer than about 20 seconds.

    The score is the share of pictures classified right, or for a model with one output the area under the ROC curve.

    Args:
        model: the model.
        spec: its input.
        sample: pictures; without class labels nothing is scored.

    Attributes:
        count: how many pictures are tried.
        measure: what a score is, in words.
    """

    def __init__(self, model: Model, spec: TensorSpec, sample: Sample) -> None:
        self._model = model
        self._spec = spec
        self._sample = sample
        self.count = len(sample.images)
        self.measure = "right"
        self._limited = False

    @property
    def works(self) -> bool:
        """Whether there is anything to score by."""
        labels = self._sample.labels
        return labels is not None and labels.dtype.kind in "iu" and self.count > 0

    def answers(self, preprocess: Preprocess) -> Array:
        """What the model answers, one row a picture."""
        batch = self._spec.fixed_batch
        sample = self._sample.first(self.count)
        fed = prepare_batch(sample.images, preprocess, self._spec)
        rows = []
        with open_engine(self._model, options=EngineOptions()) as engine:
            step = batch or len(fed)
            for start in range(0, len(fed), step):
                part = np.resize(fed[start : start + step], (step, *fed.shape[1:]))
                rows.append(next(iter(engine.run({self._spec.name: part}).values())))
        return np.concatenate(rows)[: len(fed)].reshape(len(fed), -1)

    def score(self, preprocess: Preprocess) -> float | None:
        """Share of pictures classified right; None if there are no labels or the model does not run."""
        if not self.works or self._sample.labels is None:
            return None
        began = time.perf_counter()
        labels = self._sample.labels[: self.count]
        try:
            rows = self.answers(preprocess)
        except FarthingError:
            return None
        if not self._limited:  # some 16 ways are tried in all
            each = (time.perf_counter() - began) / self.count
            self.count = min(self.count, max(8, int(PROBE_SECONDS / 16 / max(each, 1e-6))))
            self._limited = True
        if rows.shape[1] > 1:
            return float((rows.argmax(1) == labels).mean())
        self.measure = "area under the ROC curve"
        area = binary_auc(rows[:, 0], labels == 1)
        return area if np.isfinite(area) else None


def ask_preprocess(interview: Interview, spec: TensorSpec, sample: Sample, probe: Probe) -> Preprocess:
    """Find out or ask how pictures become the input.

    Raises:
        ConfigError: an answer that cannot be used.
    """
    channels = spec.shape[spec.layout.index("C")]
    grey = channels == 1
    size = _size(interview, spec, sample)
    draft = Preprocess(
        colour="GRAY" if grey else "RGB", scale=1 / 255, resize=_resize("stretch", size, "bilinear", True)
    )
    draft = _ask_values(interview, spec, probe, draft, grey)
    if size is None:
        interview.found.append("pictures have the size the model takes: no resize")
        return draft
    return _ask_resize(interview, probe, draft, size)


def _size(interview: Interview, spec: TensorSpec, sample: Sample) -> tuple[int, int] | None:
    """Height and width to bring pictures to, or None if they fit as they are."""
    height, width = (spec.shape[spec.layout.index(axis)] for axis in "HW")
    if isinstance(height, int) and isinstance(width, int):
        return None if sample.sizes == {(height, width)} else (height, width)
    if len(sample.sizes) == 1:
        return None
    first = sample.images[0].shape
    return _two_sides(
        interview(
            "size",
            "The model takes pictures of any size. To what height x width shall they be brought?",
            default=f"{first[0]}x{first[1]}",
            why="the size of the first picture; accuracy and time hang on it",
            check=_two_sides,
        )
    )


def _two_sides(text: str) -> tuple[int, int]:
    try:
        high, wide = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ConfigError(f"size: {text!r} is not of the form 224x224") from None
    if min(high, wide) < 1:
        raise ConfigError(f"size: {text!r} has a side below 1")
    return high, wide


def _resize(fit: str, size: tuple[int, int] | None, kind: Filter, antialias: bool) -> Resize | None:
    if size is None:
        return None
    height, width = (-(-8 * side // 7) for side in size) if fit == "cover 8/7" else size
    mode = cast(Literal["stretch", "cover", "letterbox"], fit.removesuffix(" 8/7"))
    return Resize(height=height, width=width, filter=kind, antialias=antialias, mode=mode)


def _fitted(
    draft: Preprocess, fit: str, size: tuple[int, int], kind: Filter = "bilinear", antialias: bool = True
) -> Preprocess:
    crop = size if fit.startswith("cover") else None
    return msgspec.structs.replace(draft, resize=_resize(fit, size, kind, antialias), crop=crop)


def _ask_values(
    interview: Interview, spec: TensorSpec, probe: Probe, draft: Preprocess, grey: bool
) -> Preprocess:
    """Colour order and range of values."""
    if np.dtype(spec.dtype).kind in "iu":
        interview.found.append(f"the input is {spec.dtype}: pixel values go in as they are, 0..255")
        draft = msgspec.structs.replace(draft, scale=1.0)
        return draft if grey else _with(draft, colour=_ask_colour(interview, probe, draft))
    ways = [name for name in VALUES if name != ("imagenet" if grey else "mnist")]
    colours: list[Colour] = ["GRAY"] if grey else ["RGB", "BGR"]
    scores = {
        way: max((probe.score(_valued(_with(draft, colour=colour), way)) or 0.0) for colour in colours)
        for way in ways
    }
    default, why = _best(scores, probe, "0..1" if grey else "imagenet")
    way = interview(
        "values",
        "Which range of values was the model trained on?",
        [*ways, "other"],
        default,
        why,
    )
    draft = _ask_other(interview, draft) if way == "other" else _valued(draft, way)
    return draft if grey else _with(draft, colour=_ask_colour(interview, probe, draft))


def _with(draft: Preprocess, *, colour: Colour) -> Preprocess:
    return msgspec.structs.replace(draft, colour=colour)


def _valued(draft: Preprocess, way: str) -> Preprocess:
    scale, mean, std = VALUES[way]
    return msgspec.structs.replace(draft, scale=scale, mean=mean, std=std)


def _ask_other(interview: Interview, draft: Preprocess) -> Preprocess:
    """Scale, mean and std as numbers."""
    numbers = {}
    for key, text, default in (
        ("scale", "Factor on pixel values 0..255, applied first?", f"{1 / 255:.10g}"),
        ("mean", "Mean, one number or one a channel, subtracted next?", "0"),
        ("std", "Standard deviation, one number or one a channel, divided by last?", "1"),
    ):
        why = "value = (pixel * scale - mean) / std"
        numbers[key] = _numbers(interview(key, text, default=default, why=why, check=_numbers))
    try:
        return Preprocess(
            colour=draft.colour,
            scale=numbers["scale"][0],
            mean=numbers["mean"],
            std=numbers["std"],
            resize=draft.resize,
        )
    except (ValueError, IndexError) as error:
        raise ConfigError(f"values: {error}") from error


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise ConfigError(
            f"{text!r} holds something that is no number: write 0.5, or 0.5, 0.4, 0.4"
        ) from None


def _ask_colour(interview: Interview, probe: Probe, draft: Preprocess) -> Colour:
    scores = {colour: probe.score(_with(draft, colour=colour)) or 0.0 for colour in ("RGB", "BGR")}
    default, why = _best(scores, probe, "RGB")
    answer = interview(
        "colour",
        "In which order does the model expect the colours?",
        ["RGB", "BGR"],
        default,
        why or "PyTorch tools use RGB, OpenCV BGR",
    )
    return "BGR" if answer == "BGR" else "RGB"


def _ask_resize(interview: Interview, probe: Probe, draft: Preprocess, size: tuple[int, int]) -> Preprocess:
    """How pictures are brought to size, and by which filter."""
    scores = {fit: probe.score(_fitted(draft, fit, size)) or 0.0 for fit in FITS}
    default, why = _best(scores, probe, "stretch")
    fit = interview(
        "resize",
        f"How are pictures brought to {size[0]} x {size[1]}? "
        "(cover fills and cuts, cover 8/7 does so from a larger size as 256 to 224, letterbox pads)",
        FITS,
        default,
        why,
    )
    kind = interview(
        "filter",
        "With which filter?",
        ("bilinear", "bicubic", "lanczos", "box", "nearest"),
        "bilinear",
        "what most training code uses",
    )
    antialias = interview(
        "antialias",
        "Does the filter widen when pictures shrink?",
        ("yes", "no"),
        "yes",
        "Pillow and torchvision do, OpenCV does not",
    )
    return _fitted(draft, fit, size, cast(Filter, kind), antialias == "yes")


def _best(scores: dict[str, float], probe: Probe, convention: str) -> tuple[str, str]:
    """The way that scores best and what all of them score; the conventional one where none is ahead."""
    top = max(scores.values())
    if not probe.works or top == 0:
        return (
            convention,
            "the usual way; nothing to measure it by" if not probe.works else "none works better",
        )
    ahead = [way for way, score in scores.items() if score >= top - NEAR]
    shown = ", ".join(f"{way} {score:.0%}" for way, score in scores.items())
    return convention if convention in ahead else max(scores, key=scores.__getitem__), (
        f"{probe.measure} of {probe.count} labelled pictures: {shown}"
    )
