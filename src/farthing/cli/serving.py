"""``farthing serve``."""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farthing import config
from farthing.config import changed

if TYPE_CHECKING:
    from farthing.device.serving.server.settings import Entry, Settings

EPILOG = """\
PATH is a model directory, a zip of one, the output of a search, a store with a `current` link, or a repository:
a directory that holds models by name, each either as it is or in versions, as Triton has them
(NAME/1/, NAME/2/ ..., with an optional NAME/config.pbtxt).

  farthing serve best                                  one model, at http://127.0.0.1:8000
  farthing serve gate=best --max-batch 16              under a name of its own
  farthing serve models/ --manage --poll 5             a repository whose new versions are picked up
  farthing serve best --grpc-port 8001                 over gRPC as well
  farthing serve --config serve.yaml                   all of it in a file; options given here go before it

Ask it:
  curl localhost:8000/v2/models/gate
  curl -H 'Content-Type: application/json' localhost:8000/v2/models/gate/infer \\
       -d '{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}'
  curl localhost:8000/metrics

It speaks the Open Inference Protocol (v2), so `tritonclient` and its like are clients. A bearer token comes from a
file, or from the environment variables FARTHING_TOKEN and FARTHING_MANAGEMENT_TOKEN; never from the command line.
SIGTERM: no longer ready, requests under way are answered, exit code 0. SIGHUP: look for new versions.
"""


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing serve``."""
    parser.epilog = EPILOG
    parser.add_argument("paths", nargs="*", metavar="[NAME=]PATH", help="what to serve")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in YAML, TOML or JSON")
    parser.add_argument("--host", metavar="ADDRESS", help="where to listen (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="(default: 8000; 0 takes a free one)")
    parser.add_argument("--grpc-port", type=int, metavar="N", help="serve gRPC too, there (default: not)")
    models = parser.add_argument_group("models named here")
    models.add_argument("--engine", metavar="NAME", help="engine (default: the first that runs the format)")
    models.add_argument("--threads", type=int, metavar="N", help="threads one inference may use (default: 1)")
    models.add_argument("--runners", type=int, metavar="N", help="inferences at once (default: measured)")
    models.add_argument("--max-batch", type=int, metavar="N", help="samples computed together (default: 8)")
    models.add_argument(
        "--delay-ms", type=float, metavar="MS", help="how long requests wait for company (default: 0)"
    )
    models.add_argument("--refuse-nan", action="store_true", help="refuse inputs with NaN or infinity")
    changes = parser.add_argument_group("new versions")
    changes.add_argument(
        "--manage", action="store_true", default=None, help="clients may load and unload models"
    )
    changes.add_argument("--poll", type=float, metavar="S", help="look at the disk every S seconds")
    changes.add_argument(
        "--keep-going", action="store_true", default=None, help="start even if a model cannot be served"
    )
    guard = parser.add_argument_group("who may connect")
    guard.add_argument("--token-file", type=Path, metavar="FILE", help="bearer token that clients must send")
    guard.add_argument(
        "--management-token-file", type=Path, metavar="FILE", help="another token, for loading and unloading"
    )
    guard.add_argument("--certificate", type=Path, metavar="PEM", help="serve over TLS")
    guard.add_argument("--key", type=Path, metavar="PEM", help="the certificate's private key")
    guard.add_argument("--client-ca", type=Path, metavar="PEM", help="clients must show a certificate of it")
    seen = parser.add_argument_group("what it tells")
    seen.add_argument(
        "--access-log",
        action="store_true",
        default=None,
        help="a JSON line for each request, on standard error",
    )
    seen.add_argument(
        "--triton-metrics", action="store_true", default=None, help="nv_inference_* names in /metrics too"
    )
    seen.add_argument("--show-config", action="store_true", help="print the settings, defaults too, and stop")


def serve(parsed: argparse.Namespace) -> int:
    """Run ``farthing serve``."""
    settings = _settings(parsed)
    if parsed.show_config:
        print(config.to_yaml(settings), end="")
        return 0
    from farthing.device.serving.server.lifecycle import Server

    server = Server(
        settings,
        _token(settings.token_file, "FARTHING_TOKEN"),
        _token(settings.management_token_file, "FARTHING_MANAGEMENT_TOKEN"),
        told=_tell,
        log=_log if settings.access_log else None,
        manager=_manager(),
    )
    gc.set_threshold(
        20_000, 20, 20
    )  # requests leave no cycles; looking for them took 5 of 65 microseconds of each
    server.run()
    return 0


def _settings(parsed: argparse.Namespace) -> Settings:
    """The file's settings, under those of the command line."""
    from farthing.device.serving.server.settings import Settings

    settings = config.read(parsed.config, Settings, os.environ) if parsed.config else Settings()
    given: dict[str, Any] = {
        "host": parsed.host,
        "port": parsed.port,
        "grpc_port": parsed.grpc_port,
        "management": parsed.manage,
        "poll_seconds": parsed.poll,
        "keep_going": parsed.keep_going,
        "token_file": parsed.token_file,
        "management_token_file": parsed.management_token_file,
        "access_log": parsed.access_log,
        "triton_metrics": parsed.triton_metrics,
        "tls": _tls(parsed),
        "models": (*settings.models, *(_entry(path, parsed) for path in parsed.paths)),
    }
    return changed(settings, **{name: value for name, value in given.items() if value is not None})


def _tls(parsed: argparse.Namespace) -> object:
    from farthing.device.serving.server.settings import Tls
    from farthing.errors import ConfigError

    if not (parsed.certificate or parsed.key or parsed.client_ca):
        return None
    if not (parsed.certificate and parsed.key):
        raise ConfigError("TLS needs both --certificate and --key")
    return Tls(certificate=parsed.certificate, key=parsed.key, client_ca=parsed.client_ca)


def _entry(text: str, parsed: argparse.Namespace) -> Entry:
    """A model named on the command line."""
    from farthing.device.serving.server.settings import Batching, Entry, InstanceGroup
    from farthing.errors import ConfigError
    from farthing.options import make_options

    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        name, path = "", text
    entry = Entry(path=Path(path), name=name, engine=parsed.engine or "", refuse_nan=parsed.refuse_nan)
    if parsed.threads is not None:
        entry = changed(entry, options=make_options(parsed.threads))
    if parsed.runners is not None:
        entry = changed(entry, instance_group=(InstanceGroup(count=parsed.runners),))
    if parsed.max_batch is not None:
        entry = changed(entry, max_batch_size=parsed.max_batch)
    if parsed.delay_ms is not None:
        if not math.isfinite(parsed.delay_ms):
            raise ConfigError(f"--delay-ms is a number of milliseconds, not {parsed.delay_ms}")
        delay = int(parsed.delay_ms * 1000)
        entry = changed(entry, dynamic_batching=Batching(max_queue_delay_microseconds=delay))
    return entry


def _token(path: Path | None, variable: str) -> str:
    from farthing.device.serving.server.access import checked_token, read_token

    if path is not None:
        return read_token(path)
    found = os.environ.get(variable, "")
    return checked_token(found, variable) if found else ""


def _manager() -> Any:
    from farthing.device.serving.server.notify import Manager

    known = os.environ.get
    address, usec, pid = known("NOTIFY_SOCKET", ""), known("WATCHDOG_USEC", ""), known("WATCHDOG_PID", "")
    return Manager.of(address, usec, pid, os.getpid())


def _tell(word: str, text: str) -> None:
    _say(f"farthing: {word}: {text}")


def _log(line: dict[str, Any]) -> None:
    import msgspec

    _say(msgspec.json.encode(line).decode())


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more: no reason to answer nobody, or not to stop
        print(line, file=sys.stderr, flush=True)
