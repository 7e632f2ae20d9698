"""When to ask a server again and when to leave it alone. Pure: no clock, no socket, no thread; callers take turns.

Retries help against a hiccup and hurt a server that is down, so they have a budget: a share of the requests, as in
Finagle's ``RetryBudget`` and gRPC's retry throttling. A breaker stops asking after several failures in a row, and tries
again with a single request (Nygard, *Release It!*, 2007).
"""

from __future__ import annotations

from farthing.config import Section
from farthing.errors import CircuitOpenError, ConfigError

_ROUNDING = 1e-9  # ten times 0.1 is a little less than 1


class RetryRule(Section, frozen=True, kw_only=True):
    """How often a request may be asked again. Only such are that the server did not take, or gave back.

    Attributes:
        attempts: times a request is sent at most, the first included; 1 never asks again.
        share: retries for each request, in the long run: 0.1 is one for ten.
        burst: retries that may come on top of that, at the start or after quiet times.
        pause_ms: before the first retry; each further pause is twice as long, and all are cut by up to a half, at
            random, so that many devices do not come back at once.
    """

    attempts: int = 3
    share: float = 0.1
    burst: int = 10
    pause_ms: float = 50.0

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 100:
            raise ConfigError(f"attempts are from 1 to 100, not {self.attempts}")
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share is from 0 to 1 retry for each request, not {self.share:g}")
        if not 0 <= self.burst <= 1000:
            raise ConfigError(f"burst is from 0 to 1000 retries, not {self.burst}")
        if not 0 <= self.pause_ms <= 60_000:
            raise ConfigError(f"pause_ms is from 0 to 60000, not {self.pause_ms:g}")


class BreakerRule(Section, frozen=True, kw_only=True):
    """When a server is left alone.

    Attributes:
        failures: so many in a row open the breaker; 0: it never opens.
        open_ms: so long it stays open; then one request tries whether the server is back.
    """

    failures: int = 5
    open_ms: float = 10_000.0

    def __post_init__(self) -> None:
        if not 0 <= self.failures <= 1_000_000:
            raise ConfigError(f"failures are from 0 to 1000000, not {self.failures}")
        if not 0 < self.open_ms <= 86_400_000:
            raise ConfigError(f"open_ms is above 0 and at most a day, not {self.open_ms:g}")


class RetryBudget:
    """A token bucket: requests put a share of a token in, a retry takes one out."""

    def __init__(self, rule: RetryRule) -> None:
        self._rule = rule
        self._tokens = float(rule.burst)

    def request(self) -> None:
        """A request is made."""
        self._tokens = min(float(max(self._rule.burst, 1)), self._tokens + self._rule.share)

    def retry(self) -> bool:
        """Take a retry out; False if there is none."""
        if self._tokens < 1 - _ROUNDING:
            return False
        self._tokens -= 1
        return True

    def pause(self, attempt: int, luck: float) -> float:
        """Seconds before the attempt after number ``attempt`` (from 1); ``luck`` is a random number from 0 to 1."""
        return self._rule.pause_ms / 1000 * 2.0 ** (attempt - 1) * (1 - luck / 2)


class Breaker:
    """Closed: requests pass. Open: they are refused. After a while one passes as a probe, and decides.

    Times are seconds by one clock that does not go back.
    """

    def __init__(self, rule: BreakerRule, who: str) -> None:
        self._rule, self._who = rule, who
        self._failures = 0
        self._opened = 0  # how often; outcomes of requests from before the last time say nothing any more
        self._until: float | None = None

    def state(self, now: float) -> str:
        """``closed``, ``open``, or ``half-open`` when the next request will be the probe."""
        if self._until is None:
            return "closed"
        return "open" if now < self._until else "half-open"

    def admit(self, now: float) -> int:
        """Let a request pass: a number to give to `record` with its outcome.

        A probe that is never heard of again holds the others up for ``open_ms``, no longer.

        Raises:
            CircuitOpenError: the breaker is open.
        """
        if self._until is not None:
            if now < self._until:
                raise self._refusal(now)
            self._until = now + self._rule.open_ms / 1000
        return self._opened

    def record(self, admitted: int, good: bool | None, now: float) -> None:
        """What became of a request: good, bad, or None if nothing was learnt (it was interrupted)."""
        if admitted != self._opened:
            return
        if good is None:
            self._until = None if self._until is None else now  # the next one is the probe
        elif good:
            self._failures, self._until = 0, None
        elif self._until is not None:
            self._until = now + self._rule.open_ms / 1000
        else:
            self._failures += 1
            if 0 < self._rule.failures <= self._failures:
                self._opened += 1
                self._until = now + self._rule.open_ms / 1000

    def _refusal(self, now: float) -> CircuitOpenError:
        until = now if self._until is None else self._until
        return CircuitOpenError(
            f"{self._who} is not asked for another {until - now:.3g} s: {self._failures} requests in a row failed. "
            "See what it says, or use another model meanwhile",
            until,
            until - now,
        )
