"""From a picture or array straight to labels and scores: preprocess, run, decode, all as the manifest says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any, Self, overload
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from farthing import picture
from farthing.config import read
from farthing.engines.base import open_engine
from farthing.errors import ConfigError, EngineError, FeedError, ModelError, TaskError
from farthing.model import Manifest, Model, TensorSpec
from farthing.ops import image
from farthing.ops.decode import Detections, Prediction, decode
from farthing.ops.scale import real, stored
from farthing.options import EngineOptions
from farthing.recipe import RECIPE_FILE, Recipe
from farthing.target import Target

Answer = Prediction | Detections | dict[str, NDArray[Any]]
"""What a Predictor gives for one sample: as the manifest's ``decode`` says; raw outputs where it is empty."""

_MOST_AT_ONCE = 32
_UNREADABLE = (
    ValueError,
    EOFError,
    MemoryError,
    OverflowError,
    SyntaxError,
    TypeError,
    TokenError,
    BadZipFile,
)
"""What numpy raises over files that are no arrays."""


def load(
    path: Path | str | Model,
    engine: str = "",
    options: EngineOptions | None = None,
    *,
    ignore_requires: bool = False,
) -> Predictor:
    """Open a model for prediction.

    Args:
        path: a model directory, a zip of one, the output directory of a search, or a Model.
        engine: engine name; empty takes what the search chose, where ``path`` is its output directory, else the first
            that runs the format.
        options: threads and the like; None takes what the search chose as well, else the defaults.
        ignore_requires: run although this machine lacks an instruction set that the manifest requires, and outputs
            may differ.

    Raises:
        ModelError: not a model, or one whose manifest contradicts itself.
        EngineError: this machine lacks what the model requires, or no engine runs it.
        NotInstalled: the engine's package is missing.
    """
    model = path if isinstance(path, Model) else Model.open(path)
    if not ignore_requires:
        check_requires(model.manifest, Target.detect())
    if not engine and options is None and not isinstance(path, Model):
        engine, options = _chosen(Path(path) / RECIPE_FILE, model)
    return Predictor(model, engine, options)


def _chosen(place: Path, model: Model) -> tuple[str, EngineOptions | None]:
    """Engine and options of the recipe that made a model, if it lies there."""
    if not place.is_file():
        return "", None
    recipe = read(place, Recipe)
    return (recipe.engine, recipe.options) if recipe.artefact == model.digest else ("", None)


def check_requires(manifest: Manifest, target: Target) -> None:
    """Refuse a machine that lacks an instruction set the model requires.

    An int8 model searched on one CPU may saturate on another: it would answer, but wrongly and without a word.

    Raises:
        EngineError: naming what is missing, and what to do.
    """
    missing = target.lacks(manifest.requires)
    if missing:
        raise EngineError(
            f"model {manifest.name} was made for CPUs with {', '.join(missing)}, which this machine ({target.arch}) "
            "lacks: its outputs may differ here. Optimise it again on this machine; or score it here with "
            "`farthing evaluate` and, if it is good enough, pass ignore_requires=True (--ignore-requires)"
        )


class Predictor:
    """A model that takes pictures or arrays and gives labels and scores. Call it; close it, or use it in ``with``.

    Attributes:
        manifest: of the model.
        engine: the open engine, for all that is not prediction.

    Args:
        model: the model; it has one data input.
        engine: engine name; empty takes the first that runs the format.
        options: threads and the like.

    Raises:
        ModelError: several inputs, or a preprocess that does not fit the input.
        EngineError: no engine runs it.
        NotInstalled: the engine's package is missing.
    """

    def __init__(self, model: Model, engine: str = "", options: EngineOptions | None = None) -> None:
        self.manifest = model.manifest
        inputs = self.manifest.data_inputs
        if len(inputs) != 1 or inputs[0].role != "data":
            raise ModelError(
                f"model {self.manifest.name} takes {[spec.name for spec in inputs]}: prediction feeds one data input; "
                "run it with farthing.open_engine"
            )
        self._input = inputs[0]
        if self.manifest.preprocess:
            image.check_input(self.manifest.preprocess, self._input)
        self._model = model  # a temporary directory lives as long as its model
        self.engine = open_engine(model, engine, options)
        batched = all(spec.batch_axis is not None for spec in (self._input, *self.engine.outputs))
        self._step = (self._input.fixed_batch or _MOST_AT_ONCE) if batched and not self.engine.stateful else 1

    @overload
    def __call__(self, given: list[Any] | tuple[Any, ...], top: int = 5) -> list[Any]: ...
    @overload
    def __call__(self, given: Any, top: int = 5) -> Any: ...
    def __call__(self, given: Any, top: int = 5) -> Any:
        """Predict for one sample, or for each of a list.

        Args:
            given: the path of a picture or ``.npy`` file, a ``PIL.Image.Image`` (taken as it is, its EXIF orientation
                not applied), a uint8 array height x width x 3 (RGB) or height x width; for a model without
                ``preprocess`` an array of the input's shape, without its batch axis or with one of size 1; or a list of
                such.
            top: most labels to give.

        Returns:
            For one sample a `Prediction` or `Detections` (boxes in pixels of the picture), as the manifest's ``decode``
            says, or a dict of raw outputs if it says nothing; for a list, a list of these.

        Raises:
            TaskError: a file that is not a picture or array.
            FeedError: something that does not fit the input, or holds NaN or infinity.
            ModelError: a picture for a model whose manifest has no ``preprocess``, or outputs that are not what
                ``decode`` says.
            EngineError: the runtime failed, or the predictor is closed.
        """
        if top < 1:
            raise ConfigError(f"top is the number of labels to give: at least 1, not {top}")
        if isinstance(given, list | tuple):
            return self._answers(given, top)
        return self._answers([given], top)[0]

    def _answers(self, given: Sequence[Any], top: int) -> list[Any]:
        answers: list[Any] = []
        for start in range(0, len(given), self._step):
            samples = [self._read(item) for item in given[start : start + self._step]]
            outputs = self._run(self._prepared(samples), len(samples))
            answers += self._decoded(outputs, samples, top)
        return answers

    def _read(self, item: Any) -> NDArray[Any]:
        """A sample as an array: pixels where the manifest has a preprocess, else one that fits the input."""
        if isinstance(item, str | Path):
            item = self._read_file(Path(item))
        elif hasattr(item, "mode") and hasattr(item, "convert"):
            self._check_takes_pictures("a picture")
            item = picture.from_pillow(item)
        try:
            array = np.asarray(item)
        except ValueError as error:
            raise FeedError(f"neither a picture nor an array: {error}") from error
        return array if self.manifest.preprocess else self._fitted(array)

    def _read_file(self, path: Path) -> NDArray[Any]:
        if path.suffix != ".npy":
            self._check_takes_pictures(str(path))
            return picture.load(path)
        try:
            with path.open("rb") as file:
                array: NDArray[Any] = np.load(file, allow_pickle=False)
        except OSError as error:
            raise TaskError(f"cannot read {path}: {error.strerror or error}") from error
        except _UNREADABLE as error:
            raise TaskError(f"{path} is not an array file (.npy; pickles are refused)") from error
        if not isinstance(array, np.ndarray):
            raise TaskError(f"{path} holds several arrays (.npz): save the one to feed with numpy.save")
        return array

    def _check_takes_pictures(self, what: str) -> None:
        if self.manifest.preprocess is None:
            raise ModelError(
                f"{what} cannot be fed: the manifest of {self.manifest.name} does not say how to preprocess pictures: "
                "add `preprocess` to it (`farthing init` asks what it needs), or give an array (.npy) that fits"
            )

    def _fitted(self, array: NDArray[Any]) -> NDArray[Any]:
        """One sample for a model without preprocess: without its batch axis, and of the input's type."""
        spec = self._input
        shape = [size for axis, size in enumerate(spec.shape) if axis != spec.batch_axis]
        if (
            spec.batch_axis is not None
            and array.ndim == len(spec.shape)
            and array.shape[spec.batch_axis] == 1
        ):
            array = np.squeeze(array, spec.batch_axis)
        if spec.scale is not None and array.dtype.kind == "f":
            _check_finite(array, spec)
            array = stored(array, spec)
        fits = array.ndim == len(shape) and all(
            isinstance(want, str) or size == want for size, want in zip(array.shape, shape, strict=True)
        )
        if not fits or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            raise FeedError(
                f"{array.dtype} {list(array.shape)} does not fit input {spec.name!r}: one sample is "
                f"{spec.dtype} {shape}; give several as a list"
            )
        with np.errstate(over="ignore"):  # what is too large for the type is infinite in it
            array = array.astype(spec.dtype, copy=False)
        _check_finite(array, spec)
        return array

    def _prepared(self, samples: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Samples as one array for the engine; a model of fixed batch gets the last one repeated."""
        fixed = self._input.fixed_batch
        if fixed and len(samples) < fixed:
            samples = [*samples, *[samples[-1]] * (fixed - len(samples))]
        if self.manifest.preprocess:
            return image.prepare_batch(samples, self.manifest.preprocess, self._input)
        if self._input.batch_axis is None:
            return samples[0]
        if len({sample.shape for sample in samples}) > 1:
            raise FeedError("the samples differ in shape: predict them one by one")
        return np.stack(samples, axis=self._input.batch_axis)

    def _run(self, feed: NDArray[Any], count: int) -> dict[str, NDArray[Any]]:
        """Outputs of ``count`` samples, which lie along the first axis."""
        outputs = self.engine.run({self._input.name: feed})
        given = {spec.name: real(outputs[spec.name], spec) for spec in self.engine.outputs}
        return {spec.name: _samples_first(given[spec.name], spec)[:count] for spec in self.engine.outputs}

    def _decoded(
        self, outputs: dict[str, NDArray[Any]], samples: Sequence[NDArray[Any]], top: int
    ) -> Iterator[Answer]:
        if not self.manifest.decode:
            for index in range(len(samples)):
                yield {name: array[index] for name, array in outputs.items()}
            return
        decoded = decode(self.manifest.decode, outputs, self.manifest.labels, top)
        if len(decoded) != len(samples):
            raise ModelError(
                f"decoder {self.manifest.decode!r} gives {len(decoded)} answers for {len(samples)} samples: "
                "it must give one each"
            )
        for answer, sample in zip(decoded, samples, strict=True):
            yield self._restored(answer, sample) if isinstance(answer, Detections) else answer

    def _restored(self, found: Detections, sample: NDArray[Any]) -> Detections:
        """Boxes in pixels of the picture that was given, cut at its border."""
        if self.manifest.preprocess is None:
            return found
        height, width = sample.shape[:2]
        boxes = image.geometry(height, width, self.manifest.preprocess).restore(found.boxes)
        np.clip(boxes, 0, np.array([width, height, width, height], np.float32), out=boxes)
        return Detections(boxes, found.scores, found.classes, found.labels)

    def close(self) -> None:
        """Give the memory back. Closing twice is allowed."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _check_finite(array: NDArray[Any], spec: TensorSpec) -> None:
    """Refuse NaN and infinity: a network answers them with numbers that mean nothing. Some 0.4 ns a value."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        place = [int(index) for index in np.argwhere(~np.isfinite(array))[0]]
        raise FeedError(
            f"the sample for input {spec.name!r} holds NaN, infinity or a number too large for {spec.dtype} "
            f"at {place}: clean the data"
        )


def _samples_first(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    return array[None] if spec.batch_axis is None else np.moveaxis(array, spec.batch_axis, 0)
