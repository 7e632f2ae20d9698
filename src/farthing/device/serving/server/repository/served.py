"""One version of a model in service: its service, who uses it, and what it has done."""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

import msgspec

from farthing.device.serving.server.settings import ModelSettings
from farthing.device.serving.service import Ran, Service
from farthing.device.watch.monitor import Monitor


class _Duration(msgspec.Struct):
    """How often, and how long altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns


class _Sizes(msgspec.Struct):
    batch_size: int
    compute_input: _Duration
    compute_infer: _Duration
    compute_output: _Duration


class Tally:
    """Counts and durations of one served version.

    Attributes:
        monitor: of its requests and batches.
        executions: of the model, those that failed too.
        decode, encode: the time taken to read and to write tensors.
    """

    def __init__(self) -> None:
        self.monitor = Monitor()
        self.executions = 0
        self.decode, self.encode = _Duration(), _Duration()
        self._failed_ns = self._last_ms = 0
        self._sizes: dict[int, _Duration] = {}
        self._lock = threading.Lock()

    def ran(self, batch: Ran) -> None:
        """Note a batch; from any thread."""
        self.monitor.executed(batch.samples, batch.compute, batch.waited)
        with self._lock:
            self.executions += 1
            self._sizes.setdefault(batch.samples, _Duration()).add(int(batch.compute * 1e9))

    def answered(self, ns: int) -> None:
        """Note a request that got its answer."""
        self.monitor.observe(ns / 1e9)
        self._last_ms = int(time.time() * 1000)

    def failed(self, why: str, ns: int) -> None:
        """Note a request that did not; ``why`` is a word of `farthing.device.watch.monitor.reason`."""
        self.monitor.fail(why)
        self._failed_ns += ns

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        """The entry of ``model_stats`` in Triton's statistics extension.

        The time of a batch counts once for each request in it, as there.
        """
        seen, none = self.monitor.performance(), _Duration()
        requests, queued = seen.requests, seen.queued
        with self._lock:
            sizes = [_Sizes(size, none, one, none) for size, one in sorted(self._sizes.items())]
        return {
            "name": name,
            "version": version,
            "last_inference": self._last_ms,
            "inference_count": int(seen.batches.total),
            "execution_count": seen.batches.count,
            "inference_stats": {
                "success": _Duration(requests.count, int(requests.durations.total * 1e9)),
                "fail": _Duration(requests.failed, self._failed_ns),
                "queue": _Duration(queued.count, int(queued.total * 1e9)),
                "compute_input": self.decode,
                "compute_infer": _Duration(queued.count, int(seen.occupied * 1e9)),
                "compute_output": self.encode,
                "cache_hit": none,
                "cache_miss": none,
            },
            "batch_stats": sizes,
            "memory_usage": [],
            "response_stats": {},
        }


class Facts(NamedTuple):
    """What is known of a version besides its tensors.

    Attributes:
        platform: engine and format, as in ``onnxruntime_onnx``.
        digest: of the model.
        ignored: fields of its ``config.pbtxt`` that make no difference.
    """

    platform: str
    digest: str
    ignored: tuple[str, ...] = ()


class Served:
    """A version that answers. Its counts are changed by the event loop's thread alone.

    Attributes:
        name, version: as clients name it.
        service: what answers.
        settings: how it is served.
        facts: what else there is to say.
        tally: what it has done.
        users: requests that are at it.
        retired: whether another took its place: it is closed when nobody uses it.
    """

    def __init__(
        self, name: str, version: str, service: Service, settings: ModelSettings, facts: Facts, tally: Tally
    ) -> None:
        self.name, self.version = name, version
        self.service, self.settings, self.facts, self.tally = service, settings, facts, tally
        self.inputs, self.outputs = service.inputs, service.outputs
        self.users = 0
        self.retired = False
        policy = settings.dynamic_batching.default_queue_policy
        self.room = policy.max_queue_size
        self.limited = bool(policy.default_timeout_microseconds)

    @property
    def waiting(self) -> int:
        """Requests in line, or the samples they hold."""
        return self.service.waiting
