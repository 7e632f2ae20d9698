"""What becomes of services when their program ends, or forks."""

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


FORKING = """
import asyncio, os, signal, threading
import numpy as np
from farthing.device.serving.batch import Batched
from farthing.device.serving.cache import Cached
from farthing.device.serving.parts.processes import Processes
from farthing.device.serving.parts.shard import Sharded
from farthing.device.serving.queue import Realtime
from farthing.device.serving.service import Request
from farthing.device.serving.swap import Swapped
from farthing.engines.base import open_engine
from farthing.errors import ClosedError
from farthing.testing import fake_model

parts = [fake_model(4, 4, ends=("x", "a")), fake_model(4, 4, ends=("a", "y"))]
request = Request({"x": np.ones((1, 4), np.float32)})


def engine():
    return open_engine(fake_model())


async def asked(service):
    return await service.ask(request)


def child(service):
    signal.alarm(30)  # ends it if it hangs
    for ask in (lambda: service.submit(request).result(), lambda: asyncio.run(asked(service))):
        try:
            ask()
        except ClosedError as error:
            if f"opened in process {os.getppid()}" not in str(error) or "open it again" not in str(error):
                os._exit(3)
        else:
            os._exit(2)
    service.close()
    os._exit(0)


def busy():  # so that locks are held when it forks
    while not over.is_set():
        service.submit(request).result()


service, over, codes = SERVICE, threading.Event(), []
callers = [threading.Thread(target=busy) for _ in range(2)]
for caller in callers:
    caller.start()
for _ in range(20):
    if (pid := os.fork()) == 0:
        child(service)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
over.set()
for caller in callers:
    caller.join()
service.submit(request).result()
service.close()
print(set(codes))
"""


@pytest.mark.parametrize(
    "service",
    [
        "Batched(engine(), runners=1)",
        "Batched(engine(), runners=0)",
        "Realtime(engine())",
        "Cached(engine(), 'digest')",
        "Sharded([open_engine(part) for part in parts])",
        "Sharded([open_engine(part) for part in parts], pipeline=True)",
        "Processes(parts)",
        "Swapped(Batched(engine(), runners=1))",
    ],
)
def test_a_fork_is_refused_and_the_program_goes_on(service: str) -> None:
    command = [sys.executable, "-c", FORKING.replace("SERVICE", service)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.stdout.strip() == "{0}", ended.stderr
