"""What a network will cost on a device, from its blocks: each distinct one is measured there once, and kept.

A block is exported with an average over all places behind it, made ready as the network would be, and timed beside
others, interleaved. The time of the average alone on the same sample is taken off for all blocks but the first: so what
a call costs, what brings numbers in and out, and the averages cancel in the sum over the blocks of a network. What is
left out is what an engine gains or loses between blocks. File sizes add up in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from farthing import bench
from farthing.bench import Rule
from farthing.bench.machine import Machine
from farthing.config import Section
from farthing.forge import graph
from farthing.forge.apply import versions
from farthing.forge.cache import Cache, key_of
from farthing.forge.convert.module import trace_export
from farthing.forge.families import Block, Layer, Shape
from farthing.forge.families.modules import assemble
from farthing.forge.search.deployment import Deployment
from farthing.measure import Scenario
from farthing.model import Manifest, Model, Preprocess, TensorSpec
from farthing.options import EngineOptions
from farthing.recipe import Listener, Progress, ignore
from farthing.target import Target
from farthing.task import Split, Task

AVERAGE = Block(body=(Layer(kind="average"),))
RULE = Rule(warmup=5, min_count=100, min_seconds=1.0, max_seconds=30.0)
SAMPLES = 16
OPSET = 17
GROUP = 24  # pieces that race together

Entry = Literal["picture", "tensor", "inside"]


class Piece(Section, frozen=True, kw_only=True):
    """What is measured. Where no vector comes out of the blocks, an average is put behind them.

    Attributes:
        blocks: one after another.
        shape: of the samples that reach them.
        entry: how these come: ``picture`` and ``tensor`` are inputs of the model, which an engine may have to bring
            into its own order; ``inside`` they are in that order already.
    """

    blocks: tuple[Block, ...] = ()
    shape: Shape
    entry: Entry = "inside"

    @property
    def closed(self) -> tuple[Block, ...]:
        """The blocks with the average."""
        shape = self.shape
        for block in self.blocks:
            shape = block.shape(shape)
        return self.blocks if len(shape) == 1 else (*self.blocks, AVERAGE)

    @property
    def given(self) -> Shape:
        """The shape of what its model takes: a signal inside a network comes as a picture of one row."""
        signal = self.entry == "inside" and len(self.shape) == 2
        return (self.shape[0], 1, self.shape[1]) if signal else self.shape


class Price(Section, frozen=True, kw_only=True):
    """What a piece, or a network, takes.

    Attributes:
        milliseconds: median time of a call.
        size_bytes: of the deployed file.
    """

    milliseconds: float
    size_bytes: float


class Lookup:
    """Prices of blocks on one machine.

    Args:
        deployment: how a network becomes what is deployed.
        machine: where pieces are timed.
        target: what they are made for.
        cache: where prices are kept; None keeps them for the life of this object.
        batch: samples a call.
        entry: how samples come into the network: ``picture`` where the manifest says how to prepare them.
        options: how the engine runs.
        listener: hears of measurements, stage ``lookup``.
    """

    def __init__(
        self,
        deployment: Deployment,
        machine: Machine,
        target: Target,
        cache: Cache | None = None,
        batch: int = 1,
        entry: Entry = "tensor",
        options: EngineOptions | None = None,
        rule: Rule = RULE,
        listener: Listener = ignore,
    ) -> None:
        self._deployment, self._machine, self._target = deployment, machine, target
        self._cache, self._batch, self._rule, self._listener = cache, batch, rule, listener
        self._entry: Entry = entry
        self._options = options or EngineOptions()
        self._prices: dict[Piece, Price] = {}

    def price(self, blocks: Sequence[Block], shape: Shape) -> Price:
        """The predicted price of a network.

        Args:
            blocks: of the network, as `Architecture.blocks` gives them.
            shape: of a sample.

        Raises:
            FarthingError: a block cannot be made ready or run.
        """
        first, *pairs = pieces_of(blocks, shape, self._entry)
        self.measure([piece for pair in (first, *pairs) for piece in pair])
        start = self._prices[first[0]]
        steps = [(self._prices[full], self._prices[bare]) for full, bare in pairs]
        return Price(
            milliseconds=start.milliseconds + sum(a.milliseconds - b.milliseconds for a, b in steps),
            size_bytes=start.size_bytes + sum(a.size_bytes - b.size_bytes for a, b in steps),
        )

    def measure(self, pieces: Iterable[Piece]) -> None:
        """Measure those of the pieces that are not known, many in one race."""
        unknown = [piece for piece in dict.fromkeys(pieces) if not self._known(piece)]
        for start in range(0, len(unknown), GROUP):
            group = unknown[start : start + GROUP]
            text = f"timing {len(unknown)} blocks in {self._deployment.engine}"
            self._listener(Progress(stage="lookup", text=text, done=start, total=len(unknown)))
            for piece, price in zip(group, self.measured(group), strict=True):
                self._keep(piece, price)

    def _known(self, piece: Piece) -> bool:
        if piece not in self._prices and self._cache is not None:
            found = self._cache.found(self.key(piece), Price)
            if found is not None:
                self._prices[piece] = found
        return piece in self._prices

    def _keep(self, piece: Piece, price: Price) -> None:
        self._prices[piece] = price
        if self._cache is not None:
            self._cache.value(self.key(piece), Price, lambda: price, again=True)

    def measured(self, group: Sequence[Piece]) -> list[Price]:
        """Prices of pieces, measured anew, in one race."""
        ready = [self._made(piece) for piece in group]
        scenario: Scenario = "single_stream" if self._batch == 1 else "offline"
        entrants = [(model, self._deployment.engine, self._options) for model in ready]
        raced = bench.race_models(entrants, scenario, None, self._batch, self._rule, self._machine)
        return [
            Price(milliseconds=float(np.median(timed.rounds)) * 1000, size_bytes=model.size_bytes)
            for model, (_, timed) in zip(ready, raced, strict=True)
        ]

    def _made(self, piece: Piece) -> Model:
        samples = np.random.default_rng(0).standard_normal((SAMPLES, *piece.given)).astype(np.float32)
        task = Task("a block", {"calibration": Split({"": samples})}, "agreement")
        return self._deployment.of(untrained(piece), self._target, task)

    def key(self, piece: Piece) -> str:
        """What a price is kept under."""
        engine = [self._deployment, self._machine.version(self._deployment.engine), self._options]
        made = [versions(step.use) for step in self._deployment.steps]
        return key_of(
            "block", piece, engine, made, self._batch, self._rule, self._target, self._machine.target
        )


def pieces_of(blocks: Sequence[Block], shape: Shape, entry: Entry = "tensor") -> list[tuple[Piece, ...]]:
    """For the first block of a network its piece; for every other one that with it and the one without."""
    pieces: list[tuple[Piece, ...]] = []
    for number, block in enumerate(blocks):
        if number:
            pieces.append((Piece(blocks=(block,), shape=shape), Piece(shape=shape)))
        else:
            pieces.append((Piece(blocks=(block,), shape=shape, entry=entry),))
        shape = block.shape(shape)
    return pieces


def untrained(piece: Piece) -> Model:
    """A piece with weights drawn at random (seeded), as an ONNX model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = assemble(piece.closed, piece.shape).eval()
    given = piece.given
    if given != piece.shape:
        module = nn.Sequential(Signal(), module)
    example = torch.zeros(2, *given)
    with torch.no_grad():
        result = module(example)
    proto, _ = trace_export(module, [example], ["x"], result, OPSET, dynamic=True)
    (output,) = [value.name for value in proto.graph.output]
    picture = len(given) == 3 and piece.entry != "tensor"
    manifest = Manifest(
        name="block",
        format="onnx",
        inputs=(_spec("x", given, "NCHW" if len(given) == 3 else ""),),
        outputs=(_spec(output, tuple(result.shape[1:])),),
        preprocess=Preprocess(colour="GRAY", scale=1.0) if picture else None,
    )
    return Model.create(manifest, {"model.onnx": graph.save_bytes(proto)})


class Signal(nn.Module):
    """Takes pictures of a height of 1 for signals: such come in the order in which every engine computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.squeeze(2)


def _spec(name: str, shape: Shape, layout: str = "") -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=("batch", *shape), batch_axis=0, layout=layout)
