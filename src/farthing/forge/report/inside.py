"""What is in the files, in the report: bytes by layer, what runs each node, which engines agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from farthing.anatomy import Anatomy, Cell, Layer, Matrix, Placed
from farthing.forge.report.findings import Findings
from farthing.page.typeset import (
    MISSING,
    Child,
    Html,
    Unit,
    count,
    element,
    joined,
    noted,
    number,
    ratio,
    section,
    size_unit,
)

SHOWN = 10
MANY = 0.1  # the share of zeros that is spoken of: rounding makes some
WORDS = {
    "source": ("its own engine", "kept"),
    "equal": ("equal", "kept"),
    "differs": ("differs", "exceeded"),
    "refused": ("refused", "unknown"),
    "no way": ("no way there", "unknown"),
    "not installed": ("not installed", "unknown"),
    "failed": ("failed", "exceeded"),
}
OVERHEAD = "graph, names and the like"


# Sizes ----------------------------------------------------------------------------------------------------------


def sizes(found: Findings) -> Html:
    """Bytes by layer of baseline and winner, side by side."""
    parts = found.summary.anatomy
    if not any(part.layers for part in parts):
        return Html("")
    unit = size_unit([part.bytes / 1e6 for part in parts])
    tables = [_sizes(found, part, unit) for part in parts]
    return section("sizes", "Where the bytes are", element("div", *tables, class_="columns even"))


def _sizes(found: Findings, part: Anatomy, unit: Unit) -> Html:
    title = _title(found, part)
    rest = max(0, part.bytes - sum(layer.bytes for layer in part.layers))
    layers = [*part.layers, Layer(name=OVERHEAD, operator="", bytes=rest, dtype="")]
    layers.sort(key=lambda layer: -layer.bytes)
    largest = max([1, *(layer.bytes for layer in layers)])
    rows = [_layer(layer, part.bytes, largest, unit) for layer in layers]
    heads = ["Layer", "Stored as", unit.sign, "Share"]
    words = (
        f"{part.format}, {unit(part.bytes / 1e6)} in {count(len(part.layers), 'layer')} with stored numbers"
        f"{_zipped(found, part, unit)}"
    )
    return element(
        "div",
        element("h3", element("bdi", title)),
        element("p", words, class_="quiet"),
        _folded(heads, rows, "layers", "smaller layer"),
    )


def _zipped(found: Findings, part: Anatomy, unit: Unit) -> str:
    """What a zip makes of the files, beside that of the model as given; and the zeros in it, if there are many."""
    if part.zipped_bytes is None:
        return ""
    base = found.summary.anatomy[0].zipped_bytes
    beside = ""
    if base and part.candidate != found.base.number:
        gain = base / part.zipped_bytes
        beside = f", {ratio(gain)}x smaller" if gain >= 1 else f", {ratio(1 / gain)}x larger"
    zeros = part.zeros or 0.0
    many = f"; {zeros:.0%} of the weights are zero" if zeros >= MANY else ""
    return f"; {unit(part.zipped_bytes / 1e6)} as a zip{beside}{many}"


def _layer(layer: Layer, total: int, largest: int, unit: Unit) -> Html:
    meter = element("meter", value=layer.bytes, max=largest, aria_hidden="true")
    share = f"{100 * layer.bytes / max(total, 1):.1f}\N{NO-BREAK SPACE}%"
    name = noted(element("bdi", layer.name), layer.operator)
    cells = [
        layer.dtype or MISSING,
        unit.of(layer.bytes / 1e6),
        joined([meter, element("span", share, class_="share")]),
    ]
    return element("tr", element("th", name, scope="row"), *(element("td", cell) for cell in cells))


def _title(found: Findings, part: Anatomy) -> str:
    return "As given" if part.candidate == found.base.number else found.candidate(part.candidate).name


def _folded(heads: Sequence[str], rows: Sequence[Html], kind: str, word: str) -> Html:
    """A table whose first rows are shown, the others on request."""
    first, rest = rows[:SHOWN], rows[SHOWN:]
    if len(rest) <= 2:
        return _table(heads, rows, kind)
    more = element("summary", count(len(rest), word))
    return joined([_table(heads, first, kind), element("details", more, _table(heads, rest, kind))])


def _table(heads: Sequence[str], rows: Sequence[Html], kind: str) -> Html:
    head = element("tr", *(element("th", text, scope="col") for text in heads))
    shown = element("table", element("thead", head), element("tbody", *rows), class_=f"listing {kind}")
    return element("div", shown, class_="wide", tabindex=0, role="group")


# Placement ------------------------------------------------------------------------------------------------------


def placement(found: Findings) -> Html:
    """The winner node by node, as the engine runs it."""
    parts = found.summary.anatomy
    if not parts:
        return Html("")
    part = parts[-1]
    title = "What runs where"
    notes = [element("p", note, class_="quiet") for note in part.notes]
    if not part.placement:
        return section("placement", title, element("p", "Placement by node: unavailable."), *notes)
    words = (
        f"{_title(found, part)} in {part.engine}, in the order in which it runs: {placed(part.placement)}."
    )
    spent = sum(node.microseconds or 0.0 for node in part.placement)
    rows = [_node(node, spent) for node in part.placement]
    heads = ["Node", "Runs on", "Precision", "µs", "Share", "Output"]
    return section(
        "placement", title, element("p", words), _folded(heads, rows, "nodes", "later node"), *notes
    )


def placed(nodes: Sequence[Placed]) -> str:
    """How many nodes run where, in what, and how long together."""
    where = Counter(node.provider for node in nodes)
    shown = ", ".join(f"{count(amount, 'node')} on {name}" for name, amount in where.most_common())
    kinds = Counter(node.precision for node in nodes if node.precision)
    inside = ", ".join(f"{amount} in {name}" for name, amount in kinds.most_common())
    timed = [node.microseconds for node in nodes if node.microseconds is not None]
    spent = f"; {number(sum(timed))} µs together, with the profiler on" if timed else ""
    return f"{shown}{f' ({inside})' if inside else ''}{spent}"


def _node(node: Placed, total: float) -> Html:
    time = node.microseconds
    share = f"{100 * time / total:.1f}\N{NO-BREAK SPACE}%" if time is not None and total else MISSING
    meter = (
        element("meter", value=round(time, 1), max=round(total, 1), aria_hidden="true")
        if time and total
        else None
    )
    cells: list[Child] = [
        node.provider or MISSING,
        node.precision or MISSING,
        MISSING if time is None else number(time) if time else "0",
        joined([meter, element("span", share, class_="share")]),
        " × ".join(map(str, node.shape)) or MISSING,
    ]
    head = element("th", noted(element("bdi", node.node), node.operator), scope="row")
    return element("tr", head, *(element("td", cell) for cell in cells))


# Portability ----------------------------------------------------------------------------------------------------


def portability(matrix: Matrix | None) -> Html:
    """Models by engines; and why where they are not equal."""
    if matrix is None or not matrix.cells:
        return Html("")
    heads = [
        element("th", "Model", scope="col"),
        *(element("th", name, scope="col") for name in matrix.engines),
    ]
    rows = []
    for model in matrix.models:
        cells = [_cell(matrix.cell(model, engine)) for engine in matrix.engines]
        rows.append(element("tr", element("th", element("bdi", model), scope="row"), *cells))
    shown = element(
        "table", element("thead", element("tr", *heads)), element("tbody", *rows), class_="listing matrix"
    )
    words = (
        f"Outputs of each engine against those of the model's own, on {matrix.inputs}. Relative errors are over the "
        "largest value of the output; how large they may be depends on the precision of the model."
    )
    reasons = [_reason(cell, len(matrix.models) > 1) for cell in matrix.cells if cell.detail]
    return section(
        "portability",
        "Which engines agree",
        element("p", words, class_="quiet"),
        element("div", shown, class_="wide", tabindex=0, role="group"),
        element("dl", *reasons, class_="reasons") if reasons else None,
    )


def _cell(cell: Cell) -> Html:
    word, state = WORDS[cell.verdict]
    note = error(cell) if cell.relative is not None else cell.operator
    return element("td", noted(element("span", word, class_=f"state {state}"), note))


def error(cell: Cell) -> str:
    """The largest errors of a cell, beside what they may be.

    >>> error(Cell(model="m", engine="e", verdict="equal", absolute=2e-6, relative=3e-7, tolerance=1e-4))
    'max error 2e-06, relative 3e-07 (tolerance 1e-04)'
    """
    if cell.relative is None or cell.absolute is None or cell.tolerance is None:
        return ""
    return f"max error {cell.absolute:.1g}, relative {cell.relative:.1g} (tolerance {cell.tolerance:.0e})"


def _reason(cell: Cell, several: bool) -> Html:
    name = f"{cell.model} in {cell.engine}" if several else cell.engine
    term = noted(element("bdi", name), " ".join(filter(None, [cell.version, cell.via])))
    return element("div", element("dt", term), element("dd", cell.detail))
