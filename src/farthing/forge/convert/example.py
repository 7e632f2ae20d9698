"""The inputs a conversion is tried on: real samples, an example, or seeded random numbers of its shape."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.bench import random_array
from farthing.errors import ConfigError, ModelError, nearest

Array = NDArray[Any]
SAMPLES = 8


def parse(text: str) -> list[Array]:
    """Zeros of the shapes in ``1x3x224x224`` or ``scalar``; several are parted by commas, a type follows a colon.

    >>> [(a.shape, a.dtype.name) for a in parse("1x16:int64, 1x3x8x8")]
    [((1, 16), 'int64'), ((1, 3, 8, 8), 'float32')]

    Raises:
        ConfigError: something that is no shape.
    """
    arrays = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+(?:x\d+)*|scalar)(?::(\w+))?\s*", part)
        try:
            dtype = np.dtype(found[2] or "float32") if found else None
        except TypeError:
            dtype = None
        if found is None or dtype is None or dtype.kind not in "fiub":
            raise ConfigError(
                f"{part.strip()!r} is no shape: write 1x3x224x224 (or scalar), or 1x16:int64 for another element type"
            )
        shape = () if found[1] == "scalar" else tuple(int(size) for size in found[1].split("x"))
        if not all(shape) or int(np.prod(shape, dtype=object)) > 1 << 31:
            raise ConfigError(f"{part.strip()!r} is a shape of nothing, or of more than 2^31 numbers")
        arrays.append(np.zeros(shape, dtype))
    return arrays


class Example:
    """One call's inputs.

    Attributes:
        arrays: in the order of the model's inputs.
        real: whether their values mean something; False if only shapes and types were given.
        names: names of the inputs, if they came with any.
    """

    def __init__(self, arrays: Sequence[Array], real: bool, names: Sequence[str] = ()) -> None:
        self.arrays = list(arrays)
        self.real = real
        self.names = tuple(names)


def example_of(given: Any, samples: Mapping[str, Array] | None, dtype: Any) -> Example | None:
    """An example from what a caller may give: text, a shape, arrays or tensors (one, several, by name); else a sample.

    Args:
        given: the example, or None.
        samples: input name -> samples along the first axis.
        dtype: element type where only a shape is given.

    Raises:
        ConfigError: it is none of these.
    """
    if given is None:
        if not samples:
            return None
        return Example([np.asarray(array[:1]) for array in samples.values()], True, [n for n in samples if n])
    if isinstance(given, str):
        return Example([a.astype(dtype) if a.dtype == np.float32 else a for a in parse(given)], False)
    if isinstance(given, Sequence) and given and all(isinstance(size, int) for size in given):
        return example_of("x".join(map(str, given)), samples, dtype)
    if isinstance(given, Mapping):
        return Example([_array(value) for value in given.values()], True, list(given))
    if isinstance(given, Sequence):
        return Example([_array(value) for value in given], True)
    return Example([_array(given)], True)


def _array(value: Any) -> Array:
    array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    if array.dtype.kind not in "fiub":
        raise ConfigError(
            f"an example holds a {type(value).__name__}: give a shape as 1x3x224x224, or arrays of numbers"
        )
    return array


class Pool:
    """Inputs for the check: arrays in the model's order, samples along the first axis.

    Args:
        arrays: the samples.
        words: what they are, as in ``8 real samples``.
        shared: numbers of the inputs that are the same for every call; by default those without axes.
    """

    def __init__(self, arrays: Sequence[Array], words: str, shared: Collection[int] | None = None) -> None:
        self.arrays = list(arrays)
        self.words = words
        self.shared = (
            frozenset(i for i, a in enumerate(arrays) if not a.ndim) if shared is None else frozenset(shared)
        )
        self.size = min((len(a) for i, a in enumerate(self.arrays) if i not in self.shared), default=1)

    @property
    def batched(self) -> bool:
        """Whether any input carries samples along its first axis."""
        return len(self.shared) < len(self.arrays)

    def take(self, start: int, count: int) -> list[Array]:
        """The inputs of ``count`` samples from ``start`` on."""
        return [a if i in self.shared else a[start : start + count] for i, a in enumerate(self.arrays)]


def pool_of(example: Example, samples: Mapping[str, Array] | None, names: Sequence[str], batch: int) -> Pool:
    """Samples to check on: at least 8, and at least two batches.

    Args:
        example: decides shapes and types where there are no samples.
        samples: real ones, by input name; the name ``""`` stands for the only input.
        names: the model's inputs.
        batch: samples per call, where the model fixes it.

    Raises:
        ModelError: samples for other inputs than the model has.
    """
    count = max(SAMPLES, 2 * batch)
    if samples:
        return _real(samples, names, count)
    arrays = rows_like(example, count)
    return Pool(arrays, invented(example, count if any(array.ndim for array in arrays) else 1))


def rows_like(example: Example, count: int) -> list[Array]:
    """``count`` samples like an example: variations of a real one, else random numbers; the same ones every time."""
    generator = np.random.default_rng(0)
    make = _around if example.real else random_like
    return [make(array, count, generator) for array in example.arrays]


def invented(example: Example, count: int) -> str:
    """What samples like an example are, in words."""
    several = "s" if count > 1 else ""
    kind = "the example and variations of it" if example.real else f"{count} random input{several}"
    return f"{kind} (give --task to check on real data)"


def _real(samples: Mapping[str, Array], names: Sequence[str], count: int) -> Pool:
    if set(samples) == {""} and len(names) == 1:
        samples = {names[0]: samples[""]}
    unknown = [name for name in samples if name not in names]
    if unknown or len(samples) < len(names):
        wrong = unknown[0] if unknown else next(name for name in names if name not in samples)
        raise ModelError(f"the samples do not fit the model's inputs at {wrong!r}; {nearest(wrong, names)}")
    arrays = [np.asarray(samples[name]) for name in names]
    present = min(len(array) for array in arrays)
    if not present:
        raise ModelError("there are no samples to check the conversion on")
    picks = np.arange(count) % present
    return Pool([array[picks] for array in arrays], f"{min(count, present)} real samples")


def random_like(array: Array, count: int, generator: np.random.Generator) -> Array:
    """Random numbers of an example's inner shape and type."""
    return random_array((count, *array.shape[1:]) if array.ndim else (), array.dtype.name, generator)


def _around(array: Array, count: int, generator: np.random.Generator) -> Array:
    """The example's own rows, then rows like them: noise of a tenth of its spread, within its range."""
    if not array.ndim:
        return array
    rows = array[np.arange(count) % len(array)]
    if array.dtype.kind != "f":
        shuffled = generator.permuted(rows.reshape(count, -1), axis=1).reshape(rows.shape)
        return np.asarray(np.concatenate([array, shuffled])[:count])
    noisy = rows + generator.standard_normal(rows.shape) * float(array.std()) * 0.1
    noisy = np.clip(noisy, array.min(), array.max()).astype(array.dtype)
    return np.asarray(np.concatenate([array, noisy])[:count])
