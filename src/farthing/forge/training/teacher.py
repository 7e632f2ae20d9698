"""Teachers: models of any kind that an engine runs, asked for their outputs on training samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farthing.bench.feeding import batch_size, feeds, fitting_batch, outputs_by_sample, padded_to_batch
from farthing.engines.base import open_engine
from farthing.errors import TaskError, UnsupportedError
from farthing.forge import graph
from farthing.forge.training.losses import understood
from farthing.forge.training.samples import MEMORY, Batch, Samples
from farthing.model import Manifest, Model, TensorSpec
from farthing.options import EngineOptions
from farthing.recipe import Listener, Progress, ignore

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
AT_ONCE = 64


class Teacher:
    """A model that answers batches of training samples, as a context: it holds an engine until it is closed.

    Samples that are not augmented are answered once, all of them in their order before the training begins, if there is
    room for the answers; else each batch is answered as it comes.

    Args:
        model: of any format that an engine runs.
        samples: what it will be asked about.
        features: tensors inside that are wanted as well; of an ONNX model only.
        augmented: whether samples will come augmented: it then takes the very inputs of the student.
        threads: of its engine.
        memory: most bytes of answers to keep.
        listener: hears that it is being asked, stage ``train``.

    Raises:
        TaskError: the task does not feed it, or it takes other inputs than the student where it must not.
        UnsupportedError: features of a model that is no ONNX file, or that are not there.
        FarthingError: as `farthing.engines.base.open_engine`.
    """

    def __init__(
        self,
        model: Model,
        samples: Samples,
        *,
        features: Sequence[str] = (),
        augmented: bool = False,
        threads: int = 1,
        memory: int = MEMORY,
        listener: Listener = ignore,
    ) -> None:
        self.manifest = understood(model)
        self._samples, self._features, self._listener = samples, tuple(features), listener
        self._alike = _alike(model.manifest, samples.manifest)
        if augmented and not self._alike:
            raise TaskError(
                f"the teacher {model.manifest.name} takes other inputs than the student {samples.manifest.name}, so it "
                "cannot see augmented samples as the student does: train with `augment: none`"
            )
        samples.task.check(model.manifest)
        self._end = ExitStack()
        self._run = self._opened(model, threads)
        try:
            self._known = None if augmented else self._all(memory)
        except BaseException:
            self._end.close()
            raise
        self._last: tuple[Batch, tuple[Tensor, ...]] | None = None

    def __enter__(self) -> Teacher:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.close()

    def answers(self, batch: Batch) -> tuple[Tensor, ...]:
        """Its outputs for a batch, float32 and samples first: those of the student's names, in its order.

        Raises:
            EngineError: its engine fails.
        """
        return self._both(batch)[: -len(self._features) or None]

    def features(self, batch: Batch) -> tuple[Tensor, ...]:
        """The tensors inside that were asked for, in that order."""
        return self._both(batch)[len(self._names) :]

    def _both(self, batch: Batch) -> tuple[Tensor, ...]:
        if self._known is not None and batch.plain:
            return tuple(part[batch.picks] for part in self._known)
        if self._last is None or self._last[0] is not batch:
            self._last = batch, self._asked(batch)
        return self._last[1]

    @property
    def _names(self) -> list[str]:
        """Its outputs in the order of the student's."""
        own = [spec.name for spec in self.manifest.outputs]
        wanted = [spec.name for spec in self._samples.manifest.outputs]
        return wanted if wanted and set(wanted) <= set(own) else own

    def _opened(self, model: Model, threads: int) -> Run:
        """What runs it, in an engine; if features are wanted, in a session of ONNX Runtime that gives them too."""
        if not self._features:
            engine = self._end.enter_context(open_engine(model, options=EngineOptions(threads=threads)))
            return lambda fed: (engine.session() if engine.stateful else engine).run(dict(fed))
        if model.manifest.format != "onnx":
            raise UnsupportedError(
                f"features are taken from ONNX models, and the teacher {model.manifest.name} is "
                f"{model.manifest.format}: leave `features` out, or teach with the ONNX model it was made of"
            )
        proto = graph.load(model.file)
        graph.check_tensors(proto, self._features, f"the teacher {model.manifest.name}")
        return graph.Session(proto, [name for name in self._features if name not in self._names]).run

    def _all(self, memory: int) -> tuple[Tensor, ...] | None:
        """The answers for all samples, if they fit."""
        count = len(self._samples)
        one = self._of(np.arange(min(batch_size(self.manifest, 1), count)))
        if sum(part[0].nbytes for part in one) * count > memory:
            return None
        parts = []
        size = self._chunk(AT_ONCE)
        for start in range(0, count, size):
            text = f"asking the teacher {self.manifest.name}"
            self._listener(Progress(stage="train", text=text, done=start, total=count))
            parts.append(self._of(np.arange(start, min(start + size, count))))
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    def _of(self, picks: Array) -> tuple[Tensor, ...]:
        """Answers for samples as they are."""
        task, split = self._samples.task, self._samples.split
        return self._ask(lambda some: feeds(task, split, self.manifest, picks[some]), len(picks))

    def _asked(self, batch: Batch) -> tuple[Tensor, ...]:
        """Answers for a batch: on its own inputs if they are such as this model takes."""
        if not self._alike:
            return self._of(batch.picks.numpy())
        specs = self.manifest.data_inputs
        own = {spec.name: part.numpy() for spec, part in zip(specs, batch.inputs, strict=True)}
        axes = {spec.name: spec.batch_axis or 0 for spec in specs}
        return self._ask(
            lambda some: {name: np.take(array, some, axes[name]) for name, array in own.items()}, len(batch)
        )

    def _ask(self, fed: Callable[[Array], Mapping[str, Array]], count: int) -> tuple[Tensor, ...]:
        parts = []
        size = self._chunk(count)
        for start in range(0, count, size):
            some = np.arange(start, min(start + size, count))
            padded = padded_to_batch(some, self.manifest)
            answer = self._run(fed(padded))
            found = outputs_by_sample(answer, self.manifest.outputs, len(padded))
            found |= {name: _inner(name, answer[name], len(padded)) for name in self._features}
            parts.append([found[name][: len(some)] for name in (*self._names, *self._features)])
        return tuple(
            torch.from_numpy(np.concatenate(each).astype(np.float32)) for each in zip(*parts, strict=True)
        )

    def _chunk(self, wanted: int) -> int:
        return fitting_batch(self.manifest, wanted, self._samples.task, self._samples.split)


def _alike(one: Manifest, other: Manifest) -> bool:
    """Whether two models take the very same inputs, whatever they call them."""

    def facts(spec: TensorSpec) -> tuple[object, ...]:
        inner = [size for axis, size in enumerate(spec.shape) if axis != spec.batch_axis]
        return spec.dtype, inner, spec.batch_axis, spec.scale, spec.zero_point

    same = [*map(facts, one.data_inputs)] == [*map(facts, other.data_inputs)]
    return same and one.preprocess == other.preprocess


def _inner(name: str, array: Array, count: int) -> Array:
    if array.ndim < 2 or len(array) != count:
        raise UnsupportedError(
            f"tensor {name!r} of the teacher has shape {list(array.shape)} for {count} samples: name one with samples "
            "along its first axis"
        )
    return array
