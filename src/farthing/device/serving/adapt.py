"""Adaptive: the variant of a model that fits load, latency, temperature and battery, switched while it answers."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TypeVar
from weakref import WeakSet

from msgspec.structs import replace

from farthing.config import Section
from farthing.device.serving.service import GRACE, Answer, Clock, Request, Service, guarded
from farthing.device.serving.swap import Swapped
from farthing.device.watch.monitor import Monitor
from farthing.device.watch.probes import Reading
from farthing.errors import ConfigError, FarthingError

Opener = Callable[[], Service]
FutureT = TypeVar("FutureT", "Future[Answer]", "asyncio.Future[Answer]")
_WINDOW = 512  # answers that p99 is taken of
_LONGEST_PATIENCE = 16.0


class Signals(Section, frozen=True, kw_only=True):
    """What a choice is made by; None where it is unavailable, and then it decides nothing.

    Attributes:
        load: requests that were submitted and are not answered yet.
        p99_ms: of the latest answers; requests that failed or were taken back do not count.
        temperature_c: of the hottest sensor.
        battery_percent: charge left; None on mains.
        throttled: whether the processor is slowed down for heat or for want of power.
    """

    load: float | None = None
    p99_ms: float | None = None
    temperature_c: float | None = None
    battery_percent: float | None = None
    throttled: bool | None = None

    @classmethod
    def of(cls, reading: Reading) -> Signals:
        """What sensors say; the charge counts while the battery is discharging."""
        draining = reading.battery_status == "Discharging"
        return cls(
            temperature_c=reading.temperature_c,
            battery_percent=reading.battery_percent if draining else None,
            throttled=reading.throttled,
        )


class Band(Section, frozen=True, kw_only=True):
    """Two limits of a signal, apart from each other so that noise does not switch back and forth.

    Attributes:
        worse: beyond it a cheaper variant is taken.
        better: on this side of it a dearer one may be. Below ``worse`` where high is bad, above where low is.
    """

    worse: float
    better: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.worse) and math.isfinite(self.better)) or self.worse == self.better:
            raise ConfigError(
                f"a band needs two limits apart from each other, not {self.worse}, {self.better}"
            )

    def is_bad(self, value: float) -> bool:
        """Whether it lies beyond ``worse``."""
        return value > self.worse if self.worse > self.better else value < self.worse

    def is_good(self, value: float) -> bool:
        """Whether it lies on the good side of ``better``."""
        return value < self.better if self.worse > self.better else value > self.better


class AdaptRule(Section, frozen=True, kw_only=True):
    """When variants are switched.

    One signal that is bad takes the next cheaper variant; all of them good for ``calm_s`` the next dearer one. If that
    turns out to be too much at once, the next attempt waits twice as long, up to 16 times.

    Attributes:
        load, p99_ms, temperature_c, battery_percent: bands of the signals; None: the signal decides nothing.
        throttling: whether a throttled processor is a bad signal.
        dwell_s: seconds that a variant stays at least.
        calm_s: seconds that all signals must be good before a dearer variant.
    """

    load: Band | None = Band(worse=16, better=4)
    p99_ms: Band | None = None
    temperature_c: Band | None = Band(worse=80, better=70)
    battery_percent: Band | None = Band(worse=20, better=30)
    throttling: bool = True
    dwell_s: float = 10.0
    calm_s: float = 30.0

    def __post_init__(self) -> None:
        if not (0 <= self.dwell_s < math.inf and 0 <= self.calm_s < math.inf):
            raise ConfigError(f"dwell_s and calm_s are seconds from 0, not {self.dwell_s}, {self.calm_s}")


class Switch(Section, frozen=True, kw_only=True):
    """One switch: when (seconds of the service's clock), from which variant to which, and why."""

    time: float
    before: str
    after: str
    reason: str


class Chooser:
    """Which of several variants, dearest first, is to run: the rules alone, without threads or a clock.

    Attributes:
        index: of the variant that runs.
    """

    def __init__(self, count: int, rule: AdaptRule, now: float) -> None:
        self.index = 0
        self._last, self._rule = count - 1, rule
        self._since = now
        self._calm_since: float | None = None
        self._rose_at = -math.inf
        self._patience = 1.0

    def decide(self, now: float, signals: Signals) -> tuple[int, str]:
        """The variant that should run now, and why if it is another; `moved` says that it does."""
        bad, good = self._judged(signals)
        if not good:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        if now - self._since < self._rule.dwell_s:
            return self.index, ""
        if bad and self.index < self._last:
            return self.index + 1, bad
        calm = 0.0 if self._calm_since is None else now - self._calm_since
        if good and self.index and calm >= self._rule.calm_s * self._patience:
            return self.index - 1, f"all signals good for {calm:.0f} s"
        return self.index, ""

    def moved(self, now: float, index: int) -> None:
        """Another variant runs now, or was tried in vain: the next move waits for ``dwell_s`` again."""
        if index > self.index:
            hasty = now - self._rose_at < self._rule.dwell_s + self._rule.calm_s
            self._patience = min(self._patience * 2, _LONGEST_PATIENCE) if hasty else 1.0
        elif index < self.index:
            self._rose_at = now
        self.index, self._since, self._calm_since = index, now, None

    def _judged(self, signals: Signals) -> tuple[str, bool]:
        """The first bad signal in words, and whether all are good."""
        bad, good = "", True
        if signals.throttled is not None and self._rule.throttling:
            bad, good = "the processor is throttled" * signals.throttled, not signals.throttled
        for name in ("temperature_c", "battery_percent", "p99_ms", "load"):
            value: float | None = getattr(signals, name)
            band: Band | None = getattr(self._rule, name)
            if value is None or band is None:
                continue
            good = good and band.is_good(value)
            if not bad and band.is_bad(value):
                bad = f"{name} {value:.4g} is beyond {band.worse:g}"
        return bad, good


class Adaptive(Service):
    """Several variants of a model, of which one answers: the dearest one that its surroundings allow.

    Args:
        variants: name -> what opens it, dearest (most accurate) first. They take and give the same tensors.
        rule: when they are switched.
        read: gives temperature, battery and throttling; load and p99 are the service's own.
        clock: seconds.
        every: seconds between looks; 0: only `step` looks.
        listener: told of every switch, from the thread that looks; what it raises is logged.

    Attributes:
        switches: the latest of them.

    Raises:
        ConfigError: no variants.
    """

    def __init__(
        self,
        variants: Mapping[str, Opener],
        rule: AdaptRule | None = None,
        *,
        read: Callable[[], Signals] = Signals,
        clock: Clock = time.monotonic,
        every: float = 1.0,
        listener: Callable[[Switch], None] | None = None,
    ) -> None:
        if not variants:
            raise ConfigError("an adaptive service needs a variant at least")
        self._openers = list(variants.items())
        self._swapped = Swapped(self._openers[0][1]())
        self.name = self._swapped.name
        self.inputs, self.outputs = self._swapped.inputs, self._swapped.outputs
        self._read, self._clock, self._listener = read, clock, listener
        self._chooser = Chooser(len(self._openers), rule or AdaptRule(), clock())
        self.stateful = self._swapped.stateful
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # of those who look
        self._inside: WeakSet[Future[Answer] | asyncio.Future[Answer]] = (
            WeakSet()
        )  # a loop may end without an answer
        self._latest = self._window()
        self.switches: deque[Switch] = deque(maxlen=1024)
        self._over = threading.Event()
        self._watcher = threading.Thread(
            target=self._watch, args=(every,), name=f"watching {self.name}", daemon=True
        )
        if every:
            self._watcher.start()

    @property
    def variant(self) -> str:
        """The name of the variant that answers now."""
        return self._openers[self._chooser.index][0]

    @property
    def waiting(self) -> int:
        """See `Service.waiting`."""
        return self._swapped.waiting

    def submit(self, request: Request) -> Future[Answer]:
        """See `Service.submit`."""
        return self._counted(self._swapped.submit(request))

    def ask(self, request: Request) -> asyncio.Future[Answer]:
        """See `Service.ask`."""
        return self._counted(self._swapped.ask(request))

    def step(self) -> Switch | None:
        """Look at the signals, and switch if they say so. Opening a variant may take its time: nobody waits for it.

        A variant that cannot be opened, or takes other tensors, is reported as a switch that did not happen, and tried
        again after ``dwell_s``.
        """
        with self._turn:
            switch = self._looked()
        if switch is not None and self._listener is not None:
            guarded(self._listener, switch)
        return switch

    def _looked(self) -> Switch | None:
        now, chooser = self._clock(), self._chooser
        index, reason = chooser.decide(now, self._signals())
        if index == chooser.index or self._over.is_set():
            return None
        before, (after, opener) = self.variant, self._openers[index]
        why_not = self._replaced(opener)
        if why_not:
            reason = f"{reason}; but {after} could not be opened: {why_not}"
            after, index = before, chooser.index
        chooser.moved(now, index)
        self._latest = self._window()  # what the variant before took says nothing of this one
        switch = Switch(time=now, before=before, after=after, reason=reason)
        self.switches.append(switch)
        return switch

    def _replaced(self, opener: Opener) -> str:
        """Answer with another variant; why that cannot be, if it cannot."""
        try:
            self._swapped.swap(opener())
        except FarthingError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - what opens variants is not ours, and watching goes on
            return f"{type(error).__name__}: {error}"
        return ""

    def close(self, grace: float = GRACE) -> None:
        """See `Service.close`."""
        until = time.monotonic() + grace
        self._over.set()
        if self._watcher.ident is not None and self._watcher is not threading.current_thread():
            self._watcher.join(grace)
        self._swapped.close(max(0.0, until - time.monotonic()))

    def _watch(self, every: float) -> None:
        while not self._over.wait(every):
            guarded(self.step)

    def _signals(self) -> Signals:
        """What is read, with the service's own load and latency."""
        p99 = self._latest.last_requests().p99
        with self._lock:
            inside = len(self._inside)
        return replace(self._read(), load=inside, p99_ms=None if p99 is None else p99 * 1000)

    def _window(self) -> Monitor:
        """Counts the latest answers."""
        return Monitor(requests=_WINDOW, clock=self._clock)

    def _counted(self, future: FutureT) -> FutureT:
        began = self._clock()
        with self._lock:
            self._inside.add(future)
        future.add_done_callback(lambda future: self._left(future, began))
        return future

    def _left(self, future: FutureT, began: float) -> None:
        is_answer = not future.cancelled() and future.exception() is None
        with self._lock:
            self._inside.discard(future)
        if is_answer:
            self._latest.observe(self._clock() - began)
