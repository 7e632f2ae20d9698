"""One server and its patience: requests with a time limit, retries out of a budget, and a breaker before them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import msgspec

from farthing.config import Section
from farthing.engines.remote.retrying import Breaker, BreakerRule, RetryBudget, RetryRule
from farthing.engines.remote.transport import Limits, Pool, Reply, late, printable
from farthing.errors import CircuitOpenError, ConfigError, RemoteError

AnswerT = TypeVar("AnswerT")
Clock = Callable[[], float]
_GIVEN_BACK = {429, 502, 503, 504}
_LONGEST_WAIT = 86_400.0


class RemoteStats(Section, frozen=True, kw_only=True):
    """What was asked of a server so far.

    Attributes:
        requests: how many were made, retries not counted.
        retries: how often one was sent again.
        failed: how many had no usable answer.
        refused: how many of those were not sent, because the breaker was open.
        breaker: ``closed``, ``open`` or ``half-open``.
    """

    requests: int = 0
    retries: int = 0
    failed: int = 0
    refused: int = 0
    breaker: str = "closed"


class Patience(Section, frozen=True, kw_only=True):
    """How long and how often a server is asked.

    Attributes:
        timeout_ms: for all of a request: connecting, pauses, retries, the last byte of the answer.
        connect_ms: of that, for a new connection.
        max_answer_mb: larger answers are refused.
        retry: how often a request may be asked again.
        breaker: when the server is left alone.
    """

    timeout_ms: float = 5000.0
    connect_ms: float = 1000.0
    max_answer_mb: float = 64.0
    retry: RetryRule = RetryRule()
    breaker: BreakerRule = BreakerRule()

    def __post_init__(self) -> None:
        for name in ("timeout_ms", "connect_ms"):
            if not 0 < getattr(self, name) <= 86_400_000:
                raise ConfigError(f"{name} is above 0 and at most a day, not {getattr(self, name):g}")
        if not 0 < self.max_answer_mb <= 4096:
            raise ConfigError(f"max_answer_mb is above 0 and at most 4096, not {self.max_answer_mb:g}")


class Client:
    """Asks one server, from any thread.

    Args:
        pool: its connections.
        patience: how long and how often.
        token: goes with every request as a bearer token; empty: none.
        clock: seconds that do not go back; the pool has the same.
        sleep: waits for so many seconds.
        luck: random numbers from 0 to 1.

    Raises:
        ConfigError: a token that no header can hold.
    """

    def __init__(
        self,
        pool: Pool,
        patience: Patience,
        token: str,
        clock: Clock,
        sleep: Callable[[float], None],
        luck: Callable[[], float],
    ) -> None:
        if not re.fullmatch(r"[\x21-\x7e]*", token):
            raise ConfigError("a token has letters, digits and signs, without spaces or line breaks")
        self._pool, self._patience = pool, patience
        self._authorization = {"Authorization": f"Bearer {token}"} if token else {}
        self._clock, self._sleep, self._luck = clock, sleep, luck
        self._lock = threading.Lock()
        self._budget = RetryBudget(patience.retry)
        self._breaker = Breaker(patience.breaker, str(pool.address))
        self._counts = {"requests": 0, "retries": 0, "failed": 0, "refused": 0}

    @property
    def server(self) -> str:
        """The server's URL."""
        return str(self._pool.address)

    def deadline(self) -> float:
        """The moment at which all that begins now is to be over."""
        return self._clock() + self._patience.timeout_ms / 1000

    def wait_for(self, lock: threading.Lock, deadline: float) -> None:
        """Acquire what another thread holds while it asks the server.

        Raises:
            RemoteError: it holds it until the deadline.
        """
        if not lock.acquire(timeout=max(0.0, deadline - self._clock())):
            raise late(self._pool.address)

    def ask(
        self,
        method: str,
        path: str,
        read: Callable[[Reply], AnswerT],
        deadline: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> AnswerT:
        """What ``read`` makes of the server's answer, which has a status from 200 to 299 and comes by a deadline.

        Raises:
            CircuitOpenError: the server failed so often that it is left alone.
            RemoteError: it cannot be reached, is late or refuses; or ``read`` raised it.
        """
        with self._lock:
            self._counts["requests"] += 1
            self._budget.request()
        attempt = 1
        last: RemoteError | None = None
        while True:
            try:
                return self._once(method, path, read, body, headers or {}, deadline)
            except RemoteError as error:
                pause = self._pause(error, attempt, deadline)
                if pause is None:
                    if last is not None and isinstance(error, CircuitOpenError):
                        raise last from None  # the breaker opened meanwhile; that is not what is wrong
                    raise
                last = error
            self._sleep(pause)
            attempt += 1

    def stats(self) -> RemoteStats:
        """What was asked so far."""
        with self._lock:
            return RemoteStats(**self._counts, breaker=self._breaker.state(self._clock()))

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _once(
        self,
        method: str,
        path: str,
        read: Callable[[Reply], AnswerT],
        body: bytes,
        headers: Mapping[str, str],
        deadline: float,
    ) -> AnswerT:
        admitted = self._admit()
        limits = Limits(deadline, self._patience.connect_ms / 1000, int(self._patience.max_answer_mb * 1e6))
        good: bool | None = None
        try:
            reply = self._pool.call(method, path, {**self._authorization, **headers}, body, limits)
            if not 200 <= reply.status < 300:
                good = reply.status < 500  # one that refuses us is alive
                raise _refusal(reply, self.server + path)
            answer = read(reply)
            good = True
        except RemoteError:
            good = bool(good)
            raise
        finally:
            with self._lock:
                self._breaker.record(admitted, good, self._clock())
        return answer

    def _admit(self) -> int:
        with self._lock:
            return self._breaker.admit(self._clock())

    def _pause(self, error: RemoteError, attempt: int, deadline: float) -> float | None:
        """Seconds to wait before the request is sent again; None if it is not."""
        stopped = isinstance(error, CircuitOpenError)
        again = error.again and not stopped
        with self._lock:
            self._counts["refused"] += stopped and attempt == 1
            pause = max(self._budget.pause(attempt, self._luck()), error.retry_after or 0.0)
            late = self._clock() + pause >= deadline
            if not again or late or attempt >= self._patience.retry.attempts or not self._budget.retry():
                self._counts["failed"] += 1
                return None
            self._counts["retries"] += 1
            return pause


def _refusal(reply: Reply, where: str) -> RemoteError:
    """The error of an answer without success."""
    status, said = reply.status, _said(reply.body)
    answered = f"{where} answered with HTTP {status}{said and f': {said}'}"
    if status in {401, 403}:
        return RemoteError(
            f"{answered}; give the token it wants (token=, or an entry for its host in ~/.netrc)"
        )
    if 300 <= status < 400:
        to = reply.headers.get("location", "")
        return RemoteError(
            f"{answered}; redirections are not followed: describe the server by its own URL {to[:200]!r}"
        )
    if status == 404:
        return RemoteError(f"{answered}; see which models and versions it serves")
    if status not in _GIVEN_BACK:
        return RemoteError(answered)
    after = _retry_after(reply.headers)
    return RemoteError(answered, again=status != 429 or after is not None, retry_after=after)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, which the header gives as such or as a moment by the server's clock; None where it makes no sense."""
    said = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", said):
        return min(float(said), _LONGEST_WAIT)
    try:
        wait = parsedate_to_datetime(said) - parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError):  # no dates; one with and one without a time zone
        return None
    return min(max(wait.total_seconds(), 0.0), _LONGEST_WAIT)


def _said(body: bytes) -> str:
    """What the server says is wrong, in words that may be printed."""
    try:
        error = msgspec.json.decode(body[:65536], type=dict[str, Any]).get("error")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        error = None
    text = error if isinstance(error, str) else body[:400].decode(errors="replace")
    return printable(text, 300)
