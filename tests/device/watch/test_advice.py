"""What is worth a word, what is not, and that each piece of advice says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from farthing.config import read
from farthing.device.watch.advice import Advice, Thresholds, advise
from farthing.device.watch.history import History
from farthing.device.watch.probes import Reading
from farthing.errors import ConfigError
from farthing.meter import Temperature

WELL: dict[str, Any] = {
    "cpu_percent": 50.0, "cpu_cores": 4.0, "machine_cores": 4, "load_1min": 4.0, "quota_held_percent": 10.0,
    "memory_total_bytes": 100, "memory_used_bytes": 80, "disk_used_bytes": 80, "disk_available_bytes": 20,
    "temperature_c": 70.0, "battery_percent": 60.0, "battery_status": "Discharging", "throttled": False,
    "cpu_cap_percent": 100.0,
    "temperatures": (Temperature(name="cpu", celsius=70.0, critical_c=100.0, processor=True),),
}  # fmt: skip


def advice(*readings: dict[str, Any], thresholds: Thresholds | None = None) -> tuple[Advice, ...]:
    history = History()
    for number, fields in enumerate(readings):
        history.add(Reading(time_s=float(number), **fields))
    return advise(history, thresholds or Thresholds())


def test_a_device_that_is_well_and_one_that_says_nothing_need_no_advice() -> None:
    assert advice(WELL, WELL) == ()
    assert advice({}) == ()
    assert advice() == ()


@pytest.mark.parametrize(
    ("change", "quantity", "level", "says"),
    [
        ({"cpu_percent": 95.0}, "CPU", "warning", "95 % in use on average, of 4 processors"),
        ({"load_1min": 8.0}, "load per processor", "warning", "2.0 threads"),
        (
            {"quota_held_percent": 25.0, "cpu_cores": 0.5},
            "periods cut by the quota",
            "warning",
            "0.5 processors",
        ),
        ({"memory_used_bytes": 90}, "memory", "warning", "90 %"),
        ({"disk_used_bytes": 95, "disk_available_bytes": 5}, "disk", "warning", "95 %"),
        ({"temperature_c": 80.0}, "temperature", "warning", "80.0 °C"),
        ({"battery_percent": 20.0}, "battery", "warning", "20 % left"),
        ({"battery_percent": 5.0}, "battery", "problem", "5 % left"),
        ({"cpu_cap_percent": 60.0}, "cap of the CPU frequency", "warning", "60 %"),
        ({"throttled_before": ("frequency capped",)}, "throttling", "warning", "before"),
        (
            {"temperatures": (Temperature(name="nvme", celsius=80.0, critical_c=84.8),)},
            "temperature",
            "problem",
            "nvme was at 80.0 °C; at 84.8 °C",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_each_threshold(change: dict[str, Any], quantity: str, level: str, says: str) -> None:
    [found] = advice(WELL | change)
    assert (found.quantity, found.level) == (quantity, level)
    assert says in found.found
    assert found.next


@pytest.mark.parametrize(
    "change",
    [
        {"cpu_percent": 89.9},
        {"load_1min": 7.9},
        {"quota_held_percent": 24.9},
        {"memory_used_bytes": 89},
        {"disk_used_bytes": 89, "disk_available_bytes": 11},
        {"temperature_c": 79.9},
        {"battery_percent": 21.0},
        {"battery_percent": 3.0, "battery_status": "Charging"},
        {"temperatures": (Temperature(name="nvme", celsius=79.7, critical_c=84.8),)},
    ],
    ids=str,
)
def test_just_below_a_threshold_is_well(change: dict[str, Any]) -> None:
    assert advice(WELL | change) == ()


def test_use_is_judged_by_its_mean_and_heat_by_its_peak() -> None:
    assert advice(WELL | {"cpu_percent": 100.0}, WELL | {"cpu_percent": 10.0}) == (), "work is no fault"
    [found] = advice(WELL | {"temperature_c": 85.0}, WELL)
    assert found.quantity == "temperature", "a peak is one"


def test_what_holds_it_back_comes_first_with_the_remedy_that_fits() -> None:
    held = WELL | {
        "throttled": True,
        "throttling": ("under-voltage", "frequency capped"),
        "cpu_percent": 99.0,
    }
    before = WELL | {"throttled_before": ("under-voltage",), "cpu_percent": 99.0}
    first, second, third = advice(held, held | {"throttling": ("under-voltage",)}, before)
    assert (first.found, first.level) == ("held back in 2 of 3 readings: under-voltage", "problem")
    assert "supply" in first.next
    assert second.found == "held back in 1 of 3 readings: frequency capped"
    assert "cool" in second.next
    assert third.quantity == "CPU", "what happened while it was watched is not told again as before"


def test_thresholds_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("temperature_c: 60\n")
    mine = read(tmp_path / "mine.yaml", Thresholds)
    [found] = advice(WELL, thresholds=mine)
    assert "threshold 60" in found.found
    (tmp_path / "mine.yaml").write_text("temperature: 60\n")
    with pytest.raises(ConfigError, match="temperature_c"):
        read(tmp_path / "mine.yaml", Thresholds)
