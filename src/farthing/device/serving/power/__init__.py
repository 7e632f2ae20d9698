"""Powered: a model under power modes, which set its variant, its threads, its pauses and the machine's clocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Literal

from farthing.config import Section
from farthing.device.serving.batch import Batched, BatchRule
from farthing.device.serving.power.governor import Governor
from farthing.device.serving.service import GRACE, Answer, Request, Service
from farthing.device.serving.swap import Swapped
from farthing.engines.base import open_engine
from farthing.errors import ConfigError, FarthingError, TargetError, nearest
from farthing.model import Model
from farthing.target import Target

PowerMode = Literal["high_performance", "balanced", "power_saver"]


class PowerPlan(Section, frozen=True, kw_only=True):
    """What a power mode means.

    Attributes:
        variants: names of model variants, best first; of those that are there the first one is taken.
        cores: share of the processors that compute.
        duty: share of the time in which they may: after each batch a runner rests accordingly.
        governors: CPU governors, best first; empty leaves them alone.
        frequency: share of the highest frequency that is allowed; 1 lifts a limit.
        nvpmodel: number of a Jetson's power mode; None leaves it alone. Numbers differ from board to board.
    """

    variants: tuple[str, ...]
    cores: float = 1.0
    duty: float = 1.0
    governors: tuple[str, ...] = ()
    frequency: float | None = None
    nvpmodel: int | None = None

    def __post_init__(self) -> None:
        for name, share in (("cores", self.cores), ("duty", self.duty), ("frequency", self.frequency)):
            if share is not None and not 0 < share <= 1:
                raise ConfigError(f"{name} is a share above 0 and at most 1, not {share}")


PLANS: Mapping[PowerMode, PowerPlan] = {
    "high_performance": PowerPlan(
        variants=("float32", "float16", "int8"), governors=("performance",), frequency=1.0
    ),
    "balanced": PowerPlan(
        variants=("float16", "int8", "float32"), governors=("schedutil", "ondemand"), frequency=1.0
    ),
    "power_saver": PowerPlan(
        variants=("int8", "float16", "float32"),
        cores=0.5,
        duty=0.5,
        governors=("powersave", "conservative"),
        frequency=0.6,
    ),
}


class Powered(Service):
    """A model under power modes: its variants, of which the mode's plan takes one, and the machine's own settings.

    Switching a mode opens the variant of the new one, answers with it, and closes the old one when it has answered: no
    request is lost. Machine settings that are not permitted here are left as they are, and said in `refused`.

    Args:
        variants: name -> model, such as ``float32``, ``float16``, ``int8``; they take and give the same tensors.
        mode: the first one.
        plans: what the modes mean.
        engine: name of the engine; empty takes the first that runs a variant's format.
        rule: how batches are formed.
        governor: sets the machine; None leaves it alone.
        strict: raise where the machine does not let itself be set, rather than note it.

    Attributes:
        mode: the one that is set.
        variant: the name of the variant that answers.
        refused: what this machine did not let itself be set to, in words.

    Raises:
        ConfigError: no variants, or no such mode.
        TargetError: ``strict``, and a setting is not permitted.
    """

    def __init__(
        self,
        variants: Mapping[str, Model],
        mode: PowerMode = "balanced",
        *,
        plans: Mapping[PowerMode, PowerPlan] = PLANS,
        engine: str = "",
        rule: BatchRule | None = None,
        governor: Governor | None = None,
        strict: bool = False,
    ) -> None:
        if not variants:
            raise ConfigError("power modes choose between variants of a model: give one at least")
        self._variants, self._plans, self._engine, self._rule = dict(variants), plans, engine, rule
        self._governor, self._strict = governor, strict
        self._turn = threading.Lock()
        self.refused: tuple[str, ...] = ()
        plan = self._plan(mode)
        self.mode, self.variant = mode, self._chosen(plan)
        self._swapped = Swapped(self._open(plan))
        self.name, self.inputs, self.outputs = self._swapped.name, self._swapped.inputs, self._swapped.outputs
        try:
            self._set(plan)
        except FarthingError:
            self.close()
            raise

    def switch(self, mode: PowerMode) -> None:
        """Set another mode.

        Raises:
            ConfigError: no such mode.
            FarthingError: its variant does not open, or takes other tensors; the mode stays as it was then.
            ClosedError: the service is closed.
            TargetError: ``strict``, and a setting is not permitted; the variant has been switched then.
        """
        plan = self._plan(mode)
        with self._turn:
            self._swapped.swap(self._open(plan))
            self.mode, self.variant = mode, self._chosen(plan)
            self._set(plan)

    @property
    def waiting(self) -> int:
        """See `Service.waiting`."""
        return self._swapped.waiting

    def submit(self, request: Request) -> Future[Answer]:
        """See `Service.submit`."""
        return self._swapped.submit(request)

    def ask(self, request: Request) -> asyncio.Future[Answer]:
        """See `Service.ask`."""
        return self._swapped.ask(request)

    def close(self, grace: float = GRACE) -> None:
        """See `Service.close`; the machine's settings are put back.

        Raises:
            TargetError: one of them could not be put back.
        """
        with self._turn:  # a mode that is being set is put back too
            try:
                self._swapped.close(grace)
            finally:
                if self._governor is not None:
                    self._governor.close()

    def _plan(self, mode: PowerMode) -> PowerPlan:
        if mode not in self._plans:
            raise ConfigError(f"no power mode is called {mode!r}; {nearest(mode, self._plans)}")
        return self._plans[mode]

    def _chosen(self, plan: PowerPlan) -> str:
        return next((name for name in plan.variants if name in self._variants), next(iter(self._variants)))

    def _open(self, plan: PowerPlan) -> Service:
        name = self._chosen(plan)
        model = self._variants[name]
        cores = max(1, round((Target.detect().cores or 1) * plan.cores))
        engine = open_engine(model, self._engine)
        shared = engine.concurrency == "threads"
        return Batched(
            engine,
            self._rule,
            runners=cores if shared else 1,
            duty=plan.duty,
            name=f"{model.manifest.name} {name}",
        )

    def _set(self, plan: PowerPlan) -> None:
        """Set the machine as far as it lets itself be set."""
        governor = self._governor
        if governor is None:
            return
        settings: list[Callable[[], object]] = []
        if plan.nvpmodel is not None:
            settings.append(partial(governor.set_nvpmodel, plan.nvpmodel))
        if plan.governors:
            settings.append(partial(governor.set_governor, plan.governors))
        if plan.frequency is not None:
            settings.append(partial(governor.cap, plan.frequency))
        refused = []
        for setting in settings:
            try:
                setting()
            except TargetError as error:
                refused.append(str(error))
        self.refused = tuple(dict.fromkeys(refused))
        if self._strict and refused:
            raise TargetError("; ".join(self.refused))
