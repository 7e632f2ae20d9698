"""``farthing sensitivity`` and ``farthing study``: what low precision costs, and what it brings."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from farthing.cli import options, show

if TYPE_CHECKING:
    from farthing.forge.sensitivity.result import Effect, Operator, Sensitivity
    from farthing.forge.study.result import Study
    from farthing.measure import Interval
    from farthing.recipe import Candidate

SENSITIVITY = """\
precisions: int8 (a scale for each output channel), int8 per tensor, int8 weights, int4 weights, float16

Each operator alone is brought to each precision, and what that does to the model's outputs is measured as a ratio of
signal to noise (SQNR, decibels). The metric is asked for the worst few only, on a part of validation. Last, the fewest
operators are looked for that must stay in float for int8 to keep --drop. Interrupted? Run the same command again.

example: farthing sensitivity work/model --task work/task.yaml --out sensitivity.json --html sensitivity.html
"""
STUDY = """\
Every method that needs no training, in every engine, is scored on all of validation and timed in turns with the others:
none is left out, so this takes longer than a search. --recipe adds methods of your own. Then the model's numbers are
rounded to each width, weights, activations and both, layer by layer and as a whole.

Methods marked * are on the front: no other is at least as good in loss, median latency and size.

example: farthing study work/model --task work/task.yaml --out study.json --html study.html
"""
WORST = 12
FoundT = TypeVar("FoundT")


def sensitivity_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing sensitivity``."""
    parser.epilog = SENSITIVITY
    _add_subject(parser)
    parser.add_argument(
        "--target",
        default="this",
        metavar="NAME",
        help="device that int8 is chosen for (default: this machine)",
    )
    parser.add_argument(
        "--precision", default="", metavar="A,B", help="precisions to look at, see below (default: all)"
    )
    parser.add_argument(
        "--scored",
        default="3",
        metavar="N",
        help="operators of each precision whose loss of the metric is measured, the worst first, or `all` "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--subset",
        type=int,
        default=256,
        metavar="N",
        help="validation samples for that (default: %(default)s)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=16,
        metavar="N",
        help="calibration samples behind each ratio (default: %(default)s)",
    )
    parser.add_argument(
        "--drop",
        default="0.01",
        metavar="X",
        help="what the metric may lose, or `none` to look for no mixture (default: %(default)s)",
    )
    parser.add_argument(
        "--engine", default="onnxruntime", metavar="NAME", help="what runs ONNX (default: %(default)s)"
    )
    _add_results(parser)


def _add_subject(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model directory, zip, or model file, in float")
    options.add_task(parser)


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write it as a page, with pictures")
    options.add_json(parser)


def sensitivity(parsed: argparse.Namespace) -> int:
    """Run ``farthing sensitivity``."""
    from farthing.errors import ConfigError
    from farthing.forge.sensitivity import PRECISIONS
    from farthing.forge.sensitivity import sensitivity as analyse
    from farthing.forge.sensitivity.page import render

    try:
        scored = None if parsed.scored == "all" else int(parsed.scored)
        limit = None if parsed.drop == "none" else float(parsed.drop)
    except ValueError as error:
        raise ConfigError(
            "--scored is a whole number or `all`, --drop a number as in 0.01, or `none`"
        ) from error
    task = options.open_task(parsed.task, parsed.model)
    model = options.open_model(parsed.model, task, keep=False)
    with show.progress(parsed.json) as listener:
        found = analyse(
            model,
            task,
            parsed.target,
            precisions=options.names(parsed.precision) or tuple(PRECISIONS),
            samples=parsed.samples,
            scored=scored,
            subset=parsed.subset,
            limit=limit,
            engine=parsed.engine,
            cache=options.cache_directory(),
            listener=listener,
            command=shlex.join(["farthing", *sys.argv[1:]]),
        )
    _write(found, parsed, render)
    print(show.as_json({"event": "result", **_plain(found)}) if parsed.json else _sensitivity(found))
    return 0


def study_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing study``."""
    parser.epilog = STUDY
    _add_subject(parser)
    parser.add_argument(
        "--target",
        default="this",
        metavar="NAME",
        help="a board, which then measures; one of the catalogue, or a file (default: this machine)",
    )
    parser.add_argument(
        "--engine", default="", metavar="A,B", help="engines (default: all that are installed and fit)"
    )
    parser.add_argument("--threads", default="1", metavar="N,N", help="thread counts (default: %(default)s)")
    parser.add_argument(
        "--recipe",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a recipe.yaml to measure beside them, training passes included; may be given again",
    )
    parser.add_argument(
        "--bits", default="32,16,8,4", metavar="N,N", help="widths to round to (default: %(default)s)"
    )
    parser.add_argument("--again", action="store_true", help="measure again, even what is cached")
    _add_results(parser)


def study(parsed: argparse.Namespace) -> int:
    """Run ``farthing study``."""
    from farthing.cli.searching import place
    from farthing.forge.study import of_recipe
    from farthing.forge.study import study as measure
    from farthing.forge.study.page import render

    task = options.open_task(parsed.task, parsed.model)
    model = options.open_model(parsed.model, task, keep=False)
    counts = options.counts(parsed.threads)
    with place(parsed.target, counts) as (machine, target), show.progress(parsed.json) as listener:
        found = measure(
            model,
            task,
            target,
            methods=[of_recipe(path, model) for path in parsed.recipe],
            engines=options.names(parsed.engine),
            threads=counts or (1,),
            widths=_bits(parsed.bits),
            cache=options.cache_directory(),
            measure_again=parsed.again,
            machine=machine,
            listener=listener,
            command=shlex.join(["farthing", *sys.argv[1:]]),
        )
    _write(found, parsed, render)
    print(show.as_json({"event": "result", **_plain(found)}) if parsed.json else _study(found))
    return 0


def _bits(text: str) -> tuple[int, ...]:
    from farthing.errors import ConfigError

    try:
        return tuple(int(part) for part in options.names(text))
    except ValueError as error:
        raise ConfigError(f"--bits {text!r} is not a list of numbers, as in 32,16,8,4") from error


def _study(found: Study) -> str:
    """Methods with their figures, the model at each width, and what no other beats."""
    from farthing.forge.study.page import sentence

    head = ["", "method", "engine", "threads", "size", "p50", "speed", found.metric, "drop", ""]
    rows = [_method(one, one.number in found.front) for one in found.methods]
    lines = [show.table(head, rows, ("threads",), show.room()), ""]
    rows = [
        [
            str(one.bits),
            one.rounded if one.bits < 32 else "-",
            show.megabytes(one.bytes / 1e6),
            _decibels(one.output_sqnr),
            *_judged(one.accuracy, one.drop),
        ]
        for one in found.widths
    ]
    lines += [show.table(["bits", "rounded", "size", "SQNR, dB", found.metric, "drop"], rows), ""]
    return "\n".join([*lines, *(f"Note: {note}" for note in found.notes), sentence(found)])


def _method(one: Candidate, on_front: bool) -> list[str]:
    single = one.measurements.get("single_stream")
    return [
        f"{'*' if on_front else ' '}{one.number}",
        one.name,
        one.engine,
        str(one.options.threads),
        show.megabytes(one.figures.size_mb),
        show.milliseconds(single.p50_ms if single else None),
        f"{one.speedup.value:.2f}x" if one.speedup else "-",
        *_judged(one.accuracy, one.drop),
        "" if one.verdict.startswith("beaten by") else one.verdict,
    ]


def _judged(accuracy: Interval | None, drop: Interval | None) -> tuple[str, str]:
    return (f"{accuracy.value:.4f}" if accuracy else "-", f"{drop.value:+.4f}" if drop else "-")


def _write(found: FoundT, parsed: argparse.Namespace, render: Callable[[FoundT], str]) -> None:
    """Write a result as JSON and as a page, where that was asked for."""
    from farthing import files
    from farthing.config import to_json

    if parsed.out:
        files.write(parsed.out, to_json(found))
    if parsed.html:
        files.write(parsed.html, render(found).encode())


def _plain(found: object) -> dict[str, object]:
    from farthing.config import plain

    return dict(plain(found))


def _sensitivity(found: Sensitivity) -> str:
    """The worst operators, the model as a whole, and what should stay in float."""
    from farthing.forge.sensitivity.page import in_words

    first = found.precisions[0]
    order = found.worst(first)
    head = ["operator", "type", *found.precisions, "drop"]
    rows = [[one.name, one.kind, *_ratios(one, found), _drop(one.effect(first))] for one in order[:WORST]]
    lines = [
        f"SQNR at the outputs, dB, one operator at a time; the worst in {first} first, with what {found.metric} loses:",
        "",
    ]
    lines += [show.table(head, rows, width=show.room())]
    if len(order) > WORST:
        lines.append(f"({len(order) - WORST} more: --out and --html list them)")
    rows = [
        [
            one.precision,
            _decibels(one.output_sqnr),
            f"{one.accuracy.value:.4f}" if one.accuracy else "-",
            show.interval(one.drop, digits=4),
        ]
        for one in found.whole
    ]
    lines += ["", show.table(["all operators in", "SQNR, dB", found.metric, "drop"], rows, width=show.room())]
    lines += ["", *(f"Note: {note}" for note in (*map(str, found.joins), *found.notes))]
    if found.mixture:
        lines += [in_words(found.mixture), *(f"  {name}" for name in found.mixture.floats)]
    return "\n".join(lines).rstrip()


def _ratios(one: Operator, found: Sensitivity) -> list[str]:
    effects = [one.effect(name) for name in found.precisions]
    return ["-" if effect is None else _decibels(effect.output_sqnr) for effect in effects]


def _decibels(ratio: float | None) -> str:
    return "nan" if ratio is None else f"{ratio:.1f}"


def _drop(effect: Effect | None) -> str:
    return "-" if effect is None or effect.drop is None else f"{effect.drop.value:.4f}"
