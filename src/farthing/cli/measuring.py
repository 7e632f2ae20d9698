"""``farthing bench``, ``farthing evaluate`` and ``farthing predict``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from farthing.cli import options, show
from farthing.options import EngineOptions, make_options


def _engine_options(parsed: argparse.Namespace) -> EngineOptions:
    return make_options(parsed.threads, parsed.spin, parsed.provider)


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing bench``."""
    parser.epilog = "example: farthing bench best --task mnist-5k --scenario offline --batch 32"
    parser.add_argument("model", help="model directory, zip, output of a search, or ONNX file")
    parser.add_argument(
        "--task", metavar="T", help="run on its samples; without one on random numbers (timing only)"
    )
    parser.add_argument(
        "--scenario",
        choices=["single-stream", "offline"],
        default="single-stream",
        help="MLPerf scenario (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=int, default=32, metavar="N", help="samples a call, offline (default: %(default)s)"
    )
    parser.add_argument(
        "--min-count", type=int, default=200, metavar="N", help="least timed calls (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="least seconds (default: %(default)s)"
    )
    parser.add_argument(
        "--no-memory", action="store_true", help="skip the child process that measures peak memory"
    )
    parser.add_argument(
        "--on",
        default="this",
        metavar="NAME",
        help="where: a board of `farthing target` (default: this machine)",
    )
    options.add_engine(parser)
    options.add_json(parser)


def bench(parsed: argparse.Namespace) -> int:
    """Run ``farthing bench``."""
    from farthing.bench import Rule
    from farthing.bench import bench as measure
    from farthing.bench.remote import find_machine
    from farthing.cli.boards import tell
    from farthing.errors import ConfigError
    from farthing.recipe import Progress

    if parsed.batch < 1 or parsed.min_count < 1 or not 0 <= parsed.seconds < 3600:
        raise ConfigError("--batch and --min-count are at least 1, --seconds from 0 to 3600")
    model = options.open_model(parsed.model)
    task = options.open_task(parsed.task) if parsed.task else None
    with (
        find_machine(parsed.on, options.boards_directory(), tell) as machine,
        show.progress(False, quiet=parsed.json) as listener,
    ):
        found = measure(
            model,
            scenario=parsed.scenario.replace("-", "_"),
            engine=parsed.engine,
            options=_engine_options(parsed),
            task=task,
            batch=parsed.batch,
            rule=Rule(
                min_count=parsed.min_count,
                min_seconds=parsed.seconds,
                max_seconds=max(60.0, 4 * parsed.seconds),
            ),
            memory=not parsed.no_memory,
            machine=machine,
            tick=lambda done, total: listener(Progress(stage="bench", text="timing", done=done, total=total)),
        )
    print(show.as_json(found) if parsed.json else show.measurement(found))
    if task is None and not parsed.json:
        print("inputs         random numbers: fit for timing, not for accuracy (give --task for real ones)")
    return 0


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing evaluate``."""
    parser.epilog = "example: farthing evaluate best --task work/task.yaml --split test"
    parser.add_argument("model", help="model directory, zip, output of a search, or ONNX file")
    parser.add_argument(
        "--task", required=True, metavar="T", help="built-in name, task file, or module:function"
    )
    parser.add_argument(
        "--split",
        choices=["train", "calibration", "validation", "test"],
        default="validation",
        help="(default: %(default)s)",
    )
    parser.add_argument("--reference", metavar="MODEL", help="the float model, for agreement and cosine")
    options.add_engine(parser)
    options.add_json(parser)


def evaluate(parsed: argparse.Namespace) -> int:
    """Run ``farthing evaluate``."""
    from farthing.bench import evaluate as score
    from farthing.errors import TaskError
    from farthing.recipe import Progress

    model, task = options.open_model(parsed.model), options.open_task(parsed.task)
    if task.metric.needs == "reference" and not parsed.reference:
        raise TaskError(
            f"metric {task.metric.name} compares with the float model: name that with --reference MODEL"
        )
    with show.progress(False, quiet=parsed.json) as listener:
        found, _ = score(
            model,
            task,
            parsed.split,
            engine=parsed.engine,
            options=_engine_options(parsed),
            reference=options.open_model(parsed.reference) if parsed.reference else None,
            tick=lambda done, total: listener(
                Progress(stage="evaluate", text="running", done=done, total=total)
            ),
        )
    samples = len(task.split(parsed.split))
    if parsed.json:
        facts = {"metric": task.metric.name, "split": parsed.split, "samples": samples, "model": model.digest}
        print(show.as_json({**facts, "value": found.value, "low": found.low, "high": found.high}))
    else:
        print(
            f"{task.metric.name} {show.interval(found, digits=4)} on {samples} {parsed.split} samples of {task.name}"
        )
    return 0


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing predict``."""
    parser.epilog = "example: farthing predict best photo.jpg another.png --top 3"
    parser.add_argument("model", help="model directory, zip, or output of a search")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE",
        help="pictures, or .npy arrays for a model that takes no pictures",
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="K", help="labels to show (default: %(default)s)"
    )
    parser.add_argument(
        "--ignore-requires", action="store_true", help="run although this CPU lacks what the model requires"
    )
    options.add_engine(parser)
    options.add_json(parser)


def predict(parsed: argparse.Namespace) -> int:
    """Run ``farthing predict``."""
    from farthing.device.predict import load

    with load(
        options.existing(parsed.model),
        engine=parsed.engine,
        options=_engine_options(parsed),
        ignore_requires=parsed.ignore_requires,
    ) as predictor:
        for name in parsed.inputs:
            _print_prediction(name, predictor(Path(name), top=parsed.top), parsed.json)
    return 0


def _print_prediction(name: str, found: Any, as_json: bool) -> None:
    answer = _plain_answer(found)
    if as_json:
        print(json.dumps({"input": name, **answer}), flush=True)
    elif "boxes" in answer:
        objects = zip(answer["labels"], answer["scores"], answer["boxes"], strict=True)
        rows = [
            f"\n  {label} {score:.3f} at {[round(edge, 1) for edge in box]}" for label, score, box in objects
        ]
        print(f"{name}: {len(rows)} found{''.join(rows)}", flush=True)
    elif "labels" in answer:
        ranked = zip(answer["labels"], answer["scores"], strict=True)
        print(f"{name}: {', '.join(f'{label} {score:.3f}' for label, score in ranked)}", flush=True)
    else:
        print(f"{name}: {json.dumps(answer['outputs'])}", flush=True)


def _plain_answer(found: Any) -> dict[str, Any]:
    """A Prediction, Detections or dict of raw outputs as plain data."""
    from farthing.ops.decode import Detections, Prediction

    if isinstance(found, Prediction):
        return {"labels": list(found.labels), "scores": list(found.scores)}
    if isinstance(found, Detections):
        labels = [found.label(i) for i in range(len(found))]
        return {"labels": labels, "scores": found.scores.tolist(), "boxes": found.boxes.tolist()}
    return {"outputs": {key: array.tolist() for key, array in found.items()}}
