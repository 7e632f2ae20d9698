"""The figures of the main job: what a search returns, how much Farthing adds, how long a search takes.

    python benchmarks/optimize.py [--only CASE] [--json FILE] [--cache DIR] [--quick]

Everything is timed interleaved on this machine and compared by medians; accuracy is that of the saved files on test
data the search never saw. Networks are trained once and kept in the cache directory, as are the searches, so that
a second run only measures. The peer is ``onnxruntime.quantization.quantize_static`` with its default options on the
same float file and the same calibration data, in the same race.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # both before what they speak to is imported
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from farthing import bench
from farthing.apps import demo
from farthing.assets import fetch, find
from farthing.bench import Rule
from farthing.measure import Scenario
from farthing.recipe import Progress
from harness import artefacts, overhead, remeasure, table
from harness.artefacts import PEER, Found, Setting
from harness.table import Bar, Row

HARM = 0.97
DROP_POINTS = 1.0
LISTED = ("resnet18", "resnet8-mnist", "cnn-mnist", "digits")
QUICK = Rule(warmup=2, min_count=20, min_seconds=0.3, max_seconds=5.0)


def resnet18(setting: Setting) -> list[Row]:
    """ResNet-18 at 224 pixels, untrained, on random numbers: time and size only."""
    found = artefacts.searched(setting, "resnet18")
    note = "untrained network, random-normal inputs: timing and size only"
    return [
        faster("resnet18 single stream", setting, found, "single_stream", 2.7, note),
        smaller("resnet18 size", found, 3.8),
    ]


def resnet8(setting: Setting) -> list[Row]:
    """ResNet-8 on real digits, three training seeds."""
    return trained(setting, "resnet8-mnist", offline=1.5, single=1.4, size=3.4)


def cnn(setting: Setting) -> list[Row]:
    """The demo's two-convolution network on real digits, three training seeds."""
    return trained(setting, "cnn-mnist", offline=1.25, single=1.3, size=3.8)


def trained(setting: Setting, name: str, *, offline: float, single: float, size: float) -> list[Row]:
    """Time in batches and alone, size and accuracy of networks trained on real data."""
    found = artefacts.searched(setting, name)
    return [
        faster(f"{name} offline, batch {bench.OFFLINE_BATCH}", setting, found, "offline", offline),
        faster(f"{name} single stream", setting, found, "single_stream", single),
        smaller(f"{name} size", found, size),
        no_worse(f"{name} mean drop", found, 0.5),
    ]


def faster(
    case: str, setting: Setting, found: Sequence[Found], scenario: Scenario, bar: float, note: str = ""
) -> Row:
    """Float time over the winner's: the median network, and the widest bounds of any."""
    speeds = [remeasure.speed(setting, one, scenario) for one in found]
    base = statistics.median(speed.baseline for speed in speeds)
    each = [
        f"{one.name} {speed.ratio}, float {speed.baseline:.4g} ms, quietest tenth {speed.quiet:.4g}"
        for one, speed in zip(found, speeds, strict=True)
    ]
    return Row(
        case=case,
        ours=statistics.median(speed.winner for speed in speeds),
        unit="ms",
        peers={PEER: statistics.median(speed.peer for speed in speeds)},
        limit=remeasure.arithmetic_limit(base),
        ratio=statistics.median(speed.ratio.value for speed in speeds),
        low=min(speed.ratio.low for speed in speeds),
        high=max(speed.ratio.high for speed in speeds),
        bar=Bar(figure="ratio", sign=">=", value=bar),
        note="; ".join(filter(None, [note, f"float over winner, one thread: {'; '.join(each)}"])),
    )


def smaller(case: str, found: Sequence[Found], bar: float) -> Row:
    """Bytes of the float model's files over the winner's: the worst network."""
    worst = min(found, key=lambda one: one.baseline.size_bytes / one.result.winner.size_bytes)
    base, ours = worst.baseline.size_bytes, worst.result.winner.size_bytes
    return Row(
        case=case,
        ours=ours / 1e6,
        unit="MB",
        peers={PEER: worst.peer.size_bytes / 1e6},
        limit=base / 4e6,
        ratio=base / ours,
        bar=Bar(figure="ratio", sign=">=", value=bar),
        note=f"{worst.name}, float {base / 1e6:.4g} MB; the limit is a byte for each weight of four",
    )


def no_worse(case: str, found: Sequence[Found], bar: float) -> Row:
    """Points of top-1 that winners lose on the test split, the mean over networks."""
    lost, theirs = remeasure.mean_drop(found), remeasure.mean_drop(found, which=2)
    each = ", ".join(f"{one.name} {100 * remeasure.drop(one).value:+.2f}" for one in found)
    return Row(
        case=case,
        ours=100 * lost.value,
        unit="points",
        peers={PEER: 100 * theirs.value},
        low=100 * lost.low,
        high=100 * lost.high,
        bar=Bar(figure="ours", sign="<=", value=bar),
        note=f"points of top-1 lost on {len(found[0].task.split('test'))} test samples, paired: {each}",
    )


def no_harm(setting: Setting) -> list[Row]:
    """Nothing returned is slower or worse than what was given, and the search mostly returns something."""
    by_case = {name: artefacts.searched(setting, name) for name in artefacts.PLANS}
    rows = [unharmed(setting, one) for found in by_case.values() for one in found]
    losses = {
        one.name: 100 * remeasure.drop(one).value for n, f in by_case.items() if n != "resnet18" for one in f
    }
    worst = max(losses, key=lambda name: losses[name])
    improved = [name for name in LISTED if all(one.changed for one in by_case[name])]
    return [
        *rows,
        Row(
            case="no-harm accuracy",
            ours=losses[worst],
            unit="points",
            bar=Bar(figure="ours", sign="<=", value=DROP_POINTS),
            note=f"most points of top-1 lost on a test split by any of {len(losses)} returned files: {worst}",
        ),
        Row(
            case="no-harm improved",
            ours=len(improved),
            unit=f"of {len(LISTED)}",
            bar=Bar(figure="ours", sign=">=", value=3),
            note=f"cases that return something other than the file given: {', '.join(improved) or 'none'}",
        ),
    ]


def unharmed(setting: Setting, found: Found) -> Row:
    """Float p50 over the winner's, single stream."""
    speed = remeasure.speed(setting, found, "single_stream")
    threads = "threads of float and winner: {}, {}".format(*found.threads) if max(found.threads) > 1 else ""
    return Row(
        case=f"no-harm {found.name}",
        ours=speed.winner,
        unit="ms",
        peers={PEER: speed.peer},
        limit=speed.baseline,
        ratio=speed.ratio.value,
        low=speed.ratio.low,
        high=speed.ratio.high,
        bar=Bar(figure="low", sign=">=", value=HARM),
        note=threads if found.changed else "the file given is returned: as fast as itself, not raced",
    )


def wrapper(setting: Setting) -> list[Row]:
    """What our engine adds to a raw call of the library."""
    model = artefacts.baseline(setting, "tiny", 0)
    pair = overhead.wrapped_and_raw(model, bench.sample_feeds(model.manifest, 1)[0], setting.rule.min_seconds)
    return [
        Row(
            case="wrapper",
            ours=pair.added.value * 1e6,
            unit="us",
            ratio=pair.ours / pair.plain,
            low=pair.added.low * 1e6,
            high=pair.added.high * 1e6,
            bar=Bar(figure="ours", sign="<=", value=10),
            note=f"added to a raw session.run of {pair.plain * 1e6:.2f} us, a network of 650 parameters",
        )
    ]


def importing(setting: Setting) -> list[Row]:
    """What ``import farthing`` adds to the start of an interpreter, and the package to a disk."""
    programs = {
        "bare": "pass",
        "import": "import farthing",
        "used": "import farthing; farthing.Model, farthing.open_engine",
    }
    taken = overhead.starts(programs, setting.processes)
    pair = overhead.Pair(taken["import"], taken["bare"])
    used = overhead.Pair(taken["used"], taken["bare"])
    files, bytecode = overhead.installed_mb()
    return [
        Row(
            case="import",
            ours=pair.added.value * 1e3,
            unit="ms",
            ratio=pair.ours / pair.plain,
            low=pair.added.low * 1e3,
            high=pair.added.high * 1e3,
            bar=Bar(figure="ours", sign="<=", value=60),
            note=f"added to a bare interpreter's {pair.plain * 1e3:.1f} ms, {setting.processes} starts of each; "
            f"with Model and open_engine used, numpy included, {used.added.value * 1e3:.0f} ms",
        ),
        Row(
            case="import size",
            ours=files,
            unit="MB",
            bar=Bar(figure="ours", sign="<=", value=3),
            note=f"the package's files; the bytecode that Python keeps of them is another {bytecode:.2f} MB",
        ),
    ]


def demo_search(setting: Setting) -> list[Row]:
    """The demo's search: from nothing, and again from its cache."""
    asset = find("mnist-5k")
    fetch(asset, setting.assets)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        (cache / "assets").symlink_to(setting.assets / "assets")
        fresh, again = (searching(Path(folder) / "out", cache) for _ in range(2))
    return [
        Row(case="demo-search", ours=fresh, unit="s", bar=Bar(figure="ours", sign="<=", value=180)),
        Row(
            case="demo-search from cache",
            ours=again,
            unit="s",
            ratio=fresh / again,
            bar=Bar(figure="ours", sign="<=", value=5),
        ),
    ]


def searching(out: Path, cache: Path) -> float:
    """Seconds from the first word of the demo's search to its end, the few predictions after it included."""
    begins: list[float] = []

    def listen(event: Progress) -> None:
        if event.stage not in {"data", "train"} and not begins:
            begins.append(time.perf_counter())

    demo.run(out, cache=cache, listener=listen)
    return time.perf_counter() - begins[0]


CASES: dict[str, Callable[[Setting], list[Row]]] = {
    "resnet18": resnet18,
    "resnet8-mnist": resnet8,
    "cnn-mnist": cnn,
    "no-harm": no_harm,
    "wrapper": wrapper,
    "import": importing,
    "demo-search": demo_search,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a bar is not reached."""
    parser = table.parser("Figures of the main job: search, wrapper, import", list(CASES))
    parser.add_argument("--cache", type=Path, metavar="DIR", help="networks and searches are kept here")
    parser.add_argument(
        "--quick", action="store_true", help="short races: shows that it runs, the figures are rough"
    )
    parsed: argparse.Namespace = parser.parse_args(arguments)
    given = {"cache": parsed.cache.resolve()} if parsed.cache else {}
    given |= {"rule": QUICK, "processes": 5} if parsed.quick else {}
    setting = Setting(**given)
    measures = {name: functools.partial(case, setting) for name, case in CASES.items()}
    return table.run(measures, parsed.only, parsed.json, "short races: rough figures" if parsed.quick else "")


if __name__ == "__main__":
    sys.exit(main())
