"""Faces in photos: found are those that were counted, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.errors import TaskError
from farthing.metrics import Metric, Outputs, overlaps
from farthing.task import Split, Task
from farthing.tasks.gallery import COUNTED, Box, Image, pictures, views

Array = NDArray[Any]
HEIGHT, WIDTH = 480, 640
SCALES = (1.0, 0.9, 0.8, 0.7)
MOST = 5
CONFIDENCE = 0.5
SAME = 0.5
SUPPRESSED = 0.3
STRIDE = 4
PHOTOS = {
    "calibration": ("sample2", "coffee"),
    "validation": ("sample1", "sample4", "sample5", "china", "chelsea", "motorcycle"),
    "test": ("sample3", "sample6", "astronaut", "flower", "rocket"),
}


def faces(cache: Path | None = None, on_event: Callable[[str], None] | None = None) -> Task:
    """13 photos that packages ship, the faces in them counted by eye (none to five), for detectors such as CenterFace.

    Pictures, uint8 (480, 640, 3): a photo on black, its proportions kept, in eight views - at 100, 90, 80 and 70 % of
    the size that fits, each as it is and mirrored. Two photos calibrate, six validate, five test; the views of a photo
    belong together. Labels are as for the metric ``map``: (samples, 5, 5), a row is 0, x1, y1, x2, y2 in pixels of the
    picture, or -1 and zeros. The metric is the share of views in which each counted face is found, and nothing else:
    see `found`. The photos are few, and the boxes were proposed by CenterFace: what a smaller form of it loses is
    shown, its worth on other photos is not.

    Raises:
        AssetError: a photo is not cached and cannot be fetched.
        NotInstalled: Pillow is missing.
    """
    files = pictures([photo.asset for photo in COUNTED.values()], cache, on_event)
    everything = dict(zip(COUNTED, files, strict=True))
    splits = {name: _split({key: everything[key] for key in keys}) for name, keys in PHOTOS.items()}
    terms = dict.fromkeys(photo.asset.licence for photo in COUNTED.values())
    return Task("faces", splits, FACES, form="image", licence="; ".join(terms))


def _split(photos: Mapping[str, Image]) -> Split:
    seen, labels = [], []
    for key, picture in photos.items():
        for scale in SCALES:
            canvas, boxes = _placed(picture, COUNTED[key].faces, scale)
            seen += [canvas, canvas[:, ::-1]]
            mirrored = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [WIDTH, 0, WIDTH, 0]
            labels += [_padded(boxes), _padded(mirrored)]
    groups = np.repeat(np.arange(len(photos)), 2 * len(SCALES))
    return Split({"": np.stack(seen)}, np.stack(labels), groups)


def _placed(picture: Image, counted: Sequence[Box], scale: float) -> tuple[Array, Array]:
    """The photo in the middle of a black canvas, and its boxes there."""
    high, wide = picture.shape[:2]
    factor = scale * min(HEIGHT / high, WIDTH / wide)
    height, width = round(high * factor), round(wide * factor)
    top, left = (HEIGHT - height) // 2, (WIDTH - width) // 2
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    canvas[top : top + height, left : left + width] = views(picture, [(0, 0, wide, high)], width, height)[0]
    boxes = np.array(counted, float).reshape(-1, 4) * [
        width / wide,
        height / high,
        width / wide,
        height / high,
    ]
    boxes += [left, top, left, top]
    return canvas, boxes


def _padded(boxes: Array) -> Array:
    rows = np.full((MOST, 5), [-1.0, 0, 0, 0, 0], np.float32)
    rows[: len(boxes), 0], rows[: len(boxes), 1:] = 0, boxes
    return rows


def found(outputs: Outputs, labels: Array) -> Array:
    """1 for a picture in which each counted face is found once (overlap of at least a half) and nothing else, else 0.

    Outputs are named ``boxes`` (n, k, 4), ``scores`` (n, k), as for the metric ``map``; or they are the first three of
    CenterFace, (n, 1, h, w), (n, 2, h, w) and (n, 2, h, w). What scores less than 0.5 is no face.
    """
    result = np.zeros(len(labels))
    for number, rows in enumerate(labels):
        boxes = _detected({name: array[number] for name, array in outputs.items()})
        truth = rows[rows[:, 0] >= 0, 1:]
        if len(boxes) == len(truth):
            same = overlaps(boxes, truth) >= SAME
            result[number] = bool((same.sum(0) == 1).all() and (same.sum(1) == 1).all())
    return result


def _detected(outputs: Outputs) -> Array:
    if {"boxes", "scores"} <= set(outputs):
        return np.asarray(outputs["boxes"][outputs["scores"] >= CONFIDENCE], np.float64)
    maps = [*outputs.values()][:3]
    if [array.shape[0] for array in maps] != [1, 2, 2] or len({array.shape[1:] for array in maps}) != 1:
        shapes = {name: list(array.shape) for name, array in outputs.items()}
        raise TaskError(
            f"the task faces reads outputs named boxes and scores, or those of CenterFace, not {shapes} for a picture"
        )
    heat, size, offset = maps
    return centres(heat, size, offset)


def centres(heat: Array, size: Array, offset: Array, confidence: float = CONFIDENCE) -> Array:
    """The faces CenterFace sees, best first: boxes x1, y1, x2, y2 in pixels of its input.

    A face is a place of the heat map (Xu et al., arXiv:1911.03599; decoded as its authors do): its middle lies there
    plus the offset, in steps of 4 pixels, its height and width are e to the power of the size, in steps of 4 pixels.
    Of boxes that overlap by 0.3 or more the best stays.

    Args:
        heat: (1, h, w); size: (2, h, w), vertical first; offset: (2, h, w), vertical first.
        confidence: least heat of a face.
    """
    rows, columns = np.nonzero(heat[0] >= confidence)
    half = np.exp(size[:, rows, columns].astype(np.float64)) * STRIDE / 2
    middle = (np.stack([rows, columns]) + offset[:, rows, columns] + 0.5) * STRIDE
    boxes = np.stack([middle[1] - half[1], middle[0] - half[0], middle[1] + half[1], middle[0] + half[0]], 1)
    boxes = boxes[np.argsort(-heat[0, rows, columns], kind="stable")]
    kept: list[int] = []
    close = overlaps(boxes, boxes) >= SUPPRESSED
    for number in range(len(boxes)):
        if not close[number, kept].any():
            kept.append(number)
    return np.asarray(boxes[kept])


FACES = Metric("faces", "labels", per_sample=found)
