"""What an analysis of sensitivity found, as plain data: the JSON that `farthing sensitivity` writes."""

from __future__ import annotations

from farthing.config import Section
from farthing.forge.quantize.heads import Join
from farthing.measure import Interval


class Effect(Section, frozen=True, kw_only=True):
    """What one precision does to one operator, all others in float32.

    Attributes:
        precision: as in ``int8`` or ``int4 weights``.
        own_sqnr: signal-to-quantization-noise ratio of its own result, dB; None if that is NaN or infinite.
        output_sqnr: the same at the model's outputs, of the one that suffers most.
        drop: what the metric loses on ``subset`` samples of validation, with its interval; None if not asked for.
    """

    precision: str
    own_sqnr: float | None
    output_sqnr: float | None
    drop: Interval | None = None


class Operator(Section, frozen=True, kw_only=True):
    """One operator of the fused model.

    Attributes:
        name: as ``exclude`` of a recipe takes it.
        kind: its type, as in ``Conv``.
        parameters: stored numbers that it reads.
        effects: one for each precision that changes it, in the order of the precisions.
    """

    name: str
    kind: str
    parameters: int
    effects: tuple[Effect, ...]

    def effect(self, precision: str) -> Effect | None:
        """What a precision does to it; None if that leaves it as it is."""
        return next((effect for effect in self.effects if effect.precision == precision), None)


class Whole(Section, frozen=True, kw_only=True):
    """What one precision does to the model if it is given to every operator.

    Attributes:
        precision: its name.
        output_sqnr: at the model's outputs, dB; of the one that suffers most. None if that is NaN or infinite.
        accuracy, drop: the task's metric on ``subset`` samples of validation, and what it lost; None where the model
            computes NaN or infinity.
    """

    precision: str
    output_sqnr: float | None
    accuracy: Interval | None
    drop: Interval | None


class Mixture(Section, frozen=True, kw_only=True):
    """The fewest operators left in float for which int8 keeps an accuracy.

    Attributes:
        limit: what the metric may lose.
        floats: the operators that stay float32, the most harmful first: ``exclude`` of ``quantize.static.v1``.
        quantized: how many operators compute in 8 bits.
        drop: what the metric loses with them, on the whole validation split, with its interval.
        samples: of that split.
        met: whether that is within the limit; False if it is not even with all but one of them in float.
        tried: how many mixtures were scored on the way.
    """

    limit: float
    floats: tuple[str, ...]
    quantized: int
    drop: Interval
    samples: int
    met: bool
    tried: int


class Sensitivity(Section, frozen=True, kw_only=True):
    """What each operator of a model suffers from each precision.

    Attributes:
        model_name, model: name and digest of the model as given.
        task_name, metric, higher_is_better: what it was judged by.
        precisions: those looked at, in order.
        operators: in the order of the graph.
        whole: the model as a whole, one for each precision.
        joins: operators that put unlike ranges on one scale; see `farthing.forge.quantize.heads.Join`.
        mixture: which operators should stay float; None if not asked for.
        samples: calibration samples behind each SQNR; ``subset``: validation samples behind each drop of an operator.
        engine: what ran it, with its version.
        target: name of the device that int8 was chosen for.
        notes: what could not be looked at, and why.
        machine, versions, command, when, seconds: how to make sense of the figures, and to repeat them.
    """

    model_name: str
    model: str
    task_name: str
    metric: str
    higher_is_better: bool = True
    precisions: tuple[str, ...]
    operators: tuple[Operator, ...]
    whole: tuple[Whole, ...] = ()
    joins: tuple[Join, ...] = ()
    mixture: Mixture | None = None
    samples: int
    subset: int
    engine: str
    target: str
    notes: tuple[str, ...] = ()
    machine: str = ""
    versions: dict[str, str] = {}
    command: str = ""
    when: str = ""
    seconds: float = 0.0

    def worst(self, precision: str) -> list[Operator]:
        """The operators that a precision changes, the most harmful first."""
        hit = [(effect, one) for one in self.operators if (effect := one.effect(precision))]
        return [
            one for _, one in sorted(hit, key=lambda pair: severity(pair[0].output_sqnr, pair[0].own_sqnr))
        ]


def severity(outputs: float | None, own: float | None) -> tuple[float, float]:
    """The key by which operators are ranked, the most harmful first: SQNR at the outputs, then at their own result."""
    lowest = float("-inf")
    return (lowest if outputs is None else outputs, lowest if own is None else own)
