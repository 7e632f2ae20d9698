from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, time
import numpy as np
from farthing.device.serving.batch import Batched
from farthing.device.serving.queue import QueueRule, Realtime
from farthing.device.serving.service import Request
from farthing.engines.fake import FakeEngine
from farthing.options import EngineOptions
from farthing.testing import fake_model

class Slow(FakeEngine):
    def run(self, feeds):
        time.sleep(0.05)
        return super().run(feeds)

engine = Slow(fake_model(), EngineOptions())
service = SERVICE
for _ in range(10):
    future = service.submit(Request({"x": np.ones((1, 4), np.float32)}))
    future.add_done_callback(lambda future: print(future.result().source))
if os.fork() == 0:
    sys.exit()  # what is called at its end is called here as well, and there are no runners
os.wait()
"""


@pytest.mark.parametrize(
    "service", ["Batched(engine, runners=1)", "Realtime(engine, QueueRule(policy='reject', timeout_ms=None))"]
)
def test_a_program_that_ends_without_closing_answers_first(service: str) -> None:
    """And ends well: a thread that is inside a runtime when the interpreter ends would abort the process."""
    command = [sys.executable, "-c", PROGRAM.replace("SERVICE", service)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.split() == ["fake"] * 10
