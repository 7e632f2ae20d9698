"""Pictures to inputs, against Pillow and against the formula written out."""

from __future__ import annotations

import io
import random
import sys
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps
from sklearn.datasets import load_sample_images

from farthing.errors import FeedError, ModelError, NotInstalled, TaskError
from farthing.model import Preprocess, Resize, TensorSpec
from farthing.ops import image as ops
from farthing.ops.image import geometry, prepare, prepare_batch, resize
from farthing.picture import check, from_pillow, load

CHINA = load_sample_images().images[0]
RNG = np.random.default_rng(0)
RGB_STEPS = RNG.integers(0, 256, (7, 9, 3), dtype=np.uint8)
Colour = Literal["RGB", "BGR", "GRAY"]


def spec(
    *shape: int | str, layout: str = "NCHW", dtype: str = "float32", batch_axis: int | None = 0
) -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, shape=shape, batch_axis=batch_axis, layout=layout)


FREE = spec("n", "c", "h", "w")


def plain(colour: Colour = "RGB", scale: float = 1.0, **rest: Any) -> Preprocess:
    return Preprocess(colour=colour, scale=scale, **rest)


def size(height: int, width: int, mode: Any = "stretch", kernel: Any = "bilinear", fill: int = 0) -> Resize:
    return Resize(height=height, width=width, filter=kernel, antialias=True, mode=mode, fill=fill)


# --- load ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "tiff", "webp", "ppm"])
def test_every_format_that_is_named_can_be_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    Pillow.fromarray(CHINA[:64, :96]).save(path)
    image = load(path)
    assert image.shape == (64, 96, 3)
    assert image.dtype == np.uint8
    with Pillow.open(path) as picture:
        np.testing.assert_array_equal(image, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"]
)
def test_every_mode_becomes_grey_or_rgb(mode: str) -> None:
    source = Pillow.fromarray(CHINA[:20, :30])
    try:
        picture = source.convert(mode)
    except ValueError:
        picture = source.convert("P").convert(mode) if mode == "PA" else Pillow.new(mode, (30, 20))
    image = from_pillow(picture)
    if mode in {"1", "L", "LA"}:
        np.testing.assert_array_equal(image, np.asarray(picture.convert("L")))
    else:
        np.testing.assert_array_equal(image, np.asarray(picture.convert("RGB")))
    assert image.flags.writeable


def test_a_palette_with_transparent_colours(tmp_path: Path) -> None:
    picture = Pillow.fromarray(RGB_STEPS).convert("P")
    picture.save(tmp_path / "p.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(load(tmp_path / "p.png"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_camera_is_undone(tmp_path: Path, orientation: int) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    Pillow.fromarray(CHINA[:40, :60]).save(tmp_path / "o.png", exif=exif)
    image = load(tmp_path / "o.png")
    with Pillow.open(tmp_path / "o.png") as picture:
        np.testing.assert_array_equal(image, np.asarray(ImageOps.exif_transpose(picture)))
    assert image.shape[:2] == ((40, 60) if orientation <= 4 else (60, 40))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_eight_bits_are_not_guessed_at(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "deep.tiff"
    Pillow.new(mode, (4, 3)).save(path)
    with pytest.raises(TaskError, match=r"deep\.tiff: the picture has more than 8 bits a channel"):
        load(path)


def test_what_is_not_a_picture_is_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture")
    with pytest.raises(TaskError, match=r"notes\.jpg is damaged or is not a picture"):
        load(text)
    with pytest.raises(TaskError) as caught:
        load(np.str_(text))
    assert "np.str_" not in str(caught.value)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(TaskError, match=r"empty\.png is damaged"):
        load(tmp_path / "empty.png")
    with pytest.raises(TaskError, match=r"there is no picture .*missing\.png"):
        load(tmp_path / "missing.png")
    with pytest.raises(TaskError, match="cannot be read or is not a picture"):
        load(tmp_path)


@pytest.mark.parametrize("more", [{"suffix": "png"}, {"suffix": "jpg"}, {"suffix": "jpg", "progressive": True},
                                  {"suffix": "webp"}, {"suffix": "tiff"}, {"suffix": "bmp"}])  # fmt: skip
def test_a_picture_cut_short_is_found_beforehand(tmp_path: Path, more: dict[str, Any]) -> None:
    """The header is whole, so only decoding shows it: the check must fail where reading would."""
    suffix = more.pop("suffix")
    place = [tmp_path / f"{name}.{suffix}" for name in ("whole", "cut")]
    noise = np.random.default_rng(0).integers(0, 256, CHINA.shape, np.uint8)
    Pillow.fromarray(noise).save(place[0], **more)
    content = place[0].read_bytes()
    check([place[0]])
    for share in (0.5, 0.9):
        place[1].write_bytes(content[: int(len(content) * share)])
        with pytest.raises(TaskError, match=r"cut\.\w+ is damaged or is not a picture"):
            load(place[1])
        with pytest.raises(TaskError, match=r"cut\.\w+ is damaged or is not a picture"):
            check(place)


def test_all_broken_pictures_are_counted_and_some_are_named(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number:03}.png") for number in range(150)]
    for number, path in enumerate(paths):
        Pillow.new("L", (2, 2)).save(path)
        if number % 30 == 7:
            Path(path).write_bytes(b"words")
    told: list[tuple[int, int]] = []
    with pytest.raises(TaskError) as caught:
        check(np.array(paths), lambda done, total: told.append((done, total)))  # type: ignore[arg-type]
    said = str(caught.value)
    assert said.startswith(
        f"{paths[7]} is damaged or is not a picture this reads: replace it or leave it out"
    )
    assert f"5 of 150 pictures cannot be read, also {paths[37]}, {paths[67]}, {paths[97]} ..." in said
    assert "np.str_" not in said
    assert told == [(64, 150), (128, 150), (150, 150)]
    check([])


def test_what_reading_refuses_the_check_refuses(tmp_path: Path) -> None:
    Pillow.new("I;16", (4, 3)).save(tmp_path / "deep.tiff")
    with pytest.raises(TaskError, match="more than 8 bits"):
        check([tmp_path / "deep.tiff"])
    with pytest.raises(TaskError, match="there is no picture"):
        check([tmp_path / "missing.png"])


def test_formats_that_start_other_programs_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.eps").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(TaskError, match=r"x\.eps is damaged or is not a picture"):
        load(tmp_path / "x.eps")


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Pillow.new("1", (3000, 2000)).save(path)
    with pytest.raises(TaskError, match=r"large\.png has 3000 x 2000 pixels: more than 1000000 are refused"):
        load(path, max_pixels=1_000_000)
    assert load(path).shape == (2000, 3000)


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    header = io.BytesIO()
    Pillow.new("1", (1, 1)).save(header, "png")
    content = bytearray(header.getvalue())
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(TaskError, match=r"bomb\.png has .*refused"):
        load(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tiff", "webp", "bmp", "ppm"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_end_in_a_task_error_or_a_picture(tmp_path: Path, suffix: str) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    options = {"exif": exif} if suffix in {"jpg", "png", "webp", "tiff"} else {}
    Pillow.fromarray(CHINA[:48, :48]).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix), **options)
    rng = random.Random(suffix)
    path = tmp_path / f"damaged.{suffix}"
    complaints = []
    for _ in range(150):
        content = bytearray(buffer.getvalue())
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(min(len(content), 400))] = rng.randrange(256)
        path.write_bytes(content[: rng.randint(1, len(content))] if rng.random() < 0.5 else content)
        try:
            load(path, max_pixels=1 << 20)
        except TaskError as error:
            complaints.append(str(error))
    assert complaints
    assert all(str(path) in complaint for complaint in complaints)


# --- resize -------------------------------------------------------------------------------------------


def test_stretch_ignores_proportions() -> None:
    assert resize(CHINA, size(50, 60)).shape == (50, 60, 3)


@given(
    height=st.integers(1, 300), width=st.integers(1, 300), high=st.integers(1, 60), wide=st.integers(1, 60)
)
def test_cover_fills_the_size_and_letterbox_fits_into_it(
    height: int, width: int, high: int, wide: int
) -> None:
    image = np.full((height, width), 200, np.uint8)
    covered = resize(image, size(high, wide, "cover")).shape
    assert covered[0] >= high
    assert covered[1] >= wide
    assert covered[0] == high or covered[1] == wide
    assert abs(covered[0] * width - covered[1] * height) <= max(height, width)
    boxed = resize(image, size(high, wide, "letterbox", fill=7))
    assert boxed.shape == (high, wide)
    rows, columns = (boxed == 200).any(axis=1).sum(), (boxed == 200).any(axis=0).sum()
    assert (boxed == 200).sum() == rows * columns == boxed.size - (boxed == 7).sum()
    assert rows == high or columns == wide


def test_letterbox_puts_the_odd_row_at_the_end() -> None:
    boxed = resize(np.full((10, 20), 9, np.uint8), size(9, 8, "letterbox", fill=1))
    assert (boxed == 9).any(axis=1).tolist() == [False] * 2 + [True] * 4 + [False] * 3


def test_cover_and_crop_are_torchvisions_resize_and_centercrop() -> None:
    """The common ImageNet pipeline, as torchvision computes its sizes and corners (427 x 640 -> 256 x 383 -> 224)."""
    preprocess = plain(resize=size(256, 256, "cover"), crop=(224, 224))
    picture = Pillow.fromarray(CHINA).resize((int(256 * 640 / 427), 256), Pillow.Resampling.BILINEAR)
    top, left = round((256 - 224) / 2.0), round((383 - 224) / 2.0)
    expected = np.asarray(picture.crop((left, top, left + 224, top + 224)))
    result = prepare(CHINA, preprocess, spec("n", 3, 224, 224))
    np.testing.assert_array_equal(result[0], expected.transpose(2, 0, 1))


# --- prepare ------------------------------------------------------------------------------------------


def expected_input(image: NDArray[np.uint8], preprocess: Preprocess, layout: str) -> NDArray[np.float32]:
    """The manifest's words, by Pillow and plain numpy."""
    picture = Pillow.fromarray(image).convert("L" if preprocess.colour == "GRAY" else "RGB")
    how = preprocess.resize
    if how:
        kernel = getattr(Pillow.Resampling, how.filter.upper())
        picture = picture.resize((how.width, picture.height), kernel).resize((how.width, how.height), kernel)
    pixels = np.asarray(picture)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if preprocess.colour == "BGR":
        pixels = pixels[..., ::-1]
    values = pixels.astype(np.float32) * np.float32(preprocess.scale)
    values = (values - np.float32(preprocess.mean)) / np.float32(preprocess.std)
    return values[None] if layout == "NHWC" else values.transpose(2, 0, 1)[None]


@given(
    colour=st.sampled_from(["RGB", "BGR", "GRAY"]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    scale=st.sampled_from([1.0, 1 / 255, 1 / 128]),
    shift=st.sampled_from(
        [((0.0,), (1.0,)), ((127.0,), (128.0,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    ),
    target=st.one_of(st.none(), st.tuples(st.integers(1, 40), st.integers(1, 40))),
    grey=st.booleans(),
    kernel=st.sampled_from(["bilinear", "bicubic", "lanczos", "box"]),
)
@settings(max_examples=150)
def test_prepare_does_what_the_manifest_says(
    colour: Colour, layout: str, scale: float, shift: Any, target: Any, grey: bool, kernel: str
) -> None:
    mean, std = shift if colour != "GRAY" else (shift[0][:1], shift[1][:1])
    image = RNG.integers(0, 256, (23, 31) if grey else (23, 31, 3), dtype=np.uint8)
    how = size(*target, kernel=kernel) if target else None
    preprocess = plain(colour, scale, mean=mean, std=std, resize=how)
    result = prepare(image, preprocess, spec("n", "h", "w", "c", layout=layout))
    expected = expected_input(image, preprocess, layout)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, expected, rtol=2e-7, atol=0)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.booleans()), min_size=1, max_size=6))
def test_a_batch_is_its_samples(shapes: list[tuple[int, int, bool]]) -> None:
    images = [RNG.integers(0, 256, (h, w) if grey else (h, w, 3), dtype=np.uint8) for h, w, grey in shapes]
    preprocess = plain("BGR", 1 / 255, mean=(0.1, 0.2, 0.3), resize=size(8, 9, "letterbox"), crop=(5, 6))
    together = prepare_batch(images, preprocess, FREE)
    singly = [prepare(image, preprocess, FREE) for image in images]
    np.testing.assert_array_equal(together, np.concatenate(singly))


@pytest.mark.parametrize("shape", [(6, 12, 10), (6, 12, 10, 1), (6, 12, 10, 3)])
@pytest.mark.parametrize("how", [None, size(12, 10), size(5, 5), size(12, 10, "letterbox")])
def test_an_array_of_pictures_is_a_list_of_them(shape: tuple[int, ...], how: Resize | None) -> None:
    stack = RNG.integers(0, 256, shape, dtype=np.uint8)
    preprocess = plain("RGB", 1 / 255, resize=how)
    np.testing.assert_array_equal(
        prepare_batch(stack, preprocess, FREE), prepare_batch(list(stack), preprocess, FREE)
    )


@pytest.mark.parametrize(
    ("dtype", "scale", "mean", "expected"),
    [
        ("uint8", 1.0, 0.0, [0, 1, 127, 128, 255]),
        ("int8", 1.0, 128.0, [-128, -127, -1, 0, 127]),
        ("int8", 1.0, 0.0, [0, 1, 127, 127, 127]),
        ("uint8", 0.5, 0.0, [0, 0, 64, 64, 128]),
        ("uint8", 1.0, 100.0, [0, 0, 27, 28, 155]),
        ("int32", 2.0, 0.0, [0, 2, 254, 256, 510]),
        ("int64", 1.0, 0.0, [0, 1, 127, 128, 255]),
        ("float16", 0.5, 0.0, [0, 0.5, 63.5, 64, 127.5]),
        ("float64", 0.25, 1.0, [-1, -0.75, 30.75, 31, 62.75]),
    ],
)
def test_inputs_of_every_type(dtype: str, scale: float, mean: float, expected: list[float]) -> None:
    image = np.array([[0, 1, 127, 128, 255]], np.uint8)
    result = prepare(image, plain("GRAY", scale, mean=(mean,)), spec("n", 1, 1, 5, dtype=dtype))
    assert result.dtype.name == dtype
    assert result.ravel().tolist() == expected


def test_grey_is_pillows_l_for_every_colour() -> None:
    colours = np.stack(np.meshgrid(*[np.arange(0, 256, 5)] * 3), axis=-1).reshape(52, -1, 3).astype(np.uint8)
    result = prepare(colours, plain("GRAY"), spec("n", 1, "h", "w", dtype="uint8"))
    np.testing.assert_array_equal(result[0, 0], np.asarray(Pillow.fromarray(colours).convert("L")))


def test_the_pictures_are_left_alone() -> None:
    image = RGB_STEPS.copy()
    prepare(image, plain("GRAY", 1 / 255, mean=(0.5,)), FREE)
    np.testing.assert_array_equal(image, RGB_STEPS)
    result = prepare(image, plain(), spec("n", "h", "w", "c", layout="NHWC", dtype="uint8"))
    result[:] = 0
    np.testing.assert_array_equal(image, RGB_STEPS)


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.float32), r"not a picture: float32 \[4, 4\]; give uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"not a picture: uint8 \[4, 4, 4\]"),
        (np.zeros((4,), np.uint8), r"not a picture: uint8 \[4\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"not a picture: uint8 \[2, 4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"an empty picture: \[0, 4, 3\]"),
        (np.array("x"), "not a picture: <U1"),
    ],
)
def test_what_is_not_a_picture_is_refused(image: Any, message: str) -> None:
    with pytest.raises(FeedError, match=message):
        prepare(image, plain(), FREE)


@pytest.mark.parametrize("none", [[], np.zeros((0, 4, 4), np.uint8)])
def test_no_pictures(none: Any) -> None:
    with pytest.raises(FeedError, match="no pictures given"):
        prepare_batch(none, plain(), FREE)


def test_pictures_of_a_size_that_the_model_does_not_take() -> None:
    tight = spec("n", 3, 28, 32)
    with pytest.raises(FeedError, match=r"28 x 32 .*they are 7 x 9: set a resize in the manifest"):
        prepare(RGB_STEPS, plain(), tight)
    with pytest.raises(FeedError, match="set its resize"):
        prepare(RGB_STEPS, plain(resize=size(28, 28)), tight)
    with pytest.raises(FeedError, match="set its crop"):
        prepare(RGB_STEPS, plain(crop=(2, 2)), tight)
    with pytest.raises(FeedError, match="a crop of 8 x 2 does not fit a picture of 7 x 9"):
        prepare(RGB_STEPS, plain(crop=(8, 2)), FREE)
    with pytest.raises(FeedError, match="the pictures differ in size"):
        prepare_batch([RGB_STEPS, CHINA], plain(), FREE)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (spec("n", 3, 8, 8, layout=""), "has layout '' and batch axis 0: pictures go into NCHW or NHWC"),
        (spec("n", 192, layout="NC"), "has layout 'NC'"),
        (spec("n", 3, 8, 8, batch_axis=None), "batch axis None"),
        (spec("n", 1, 8, 8), r"has 1 channels, but preprocess\.colour RGB gives 3"),
        (spec("n", 8, 8, 3), r"has 8 channels"),
        (spec("n", 3, 8, 8, dtype="bool"), "is bool: a picture needs a float or integer input"),
        (spec("n", 3, 8, 8, dtype="str"), "is str: a picture needs"),
    ],
)
def test_a_manifest_that_contradicts_itself(bad: TensorSpec, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        prepare(RGB_STEPS, plain(), bad)


# --- geometry -----------------------------------------------------------------------------------------


@given(
    height=st.integers(20, 120),
    width=st.integers(20, 120),
    mode=st.sampled_from(["stretch", "cover", "letterbox", None]),
    crop=st.sampled_from([None, (16, 12)]),
)
def test_boxes_found_in_the_input_go_back_to_the_picture(
    height: int, width: int, mode: str | None, crop: tuple[int, int] | None
) -> None:
    """The centre of a bright square, found in the prepared input, is its centre in the picture."""
    image = np.zeros((height, width), np.uint8)
    y, x = height // 2 - 4, width // 2 - 4
    image[y : y + 8, x : x + 8] = 255
    preprocess = plain("GRAY", resize=size(64, 48, mode) if mode else None, crop=crop)
    values = prepare(image, preprocess, FREE)[0, 0]
    weights = values / values.sum()
    centre_y = float((weights.sum(axis=1) * (np.arange(values.shape[0]) + 0.5)).sum())
    centre_x = float((weights.sum(axis=0) * (np.arange(values.shape[1]) + 0.5)).sum())
    if values[0].any() or values[-1].any() or values[:, 0].any() or values[:, -1].any():
        return  # the square is cut by the border
    boxes = np.array([[centre_x - 1, centre_y - 1, centre_x + 1, centre_y + 1]], np.float32)
    box = geometry(height, width, preprocess).restore(boxes)[0]
    assert box.dtype == np.float32
    assert (box[0] + box[2]) / 2 == pytest.approx(x + 4, abs=0.3)
    assert (box[1] + box[3]) / 2 == pytest.approx(y + 4, abs=0.3)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(NotInstalled, match=r"farthing\[image\]"):
        load(tmp_path / "x.png")
    assert ops.prepare(RGB_STEPS, plain(), FREE).shape == (1, 3, 7, 9)
