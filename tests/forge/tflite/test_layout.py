"""Views: transposes and reshapes of a tensor that nobody moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from farthing.forge.tflite.layout import ONE, Shape, Size, View, firsts, fixed, merged, product, runs, whole

BATCH = Size(1, 2)


def sized(*sizes: int | Size) -> Shape:
    return tuple(Size(size, size) if isinstance(size, int) else size for size in sizes)


def seen(stored: NDArray[Any], view: View) -> NDArray[Any]:
    """What a view makes of stored elements."""
    order = [i for axis in view.axes for i in axis]
    spare = [i for i in range(len(view.atoms)) if i not in order]
    assert all(view.atoms[i] == ONE for i in spare)
    cube = stored.reshape(firsts(view.atoms)).transpose(*order, *spare)
    return cube.reshape(firsts(view.shape))


@st.composite
def cuts(draw: st.DrawFn, total: int) -> list[int]:
    """Sizes that multiply to a total, some of them 1."""
    sizes = []
    while total > 1 and len(sizes) < 5:
        size = draw(st.sampled_from([d for d in range(1, total + 1) if total % d == 0]))
        sizes.append(size)
        total //= size
    return [*sizes, total] if total > 1 else sizes or [1]


@given(st.data())
def test_a_view_shows_what_numpy_computes(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    order = data.draw(st.permutations(range(len(shape))))
    logical = np.arange(np.prod(shape)).reshape(shape)
    stored = logical.transpose(order)
    view = whole(0, fixed(stored.shape), order)
    for _ in range(4):
        if data.draw(st.booleans()):
            turn = data.draw(st.permutations(range(logical.ndim)))
            view, logical = view.transposed(turn), logical.transpose(turn)
        else:
            target = data.draw(cuts(logical.size))
            fresh = view.reshaped(fixed(target))
            if fresh is None:
                continue
            view, logical = fresh, logical.reshape(target)
        np.testing.assert_array_equal(seen(stored, view), logical)
        assert product(view.atoms) == product(fixed(shape))
        assert sorted(view.simple()) == list(range(logical.ndim))
        assert view.straight == np.array_equal(stored.ravel(), logical.ravel()) or not view.straight


def test_flattening_a_picture_costs_nothing() -> None:
    view = whole(0, sized(BATCH, 7, 7, 64), [0, 2, 3, 1])
    flat = view.reshaped(sized(BATCH, 7 * 7 * 64))
    assert flat is not None
    assert flat.axes == ((0,), (3, 1, 2))


def test_shuffled_channels_stay_where_they_are() -> None:
    view = whole(0, sized(BATCH, 5, 5, 6), [0, 2, 3, 1])
    cut = view.reshaped(sized(BATCH, 2, 3, 5, 5))
    assert cut is not None
    back = cut.transposed((0, 2, 1, 3, 4)).reshaped(sized(BATCH, 6, 5, 5))
    assert back is not None
    assert back.atoms == sized(BATCH, 5, 5, 2, 3)
    assert back.axes[1] == (4, 3)


def test_a_border_that_cuts_unevenly_needs_the_elements_moved() -> None:
    view = whole(0, sized(BATCH, 4, 3, 5), [0, 2, 3, 1])
    assert view.reshaped(sized(BATCH, 2, 2, 3, 5)) is None


def test_a_batch_of_one_is_still_an_axis() -> None:
    view = whole(0, sized(BATCH, 1, 1, 8), [0, 2, 3, 1])
    squeezed = view.reshaped(sized(BATCH, 8))
    assert squeezed is not None
    assert squeezed.axes == ((0,), (3,))
    assert squeezed.straight


def test_a_batch_joins_other_axes() -> None:
    assert runs(sized(BATCH, 4, 6), sized(Size(4, 8), 6)) == [([0, 1], [0]), ([2], [1])]
    with pytest.raises(ValueError, match="cannot become"):
        runs(sized(BATCH, 4), sized(BATCH, 5))
    with pytest.raises(ValueError, match="cannot become"):
        runs(sized(BATCH, 4), sized(4))


def test_axes_that_stay_neighbours_are_moved_as_one() -> None:
    sizes, order = merged(sized(BATCH, 7, 5, 64), [0, 3, 1, 2])
    assert (sizes, order) == ([BATCH, *fixed([35, 64])], [0, 2, 1])
    assert merged(sized(2, 3, 4), [0, 1, 2]) == (list(fixed([24])), [0])
