"""Random changes of training samples, each sample its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from farthing.errors import TaskError
from farthing.forge.training.schedule import Augment

LOUDNESS, NOISE = 0.1, 0.05


def augmented(samples: Tensor, kind: Augment, generator: torch.Generator, layout: str = "") -> Tensor:
    """Samples along the first axis, changed at random; ``none`` gives them as they are.

    Args:
        samples: floats; pictures (n, c, h, w) for ``affine`` and ``flip``, or (n, h, w, c) if ``layout`` is ``NHWC``.
        kind: how they are changed.
        generator: of randomness.
        layout: meaning of the axes.

    Raises:
        TaskError: they are no floats, or no pictures where pictures are needed.
    """
    if kind == "none":
        return samples
    if not samples.is_floating_point():
        raise TaskError(f"samples of {samples.dtype} cannot be augmented: train with `augment: none`")
    if kind == "jitter":
        return jitter(samples, generator)
    if samples.ndim != 4:
        raise TaskError(
            f"`augment: {kind}` is for pictures (samples, channels, height, width), not for "
            f"{list(samples.shape)}: choose `jitter` for signals, or `none`"
        )
    last = layout == "NHWC"
    pictures = samples.movedim(3, 1) if last else samples
    pictures = affine(pictures, generator) if kind == "affine" else flip(pictures, generator)
    return pictures.movedim(1, 3).contiguous() if last else pictures


def affine(
    pictures: Tensor,
    generator: torch.Generator,
    turn: float = 12.0,
    scale: float = 0.1,
    shear: float = 0.1,
    shift: float = 0.1,
) -> Tensor:
    """Move each picture (n, c, h, w) by its own random affine map; what comes in from outside is like the border.

    Args:
        pictures: the pictures.
        generator: of randomness.
        turn: largest rotation either way, degrees.
        scale: largest relative change of size either way.
        shear: largest slant either way.
        shift: largest move either way, as a share of half the picture's side.
    """
    n = len(pictures)
    draws = torch.rand((5, n), generator=generator) * 2 - 1
    angle = draws[0] * turn * torch.pi / 180
    zoom, slant = 1 + draws[1] * scale, draws[2] * shear
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [cosine, slant * cosine - sine, draws[3] * shift, sine, slant * sine + cosine, draws[4] * shift]
    maps = torch.stack(rows, dim=1).reshape(n, 2, 3).to(pictures.dtype)
    grid = functional.affine_grid(maps, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def flip(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the pictures (n, c, h, w), left to right."""
    chosen = torch.rand((len(pictures), 1, 1, 1), generator=generator) < 0.5
    return torch.where(chosen, pictures.flip(3), pictures)


def jitter(signals: Tensor, generator: torch.Generator) -> Tensor:
    """Scale each signal (n, ...) by a factor near 1 and add noise (Um et al. 2017, https://arxiv.org/abs/1706.00527).

    The factor has a standard deviation of 0.1, the noise one of 0.05 of the batch's own.
    """
    shape = (len(signals),) + (1,) * (signals.ndim - 1)
    factor = 1 + LOUDNESS * torch.randn(shape, generator=generator)
    noise = torch.randn(signals.shape, generator=generator)
    deviation = signals.detach().std(correction=0)
    return signals * factor.to(signals.dtype) + NOISE * deviation * noise.to(signals.dtype)
