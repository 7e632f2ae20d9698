"""Parts in processes: the same answers, and what is left when processes or their parent die."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farthing.bundle import Bundle
from farthing.device.serving.parts.processes import Processes, open_processes
from farthing.device.serving.parts.shard import Sharded
from farthing.device.serving.parts.slots import Layout, Slot, memory
from farthing.device.serving.parts.worker import compute
from farthing.device.serving.service import Answer, Request
from farthing.engines.base import open_engine
from farthing.engines.fake import FakeEngine
from farthing.errors import (
    ClosedError,
    ConfigError,
    DeadlineError,
    EngineError,
    FeedError,
    ModelError,
    OverloadError,
    UnsupportedError,
)
from farthing.model import Model, TensorSpec
from farthing.options import EngineOptions
from farthing.testing import FakeClock, fake_model

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="sockets and memory are handed to processes as files"
)


def link(takes: str, makes: str, seed: int = 0, decay: float | None = None) -> Model:
    return fake_model(4, 4, decay, seed, ends=(takes, makes))


def two(**settings: Any) -> Processes:
    return Processes([link("x", "a", 1), link("a", "y", 2)], **settings)


def expected(x: dict[str, Any]) -> Any:
    with Sharded([open_engine(link("x", "a", 1)), open_engine(link("a", "y", 2))]) as service:
        return service.answer(x).outputs["y"]


@pytest.fixture
def pipeline() -> Iterator[Processes]:
    with two(depth=3, waiting=4) as service:
        yield service


def eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + 60
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)
    return holds()


def gone(pid: int) -> bool:
    """Whether a process is no more, or only waits to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_parts_in_processes_answer_as_parts_in_one(chain: Bundle, x: dict[str, Any]) -> None:
    from farthing.device.serving.parts.shard import open_sharded

    with open_processes(chain.path) as service, open_sharded(chain) as plain:
        for batch in (5, 1, 300, 0):
            feeds = {"x": np.resize(x["x"], (batch, 4))}
            answer, reference = service.answer(feeds), plain.answer(feeds)
            assert list(answer.outputs) == ["y", "a"]
            for name, value in reference.outputs.items():
                np.testing.assert_array_equal(answer.outputs[name], value, strict=True)
            assert answer.source == "chain"
        assert len(set(service.processes) | {os.getpid()}) == 4


def test_many_callers_get_their_own_answers_in_order() -> None:
    feeds = [{"x": np.full((1 + i % 7, 4), i, np.float32)} for i in range(80)]
    with two(waiting=100) as service:
        futures: list[Future[Answer]] = [Future()] * len(feeds)
        done: list[int] = []

        def ask(start: int) -> None:
            for i in range(start, len(feeds), 4):
                futures[i] = service.submit(Request(feeds[i]))
                futures[i].add_done_callback(lambda _, i=i: done.append(i))

        threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for future, fed in zip(futures, feeds, strict=True):
            np.testing.assert_array_equal(future.result(60).outputs["y"], expected(fed))
        for start in range(4):
            own = [i for i in done if i % 4 == start]
            assert own == sorted(own), "each caller in its order"
        stats = service.stats()
        assert (stats.requests, stats.answered, stats.failed, stats.restarts) == (80, 80, {}, (0, 0))


def test_an_answer_stays_when_its_slot_is_used_again(x: dict[str, Any]) -> None:
    with two(depth=1) as service:
        first = service.answer(x).outputs["y"]
        before = first.copy()
        service.answer({"x": x["x"] * 100})
        np.testing.assert_array_equal(first, before)


def test_a_process_that_is_killed_fails_its_own_request_alone(pipeline: Processes, x: dict[str, Any]) -> None:
    old = pipeline.processes
    os.kill(old[1], signal.SIGSTOP)  # so that it surely holds what it is killed with
    futures = [pipeline.submit(Request(x)) for _ in range(3)]
    assert eventually(lambda: pipeline.stats().running == 3)
    time.sleep(0.1)
    os.kill(old[1], signal.SIGKILL)
    outcomes = [future.exception(60) for future in futures]
    assert isinstance(outcomes[0], EngineError)
    assert f"part 2 of fake + fake (process {old[1]}) ended with signal 9" in str(outcomes[0])
    assert outcomes[1:] == [None, None], "what stood before it was computed by its successor"
    np.testing.assert_array_equal(pipeline.answer(x).outputs["y"], expected(x))
    assert pipeline.processes[0] == old[0]
    assert pipeline.processes[1] != old[1]
    assert pipeline.stats().restarts == (0, 1)


def test_a_process_that_hangs_is_killed(x: dict[str, Any]) -> None:
    with two(patience=2.0) as service:
        os.kill(service.processes[0], signal.SIGSTOP)
        error = service.submit(Request(x)).exception(60)
        assert isinstance(error, EngineError)
        assert "hung and was killed while it computed this request" in str(error)
        assert service.answer(x).outputs["y"].shape == (5, 4)


def test_a_part_that_dies_too_often_breaks_the_service_for_all(x: dict[str, Any]) -> None:
    with two(restarts=1) as service:
        os.kill(service.processes[0], signal.SIGKILL)
        assert eventually(lambda: service.stats().restarts == (1, 0))
        service.answer(x)
        os.kill(service.processes[1], signal.SIGSTOP)
        futures = [service.submit(Request(x)) for _ in range(10)]
        os.kill(service.processes[0], signal.SIGKILL)
        errors = [future.exception(60) for future in futures]
        assert all(isinstance(error, EngineError) for error in errors)
        assert isinstance(service.submit(Request(x)).exception(60), EngineError)
        assert "too often: look for the reason" in str(service.submit(Request(x)).exception(60))


def test_what_goes_wrong_is_in_the_future(x: dict[str, Any]) -> None:
    clock = FakeClock(10.0)
    with two(depth=1, waiting=2, clock=clock) as service:
        assert isinstance(service.submit(Request({})).exception(60), FeedError)
        assert isinstance(service.submit(Request({"x": x["x"][:, :2]})).exception(60), FeedError)
        os.kill(service.processes[0], signal.SIGSTOP)
        first = service.submit(Request(x))
        late, back = service.submit(Request(x, deadline=11.0, id="late")), service.submit(Request(x))
        assert isinstance(service.submit(Request(x)).exception(60), OverloadError)
        assert back.cancel()
        clock.advance(2.0)
        os.kill(service.processes[0], signal.SIGCONT)
        assert first.result(60).source == "fake + fake"
        assert isinstance(late.exception(60), DeadlineError)
        assert eventually(lambda: service.stats().running == 0)
        failed = {"FeedError": 2, "OverloadError": 1, "DeadlineError": 1, "cancelled": 1}
        assert service.stats().failed == failed
        assert not wait([back], 0).not_done, "nobody waits for it for ever"
        service.answer(x)


def test_a_part_that_fails_says_so_as_it_would_here(x: dict[str, Any]) -> None:
    fixed = TensorSpec(name="a", dtype="float32", shape=(2, 4), batch_axis=0)
    with Processes([link("x", "a"), fake_model(4, 4, ends=("a", "y"), inputs=(fixed,))]) as service:
        error = service.submit(Request(x)).exception(60)
        assert isinstance(error, FeedError)
        assert "input 'a' is float32 [5, 4]" in str(error)
        assert service.answer({"x": x["x"][:2]}).outputs["y"].shape == (2, 4)


def test_who_waits_is_answered_or_told_when_it_closes(x: dict[str, Any]) -> None:
    service = two(depth=1)
    futures = [service.submit(Request(x)) for _ in range(5)]
    service.close()
    assert all(future.exception(0) is None for future in futures)
    assert isinstance(service.submit(Request(x)).exception(0), ClosedError)
    service.close()
    service = two(depth=1)
    os.kill(service.processes[0], signal.SIGSTOP)
    futures = [service.submit(Request(x)) for _ in range(3)]
    service.close(grace=0.1)
    assert all(isinstance(future.exception(0), ClosedError) for future in futures)
    assert all(gone(pid) for pid in service.processes)


def test_a_callback_may_close_it(x: dict[str, Any]) -> None:
    service = two(depth=1)
    os.kill(service.processes[0], signal.SIGSTOP)
    futures = [service.submit(Request(x)) for _ in range(3)]
    closed = threading.Event()

    def close(_: object) -> None:
        service.close(grace=3600)
        closed.set()

    futures[0].add_done_callback(close)
    os.kill(service.processes[0], signal.SIGCONT)
    assert closed.wait(60)
    assert futures[0].exception(0) is None
    assert all(isinstance(future.exception(60), ClosedError) for future in futures[1:])
    assert all(gone(pid) for pid in service.processes)


def test_an_engine_with_a_bug_fails_one_request_and_keeps_its_process(x: dict[str, Any]) -> None:
    class Buggy(FakeEngine):
        def run(self, feeds: Any) -> Any:
            raise IndexError("a bug")

    slot = Slot(memory(), Layout(dtypes={"x": "float32", "a": "float32"}))
    slot.clear()
    slot.put("x", x["x"])
    compute(Buggy(link("x", "a"), EngineOptions()), slot)
    error = slot.failure()
    assert isinstance(error, EngineError)
    assert "fake failed: IndexError: a bug" in str(error)
    os.close(slot.file)


def test_nothing_is_left_behind(x: dict[str, Any]) -> None:
    """Neither in this process nor by name: other processes may do what they want meanwhile."""

    def held() -> set[str]:
        """The memory, pipes and sockets this process holds, by their names in the kernel."""
        links = [str(place.readlink()) for place in Path("/proc/self/fd").iterdir() if place.is_symlink()]
        return {link for link in links if link.startswith(("/memfd:", "/dev/shm/", "pipe:", "socket:"))}

    def use() -> Sequence[int]:
        service = two()
        service.answer({"x": np.zeros((100_000, 4), np.float32)})
        os.kill(service.processes[0], signal.SIGKILL)
        assert eventually(lambda: service.stats().restarts == (1, 0))
        service.answer(x)
        pids = service.processes
        service.close()
        return pids

    two().close()
    gc.collect()  # what other tests have left to it
    before = held()
    pids = use()
    gc.collect()
    assert held() <= before
    assert list(Path("/dev/shm").glob("*farthing*")) == []
    assert all(gone(pid) for pid in pids)


PARENT = """
    import os, signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs behind
    from farthing.device.serving.parts.processes import Processes
    from farthing.testing import fake_model
    service = Processes([fake_model(4, 4, ends=("x", "a")), fake_model(4, 4, ends=("a", "y"))])
    fork = os.fork() if sys.argv[1:] else -1
    if not fork:
        time.sleep(600)  # it holds all that its parent did
    print(*service.processes, fork, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("number", "forks"),
    [(signal.SIGKILL, ()), (signal.SIGTERM, ()), (signal.SIGINT, ()), (signal.SIGKILL, ("fork",))],
)
def test_processes_end_with_their_parent(number: int, forks: tuple[str, ...]) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), *forks],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with parent:
        assert parent.stdout is not None
        *pids, fork = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(gone(pid) for pid in pids)
        os.kill(parent.pid, number)
        parent.wait(60)
    try:
        assert all(eventually(lambda pid=pid: gone(pid)) for pid in pids)
    finally:
        if forks:
            os.kill(fork, signal.SIGKILL)


def test_a_program_that_ends_without_closing_answers_first() -> None:
    program = """
        import numpy as np
        from farthing.device.serving.parts.processes import Processes
        from farthing.device.serving.service import Request
        from farthing.testing import fake_model
        service = Processes([fake_model(4, 4, ends=("x", "a")), fake_model(4, 4, ends=("a", "y"))])
        for _ in range(20):
            future = service.submit(Request({"x": np.ones((1, 4), np.float32)}))
            future.add_done_callback(lambda future: print(future.result().source))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ran.stdout.splitlines() == ["fake + fake"] * 20
    assert ran.stderr == ""


def test_parts_that_cannot_be_run_are_refused_before_anybody_waits(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="the part fake keeps a state"):
        Processes([link("x", "a"), link("a", "y", decay=0.5)])
    with pytest.raises(ModelError, match="part 2 makes 'a'"):
        Processes([link("x", "a"), link("x", "a")])
    with pytest.raises(ConfigError, match="depth is 1000"):
        two(depth=1000)
    text = TensorSpec(name="t", dtype="str", shape=("n",))
    with pytest.raises(UnsupportedError, match="'t' is str, which processes cannot share"):
        Processes([fake_model(inputs=(text,))])
    with pytest.raises(EngineError, match="threads=1"):
        two(options=EngineOptions(threads=2))
    model = link("x", "a")
    model.file.write_bytes(b"{}")
    with pytest.raises(ModelError, match="SHA-256 differs"):
        Processes([model])
    Bundle.create("two", "variants", {"a": link("x", "a")}, tmp_path / "two")
    with pytest.raises(ConfigError, match="bundle of variants, not of parts"):
        open_processes(tmp_path / "two")
