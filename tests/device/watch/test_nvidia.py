"""NVIDIA's GPUs: lines of nvidia-smi, and a library that answers as NVML does."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from farthing.device.watch.probes.nvidia import Nvidia, by_nvml, by_smi, nvml
from farthing.device.watch.probes.reading import Gpu
from farthing.device.watch.probes.tools import Tools
from farthing.testing import FakeClock

# Values as https://github.com/henrygd/beszel, agent/gpu_test.go has them, in the order our query asks for.
A10 = "NVIDIA A10, 0, 1695, 19676, 23028, 45, 58.98, 0x0000000000000001\n"
HOT = "NVIDIA A10, 97, 900, 19638, 23028, 91, 62.35, 0x0000000000000068\n"


class Smi:
    """A driver whose ``nvidia-smi`` knows the query with the events, or only the one without."""

    def __init__(self, events: bool) -> None:
        self.events, self.asked = events, 0

    def __call__(self, command: Sequence[str], timeout_s: float, lines: int | None = None) -> str | None:
        self.asked += 1
        if "clocks_throttle_reasons" in command[1]:
            return A10 + HOT if self.events else None
        return "".join(line.rpartition(",")[0] + "\n" for line in (A10 + HOT).splitlines())


def test_two_gpus_one_of_them_too_hot() -> None:
    cool, hot = Nvidia(Tools(Smi(True), FakeClock()), lambda: None).read()
    assert cool == Gpu(
        name="NVIDIA A10",
        percent=0,
        frequency_mhz=1695,
        memory_used_bytes=19676 << 20,
        memory_total_bytes=23028 << 20,
        temperature_c=45,
        power_w=58.98,
    ), "being idle is no throttling"
    assert hot.throttling == ("GPU slowdown", "GPU too hot", "GPU too hot (hardware)")


def test_a_driver_that_does_not_know_the_events_is_asked_without_them() -> None:
    smi = Smi(False)
    found = Nvidia(Tools(smi, FakeClock()), lambda: None)
    assert [gpu.power_w for gpu in found.read()] == [58.98, 62.35]
    assert [gpu.throttling for gpu in found.read()] == [(), ()]
    assert smi.asked == 3, "the query that failed is left alone for a minute"


def test_values_that_are_not_supported_are_unavailable() -> None:
    said = "Orin (nvgpu), [N/A], [N/A], [N/A], [N/A], [Not Supported], [Unknown Error], [N/A]\n"
    assert by_smi(said) == (Gpu(name="Orin (nvgpu)"),)
    assert by_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n") == ()


@given(st.text())
def test_any_text_is_taken(said: str) -> None:
    by_smi(said)


class Nvml:
    """The calls of NVML that are made, for two devices; the second supports next to nothing, as a Jetson's."""

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index == 2:
            raise self.NVMLError("lost")
        return index

    def nvmlDeviceGetName(self, device: int) -> Any:  # noqa: N802
        return b"NVIDIA T4" if device == 0 else "Orin (nvgpu)"

    def _only_first(self, device: int, value: Any) -> Any:
        if device:
            raise self.NVMLError("not supported")
        return value

    def nvmlDeviceGetUtilizationRates(self, device: int) -> Any:  # noqa: N802
        return self._only_first(device, SimpleNamespace(gpu=35, memory=12))

    def nvmlDeviceGetMemoryInfo(self, device: int) -> Any:  # noqa: N802
        return self._only_first(device, SimpleNamespace(total=16 << 30, used=3 << 30, free=13 << 30))

    def nvmlDeviceGetTemperature(self, device: int, kind: int) -> Any:  # noqa: N802
        return self._only_first(device, 66)

    def nvmlDeviceGetClockInfo(self, device: int, kind: int) -> Any:  # noqa: N802
        return self._only_first(device, 1590)

    def nvmlDeviceGetPowerUsage(self, device: int) -> Any:  # noqa: N802
        return self._only_first(device, 70250)


def test_nvml_says_what_it_knows() -> None:
    first, second = by_nvml(Nvml())
    assert (first.name, first.percent, first.temperature_c, first.power_w) == ("NVIDIA T4", 35, 66, 70.25)
    assert (first.memory_used_bytes, first.memory_total_bytes, first.frequency_mhz) == (
        3 << 30,
        16 << 30,
        1590,
    )
    assert first.throttling == (), "this library is older than the call that says so"
    assert second == Gpu(name="Orin (nvgpu)")


def test_the_library_is_opened_once_and_nvidia_smi_not_asked_then() -> None:
    smi, opened = Smi(True), []
    nvidia = Nvidia(Tools(smi, FakeClock()), lambda: opened.append(1) or Nvml())  # type: ignore[func-returns-value]
    assert len(nvidia.read()) == len(nvidia.read()) == 2
    assert (len(opened), smi.asked) == (1, 0)


def test_nvml_of_this_machine_does_not_raise() -> None:
    library = nvml()
    assert library is None or by_nvml(library) is not None
