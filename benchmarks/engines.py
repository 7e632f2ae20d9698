"""The figures over engines: what a search over ONNX Runtime, OpenVINO and LiteRT returns, beside what other tools make.

    python benchmarks/engines.py [--only CASE] [--json FILE] [--cache DIR] [--quick] [--litert-torch PYTHON]

Everything is timed interleaved on this machine at one thread and compared by medians. A winner is compared with the
fastest float32 model of any engine; the note gives the ratio to the float32 model of its own engine. Peers are each
engine's float32 model, and the default calls of ``onnxruntime.quantization``, ``nncf``, ai-edge-quantizer and torchao's
PT2E on the same float model with the same calibration samples. No candidate of ours is a peer's file, or made by NNCF.
Networks and searches are kept in the cache directory, so that a second run only measures.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # both before what they speak to is imported
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import torch

from farthing.bench import Rule
from farthing.forge import nets
from farthing.forge.convert import convert
from farthing.forge.fuse import Fuse
from farthing.forge.quantize.static import StaticInt8
from farthing.forge.tflite.export import ExportTflite
from farthing.measure import Interval
from farthing.metrics import AGREEMENT, MEAN_COSINE
from farthing.model import Manifest, Preprocess
from farthing.options import EngineOptions
from farthing.target import Target
from harness import artefacts, fleet, peers, remeasure, table
from harness.artefacts import Setting
from harness.fleet import Searched
from harness.table import Bar, Row

HARM = 0.97
QUICK = Rule(warmup=2, min_count=20, min_seconds=0.3, max_seconds=5.0)
TWINS = ("resnet8-mnist", "cnn-mnist", "efficientnet-lite0")
HARMLESS = ("efficientnet-lite0", "centerface", "cnn-mnist", "digits", "watch", "shuttle")
ONE = EngineOptions()


def resnet18(setting: Setting) -> list[Row]:
    """ResNet-18 at 224 pixels, untrained: time and size only."""
    found = fleet.searched(setting, "resnet18")
    return [
        faster(setting, found, 3.0, "untrained network, random-normal inputs: timing and size only"),
        smaller(found, 3.8),
    ]


def efficientnet(setting: Setting) -> list[Row]:
    """EfficientNet-lite0 with its ImageNet weights on 1,000 views of 20 photos."""
    found = fleet.searched(setting, "efficientnet-lite0")
    views = fleet.everything(found, "validation", "test")
    won = found.winner
    base = fleet.outputs(views, found.baseline, "onnxruntime")
    ours = fleet.outputs(views, found.result.winner, won.engine, won.options)
    agreed = fleet.compared(AGREEMENT, views, base, ours)
    alike = fleet.compared(MEAN_COSINE, views, base, ours)
    note = (
        f"{len(views.split('test'))} views, interval clustered by photo; the lower bound must reach the bar"
    )
    return [
        faster(setting, found, 1.8),
        smaller(found, 3.5),
        _bound("efficientnet-lite0 agreement", agreed, 100, "%", 95, note),
        _bound("efficientnet-lite0 logit cosine", alike, 1, "", 0.99, note),
    ]


def _bound(case: str, found: Interval, scale: float, unit: str, bar: float, note: str) -> Row:
    return Row(
        case=case,
        ours=scale * found.value,
        unit=unit,
        low=scale * found.low,
        high=scale * found.high,
        bar=Bar(figure="low", sign=">=", value=bar),
        note=note,
    )


def faster(setting: Setting, found: Searched, bar: float, remark: str = "") -> Row:
    """The winner against the fastest float32 model of any engine, in one race."""
    floats = found.floats()
    names = list(floats)
    entrants = [(floats[name], name, ONE) for name in names]
    won = found.winner
    timed = remeasure.race(
        found.task, [*entrants, (found.result.winner, won.engine, won.options)], setting.rule
    )
    medians = {name: float(np.median(one.calls)) * 1000 for name, one in zip(names, timed[:-1], strict=True)}
    best = min(medians, key=lambda name: medians[name])
    over = timed[-1].over(timed[names.index(best)])
    own = timed[-1].over(timed[names.index(won.engine)]) if won.engine in names else None
    same = f"; over {won.engine}'s own float32 {own}" if own else ""
    return Row(
        case=f"{found.name} single stream",
        ours=float(np.median(timed[-1].calls)) * 1000,
        unit="ms",
        peers={f"{name} float32": value for name, value in medians.items()},
        ratio=over.value,
        low=over.low,
        high=over.high,
        bar=Bar(figure="ratio", sign=">=", value=bar),
        note=f"{won.name} in {won.engine} over {best} float32{same}{'; ' + remark if remark else ''}",
    )


def smaller(found: Searched, bar: float) -> Row:
    """Bytes of the float model's files over the winner's."""
    base, ours = found.baseline.size_bytes, found.result.winner.size_bytes
    return Row(
        case=f"{found.name} size",
        ours=ours / 1e6,
        unit="MB",
        limit=base / 4e6,
        ratio=base / ours,
        bar=Bar(figure="ratio", sign=">=", value=bar),
        note=f"float {base / 1e6:.4g} MB; the limit is a byte for each weight of four",
    )


def writer(setting: Setting, python: str) -> list[Row]:
    """Our TFLite file of a network beside the one of litert-torch: answers, speed, transposes."""
    torch.manual_seed(0)
    net = nets.efficientnet_lite0()
    nets.settle(net, (2, 3, 224, 224))
    plain = Preprocess(colour="RGB", scale=1 / 255, mean=(0.5,), std=(0.5,))
    facts = Manifest(name="lite0", format="onnx", inputs=(), outputs=(), preprocess=plain)
    given = convert(net.eval(), name="lite0", example="1x3x224x224", manifest=facts).model
    target, task = Target.detect(), artefacts.data(setting, "resnet18")
    ours = ExportTflite()(Fuse()(given, target, task), target, task)
    theirs = fleet.litert_torch("efficientnet_lite0", net, given.manifest, python)
    picture = np.random.default_rng(0).standard_normal((1, 224, 224, 3), np.float32)
    answers, runners = [], []
    for model in (ours, theirs):
        engine = fleet.open_engine(model, "litert")
        feeds = [{model.manifest.inputs[0].name: picture}]
        answers.append(next(iter(engine.run(feeds[0]).values())))
        runners.append((engine, feeds))
    timed = fleet.bench.race(runners, setting.rule)
    gap = float(np.abs(answers[0] - answers[1]).max() / np.abs(answers[1]).max())
    over = timed[1].over(timed[0])  # our time over theirs
    return [
        Row(
            case="writer outputs",
            ours=gap,
            bar=Bar(figure="ours", sign="<=", value=1e-5),
            note="largest difference from litert-torch's file, relative to its largest output",
        ),
        Row(
            case="writer latency",
            ours=float(np.median(timed[0].calls)) * 1000,
            unit="ms",
            peers={"litert-torch": float(np.median(timed[1].calls)) * 1000},
            ratio=over.value,
            low=over.low,
            high=over.high,
            bar=Bar(figure="ratio", sign="<=", value=1.03),
            note="EfficientNet-lite0 at 224 px in LiteRT, our time over theirs",
        ),
        Row(
            case="writer transposes",
            ours=fleet.transposes(ours),
            peers={"litert-torch": fleet.transposes(theirs)},
            bar=Bar(figure="ours", sign="<=", value=0),
        ),
    ]


def twins(setting: Setting) -> list[Row]:
    """The same QDQ file in ONNX Runtime and as TFLite in LiteRT."""
    return [_twin(setting, name) for name in TWINS]


def _twin(setting: Setting, name: str) -> Row:
    found = fleet.searched(setting, name)
    target = Target.detect()
    quantized = StaticInt8()(Fuse()(found.baseline, target, found.task), target, found.task)
    twin = ExportTflite()(quantized, target, found.task)
    views = fleet.everything(found, "validation", "test")
    one, other = fleet.outputs(views, quantized, "onnxruntime"), fleet.outputs(views, twin, "litert")
    agreed = fleet.compared(AGREEMENT, views, one, other)
    return Row(
        case=f"twin {name}",
        ours=100 * agreed.value,
        unit="%",
        low=100 * agreed.low,
        high=100 * agreed.high,
        bar=Bar(figure="ours", sign=">=", value=99),
        note=f"first choices that agree on {len(views.split('test'))} samples",
    )


def no_harm(setting: Setting) -> list[Row]:
    """Nothing returned for any task in any engine is slower or worse than what was given."""
    rows = []
    for name in HARMLESS:
        for engines in (fleet.ENGINES, *((engine,) for engine in fleet.ENGINES)):
            rows += _unharmed(setting, name, engines)
    return rows


def _unharmed(setting: Setting, name: str, engines: tuple[str, ...]) -> list[Row]:
    label = f"no-harm {name}, {'all engines' if len(engines) > 1 else engines[0]}"
    found = fleet.searched(setting, name, engines)
    first, won = found.result.candidates[0], found.winner
    bar = Bar(figure="low", sign=">=", value=HARM)
    if not found.changed:
        return [Row(case=label, ours=None, ratio=1.0, low=1.0, high=1.0, bar=bar, note="returned as given")]
    pair = [
        (found.baseline, first.engine, first.options),
        (found.result.winner, won.engine, won.options),
    ]
    timed = remeasure.race(found.task, pair, setting.rule)
    over = timed[1].over(timed[0])
    test = found.result.summary.test
    lost = f"; {found.task.metric.name} {test.drop} lost on the test split" if test else ""
    met = "" if found.result.met else "; BUDGET NOT MET"
    return [
        Row(
            case=label,
            ours=float(np.median(timed[1].calls)) * 1000,
            unit="ms",
            limit=float(np.median(timed[0].calls)) * 1000,
            ratio=over.value,
            low=over.low,
            high=over.high,
            bar=bar,
            note=f"{won.name} in {won.engine}{lost}{met}",
        )
    ]


CASES: dict[str, Callable[[Setting], list[Row]]] = {
    "resnet18": resnet18,
    "efficientnet-lite0": efficientnet,
    "twins": twins,
    "peers": peers.rows,
    "no-harm": no_harm,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a bar is not reached."""
    parser = table.parser(
        "Figures over engines: searches, twins, peers, our TFLite writer", [*CASES, "writer"]
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="networks and searches are kept here")
    parser.add_argument("--quick", action="store_true", help="short races: rough figures")
    parser.add_argument(
        "--litert-torch",
        default=sys.executable,
        metavar="PYTHON",
        help="an interpreter that has litert-torch 0.10, for the case `writer` (default: this one)",
    )
    parsed: argparse.Namespace = parser.parse_args(arguments)
    given = {"cache": parsed.cache.resolve()} if parsed.cache else {}
    given |= {"rule": QUICK, "processes": 5} if parsed.quick else {}
    setting = Setting(**given)
    measures: dict[str, Callable[[], list[Row]]] = {
        name: functools.partial(case, setting) for name, case in CASES.items()
    }
    measures["writer"] = functools.partial(writer, setting, parsed.litert_torch)
    return table.run(measures, parsed.only, parsed.json, "short races: rough figures" if parsed.quick else "")


if __name__ == "__main__":
    sys.exit(main())
