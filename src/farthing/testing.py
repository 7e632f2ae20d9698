"""Parts for tests, ours and our users': models that need no framework to make and no runtime to run."""

from __future__ import annotations

import msgspec
import numpy as np

from farthing.config import canonical
from farthing.engines.fake import Affine
from farthing.model import Manifest, Model, TensorSpec


class FakeClock:
    """A clock that stands still until it is moved: ``clock()`` gives seconds.

    >>> clock = FakeClock()
    >>> clock.advance(1.5)
    >>> clock()
    1.5
    """

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on; never back."""
        if seconds < 0:
            raise ValueError(f"a clock does not go back by {-seconds} s")
        self._now += seconds


def fake_model(
    features: int = 4,
    outputs: int = 3,
    decay: float | None = None,
    seed: int = 0,
    ends: tuple[str, str] = ("x", "y"),
    **manifest: object,
) -> Model:
    """A small model for the ``fake`` engine: ``y = x @ weights + bias`` with seeded standard normal numbers.

    Args:
        features: length of the input, float32 (batch, features).
        outputs: length of the output, float32 (batch, outputs).
        decay: if given, the model keeps a state, ``y = decay * last y + x @ weights + bias``.
        seed: of the weights: the same seed gives the same model.
        ends: names of input and output, so that models can be parts of one another.
        **manifest: further fields of its manifest, such as ``labels`` or ``decode``.

    Returns:
        A model in a temporary directory, which lives as long as the model.

    >>> from farthing.engines.base import open_engine
    >>> with open_engine(fake_model(features=2, outputs=3)) as engine:
    ...     engine.run({"x": np.zeros((5, 2), np.float32)})["y"].shape
    (5, 3)
    """
    generator = np.random.default_rng(seed)
    affine = Affine(
        weights=generator.standard_normal((features, outputs)).tolist(),
        bias=generator.standard_normal(outputs).tolist(),
        decay=decay,
    )
    described = Manifest(
        name="fake",
        format="fake",
        inputs=(
            TensorSpec(name=ends[0], dtype="float32", shape=("batch", features), batch_axis=0, layout="NC"),
        ),
        outputs=(
            TensorSpec(name=ends[1], dtype="float32", shape=("batch", outputs), batch_axis=0, layout="NC"),
        ),
    )
    return Model.create(msgspec.structs.replace(described, **manifest), {"model.json": canonical(affine)})
