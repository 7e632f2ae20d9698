"""Pictures to model inputs: resize, crop, colour, normalise - as the manifest says, in numpy.

A picture is uint8, height x width x 3 (RGB) or height x width (grey). Everything works on stacks of them, so a thousand
small pictures cost little more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from farthing.errors import FeedError, ModelError
from farthing.model import Preprocess, Resize, TensorSpec
from farthing.ops.resample import Image, resample

_CHANNELS = {"RGB": (0, 1, 2), "BGR": (2, 1, 0), "GRAY": (0,)}


class Geometry(NamedTuple):
    """Where a picture's pixels lie in the model's input: ``position * scale + offset``, vertically and horizontally."""

    scale: tuple[float, float]
    offset: tuple[float, float]

    def restore(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes (x1, y1, x2, y2) in pixels of the input, n x 4, brought back to pixels of the picture."""
        scale = np.array([*self.scale[::-1], *self.scale[::-1]], np.float32)
        offset = np.array([*self.offset[::-1], *self.offset[::-1]], np.float32)
        return (boxes - offset) / scale


def geometry(height: int, width: int, preprocess: Preprocess) -> Geometry:
    """What `prepare` does to the coordinates of a picture of that size."""
    size, pad, scale, how = (height, width), (0, 0), (1.0, 1.0), preprocess.resize
    if how:
        size, pad = _size_and_pad(height, width, how)
        scale = (size[0] / height, size[1] / width)
        size = (how.height, how.width) if how.mode == "letterbox" else size
    top, left = _cut(size[0], size[1], preprocess.crop)
    return Geometry(scale, (pad[0] - top, pad[1] - left))


def _size_and_pad(height: int, width: int, resize: Resize) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size a picture is scaled to, and the rows and columns of padding before it."""
    high, wide = resize.height, resize.width
    if resize.mode == "stretch":
        return (high, wide), (0, 0)
    by_height = high * width > wide * height  # the factor wanted vertically is the larger one
    if resize.mode == "cover":
        return ((high, high * width // height) if by_height else (wide * height // width, wide)), (0, 0)
    factor = min(high / height, wide / width)
    size = (min(high, max(1, int(height * factor + 0.5))), min(wide, max(1, int(width * factor + 0.5))))
    return size, ((high - size[0]) // 2, (wide - size[1]) // 2)


def resize(image: Image, how: Resize) -> Image:
    """Bring a picture to size; see `farthing.ops.resample` for the two conventions that ``how.antialias`` tells apart.

    ``cover`` gives at least the wanted size (the longer side rounded down, as torchvision's ``Resize``), ``letterbox``
    exactly it, with an odd row or column of padding at the bottom or right.

    Raises:
        FeedError: not a picture.
    """
    _check_stack(image[None])
    (high, wide), (top, left) = _size_and_pad(image.shape[0], image.shape[1], how)
    scaled = resample(image, high, wide, how.filter, how.antialias)
    if how.mode != "letterbox" or (high, wide) == (how.height, how.width):
        return scaled
    canvas = np.full((how.height, how.width, *image.shape[2:]), how.fill, np.uint8)
    canvas[top : top + high, left : left + wide] = scaled
    return canvas


def prepare(image: Image, preprocess: Preprocess, spec: TensorSpec) -> NDArray[Any]:
    """One picture as the model's input, with a batch axis of size 1; see `prepare_batch`."""
    return prepare_batch(np.asarray(image)[None], preprocess, spec)


def prepare_batch(
    images: Sequence[Image] | NDArray[np.uint8], preprocess: Preprocess, spec: TensorSpec
) -> NDArray[Any]:
    """Pictures as the model's input: resize, centre crop, colour, then ``(x * scale - mean) / std`` in float32.

    Grey is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601, in Pillow's 16-bit arithmetic), taken before the resize; a
    grey picture for a colour model is repeated. The crop's corner is rounded as in torchvision's ``CenterCrop``.
    For inputs of an integer type the result, at the scale of ``spec``, is rounded to even and clipped to the type.

    Args:
        images: pictures of any sizes, or an array n x height x width [x 3 or 1] of pictures of one size (fast).
        preprocess: from the manifest.
        spec: the input, of layout ``NCHW`` or ``NHWC``, the batch axis first.

    Returns:
        An array of the type and layout of ``spec``, n samples along its first axis.

    Raises:
        FeedError: no pictures, not pictures, or of a size the input does not take.
        ModelError: the manifest's preprocess and input do not fit each other, or the layout is not a picture's.
    """
    check_input(preprocess, spec)
    pixels = _pixels(images, preprocess)
    height, width = pixels.shape[1:3]
    wanted = spec.shape[2:] if spec.layout == "NCHW" else spec.shape[1:3]
    if any(size != want for size, want in zip((height, width), wanted, strict=True) if isinstance(want, int)):
        remedy = "its crop" if preprocess.crop else "its resize" if preprocess.resize else "a resize"
        raise FeedError(
            f"input {spec.name!r} takes pictures of {wanted[0]} x {wanted[1]} (height x width), but preprocessed they "
            f"are {height} x {width}: set {remedy} in the manifest's preprocess to what the model was trained with"
        )
    return _normalised(pixels, preprocess, spec)


def check_input(preprocess: Preprocess, spec: TensorSpec) -> None:
    """Hold a manifest's preprocess against the input it feeds.

    Raises:
        ModelError: the layout is not a picture's, the element type is not a number, or the channels differ.
    """
    if spec.layout not in {"NCHW", "NHWC"} or len(spec.shape) != 4 or spec.batch_axis != 0:
        raise ModelError(
            f"input {spec.name!r} {list(spec.shape)} has layout {spec.layout!r} and batch axis {spec.batch_axis}: "
            "pictures go into NCHW or NHWC with batch axis 0; set both in the manifest"
        )
    if np.dtype(spec.dtype).kind not in "fiu":
        raise ModelError(f"input {spec.name!r} is {spec.dtype}: a picture needs a float or integer input")
    channels = spec.shape[1 if spec.layout == "NCHW" else 3]
    given = len(_CHANNELS[preprocess.colour])
    if isinstance(channels, int) and channels != given:
        raise ModelError(
            f"input {spec.name!r} has {channels} channels, but preprocess.colour {preprocess.colour} gives {given}: "
            "correct one of them in the manifest"
        )


def _check_stack(stack: NDArray[Any]) -> None:
    shape = stack.shape
    if stack.dtype != np.uint8 or len(shape) not in {3, 4} or (len(shape) == 4 and shape[3] not in {1, 3}):
        raise FeedError(
            f"not a picture: {stack.dtype} {list(shape[1:])}; "
            "give uint8, height x width x 3 (RGB) or height x width (grey)"
        )
    if 0 in shape:
        raise FeedError(f"an empty picture: {list(shape[1:])}" if shape[0] else "no pictures given")


def _pixels(images: Sequence[Image] | NDArray[np.uint8], preprocess: Preprocess) -> Image:
    """Resized and cropped pictures: n x height x width, or n x height x width x 3 in RGB."""
    if isinstance(images, np.ndarray):
        stack = _grey(images, preprocess)
        how = preprocess.resize
        if how and (how.height, how.width) != stack.shape[1:3]:
            stack = np.stack([resize(image, how) for image in stack])
        return _cropped(stack, preprocess.crop)
    if not len(images):
        raise FeedError("no pictures given")
    parts = [_pixels(np.asarray(image)[None], preprocess) for image in images]
    if len({part.shape[1:3] for part in parts}) > 1:
        raise FeedError(
            "the pictures differ in size: give the manifest's preprocess a resize, or pictures of one size"
        )
    if len({part.ndim for part in parts}) > 1:
        parts = [part if part.ndim == 4 else np.repeat(part[..., None], 3, axis=3) for part in parts]
    return np.concatenate(parts)


def _grey(stack: NDArray[np.uint8], preprocess: Preprocess) -> Image:
    _check_stack(stack)
    if stack.ndim == 3:
        return stack
    if stack.shape[3] == 1:
        return stack[..., 0]
    if preprocess.colour != "GRAY":
        return stack
    weighted = np.multiply(stack[..., 0], 19595, dtype=np.uint32)
    weighted += np.multiply(stack[..., 1], 38470, dtype=np.uint32)
    weighted += np.multiply(stack[..., 2], 7471, dtype=np.uint32)
    weighted += 0x8000
    weighted >>= 16
    return weighted.astype(np.uint8)


def _cut(height: int, width: int, crop: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns that a centre crop takes off at the top and left."""
    if crop is None:
        return 0, 0
    if crop[0] > height or crop[1] > width:
        raise FeedError(
            f"a crop of {crop[0]} x {crop[1]} does not fit a picture of {height} x {width} (height x width): "
            "give larger pictures, or the manifest's preprocess a resize"
        )
    return round((height - crop[0]) / 2), round((width - crop[1]) / 2)


def _cropped(stack: Image, crop: tuple[int, int] | None) -> Image:
    if crop is None:
        return stack
    top, left = _cut(stack.shape[1], stack.shape[2], crop)
    return stack[:, top : top + crop[0], left : left + crop[1]]


def _normalised(pixels: Image, preprocess: Preprocess, spec: TensorSpec) -> NDArray[Any]:
    """Colour, scale, mean and std, written plane by plane into the layout of ``spec``."""
    order = _CHANNELS[preprocess.colour]
    count, height, width = pixels.shape[:3]
    result = np.empty((count, len(order), height, width), spec.dtype)
    if spec.layout == "NHWC":
        result = np.empty((count, height, width, len(order)), spec.dtype)
    for channel, source in enumerate(order):
        plane = pixels if pixels.ndim == 3 else pixels[..., source]
        out = result[:, channel] if spec.layout == "NCHW" else result[..., channel]
        std = preprocess.std[channel % len(preprocess.std)] * (spec.scale or 1.0)
        mean = preprocess.mean[channel % len(preprocess.mean)] - spec.zero_point * std
        _scale(plane, preprocess.scale, mean, std, out)
    return result


def _scale(plane: Image, scale: float, mean: float, std: float, out: NDArray[Any]) -> None:
    if (scale, mean, std) == (1.0, 0.0, 1.0) and out.dtype != np.int8:
        out[:] = plane
        return
    values = out if out.dtype == np.float32 else np.empty(plane.shape, np.float32)
    np.multiply(plane, scale, out=values, dtype=np.float32, casting="unsafe")
    if mean != 0.0:
        np.subtract(values, mean, out=values, dtype=np.float32)
    if std != 1.0:
        np.divide(values, std, out=values, dtype=np.float32)
    if values is out:
        return
    if out.dtype.kind in "iu":
        limits = np.iinfo(out.dtype)
        np.rint(values, out=values)
        np.clip(values, limits.min, limits.max, out=values)
    out[:] = values
