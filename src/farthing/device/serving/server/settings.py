"""What a server and its models can be told: plain data, from a file, a command line or Triton's ``config.pbtxt``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from farthing.config import Section
from farthing.errors import ConfigError
from farthing.options import EngineOptions


def _from_zero(section: Section, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(section, name) < math.inf:
            raise ConfigError(f"{name} is from 0, not {getattr(section, name)}")


class QueuePolicy(Section, frozen=True, kw_only=True):
    """What becomes of requests that wait, by Triton's names.

    Attributes:
        timeout_action: late requests are refused; there is no other way here.
        default_timeout_microseconds: for requests that name no timeout; 0 sets none.
        allow_timeout_override: whether a request may name a shorter one.
        max_queue_size: requests a model may have under way before further ones are refused; 0 leaves it to the server.
    """

    timeout_action: Literal["REJECT"] = "REJECT"
    default_timeout_microseconds: int = 0
    allow_timeout_override: bool = True
    max_queue_size: int = 0

    def __post_init__(self) -> None:
        _from_zero(self, "default_timeout_microseconds", "max_queue_size")


class Batching(Section, frozen=True, kw_only=True):
    """How requests are put together, by Triton's names.

    Attributes:
        preferred_batch_size: sizes that go at once.
        max_queue_delay_microseconds: how long a request may wait for company; 0 is best on CPUs.
        preserve_ordering: answers of one caller keep their order here in any case.
        priority_levels: priorities from 1 (first) to this are told apart; 0 takes any number.
        default_priority_level: of requests that name none.
        default_queue_policy: timeouts and room.
    """

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 1
    default_queue_policy: QueuePolicy = QueuePolicy()

    def __post_init__(self) -> None:
        _from_zero(self, "max_queue_delay_microseconds", "priority_levels")
        if not 1 <= self.default_priority_level <= (self.priority_levels or self.default_priority_level):
            raise ConfigError(
                f"default_priority_level is from 1 to priority_levels={self.priority_levels}, "
                f"not {self.default_priority_level}"
            )

    def priority(self, asked: int) -> int:
        """The level of a request: one that is none of them stands for the default, as in Triton."""
        none = asked < 1 or (self.priority_levels and asked > self.priority_levels)
        return self.default_priority_level if none else asked

    def seconds(self, asked: float) -> float:
        """How long a request may take: as asked, if it may ask, and never longer than the default; inf for no limit."""
        policy = self.default_queue_policy
        limit = policy.default_timeout_microseconds / 1e6 or math.inf
        return min(asked, limit) if asked and policy.allow_timeout_override else limit


class Latest(Section, frozen=True, kw_only=True):
    """The highest versions."""

    num_versions: int = 1

    def __post_init__(self) -> None:
        if self.num_versions < 1:
            raise ConfigError(f"num_versions is from 1, not {self.num_versions}")


class All(Section, frozen=True, kw_only=True):
    """Every version."""


class Specific(Section, frozen=True, kw_only=True):
    """Versions by their numbers."""

    versions: tuple[int, ...]


class VersionPolicy(Section, frozen=True, kw_only=True):
    """Which of a model's versions are served; one of the three, ``latest`` by default."""

    latest: Latest | None = None
    all: All | None = None
    specific: Specific | None = None

    def __post_init__(self) -> None:
        if sum(choice is not None for choice in (self.latest, self.all, self.specific)) > 1:
            raise ConfigError("a version policy is one of latest, all and specific")

    def choose(self, there: list[int]) -> list[int]:
        """The versions to serve out of those there are, the default one last.

        Raises:
            ConfigError: one is asked for that there is not.
        """
        there = sorted(there)
        if self.specific is not None:
            missing = sorted(set(self.specific.versions) - set(there))
            if missing:
                raise ConfigError(f"version {missing[0]} is not there, only {there or 'none'}")
            return sorted(set(self.specific.versions))
        return there if self.all is not None else there[-(self.latest or Latest()).num_versions :]


class InstanceGroup(Section, frozen=True, kw_only=True):
    """How many runners a model has; ``KIND_CPU`` and ``KIND_AUTO`` are the same here."""

    count: int = 1
    kind: Literal["KIND_AUTO", "KIND_CPU"] = "KIND_AUTO"

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 1024:
            raise ConfigError(f"count is from 1 to 1024, not {self.count}")


class ModelSettings(Section, frozen=True, kw_only=True):
    """How a model is served.

    Attributes:
        max_batch_size: samples computed together, at most; 0 and 1 mean one by one.
        dynamic_batching: how requests are put together.
        version_policy: which versions are served.
        instance_group: runners, added up; empty measures how many are best.
        engine: its name; empty takes the first that runs the format.
        options: threads and the like.
        refuse_nan: refuse inputs that hold NaN or infinity.
    """

    max_batch_size: int = 8
    dynamic_batching: Batching = Batching()
    version_policy: VersionPolicy = VersionPolicy()
    instance_group: tuple[InstanceGroup, ...] = ()
    engine: str = ""
    options: EngineOptions = EngineOptions()
    refuse_nan: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_batch_size <= 4096:
            raise ConfigError(f"max_batch_size is from 0 to 4096, not {self.max_batch_size}")

    @property
    def runners(self) -> int | None:
        """How many; None to measure what is best."""
        return sum(group.count for group in self.instance_group) or None


class Entry(ModelSettings, frozen=True, kw_only=True):
    """A model, or a repository of them, in the settings file.

    Attributes:
        path: model directory, zip, output of a search, bundle, repository or store.
        name: what it is called; empty takes the manifest's name, or that of its directory in a repository.
    """

    path: Path
    name: str = ""


class Limits(Section, frozen=True, kw_only=True):
    """What one client, and all of them together, may take.

    Attributes:
        body_bytes: of one request.
        buffered_bytes: of all bodies under way; and of all answers that wait to be taken.
        header_bytes: of request line and headers.
        in_flight: requests under way; further ones get 429.
        connections: open at once; further ones get 503.
        header_seconds, body_seconds: in which a client must have sent them.
        answer_seconds: in which a client must have taken the next 256 KiB of an answer.
        idle_seconds: after which an unused connection is closed.
    """

    body_bytes: int = 32 << 20
    buffered_bytes: int = 256 << 20
    header_bytes: int = 16 << 10
    in_flight: int = 256
    connections: int = 512
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    answer_seconds: float = 60.0
    idle_seconds: float = 75.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is above 0, not {getattr(self, name)}")


class Tls(Section, frozen=True, kw_only=True):
    """Encryption.

    Attributes:
        certificate, key: PEM files.
        client_ca: PEM file; given, clients must show a certificate that it signed.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Settings(Section, frozen=True, kw_only=True):
    """How a server runs.

    Attributes:
        models: what it serves.
        host, port: where it listens; port 0 takes a free one.
        grpc_port: where it listens for gRPC, on the same host; None for nowhere.
        limits: what clients may take.
        tls: encryption; None for none.
        token_file: file with the bearer token that requests must carry; None asks for none.
        management: whether models can be loaded and unloaded by clients.
        management_token_file: file with the token for that, if it is another.
        poll_seconds: how often the disk is looked at for new versions; 0 for never (SIGHUP and ``load`` remain).
        notice_seconds: how long after SIGTERM it still takes requests, while it says that it is not ready.
        drain_seconds: how long requests under way may take after that.
        keep_going: serve what can be served when a model cannot.
        access_log: one JSON line for each request on standard error.
        triton_metrics: ``nv_inference_*`` beside our own names in ``/metrics``.
    """

    models: tuple[Entry, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    limits: Limits = Limits()
    tls: Tls | None = None
    token_file: Path | None = None
    management: bool = False
    management_token_file: Path | None = None
    poll_seconds: float = 0.0
    notice_seconds: float = 0.0
    drain_seconds: float = 30.0
    keep_going: bool = False
    access_log: bool = False
    triton_metrics: bool = False

    def __post_init__(self) -> None:
        _from_zero(self, "poll_seconds", "notice_seconds", "drain_seconds")
        for name, port in (("port", self.port), ("grpc_port", self.grpc_port)):
            if port is not None and not 0 <= port <= 65535:
                raise ConfigError(f"{name} is from 0 to 65535, not {port}")
        if self.management_token_file and not self.management:
            raise ConfigError("management_token_file is given, but management is off: set management: true")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in {"127.0.0.1", "::1", "localhost"}
