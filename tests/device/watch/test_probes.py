"""A device read as a whole: trees of boards, control groups of both kinds, files that vanish, and this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.device.watch.probes import Probes, Reading
from farthing.device.watch.probes.cpu import core_times
from farthing.device.watch.probes.power import battery, monitors, whole
from farthing.device.watch.probes.throttling import Throttling
from farthing.meter import temperatures
from farthing.testing import FakeClock

Plant = Callable[[dict[str, str]], Path]

STAT = "cpu  {0} 0 0 {1} 0 0 0 0 0 0\ncpu0 {2} 0 0 {3} 0 0 0 0 0 0\ncpu1 {4} 0 0 {5} 0 0 0 0 0 0\nintr 1 2\nctxt 5"
MEMINFO = """MemTotal:        4000000 kB
MemFree:          100000 kB
MemAvailable:    3000000 kB
SwapTotal:       1000000 kB
SwapFree:         900000 kB
HugePages_Total:       0"""


def stat(busy0: int, idle0: int, busy1: int, idle1: int) -> dict[str, str]:
    return {"proc/stat": STAT.format(busy0 + busy1, idle0 + idle1, busy0, idle0, busy1, idle1)}


def probes(root: Path) -> tuple[Probes, FakeClock]:
    clock = FakeClock(100.0)
    return Probes(root, None, clock), clock


def test_a_tree_without_anything_says_nothing(tmp_path: Path) -> None:
    found = Probes(tmp_path, None, FakeClock(7.0)).read()
    said = {name for name, value in msgspec.structs.asdict(found).items() if value not in (None, (), "")}
    assert said == {"time_s", "disk_used_bytes", "disk_available_bytes"}, "the disk is a real one"
    assert found.throttled is None
    quantities = (found.memory_percent, found.swap_percent, found.load_per_core, found.gpu_percent)
    assert quantities == (None, None, None, None), "unavailable is not 0"


# Processors -------------------------------------------------------------------------------------------------------


def test_use_is_since_the_last_reading(plant: Plant) -> None:
    reader, clock = probes(plant(stat(500, 500, 100, 900)))
    first = reader.read()
    assert (first.cpu_percent, first.cpu_by_core_percent) == (None, (None, None))
    assert (first.cpu_cores, first.machine_cores) == (2.0, 2)
    clock.advance(1)
    plant(stat(575, 525, 125, 975))
    second = reader.read()
    assert second.cpu_percent == 50
    assert second.cpu_by_core_percent == (75, 25)
    assert second.time_s == 101
    clock.advance(1)
    assert reader.read().cpu_percent is None, "no tick has passed: nothing is known"


def test_only_processors_this_process_may_run_on_count(plant: Plant) -> None:
    allowed = {"proc/self/status": "Name:\tpython\nCpus_allowed:\t2\nCpus_allowed_list:\t1-1,7"}
    reader, _ = probes(plant(stat(0, 0, 0, 0) | allowed))
    reader.read()
    plant(stat(100, 0, 20, 80))
    found = reader.read()
    assert (found.cpu_percent, found.cpu_cores, found.machine_cores) == (20, 1, 2)


def test_waiting_for_a_disk_is_idle_and_time_stolen_is_not(plant: Plant) -> None:
    root = plant({"proc/stat": "cpu0 10 1 2 30 40 3 4 5 6 7"})
    assert core_times(root) == {0: (10 + 1 + 2 + 3 + 4 + 5, 95)}, "guests are in the users' time already"


def test_a_processor_that_is_switched_off_or_counts_backwards(plant: Plant) -> None:
    reader, _ = probes(plant(stat(50, 50, 50, 50)))
    reader.read()
    plant(
        {"proc/stat": "cpu  90 0 0 110 0\ncpu1 40 0 0 110 0"}
    )  # its idle time went on, its users' went back
    found = reader.read()
    assert found.cpu_by_core_percent == (None, 0)
    assert found.machine_cores == 1
    plant({"proc/stat": "garbage"})
    assert reader.read().cpu_by_core_percent == ()


V1 = {
    "proc/self/cgroup": "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n1:name=systemd:/",
    "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "50000",
    "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000",
    "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes": str(1 << 30),
    "sys/fs/cgroup/memory/docker/ab/memory.usage_in_bytes": str(600 << 20),
    "sys/fs/cgroup/memory/docker/ab/memory.stat": f"cache 5\ninactive_file 1\ntotal_inactive_file {88 << 20}",
}
V2 = {
    "proc/self/cgroup": "0::/system.slice/door.service",
    "sys/fs/cgroup/system.slice/cpu.max": "50000 100000",
    "sys/fs/cgroup/system.slice/door.service/cpu.max": "max 100000",
    "sys/fs/cgroup/system.slice/door.service/memory.max": "max",
    "sys/fs/cgroup/system.slice/memory.max": str(1 << 30),
    "sys/fs/cgroup/system.slice/memory.current": str(600 << 20),
    "sys/fs/cgroup/system.slice/memory.stat": f"anon 5\ninactive_file {88 << 20}",
    "sys/fs/cgroup/system.slice/memory.swap.max": str(100 << 20),
    "sys/fs/cgroup/system.slice/memory.swap.current": str(10 << 20),
}


def account_v1(seconds: float, periods: int, held: int) -> dict[str, str]:
    group = "sys/fs/cgroup/cpu,cpuacct/docker/ab"
    text = f"nr_periods {periods}\nnr_throttled {held}\nthrottled_time 12345"
    return {f"{group}/cpuacct.usage": f"{seconds * 1e9:.0f}", f"{group}/cpu.stat": text}


def account_v2(seconds: float, periods: int, held: int) -> dict[str, str]:
    text = f"usage_usec {seconds * 1e6:.0f}\nuser_usec 1\nnr_periods {periods}\nnr_throttled {held}\nthrottled_usec 9"
    return {"sys/fs/cgroup/system.slice/cpu.stat": text}


@pytest.mark.parametrize(("tree", "account"), [(V1, account_v1), (V2, account_v2)], ids=["v1", "v2"])
def test_of_a_quota_its_own_account_is_taken(
    plant: Plant, tree: dict[str, str], account: Callable[[float, int, int], dict[str, str]]
) -> None:
    """Half a processor of two: the machine is busy with others, the group uses 0.2 of its 0.5 seconds a second."""
    reader, clock = probes(plant(tree | account(10, 100, 5) | stat(0, 0, 0, 0)))
    assert reader.read().cpu_percent is None
    clock.advance(2)
    plant(account(10.4, 120, 10) | stat(200, 0, 180, 20))
    found = reader.read()
    assert found.cpu_percent == pytest.approx(40)
    assert (found.cpu_cores, found.machine_cores) == (0.5, 2)
    assert found.cpu_by_core_percent == (100, 90), "of the machine"
    assert found.quota_held_percent == 25
    clock.advance(1)
    plant(account(11.4, 130, 20))
    assert reader.read().cpu_percent == 100, "a burst above the quota"


def test_an_account_in_a_hierarchy_of_its_own(plant: Plant) -> None:
    tree = {
        "proc/self/cgroup": "3:cpuacct:/a\n2:cpu:/a",
        "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "100000",
        "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpuacct/a/cpuacct.usage": "1000000000",
    }
    reader, clock = probes(plant(tree | stat(0, 0, 0, 0)))
    reader.read()
    clock.advance(1)
    plant({"sys/fs/cgroup/cpuacct/a/cpuacct.usage": "1250000000"})
    assert reader.read().cpu_percent == pytest.approx(25)


def test_a_quota_without_an_account_leaves_the_use_unknown(plant: Plant) -> None:
    reader, clock = probes(plant(V2 | stat(0, 0, 0, 0)))
    reader.read()
    clock.advance(1)
    plant(stat(100, 0, 100, 0))
    found = reader.read()
    assert found.cpu_percent is None, "what others used says nothing about us"
    assert found.cpu_by_core_percent == (100, 100)


def test_a_quota_of_more_than_there_is_limits_nothing(plant: Plant) -> None:
    reader, _ = probes(plant(V2 | {"sys/fs/cgroup/system.slice/cpu.max": "400000 100000"} | stat(0, 0, 0, 0)))
    reader.read()
    plant(stat(50, 50, 0, 100))
    found = reader.read()
    assert (found.cpu_percent, found.cpu_cores) == (25, 2)


def test_load_is_of_the_machine(plant: Plant) -> None:
    reader, _ = probes(plant(stat(0, 0, 0, 0) | {"proc/loadavg": "3.00 2.50 1.25 4/125 10154"}))
    found = reader.read()
    assert (found.load_1min, found.load_5min, found.load_15min, found.load_per_core) == (3.0, 2.5, 1.25, 1.5)


# Memory and disk --------------------------------------------------------------------------------------------------


def test_memory_of_a_machine_without_limits(plant: Plant) -> None:
    found = probes(plant({"proc/meminfo": MEMINFO}))[0].read()
    assert found.memory_total_bytes == 4000000 << 10
    assert found.memory_available_bytes == 3000000 << 10
    assert found.memory_percent == 25
    assert (found.swap_total_bytes, found.swap_used_bytes) == (1000000 << 10, 100000 << 10)
    assert found.swap_percent == 10


@pytest.mark.parametrize(("tree", "swap"), [(V1, 10), (V2, 10)], ids=["v1", "v2"])
def test_memory_of_a_limited_group(plant: Plant, tree: dict[str, str], swap: float) -> None:
    found = probes(plant({"proc/meminfo": MEMINFO} | tree))[0].read()
    assert found.memory_total_bytes == 1 << 30
    assert found.memory_used_bytes == 512 << 20, (
        "pages of files that were not touched lately are free to take"
    )
    assert found.memory_percent == 50
    assert found.swap_percent == pytest.approx(swap)


def test_a_group_has_no_more_than_the_machine_has_left(plant: Plant) -> None:
    tight = MEMINFO.replace("MemAvailable:    3000000", "MemAvailable:    10240")
    found = probes(plant({"proc/meminfo": tight} | V2))[0].read()
    assert found.memory_available_bytes == 10 << 20


def test_limits_that_are_none(plant: Plant) -> None:
    tree = V1 | {"sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes": "9223372036854771712"}
    assert probes(plant({"proc/meminfo": MEMINFO} | tree))[0].read().memory_total_bytes == 4000000 << 10


def test_a_group_whose_use_is_hidden(plant: Plant) -> None:
    tree = {name: text for name, text in V2.items() if not name.endswith("memory.current")}
    found = probes(plant({"proc/meminfo": MEMINFO} | tree))[0].read()
    assert (found.memory_total_bytes, found.memory_available_bytes, found.memory_percent) == (
        1 << 30,
        None,
        None,
    )


def test_the_disk_is_that_of_the_path_given(tmp_path: Path) -> None:
    found = Probes(tmp_path, None, FakeClock(), disk=tmp_path).read()
    real = os.statvfs(tmp_path)
    assert found.disk_used_bytes is not None
    assert found.disk_available_bytes is not None
    assert found.disk_used_bytes + found.disk_available_bytes <= real.f_blocks * real.f_frsize
    gone = Probes(tmp_path, None, FakeClock(), disk=tmp_path / "gone").read()
    assert (gone.disk_used_bytes, gone.disk_percent) == (None, None)
    without = Probes(tmp_path, None, FakeClock(), disk=Path("/proc")).read()
    assert without.disk_percent is None, "a file system without blocks has no room to run out of"


# Boards -----------------------------------------------------------------------------------------------------------


def test_a_jetson(plant: Plant, orin: dict[str, str]) -> None:
    found = probes(plant(orin))[0].read()
    assert {sensor.name for sensor in found.temperatures} == {"cpu-thermal", "tj-thermal"}
    assert found.temperature_c == 37.781
    assert {rail.name: round(rail.power_w, 3) for rail in found.rails} == {
        "VDD_GPU_SOC": 2.631,
        "VDD_CPU_CV": 0.376,
        "VIN_SYS_5V0": 4.869,
    }, "no rail of the shunts"
    assert found.power_w == pytest.approx(18.792 * 0.14 + 18.784 * 0.02 + 4.968 * 0.98)
    assert found.power_of == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert found.gpu_percent == 23.7
    assert (found.cpu_by_core_mhz, found.cpu_mhz) == ((1420.8, 729.6), 1420.8)
    assert found.cpu_cap_percent == 75
    assert (found.throttled, found.throttling) == (False, ()), "a fan that turns is no throttling"


def test_a_jetson_that_slows_down(plant: Plant, orin: dict[str, str]) -> None:
    reader, _ = probes(plant(orin | {"sys/class/hwmon/hwmon4/oc1_event_cnt": "3"}))
    first = reader.read()
    assert (first.throttled, first.throttled_before) == (False, ("over-current",))
    plant({"sys/class/thermal/cooling_device1/cur_state": "4", "sys/class/hwmon/hwmon4/oc1_event_cnt": "5"})
    second = reader.read()
    assert second.throttled is True
    assert second.throttling == ("cooling by devfreq-17000000.gpu", "over-current")


class Nano:
    """A Jetson with tegrastats but without sensors in sysfs that may be read."""

    def __call__(self, command: Sequence[str], timeout_s: float, lines: int | None = None) -> str | None:
        if command[0] != "tegrastats":
            return None
        assert lines == 1, "it never ends by itself"
        return (
            "RAM 1501/3956MB (lfb 332x4MB) CPU [16%@1479,13%@1479] EMC_FREQ 4%@1600 GR3D_FREQ 28%@76 CPU@44C "
            "PMIC@100C GPU@41.5C POM_5V_IN 4122/3107 POM_5V_GPU 109/85 POM_5V_CPU 1167/748\n"
        )


def test_tegrastats_fills_what_files_do_not_say(plant: Plant, orin: dict[str, str]) -> None:
    found = Probes(plant({}), Nano(), FakeClock()).read()
    assert (found.temperature_c, found.power_w, found.power_of) == (44, 4.122, "POM_5V_IN")
    assert (found.gpu_percent, found.gpus[0].frequency_mhz, found.memory_bandwidth_percent) == (28, 76, 4)
    both = Probes(plant(orin), Nano(), FakeClock()).read()
    assert (both.temperature_c, both.gpu_percent) == (37.781, 28), "its GPU's frequency is in no file"
    assert {rail.source for rail in both.rails} == {"ina3221"}, "the same rails are not listed twice"


class Pi:
    def __call__(self, command: Sequence[str], timeout_s: float, lines: int | None = None) -> str | None:
        return {
            "get_throttled": "throttled=0x20002\n",
            "measure_temp": "temp=61.8'C\n",
            "measure_volts": "volt=0.8500V\n",
            "measure_clock": "frequency(0)=600117184\n",
        }.get(command[1] if command[0] == "vcgencmd" else "")


def test_a_raspberry_pi(plant: Plant) -> None:
    """Layout of a Pi 4: the zone comes again as a chip of hwmon."""
    files = {
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "61342",
        "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical",
        "sys/class/thermal/thermal_zone0/trip_point_0_temp": "110000",
        "sys/class/hwmon/hwmon0/name": "cpu_thermal",
        "sys/class/hwmon/hwmon0/temp1_input": "61342",
        "sys/class/hwmon/hwmon1/name": "rpi_volt",
        "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1",
    }
    found = Probes(plant(files), Pi(), FakeClock()).read()
    assert [(sensor.name, sensor.critical_c) for sensor in found.temperatures] == [("cpu-thermal", 110)]
    assert (found.temperature_c, found.core_v) == (61.342, 0.85)
    assert (found.cpu_by_core_mhz, found.cpu_mhz) == ((1800,), 600.117184), "asked for, and measured"
    assert (found.throttling, found.throttled_before) == (("frequency capped",), ("frequency capped",))
    plant({"sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1"})
    assert probes(plant({}))[0].read().throttling == ("under-voltage",), "without the tool"
    assert (
        Probes(plant({"sys/class/thermal/thermal_zone0/temp": ""}), Pi(), FakeClock()).read().temperature_c
        == 61.8
    )


def laptop(energy: int) -> dict[str, str]:
    battery = {
        "type": "Battery", "scope": "System", "status": "Discharging", "capacity": "81",
        "energy_full": "50000000", "power_now": "9250000",
    }  # fmt: skip
    files = {f"sys/class/power_supply/BAT0/{name}": value for name, value in battery.items()}
    return files | {
        "sys/class/power_supply/AC/type": "Mains",
        "sys/class/power_supply/AC/online": "0",
        "sys/class/power_supply/hidpp_battery_0/type": "Battery",
        "sys/class/power_supply/hidpp_battery_0/scope": "Device",
        "sys/class/power_supply/hidpp_battery_0/capacity": "3",
        "sys/class/hwmon/hwmon5/name": "coretemp",
        "sys/class/hwmon/hwmon5/temp1_label": "Package id 0",
        "sys/class/hwmon/hwmon5/temp1_input": "71000",
        "sys/class/hwmon/hwmon5/temp1_crit": "100000",
        "sys/class/hwmon/hwmon6/name": "nvme",
        "sys/class/hwmon/hwmon6/temp1_label": "Composite",
        "sys/class/hwmon/hwmon6/temp1_input": "84850",
        "sys/class/powercap/intel-rapl:0/name": "package-0",
        "sys/class/powercap/intel-rapl:0/energy_uj": str(energy),
        "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
        "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "7",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "0",
    }


def test_a_laptop_on_its_battery(plant: Plant) -> None:
    reader, clock = probes(plant(laptop(1_000_000)))
    first = reader.read()
    assert (first.battery_percent, first.battery_status) == (81, "Discharging"), "a mouse has one too"
    assert (first.power_w, first.power_of) == (9.25, "battery")
    assert (first.throttled, first.throttled_before) == (False, ("processor too hot",))
    assert first.temperature_c == 71, "a disk at 85 degrees is no processor"
    assert [(sensor.name, sensor.critical_c) for sensor in first.temperatures] == [
        ("coretemp Package id 0", 100),
        ("nvme Composite", None),
    ]
    clock.advance(2)
    plant(laptop(13_000_000) | {"sys/class/power_supply/BAT0/status": "Charging"})
    second = reader.read()
    assert (second.power_w, second.power_of) == (6, "processor packages"), "12 J in 2 s"
    plant({"sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "1"})
    third = reader.read()
    assert (third.throttled, third.throttling) == (True, ("processor too hot",))


def test_batteries_by_their_sizes_and_by_current_and_voltage(plant: Plant) -> None:
    root = plant(
        {
            "sys/class/power_supply/BAT0/type": "Battery",
            "sys/class/power_supply/BAT0/capacity": "100",
            "sys/class/power_supply/BAT0/charge_full": "1000",
            "sys/class/power_supply/BAT0/status": "Full",
            "sys/class/power_supply/BAT1/type": "Battery",
            "sys/class/power_supply/BAT1/capacity": "20",
            "sys/class/power_supply/BAT1/charge_full": "3000",
            "sys/class/power_supply/BAT1/status": "Discharging",
            "sys/class/power_supply/BAT1/current_now": "-500000",
            "sys/class/power_supply/BAT1/voltage_now": "12000000",
        }
    )
    found = battery(root)
    assert (found.battery_percent, found.battery_status) == (40, "Discharging")
    assert [(rail.name, rail.power_w) for rail in found.rails] == [("BAT1", 6)]
    plant({"sys/class/power_supply/BAT0/charge_full": "?", "sys/class/power_supply/BAT1/capacity": "20"})
    assert battery(root).battery_percent == 60, "sizes are known of all, or of none"


def test_a_monitor_soldered_to_the_supply(plant: Plant) -> None:
    """An INA219 or INA226 says microwatts itself: https://docs.kernel.org/hwmon/ina2xx.html."""
    files = {"sys/class/hwmon/hwmon1/name": "ina226", "sys/class/hwmon/hwmon1/power1_input": "4113120"}
    rails = monitors(plant(files))
    assert [(rail.name, rail.source, rail.power_w) for rail in rails] == [("ina226", "ina226", 4.11312)]
    assert whole(rails) == (4.11312, "ina226")
    plant({"sys/class/hwmon/hwmon2/name": "ina219", "sys/class/hwmon/hwmon2/power1_input": "1000000"})
    assert whole(monitors(plant({}))) == (None, ""), "one may be behind the other: they are not added up"


def test_monitors_of_jetpack_4(plant: Plant) -> None:
    """https://github.com/energymon/energymon, JetsonPowerRails.md: the driver ina3221x below iio, milliwatts."""
    place = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    names, powers = ("VDD_IN", "VDD_CPU_GPU", "NC"), ("3528", "410", "0")
    files = {f"{place}/rail_name_{n}": name for n, name in enumerate(names)}
    files |= {f"{place}/in_power{n}_input": power for n, power in enumerate(powers)}
    rails = monitors(plant(files))
    assert {rail.name: rail.power_w for rail in rails} == {"VDD_IN": 3.528, "VDD_CPU_GPU": 0.41}
    assert whole(rails) == (3.528, "VDD_IN")


def test_drivers_that_measure_nothing_are_no_sensors(plant: Plant) -> None:
    files = {}
    for n, (kind, temp) in enumerate(
        [("gpu", "-256000"), ("PMIC-Die", "100000"), ("iwlwifi_1", "-274000"), ("x", "9" * 40)]
    ):
        files |= {
            f"sys/class/thermal/thermal_zone{n}/type": kind,
            f"sys/class/thermal/thermal_zone{n}/temp": temp,
        }
    assert temperatures(plant(files)) == []


def test_a_counter_that_is_reset_does_not_throttle(plant: Plant) -> None:
    counter = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    throttling = Throttling(plant({counter: "9"}))
    throttling.read()
    plant({counter: "0"})
    assert throttling.read() == (True, (), ())


# Whatever is in the files -----------------------------------------------------------------------------------------

FILES = [
    "proc/stat", "proc/loadavg", "proc/meminfo", "proc/self/cgroup", "proc/self/status", "sys/fs/cgroup/cpu.max",
    "sys/fs/cgroup/cpu.stat", "sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat",
    "sys/class/thermal/thermal_zone0/type", "sys/class/thermal/thermal_zone0/temp",
    "sys/class/thermal/cooling_device0/type", "sys/class/thermal/cooling_device0/cur_state",
    "sys/class/hwmon/hwmon0/name", "sys/class/hwmon/hwmon0/temp1_input", "sys/class/hwmon/hwmon0/in1_input",
    "sys/class/hwmon/hwmon0/curr1_input", "sys/class/hwmon/hwmon0/power1_input",
    "sys/class/power_supply/BAT0/type", "sys/class/power_supply/BAT0/capacity", "sys/class/power_supply/BAT0/status",
    "sys/class/power_supply/BAT0/power_now", "sys/devices/gpu.0/load",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq",
]  # fmt: skip
WORDS = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.sampled_from(["max", "100000 100000", "0 0", "cpu0 1 2 3 4", "cpu0 9 9 9 9\ncpu1 1 1 1 1", "1.0 2.0 3.0 1/2 3",
                     "Battery", "Discharging", "ina3221", "ina226", "coretemp", "0::/a/b", "Cpus_allowed_list:\t5-1",
                     "MemTotal: 5 kB\nMemAvailable: 9 kB", "usage_usec 5\nnr_periods 0\nnr_throttled 3", "Processor"]),
)  # fmt: skip


@given(st.lists(st.dictionaries(st.sampled_from(FILES), WORDS), min_size=1, max_size=3))
def test_no_content_makes_it_fail(
    tmp_path_factory: pytest.TempPathFactory, states: list[dict[str, str]]
) -> None:
    root, clock = tmp_path_factory.mktemp("tree"), FakeClock()
    reader = Probes(root, None, clock)
    for files in states:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        found = reader.read()
        clock.advance(1)
        for percent in (
            found.cpu_percent,
            *found.cpu_by_core_percent,
            found.quota_held_percent,
            found.battery_percent,
        ):
            assert percent is None or 0 <= percent <= 100
        assert found.memory_percent is None or 0 <= found.memory_percent <= 100


def test_directories_in_the_place_of_files(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).mkdir(parents=True)
    assert Probes(tmp_path, None, FakeClock()).read().cpu_percent is None


def test_files_that_vanish_while_they_are_read(plant: Plant, orin: dict[str, str]) -> None:
    root = plant(orin | stat(0, 0, 0, 0) | {"proc/meminfo": MEMINFO})
    reader, _ = probes(root)
    for name in orin:
        (root / name).unlink()
        assert isinstance(reader.read(), Reading)


# This machine -----------------------------------------------------------------------------------------------------


def test_this_machine_is_read_for_real() -> None:
    reader, end = Probes(), time.monotonic() + 30
    found = reader.read()
    assert found.cpu_percent is None
    while found.cpu_percent is None and time.monotonic() < end:  # until a tick has passed
        found = reader.read()
    if found.cpu_percent is None:
        pytest.skip("a quota whose account cannot be read")
    assert 0 <= found.cpu_percent <= 100
    assert found.machine_cores
    assert found.machine_cores <= len(found.cpu_by_core_percent)
    assert found.memory_total_bytes
    assert found.memory_used_bytes
    assert found.load_1min is not None
    if not any(Path("/sys/class/thermal").glob("thermal_zone*")) and not Path("/sys/class/hwmon").exists():
        assert (found.temperature_c, found.temperatures) == (None, ())
