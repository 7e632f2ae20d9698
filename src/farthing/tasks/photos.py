"""Photos of ImageNet, for agreement with a float model: 20 photos seen 50 times each are not 1,000 photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from farthing.task import Split, Task
from farthing.tasks.gallery import COUNTED, IMAGENET, Box, Image, pictures, views

VIEWS = 50
CALIBRATION_VIEWS = 20
SIZE = 256
SMALLEST = 0.6


def imagenet_photos(cache: Path | None = None, on_event: Callable[[str], None] | None = None) -> Task:
    """20 photos of ImageNet that the package foolbox ships, 50 fixed views of each; agreement with the float model.

    Pictures, uint8 (256, 256, 3). A photo's first view is its middle square, the others are squares of 60 to 100 % of
    its shorter side, their places drawn once and for all. Ten photos validate, the other ten test, 500 views each; the
    views of a photo belong together, so that intervals are those of new photos. Calibration has 260 views of 13 other
    photos, without labels. The labels of the rest are ImageNet's classes 0..999: the models were trained on that
    set, perhaps on these photos, so that agreement says more than accuracy.

    Raises:
        AssetError: a photo is not cached and cannot be fetched.
        NotInstalled: Pillow is missing.
    """
    labels, assets = zip(*IMAGENET, strict=True)
    photos = pictures(assets, cache, on_event)
    others = [photo.asset for photo in COUNTED.values()]
    splits = {"calibration": _split(pictures(others, cache, on_event), CALIBRATION_VIEWS)}
    for name, first in (("validation", 0), ("test", 1)):
        splits[name] = _split(photos[first::2], VIEWS, labels[first::2])
    licence = "; ".join(dict.fromkeys(asset.licence for asset in (*assets, *others)))
    return Task("imagenet-photos", splits, "agreement", form="image", licence=licence)


def _split(photos: Sequence[Image], count: int, labels: Sequence[int] = ()) -> Split:
    seen = [
        part
        for number, photo in enumerate(photos)
        for part in views(photo, _boxes(photo, count, number), SIZE, SIZE)
    ]
    groups = np.repeat(np.arange(len(photos)), count)
    return Split({"": np.stack(seen)}, np.repeat(labels, count) if labels else None, groups)


def _boxes(photo: Image, count: int, seed: int) -> list[Box]:
    """Squares of a photo: the middle one, and random ones."""
    high, wide = photo.shape[:2]
    side = min(high, wide)
    left, top = (wide - side) // 2, (high - side) // 2
    boxes = [(left, top, left + side, top + side)]
    draw = np.random.default_rng(seed)
    for _ in range(count - 1):
        size = int(side * draw.uniform(SMALLEST, 1))
        left, top = (int(draw.integers(0, room + 1)) for room in (wide - size, high - size))
        boxes.append((left, top, left + size, top + size))
    return boxes
