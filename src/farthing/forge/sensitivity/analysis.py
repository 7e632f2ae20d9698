"""The questions that an analysis of sensitivity asks, the cheap ones first, each answered through the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from farthing.bench import Tick
from farthing.bench.machine import Here
from farthing.errors import FarthingError, StorageError, TaskError, UnsupportedError
from farthing.forge import graph
from farthing.forge.evaluate import Judge, Score
from farthing.forge.ladder import FUSE, STATIC
from farthing.forge.quantize import heads
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.runtime import Runtime
from farthing.forge.sensitivity.alone import HIGHEST
from farthing.forge.sensitivity.losses import Loss, fewest, losses, ranked, whole_loss
from farthing.forge.sensitivity.precisions import PRECISIONS, Place, form_of, source_of, whole
from farthing.forge.sensitivity.result import Effect, Mixture, Operator, Whole
from farthing.forge.timing import Clock, Variant
from farthing.measure import Interval
from farthing.model import Model
from farthing.recipe import Listener, Progress, Step


class Analysis:
    """One analysis of a model.

    Args:
        model: the float model as given.
        engine: name of what runs it and what is made of it.
        samples: calibration samples behind each ratio.
        subset: validation samples behind each loss of the metric, but for the mixture's.
        listener: hears of each step, stage ``sensitivity``.

    Attributes:
        engine: name and version.
        notes: what could not be looked at, and why.
    """

    def __init__(
        self, model: Model, place: Place, engine: str, samples: int, subset: int, listener: Listener
    ) -> None:
        self._place, self._listener = place, listener
        self._samples, self._subset = samples, subset
        self._say("fusing the model")
        self._model = place.made(model, FUSE)
        self._source = source_of(self._model)
        machine = Here()
        self._runtime = Runtime.of(model, engine, machine)
        self.engine = f"{self._runtime.engine} {self._runtime.version}"
        self._clock = Clock(place.task, machine, place.cache)
        self._judge = Judge(place.task, model, self._runtime, machine, place.cache)
        self._losses: dict[str, dict[str, Loss]] = {}
        self.notes: list[str] = []

    def joins(self) -> tuple[heads.Join, ...]:
        """Operators under which int8 would lose a range."""
        return tuple(heads.joins(self._model, self._place.task, StaticInt8()))

    def lose(self, precisions: Sequence[str]) -> None:
        """Measure what each operator loses in each precision; what cannot be made is noted.

        Raises:
            UnsupportedError: none of the precisions changes anything.
        """
        for name in precisions:
            tick = self._ticker(f"{name}, operator by operator")
            try:
                found = losses(self._model, PRECISIONS[name], self._place, self._samples, tick)
            except StorageError:
                raise
            except FarthingError as error:
                self.notes.append(f"{name} could not be looked at: {error}")
                continue
            if found:
                self._losses[name] = found
            else:
                self.notes.append(f"{name} changes no operator of {self._model.manifest.name}.")
        if not self._losses:
            raise UnsupportedError(f"there is no operator to look at: {' '.join(self.notes)}")

    def operators(self, scored: int | None) -> tuple[Operator, ...]:
        """The operators that a precision changes, in the order of the graph.

        Args:
            scored: how many of each precision, the worst first, are held against the metric; None for all.
        """
        drops = self._drops(scored)
        found = []
        for name, node in self._source.nodes.items():
            effects = tuple(
                Effect(
                    precision=precision,
                    own_sqnr=lost[name].own,
                    output_sqnr=lost[name].outputs,
                    drop=drops.get((precision, name)),
                )
                for precision, lost in self._losses.items()
                if name in lost
            )
            if effects:
                numbers = sum(
                    graph.elements(self._source.stored[i]) for i in node.input if i in self._source.stored
                )
                found.append(Operator(name=name, kind=node.op_type, parameters=numbers, effects=effects))
        return tuple(found)

    def _drops(self, scored: int | None) -> dict[tuple[str, str], Interval]:
        """What the metric loses on the subset by single operators, the worst of each precision."""
        wanted = {
            precision: [name for name in ranked(lost)[:scored] if lost[name].outputs is not None]
            for precision, lost in self._losses.items()
        }
        tick, done = self._ticker("the metric, by single operators"), 0
        found: dict[tuple[str, str], Interval] = {}
        for precision in (precision for precision, names in wanted.items() if names):
            form = form_of(self._source, self._model, PRECISIONS[precision], self._place)
            for name in wanted[precision]:
                proto = self._source.whole(name, form)
                changed = Model.create(self._model.manifest, {"model.onnx": graph.save_bytes(proto)})
                if score := self._of_few(changed, f"{name} in {precision} alone"):
                    found[precision, name] = score.drop
                done += 1
                tick(done, sum(map(len, wanted.values())))
        return found

    def whole(self) -> tuple[Whole, ...]:
        """The model in float32, and with every operator in each precision."""
        tick, base = self._ticker("the metric, by whole precisions"), self._score(self._model, self._subset)
        found = [Whole(precision="float32", output_sqnr=HIGHEST, accuracy=base.accuracy, drop=base.drop)]
        for number, name in enumerate(self._losses):
            if made := self._of_all(name):
                found.append(made)
            tick(number + 1, len(self._losses))
        return tuple(found)

    def _of_all(self, name: str) -> Whole | None:
        """The model with every operator in a precision; None, and a note, if it cannot be made or run."""
        try:
            changed = whole(self._model, PRECISIONS[name], self._place)
            self._clock.trial(Variant(model=changed.digest, runtime=self._runtime), changed)
            ratio = whole_loss(self._model, changed, self._place, self._samples)
        except StorageError:
            raise
        except FarthingError as error:
            self.notes.append(f"the model in {name} could not be looked at: {error}.")
            return None
        score = self._of_few(changed, f"the model in {name}")
        accuracy, drop = (score.accuracy, score.drop) if score else (None, None)
        return Whole(precision=name, output_sqnr=ratio, accuracy=accuracy, drop=drop)

    def mixture(self, limit: float, joins: Sequence[heads.Join]) -> Mixture | None:
        """The fewest operators in float with which int8 keeps the metric; None where int8 was not looked at.

        Heads that int8 breaks go first, together; then the worst operators, by bisection.
        """
        if "int8" not in self._losses:
            return None
        head = list(dict.fromkeys(name for join in joins for name in join.head))
        order = [*head, *(name for name in ranked(self._losses["int8"]) if name not in head)]
        return _Mixing(
            order, limit, self._mixed, self._subset, self._ticker("mixtures of int8 and float")
        ).found(len(head))

    def _mixed(self, floats: Sequence[str], limit: int | None) -> Score:
        step = Step(use=STATIC, options={"exclude": list(floats)})
        return self._score(self._place.made(self._model, step), limit)

    def _of_few(self, model: Model, what: str) -> Score | None:
        """The score on the subset; None, and a note, of what computes no numbers."""
        try:
            return self._score(model, self._subset)
        except TaskError as error:
            self.notes.append(f"{what} has no metric: {error}.")
            return None

    def _score(self, model: Model, limit: int | None) -> Score:
        return self._judge.score(model, "validation", limit, self._runtime)

    def _say(self, text: str, done: int = 0, total: int = 0) -> None:
        self._listener(Progress(stage="sensitivity", text=text, done=done, total=total))

    def _ticker(self, text: str) -> Tick:
        return lambda done, total: self._say(text, done, total)


class _Mixing:
    """The search for the fewest operators in float.

    Args:
        order: operators, in the order in which they go back to float.
        limit: what the metric may lose.
        score: the score of int8 with some operators in float, on so many samples, or on all.
        subset: samples to bisect on; the whole split is for what that finds.
    """

    def __init__(
        self,
        order: list[str],
        limit: float,
        score: Callable[[Sequence[str], int | None], Score],
        subset: int,
        tick: Tick,
    ) -> None:
        self._order, self._limit, self._score, self._subset, self._tick = order, limit, score, subset, tick
        self._tried: set[int] = set()

    def found(self, head: int) -> Mixture:
        """The mixture; the first ``head`` operators go together."""
        last = len(self._order) - 1  # with all of them in float there is no int8 left
        count = next((count for count in (0, head) if self._enough_of_few(count)), None)
        if count is None:
            count = fewest(last, self._enough_of_few, head)
        if count < last and not self._enough(count):
            count = fewest(last, self._enough, count)
        score = self._score(self._order[:count], None)
        return Mixture(
            limit=self._limit,
            floats=tuple(self._order[:count]),
            quantized=len(self._order) - count,
            drop=score.drop,
            samples=score.samples,
            met=score.drop.value <= self._limit,
            tried=len(self._tried),
        )

    def _enough_of_few(self, count: int) -> bool:
        return self._enough(count, self._subset)

    def _enough(self, count: int, samples: int | None = None) -> bool:
        self._tried.add(count)
        self._tick(len(self._tried), 0)
        return self._score(self._order[:count], samples).drop.value <= self._limit
