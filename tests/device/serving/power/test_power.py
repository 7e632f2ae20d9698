from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from farthing.device.serving.power import PLANS, Powered, PowerPlan
from farthing.device.serving.power.governor import CPUFREQ, Governor
from farthing.device.serving.service import Request
from farthing.errors import ClosedError, ConfigError, ModelError, TargetError
from farthing.testing import fake_model

X = {"x": np.ones((1, 4), np.float32)}
VARIANTS = {"float32": fake_model(seed=1), "int8": fake_model(seed=2)}


def governors(root: Path) -> list[str]:
    return [file.read_text().strip() for file in sorted(root.glob(f"{CPUFREQ}/*/scaling_[gm]*"))]


def test_modes_take_their_variant_and_set_the_machine(cpufreq: Path) -> None:
    before = governors(cpufreq)
    with Powered(VARIANTS, "high_performance", governor=Governor(cpufreq, None)) as service:
        assert (service.mode, service.variant) == ("high_performance", "float32")
        assert governors(cpufreq) == ["performance", "1800000", "performance", "2400000"]
        service.switch("power_saver")
        assert (service.mode, service.variant) == ("power_saver", "int8")
        assert governors(cpufreq) == ["powersave", "1080000", "powersave", "1440000"]
        assert service.answer(X).source == "fake int8"
        service.switch("balanced")
        assert governors(cpufreq) == before
        assert service.refused == ()
    assert governors(cpufreq) == before


def test_a_machine_that_does_not_let_itself_be_set_is_said_and_answers_all_the_same(tmp_path: Path) -> None:
    with Powered(VARIANTS, governor=Governor(tmp_path, None)) as service:
        assert len(service.refused) == 2
        assert service.answer(X).source == "fake int8"
    with pytest.raises(TargetError, match=r"lets nobody choose .*; .* lets nobody limit"):
        Powered(VARIANTS, governor=Governor(tmp_path, None), strict=True)


def test_two_of_them_on_one_machine_both_answer_and_the_first_one_sets_it(cpufreq: Path) -> None:
    before = governors(cpufreq)
    with Powered(VARIANTS, "high_performance", governor=Governor(cpufreq, None)) as first:
        theirs = governors(cpufreq)
        with Powered(VARIANTS, "power_saver", governor=Governor(cpufreq, None)) as second:
            (reason,) = second.refused
            assert "another governor" in reason
            assert governors(cpufreq) == theirs
            assert (first.answer(X).source, second.answer(X).source) == ("fake float32", "fake int8")
        assert governors(cpufreq) == theirs
        assert first.refused == ()
    assert governors(cpufreq) == before


def test_no_request_is_lost_over_a_switch() -> None:
    over, errors = threading.Event(), []
    with Powered(VARIANTS, "high_performance") as service:

        def call() -> None:
            while not over.is_set():
                errors.append(service.submit(Request(X)).exception(30))

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for mode in ("power_saver", "balanced", "high_performance") * 3:
            service.switch(mode)  # type: ignore[arg-type]
        over.set()
        for thread in threads:
            thread.join(30)
    assert set(errors) == {None}


def test_what_cannot_be_is_refused_and_the_mode_stays() -> None:
    with pytest.raises(ConfigError, match="one at least"):
        Powered({})
    with pytest.raises(ConfigError, match="did you mean 'balanced'"):
        Powered(VARIANTS, "balance")  # type: ignore[arg-type]
    for name in ("cores", "duty", "frequency"):
        with pytest.raises(ConfigError, match=f"{name} is a share"):
            PowerPlan(variants=("int8",), **{name: 0})  # type: ignore[arg-type]
    other = {**VARIANTS, "int8": fake_model(features=5)}
    with Powered(other, "high_performance") as service:
        with pytest.raises(ModelError, match="would be refused"):
            service.switch("power_saver")
        assert (service.mode, service.variant) == ("high_performance", "float32")
        assert service.answer(X).source == "fake float32"


def test_a_variant_that_is_missing_is_replaced_by_the_next() -> None:
    with Powered({"mine": fake_model()}, "power_saver", plans=PLANS) as service:
        assert service.variant == "mine"


def test_once_closed_the_machine_is_not_set_again(cpufreq: Path) -> None:
    before = governors(cpufreq)
    service = Powered(VARIANTS, "power_saver", governor=Governor(cpufreq, None))
    service.close()
    with pytest.raises(ClosedError):
        service.switch("high_performance")
    assert governors(cpufreq) == before
