"""Other tools with their default calls; for every point of theirs one of ours that is as good, as small and as fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from farthing.errors import FarthingError
from farthing.model import Model
from farthing.options import EngineOptions
from harness import artefacts, fleet, pt2e, remeasure, table
from harness.artefacts import Setting
from harness.fleet import Searched
from harness.table import Bar, Row

NETWORKS = ("resnet8-mnist", "cnn-mnist", "efficientnet-lite0")
NNCF = "quantize.nncf.v1"
AS_GOOD, AS_SMALL, AS_FAST = 0.001, 1.02, 1.05
TOOLS: Mapping[str, tuple[Callable[[Searched], Model], str]] = {
    "onnxruntime.quantization": (lambda found: artefacts.peer(found.baseline, found.task), "onnxruntime"),
    "nncf": (fleet.nncf_default, "openvino"),
    "ai-edge-quantizer": (fleet.ai_edge_quantizer, "litert"),
    "torchao": (pt2e.quantized, pt2e.ENGINE),
}
"""What makes the peer's file of a float model, and the engine that the tool makes it for."""


class Entrant(NamedTuple):
    """A file in an engine."""

    name: str
    model: Model
    engine: str
    options: EngineOptions = EngineOptions()


class Point(NamedTuple):
    """A file in an engine, and how good, how small (bytes) and how fast (median milliseconds) it is there."""

    entrant: Entrant
    score: float
    size: int
    p50: float

    def matches(self, peer: Point) -> bool:
        """Whether it is as good and as small as another."""
        return self.score >= peer.score - AS_GOOD and self.size <= AS_SMALL * peer.size


def rows(setting: Setting) -> list[Row]:
    """A row for each network and tool; one that cannot be made is short, and says why."""
    return [row for name in NETWORKS for row in _rows(setting, name)]


def _rows(setting: Setting, name: str) -> list[Row]:
    found = fleet.searched(setting, name)
    theirs = [Entrant(f"{engine} float32", model, engine) for engine, model in found.floats().items()]
    refused, files = [], []
    for tool, (make, engine) in TOOLS.items():
        try:
            theirs.append(Entrant(tool, make(found), engine))
            files.append(theirs[-1].model.manifest.files)
        except FarthingError as error:
            refused.append(table.failed(_case(name, tool), error))
    ours = [one for one in _candidates(found) if one.model.manifest.files not in files]
    points = _measured(setting, found, [*theirs, *ours])
    peers, own = points[: len(theirs)], points[len(theirs) :]
    return [*(matched(name, peer, own) for peer in peers), *refused]


def _candidates(found: Searched) -> list[Entrant]:
    """All that the search made and ran, whatever its verdict, but for what it asked NNCF to make."""
    every = {
        (one.model, one.engine, one.options): one
        for one in found.result.candidates
        if one.model and one.status != "failed" and not any(step.use == NNCF for step in one.steps)
    }
    return [Entrant(one.name, found.made(one.steps), one.engine, one.options) for one in every.values()]


def _measured(setting: Setting, found: Searched, entrants: Sequence[Entrant]) -> list[Point]:
    """Every entrant scored on all samples that no training saw, and all of them timed in one race."""
    views = fleet.everything(found, "validation", "test")
    base = fleet.outputs(views, found.baseline, "onnxruntime")
    runs = [(one.model, one.engine, one.options) for one in entrants]
    timed = remeasure.race(found.task, runs, setting.rule)
    metric = found.task.metric
    return [
        Point(
            one,
            fleet.compared(metric, views, base, fleet.outputs(views, *run)).value,
            one.model.size_bytes,
            float(np.median(times.calls)) * 1000,
        )
        for one, run, times in zip(entrants, runs, timed, strict=True)
    ]


def matched(name: str, peer: Point, own: Sequence[Point]) -> Row:
    """The fastest of ours that is as good and as small as a peer's point, held against its time."""
    tool = peer.entrant.name
    best = min((one for one in own if one.matches(peer)), key=lambda one: one.p50, default=None)
    words = (
        f"none of ours is within {100 * AS_GOOD:g} point of {peer.score:.4f} and {AS_SMALL:g} times its "
        f"{peer.size} bytes"
    )
    if best is not None:
        words = (
            f"{best.entrant.name} in {best.entrant.engine}: {best.score:.4f} against {peer.score:.4f}, "
            f"{best.size / peer.size:.2f} of its bytes"
        )
    return Row(
        case=_case(name, tool),
        ours=None if best is None else best.p50,
        unit="ms",
        peers={tool: peer.p50},
        ratio=None if best is None else best.p50 / peer.p50,
        bar=Bar(figure="ratio", sign="<=", value=AS_FAST),
        note=words,
    )


def _case(name: str, tool: str) -> str:
    return f"peer {name}: {tool}"
