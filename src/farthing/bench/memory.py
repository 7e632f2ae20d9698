"""Peak memory of a model, in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from farthing.bench.feeding import sample_feeds
from farthing.config import convert, plain
from farthing.engines.base import open_engine
from farthing.errors import EngineError, MeasurementError
from farthing.model import Model
from farthing.options import EngineOptions

CHILD_SECONDS = 300


def peak_memory(model: Model, engine: str, options: EngineOptions) -> tuple[float, float]:
    """Peak resident memory of a fresh process that loads a model and runs it, batch 1.

    Returns:
        (peak, peak less the bare process with numpy and Farthing loaded), MB of 10^6 bytes.

    Raises:
        EngineError: the child process was killed by a signal: the engine crashed, or memory ran out.
        MeasurementError: the manifest leaves sizes open, or it failed otherwise; the message ends with what it said.
    """
    sample_feeds(model.manifest, 1)
    order = json.dumps([str(model.path), engine, plain(options)])
    # The working directory may be a stranger's: no module comes from it.
    path = [place for place in sys.path if place not in {"", "."}]
    program = f"import sys; sys.path[:] = {path!r}; from farthing.bench.memory import child; child()"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, order],
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"the process that measures memory took over {CHILD_SECONDS} s") from error
    if done.returncode < 0:
        raise EngineError(
            f"a process that only loads and runs it ended with {signal_name(-done.returncode)}: the engine crashed, "
            "or memory ran out"
        )
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2] or "it said nothing"
        raise MeasurementError(f"the process that measures memory ended with {done.returncode}: {said}")
    peak, bare = json.loads(done.stdout.rpartition("\n")[2])
    return peak, peak - bare


def signal_name(number: int) -> str:
    """The name of a signal, as in ``SIGSEGV``; its number if it has none."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _high_water_mb() -> float:
    """Peak resident memory of this process: VmHWM, because ru_maxrss survives exec and would count the parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise MeasurementError("the kernel does not say VmHWM in /proc/self/status")


def child() -> None:
    """What the child process of `peak_memory` does: run a model, write [peak, bare] to its standard output."""
    path, engine, settings = json.loads(sys.argv[1])
    bare = _high_water_mb()
    model = Model.open(path)
    options = convert(settings, EngineOptions, "options")
    with open_engine(model, engine, options) as opened:
        sample = sample_feeds(model.manifest, 1)[0]
        for _ in range(3):
            opened.run(sample)
    sys.stdout.write("\n" + json.dumps([_high_water_mb(), bare]))
