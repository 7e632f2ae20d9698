"""Cut an ONNX model into parts that run one after another: on several cores, or on several devices."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from farthing.bench import Rule, race
from farthing.bundle import Bundle, Exits, Role
from farthing.config import Section
from farthing.engines.base import Engine, open_engine
from farthing.engines.onnxruntime import CPU, runtime
from farthing.errors import ConfigError, ConversionError, UnsupportedError, nearest
from farthing.forge import graph
from farthing.forge.convert.difference import distance
from farthing.forge.cut.extract import as_model, extract, stored_bytes
from farthing.forge.cut.flow import Flow
from farthing.forge.cut.observe import observe
from farthing.forge.cut.plan import Scale, balanced, fewest, refuse
from farthing.model import Model
from farthing.options import EngineOptions

GLANCE = Rule(warmup=2, min_count=20, min_seconds=0.2, max_seconds=5.0)
CLOSE = Rule(warmup=3, min_count=30, min_seconds=1.0, max_seconds=20.0)
UNDISTURBED = 0.2  # the quantile of calls that shares are made of: whatever else runs here only adds
TOLERANCE = 1e-4


class Part(Section, frozen=True, kw_only=True):
    """One part of a model that was cut.

    Attributes:
        name: in the bundle.
        nodes: operators in its graph.
        inputs, outputs: names of the tensors that go in and come out.
        stored_bytes: of its weights.
        peak_bytes: the most that its tensors take at once for one sample; computed from their sizes.
        crossing_bytes: what later parts want of it and of those before it, one sample.
        seconds: median of one inference with one sample, timed in turns with the other parts and the whole.
    """

    name: str
    nodes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    stored_bytes: int
    peak_bytes: int
    crossing_bytes: int
    seconds: float


class Cut(NamedTuple):
    """What cutting gave.

    Attributes:
        bundle: the parts.
        parts: what is in them.
        seconds: of one inference of the whole, as for the parts.
        difference: largest difference between what the parts and the whole answer to one sample, relative to the
            largest output; 0 means the same bits.
        engine: what ran them, as in ``onnxruntime 1.31.1, 1 thread``.
    """

    bundle: Bundle
    parts: tuple[Part, ...]
    seconds: float
    difference: float
    engine: str


def cut(
    model: Model,
    path: Path,
    *,
    parts: int | None = None,
    at: Sequence[str | Sequence[str]] = (),
    memory_mb: float | None = None,
    exact: bool = False,
    exits: Exits | None = None,
    feeds: Mapping[str, graph.Array] | None = None,
    engine: str = "onnxruntime",
    options: EngineOptions | None = None,
) -> Cut:
    """Cut a model into a bundle of parts.

    Only what later parts need crosses a cut; crossing tensors keep their names, and constants are copied rather than
    handed over. ``parts`` balances by time: the graph up to a place is raced against the whole model, interleaved, and
    the place for each cut is found by bisection. Of the places near it, those that keep every bit of the answer come
    first, then those that the fewest bytes cross, which in a quantized model are those where integers cross. Places
    inside what ONNX Runtime fuses are left out; it may still compute in another order beside a cut (a sum that it would
    have added into a convolution, say), which moves the last digit of a float.

    Args:
        model: in ONNX, without state.
        path: the bundle's directory.
        parts: how many.
        at: cut after these tensors instead: each part computes what the next of them needs (several names make one cut
            after all of them), and the last part the rest.
        memory_mb: most MB (10^6 bytes) of weights and live tensors of one sample that a part may take; without
            ``parts``, as few parts as keep it.
        exact: cut only where every bit of the answer stays.
        exits: make a bundle of exits instead: ``at`` names the scores of every exit but the last, in order, and the
            model's remaining output is the last exit's.
        feeds: one sample or more to run it on; None makes numbers up.
        engine, options: what is raced.

    Raises:
        ConfigError: none of ``parts``, ``at`` and ``memory_mb``, or some that contradict one another.
        UnsupportedError: not ONNX, a model with state, something crosses that is no tensor, or no cuts keep the limit.
        ModelError: no node makes a tensor of ``at``.
        MeasurementError: numbers cannot be made up for its inputs: feeds are needed.
        ConversionError: the parts compute something else than the model.
        StorageError: the bundle cannot be written.
    """
    _check(model, parts, at, memory_mb)
    outputs = _scores(model, at) if exits else [spec.name for spec in model.manifest.outputs]
    with ExitStack() as stack:
        cutter = _Cutter(model, feeds, engine, options or EngineOptions(), stack)
        if at:
            steps = [[step] if isinstance(step, str) else list(step) for step in at]
            made = cutter.made(cutter.flow.ancestors(steps))
        else:
            made = cutter.planned(parts, None if memory_mb is None else int(memory_mb * 1e6), exact)
        if made.difference > (0 if exact else TOLERANCE):
            raise ConversionError(
                f"the parts of {model.manifest.name} differ from the whole by {made.difference:.2g} of the largest "
                "output: cut elsewhere"
            )
        return cutter.finished(made, path, outputs, exits)


def _check(
    model: Model,
    parts: int | None,
    at: Sequence[str | Sequence[str]],
    memory_mb: float | None,
) -> None:
    manifest = model.manifest
    if manifest.format != "onnx":
        raise UnsupportedError(f"{manifest.name} is {manifest.format}: only ONNX models can be cut")
    kept = [spec.name for spec in manifest.inputs if spec.role == "state"]
    if kept:
        raise UnsupportedError(f"{manifest.name} keeps the state {kept[0]!r} between calls: it cannot be cut")
    if at and (parts is not None or memory_mb is not None):
        raise ConfigError("give either the tensors to cut at, or a number of parts or a limit of memory")
    if not at and parts is None and memory_mb is None:
        raise ConfigError("say where to cut: a number of parts, tensors, or a limit of memory")
    if parts is not None and parts < 2:
        raise ConfigError(f"{parts} parts: two are the fewest that a cut makes")
    if memory_mb is not None and not 0 < memory_mb < math.inf:
        raise ConfigError(f"a limit of {memory_mb} MB is none, or keeps no part: give a number above 0")


def _scores(model: Model, at: Sequence[str | Sequence[str]]) -> list[str]:
    """The scores of each exit, in order."""
    outputs = [spec.name for spec in model.manifest.outputs]
    early = [step if isinstance(step, str) else ",".join(step) for step in at]
    last = [name for name in outputs if name not in early]
    for name in early:
        if name not in outputs:
            raise ConfigError(f"{name!r} is no output of {model.manifest.name}; {nearest(name, outputs)}")
    if not early or len(last) != 1:
        raise ConfigError(
            f"exits are all outputs but the last one, in order: of {', '.join(outputs)} name all but one"
        )
    return [*early, *last]


class _Made(NamedTuple):
    """Parts, and how far they are from the whole."""

    group: dict[int, int]
    models: list[Model]
    difference: float


class _Cutter:
    """A model on the table: its flow, its tensors, and an engine that runs it."""

    def __init__(
        self,
        model: Model,
        feeds: Mapping[str, graph.Array] | None,
        engine: str,
        options: EngineOptions,
        stack: ExitStack,
    ) -> None:
        self.model, self._engine, self._options, self._stack = model, engine, options, stack
        proto = graph.load(model.file)
        graph.name_nodes(proto)
        self.flow = Flow(proto)
        self._tensors, self._feeds = observe(proto, self.flow, model.manifest.inputs, feeds)
        sizes = {name: tensor.bytes for name, tensor in self._tensors.items()}
        self._sizes = sizes
        self._stored = stored_bytes(proto)
        self._scale = Scale(self.flow, sizes, self._stored)
        self._whole = stack.enter_context(open_engine(model, engine, options))
        self._expected = self._whole.run(self._feeds)
        self._shares: dict[int, float] = {}
        self._exact: dict[int, bool] = {}

    def planned(self, parts: int | None, limit: int | None, exact: bool) -> _Made:
        """Parts by time, by memory, or both."""
        places = self._places()
        if exact:
            places = [place for place in places if self._is_exact(place)]
            if not places:
                raise UnsupportedError(
                    f"wherever {self.model.manifest.name} is cut, the runtime computes something in another way beside "
                    "the cut, and not every bit of the answer stays"
                )
        made = self.made(self.flow.prefixes(self._cuts(places, parts, limit)))
        if made.difference > TOLERANCE and not exact:  # integers that are rounded otherwise beside a cut
            with contextlib.suppress(
                UnsupportedError
            ):  # then these are refused, and how far apart they are is said
                return self.planned(parts, limit, exact=True)
        return made

    def _cuts(self, places: Sequence[int], parts: int | None, limit: int | None) -> tuple[int, ...]:
        end = len(self.flow.order)
        crossing = {place: self._bytes(self.flow.crossing(place)) for place in places}
        reach = {}
        if limit is not None:
            reach = fewest(places, end, limit, self._scale, crossing)
            if 0 not in reach:
                raise refuse(places, end, limit, self._scale, self._node)
            if parts is None:
                return reach[0].cuts or self._whole_fits(limit)

        def allowed(start: int, place: int, left: int) -> bool:
            if limit is None:
                return True
            return (
                place in reach
                and reach[place].parts <= left
                and self._scale.weigh(start, place).bytes <= limit
            )

        def price(place: int) -> tuple[bool, int]:
            return not self._is_exact(place), crossing[place]

        return balanced(places, parts or 2, self._share, price, allowed)

    def _whole_fits(self, limit: int) -> tuple[int, ...]:
        whole = self._scale.weigh(0, len(self.flow.order)).bytes
        raise ConfigError(
            f"{self.model.manifest.name} takes {whole / 1e6:.3g} MB and keeps {limit / 1e6:g} MB as a whole: no cut is "
            "needed; give a number of parts to cut it all the same"
        )

    def _node(self, place: int) -> str:
        node = self.flow.nodes[self.flow.order[place]]
        return f"{node.op_type} {node.name!r}"

    def _places(self) -> list[int]:
        """Where the graph may be cut: tensors alone cross, and if possible none that the runtime would fuse away."""
        able = [
            place
            for place in range(1, len(self.flow.order))
            if all(name in self._tensors for name in self.flow.crossing(place))
        ]
        kept = _survivors(self.flow.proto) | set(self.flow.inputs)
        return [place for place in able if kept.issuperset(self.flow.crossing(place))] or able

    def _share(self, place: int) -> float:
        """The share of the whole's time that what lies before a place takes: both raced, in turns."""
        if place not in self._shares:
            prefix = self._part(self.flow.prefixes([place]), 0)
            with open_engine(prefix, self._engine, self._options) as engine:
                feeds = {spec.name: self._feeds[spec.name] for spec in engine.inputs}
                timed, whole = race([(engine, [feeds]), (self._whole, [self._feeds])], GLANCE)
            quick, slow = (float(np.quantile(one.calls, UNDISTURBED)) for one in (timed, whole))
            self._shares[place] = quick / slow
        return self._shares[place]

    def _is_exact(self, place: int) -> bool:
        """Whether two parts, cut at a place, answer as the whole to the last bit."""
        if place not in self._exact:
            self._exact[place] = not self.made(self.flow.prefixes([place])).difference
        return self._exact[place]

    def made(self, group: dict[int, int]) -> _Made:
        """The parts of a grouping, run one after another on the feeds and compared with the whole."""
        models = [self._part(group, number) for number in range(max(group.values()) + 1)]
        tensors = dict(self._feeds)
        for model in models:
            with open_engine(model, self._engine, self._options) as engine:
                tensors |= engine.run({spec.name: tensors[spec.name] for spec in engine.inputs})
        gaps = (
            0.0
            if np.array_equal(value, tensors[name], equal_nan=value.dtype.kind == "f")
            else distance(value, tensors[name])
            for name, value in self._expected.items()
        )
        return _Made(group, models, max(gaps))

    def _part(self, group: dict[int, int], number: int) -> Model:
        return as_model(*extract(self.flow, group, number, self._tensors, self.model.manifest))

    def _bytes(self, names: Sequence[str]) -> int:
        return sum(self._sizes.get(name, 0) for name in names)

    def finished(self, made: _Made, path: Path, outputs: Sequence[str], exits: Exits | None) -> Cut:
        """The bundle, written, and what is in it, timed."""
        names = {f"part{number}": model for number, model in enumerate(made.models, 1)}
        manifest = self.model.manifest
        role: Role = "exits" if exits else "parts"
        bundle = Bundle.create(manifest.name, role, names, path, outputs=outputs, exits=exits)
        tensors = dict(self._feeds)
        entrants: list[tuple[Engine, list[dict[str, graph.Array]]]] = [(self._whole, [dict(self._feeds)])]
        for model in bundle.models.values():
            engine = self._stack.enter_context(open_engine(model, self._engine, self._options))
            fed = {spec.name: tensors[spec.name] for spec in engine.inputs}
            tensors |= engine.run(fed)
            entrants.append((engine, [fed]))
        whole, *timed = (statistics.median(one.calls) for one in race(entrants, CLOSE))
        parts = tuple(
            self._described(name, model, made.group, number, timed[number])
            for number, (name, model) in enumerate(bundle.models.items())
        )
        ran = f"{self._whole.name} {self._whole.version}, {self._options}"
        return Cut(bundle, parts, whole, made.difference, ran)

    def _described(self, name: str, model: Model, group: dict[int, int], number: int, seconds: float) -> Part:
        ends = self.flow.ends(group, number)
        members = self.flow.members(group, number, ends.outputs)
        flow = Flow(onnx.load(model.file))
        weight = Scale(flow, self._sizes, self._stored).weigh(0, len(flow.order))
        groups = {
            tensor: [group[self.flow.order[place]] for place in places]
            for tensor, places in self.flow.spans.items()
        }
        crossing = [tensor for tensor, found in groups.items() if min(found) <= number < max(found)]
        return Part(
            name=name,
            nodes=len(members),
            inputs=ends.inputs,
            outputs=ends.outputs,
            stored_bytes=weight.stored,
            peak_bytes=weight.peak,
            crossing_bytes=self._bytes(crossing),
            seconds=seconds,
        )


def _survivors(proto: onnx.ModelProto) -> set[str]:
    """Tensors that are still there when ONNX Runtime has fused what it can; nothing if it cannot say."""
    ort = runtime()
    with tempfile.TemporaryDirectory(prefix="farthing-") as folder:
        place = Path(folder) / "fused.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(place)
        options.log_severity_level = 4
        try:
            ort.InferenceSession(graph.save_bytes(proto), options, providers=[CPU])
            return {name for node in onnx.load(place).graph.node for name in node.output}
        except graph.failures():
            return set()
