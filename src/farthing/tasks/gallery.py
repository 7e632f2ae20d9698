"""Single photos out of packages, pinned: 20 of ImageNet with their labels, 13 others with the faces in them counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from farthing.assets import Asset, fetch_all
from farthing.errors import require
from farthing.picture import load

Image = NDArray[np.uint8]
Box = tuple[int, int, int, int]


class Photo(NamedTuple):
    """A photo and the faces in it: boxes x1, y1, x2, y2 in its own pixels."""

    asset: Asset
    faces: tuple[Box, ...] = ()


def _api(number: int, sha256: str, *faces: Box) -> Photo:
    asset = Asset(
        source="npm",
        package="@vladmandic/face-api",
        version="1.7.15",
        member=f"demo/sample{number}.jpg",
        sha256=sha256,
        licence="MIT (package); it states no terms of its own for the photos",
        about="people in a room",
    )
    return Photo(asset, faces)


def _skimage(name: str, sha256: str, licence: str, *faces: Box) -> Photo:
    asset = Asset(
        source="pypi",
        package="scikit-image",
        version="0.26.0",
        member=f"skimage/data/{name}",
        sha256=sha256,
        licence=f"BSD-3-Clause (package); the photo: {licence}",
    )
    return Photo(asset, faces)


def _sklearn(name: str, sha256: str) -> Photo:
    asset = Asset(
        source="pypi",
        package="scikit-learn",
        version="1.9.1",
        member=f"sklearn/datasets/images/{name}",
        sha256=sha256,
        licence="BSD-3-Clause (package); the photo: CC BY 2.0 as its notes say",
    )
    return Photo(asset)


COUNTED = {
    "sample1": _api(
        1,
        "8ecae4b267b2d3169e06e00c7dee97097aa2a94635d45216f7732a5f4943cb51",
        (418, 370, 599, 591),
        (834, 440, 1027, 661),
        (1479, 229, 1676, 417),
    ),
    "sample2": _api(
        2,
        "7d2b60ae6f13bf30f422e04df87451081a02c83de469056f25afb44b7000c691",
        (1446, 178, 1639, 385),
        (907, 248, 1073, 459),
        (362, 152, 538, 435),
    ),
    "sample3": _api(
        3,
        "8eb081c9efb14370fa94d9feab9e5fbeafd19a627491853a80c2bf67f7ffa936",
        (1495, 287, 1685, 572),
        (1081, 203, 1307, 512),
        (588, 335, 793, 596),
    ),
    "sample4": _api(
        4,
        "729efa5923061d40eb4ed5f267a18cc7b8ba6f852bb2757b16d8b7e4937476fc",
        (656, 65, 842, 310),
        (985, 193, 1164, 421),
        (1274, 152, 1430, 393),
        (254, 200, 421, 439),
    ),
    "sample5": _api(
        5,
        "6d45095ebb182d8f975c0790e0e4eefd86fbb40609cf4b271776d92e12662938",
        (787, 116, 949, 333),
        (368, 875, 577, 1182),
        (1407, 402, 1607, 673),
        (603, 425, 775, 671),
        (1113, 210, 1278, 431),
    ),
    "sample6": _api(
        6,
        "9baad80f9d5e306fb9b8c0913d44445f1e95848df317530efb03d0934c57ba87",
        (1486, 268, 1702, 562),
        (1171, 311, 1377, 596),
        (252, 494, 476, 772),
        (676, 326, 872, 635),
    ),
    "astronaut": _skimage(
        "astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "public domain (NASA)",
        (178, 56, 271, 179),
    ),
    "coffee": _skimage(
        "coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "CC0 as its notes say",
    ),
    "chelsea": _skimage(
        "chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "CC0 as its notes say",
    ),
    "rocket": _skimage(
        "rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "public domain (SpaceX) as its notes say",
    ),
    "motorcycle": _skimage(
        "motorcycle_left.png",
        "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
        "of the Middlebury stereo data sets, which state no licence",
    ),
    "china": _sklearn("china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"),
    "flower": _sklearn("flower.jpg", "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638"),
}
"""Photos with the faces in them, counted by eye. The boxes are those CenterFace finds at 640 x 480 pixels, each looked
at: they favour that model, and show what a smaller form of it loses; they are not an independent test of it."""

_IMAGENET = (
    (243, "28b7b933c8028c6e20bf74a86a709eda42ce99f14c8742cb657cb386f08a4c9d"),
    (559, "5f03b0c74dff01b5b4195d0beabcae2a625a406e6917957ab9c455b5b7dea6d6"),
    (438, "ccef0734c1a65549c6cb5adb0f5d9b1c0b2e2104aba50a9e5f9202dc6d4532ed"),
    (990, "c7f0b2f1e9ee39d8f900759e8983afa2e4a2d7de090060e8bb947f6e90cace5f"),
    (949, "a7f62f3c1d214de4718c7253871ab38209283249e131faf65b8f2b7fdc970669"),
    (853, "8a449436c61da867528b1f4efaf8ae832ab9c9201705eae0d3af1353fbdac131"),
    (609, "fb061102a4e58b3ed942bb2a4f9542e1e1acdc8f225ef95498e93889290e192f"),
    (609, "2c297ad1e5c4804a647e9b34bc02ee2fc348b05a4d49050d170fb61c948efa5c"),
    (915, "c6a3411a3987799f0de45adc142f00ca412c3e14073c635e2adfae1f3913180c"),
    (455, "ace3716b60ac5843269b270e17020e4f8138440cd30ef3487f7d6e54da9745a4"),
    (541, "f325c71d9f4290ee45e99bd7ad42f4bffe513b1450ad21e7bd61c7cb137395d9"),
    (630, "892dff58fc528fe63d2df0c783aa3eca2342637798578ce01763fbc0553eda01"),
    (741, "6c256e17545b25bbf2e06cf6513ff48d049583569515ac4d4c3a52aea804a529"),
    (471, "52ed0e738b90d27afcabc3e92c81ae637f160c2d9f75b93a65211005ab5dcd81"),
    (129, "ad9371d813bf24b0365ee2f78f28c08718ee7c5975f060caa16c3f264e828139"),
    (99, "4b588649cd835d4c65521727ebee03d9621baff1f54d3e8a53a26b53d983ec2e"),
    (251, "ce3440a3b7beb6ca3009817504c44d39fa789e7c2f70a2eef7e2f9cc9a87b129"),
    (22, "b432341845620e9cfd67d848c4783c32dd6eaddad45513866b17180d2b09fcf5"),
    (317, "b9412f92f0b1c3faede45b55a44940977daa744f2040118d0538cf597fca785d"),
    (305, "e1f58f00e2e47ce930d7ecab0e46a78316054f68c10d0742e87c1cc092324556"),
)
IMAGENET = tuple(
    (
        label,
        Asset(
            source="pypi",
            package="foolbox",
            version="3.3.4",
            member=f"foolbox/data/imagenet_{number:02}_{label}.jpg",
            sha256=sha256,
            licence="MIT (package); it states no terms of its own for the photos of ImageNet",
        ),
    )
    for number, (label, sha256) in enumerate(_IMAGENET)
)
"""Photos of ImageNet, each with the number of its class, 0..999."""


def pictures(
    assets: Sequence[Asset], cache: Path | None, on_event: Callable[[str], None] | None
) -> list[Image]:
    """The photos as RGB, height x width x 3.

    Raises:
        AssetError: one is not cached and cannot be fetched.
        NotInstalled: Pillow is missing.
    """
    return [load(path) for path in fetch_all(assets, cache, on_event)]


def views(photo: Image, boxes: Sequence[Box], width: int, height: int) -> list[Image]:
    """Parts of a photo, brought to a size by Pillow's bilinear filter."""
    pillow = require("PIL.Image", "image")
    whole = pillow.fromarray(photo)
    return [
        np.asarray(whole.resize((width, height), pillow.Resampling.BILINEAR, box, 2.0), np.uint8)
        for box in boxes
    ]
