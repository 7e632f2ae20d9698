"""The model: whether its manifest says all that a runner must know, and whether the file can be run here."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from farthing import plugins
from farthing.bench import batch_size, random_array
from farthing.engines.base import engine_for
from farthing.engines.external import locations
from farthing.errors import FarthingError, NotInstalled, PluginError
from farthing.forge.apart import in_child
from farthing.forge.doctor.finding import Finding, ok, problem, warning
from farthing.model import Manifest, Model, TensorSpec
from farthing.target import Target

CHANNELS = {1, 3, 4}
SMALLEST = 8  # pixels: a smaller side is hardly a picture
SECONDS = 120.0
PER_CHANNEL_OPSET = 13


def of_model(model: Model) -> Iterator[Finding]:
    """Findings about a model; its hashes were checked when it was opened."""
    manifest = model.manifest
    words = f"{manifest.name} ({manifest.format}, {model.size_bytes / 1e6:.2f} MB), every file has its hash"
    yield ok("model", "files", words)
    yield _preprocess(manifest)
    yield from _outputs(manifest)
    yield _requires(manifest)
    if manifest.format == "onnx":
        yield from _onnx(model)
    yield _runs(model)
    yield _batch(manifest)
    if not manifest.licence:
        yield warning(
            "model", "licence", "not stated", "say it in the manifest: who ships the model must know it"
        )


def _picture(spec: TensorSpec) -> bool:
    """Whether an input looks like pictures: four axes, few channels, sides of some pixels."""
    if len(spec.shape) != 4:
        return False
    channels, sides = (
        (spec.shape[3], spec.shape[1:3]) if spec.layout == "NHWC" else (spec.shape[1], spec.shape[2:])
    )
    return channels in CHANNELS and all(isinstance(side, str) or side >= SMALLEST for side in sides)


def _preprocess(manifest: Manifest) -> Finding:
    pictures = [spec.name for spec in manifest.data_inputs if _picture(spec)]
    if manifest.preprocess is not None:
        return ok("model", "preprocess", "stated: how pictures become the input")
    if pictures:
        words = f"input {pictures[0]!r} looks like pictures, and the manifest does not say how they become it"
        mend = (
            "add `preprocess` to the manifest, or run `farthing init`: a wrong guess costs accuracy silently"
        )
        return warning("model", "preprocess", words, mend)
    return ok("model", "preprocess", "none needed: inputs are no pictures")


def _outputs(manifest: Manifest) -> Iterator[Finding]:
    """Whether labels and outputs agree in number, and somebody said what outputs mean."""
    if not manifest.outputs:
        mend = "farthing convert SOURCE --out DIRECTORY writes a manifest that does"
        yield problem("model", "outputs", "the manifest names none", mend)
        return
    output = manifest.outputs[0]
    sizes = [size for axis, size in enumerate(output.shape) if axis != output.batch_axis]
    known = math.prod(size for size in sizes if isinstance(size, int))
    labels = len(manifest.labels)
    classes = manifest.decode in {"", "logits", "probabilities"} and all(
        isinstance(size, int) for size in sizes
    )
    if labels and classes and labels != known:
        words = f"{labels} labels for an output {output.name!r} of {known}"
        yield problem(
            "model", "labels", words, "list in the manifest one label for each output, in their order"
        )
    elif labels:
        yield ok("model", "labels", f"{labels}")
    elif manifest.decode in {"logits", "probabilities", "detections"}:
        yield warning("model", "labels", "none: answers will be numbers", "list `labels` in the manifest")
    if not manifest.decode:
        words = "not stated: `farthing predict` gives raw outputs"
        yield warning("model", "decode", words, "say logits, probabilities or detections in the manifest")


def _requires(manifest: Manifest) -> Finding:
    lacking = Target.detect().lacks(manifest.requires)
    if lacking:
        words = f"it was made for {', '.join(manifest.requires)}; this processor lacks {', '.join(lacking)}"
        mend = "run the search again on the machine that will run it: speed, and with int8 results, differ"
        return warning("model", "instruction sets", words, mend)
    return ok("model", "instruction sets", ", ".join(manifest.requires) or "none required")


def _onnx(model: Model) -> Iterator[Finding]:
    outside = sorted(locations(model.file) - model.manifest.files.keys())
    if outside:
        words = f"the file takes weights from {', '.join(outside)}, which the manifest does not name"
        mend = f"farthing convert {model.file} --out DIRECTORY takes them in, with these files beside it"
        yield problem("model", "weights", words, mend)
    try:
        from farthing.forge import graph

        proto = graph.load(model.file)
    except ImportError:
        yield ok(
            "model",
            "opset",
            "not looked at: the package onnx is not installed",
            "pip install 'farthing[forge]'",
        )
        return
    except FarthingError as error:
        mend = "export it again where it was made, with opset 17, and check it with onnx.checker"
        yield problem("model", "opset", str(error), mend)
        return
    opset = graph.opset(proto)
    if opset < PER_CHANNEL_OPSET:
        words = f"{opset}: int8 with a scale a channel needs {PER_CHANNEL_OPSET}"
        yield warning(
            "model", "opset", words, f"export it with opset {PER_CHANNEL_OPSET} or above (17 is usual)"
        )
    else:
        yield ok("model", "opset", str(opset))


def _runs(model: Model) -> Finding:
    """Whether an engine runs it once, in a process of its own."""
    manifest = model.manifest
    try:
        engine = engine_for(manifest.format)
        version = str(plugins.get("engine", engine).installed())
    except (FarthingError, NotInstalled, PluginError) as error:
        mend = f"pip install 'farthing[NAME]' for an engine that runs {manifest.format}; `farthing plugins` names them"
        return problem("model", "runs", str(error), mend)
    free = [size for spec in manifest.data_inputs for size in spec.free_axes]
    generator, size = np.random.default_rng(0), batch_size(manifest, 1)
    feed = {s.name: random_array(s.sized(size, 32), s.dtype, generator) for s in manifest.data_inputs}
    answer = in_child(model, engine, version, "", [feed], SECONDS)
    if not answer.arrays:
        words = f"{engine} {version} does not: {answer.detail}"
        if free:
            words = f"{words} (its free axes {', '.join(map(str, free))} were tried with 32)"
            return warning("model", "runs", words, "give the axes sizes, or try it with a task")
        mend = "`farthing matrix` shows which engines run it; or convert it again from its source"
        return problem("model", "runs", words, mend)
    odd = [
        name
        for name, array in answer.arrays[0].items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]
    if odd:
        words = f"output {odd[0]!r} holds NaN or infinity for random inputs"
        return warning("model", "runs", words, "look at it on real data: farthing evaluate")
    return ok("model", "runs", f"once on random inputs, in {engine} {version}")


def _batch(manifest: Manifest) -> Finding:
    fixed = [spec.fixed_batch for spec in manifest.data_inputs if spec.fixed_batch]
    if fixed and fixed[0] != 1:
        words = f"fixed at {fixed[0]}: single samples are padded to it, and pay for all of them"
        return warning("model", "batch", words, "export the model with a free batch axis, or one of 1")
    if any(spec.batch_axis is not None for spec in manifest.data_inputs):
        return ok("model", "batch", "fixed at 1" if fixed else "free")
    return ok("model", "batch", "inputs have no batch axis: samples go one at a time")
