"""The fake engine's models: JSON."""

from __future__ import annotations

import json

from farthing.model import Manifest, Model
from farthing.testing import fake_model
from rows import BIAS, DECAY, WEIGHTS, Row, spec


def fake_affine(batch: int | str, decay: float | None = None) -> Model:
    content = json.dumps({"weights": WEIGHTS.tolist(), "bias": BIAS.tolist(), "decay": decay})
    manifest = Manifest(
        name="m", format="fake", inputs=(spec("x", batch, 4),), outputs=(spec("y", batch, 3),)
    )
    return Model.create(manifest, {"model.json": content.encode()})


ROW = Row(
    engine="fake",
    affine=fake_affine,
    large=lambda: fake_model(512, 512),
    stateful=lambda: fake_affine("batch", DECAY),
    fixed_state=lambda: fake_affine(2, DECAY),
    named=False,
    damaged=(b'{"weights": [[1]], "bias": [1], "colour": 1}', b'{"weights": [[1], [1, 2]], "bias": [1]}'),
)
