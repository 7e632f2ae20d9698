"""``farthing convert``, ``farthing init`` and ``farthing inspect``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farthing.cli import options, show
from farthing.config import Section
from farthing.errors import ConfigError, nearest
from farthing.model import Manifest, Preprocess, TensorSpec

if TYPE_CHECKING:
    from farthing.forge.init import Question
    from farthing.forge.inspect import Placed

CONVERT = """\
What a runner must know beside the graph comes from you, and nothing of it is guessed:
  --facts FILE   YAML with any of: preprocess, labels, decode, licence, task, version, inputs, outputs
                 (see docs/reference/manifest.md); or run `farthing init`, which asks

A model on a server stays there: the model directory says where it is, and `remote` in --facts how patiently it is
asked (timeout_ms, retry, breaker, ca ...: see docs/reference/engines.md). A bearer token is read from ~/.netrc:
machine HOST login bearer password TOKEN

examples: farthing convert net.onnx --out model
          farthing convert https://host:8000/v2/models/gate/versions/3 --out gate
          farthing convert --model mynets:resnet --weights net.pt --example 1x3x224x224 --out model
"""


class Facts(Section, frozen=True, kw_only=True):
    """What ``--facts`` may hold: the parts of a manifest that are not in a graph."""

    version: str = "1"
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    decode: str = ""
    licence: str = ""
    task: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    remote: dict[str, Any] = {}


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing convert``."""
    parser.epilog = CONVERT
    parser.add_argument(
        "source",
        nargs="?",
        help="an ONNX, TorchScript, torch.export or Keras file, or one of TFLite or OpenVINO, which is taken as it is; "
        "told by its content; or the URL of a served model (Open Inference Protocol or TensorFlow Serving)",
    )
    parser.add_argument(
        "--model", metavar="MODULE:FACTORY", help="Python that makes the torch module (its code is run)"
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="state dict for it, loaded with weights_only=True; or the .bin of an OpenVINO file",
    )
    parser.add_argument("--keep", action="store_true", help="take a TorchScript file as it is, not as ONNX")
    parser.add_argument(
        "--example", metavar="SHAPE", help="what it takes, as in 1x3x224x224; several parted by commas"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="model directory to write")
    parser.add_argument("--name", default="", help="of the model (default: that of the file or factory)")
    parser.add_argument("--task", metavar="T", help="check the conversion on real samples of this task")
    parser.add_argument("--facts", metavar="FILE", help="YAML with preprocess, labels, decode ...")
    parser.add_argument("--tolerance", type=float, default=1e-4, metavar="X",
                        help="largest difference, relative to the largest output (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--opset", type=int, metavar="N", help="of the ONNX file made from torch (default: 17)"
    )
    parser.add_argument("--force", action="store_true", help="replace the output directory")


def convert(parsed: argparse.Namespace) -> int:
    """Run ``farthing convert``."""
    from farthing.forge.convert import convert as bring_in

    if bool(parsed.source) == bool(parsed.model):
        raise ConfigError("give either a file to convert, or --model module:factory")
    out = Path(parsed.out)
    _free(out, parsed.force)
    facts, remote = _facts(parsed)
    if parsed.model:
        options.stand_here()
    made = bring_in(
        parsed.model or parsed.source,
        name=parsed.name,
        example=parsed.example,
        weights=parsed.weights,
        samples=_samples(parsed.task, facts),
        tolerance=parsed.tolerance,
        opset=parsed.opset,
        manifest=facts,
        keep=parsed.keep,
        path=out,
        remote=remote,
    )
    for assumption in made.assumptions:
        print(f"assumed: {assumption}")
    print(f"{out}: {made.checked}")
    return 0


def _free(out: Path, force: bool) -> None:
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists: give another directory, or --force to replace it")


def _facts(parsed: argparse.Namespace) -> tuple[Manifest | None, dict[str, Any]]:
    """What the owner says of the model, and of its server."""
    from farthing.config import convert as typed
    from farthing.config import plain, read

    if not parsed.facts:
        return None, {}
    facts = plain(read(Path(parsed.facts), Facts))
    remote = facts.pop("remote")
    blank = {"name": parsed.name, "format": "onnx"}
    return typed({**blank, **facts}, Manifest, parsed.facts), remote


def _samples(name: str | None, facts: Manifest | None) -> dict[str, Any] | None:
    """Some validation samples of a task, ready to be fed."""
    if not name:
        return None
    from farthing.bench import feeds

    task = options.open_task(name)
    if task.form == "tensor":
        return options.samples_of(task)
    if facts is None or not facts.inputs:
        raise ConfigError(
            f"task {task.name} has pictures: say in --facts how they become the input (inputs, preprocess)"
        )
    split = task.split("validation")
    return dict(feeds(task, split, facts, range(min(16, len(split)))))


def init_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing init``."""
    parser.epilog = (
        "What can be found out is found out; the rest is asked. With --yes the defaults are taken and every one is\n"
        "stated, on the screen and at the top of the task file: read them, a wrong one costs accuracy silently.\n\n"
        "example: farthing init model.onnx --data photos/ --out work"
    )
    parser.add_argument("model", help="model directory, zip, or an ONNX, TorchScript or torch.export file")
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="folder of pictures, npz, CSV or Parquet file"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where task.yaml and model/ are written")
    parser.add_argument("--name", default="", help="of the task (default: that of the data)")
    parser.add_argument("--yes", action="store_true", help="ask nothing: take the defaults and state them")
    parser.add_argument("--force", action="store_true", help="replace a task and model that are there")


def init(parsed: argparse.Namespace) -> int:
    """Run ``farthing init``."""
    from farthing.forge.init import propose, take_defaults

    if not parsed.yes and not sys.stdin.isatty():
        raise ConfigError(
            "there is no terminal to ask on: give --yes to take the defaults, each of which is stated"
        )
    made = propose(
        Path(parsed.data),
        Path(parsed.model),
        Path(parsed.out),
        ask=take_defaults if parsed.yes else _ask,
        name=parsed.name,
        force=parsed.force,
    )
    for line in made.found:
        print(f"found:   {line}")
    for line in made.assumed:
        print(f"assumed: {line}")
    print(f"Task:    {made.task_path}\nModel:   {made.model_path}")
    print(f"Next:    farthing optimize {made.model_path} --task {made.task_path} --out best")
    return 0


def _ask(question: Question) -> str:
    """Put a question on the terminal; an empty line takes the default."""
    print(f"\n{question.text}")
    if question.why:
        print(f"  {question.why}")
    if question.choices:
        print(f"  choices: {', '.join(question.choices)}")
    while True:
        try:
            answer = input(f"  [{question.default}] " if question.default else "  > ").strip()
        except EOFError as error:
            raise ConfigError("the answers ended before the questions: nothing was written") from error
        if not answer and not question.default:
            print("  this needs an answer")
        elif answer and question.choices and answer not in question.choices:
            print(f"  {nearest(answer, question.choices)}")
        else:
            return answer


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing inspect``."""
    parser.epilog = "example: farthing inspect best --nodes"
    parser.add_argument(
        "model",
        help="model directory, zip, output of a search, or an ONNX, TFLite, OpenVINO or TorchScript file",
    )
    parser.add_argument(
        "--nodes", action="store_true", help="every node as it runs: operator, provider, time"
    )
    parser.add_argument("--layers", action="store_true", help="bytes of stored numbers by operator")
    options.add_json(parser)


def inspect(parsed: argparse.Namespace) -> int:
    """Run ``farthing inspect``."""
    from farthing.forge.inspect import inspect as look

    found = look(options.existing(parsed.model))
    if parsed.json:
        print(show.as_json(found))
        return 0
    rows = [("name", f"{found.name} ({found.format}{f', opset {found.opset}' if found.opset else ''})")]
    rows += [("input", _tensor(spec)) for spec in found.inputs]
    rows += [("output", _tensor(spec)) for spec in found.outputs]
    stored = ", ".join(f"{part.count:,} {part.dtype}" for part in found.weights)
    counts = ", ".join(
        f"{count} {name}" for name, count in sorted(found.operators.items(), key=lambda p: -p[1])
    )
    peak = (
        "unknown"
        if found.activation_peak_bytes is None
        else show.megabytes(found.activation_peak_bytes / 1e6)
    )
    rows += [
        ("size", show.sizes(found.size_bytes, found.zipped_bytes)),
        ("parameters", "unknown" if found.parameters is None else f"{found.parameters:,} ({stored})"),
        *([] if found.zeros is None else [("zeros", f"{found.zeros:.1%} of the weights")]),
        ("MACs", "unknown" if found.macs is None else f"{found.macs:,} a sample"),
        ("activations", f"{peak} at the peak"),
        ("operators", f"{found.nodes}: {counts}"),
        ("providers", f"{', '.join(found.providers) or 'unknown'} ({found.runtime})"),
        ("placement", _placement(found.placement)),
        *(("note", note) for note in found.notes),
    ]
    print("\n".join(f"{name:<12} {text}" for name, text in rows))
    if parsed.nodes:
        head = ["node", "operator", "provider", "precision", "time", "output"]
        lines = [_node(placed) for placed in found.placement]
        print("\n" + show.table(head, lines, spare=("provider", "precision", "output"), width=show.room()))
    if parsed.layers:
        sizes = [[part.name, part.operator, part.dtype, f"{part.bytes:,}"] for part in found.layers]
        print("\n" + show.table(["layer", "operator", "stored as", "bytes"], sizes, width=show.room()))
    return 0


def _tensor(spec: TensorSpec) -> str:
    notes = [spec.layout, f"batch axis {spec.batch_axis}" if spec.batch_axis is not None else "", spec.role]
    known = ", ".join(note for note in notes if note and note != "data")
    return f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]{f' ({known})' if known else ''}"


def _node(placed: Placed) -> list[str]:
    time = "-" if placed.microseconds is None else f"{placed.microseconds:.1f} us"
    return [
        placed.node,
        placed.operator,
        placed.provider,
        placed.precision,
        time,
        "x".join(map(str, placed.shape)),
    ]


def _placement(placed: Sequence[Placed]) -> str:
    by_provider = Counter(node.provider for node in placed)
    return ", ".join(f"{count} nodes on {name}" for name, count in by_provider.items()) or "unknown"
