"""``farthing evaluate`` and ``farthing predict``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from farthing.cli import options, show
from farthing.options import EngineOptions, make_options


def _engine_options(parsed: argparse.Namespace) -> EngineOptions:
    options.mind_cores([parsed.threads])
    return make_options(parsed.threads, parsed.spin, parsed.provider, parsed.precision)


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing evaluate``."""
    parser.epilog = "example: farthing evaluate best --task work/task.yaml --split test"
    parser.add_argument("model", help="model directory, zip, output of a search, or model file")
    options.add_task(parser)
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

    task = options.open_task(parsed.task, parsed.model)
    model = options.open_model(parsed.model, task)
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
            reference=options.open_model(parsed.reference, task) if parsed.reference else None,
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
