"""A study as a page of its own: methods against one another, then widths, then layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from farthing.forge.report.findings import Findings, single
from farthing.forge.report.plot import embedded, figure, plot
from farthing.forge.report.tables import candidates
from farthing.forge.study.result import Layer, Study, Width
from farthing.page.dots import Dots, by_row
from farthing.page.frame import page, resource
from farthing.page.parts import listing, notes, pairs
from farthing.page.typeset import (
    MISSING,
    Child,
    Html,
    Unit,
    count,
    duration,
    element,
    joined,
    noted,
    number,
    section,
    size_unit,
    whole,
)
from farthing.recipe import Summary

SHOWN = 40
NAMED = 4
KINDS = {32: "float32", 16: "float16"}
MARKS = {"baseline": "as given", "accepted": "a method"}


def render(found: Study) -> str:
    """The study as HTML text that needs and loads nothing else."""
    methods = Findings(_summary(found))
    unit = size_unit([width.bytes / 1e6 for width in found.widths])
    parts = [
        figure(methods, "Accuracy, latency and size", MARKS),
        candidates(methods, "All methods", "the JSON"),
        _widths(found, methods, unit),
        _layers(found),
        notes(found.notes),
        _conditions(found, methods),
    ]
    title = f"What methods and widths do to {found.model_name}"
    head = joined([element("h1", element("bdi", title)), element("p", sentence(found), class_="verdict")])
    script = resource("page.js", "farthing.forge.report")
    return page(title, "Farthing study", head, joined(parts), script, embedded(plot(methods)))


def sentence(found: Study) -> str:
    """What was measured, and which methods no other beats."""
    by_number = {candidate.number: candidate for candidate in found.methods}
    timed = sum(1 for candidate in found.methods if single(candidate))
    names = [f"{by_number[n].name} in {by_number[n].engine}" for n in found.front]
    more = f"; and {len(names) - NAMED} more" if len(names) > NAMED else ""
    text = f"{count(timed, 'variant')} of {found.model_name} measured on {found.task_name}."
    return f"{text} No other beats these in loss, latency and size at once: {'; '.join(names[:NAMED])}{more}."


def _summary(found: Study) -> Summary:
    """The methods in the form that plots and tables of reports are drawn from."""
    return Summary(
        model_name=found.model_name,
        task_name=found.task_name,
        metric=found.metric,
        higher_is_better=found.higher_is_better,
        sentence="",
        met=True,
        violations=(),
        notes=found.notes,
        budget="",
        winner=0,
        candidates=found.methods,
        samples=found.samples,
        machine=found.machine,
        versions=found.versions,
    )


# Widths ---------------------------------------------------------------------------------------------------------


def _widths(found: Study, methods: Findings, unit: Unit) -> Html:
    """The whole model at each width."""
    words = (
        "Weights symmetric with a scale for each output channel, activations with the ranges of static int8. The model "
        "computes in float32 with the rounded numbers: this shows what they lose, not what an engine makes of them. "
        f"The metric is {methods.metric}, on {count(found.subset, 'sample')} of the validation split."
    )
    rows = [_width(width, methods, unit) for width in found.widths]
    heads = ["Bits", "Rounded", unit.sign, "MSE", "SQNR", "Metric", "Change"]
    kinds = list(dict.fromkeys(width.bits for width in found.widths if width.bits < 32))
    what = list(dict.fromkeys(width.rounded for width in found.widths if width.bits < 32))
    ratio = {(width.rounded, width.bits): width.output_sqnr for width in found.widths}
    dots = [Dots(_bits(bits), [ratio.get((name, bits)) for name in what]) for bits in kinds]
    picture = by_row("SQNR of the model's outputs", "dB", [f"{name} rounded" for name in what], dots)
    return section(
        "widths",
        "The whole model in few bits",
        element("p", words, class_="quiet"),
        picture,
        listing(heads, rows),
    )


def _width(width: Width, methods: Findings, unit: Unit) -> list[Child]:
    scale, accuracy = methods.scale, width.accuracy
    change = scale.change(width.drop) if width.drop else None
    return [
        _bits(width.bits),
        width.rounded if width.bits < 32 else MISSING,
        unit.of(width.bytes / 1e6),
        _exponent(width.output_mse),
        number(width.output_sqnr),
        noted(f"{scale.plain(accuracy.value)}{scale.unit}", scale.range(accuracy)) if accuracy else MISSING,
        noted(scale.gap(change.value) + scale.points, scale.gap_range(change)) if change else MISSING,
    ]


def _bits(bits: int) -> str:
    return KINDS.get(bits, f"{bits} bits")


def _exponent(value: float | None) -> str:
    """A mean squared error, which may be very small."""
    return MISSING if value is None else f"{value:.2e}" if value else "0"


# Layers ---------------------------------------------------------------------------------------------------------


def _layers(found: Study) -> Html:
    """Every layer at each width: two pictures and a table."""
    if not found.layers:
        return Html("")
    words = (
        "Signal-to-quantization-noise ratio of each layer's own weights, and of what it computes, if that alone is "
        f"rounded; on {count(found.looked_at, 'calibration sample')} at most. How much of it reaches the outputs, "
    )
    note = element("p", words, element("code", "farthing sensitivity"), " tells.", class_="quiet")
    shown = (("Weights", "weights_sqnr"), ("Results", "results_sqnr"))
    pictures = [drawn for title, field in shown for drawn in _pictures(title, field, found.layers)]
    heads = ["Layer", "Parameters", *(f"{_bits(width.bits)}: bytes, MSE" for width in found.layers[0].widths)]
    rows = [
        [
            noted(element("bdi", layer.name), layer.kind),
            whole(layer.parameters),
            *(noted(whole(width.bytes), _exponent(width.weights_mse)) for width in layer.widths),
        ]
        for layer in found.layers
    ]
    return section("layers", "Layer by layer", note, *pictures, listing(heads, rows))


def _pictures(title: str, field: str, layers: Sequence[Layer]) -> Iterator[Html]:
    """The first layers, and the others on request."""
    for part in filter(None, (layers[:SHOWN], layers[SHOWN:])):
        dots = [
            Dots(_bits(width.bits), [getattr(layer.widths[place], field) for layer in part])
            for place, width in enumerate(part[0].widths)
            if width.bits < 32
        ]
        drawn = by_row(title, "dB", [layer.name for layer in part], dots)
        more = element("summary", f"{title}: {count(len(part), 'more layer')}")
        yield drawn if part[0] is layers[0] else element("details", more, drawn)


# Rest -----------------------------------------------------------------------------------------------------------


def _conditions(found: Study, methods: Findings) -> Html:
    runs = sorted({measured.runs for c in methods.timed if (measured := single(c))})
    rows = [
        ("Machine", found.machine),
        ("Made for", found.target),
        ("Versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())),
        ("Task", f"{found.task_name}, by {methods.metric}"),
        ("Samples", ", ".join(f"{name} {amount:,}" for name, amount in found.samples.items())),
        (
            "Latency",
            f"MLPerf single stream, batch 1, in turns; at least {runs[0]:,} timed calls each" if runs else "",
        ),
        ("When", f"{found.when}, {duration(found.seconds)} in all" if found.when else ""),
        ("Command", found.command),
    ]
    return section("conditions", "Machine, versions, data", pairs(rows))
