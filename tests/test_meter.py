"""Energy meters on trees that look like a machine's /sys."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from farthing.engines.base import open_engine
from farthing.meter import find_meter, temperature
from farthing.options import EngineOptions

LIMIT = 262_143_328_850  # of a real package, microjoules


def zone(root: Path, number: str, name: str, energy: int | str, limit: int | str = LIMIT) -> Path:
    place = root / "sys/class/powercap" / f"intel-rapl:{number}"
    place.mkdir(parents=True)
    (place / "name").write_text(f"{name}\n")
    (place / "energy_uj").write_text(f"{energy}\n")
    (place / "max_energy_range_uj").write_text(f"{limit}\n")
    return place


def test_a_machine_without_a_meter_has_none(tmp_path: Path) -> None:
    assert find_meter(tmp_path) is None
    (tmp_path / "sys/class/powercap/intel-rapl").mkdir(parents=True)
    assert find_meter(tmp_path) is None, "the interface alone, without a package"


def test_packages_are_added_up_and_what_is_inside_or_around_them_is_not(tmp_path: Path) -> None:
    zone(tmp_path, "0", "package-0", 1000)
    zone(tmp_path, "1", "package-1", 5000)
    zone(tmp_path, "0:0", "core", 77)
    zone(tmp_path, "0:1", "dram", 78)
    zone(tmp_path, "2", "psys", 79)
    meter = find_meter(tmp_path)
    assert meter is not None
    assert meter.read() == [1000, 5000]
    assert meter.source == "RAPL package counters"


def test_more_than_ten_packages(tmp_path: Path) -> None:
    for number in range(12):
        zone(tmp_path, str(number), f"package-{number}", 1)
    meter = find_meter(tmp_path)
    assert meter is not None
    assert meter.read() == [1] * 12


def test_what_was_spent_is_in_millijoules(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "0", "package-0", 1000), zone(tmp_path, "1", "package-1", 0)
    meter = find_meter(tmp_path)
    assert meter is not None
    start = meter.read()
    (first / "energy_uj").write_text("5000\n")
    (second / "energy_uj").write_text("500\n")
    assert meter.spent(start, meter.read()) == pytest.approx(4.5)


def test_a_counter_that_wraps_goes_on_from_zero(tmp_path: Path) -> None:
    first, second = (
        zone(tmp_path, "0", "package-0", LIMIT - 99),
        zone(tmp_path, "1", "package-1", 0, limit=999),
    )
    meter = find_meter(tmp_path)
    assert meter is not None
    start = meter.read()
    (first / "energy_uj").write_text("900\n")
    (second / "energy_uj").write_text("999\n")
    assert meter.spent(start, meter.read()) == pytest.approx((1000 + 999) / 1000)


@pytest.mark.parametrize("missing", ["energy_uj", "max_energy_range_uj", "name"])
def test_a_meter_that_cannot_be_read_is_none(missing: str, tmp_path: Path) -> None:
    """As for users other than root, who may not read it; a directory in its place cannot be read by anyone."""
    place = zone(tmp_path, "0", "package-0", 1000)
    zone(tmp_path, "1", "package-1", 1000)
    (place / missing).unlink()
    (place / missing).mkdir()
    assert find_meter(tmp_path) is None


def test_nonsense_in_the_counter_is_no_meter(tmp_path: Path) -> None:
    zone(tmp_path, "0", "package-0", "unknown")
    assert find_meter(tmp_path) is None


def test_energy_of_a_sample_counts_every_call_that_was_made(tmp_path: Path) -> None:
    """A counter that each call of a model raises by 700 microjoules gives 0.7 mJ a call, 0.1 mJ a sample of seven."""
    import numpy as np

    from farthing.bench import Rule, metered, sample_feeds
    from farthing.model import Manifest, Model, TensorSpec

    place = zone(tmp_path, "0", "package-0", LIMIT - 10_000)
    meter = find_meter(tmp_path)
    assert meter is not None
    spec = {"dtype": "float32", "shape": ("n", 2), "batch_axis": 0}
    manifest = Manifest(
        name="m",
        format="fake",
        inputs=(TensorSpec(name="x", **spec),),
        outputs=(TensorSpec(name="y", **spec),),
    )
    model = Model.create(manifest, {"m": b'{"weights": [[1, 0], [0, 1]], "bias": [0, 0]}'})
    turn = threading.Lock()

    class Hungry:
        def __init__(self) -> None:
            self.engine = open_engine(model, "fake", EngineOptions())

        def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            with turn:
                now = (int((place / "energy_uj").read_text()) + 700) % (LIMIT + 1)
                (place / "energy_uj").write_text(str(now))
            return self.engine.run(feeds)

    rule = Rule(warmup=3, min_count=20, min_seconds=0.0)
    timed, energy = metered(Hungry(), sample_feeds(manifest, 7), 7, rule, meter)  # type: ignore[arg-type]
    assert timed.made > len(timed.calls) >= 20
    assert energy == pytest.approx(0.1)
    assert metered(Hungry(), sample_feeds(manifest, 7), 7, rule, None)[1] is None  # type: ignore[arg-type]


def test_the_hottest_sensor_that_answers_is_the_temperature(tmp_path: Path) -> None:
    assert temperature(tmp_path) is None
    for number, text in enumerate(["41500\n", "72250\n", "", "off"]):
        place = tmp_path / f"sys/class/thermal/thermal_zone{number}/temp"
        place.parent.mkdir(parents=True)
        place.write_text(text)
    assert temperature(tmp_path) == pytest.approx(72.25)
