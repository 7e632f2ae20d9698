"""Trees that look like the ``/proc`` and ``/sys`` of devices, built of layouts that public pages and tests show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Plant = Callable[[Mapping[str, str]], Path]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Writes files below a root of its own; a second call changes them."""

    def write(files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            place = tmp_path / "root" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(f"{text}\n")
        return tmp_path / "root"

    return write


@pytest.fixture
def orin() -> dict[str, str]:
    """A Jetson AGX Orin with JetPack 6.

    Zones, cooling devices and monitors: https://github.com/simpleiot/simpleiot, client/metrics tests; GPU load:
    https://github.com/nicolargo/glances, tests-data/plugins/gpu/tegra. A rail at rest answers with an error: no file.
    """
    thermal = {
        "thermal_zone0": ("cpu-thermal", "37718"),
        "thermal_zone1": ("gpu-thermal", None),
        "thermal_zone2": ("cv0-thermal", "unavailable"),
        "thermal_zone3": ("tj-thermal", "37781"),
    }
    files = {"sys/devices/platform/gpu.0/load": "237"}
    for zone, (kind, temp) in thermal.items():
        files[f"sys/class/thermal/{zone}/type"] = kind
        if temp is not None:
            files[f"sys/class/thermal/{zone}/temp"] = temp
    for name, value in {
        "name": "ina3221",
        "in1_label": "VDD_GPU_SOC", "in1_input": "18792", "curr1_input": "140",
        "in2_label": "VDD_CPU_CV", "in2_input": "18784", "curr2_input": "20",
        "in3_label": "VIN_SYS_5V0", "in3_input": "4968", "curr3_input": "980",
        "in4_input": "280", "in5_input": "40", "in7_label": "sum of shunt voltages", "in7_input": "360",
        "curr4_input": "360",
    }.items():  # fmt: skip
        files[f"sys/class/hwmon/hwmon3/{name}"] = value
    for number, (kind, state) in enumerate(
        [("cpufreq-cpu0", "0"), ("devfreq-17000000.gpu", "0"), ("pwm-fan", "3"), ("hot-surface-alert", "0")]
    ):
        files[f"sys/class/thermal/cooling_device{number}/type"] = kind
        files[f"sys/class/thermal/cooling_device{number}/cur_state"] = state
    for core, kilohertz in enumerate(["1420800", "729600"]):
        place = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        files[f"{place}/scaling_cur_freq"] = kilohertz
        files[f"{place}/scaling_max_freq"] = "1651200"
        files[f"{place}/cpuinfo_max_freq"] = "2201600"
    return files
