"""Lines of tegrastats as boards printed them, each from the page named beside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.device.watch.probes.power import whole
from farthing.device.watch.probes.tegrastats import Tegra, parse

TX2_JP3 = (  # a TX2 with JetPack 3, as homework 5 of the course MIDS W251 quotes it: rails without SYS in their names
    "RAM 2586/7846MB (lfb 1x1MB) CPU [0%@960,0%@499,0%@499,0%@959,0%@960,0%@960] EMC_FREQ 10%@665 GR3D_FREQ 53%@140 "
    "APE 150 MTS fg 0% bg 0% BCPU@41C MCPU@41C GPU@39C PLL@41C Tboard@35C Tdiode@37.75C PMIC@100C thermal@40.2C "
    "VDD_IN 3177/3177 VDD_CPU 536/536 VDD_GPU 383/383 VDD_SOC 536/536 VDD_WIFI 0/0 VDD_DDR 575/575"
)
TX2_JP4 = (  # https://github.com/henrygd/beszel/pull/1631
    "RAM 3276/7859MB (lfb 5x4MB) SWAP 1626/12122MB (cached 181MB) "
    "CPU [44%@1421,49%@2031,67%@2034,17%@1420,25%@1419,8%@1420] EMC_FREQ 1%@1866 GR3D_FREQ 0%@114 APE 150 "
    "MTS fg 1% bg 1% PLL@42.5C MCPU@42.5C PMIC@50C Tboard@38C GPU@39.5C BCPU@42.5C thermal@41.3C Tdiode@39.25C "
    "VDD_SYS_GPU 182/182 VDD_SYS_SOC 730/730 VDD_4V0_WIFI 0/0 VDD_IN 5297/5297 VDD_SYS_CPU 1917/1917 "
    "VDD_SYS_DDR 1241/1241"
)
XAVIER_JP4 = (  # https://github.com/martinkersner/gtop/pull/7
    "RAM 14700/15692MB (lfb 3x2MB) SWAP 898/8192MB (cached 23MB) "
    "CPU [0%@1190,0%@1190,0%@1190,0%@1190,0%@1190,0%@1190,0%@1190,0%@1190] EMC_FREQ 0% GR3D_FREQ 0% AO@30C GPU@30.5C "
    "Tboard@31C Tdiode@32C AUX@30.5C CPU@31.5C thermal@30.8C PMIC@100C "
    "GPU 463/463 CPU 618/618 SOC 2936/2936 CV 0/0 VDDRQ 309/309 SYS5V 3306/3306"
)
NANO_JP4 = (  # https://github.com/dusty-nv/jetson-inference/issues/1206
    "RAM 1501/3956MB (lfb 332x4MB) IRAM 0/252kB(lfb 252kB) CPU [16%@1479,13%@1479,10%@1479,4%@1479] EMC_FREQ 4%@1600 "
    "GR3D_FREQ 28%@76 NVDEC 716 VIC_FREQ 0%@140 APE 25 PLL@39C CPU@44C PMIC@100C GPU@41.5C AO@47.5C thermal@42.5C "
    "POM_5V_IN 4122/3107 POM_5V_GPU 109/85 POM_5V_CPU 1167/748"
)
ORIN_JP5 = (  # https://github.com/catid/supercharger, README: JetPack 5, the GPU and its sensors off
    "04-24-2023 00:01:24 RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) CPU [0%@729,0%@729,0%@729,0%@729,"
    "0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@0 GR3D2_FREQ 0%@0 "
    "VIC_FREQ 729 APE 174 CV0@-256C CPU@42.593C Tboard@32C SOC2@39.343C Tdiode@33.25C SOC0@39.375C CV1@-256C GPU@-256C "
    "tj@42.593C SOC1@40.468C CV2@-256C VDD_GPU_SOC 2399mW/2399mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4032mW/4032mW "
    "NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
NANO_JP6 = (  # https://github.com/henrygd/beszel, agent/gpu_test.go: an Orin Nano with JetPack 6
    "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) "
    "CPU [15%@729,11%@729,14%@729,13%@729,11%@729,8%@729] EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] NVDEC off NVJPG off "
    "NVJPG1 off VIC off OFA off APE 200 cpu@53.968C soc2@52.437C soc0@50.75C gpu@53.343C tj@53.968C soc1@51.656C "
    "VDD_IN 12479mW/12479mW VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW"
)
THOR_JP7 = (  # an AGX Thor, Jetson Linux 38.4; its fields: docs.nvidia.com/jetson/archives/r38.4, TegrastatsUtility
    "04-21-2026 15:50:52 RAM 105265/125772MB (lfb 34x4MB) CPU [0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,1%@972,0%@972,"
    "0%@972,0%@972,0%@972,8%@972,0%@972,0%@972] EMC_FREQ 0%@2750 GR3D_FREQ @[314,314,314] NVENC0_FREQ @314 "
    "NVENC1_FREQ @314 NVDEC0_FREQ @314 NVDEC1_FREQ @314 NVJPG0_FREQ @314 VIC off OFA_FREQ @315 PVA0_FREQ off APE 300 "
    "cpu@37.343C tj@38.875C soc012@37.468C gpu@38.875C soc345@37.406C VDD_GPU 1962mW/1962mW "
    "VDD_CPU_SOC_MSS 5887mW/5887mW VIN_SYS_5V0 5635mW/5635mW VIN 19780mW/19780mW"
)
ORIN_JP7 = (  # as JetPack 7.2 prints it on an AGX Orin: two temperatures, three powers
    "07-17-2026 15:15:27 RAM 8179/62817MB (lfb 1x4MB) CPU [35%@729,24%@729,16%@729,18%@729,21%@729,21%@729,15%@729,"
    "15%@729,27%@1113,20%@1113,28%@1113,32%@1113] GR3D_FREQ 32% cpu@51.968C/51.968C soc2@48.968C/48.968C "
    "soc0@49.406C/49.5C gpu@47.125C/47.125C tj@51.968C/51.968C soc1@47.906C/48.093C "
    "VDD_GPU_SOC 4385mW/3787mW/4385mW VDD_CPU_CV 1196mW/897mW/1196mW VIN_SYS_5V0 5552mW/5274mW/5552mW"
)
LINES = [TX2_JP3, TX2_JP4, XAVIER_JP4, NANO_JP4, ORIN_JP5, NANO_JP6, THOR_JP7, ORIN_JP7]


@pytest.mark.parametrize(
    ("line", "ram", "swap", "cores", "emc", "percent", "mhz", "gpu_c", "hottest", "watts"),
    [
        (TX2_JP3, (2586, 7846), None, [0] * 6, 10, 53, 140, 39, 41, 3.177),
        (TX2_JP4, (3276, 7859), (1626, 12122), [44, 49, 67, 17, 25, 8], 1, 0, 114, 39.5, 42.5, 5.297),
        (XAVIER_JP4, (14700, 15692), (898, 8192), [0] * 8, 0, 0, None, 30.5, 32, 7.632),
        (NANO_JP4, (1501, 3956), None, [16, 13, 10, 4], 4, 28, 76, 41.5, 47.5, 4.122),
        (ORIN_JP5, (1282, 62795), (0, 31398), [0] * 12, 0, 0, 0, None, 42.593, 6.831),
        (NANO_JP6, (6185, 7620), (851, 3810), [15, 11, 14, 13, 11, 8], 43, 63, 621, 53.343, 53.968, 12.479),
        (THOR_JP7, (105265, 125772), None, [0] * 6 + [1] + [0] * 4 + [8, 0, 0], 0, None, 314, 38.875, 38.875, 19.78),
        (ORIN_JP7, (8179, 62817), None, [35, 24, 16, 18, 21, 21, 15, 15, 27, 20, 28, 32], None, 32, None, 47.125,
         51.968, 11.133),
    ],
    ids=["TX2 3", "TX2 4", "AGX Xavier 4", "Nano 4", "AGX Orin 5", "Orin Nano 6", "Thor 7", "AGX Orin 7"],
)  # fmt: skip
def test_lines_of_every_form(
    line: str,
    ram: tuple[int, int],
    swap: tuple[int, int] | None,
    cores: list[int],
    emc: float | None,
    percent: float | None,
    mhz: float | None,
    gpu_c: float | None,
    hottest: float,
    watts: float,
) -> None:
    found = parse(line)
    assert (found.ram_used_bytes, found.ram_total_bytes) == tuple(part << 20 for part in ram)
    assert (found.swap_used_bytes, found.swap_total_bytes) == (
        tuple(part << 20 for part in swap) if swap else (None, None)
    )
    assert [core for core, _ in found.cores] == cores
    assert found.emc_percent == emc
    assert found.gpu is not None
    assert (found.gpu.percent, found.gpu.frequency_mhz, found.gpu.temperature_c) == (percent, mhz, gpu_c)
    assert max(sensor.celsius for sensor in found.temperatures) == hottest, (
        "no alarm level, no sensor that is off"
    )
    assert whole(found.rails).power_w == pytest.approx(watts), "the input, or all parts of it once"


def test_rails_are_what_flows_now_and_unconnected_ones_are_left_out() -> None:
    rails = {rail.name: rail.power_w for rail in parse(ORIN_JP5).rails}
    assert rails == {"VDD_GPU_SOC": 2.399, "VDD_CPU_CV": 0.4, "VIN_SYS_5V0": 4.032, "VDDQ_VDD2_1V8AO": 0.301}
    now = {rail.name: rail.power_w for rail in parse(ORIN_JP7).rails}
    assert now["VDD_CPU_CV"] == 1.196, "not the mean, which comes second"
    assert {rail.name for rail in parse(NANO_JP4).rails} == {"POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"}


def test_a_processor_that_is_off_a_shared_frequency_and_a_rail_below_zero() -> None:
    found = parse("RAM 331/3964MB (lfb 758x4MB) CPU [1%@102,off,off,7%@204] VDD_GPU -392mW/-392mW")
    assert found.cores == ((1.0, 102.0), (None, None), (None, None), (7.0, 204.0))
    assert found.rails[0].power_w == -0.392
    assert parse("RAM 1/2MB CPU [5%,off]@1224").cores == ((5.0, 1224.0), (None, None))


@pytest.mark.parametrize(
    "line", ["", "\n", "tegrastats: command not found", "CPU [1%@102]", "GPU@40C", "\x00RAM"]
)
def test_what_is_no_line_says_nothing(line: str) -> None:
    assert parse(line) == Tegra()


@given(st.one_of(st.text(), st.from_regex(r"RAM [0-9]+/[0-9]+MB [A-Z@0-9%\[\],./mW -]{0,80}")))
def test_any_text_is_taken(line: str) -> None:
    parse(line)


@given(st.sampled_from(LINES), st.data())
def test_a_line_that_was_cut_or_damaged_is_taken(line: str, data: st.DataObject) -> None:
    start, end = sorted(data.draw(st.lists(st.integers(0, len(line)), min_size=2, max_size=2)))
    found = parse(line[:start] + data.draw(st.text(max_size=5)) + line[end:])
    assert all(-100 < sensor.celsius < 250 for sensor in found.temperatures)
