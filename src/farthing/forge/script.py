"""A short script that runs a model without Farthing: numpy, the engine's own package and, for pictures, Pillow.

It is written out of the manifest: only the lines that this model needs. Its scores are those of
`farthing.device.predict`.
"""

from __future__ import annotations

from collections.abc import Sequence

from farthing.errors import UnsupportedError
from farthing.forge.starting import STARTS
from farthing.model import Manifest, Preprocess, Resize, TensorSpec
from farthing.ops.image import check_input
from farthing.options import EngineOptions

_KERNELS = {
    "bilinear": (1, "np.maximum(1 - x, 0)"),
    "bicubic": (
        2,
        "np.where(x < 1, (1.25 * x - 2.25) * x * x + 1, np.where(x < 2, -0.75 * (((x - 5) * x + 8) * x - 4), 0))",
    ),
    "lanczos": (3, "np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)"),
}


def standalone(manifest: Manifest, options: EngineOptions | None = None) -> str:
    """Source text of a script to lie beside the model file: ``python predict.py picture.jpg ...``.

    It prints the five likeliest labels and their scores, or the raw outputs if the manifest has no ``decode``. A model
    without ``preprocess`` takes ``.npy`` files of one sample each.

    Args:
        manifest: of the model.
        options: how the engine of its format is to run it.

    Raises:
        UnsupportedError: a format that scripts do not start, several inputs, state, or detections.
        ModelError: the manifest's preprocess does not fit its input.
    """
    spec = _the_input(manifest)
    if manifest.preprocess:
        check_input(manifest.preprocess, spec)
    parts = [*_head(manifest, options or EngineOptions()), "", ""]
    if _needs_weights(manifest.preprocess):
        parts += [*_weights(manifest.preprocess), "", ""]
    parts += [*_prepare(manifest.preprocess, spec), "", "", *_loop(manifest, spec)]
    return "\n".join(parts) + "\n"


def _the_input(manifest: Manifest) -> TensorSpec:
    if manifest.format not in STARTS:
        raise UnsupportedError(
            f"a stand-alone script runs {', '.join(STARTS)} models, not {manifest.format!r}: use `farthing predict`"
        )
    if len(manifest.inputs) != 1 or manifest.inputs[0].role != "data":
        raise UnsupportedError(
            f"a stand-alone script feeds one input and keeps no state, but {manifest.name} has "
            f"{[spec.name for spec in manifest.inputs]}: use farthing.open_engine"
        )
    if manifest.decode not in {"", "logits", "probabilities"}:
        raise UnsupportedError(
            f"a stand-alone script does not decode {manifest.decode!r}: use `farthing predict`"
        )
    return manifest.inputs[0]


def _head(manifest: Manifest, options: EngineOptions) -> list[str]:
    pictures, file = manifest.preprocess is not None, next(iter(manifest.files), "model.onnx")
    start = STARTS[manifest.format]
    packages = f"numpy {start.package} pillow" if pictures else f"numpy {start.package}"
    argument = "picture.jpg ..." if pictures else "sample.npy ..."
    needs = [
        f"# Made for CPUs with {', '.join(map(repr, manifest.requires))}: elsewhere it may answer differently."
    ]
    lines = [
        f"# Runs {manifest.name!r} without Farthing: pip install {packages}; python predict.py {argument}",
        *(needs if manifest.requires else []),
        *(line for line in start.before if line.startswith("import ")),
        "import sys",
        "from pathlib import Path",
        "",
        *(line for line in start.before if not line.startswith("import ")),
        "import numpy as np",
        *start.imports,
        *(["from PIL import Image, ImageOps"] * pictures),
        "",
        "if len(sys.argv) < 2:",
        f'    print("usage: python predict.py {argument}", file=sys.stderr)',
        "    sys.exit(2)",
    ]
    if manifest.decode:
        lines += _wrapped("LABELS = ", manifest.labels)
    return [
        *lines,
        f"path = str(Path(__file__).with_name({file!r}))",
        *start.load(options),
    ]


def _wrapped(start: str, labels: Sequence[str]) -> list[str]:
    whole = f"{start}{list(labels)!r}"
    if len(whole) <= 110:
        return [whole]
    rows: list[str] = []
    for label in labels:
        if rows and len(rows[-1]) + len(repr(label)) < 100:
            rows[-1] += f" {label!r},"
        else:
            rows.append(f"    {label!r},")
    return [f"{start}[", *rows, "]"]


def _needs_weights(preprocess: Preprocess | None) -> bool:
    how = preprocess.resize if preprocess else None
    return how is not None and not how.antialias and how.filter in _KERNELS


def _weights(preprocess: Preprocess | None) -> list[str]:
    """A function for the matrix that resizes one axis, the kernel not widened (see `farthing.ops.resample`)."""
    how = preprocess.resize if preprocess else None
    support, kernel = _KERNELS[how.filter if how else "bilinear"]
    return [
        "def weights(size, wanted):",
        "    centre = (np.arange(wanted)[:, None] + 0.5) * (size / wanted) - 0.5",
        f"    taps = np.floor(centre).astype(int) + np.arange({1 - support}, {support + 1})",
        "    x = np.abs(taps - centre)",
        f"    k = {kernel}",
        "    matrix = np.zeros((wanted, size))",
        "    np.add.at(matrix, (np.arange(wanted)[:, None], taps.clip(0, size - 1)), k / k.sum(1, keepdims=True))",
        "    return matrix",
    ]


def _prepare(preprocess: Preprocess | None, spec: TensorSpec) -> list[str]:
    body = _sample(spec) if preprocess is None else _picture(preprocess, spec)
    return ["def prepare(path):", *(f"    {line}" for line in body)]


def _sample(spec: TensorSpec) -> list[str]:
    lines = [f"x = np.load(path, allow_pickle=False).astype({spec.dtype!r})"]
    if spec.batch_axis is None:
        return [*lines, "return x"]
    lines.append(f"x = x if x.ndim == {len(spec.shape)} else np.expand_dims(x, {spec.batch_axis})")
    return [*lines, f"return {_repeated('x', spec)}"]


def _repeated(value: str, spec: TensorSpec) -> str:
    """A sample as a batch: repeated for a model that fixes a larger one."""
    size = spec.fixed_batch or 1
    return value if size == 1 else f"np.repeat({value}, {size}, axis={spec.batch_axis})"


def _picture(preprocess: Preprocess, spec: TensorSpec) -> list[str]:
    colour = '.convert("L")' * (preprocess.colour == "GRAY")
    return [
        "with Image.open(path) as file:",
        "    image = ImageOps.exif_transpose(file)",
        'if image.mode[0] in "IF":',
        '    sys.exit(f"{path} has more than 8 bits a channel: bring it to 8 bits first")',
        f'image = image.convert("RGB"){colour}',
        *(_resized(preprocess.resize) if preprocess.resize else ["pixels = np.asarray(image)"]),
        *_cropped(preprocess),
        *_normalised(preprocess, spec),
    ]


def _resized(how: Resize) -> list[str]:
    """Lines from ``image``, a picture of Pillow's, to ``pixels``."""
    if how.mode == "stretch":
        return _scaled(how, str(how.height), str(how.width))
    if how.mode == "cover":
        return [
            "w, h = image.size",
            f"high, wide = {how.height}, {how.height} * w // h",
            f"if {how.height} * w <= {how.width} * h:",
            f"    high, wide = {how.width} * h // w, {how.width}",
            *_scaled(how, "high", "wide"),
        ]
    return [
        "w, h = image.size",
        f"factor = min({how.height} / h, {how.width} / w)",
        f"high = min({how.height}, max(1, int(h * factor + 0.5)))",
        f"wide = min({how.width}, max(1, int(w * factor + 0.5)))",
        *_scaled(how, "high", "wide"),
        f"canvas = np.full(({how.height}, {how.width}, *pixels.shape[2:]), {how.fill}, np.uint8)",
        f"top, left = ({how.height} - high) // 2, ({how.width} - wide) // 2",
        "canvas[top : top + high, left : left + wide] = pixels",
        "pixels = canvas",
    ]


def _scaled(how: Resize, high: str, wide: str) -> list[str]:
    name = f"Image.Resampling.{how.filter.upper()}"
    if how.antialias and how.filter == "nearest":
        return [f"pixels = np.asarray(image.resize(({wide}, {high}), {name}))"]
    if how.antialias:
        return [
            f"image = image.resize(({wide}, image.height), {name})  # Pillow 13 may begin with the height",
            f"pixels = np.asarray(image.resize(({wide}, {high}), {name}))",
        ]
    if how.filter in _KERNELS:
        return [
            "planes = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)",
            f"planes = weights(image.height, {high}) @ (planes @ weights(image.width, {wide}).T)",
            "pixels = (planes + 0.5 + 2.0**-24).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)",
        ]
    shift = " + np.float32(0.5)" * (how.filter == "box")
    return [
        f"rows = (np.arange({high}, dtype=np.float32){shift}) * np.float32(image.height / {high})",
        f"columns = (np.arange({wide}, dtype=np.float32){shift}) * np.float32(image.width / {wide})",
        "rows = rows.astype(int).clip(0, image.height - 1)",
        "pixels = np.asarray(image)[rows][:, columns.astype(int).clip(0, image.width - 1)]",
    ]


def _cropped(preprocess: Preprocess) -> list[str]:
    if preprocess.crop is None:
        return []
    high, wide = preprocess.crop
    return [
        f"top, left = round((pixels.shape[0] - {high}) / 2), round((pixels.shape[1] - {wide}) / 2)",
        f"pixels = pixels[top : top + {high}, left : left + {wide}]",
    ]


def _normalised(preprocess: Preprocess, spec: TensorSpec) -> list[str]:
    """Lines from ``pixels`` to the model's input, in float32 as `farthing.ops.image` computes it."""
    channels = {"RGB": "", "BGR": "[..., ::-1]", "GRAY": ""}[preprocess.colour]
    shape = "(*pixels.shape[:2], -1)"
    lines = [f"x = pixels.reshape({shape}){channels}.astype(np.float32)"]
    if preprocess.scale != 1:
        lines.append(f"x *= np.float32({preprocess.scale!r})")
    if any(preprocess.mean):
        lines.append(f"x -= np.array({list(preprocess.mean)!r}, np.float32)")
    if any(value != 1 for value in preprocess.std):
        lines.append(f"x /= np.array({list(preprocess.std)!r}, np.float32)")
    if spec.dtype.startswith(("int", "uint")):
        lines.append(f"x = np.rint(x).clip(np.iinfo({spec.dtype!r}).min, np.iinfo({spec.dtype!r}).max)")
    order = ".transpose(2, 0, 1)" * (spec.layout == "NCHW")
    cast = f".astype({spec.dtype!r})" * (spec.dtype != "float32")
    return [*lines, f"return {_repeated(f'x{order}[None]{cast}', spec)}"]


def _loop(manifest: Manifest, spec: TensorSpec) -> list[str]:
    outputs = manifest.outputs[:1] if manifest.decode else manifest.outputs
    names = [output.name for output in outputs]
    run = STARTS[manifest.format].run(names, spec.name)
    lines = [
        "for path in sys.argv[1:]:",
        "    try:",
        "        x = prepare(path)",
        "    except (OSError, ValueError) as error:",
        "        sys.exit(f\"{path}: {getattr(error, 'strerror', None) or error}\")",
        "    print(path)",
    ]
    if not manifest.decode:
        return [
            *lines,
            f"    for name, value in zip({names!r}, {run}):",
            "        print(name, value.tolist())",
        ]
    pick = "" if outputs[0].batch_axis is None else f".take(0, {outputs[0].batch_axis})"
    lines.append(f"    scores = {run}[0]{pick}.reshape(-1).astype(np.float64)")
    lines.append('    order = np.argsort(-scores, kind="stable")[:5]')
    if manifest.decode == "logits":
        lines.append("    scores = np.exp(scores - scores.max())")
        lines.append("    scores /= scores.sum()")
    label = "LABELS[index]" if manifest.labels else "index"
    return [*lines, "    for index in order:", f'        print(f"  {{scores[index]:.7f}}  {{{label}}}")']
