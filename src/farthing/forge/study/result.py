"""What a study found, as plain data: the JSON that `farthing study` writes."""

from __future__ import annotations

from typing import Literal

from farthing.config import Section
from farthing.measure import Interval
from farthing.recipe import Candidate

What = Literal["weights", "activations", "both"]


class Rounded(Section, frozen=True, kw_only=True):
    """A layer's numbers at one width. Ratios are in dB; None if a number became NaN or infinite.

    Attributes:
        bits: 32 (float32), 16 (float16), or so many bits of an integer with a scale.
        bytes: of its weights at that width, with their scales and the float32 bias.
        weights_mse, weights_sqnr: mean squared error of its weights, and their signal-to-quantization-noise ratio.
        results_mse, results_sqnr: the same of what it computes in float32, after a ReLU that follows, rounded.
    """

    bits: int
    bytes: int
    weights_mse: float | None
    weights_sqnr: float | None
    results_mse: float | None
    results_sqnr: float | None


class Layer(Section, frozen=True, kw_only=True):
    """One layer of the fused model.

    Attributes:
        name, kind: of its operator.
        parameters: weights and biases.
        widths: its numbers, the widest first.
    """

    name: str
    kind: str
    parameters: int
    widths: tuple[Rounded, ...]


class Width(Section, frozen=True, kw_only=True):
    """The whole model at one width.

    Attributes:
        bits: as in `Rounded`.
        rounded: its weights, its activations (the input included), or both.
        bytes: of all its stored numbers, the weights at that width if they are rounded.
        output_mse, output_sqnr: error of the model's outputs, of the one that suffers most; None if NaN or infinite.
        accuracy, drop: the task's metric on ``subset`` samples of validation, and what it lost; None where it has none.
    """

    bits: int
    rounded: What
    bytes: int
    output_mse: float | None
    output_sqnr: float | None
    accuracy: Interval | None
    drop: Interval | None


class Study(Section, frozen=True, kw_only=True):
    """What methods and widths do to a model.

    Attributes:
        model_name, model: name and digest of the model as given.
        task_name, metric, higher_is_better: what it was judged by.
        methods: the model as given and what each method made of it, in each engine and thread count.
        front: numbers of the methods that no other beats in loss of the metric, median latency and size at once.
        layers: of the fused model, in the order of the graph.
        widths: the whole model at each width.
        samples: size of each split.
        looked_at: most calibration samples behind the errors of layers and widths.
        subset: validation samples behind the metric of widths.
        target: name of the device that the methods were chosen for.
        notes: what else to know.
        machine, versions, command, when, seconds: how to make sense of the figures, and to repeat them.
    """

    model_name: str
    model: str
    task_name: str
    metric: str
    higher_is_better: bool = True
    methods: tuple[Candidate, ...]
    front: tuple[int, ...]
    layers: tuple[Layer, ...]
    widths: tuple[Width, ...]
    samples: dict[str, int]
    looked_at: int
    subset: int
    target: str
    notes: tuple[str, ...] = ()
    machine: str = ""
    versions: dict[str, str] = {}
    command: str = ""
    when: str = ""
    seconds: float = 0.0
