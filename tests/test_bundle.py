"""Wiring of parts by the names of their tensors, and thresholds of exits."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.bundle import Bundle, Ends, Exits, wire
from farthing.errors import ModelError
from farthing.model import TensorSpec
from farthing.testing import fake_model


def spec(name: str, dtype: str = "float32", shape: tuple[int | str, ...] = ("batch", 4)) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def ends(takes: str, makes: str) -> Ends:
    return Ends([spec(name) for name in takes.split()], [spec(name) for name in makes.split()])


def test_tensors_pass_by_parts_that_do_not_want_them() -> None:
    wiring = wire([ends("x", "a b"), ends("a", "c"), ends("b c x", "y")])
    assert [one.name for one in wiring.inputs] == ["x"]
    assert [one.name for one in wiring.outputs] == ["y"]
    assert wiring.takes == (("x",), ("a",), ("b", "c", "x"))
    assert wiring.spent == (frozenset(), {"a"}, {"b", "c", "x"})


def test_an_output_may_also_be_taken_by_a_later_part() -> None:
    parts = [ends("x", "a"), ends("a", "y")]
    assert [one.name for one in wire(parts).outputs] == ["y"]
    wiring = wire(parts, ["y", "a"])
    assert [one.name for one in wiring.outputs] == ["y", "a"]
    assert wiring.spent == ({"x"}, frozenset())


@pytest.mark.parametrize(
    ("parts", "outputs", "said"),
    [
        ([], [], "no parts"),
        ([ends("a", "y"), ends("x", "a")], [], "part 2 makes 'a', which is taken or made before"),
        ([ends("x", "a"), ends("a", "a")], [], "part 2 makes 'a', which is taken or made before"),
        ([ends("x", "a"), ends("a", "y")], ["z"], r"no part makes the output 'z'; .*Known: a, y"),
        ([ends("x", ""), ends("x", "")], [], "say which are the outputs"),
        ([ends("x", "a"), Ends([spec("a", "int8")], [spec("y")])], [], r"takes 'a' as int8 .* float32"),
        ([ends("x", "a"), Ends([spec("a", shape=(1,))], [spec("y")])], [], r"\[1\].* \['batch', 4\]"),
        ([ends("x", "a"), Ends([spec("a", shape=("n", 5))], [spec("y")])], [], "are not of one model"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: list[Ends], outputs: list[str], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        wire(parts, outputs)


@given(st.data())
def test_what_a_part_takes_is_always_still_there(data: st.DataObject) -> None:
    known, parts = ["x"], []
    for number in range(data.draw(st.integers(1, 5))):
        takes = data.draw(st.lists(st.sampled_from(known), min_size=1, unique=True))
        makes = [f"t{number}.{i}" for i in range(data.draw(st.integers(1, 3)))]
        parts.append(ends(" ".join(takes), " ".join(makes)))
        known += makes
    outputs = data.draw(st.lists(st.sampled_from(known[1:]), unique=True))
    wiring = wire(parts, outputs)
    held = {one.name for one in wiring.inputs}
    for part, takes, spent in zip(parts, wiring.takes, wiring.spent, strict=True):
        assert set(takes) <= held
        held = (held | {one.name for one in part.outputs}) - spent
    assert held == {one.name for one in wiring.outputs}, "what nobody wants is dropped"


def test_thresholds_are_one_for_each_exit_but_the_last() -> None:
    assert Exits().resolved(1) == ()
    assert Exits().resolved(3) == (0.95, 0.8)
    assert Exits().resolved(6) == (0.95, 0.8, 0.6, 0.6, 0.6)
    assert Exits(thresholds=(0.5,)).resolved(2) == (0.5,)
    with pytest.raises(ModelError, match="1 thresholds for 3 exits: give 2"):
        Exits(thresholds=(0.5,)).resolved(3)
    with pytest.raises(ValueError, match="from 0 to 1"):
        Exits(thresholds=(1.5,))


def test_a_bundle_of_parts_is_checked_when_written_and_when_opened(tmp_path: Path) -> None:
    parts = {"1": fake_model(), "2": fake_model()}
    with pytest.raises(ModelError, match="part 2 makes 'y'"):
        Bundle.create("b", "parts", parts, tmp_path / "b")
    Bundle.create("b", "variants", parts, tmp_path / "b")
    text = (tmp_path / "b" / "bundle.json").read_text()
    (tmp_path / "b" / "bundle.json").write_text(text.replace("variants", "parts"))
    with pytest.raises(ModelError, match="part 2 makes 'y'"):
        Bundle.open(tmp_path / "b")
