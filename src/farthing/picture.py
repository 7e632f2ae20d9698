"""Picture files to arrays of 8 bits: the one place that reads them, for tasks as for predictions."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
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
    return _read(Path(path), max_pixels)


def check(paths: Sequence[Path | str], tick: Callable[[int, int], None] | None = None) -> None:
    """Decode picture files, so that a broken one is known before hours of work rest on the others.

    Every byte of every picture is decoded, because that is what finds a file that was cut short: its header is whole,
    and Pillow's ``verify`` looks at no more of a JPEG. It costs less than one scoring of the same pictures: JPEGs are
    decoded at an eighth of their size (a quarter of the time), nothing is resized, and all cores take part. 100,000
    pictures of 640 x 480 take some 40 seconds of one core.

    Args:
        paths: the files.
        tick: called with (done, total).

    Raises:
        TaskError: why the first broken one cannot be read, how many there are, and the names of some more.
        NotInstalled: Pillow is missing.
    """
    require("PIL.Image", "image")
    found: list[tuple[str, str]] = []
    done, rest = 0, iter(paths)
    with ThreadPoolExecutor(max_workers=max(1, min(8, os.cpu_count() or 1))) as pool:
        while part := list(islice(rest, 64)):  # few at a time: an interruption need not wait for all
            for path, problem in zip(part, pool.map(_problem, part), strict=True):
                if problem:
                    found.append((str(path), problem))
            done += len(part)
            if tick:
                tick(done, len(paths))
    if found:
        others = ", ".join(path for path, _ in found[1:4])
        more = f"; {len(found)} of {len(paths)} pictures cannot be read, also {others}" if others else ""
        raise TaskError(found[0][1] + more + (" ..." if len(found) > 4 else ""))


def _problem(path: Path | str) -> str:
    try:
        _read(Path(path), MAX_PIXELS, small=True)
    except TaskError as error:
        return str(error)
    return ""


def _read(path: Path, max_pixels: int, small: bool = False) -> Image:
    """A picture; ``small`` takes one of a fraction of its size where the format allows for it."""
    pillow, operations = require("PIL.Image", "image"), require("PIL.ImageOps", "image")
    try:
        with pillow.open(path, formats=_FORMATS) as picture:
            if picture.width * picture.height > max_pixels:
                raise TaskError(
                    f"{path} has {picture.width} x {picture.height} pixels: more than {max_pixels} are refused"
                )
            if small:
                picture.draft("L", (1, 1))
            return from_pillow(operations.exif_transpose(picture))
    except FeedError as error:
        raise TaskError(f"{path}: {error}") from error
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise TaskError(f"{path} has more pixels than {max_pixels}: refused") from error
    except FileNotFoundError as error:
        raise TaskError(f"there is no picture {path}: check the path") from error
    except _DAMAGE as error:
        reason = "is damaged or" if path.is_file() else "cannot be read or"
        said = "" if isinstance(error, pillow.UnidentifiedImageError) else f" ({error})"
        raise TaskError(
            f"{path} {reason} is not a picture this reads{said}: replace it or leave it out"
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
