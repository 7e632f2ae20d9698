"""Rounding that knows what it does to a layer's outputs: each error is made up for by the weights that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DAMPING = 0.01
BLOCK = 128
RIDGES = (0.1, 1.0)
SHRINKS = np.linspace(0.4, 1.0, 25)


@dataclass(frozen=True)
class Grid:
    """Numbers that weights may take: ``(whole - zero) * scale``, whole from ``low`` to ``high``.

    ``scale`` and ``zero`` have the shape (groups, rows, columns), or 1 where they do not vary.
    """

    scale: Array
    zero: Array
    low: int
    high: int

    def nearest(self, weights: Array) -> Array:
        """The nearest whole numbers."""
        return np.clip(np.round(weights / self.scale) + self.zero, self.low, self.high)

    def real(self, whole: Array) -> Array:
        """What whole numbers stand for."""
        return (whole - self.zero) * self.scale


class Moments:
    """What is known of a layer's inputs, float and quantized: means of products over some columns.

    Args:
        groups, inputs: of the layer: groups, and inputs of one output.
    """

    def __init__(self, groups: int, inputs: int) -> None:
        self.count = 0
        self._own = np.zeros((groups, inputs, inputs))
        self._cross = np.zeros((groups, inputs, inputs))
        self._coarse = np.zeros((groups, inputs))
        self._exact = np.zeros((groups, inputs))

    def add(self, coarse: Array, exact: Array) -> None:
        """Take in columns of quantized inputs and of the float ones, float32 (groups, columns, inputs)."""
        turned = coarse.swapaxes(1, 2)
        self.count += coarse.shape[1]
        self._own += turned @ coarse
        self._cross += exact.swapaxes(1, 2) @ coarse
        self._coarse += coarse.sum(1, dtype=np.float64)
        self._exact += exact.sum(1, dtype=np.float64)

    def __add__(self, other: Moments) -> Moments:
        both = Moments(*self._coarse.shape)
        for part in (self, other):
            both.count += part.count
            both._own += part._own
            both._cross += part._cross
            both._coarse += part._coarse
            both._exact += part._exact
        return both

    @property
    def means(self) -> tuple[Array, Array]:
        """Of quantized and of float inputs, (groups, inputs)."""
        return self._coarse / self.count, self._exact / self.count

    def products(self, around_mean: bool) -> tuple[Array, Array]:
        """Quantized with quantized, and float less quantized with quantized, (groups, inputs, inputs).

        Args:
            around_mean: less the products of the means, where a bias makes up for those.
        """
        own, cross = self._own / self.count, (self._cross - self._own) / self.count
        if around_mean:
            coarse, exact = self.means
            own -= coarse[:, :, None] * coarse[:, None, :]
            cross -= (exact - coarse)[:, :, None] * coarse[:, None, :]
        return own, cross


def nearest_plane(weights: Array, gram: Array, grid: Grid) -> Array:
    """Whole numbers whose outputs are near those of the weights, on inputs of a known Gram matrix.

    GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323), columns of the largest inputs first, in the form of
    Babai's nearest plane: with ``gram = v v'`` and ``v`` upper triangular, each column is rounded where it and those
    before it leave the least error; the later ones make up for it.

    Args:
        weights: (groups, rows, columns).
        gram: (groups, columns, columns), mean products of inputs.
    """
    order = np.argsort(-np.einsum("gkk->gk", gram), axis=1, kind="stable")
    sorted_gram = np.take_along_axis(np.take_along_axis(gram, order[:, :, None], 1), order[:, None, :], 2)
    turned, basis = np.take_along_axis(weights, order[:, None, :], 2), _basis(sorted_gram)
    scale, zero = (
        np.take_along_axis(np.broadcast_to(part, weights.shape), order[:, None, :], 2)
        for part in (grid.scale, grid.zero)
    )
    whole, errors = np.empty_like(turned), np.zeros_like(turned)
    for start in range(0, turned.shape[2], BLOCK):
        part = slice(start, min(start + BLOCK, turned.shape[2]))
        pull = errors[:, :, :start] @ basis[:, :start, part]
        for k in range(part.start, part.stop):
            own = np.einsum("grj,gj->gr", errors[:, :, start:k], basis[:, start:k, k])
            target = turned[:, :, k] + (pull[:, :, k - start] + own) / basis[:, None, k, k]
            column = Grid(scale[:, :, k], zero[:, :, k], grid.low, grid.high)
            whole[:, :, k] = column.nearest(target)
            errors[:, :, k] = turned[:, :, k] - column.real(whole[:, :, k])
    result = np.empty_like(whole)
    np.put_along_axis(result, order[:, None, :], whole, 2)
    return result


def _basis(gram: Array) -> Array:
    """The upper triangular ``v`` with ``v v'`` the Gram matrix, a little added to its diagonal: more, if it needs more.

    That of few columns, less the product of their mean, need not be positive: its numbers are small differences.
    """
    count = gram.shape[1]
    middle = np.abs(np.einsum("gkk->gk", gram)).mean(1)
    extra = DAMPING * np.where(middle > 0, middle, 1.0)
    while True:
        damped = gram + extra[:, None, None] * np.eye(count)
        try:
            return np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1]
        except np.linalg.LinAlgError:
            extra = extra * 10


def shifted(weights: Array, halves: Sequence[Moments], around_mean: bool) -> Array:
    """Weights that give on quantized inputs what the given ones give on float inputs, as far as that can be told.

    A ridge regression; how far it may go is told by its own error on the other half of the data, and where no step
    helps there, the weights stay as they are. (To aim at the float outputs: Nagel et al. 2020, section 3.3,
    https://arxiv.org/abs/2004.10568; Li et al. 2025, https://arxiv.org/abs/2504.02692.)

    Args:
        weights: (groups, rows, inputs).
        halves: what is known of the inputs, from two halves of the data.
    """
    gains = np.zeros(len(RIDGES))
    parts = [half.products(around_mean) for half in halves]
    for (own, cross), (other, other_cross) in (parts, parts[::-1]):
        pull, goal = weights @ cross, weights @ other_cross
        for place, ridge in enumerate(RIDGES):
            step = _step(pull, own, ridge)
            gains[place] += np.sum(step * (2 * goal - step @ other))
    if gains.max() <= 0:
        return weights
    own, cross = (halves[0] + halves[1]).products(around_mean)
    return np.asarray(weights + _step(weights @ cross, own, RIDGES[int(np.argmax(gains))]))


def _step(pull: Array, own: Array, ridge: float) -> Array:
    count = own.shape[1]
    extra = ridge * np.einsum("gkk->g", own) / count + 1e-12
    damped = own + extra[:, None, None] * np.eye(count)
    return np.linalg.solve(damped, pull.swapaxes(1, 2)).swapaxes(1, 2)


def least_scale(weights: Array, gram: Array, low: int, high: int, whole_tensor: bool) -> Array:
    """Scales of a symmetric grid with the least squared error of the outputs, each input taken alone.

    Returns:
        (groups, rows, 1), all the same for a whole tensor.
    """
    power = np.einsum("gkk->gk", gram)[:, None, :]
    most = np.abs(weights).max(2, keepdims=True) / ((high - low) / 2)
    if whole_tensor:
        most[:] = most.max()
    most = np.where(most > 0, most, 1.0)
    zero = np.zeros((1, 1, 1))

    def error(shrink: float) -> Array:
        grid = Grid(most * shrink, zero, low, high)
        lost = np.sum((grid.real(grid.nearest(weights)) - weights) ** 2 * power, 2, keepdims=True)
        return np.broadcast_to(lost.sum(), lost.shape) if whole_tensor else lost

    errors = np.stack([error(shrink) for shrink in SHRINKS])
    return np.asarray(most * SHRINKS[np.argmin(errors, axis=0)])
