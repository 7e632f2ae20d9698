"""What is inside a model and where its parts run, as plain data: sizes by layer, placement by node, portability."""

from __future__ import annotations

from typing import Literal

from farthing.config import Section


class Layer(Section, frozen=True, kw_only=True):
    """An operator and the stored numbers it reads.

    Attributes:
        name: of the operator in the file; of the tensor for numbers that several operators share.
        operator: its type, as in ``Conv``; ``shared`` for numbers that several read.
        bytes: of its stored numbers.
        dtype: their element types, the most bytes first, as in ``int8, int32``.
    """

    name: str
    operator: str
    bytes: int
    dtype: str


class Placed(Section, frozen=True, kw_only=True):
    """One node as the runtime runs it.

    Attributes:
        node: its name.
        operator: what runs, fused parts included, as in ``com.microsoft.nchwc.Conv + Relu``.
        provider: what runs it: execution provider, device or delegate, as in ``CPUExecutionProvider``.
        microseconds: median time of its kernel with the profiler on, which adds a little to each; None if the engine
            does not tell.
        shape: of its first output.
        precision: what it computes in, as in ``int8``; empty if the engine does not tell.
    """

    node: str
    operator: str
    provider: str
    microseconds: float | None = None
    shape: tuple[int, ...] = ()
    precision: str = ""


class Anatomy(Section, frozen=True, kw_only=True):
    """The inside of one candidate.

    Attributes:
        candidate: its number.
        format, bytes: of its files; ``bytes`` of all of them.
        zipped_bytes: of its files as a zip holds them, compressed by deflate; None if not known.
        zeros: share of its weights that are zero, 0..1; None if not known.
        layers: operators with stored numbers, the most bytes first.
        engine: what the placement is of, with its version; empty if nothing was run.
        placement: nodes in the order they run; empty if it is not known.
        notes: what is not known, and why.
    """

    candidate: int
    format: str
    bytes: int
    zipped_bytes: int | None = None
    zeros: float | None = None
    layers: tuple[Layer, ...] = ()
    engine: str = ""
    placement: tuple[Placed, ...] = ()
    notes: tuple[str, ...] = ()


Portable = Literal["source", "equal", "differs", "refused", "no way", "not installed", "failed"]


class Cell(Section, frozen=True, kw_only=True):
    """One model in one engine.

    Attributes:
        model, engine: which.
        version: of the runtime; empty where it is not installed.
        verdict: ``source`` is the reference engine itself, running the file as it is; ``equal`` and ``differs`` are
            held against it; ``refused`` says that an operator or a feature is lacking, ``no way`` that nothing
            makes the engine's format from the model's, ``failed`` that something broke, crashed or took too long.
        via: the pass that made the engine's format; empty if the file is run as it is.
        absolute: largest difference from the source's outputs.
        relative: the same over the largest value of that output; largest over all outputs.
        tolerance: what ``relative`` may be, by the precision of the model.
        precision: of the model: ``float32``, ``float16``, ``int8`` ...
        operator: what is lacking, if refused; empty if the message names none.
        detail: the message.
    """

    model: str
    engine: str
    version: str = ""
    verdict: Portable
    via: str = ""
    absolute: float | None = None
    relative: float | None = None
    tolerance: float | None = None
    precision: str = ""
    operator: str = ""
    detail: str = ""


class Matrix(Section, frozen=True, kw_only=True):
    """Which engines compute the same as a model's own.

    Attributes:
        models, engines: rows and columns, in order.
        cells: one for each pair, row by row.
        inputs: what was fed, in words.
        machine: where.
    """

    models: tuple[str, ...]
    engines: tuple[str, ...]
    cells: tuple[Cell, ...]
    inputs: str = ""
    machine: str = ""

    def cell(self, model: str, engine: str) -> Cell:
        """The cell of a pair."""
        place = self.models.index(model) * len(self.engines) + self.engines.index(engine)
        return self.cells[place]
