"""Networks to serve, our server and others under the same load in turns, and the bare engine beside them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from farthing.config import Section
from farthing.forge.convert import convert
from farthing.forge.families import Architecture, Stage
from farthing.model import Model
from harness import rivals
from harness.rivals import RIVALS
from harness.traffic import Body, Load, Server

CNN_SHAPE = (3, 96, 96)
TINY = 64
CALLERS = 32
LOOPS = ((2, 1, 1), (2, 1, 4), (2, 1, 8), (2, 1, 16), (1, 2, 8))  # callers, threads in the engine, batch


class Setting(Section, frozen=True, kw_only=True):
    """How a run measures."""

    rivals: Path
    rounds: int = 5
    seconds: float = 3.0


def cnn() -> nn.Sequential:
    """A MobileNetV2-like network of double width for 96 pixels; some 4 ms an image on one core."""
    stages = [
        Stage(width=width, stride=stride, expansion=6) for width in (64, 96, 160, 256) for stride in (2, 1)
    ]
    stem = Stage(width=64, stride=2)
    made = Architecture(family="mobilenet", stem=stem, stages=tuple(stages), activation="relu6")
    return made.build(CNN_SHAPE, 100).eval()


def tiny() -> nn.Sequential:
    """64-256-256-10: some 7 microseconds."""
    return nn.Sequential(
        nn.Linear(TINY, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    ).eval()


class Nets:
    """The two networks, exported once."""

    def __init__(self, place: Path) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        examples = {"cnn": torch.rand(2, *CNN_SHAPE), "tiny": torch.rand(2, TINY)}
        made = {"cnn": cnn(), "tiny": tiny()}
        self.models: dict[str, Model] = {}
        for name, net in made.items():
            model = convert(net, example=examples[name], name="net").model
            self.models[name] = model.save(place / name)


def raw(model: Model, callers: int, threads: int, batch: int, seconds: float) -> dict[str, float]:
    """The bare engine in a process of its own: samples a second, ms of a call, microseconds of CPU for a sample."""
    script = Path(__file__).parent.parent / "rivals" / "raw.py"
    command = [sys.executable, str(script), str(model.file), *map(str, (callers, threads, batch, seconds))]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(told.stdout)
    return found


def ours(model: Model) -> tuple[Server, Body]:
    """Our server, and what is posted to it."""
    command = [sys.executable, "-m", "farthing", "serve", str(model.path), "--port", "{port}"]
    body = rivals.binary("/v2/models/net/infer", sample(model), model.manifest.inputs[0].name)
    return Server("farthing", command, "/v2/health/ready"), body


def sample(model: Model) -> np.ndarray[Any, Any]:
    """One sample of a model's first input, seeded."""
    spec = model.manifest.inputs[0]
    return np.random.default_rng(0).random(spec.sized(1), np.float32)


class Duel:
    """Servers under the same load, in turns."""

    def __init__(
        self, setting: Setting, model: Model, names: Sequence[str], stack: contextlib.ExitStack
    ) -> None:
        self.setting, self.model = setting, model
        self.missing: dict[str, str] = {}
        self.servers: dict[str, tuple[Server, Body]] = {}
        server, body = ours(model)
        self.servers["farthing"] = stack.enter_context(server), body
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in names:
            place = setting.rivals / name
            if not place.is_dir():
                self.missing[name] = f"not installed in {setting.rivals}: run with --install"
                continue
            rival = RIVALS[name]
            started = stack.enter_context(rival.start(place, model.file, scratch))
            self.servers[name] = started, rival.body(sample(model))
        for server, body in self.servers.values():
            server.load(body, CALLERS, 1.0)

    def fight(self, connections: int, loop: tuple[int, int, int] | None) -> dict[str, list[Load]]:
        """Rounds of load on each in turns, and of the bare engine under the name ``raw``."""
        found: dict[str, list[Load]] = {}
        for _ in range(self.setting.rounds):
            if loop is not None:
                told = raw(self.model, *loop, self.setting.seconds)
                one = Load(rate=told["rate"], p50=told["p50"], p99=0.0, cpu=told["cpu"], failed=0)
                found.setdefault("raw", []).append(one)
            for name, (server, body) in self.servers.items():
                found.setdefault(name, []).append(server.load(body, connections, self.setting.seconds))
        return found

    def best_loop(self) -> tuple[int, int, int]:
        """The loop of the bare engine that computes most samples a second here, by medians over three turns."""
        tried: dict[tuple[int, int, int], list[float]] = {loop: [] for loop in LOOPS}
        for loop in LOOPS * 3:
            tried[loop].append(raw(self.model, *loop, self.setting.seconds / 2)["rate"])
        return max(tried, key=lambda loop: float(np.median(tried[loop])))

    def memory(self) -> dict[str, float]:
        """MB of each, as it is now."""
        return {name: server.memory() for name, (server, _) in self.servers.items()}
