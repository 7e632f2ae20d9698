"""``farthing convert``, ``farthing init`` and ``farthing inspect``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from farthing.cli import options
from farthing.config import Section
from farthing.errors import ConfigError
from farthing.model import Manifest, Preprocess, TensorSpec

CONVERT = """\
What a runner must know beside the graph comes from you, and nothing of it is guessed:
  --facts FILE   YAML with any of: preprocess, labels, decode, licence, task, version, inputs, outputs
                 (see docs/reference/manifest.md); or run `farthing init`, which asks

examples: farthing convert net.onnx --out model
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


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing convert``."""
    parser.epilog = CONVERT
    parser.add_argument(
        "source", nargs="?", help="an ONNX, TorchScript or torch.export file; told by its content"
    )
    parser.add_argument(
        "--model", metavar="MODULE:FACTORY", help="Python that makes the torch module (its code is run)"
    )
    parser.add_argument("--weights", metavar="FILE", help="state dict for it, loaded with weights_only=True")
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
        "--opset", type=int, default=17, metavar="N", help="of the ONNX file (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace the output directory")


def convert(parsed: argparse.Namespace) -> int:
    """Run ``farthing convert``."""
    from farthing.forge.convert import convert as bring_in

    if bool(parsed.source) == bool(parsed.model):
        raise ConfigError("give either a file to convert, or --model module:factory")
    out = Path(parsed.out)
    _free(out, parsed.force)
    facts = _facts(parsed)
    sys.path.insert(0, "")  # module:factory is looked for where the user stands
    made = bring_in(
        parsed.model or parsed.source,
        name=parsed.name,
        example=parsed.example,
        weights=parsed.weights,
        samples=_samples(parsed.task, facts),
        tolerance=parsed.tolerance,
        opset=parsed.opset,
        manifest=facts,
        path=out,
    )
    for assumption in made.assumptions:
        print(f"assumed: {assumption}")
    print(f"{out}: {made.checked}")
    return 0


def _free(out: Path, force: bool) -> None:
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists: give another directory, or --force to replace it")


def _facts(parsed: argparse.Namespace) -> Manifest | None:
    from farthing.config import convert as typed
    from farthing.config import plain, read

    if not parsed.facts:
        return None
    facts = read(Path(parsed.facts), Facts)
    blank = {"name": parsed.name or "model", "format": "onnx"}
    return typed({**blank, **plain(facts)}, Manifest, parsed.facts)


def _samples(name: str | None, facts: Manifest | None) -> dict[str, Any] | None:
    """Some validation samples of a task, ready to be fed."""
    if not name:
        return None
    from farthing.bench import feeds
    from farthing.task import find_task

    task = find_task(name, options.cache_directory())
    split = task.split("validation")
    picks = range(min(16, len(split)))
    if task.form == "tensor":
        return dict(split.take(picks))
    if facts is None or not facts.inputs:
        raise ConfigError(
            f"task {task.name} has pictures: say in --facts how they become the input (inputs, preprocess)"
        )
    return dict(feeds(task, split, facts, picks))
