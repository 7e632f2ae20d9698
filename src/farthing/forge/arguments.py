"""What a search is given, before it begins: what cannot be meant is refused."""

from __future__ import annotations

from pathlib import Path

from farthing.errors import ConfigError, TargetError
from farthing.options import make_options
from farthing.target import Budget, Target


def check(target: object, budget: object, out: object, engines: object, threads: object) -> None:
    """Refuse arguments of types that mean nothing.

    Raises:
        ConfigError: a budget, directory, engines or thread counts that are none.
        TargetError: neither a target nor a name.
    """
    if not isinstance(target, Target | str):
        raise TargetError(f"a target is a farthing.Target or a name, not {target!r}")
    if not isinstance(budget, Budget | str):
        raise ConfigError(
            f"a budget is a farthing.Budget or text as in 'accuracy_drop<=0.01', not {budget!r}"
        )
    if not isinstance(out, Path | str) or not str(out):
        raise ConfigError(f"`out` is the path of a directory, not {out!r}")
    if not isinstance(engines, list | tuple) or not all(isinstance(name, str) for name in engines):
        raise ConfigError(f"`engines` is a list of names, as in ['onnxruntime'], not {engines!r}")
    if not isinstance(threads, list | tuple | range | set):
        raise ConfigError(f"`threads` is a list of counts, as in [1, 2], not {threads!r}")
    for count in threads:
        make_options(count)
