"""EngineOptions: how an engine is to run a model. Plain data, because recipes and measurements keep it too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

from farthing.config import Section
from farthing.errors import ConfigError, nearest

Precision = Literal["float32", "bfloat16", "float16"]
"""Arithmetic of float operators."""


class EngineOptions(Section, frozen=True, kw_only=True):
    """How to run a model; every engine honours these or refuses them.

    Attributes:
        threads: threads one ``run`` may use, the caller's included.
        spin: let idle threads spin: lower latency when the machine is ours, harmful when it is shared.
        precision: arithmetic of float operators; ``float32`` is what the file says, the others trade digits for speed.
        providers: the engine's own names of devices or delegates, best first; empty means the CPU.
    """

    threads: int = 1
    spin: bool = False
    precision: Precision = "float32"
    providers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        threads: object = self.threads  # Python checks no types
        if not (isinstance(threads, int) and 1 <= threads <= 1024):
            raise ConfigError(f"threads must be from 1 to 1024, not {threads!r}")
        providers: object = self.providers
        if isinstance(providers, str):
            raise ConfigError(f"providers are a tuple of names, as in ({providers!r},)")
        if self.precision not in get_args(Precision):
            raise ConfigError(
                f"no precision is called {self.precision!r}; {nearest(self.precision, get_args(Precision))}"
            )

    def __str__(self) -> str:
        """As a table shows it: ``2 threads, spinning, CUDAExecutionProvider``."""
        words = [
            f"{self.threads} thread{'s' * (self.threads > 1)}",
            *["spinning"] * self.spin,
            *[self.precision] * (self.precision != "float32"),
            *self.providers,
        ]
        return ", ".join(words)


def make_options(
    threads: int = 1, spin: bool = False, providers: Sequence[str] = (), precision: str = "float32"
) -> EngineOptions:
    """EngineOptions from a caller's values, with a ConfigError for impossible ones."""
    return EngineOptions(
        threads=threads, spin=spin, precision=cast(Precision, precision), providers=tuple(providers)
    )
