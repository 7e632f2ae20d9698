"""A short script that runs a model without Farthing: numpy, the engine's own package and, for pictures, Pillow.

It is written out of the manifest: only the lines that this model needs. Its scores are those of
`farthing.device.predict`.
"""

from __future__ import annotations

from collections.abc import Sequence

from farthing.errors import UnsupportedError
from farthing.forge.script.starting import STARTS
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
    if manifest.inputs[0].dtype in {"str", "bfloat16"}:
        raise UnsupportedError(
            f"a stand-alone script feeds numbers that numpy knows, not {manifest.inputs[0].dtype}: "
            "use farthing.open_engine"
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
    if manifest.decode and manifest.labels:
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
    """Lines that read one sample and hold it against the input, as `farthing.device.predict` does."""
    axis = spec.batch_axis
    sizes = [size for place, size in enumerate(spec.shape) if place != axis]
    fixed = {place: size for place, size in enumerate(sizes) if isinstance(size, int)}
    misfit = f"x.ndim != {len(sizes)}"
    if len(fixed) == len(sizes):
        misfit = f"x.shape != {tuple(sizes)}"
    elif fixed:
        misfit += f" or [x.shape[i] for i in {list(fixed)}] != {list(fixed.values())}"
    shown = ", ".join(str(size) if isinstance(size, int) else "any" for size in sizes)
    said = f"does not fit: one sample is {spec.dtype} [{shown}]"
    batched = f"x.ndim == {len(spec.shape)} and x.shape[{axis}] == 1"
    return [
        'with open(path, "rb") as file:',
        "    x = np.load(file, allow_pickle=False)",
        *([] if axis is None else [f"x = x.squeeze({axis}) if {batched} else x"]),
        *(_stored(spec) if spec.scale is not None else []),
        f'if {misfit} or not np.can_cast(x.dtype, {spec.dtype!r}, "same_kind"):',
        f'    sys.exit(f"{{path}}: {{x.dtype}} {{list(x.shape)}} {said}")',
        f"x = x.astype({spec.dtype!r})",
        *(_FINITE if spec.dtype.startswith("float") else []),
        f"return {'x' if axis is None else _repeated(f'np.expand_dims(x, {axis})', spec)}",
    ]


_FINITE = ["if not np.isfinite(x).all():", '    sys.exit(f"{path} holds NaN or infinity: clean the data")']


def _stored(spec: TensorSpec) -> list[str]:
    """Lines that make the integers of a quantized input from real numbers, as `farthing.ops.scale.stored` does."""
    shifted = f"np.rint(x.astype(np.float32) / np.float32({spec.scale!r})) + {spec.zero_point}"
    return [
        'if x.dtype.kind == "f":',
        *(f"    {line}" for line in _FINITE),
        f"    x = ({shifted}).clip(np.iinfo({spec.dtype!r}).min, np.iinfo({spec.dtype!r}).max).astype({spec.dtype!r})",
    ]


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
        *_sized(preprocess, spec),
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


def _sized(preprocess: Preprocess, spec: TensorSpec) -> list[str]:
    """Lines that stop at pixels of another size than the input takes, where resize and crop do not see to it."""
    how, crop = preprocess.resize, preprocess.crop
    sides = spec.shape[2:] if spec.layout == "NCHW" else spec.shape[1:3]
    wanted = [
        side if isinstance(side, int) else cut for side, cut in zip(sides, crop or (None, None), strict=True)
    ]
    made: Sequence[int | None] = (None, None)
    if how and crop and crop[0] <= how.height and crop[1] <= how.width:
        made = crop
    elif how and not crop and how.mode != "cover":
        made = (how.height, how.width)
    misfits = [
        f"pixels.shape[{axis}] != {want}"
        for axis, (want, have) in enumerate(zip(wanted, made, strict=True))
        if want not in {None, have}
    ]
    takes = " x ".join("any" if want is None else str(want) for want in wanted)
    said = f"' x '.join(map(str, pixels.shape[:2])), 'but the model takes {takes} (height x width)'"
    return (
        [f"if {' or '.join(misfits)}:", f"    sys.exit(' '.join([path, 'gives', {said}]))"] if misfits else []
    )


def _normalised(preprocess: Preprocess, spec: TensorSpec) -> list[str]:
    """Lines from ``pixels`` to the model's input, in float32 as `farthing.ops.image` computes it."""
    channels = {"RGB": "", "BGR": "[..., ::-1]", "GRAY": ""}[preprocess.colour]
    shape = "(*pixels.shape[:2], -1)"
    lines = [f"x = pixels.reshape({shape}){channels}.astype(np.float32)"]
    mean, std = _shift(preprocess, spec)
    if preprocess.scale != 1:
        lines.append(f"x *= np.float32({preprocess.scale!r})")
    if any(mean):
        lines.append(f"x -= np.array({mean!r}, np.float32)")
    if any(value != 1 for value in std):
        lines.append(f"x /= np.array({std!r}, np.float32)")
    if spec.dtype.startswith(("int", "uint")):
        lines.append(f"x = np.rint(x).clip(np.iinfo({spec.dtype!r}).min, np.iinfo({spec.dtype!r}).max)")
    order = ".transpose(2, 0, 1)" * (spec.layout == "NCHW")
    cast = f".astype({spec.dtype!r})" * (spec.dtype != "float32")
    return [*lines, f"return {_repeated(f'x{order}[None]{cast}', spec)}"]


def _shift(preprocess: Preprocess, spec: TensorSpec) -> tuple[list[float], list[float]]:
    """Mean and std a channel; for a quantized input with its scale and zero point in them."""
    if spec.scale is None:
        return list(preprocess.mean), list(preprocess.std)
    channels = range(1 if preprocess.colour == "GRAY" else 3)
    std = [preprocess.std[channel % len(preprocess.std)] * spec.scale for channel in channels]
    mean = [preprocess.mean[channel % len(preprocess.mean)] for channel in channels]
    return [value - spec.zero_point * step for value, step in zip(mean, std, strict=True)], std


def _loop(manifest: Manifest, spec: TensorSpec) -> list[str]:
    outputs = manifest.outputs[:1] if manifest.decode else manifest.outputs
    names = [output.name for output in outputs]
    run = STARTS[manifest.format].run(names, spec.name)
    wrong = "error" if manifest.preprocess else "'not an array file (.npy)'"
    lines = [
        "for path in sys.argv[1:]:",
        "    try:",
        "        x = prepare(path)",
        "    except Exception as error:",
        f"        sys.exit(f\"{{path}}: {{getattr(error, 'strerror', None) or {wrong}}}\")",
        "    print(path)",
    ]
    if not manifest.decode:
        return [*lines, *_raw(outputs, run)]
    pick = "" if outputs[0].batch_axis is None else f".take(0, {outputs[0].batch_axis})"
    scores = _real(f"{run}[0]{pick}", outputs[0])
    lines.append(f"    scores = {scores}.reshape(-1).astype(np.float64)")
    lines.append('    order = np.argsort(-scores, kind="stable")[:5]')
    if manifest.decode == "logits":
        lines.append("    scores = np.exp(scores - scores.max())")
        lines.append("    scores /= scores.sum()")
    label = "LABELS[index]" if manifest.labels else "index"
    return [*lines, "    for index in order:", f'        print(f"  {{scores[index]:.7f}}  {{{label}}}")']


def _raw(outputs: Sequence[TensorSpec], run: str) -> list[str]:
    names = [output.name for output in outputs]
    if all(output.scale is None for output in outputs):
        return [f"    for name, value in zip({names!r}, {run}):", "        print(name, value.tolist())"]
    return [
        f"    values = {run}",
        *(f"    values[{i}] = {_real(f'values[{i}]', one)}" for i, one in enumerate(outputs) if one.scale),
        f"    for name, value in zip({names!r}, values):",
        "        print(name, value.tolist())",
    ]


def _real(value: str, spec: TensorSpec) -> str:
    """What an output holds as real numbers, as `farthing.ops.scale.real` computes it."""
    if spec.scale is None:
        return value
    return f"(({value}.astype(np.float32) - np.float32({spec.zero_point})) * np.float32({spec.scale!r}))"
