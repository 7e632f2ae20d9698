"""The table that every benchmark prints: what was measured, beside its peers, its limit and the bar it must reach."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from farthing import files
from farthing.config import Section, plain
from farthing.errors import FarthingError
from farthing.measure import machine_name
from farthing.target import Target

QUIET = 0.15
HEADER = ("case", "ours", "peers", "limit", "ratio", "bar")


class Bar(Section, frozen=True, kw_only=True):
    """What a row must reach: one of its figures, at least or at most so much."""

    figure: Literal["ours", "ratio", "low"]
    sign: Literal[">=", "<="]
    value: float

    def __str__(self) -> str:
        return f"{self.figure} {self.sign} {self.value:g}"

    def held_by(self, figure: float | None) -> bool:
        """Whether the figure is there and reaches it."""
        if figure is None:
            return False
        return figure >= self.value if self.sign == ">=" else figure <= self.value


class Row(Section, frozen=True, kw_only=True):
    """One line of the table.

    Attributes:
        case: what was measured.
        ours: our figure, in ``unit``; None if it could not be taken.
        peers: name of another tool -> the same figure of it, taken in the same race.
        limit: what bounds ours, in the same unit: the raw call, the bare interpreter, a quarter of the float model.
        ratio: the figure most bars are about; the note says of what to what.
        low, high: 95 % interval of the ratio (of ``ours`` where the bar is on that).
        bar: what it must reach.
        note: how the figure came about.
    """

    case: str
    ours: float | None
    unit: str = ""
    peers: dict[str, float] = {}
    limit: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    bar: Bar
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the bar is reached; a figure that could not be taken reaches none."""
        return self.bar.held_by({"ours": self.ours, "ratio": self.ratio, "low": self.low}[self.bar.figure])

    def cells(self) -> tuple[str, ...]:
        """Text for each column of the table."""
        peers = ", ".join(f"{name} {quantity(value, self.unit)}" for name, value in self.peers.items())
        spread = (
            f" ({self.low:.4g}..{self.high:.4g})" if self.low is not None and self.high is not None else ""
        )
        on_ours = self.bar.figure == "ours"
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}x"
        return (
            self.case,
            quantity(self.ours, self.unit) + (spread if on_ours else ""),
            peers or "-",
            quantity(self.limit, self.unit),
            ratio + ("" if on_ours else spread),
            f"{self.bar}: {'holds' if self.holds else 'SHORT'}",
        )


def quantity(value: float | None, unit: str) -> str:
    """A figure with its unit, four digits; a dash for none."""
    return "-" if value is None else f"{value:.4g} {unit}".strip()


def failed(case: str, error: Exception) -> Row:
    """The row of a case that could not be run: short."""
    bar = Bar(figure="ours", sign=">=", value=0)
    return Row(case=case, ours=None, bar=bar, note=f"{type(error).__name__}: {error}")


def show(rows: Sequence[Row]) -> str:
    """The table as text, its notes below it."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    table.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"{row.case}: {row.note}" for row in rows if row.note]
    return "\n".join([*table, "", *notes])


def verdict(rows: Sequence[Row]) -> str:
    """The last line: how many bars hold, and which fall short."""
    short = [row.case for row in rows if not row.holds]
    return f"{len(rows) - len(short)} of {len(rows)} bars hold" + (
        f"; short: {', '.join(short)}" if short else ""
    )


def parser(description: str, cases: Sequence[str]) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    names = f"one of {', '.join(cases)}; may be given again"
    made.add_argument("--only", action="append", choices=cases, metavar="CASE", help=names)
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    return made


def run(
    cases: Mapping[str, Callable[[], list[Row]]],
    only: Sequence[str] | None,
    place: Path | None,
    remark: str = "",
) -> int:
    """Run cases one after another, print the table and its last line, write the JSON; 1 if a bar is not reached.

    Args:
        cases: name -> what measures its rows.
        only: names of the cases to run; all if empty.
        place: of the JSON file, if one is wanted.
        remark: what else a reader of the figures must know.
    """
    started, before = time.perf_counter(), os.getloadavg()[0]
    rows: list[Row] = []
    busy: dict[str, float] = {}
    for name in [name for name in cases if not only or name in only]:
        print(f"# {name} ...", flush=True)
        others = Others()
        try:
            rows += cases[name]()
        except FarthingError as error:
            rows.append(failed(name, error))
        busy[name] = others.cores()
    target = Target.detect()
    facts: dict[str, Any] = {
        "machine": machine_name(target.cpu, target.cores),
        "load_before": before,
        "load_after": os.getloadavg()[0],
        "others_cores": busy,
        "seconds": time.perf_counter() - started,
        "remark": remark,
    }
    print(show(rows))
    print(surroundings(facts))
    if place is not None:
        listed = [{**plain(row), "bar": str(row.bar), "holds": row.holds} for row in rows]
        files.write(place, json.dumps({**facts, "rows": listed}, indent=1).encode() + b"\n")
    print(verdict(rows))
    return 0 if all(row.holds for row in rows) else 1


def surroundings(facts: Mapping[str, Any]) -> str:
    """Where, how long and in what company the figures were taken, and a warning where the company was too much."""
    told = (
        f"measured on {facts['machine']} in {facts['seconds']:.0f} s; load {facts['load_before']:.2f} before, "
        f"{facts['load_after']:.2f} after"
    )
    disturbed = [f"{name} {cores:.1f}" for name, cores in facts["others_cores"].items() if cores > QUIET]
    if disturbed:
        told += (
            f"\nDISTURBED: other programs used processors meanwhile ({', '.join(disturbed)} on average), which slows "
            "float more than int8: measure again on a quiet machine"
        )
    return told + (f"\n{facts['remark']}" if facts["remark"] else "")


class Others:
    """Processors that other programs use on average, from its making on (Linux: ``/proc/stat``, ``times``)."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._before = self._seconds()

    def cores(self) -> float:
        """Cores since then; children of ours that have ended are not others."""
        return max(0.0, (self._seconds() - self._before) / (time.perf_counter() - self._start))

    @staticmethod
    def _seconds() -> float:
        own = os.times()
        user, nice, system, _, _, interrupt, soft, steal = map(
            int, Path("/proc/stat").read_text().split()[1:9]
        )
        busy = user + nice + system + interrupt + soft + steal
        return (
            busy / os.sysconf("SC_CLK_TCK") - own.user - own.system - own.children_user - own.children_system
        )
