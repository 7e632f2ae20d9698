"""Resizing against the libraries whose conventions it keeps: Pillow to the bit, torch to the rounding."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from sklearn.datasets import load_sample_images

from farthing.model import Filter
from farthing.ops.resample import Image, resample

torch = pytest.importorskip("torch")  # absent where the lowest versions are run

torch.set_num_threads(1)
PILLOW: dict[Filter, Pillow.Resampling] = {
    "nearest": Pillow.Resampling.NEAREST,
    "bilinear": Pillow.Resampling.BILINEAR,
    "bicubic": Pillow.Resampling.BICUBIC,
    "lanczos": Pillow.Resampling.LANCZOS,
    "box": Pillow.Resampling.BOX,
}
PHOTOS: list[Image] = [photo[::2, ::2] for photo in load_sample_images().images]

sizes = st.integers(1, 70)
kernels = st.sampled_from(get_args(Filter))


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Noise, hard black and white, or a piece of a photo; grey or colour."""
    height, width, seed = draw(sizes), draw(sizes), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    channels = draw(st.sampled_from([(), (3,)]))
    match draw(st.sampled_from(["noise", "hard", "photo"])):
        case "noise":
            image = rng.integers(0, 256, (height, width, *channels))
        case "hard":
            image = rng.integers(0, 2, (height, width, *channels)) * 255
        case _:
            top, left = rng.integers(0, 130), rng.integers(0, 230)
            image = PHOTOS[seed % 2][top : top + height, left : left + width]
            image = image if channels else image[..., 1]
    return image.astype(np.uint8)


def by_pillow(image: Image, height: int, width: int, kernel: Filter) -> Image:
    """One pass after the other, horizontally first, as every Pillow below 13 does it by itself."""
    picture = Pillow.fromarray(image)
    if kernel != "nearest":
        picture = picture.resize((width, image.shape[0]), PILLOW[kernel])
    return np.asarray(picture.resize((width, height), PILLOW[kernel]))


def by_torch(image: Image, height: int, width: int, mode: str) -> np.ndarray[Any, Any]:
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    exact = np.float32 if mode.startswith("nearest") else np.float64
    tensor = torch.from_numpy(planes.astype(exact))[None]
    corners = {} if mode.startswith("nearest") else {"align_corners": False}
    result = torch.nn.functional.interpolate(tensor, (height, width), mode=mode, **corners)[0].numpy()
    return result[0] if image.ndim == 2 else result.transpose(1, 2, 0)


@given(image=images(), height=sizes, width=sizes, kernel=kernels)
@settings(max_examples=400)
def test_with_antialias_it_is_pillow_to_the_bit(
    image: Image, height: int, width: int, kernel: Filter
) -> None:
    np.testing.assert_array_equal(
        resample(image, height, width, kernel, True), by_pillow(image, height, width, kernel)
    )


@given(
    image=images(), height=sizes, width=sizes, mode=st.sampled_from(["bilinear", "bicubic", "nearest", "box"])
)
@settings(max_examples=400)
def test_without_antialias_it_is_torch_to_the_rounding(
    image: Image, height: int, width: int, mode: Any
) -> None:
    expected = by_torch(image, height, width, "nearest-exact" if mode == "box" else mode)
    result = resample(image, height, width, mode, False)
    assert np.abs(result - np.clip(expected, 0, 255)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("kernel", get_args(Filter))
@pytest.mark.parametrize("size", [(224, 224), (96, 200), (500, 900)])
def test_a_photo_is_what_pillow_makes_of_it_by_itself(kernel: Filter, size: tuple[int, int]) -> None:
    """Height not shrunk much more than width: every Pillow takes the same order of passes."""
    for photo in load_sample_images().images:
        expected = np.asarray(Pillow.fromarray(photo).resize(size[::-1], PILLOW[kernel]))
        np.testing.assert_array_equal(resample(photo, *size, kernel, True), expected)


@pytest.mark.parametrize("kernel", get_args(Filter))
def test_whatever_the_order_of_passes_a_photo_differs_little(kernel: Filter) -> None:
    for photo in load_sample_images().images:
        expected = np.asarray(Pillow.fromarray(photo).resize((600, 100), PILLOW[kernel])).astype(int)
        difference = np.abs(resample(photo, 100, 600, kernel, True) - expected)
        assert difference.max() <= 16
        assert (difference > 1).mean() < 0.005


@given(image=images(), height=sizes, width=sizes, kernel=kernels, antialias=st.booleans())
def test_a_flat_picture_stays_flat_and_a_grey_one_is_one_plane_of_a_colour_one(
    image: Image, height: int, width: int, kernel: Filter, antialias: bool
) -> None:
    flat = np.full(image.shape, 137, np.uint8)
    result = resample(flat, height, width, kernel, antialias)
    assert result.shape == (height, width, *image.shape[2:])
    assert (result == 137).all()
    plane = image if image.ndim == 2 else image[..., 0]
    colour = np.stack([plane] * 3, axis=-1)
    grey = resample(plane, height, width, kernel, antialias)
    np.testing.assert_array_equal(resample(colour, height, width, kernel, antialias)[..., 1], grey)


@given(image=images(), height=sizes, width=sizes, kernel=st.sampled_from(["bilinear", "bicubic", "lanczos"]))
def test_mirroring_before_is_mirroring_after(image: Image, height: int, width: int, kernel: Filter) -> None:
    mirrored = resample(np.ascontiguousarray(image[::-1, ::-1]), height, width, kernel, False)
    straight = resample(image, height, width, kernel, False)[::-1, ::-1]
    assert np.abs(mirrored.astype(int) - straight).max() <= 1  # sums end on the other side of a half


def test_the_input_is_left_alone_and_may_be_a_view() -> None:
    photo = PHOTOS[0]
    view = photo[5:100:2, 200:20:-3, ::-1]
    before = view.copy()
    result = resample(view, 31, 17, "bicubic", True)
    np.testing.assert_array_equal(view, before)
    np.testing.assert_array_equal(result, resample(before, 31, 17, "bicubic", True))
    assert resample(photo, *photo.shape[:2], "lanczos", True) is photo


def test_a_large_picture_goes_through_in_pieces() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (1500, 2100), dtype=np.uint8)
    for kernel in ("bilinear", "lanczos"):
        np.testing.assert_array_equal(
            resample(image, 97, 101, kernel, True), by_pillow(image, 97, 101, kernel)
        )
