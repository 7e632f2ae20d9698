"""What commands print: tables, figures in sensible units, progress for people or as JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from farthing.config import plain
from farthing.measure import Interval, Measurement
from farthing.recipe import Listener, Progress, Summary


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    right = [all(_numeric(row[i]) for row in cells[1:]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        )
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


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
    ]  # fmt: skip
    return "\n".join(f"{name:<14} {text}" for name, text in rows)


def summary(found: Summary) -> str:
    """The table of a search and its verdict."""
    rows = []
    for candidate in found.candidates:
        single = candidate.measurements.get("single_stream")
        offline = candidate.measurements.get("offline")
        rows.append(
            [
                f"{'*' if candidate.number == found.winner else ' '}{candidate.number}",
                candidate.name,
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
    head = ["", "candidate", "threads", "size", "p50", "p90", "speed", "samples/s", found.metric, "verdict"]
    lines = [table(head, rows), "", found.sentence]
    return "\n".join([*lines, *(f"Note: {note}" for note in found.notes)])


@contextmanager
def progress(as_lines_of_json: bool, quiet: bool = False) -> Iterator[Listener]:
    """A listener that shows progress: JSON lines on stdout, a live bar on a terminal, plain lines elsewhere."""
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


class _Live:
    """Events on a live bar; verdicts of candidates scroll by above it."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None)

    def __call__(self, event: Progress) -> None:
        total = event.total or None
        self._bar.update(
            self._task, description=f"{event.stage}: {event.text}"[:100], completed=event.done, total=total
        )
        if event.candidate is not None:
            self._bar.console.print(
                f"{event.candidate.number:>3} {event.text}", highlight=False, markup=False
            )


class _Lines:
    """Events as plain lines, a repeated one at most every ten seconds."""

    def __init__(self) -> None:
        self._last = ""
        self._when = 0.0

    def __call__(self, event: Progress) -> None:
        now = time.monotonic()
        if event.text == self._last and now - self._when < 10:
            return
        self._last, self._when = event.text, now
        print(f"{event.stage}: {event.text}", file=sys.stderr, flush=True)
