"""``farthing monitor``: a device watched for a while, what is wrong with it, and what to do."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from farthing.cli import show
from farthing.cli.interrupt import INTERRUPT

if TYPE_CHECKING:
    from farthing.device.watch.advice import Thresholds
    from farthing.device.watch.history import History, Span
    from farthing.device.watch.probes import Reading
    from farthing.device.watch.record import Record

EPILOG = """\
Without --for it goes on until Ctrl-C (or SIGTERM), which ends it early in any case: the summary and the report are
written then.
What the device does not say is "unavailable", and is not judged. Exit code 1: there is a problem.

examples:
  farthing monitor --for 60 --out report.html
  farthing monitor --every 10 --json readings.json --disk /var/lib/models
"""
UNAVAILABLE = "unavailable"
SELDOM_S = 10.0


def monitor_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing monitor``."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--for", dest="seconds", type=float, metavar="SECONDS", help="how long (default: until Ctrl-C)"
    )
    parser.add_argument(
        "--every",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="from one reading to the next (default: %(default)g)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="write a report with plots")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write everything as JSON; without a FILE print it, for programs",
    )
    parser.add_argument(
        "--thresholds", type=Path, metavar="FILE", help="settings file of your own thresholds (see the docs)"
    )
    parser.add_argument(
        "--disk", type=Path, metavar="PATH", help="watch the file system that holds PATH (default: /)"
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="where /proc and /sys are; elsewhere than in / no tools are asked (default: /)",
    )


def monitor(parsed: argparse.Namespace) -> int:
    """Run ``farthing monitor``."""
    from farthing import files
    from farthing.device.watch.record import recorded
    from farthing.device.watch.report import render, verdict

    thresholds, machine = _checked(parsed), _machine(parsed.root)
    started = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
    history = _watched(parsed)
    record = recorded(history, machine, started, parsed.every, thresholds)
    if parsed.out:
        files.write(parsed.out, render(record))
    if parsed.json and parsed.json != "-":
        files.write(Path(parsed.json), show.as_json(record) + "\n")
    if parsed.json == "-":
        print(show.as_json(record))
    else:
        written = [str(path) for path in (parsed.out, parsed.json) if path]
        print("\n".join(_text(record, verdict(record), written)))
    return 1 if any(advice.level == "problem" for advice in record.advice) else 0


def _checked(parsed: argparse.Namespace) -> Thresholds:
    """The thresholds; and before anything is waited for, that nothing asked for is impossible."""
    from farthing.config import read
    from farthing.device.watch.advice import Thresholds
    from farthing.errors import ConfigError, StorageError

    if not 0.05 <= parsed.every <= 86400:
        raise ConfigError(f"--every {parsed.every:g}: from 0.05 seconds to a day")
    if parsed.seconds is not None and not 0 <= parsed.seconds < 1e9:
        raise ConfigError(f"--for {parsed.seconds:g}: 0 seconds or more")
    if not parsed.root.is_dir():
        raise ConfigError(f"--root {parsed.root}: there is no such directory")
    if parsed.disk is not None and not parsed.disk.exists():
        raise ConfigError(f"--disk {parsed.disk}: there is no such path")
    for path in (parsed.out, Path(parsed.json) if parsed.json and parsed.json != "-" else None):
        if path is not None and not path.parent.is_dir():
            raise StorageError(f"{path} cannot be written: {path.parent} is no directory; make it first")
        if path is not None and path.is_dir():
            raise StorageError(f"{path} cannot be written: it is a directory; name a file in it")
    return read(parsed.thresholds, Thresholds) if parsed.thresholds else Thresholds()


def _machine(root: Path) -> str:
    from farthing.measure import machine_name
    from farthing.target import Target

    target = Target.detect(root)
    if target.board or not _is_here(root):
        return target.board or target.cpu or str(root)
    return machine_name(target.cpu, target.cores)


def _is_here(root: Path) -> bool:
    return root.resolve() == Path("/")


def _watched(parsed: argparse.Namespace) -> History:
    """Readings until the time is over, Ctrl-C is pressed or SIGTERM comes, told as they come."""
    from farthing.device.watch.history import History
    from farthing.device.watch.probes import Probes, run
    from farthing.device.watch.record import readings

    history = History()
    probes = Probes(parsed.root, run if _is_here(parsed.root) else None, disk=parsed.disk)
    live = _Live()
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for reading in readings(probes, parsed.every, parsed.seconds):
            INTERRUPT.check()
            history.add(reading)
            live.tell(reading, history)
    except KeyboardInterrupt:
        if not history.count:
            raise
        INTERRUPT.answered()
    finally:
        signal.signal(signal.SIGTERM, former)
    live.end()
    return history


class _Live:
    """Readings on standard error: one line that is written over on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._told = float("-inf")

    def tell(self, reading: Reading, history: History) -> None:
        line = "  ".join(_now(reading, history.kept[0].time_s))
        if self._terminal:
            width = shutil.get_terminal_size().columns
            print(f"\r{line[: width - 1]}\x1b[K", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._told >= SELDOM_S:
            self._told = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal:
            print(file=sys.stderr)


def _now(reading: Reading, begin: float) -> Iterator[str]:
    """A reading in a line; what is unavailable is left out."""
    yield f"{reading.time_s - begin:.0f} s"
    for name, value, unit in (
        ("CPU", reading.cpu_percent, " %"),
        ("GPU", reading.gpu_percent, " %"),
        ("load", reading.load_1min, ""),
        ("memory", reading.memory_percent, " %"),
        ("temperature", reading.temperature_c, " °C"),
        ("power", reading.power_w, " W"),
        ("battery", reading.battery_percent, " %"),
    ):
        if value is not None:
            yield f"{name} {_number(value)}{unit}"
    if reading.throttled is not None:
        yield f"held back: {', '.join(reading.throttling) or 'no'}"


def _text(record: Record, verdict: str, written: Sequence[str]) -> Iterator[str]:
    yield f"{record.machine}, from {record.started}" if record.machine else f"from {record.started}"
    yield ""
    rows = [_row(span) for span in record.spans if span.count]
    yield show.table(["quantity", "unit", "mean", "lowest", "highest", "last"], rows)
    if missing := [span.quantity for span in record.spans if not span.count]:
        yield f"{UNAVAILABLE}: {', '.join(missing)}"
    yield ""
    for advice in record.advice:
        level = advice.level.upper() if advice.level == "problem" else advice.level
        yield f"{level}: {advice.quantity}: {advice.found}"
        yield f"    -> {advice.next}"
    yield verdict
    yield from (f"written: {path}" for path in written)


def _row(span: Span) -> list[str]:
    return [span.quantity, span.unit, *map(_number, (span.mean, span.low, span.high, span.last))]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"
