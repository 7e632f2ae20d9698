"""What commands print: tables, figures in sensible units, progress for people or as JSON lines."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import msgspec

from farthing.cli.interrupt import INTERRUPT
from farthing.config import plain
from farthing.measure import Interval, Measurement
from farthing.page.typeset import duration
from farthing.recipe import Candidate, Listener, Progress, Summary

FEW = 16
"""Candidates that are listed one and all."""
TEXT_ROOM = 16
"""Columns a text is left at least: before it is folded to fewer, other columns go."""


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str] = (), width: int | None = None
) -> str:
    """Columns aligned with spaces; numbers to the right.

    Args:
        head: names of the columns.
        rows: their cells.
        spare: columns that may be left out if the table is too wide, the least needed first.
        width: most columns of text a line may have; texts are folded to fit. None for no limit.
    """
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    for name in spare:
        if width is not None and _least(cells) > width and name in cells[0]:
            place = cells[0].index(name)
            cells = [[*row[:place], *row[place + 1 :]] for row in cells]
    right = [all(map(_numeric, column[1:])) for column in zip(*cells, strict=True)]
    widths = _folded(cells, right, width)
    lines = [line for row in cells[:1] for line in _row_lines(row, widths, right)]
    lines.append("  ".join("-" * size for size in widths))
    lines += [line for row in cells[1:] for line in _row_lines(row, widths, right)]
    return "\n".join(line.rstrip() for line in lines)


def room() -> int | None:
    """Columns of the terminal; None if the output goes elsewhere, where no line is too long."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*cells, strict=True)]


def _least(cells: Sequence[Sequence[str]]) -> int:
    """Columns of a line whose texts are folded as far as they may be."""
    columns = list(zip(*cells, strict=True))
    return sum(_least_of(column) for column in columns) + 2 * (len(columns) - 1)


def _least_of(column: Sequence[str]) -> int:
    widest = max(map(len, column))
    return widest if all(map(_numeric, column[1:])) else min(widest, TEXT_ROOM)


def _folded(cells: Sequence[Sequence[str]], right: Sequence[bool], width: int | None) -> list[int]:
    """Widths of the columns; the widest text gives way until a line fits."""
    widths = _widths(cells)
    while width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        texts = [i for i, size in enumerate(widths) if not right[i] and size > TEXT_ROOM]
        if not texts:
            break
        widths[max(texts, key=lambda i: widths[i])] -= 1
    return widths


def _row_lines(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> Iterator[str]:
    folded = [textwrap.wrap(cell, size) or [""] for cell, size in zip(row, widths, strict=True)]
    for parts in zip_longest(*folded, fillvalue=""):
        aligned = zip(parts, widths, right, strict=True)
        yield "  ".join(c.rjust(size) if flush else c.ljust(size) for c, size, flush in aligned)


def _numeric(cell: str) -> bool:
    return not cell or cell == "-" or cell[0] in "+-.0123456789"


def milliseconds(value: float | None) -> str:
    """A time given in milliseconds, in the unit that reads best."""
    if value is None:
        return "-"
    return f"{value * 1000:.1f} us" if value < 1 else f"{value:.2f} ms"


def megabytes(value: float | None) -> str:
    """A size given in MB of 10^6 bytes, in the unit that reads best."""
    if value is None:
        return "-"
    return f"{value * 1000:.1f} kB" if value < 1 else f"{value:.2f} MB"


def sizes(whole: int, zipped: int | None) -> str:
    """Bytes of a model's files, and of a zip of them if that is known."""
    return megabytes(whole / 1e6) + ("" if zipped is None else f", {megabytes(zipped / 1e6)} as a zip")


def zeros(share: float | None) -> str:
    """The end of a sentence on weights that are zero; empty if their share is not known."""
    return "" if share is None else f", {share:.1%} of the weights are zero"


def interval(value: Interval | None, scale: float = 1.0, digits: int = 2, unit: str = "") -> str:
    """A value with its 95 % interval."""
    if value is None:
        return "-"
    return f"{value.value * scale:.{digits}f}{unit} ({value.low * scale:.{digits}f}..{value.high * scale:.{digits}f})"


def as_json(value: object) -> str:
    """Plain data or a section as one line of JSON."""
    return msgspec.json.encode(plain(value)).decode()


def measurement(found: Measurement) -> str:
    """A measurement in lines, what was not measured named so."""
    bound = f", 95 % bound {milliseconds(found.p90_bound_ms)}" if found.p90_bound_ms else ""
    energy = (
        "unavailable (no meter on this machine)" if found.energy_mj is None else f"{found.energy_mj:.3f} mJ"
    )
    rows = [
        ("scenario", f"{found.scenario}, batch {found.batch}, {found.runs} calls in {found.seconds:.1f} s"),
        ("engine", f"{found.engine} {found.engine_version}, {found.options}"),
        ("machine", found.machine),
        ("latency p50", milliseconds(found.p50_ms)),
        ("latency p90", milliseconds(found.p90_ms) + bound),
        ("latency p99", milliseconds(found.p99_ms)),
        ("throughput", f"{found.throughput:,.0f} samples/s"),
        ("preprocessing", f"{milliseconds(found.prepare_ms)} a sample, not in latency" if found.prepare_ms else "none"),
        ("load", milliseconds(found.load_ms)),
        ("size", megabytes(found.size_mb)),
        ("peak memory", f"{megabytes(found.peak_memory_mb)} ({megabytes(found.memory_mb)} over the bare process)"
         if found.peak_memory_mb else "not measured"),
        ("energy", energy),
        ("temperature", "unavailable (no sensor on this machine)" if found.temperature_c is None
         else f"{found.temperature_c:.1f} degrees Celsius after the last call"),
    ]  # fmt: skip
    return "\n".join(f"{name:<14} {text}" for name, text in rows)


def summary(found: Summary) -> str:
    """The table of a search and its verdict; of many candidates those that went far."""
    rows = []
    shown = _went_far(found.candidates)
    for candidate in shown:
        single = candidate.measurements.get("single_stream")
        offline = candidate.measurements.get("offline")
        rows.append(
            [
                f"{'*' if candidate.number == found.winner else ' '}{candidate.number}",
                candidate.name,
                candidate.engine,
                str(candidate.options.threads) if single else "-",
                megabytes(candidate.figures.size_mb),
                milliseconds(single.p50_ms if single else None),
                milliseconds(single.p90_ms if single else None),
                f"{candidate.speedup.value:.2f}x" if candidate.speedup else "-",
                f"{offline.throughput:,.0f}" if offline else "-",
                f"{candidate.accuracy.value:.4f}" if candidate.accuracy else "-",
                candidate.verdict,
            ]
        )
    head = [
        "",
        "candidate",
        "engine",
        "threads",
        "size",
        "p50",
        "p90",
        "speed",
        "samples/s",
        found.metric,
        "verdict",
    ]
    if len({candidate.engine for candidate in shown}) == 1:
        head, rows = [*head[:2], *head[3:]], [[*row[:2], *row[3:]] for row in rows]
    lines = [table(head, rows, ("samples/s", "p50", "threads"), room())]
    if more := len(found.candidates) - len(shown):
        lines.append(f"({more} more were rejected before the last race: the report lists them)")
    sentences = [found.sentence, *(f"Note: {note}" for note in found.notes)]
    return "\n".join([*lines, "", *map(_fitted, sentences)])


def _fitted(text: str) -> str:
    """A sentence in lines that the terminal does not break inside a word; paths stay whole."""
    width = room()
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) if width else text


def _went_far(candidates: Sequence[Candidate]) -> list[Candidate]:
    """All of a few; of many the baselines, what ran in the last race, and what failed."""
    if len(candidates) <= FEW:
        return [*candidates]
    return [c for c in candidates if c.status != "rejected" or c.over_float is not None]


@contextmanager
def progress(as_lines_of_json: bool, quiet: bool = False) -> Iterator[Listener]:
    """A listener that shows progress: JSON lines on stdout, a live bar on a terminal, plain lines elsewhere.

    Each event is also an occasion to stop, should Ctrl-C have been pressed and swallowed somewhere.
    """
    with _shown(as_lines_of_json, quiet) as listener:

        def tell(event: Progress) -> None:
            INTERRUPT.check()
            listener(event)

        yield tell


@contextmanager
def _shown(as_lines_of_json: bool, quiet: bool) -> Iterator[Listener]:
    if as_lines_of_json:
        yield lambda event: print(json.dumps({"event": "progress", **plain(event)}), flush=True)
    elif quiet:
        yield lambda event: None
    elif sys.stderr.isatty() and (bar := _rich_bar()) is not None:
        with bar:
            yield _Live(bar)
    else:
        yield _Lines()


def _rich_bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    except ImportError:
        return None
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


class _Pace:
    """How long a stage that counts will take yet, from how long it took so far."""

    def __init__(self) -> None:
        self._about = ("", "")
        self._begun = (0.0, 0)

    def left(self, event: Progress) -> str:
        """Words on the time left; none where nothing is known or there is next to none."""
        now = time.monotonic()
        if (event.stage, event.text) != self._about or event.done < self._begun[1]:
            self._about, self._begun = (event.stage, event.text), (now, event.done)
        start, first = self._begun
        if not event.total or event.done <= first:
            return ""
        seconds = (event.total - event.done) * (now - start) / (event.done - first)
        return f", {event.done} of {event.total}, {duration(seconds)} left" if seconds >= 1 else ""


class _Live:
    """Events on a live bar; what came of things scrolls by above it."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None)
        self._pace = _Pace()

    def __call__(self, event: Progress) -> None:
        total = event.total or None
        text = f"{event.stage}: {event.text}{self._pace.left(event)}"
        self._bar.update(self._task, description=text[:100], completed=event.done, total=total)
        if event.candidate is not None:
            self._stay(f"{event.candidate.number:>3} {event.text}")
        elif event.outcome:
            self._stay(event.text)

    def _stay(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False)


class _Lines:
    """Events as plain lines, a repeated one at most every ten seconds."""

    def __init__(self) -> None:
        self._last = ""
        self._when = 0.0
        self._pace = _Pace()

    def __call__(self, event: Progress) -> None:
        now, left = time.monotonic(), self._pace.left(event)
        if event.text == self._last and now - self._when < 10:
            return
        self._last, self._when = event.text, now
        print(f"{event.stage}: {event.text}{left}", file=sys.stderr, flush=True)
