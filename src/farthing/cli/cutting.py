"""``farthing cut``: a model in parts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farthing.cli import options, show
from farthing.config import plain
from farthing.errors import ConfigError
from farthing.model import Model

if TYPE_CHECKING:
    from farthing.bundle import Exits
    from farthing.forge.cut import Cut

EPILOG = """\
Parts run one after another (see `farthing.device.serving.parts.shard`); only what later parts need crosses a cut.
--at A B cuts twice, after what A needs and after what B needs; --at A,B once, after both.

examples: farthing cut model --parts 2 --out parts
          farthing cut model --memory 16 --out parts
          farthing cut model --exits early middle --threshold 0.9 --threshold 0.7 --out exits
"""


def cut_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing cut``."""
    parser.epilog = EPILOG
    parser.add_argument("model", help="model directory, zip, output of a search, or an ONNX file")
    parser.add_argument(
        "--parts", type=int, metavar="N", help="so many parts that take about the same time, measured"
    )
    parser.add_argument("--at", nargs="+", default=[], metavar="TENSOR", help="cut after these tensors")
    parser.add_argument(
        "--memory",
        type=float,
        metavar="MB",
        help="most of weights and live tensors that a part may take, computed",
    )
    parser.add_argument("--exact", action="store_true", help="cut only where every bit of the answer stays")
    parser.add_argument(
        "--exits", nargs="+", default=[], metavar="OUTPUT",
        help="make early exits of a model's outputs: name all but the last one, in order",
    )  # fmt: skip
    parser.add_argument("--measure", choices=["confidence", "entropy"], default="confidence",
                        help="how sure an exit is (default: %(default)s)")  # fmt: skip
    parser.add_argument("--threshold", type=float, action="append", default=[], metavar="X",
                        help="how sure an exit must be, from the first on (default: 0.95, 0.8, 0.6)")  # fmt: skip
    parser.add_argument("--task", metavar="T", help="run it on a sample of this task, not on random numbers")
    parser.add_argument("--out", required=True, metavar="DIR", help="bundle directory to write")
    options.add_engine(parser)
    options.add_json(parser)


def cut(parsed: argparse.Namespace) -> int:
    """Run ``farthing cut``."""
    from farthing.forge.cut import cut as into_parts
    from farthing.options import make_options

    if parsed.exits and parsed.at:
        raise ConfigError("give either --at or --exits")
    model = options.open_model(parsed.model)
    made = into_parts(
        model,
        Path(parsed.out),
        parts=parsed.parts,
        at=parsed.exits or [name.split(",") for name in parsed.at],
        memory_mb=parsed.memory,
        exact=parsed.exact,
        exits=_exits(parsed, model),
        feeds=_sample(parsed.task, model),
        engine=parsed.engine or "onnxruntime",
        options=make_options(parsed.threads, parsed.spin, parsed.provider, parsed.precision),
    )
    print(_json(made) if parsed.json else _text(made))
    return 0


def _exits(parsed: argparse.Namespace, model: Model) -> Exits | None:
    from farthing.bundle import Exits

    if not parsed.exits:
        if parsed.threshold:
            raise ConfigError("--threshold belongs to --exits")
        return None
    try:
        return Exits(
            measure=parsed.measure,
            thresholds=tuple(parsed.threshold),
            scores="probabilities" if model.manifest.decode == "probabilities" else "logits",
        )
    except ValueError as error:
        raise ConfigError(f"--threshold: {error}") from error


def _sample(name: str | None, model: Model) -> dict[str, Any] | None:
    if name is None:
        return None
    from farthing.bench import sample_feeds

    return dict(sample_feeds(model.manifest, 1, options.open_task(name))[0])


def _json(made: Cut) -> str:
    facts = {"bundle": str(made.bundle.path), "seconds": made.seconds, "difference": made.difference}
    return show.as_json({**facts, "engine": made.engine, "parts": [plain(part) for part in made.parts]})


def _text(made: Cut) -> str:
    whole = made.seconds
    rows = [
        [
            part.name,
            str(part.nodes),
            show.milliseconds(part.seconds * 1000),
            f"{part.seconds / whole:.0%}",
            show.megabytes(part.stored_bytes / 1e6),
            show.megabytes(part.peak_bytes / 1e6),
            f"{part.crossing_bytes:,}" if part.crossing_bytes else "-",
        ]
        for part in made.parts
    ]
    head = ["part", "nodes", "p50", "of the whole", "weights", "tensors", "bytes handed on"]
    ran = f"Whole: {show.milliseconds(whole * 1000)}. One sample, timed in turns: {made.engine}."
    same = (
        "Together they answer as the whole, bit for bit."
        if not made.difference
        else f"Together they answer as the whole within {made.difference:.1e} of its largest output."
    )
    return "\n".join(
        [show.table(head, rows, width=show.room()), "", ran, same, f"Bundle: {made.bundle.path}"]
    )
