"""Slots: what one mapping writes another reads, whatever its size."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from farthing.device.serving.parts.slots import Fault, Layout, Slot, memory
from farthing.errors import EngineError, FeedError, UnsupportedError

DTYPES = ["bool", "int8", "uint8", "int64", "float16", "float32", "complex64"]


@pytest.fixture
def file() -> Iterator[int]:
    number = memory()
    yield number
    os.close(number)


@given(
    st.lists(
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=20))
        ),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_tensors_are_read_where_another_mapping_wrote_them(arrays: list[np.ndarray], fortran: bool) -> None:
    layout = Layout(dtypes={f"t{i}": array.dtype.name for i, array in enumerate(arrays)})
    file = memory()
    writer, reader = Slot(file, layout), Slot(file, layout)
    for again in range(2):
        writer.clear()
        for i, array in enumerate(arrays):
            writer.put(f"t{i}", array.copy(order="F") if fortran else array)
        assert reader.failure() is None
        for i, array in enumerate(arrays):
            found = reader.get(f"t{i}")
            np.testing.assert_array_equal(found, array, strict=True)
            assert not found.size or found.ctypes.data % 64 == 0, again
    writer.fail(FeedError("no"))
    error = reader.failure()
    assert (type(error), str(error)) == (FeedError, "no")
    writer.clear()
    assert reader.failure() is None
    os.close(file)


def test_memory_grows_from_either_side_and_what_was_written_stays(file: int) -> None:
    layout = Layout(dtypes={"a": "float32", "b": "float32", "c": "uint8"})
    one, two = Slot(file, layout), Slot(file, layout)
    one.clear()
    one.put("a", np.arange(5, dtype=np.float32))
    small = os.fstat(file).st_size
    held = two.get("a")
    two.put("b", np.arange(100_000, dtype=np.float32))
    two.put("c", np.ones(3_000_000, np.uint8))
    assert os.fstat(file).st_size > small
    np.testing.assert_array_equal(one.get("b"), np.arange(100_000))
    assert one.get("c").sum() == 3_000_000
    one.get("a")[0] = 7
    assert held[0] == 7, "a view from before it grew still shows the same memory"


def test_what_was_not_agreed_on_is_refused(file: int) -> None:
    slot = Slot(file, Layout(dtypes={"a": "float32"}))
    slot.clear()
    with pytest.raises(EngineError, match="'a' came as float64"):
        slot.put("a", np.zeros(3))
    with pytest.raises(EngineError, match=r"came as float32 \[1, 1"):
        slot.put("a", np.zeros((1,) * 20, np.float32))
    with pytest.raises(EngineError, match="'a' was not handed on"):
        slot.get("a")
    for dtype in ("str", "bfloat16"):
        with pytest.raises(UnsupportedError, match=f"'t' is {dtype}"):
            Layout(dtypes={"t": dtype})


def test_an_error_of_a_kind_nobody_knows_is_an_error_of_the_engine() -> None:
    assert isinstance(Fault(kind="FeedError", text="x").error(), FeedError)
    for kind in ("nearest", "Oops", "__name__"):
        assert type(Fault(kind=kind, text="x").error()) is EngineError
