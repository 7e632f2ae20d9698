"""An analysis of sensitivity as a page of its own: which operators suffer from which precision, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from farthing.forge.quantize.heads import Join
from farthing.forge.report.findings import METRICS
from farthing.forge.sensitivity.result import Effect, Mixture, Operator, Sensitivity
from farthing.measure import Interval
from farthing.page.dots import Dots, by_row
from farthing.page.frame import plain_page
from farthing.page.parts import listing, notes, pairs
from farthing.page.typeset import (
    MISSING,
    Child,
    Html,
    Scale,
    count,
    duration,
    element,
    joined,
    noted,
    number,
    section,
    whole,
)

SHOWN = 40
BROKEN = "no number"


def render(found: Sensitivity) -> str:
    """The analysis as HTML text that needs and loads nothing else."""
    scale = _scale(found)
    return plain_page(
        f"What each operator of {found.model_name} suffers",
        "Farthing sensitivity",
        sentence(found),
        _picture(found),
        _whole(found, scale),
        _mixture(found.mixture, scale),
        _joins(found.joins),
        _operators(found, scale),
        notes(found.notes),
        _conditions(found),
    )


def sentence(found: Sensitivity) -> str:
    """What matters most, in one or two sentences."""
    first = found.precisions[0]
    worst = found.worst(first)[0]
    effect = worst.effect(first)
    at = decibels(effect.output_sqnr if effect else None)
    text = f"In {first} the operator {worst.name} ({worst.kind}) alone does most harm: {at} at the outputs."
    return f"{text} {in_words(found.mixture)}".rstrip()


def in_words(mixture: Mixture | None) -> str:
    """What a mixture found; empty if none was looked for."""
    if mixture is None:
        return ""
    total = len(mixture.floats) + mixture.quantized
    if not mixture.met:
        return f"int8 does not keep the limit, even with {len(mixture.floats)} of {total} operators in float."
    if not mixture.floats:
        return f"int8 keeps the limit with all {total} operators in 8 bits."
    return f"int8 keeps the limit with {len(mixture.floats)} of {total} operators in float."


def decibels(value: float | None) -> str:
    """A ratio with its unit, or that it is none."""
    return BROKEN if value is None else f"{number(value)}\N{NO-BREAK SPACE}dB"


def _scale(found: Sensitivity) -> Scale:
    values = [one.accuracy.value for one in found.whole if one.accuracy]
    return Scale(
        percent=found.higher_is_better and all(-1 <= value <= 1 for value in values),
        higher=found.higher_is_better,
    )


# The picture ----------------------------------------------------------------------------------------------------


def _picture(found: Sensitivity) -> Html:
    first = found.precisions[0]
    order = found.worst(first)
    order += [one for one in found.operators if one not in order]
    words = (
        "Signal-to-quantization-noise ratio (SQNR) where one operator alone is in that precision and all others are in "
        "float32: to the left is worse, and 6 dB are one bit. The worst operators in "
        f"{first} come first; what turned into NaN or infinity has no dot."
    )
    shown, rest = order[:SHOWN], order[SHOWN:]
    more = count(len(rest), "more operator")
    return section(
        "picture",
        "Noise that single operators add",
        element("p", words, class_="quiet"),
        _dots("At the model's outputs", shown, found.precisions, "output_sqnr"),
        _folded(more, _dots("At the model's outputs", rest, found.precisions, "output_sqnr"))
        if rest
        else None,
        _folded("At their own results", _dots("At their own results", order, found.precisions, "own_sqnr")),
    )


def _dots(title: str, rows: Sequence[Operator], precisions: Sequence[str], field: str) -> Html:
    dots = [
        Dots(name, [getattr(effect, field) if (effect := row.effect(name)) else None for row in rows])
        for name in precisions
    ]
    return by_row(title, "dB", [row.name for row in rows], dots)


def _folded(title: str, content: Html) -> Html:
    return element("details", element("summary", title), content)


# Tables ---------------------------------------------------------------------------------------------------------


def _change(scale: Scale, drop: Interval | None) -> Child:
    """A drop as the change that it is, with its interval; nothing where it was not asked for."""
    if drop is None:
        return MISSING
    change = scale.change(drop)
    return noted(scale.gap(change.value) + scale.points, scale.gap_range(change))


def _whole(found: Sensitivity, scale: Scale) -> Html:
    """The model with every operator in one precision."""
    metric = METRICS.get(found.metric, found.metric)
    rows = [
        [
            one.precision,
            MISSING if one.precision == "float32" else decibels(one.output_sqnr),
            noted(f"{scale.plain(one.accuracy.value)}{scale.unit}", scale.range(one.accuracy))
            if one.accuracy
            else MISSING,
            MISSING if one.precision == "float32" else _change(scale, one.drop),
        ]
        for one in found.whole
    ]
    words = f"The metric is {metric}, on {count(found.subset, 'sample')} of the validation split."
    return section(
        "whole",
        "Every operator in one precision",
        element("p", words, class_="quiet"),
        listing(["Precision", "SQNR at the outputs", "Metric", "Change"], rows),
    )


def _mixture(mixture: Mixture | None, scale: Scale) -> Html:
    if mixture is None:
        return Html("")
    limit = f"{scale.gap(mixture.limit).lstrip('+')}{scale.points}"
    drop = joined([_change(scale, mixture.drop)])
    about = f"on all {count(mixture.samples, 'sample')} of validation; the limit is a loss of {limit}."
    names = [element("li", element("code", name)) for name in mixture.floats]
    text = element("p", in_words(mixture), " ", "Change of the metric: ", drop, " ", about)
    title = element("h3", "They stay in float: the option exclude of quantize.static.v1") if names else None
    return section(
        "mixture", "What should stay in float", text, title, element("ul", *names) if names else None
    )


def _joins(joins: Sequence[Join]) -> Html:
    if not joins:
        return Html("")
    items = [element("li", f"{join}{_advice(join)}") for join in joins]
    return section(
        "joins",
        "Tensors of unlike ranges that meet",
        element("ul", *items),
    )


def _advice(join: Join) -> str:
    if not join.head:
        return ". Layers follow: the ranking says what it costs."
    return f". {count(len(join.head), 'operator')} around it only decode, and should stay in float together."


def _operators(found: Sensitivity, scale: Scale) -> Html:
    """Every operator with its figures, in the order of the graph."""
    words = (
        "In the order of the graph. Above: SQNR at the model's outputs; below: at its own result, and the change of "
        "the metric where it was asked for."
    )
    rows = [
        [
            noted(element("bdi", one.name), one.kind),
            whole(one.parameters),
            *(_effect(one.effect(name), scale) for name in found.precisions),
        ]
        for one in found.operators
    ]
    heads = ["Operator", "Parameters", *found.precisions]
    return section("operators", "All operators", element("p", words, class_="quiet"), listing(heads, rows))


def _effect(effect: Effect | None, scale: Scale) -> Child:
    if effect is None:
        return MISSING
    lines: list[Child] = [element("small", f"own {decibels(effect.own_sqnr)}")]
    if effect.drop is not None:
        change = scale.change(effect.drop)
        lines.append(element("small", f"{scale.gap(change.value)}{scale.points}"))
    return joined([decibels(effect.output_sqnr), *lines], " ")


def _conditions(found: Sensitivity) -> Html:
    rows = [
        ("Machine", found.machine),
        ("Engine", found.engine),
        ("Int8 chosen for", found.target),
        ("Versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())),
        ("Task", f"{found.task_name}, by {METRICS.get(found.metric, found.metric)}"),
        ("Ratios", f"{count(found.samples, 'calibration sample')} each"),
        ("When", f"{found.when}, {duration(found.seconds)} in all" if found.when else ""),
        ("Command", found.command),
    ]
    return section("conditions", "Machine, versions, data", pairs(rows))
