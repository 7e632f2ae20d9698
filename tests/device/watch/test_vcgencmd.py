"""What a Raspberry Pi's firmware says, in the words of https://www.raspberrypi.com/documentation/computers/os.html."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.device.watch.probes import vcgencmd
from farthing.device.watch.probes.throttling import flags
from farthing.device.watch.probes.tools import Tools
from farthing.testing import FakeClock

SAID = {
    ("get_throttled",): "throttled=0x50005\n",
    ("measure_temp",): "temp=48.3'C\n",
    ("measure_volts", "core"): "volt=0.8500V\n",
    ("measure_clock", "arm"): "frequency(48)=1500398464\n",
}


class Board:
    """Answers like a Raspberry Pi, and counts."""

    def __init__(self, said: dict[tuple[str, ...], str] | None = None) -> None:
        self.said, self.asked = SAID if said is None else said, 0

    def __call__(self, command: Sequence[str], timeout_s: float, lines: int | None = None) -> str | None:
        self.asked += 1
        return self.said.get(tuple(command[1:])) if command[0] == "vcgencmd" else None


def test_a_board_that_answers() -> None:
    found = vcgencmd.read(Tools(Board(), FakeClock()))
    assert found == (48.3, 0.85, 1500.398464, 0x50005)
    said = flags(found.throttled)
    assert said.now == ("under-voltage", "throttled")
    assert said.before == ("under-voltage", "throttled")


def test_a_board_without_the_command_is_asked_once_a_minute() -> None:
    board, clock = Board({}), FakeClock()
    tools = Tools(board, clock)
    for _ in range(5):
        assert vcgencmd.read(tools) == vcgencmd.Pi()
        clock.advance(10)
    assert board.asked == 1
    clock.advance(10)
    vcgencmd.read(tools)
    assert board.asked == 2


@pytest.mark.parametrize(
    ("bits", "now", "before"),
    [
        (0x0, (), ()),
        (0x1, ("under-voltage",), ()),
        (0xE0000, (), ("frequency capped", "throttled", "soft temperature limit")),
        (0x80008, ("soft temperature limit",), ("soft temperature limit",)),
        (0xF0, (), ()),  # bits that mean nothing yet
    ],
)
def test_bits(bits: int, now: tuple[str, ...], before: tuple[str, ...]) -> None:
    assert flags(bits) == (True, now, before)


def test_no_bits_say_nothing() -> None:
    assert flags(None) == (False, (), ())


@pytest.mark.parametrize(
    "said",
    ["", 'error=1 error_msg="Command not registered"', "VCHI initialization failed", "temp=", "volt=V", "0x"],
)
def test_errors_of_the_firmware_are_unavailable(said: str) -> None:
    parsers = (vcgencmd.celsius, vcgencmd.volts, vcgencmd.megahertz, vcgencmd.throttled)
    assert [parse(said) for parse in parsers] == [None] * 4


def test_a_clock_that_is_not_known_is_unavailable() -> None:
    assert vcgencmd.megahertz("frequency(0)=0") is None
    assert vcgencmd.megahertz("frequency(45)=600000000") == 600


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("temp=volfrquncyhd0x'CV()."))))
def test_any_text_is_taken(said: str) -> None:
    for parse in (vcgencmd.celsius, vcgencmd.volts, vcgencmd.megahertz, vcgencmd.throttled):
        assert parse(said) is None or isinstance(parse(said), int | float)


@given(st.integers(0, 0xFFFFFFFF), st.integers(-99, 200))
def test_what_is_written_is_read(bits: int, tenths: int) -> None:
    assert vcgencmd.throttled(f"throttled={bits:#x}\n") == bits
    assert vcgencmd.celsius(f"temp={tenths / 10}'C\n") == tenths / 10
