"""Picture files to arrays of 8 bits: the one place that reads them, for tasks as for predictions."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.errors import FeedError, TaskError, require

Image = NDArray[np.uint8]
MAX_PIXELS = 89_478_485
"""Largest picture `load` reads: what fits 256 MiB with three channels (Pillow's own limit)."""
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # none that starts another program
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)


def load(path: Path | str, max_pixels: int = MAX_PIXELS) -> Image:
    """Read a picture file (JPEG, PNG, BMP, GIF, TIFF, WebP, PPM): RGB, or height x width if it is grey.

    It is turned upright as its EXIF orientation says. Transparency is dropped; of several frames the first is taken.

    Raises:
        TaskError: no such file, not a picture, damaged, more than ``max_pixels``, or deeper than 8 bits.
        NotInstalled: Pillow is missing.
    """
    pillow, operations = require("PIL.Image", "image"), require("PIL.ImageOps", "image")
    try:
        with pillow.open(path, formats=_FORMATS) as picture:
            if picture.width * picture.height > max_pixels:
                raise TaskError(
                    f"{path} has {picture.width} x {picture.height} pixels: more than {max_pixels} are refused"
                )
            return from_pillow(operations.exif_transpose(picture))
    except FeedError as error:
        raise TaskError(f"{path}: {error}") from error
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise TaskError(f"{path} has more pixels than {max_pixels}: refused") from error
    except FileNotFoundError as error:
        raise TaskError(f"there is no picture {path}: check the path") from error
    except _DAMAGE as error:
        reason = "is damaged or" if Path(path).is_file() else "cannot be read or"
        raise TaskError(
            f"{path} {reason} is not a picture this reads ({error}): replace it or leave it out"
        ) from error


def from_pillow(picture: Any) -> Image:
    """The pixels of a ``PIL.Image.Image``, as they are (no EXIF orientation): RGB, or height x width if it is grey.

    Raises:
        FeedError: it has more than 8 bits a channel; which of them matter, only its owner knows.
    """
    mode = picture.mode
    if mode.startswith(("I", "F")):
        raise FeedError(f"the picture has more than 8 bits a channel (mode {mode}): bring it to 8 bits first")
    if mode in {"1", "LA", "La"}:
        picture = picture.convert("L")
    elif mode not in {"L", "RGB"}:
        # By way of RGBA, as a palette with transparency has no straight way.
        picture = (picture.convert("RGBA") if mode in {"P", "PA"} else picture).convert("RGB")
    return np.array(picture, np.uint8)
