"""A board behind a real SSH server: the same figures, outputs and errors as here, and what happens when it goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from tests.remote.conftest import QUICK, Server, eventually, fit_out, kill, processes

from farthing import bench
from farthing.bench import Rule
from farthing.bench.machine import Here
from farthing.bench.remote import Board, Boards, Remote, find_machine
from farthing.bench.remote.install import look
from farthing.bench.remote.onboard import lease
from farthing.config import plain
from farthing.engines.base import open_engine
from farthing.errors import (
    EngineError,
    FeedError,
    LinkError,
    MeasurementError,
    ModelError,
    NotInstalled,
    PluginError,
    StorageError,
    TargetError,
)
from farthing.forge.doctor import examine
from farthing.model import Model
from farthing.options import EngineOptions
from farthing.target import Target
from farthing.task import Split, Task
from farthing.testing import fake_model

SHORT = Rule(warmup=2, min_count=20, min_seconds=0.0)
LONG = Rule(warmup=2, min_count=1, min_seconds=30.0, max_seconds=30.0)
ONE = EngineOptions()


def rows(count: int, features: int = 4) -> Any:
    return np.random.default_rng(1).standard_normal((count, features)).astype(np.float32)


def worker(board: Board) -> list[int]:
    return [
        pid for pid in processes(f"-m farthing.bench.worker {board.directory}") if "sh -c" not in str(pid)
    ]


def pythons(board: Board) -> list[int]:
    """The worker itself, not the shells that wait for it."""
    return [pid for pid in worker(board) if "python" in str(Path(f"/proc/{pid}/exe").resolve())]


def soon(seconds: float, what: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, what)
    timer.start()
    return timer


def test_it_is_the_machine_behind_the_server(remote: Remote) -> None:
    here = Here()
    assert replace(remote.target, name=here.target.name, engines=()) == replace(here.target, engines=())
    assert remote.target.name == "bench-board"
    assert "fake" in remote.target.engines
    assert remote.description.startswith(here.description)
    assert (remote.meter, remote.temperature()) == (here.meter, here.temperature())


def test_versions_of_engines(remote: Remote) -> None:
    assert remote.version("fake") == Here().version("fake")
    with pytest.raises(PluginError, match="no engine is called 'fakr'"):
        remote.version("fakr")
    absent = {"onnxruntime", "openvino", "litert"} - set(remote.target.engines)
    for name in absent:
        with pytest.raises((NotInstalled, PluginError)):
            remote.version(name)


@pytest.mark.parametrize("batch", [1, 5])
def test_outputs_equal_those_of_this_machine_bit_for_bit(remote: Remote, batch: int) -> None:
    model = fake_model(features=4, outputs=3)
    with remote.load(model, "", ONE)[0] as there, open_engine(model) as here:
        assert (there.name, there.version, there.stateful) == (here.name, here.version, here.stateful)
        assert list(there.inputs) == list(here.inputs)
        assert list(there.outputs) == list(here.outputs)
        feed = {"x": rows(batch)}
        assert there.run(feed)["y"].tobytes() == here.run(feed)["y"].tobytes()


def test_onnx_outputs_equal_those_of_this_machine(remote: Remote, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = convolution(tmp_path)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    with remote.load(model, "onnxruntime", ONE)[0] as there, open_engine(model, "onnxruntime") as here:
        assert there.run(feed)["y"].tobytes() == here.run(feed)["y"].tobytes()


def convolution(place: Path) -> Model:
    from onnx import TensorProto, helper, numpy_helper, save

    from farthing.model import Manifest, TensorSpec

    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 6, 6])
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weights, "w")])
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), place / "m.onnx"
    )
    specs = [
        TensorSpec(name=name, dtype="float32", shape=shape, batch_axis=0)
        for name, shape in (("x", ("n", 3, 8, 8)), ("y", ("n", 4, 6, 6)))
    ]
    manifest = Manifest(name="conv", format="onnx", inputs=(specs[0],), outputs=(specs[1],))
    return Model.create(manifest, {"m.onnx": place / "m.onnx"})


def test_a_task_is_scored_the_same(remote: Remote) -> None:
    x = rows(150)
    labels = np.zeros((150, 3), np.float32)
    task = Task("rows", {"test": Split({"": x}, labels)}, "error")
    model = fake_model(features=4, outputs=3)
    with remote.load(model, "", ONE)[0] as there, open_engine(model) as here:
        data = task.split("test")
        ours = bench.outputs(here, model.manifest, task, data)
        theirs = bench.outputs(there, model.manifest, task, data)
    assert ours["y"].tobytes() == theirs["y"].tobytes()
    assert task.metric.score(ours, labels, None) == task.metric.score(theirs, labels, None)


def test_streams_keep_their_states_apart(remote: Remote) -> None:
    model = fake_model(features=2, outputs=1, decay=0.5)
    feed = {"x": rows(1, 2)}
    with remote.load(model, "", ONE)[0] as there, open_engine(model) as here:
        assert there.stateful
        first, second = there.session(), there.session()
        ours = here.session()
        expected = [ours.run(feed)["y"].tobytes() for _ in range(3)]
        assert [first.run(feed)["y"].tobytes() for _ in range(3)] == expected
        assert second.run(feed)["y"].tobytes() == expected[0]
        first.close()
        second.close()


def test_a_race_there_gives_the_same_kind_of_times(remote: Remote) -> None:
    models = [fake_model(features=4, outputs=n) for n in (2, 3)]
    ticks: list[tuple[int, int]] = []
    engines = [remote.load(model, "", ONE)[0] for model in models]
    entrants = [(engine, [{"x": rows(1)}, {"x": rows(1) + 1}]) for engine in engines]
    timed = remote.race(entrants, Rule(min_seconds=1.5), lambda *tick: ticks.append(tick))
    assert len(timed) == 2
    assert len(timed[0].rounds) == len(timed[1].rounds) >= 10
    for one in timed:
        assert len(one.calls) >= 200
        assert one.made > len(one.calls)
        assert all(0 < seconds < 10 for seconds in one.calls)
    assert ticks
    assert ticks == sorted(ticks)
    for engine in engines:
        engine.close()


def test_a_whole_measurement(remote: Remote) -> None:
    model = fake_model(features=4, outputs=3)
    found = bench.bench(model, rule=SHORT, machine=remote)
    assert (found.model, found.engine, found.machine) == (model.digest, "fake", remote.description)
    assert found.runs >= 20
    assert found.peak_memory_mb is not None
    assert found.peak_memory_mb > (found.memory_mb or 0)
    assert found.load_ms is not None
    assert found.temperature_c == Here().temperature()
    offline = bench.bench(model, scenario="offline", batch=7, rule=SHORT, machine=remote, memory=False)
    assert offline.batch == 7


def test_queries_are_served_there(remote: Remote) -> None:
    with remote.load(fake_model(features=4), "", ONE)[0] as engine:
        served = remote.serve((engine, [{"x": rows(1)}]), 500.0, Rule(min_count=50, min_seconds=0.0))
        assert len(served.latencies) == 50
        assert 0 < max(served.latencies) <= served.seconds
        with pytest.raises(EngineError, match="takes one caller at a time"):
            remote.serve((engine, [{"x": rows(1)}]), 500.0, SHORT, workers=2)


def test_errors_have_the_kind_they_have_here(remote: Remote) -> None:
    model = fake_model(features=4)
    with pytest.raises(EngineError, match=r"on bench-board: the fake engine computes in the caller's thread"):
        remote.load(model, "", EngineOptions(threads=2))
    with pytest.raises(PluginError, match=r"on bench-board: no engine is called 'none'"):
        remote.load(model, "none", ONE)
    with pytest.raises(MeasurementError, match="no engine is called 'none'"):
        remote.peak_memory(model, "none", ONE)
    engine = remote.load(model, "", ONE)[0]
    with pytest.raises(FeedError, match="the model takes float32"):
        engine.run({"x": rows(1).astype(np.float64)})
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="this engine is closed"):
        engine.run({"x": rows(1)})
    with remote.load(model, "", ONE)[0] as again:
        assert again.run({"x": rows(1)})["y"].shape == (1, 3)
    assert remote.temperature() == Here().temperature()


def test_an_engine_of_this_machine_cannot_race_there(remote: Remote) -> None:
    with (
        open_engine(fake_model()) as here,
        pytest.raises(MeasurementError, match="not loaded on bench-board"),
    ):
        remote.race([(here, [{"x": rows(1)}])], SHORT)


def test_a_model_is_sent_once(remote: Remote, board: Board) -> None:
    model = fake_model(features=3, seed=77)
    kept = Path(board.directory) / "models" / model.digest
    remote.load(model, "", ONE)[0].close()
    assert Model.open(kept).digest == model.digest
    written = (kept / "model.json").stat()
    remote.load(model, "", ONE)[0].close()
    remote.close()
    with Remote(board, None, QUICK) as again:
        again.load(model, "", ONE)[0].close()
    assert (kept / "model.json").stat().st_ino == written.st_ino
    assert (kept / "model.json").stat().st_mtime_ns == written.st_mtime_ns


def test_what_is_kept_and_damaged_is_sent_again(board: Board) -> None:
    model = fake_model(features=3, seed=78)
    kept = Path(board.directory) / "models" / model.digest
    for damage in (lambda: (kept / "model.json").write_text("{}"), lambda: shutil.rmtree(kept), lambda: None):
        with Remote(board, None, QUICK) as opened:
            opened.load(model, "", ONE)[0].close()
        damage()
    assert sorted(path.name for path in kept.iterdir()) == ["manifest.json", "model.json"]
    assert not list(kept.parent.glob(".*"))


def test_a_model_that_changed_here_is_refused_there(remote: Remote, tmp_path: Path) -> None:
    model = fake_model(features=3, seed=79).save(tmp_path / "model")
    (tmp_path / "model" / "model.json").write_text("{}")
    with pytest.raises(ModelError, match="SHA-256 differs"):
        remote.load(model, "", ONE)
    assert not (Path(remote.board.directory) / "models" / model.digest).exists()


def test_only_as_many_samples_are_sent_as_is_reasonable(board: Board, said: list[str]) -> None:
    with Remote(board, said.append, replace(QUICK, feeds_mb=0.05)) as remote:
        wide, narrow = fake_model(features=1000), fake_model(features=10)
        engines = [remote.load(model, "", ONE)[0] for model in (wide, narrow)]
        feeds = [[{"x": rows(4, 1000) + i} for i in range(8)], [{"x": rows(4, 10) + i} for i in range(8)]]
        timed = remote.race(list(zip(engines, feeds, strict=True)), SHORT)
    assert len(timed) == 2
    assert said == ["bench-board: timed on 3 of 8 batches of samples: more than 0.05 MB are not sent"]


def test_a_second_one_waits_or_is_told_who_measures(remote: Remote, board: Board) -> None:
    said: list[str] = []
    with pytest.raises(
        TargetError, match=r"the board is in use by \S+@\S+ since 20\d\d-.*: wait until"
    ) as caught:
        Remote(board, said.append, QUICK).open()
    assert not isinstance(caught.value, LinkError)
    seen = look(board, QUICK)
    assert "@" in seen.holder
    timer = soon(3.0, remote.close)
    with Remote(board, said.append, replace(QUICK, lease=20.0)) as second:
        assert second.temperature() == Here().temperature()
    timer.join()
    assert len(said) == 1
    assert said[0].startswith("bench-board is in use by")
    assert said[0].endswith("waiting up to 20 s")
    assert look(board, QUICK).holder == ""


def test_an_installation_holds_the_lease_too(board: Board) -> None:
    with (
        lease(Path(board.directory), "an installer", 0),
        pytest.raises(TargetError, match="in use by an installer since"),
    ):
        Remote(board, None, QUICK).open()


def test_a_connection_cut_in_a_race_is_made_anew_and_the_race_repeated(
    remote: Remote, server: Server, said: list[str]
) -> None:
    with remote.load(fake_model(features=4), "", ONE)[0] as engine:
        before = remote.generation
        timer = soon(0.6, server.cut)
        timed = remote.race([(engine, [{"x": rows(1)}])], Rule(min_seconds=1.2))
        timer.join()
        assert remote.generation == before + 1
        assert sum(timed[0].calls) < 1.3
        assert len(timed) == 1
        assert engine.run({"x": rows(2)})["y"].shape == (2, 3)
    assert [sentence.endswith("trying once more") for sentence in said] == [True]


def test_a_connection_may_break_more_than_once(board: Board, server: Server, said: list[str]) -> None:
    with Remote(board, said.append, replace(QUICK, attempts=3)) as remote:
        engine = remote.load(fake_model(features=4), "", ONE)[0]
        cuts: list[int] = []

        def cut(done: int, total: int) -> None:
            if remote.generation not in cuts and len(cuts) < 2:
                cuts.append(remote.generation)
                server.cut()

        timed = remote.race([(engine, [{"x": rows(1)}])], Rule(min_seconds=1.2), cut)
        assert (len(timed), len(cuts), len(said)) == (1, 2, 2)
        with pytest.raises(LinkError, match="connection broke"):
            remote.race([(engine, [{"x": rows(1)}])], Rule(min_seconds=1.2), lambda *_: server.cut())


def test_a_worker_killed_in_a_race_is_started_anew(remote: Remote, board: Board, said: list[str]) -> None:
    with remote.load(fake_model(features=4), "", ONE)[0] as engine:
        timer = soon(0.5, lambda: [kill(pid) for pid in pythons(board)])
        assert remote.race([(engine, [{"x": rows(1)}])], Rule(min_seconds=1.0))[0].made > 10
        timer.join()
    assert len(said) == 1
    assert "ended with SIGKILL" in said[0]


def test_a_model_that_kills_its_worker_twice_is_its_own_fault(remote: Remote, board: Board) -> None:
    def crash(done: int, total: int) -> None:
        for pid in pythons(board):
            os.kill(pid, signal.SIGSEGV)

    engine = remote.load(fake_model(features=4), "", ONE)[0]
    with pytest.raises(EngineError, match="the process that runs the model ended with SIGSEGV"):
        remote.race([(engine, [{"x": rows(1)}])], LONG, crash)
    with remote.load(fake_model(features=3), "", ONE)[0] as other:  # the run goes on with others
        assert other.run({"x": rows(1, 3)})["y"].shape == (1, 3)


def test_a_stream_whose_state_is_lost_says_so(remote: Remote, server: Server) -> None:
    with remote.load(fake_model(features=2, decay=0.5), "", ONE)[0] as engine:
        stream = engine.session()
        stream.run({"x": rows(1, 2)})
        server.cut()
        with pytest.raises(LinkError):
            stream.run({"x": rows(1, 2)})
        with pytest.raises(EngineError, match="the state of this stream with it"):
            stream.run({"x": rows(1, 2)})
        assert engine.session().run({"x": rows(1, 2)})["y"].shape == (1, 3)


@pytest.fixture
def fragile(tmp_path: Path, fitted: Path) -> Iterator[tuple[Server, Board]]:
    """A machine of our own, to be switched off."""
    server = Server(tmp_path / "fragile")
    server.start()
    yield server, Board(name="fragile", address=server.address, directory=str(fitted))
    server.stop()


def test_a_machine_that_goes_in_a_race_ends_it_after_the_retries(fragile: tuple[Server, Board]) -> None:
    server, board = fragile
    said: list[str] = []
    with Remote(board, said.append, QUICK) as remote:
        engine = remote.load(fake_model(features=4), "", ONE)[0]
        timer = soon(0.5, server.stop)
        with pytest.raises(LinkError, match="cannot be reached"):
            remote.race([(engine, [{"x": rows(1)}])], LONG)
        timer.join()
        assert len(said) == 1
        assert eventually(lambda: not worker(board))
        with pytest.raises(LinkError):
            engine.run({"x": rows(1)})
        engine.close()
        server.start()
        with remote.load(fake_model(features=4), "", ONE)[0] as again:  # it is on again
            assert again.run({"x": rows(1)})["y"].shape == (1, 3)


def test_a_user_who_leaves_in_a_race_leaves_nothing_there(fragile: tuple[Server, Board]) -> None:
    _, board = fragile
    remote = Remote(board, None, QUICK).open()
    engine = remote.load(fake_model(features=4), "", ONE)[0]

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        remote.race([(engine, [{"x": rows(1)}])], LONG, interrupt)
    remote.close()
    assert eventually(lambda: not worker(board), 10)
    assert time.monotonic() - begin < 25
    assert not (Path(board.directory) / "tmp").exists()
    assert look(board, QUICK).holder == ""


@pytest.fixture
def small(tmp_path: Path, server: Server) -> Iterator[Board]:
    """A board whose disk holds a megabyte."""
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here")
    python = fit_out(tmp_path / "elsewhere") / "venv"
    board = disk / "farthing"
    board.mkdir()
    (board / "venv").symlink_to(python.resolve())
    (board / "farthing-board.json").write_text("{}\n")
    server.know(server.host_key)
    yield Board(name="small", address=server.address, directory=str(board))
    assert eventually(lambda: not processes(f"farthing.bench.worker {board}"))
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_there_is_said_and_nothing_of_it_stays(small: Board) -> None:
    model = fake_model(features=300, outputs=200)
    assert model.size_bytes > 1 << 20
    with Remote(small, None, QUICK) as remote:
        with pytest.raises(EngineError, match=r"on small: cannot write .* on the board: the disk is full"):
            remote.load(model, "", ONE)
        with remote.load(fake_model(features=4), "", ONE)[0] as engine:
            assert engine.run({"x": rows(1)})["y"].shape == (1, 3)
    models = list((Path(small.directory) / "models").iterdir())
    assert [path.name for path in models] == [fake_model(features=4).digest]


def test_models_that_nobody_uses_make_room_for_others(small: Board) -> None:
    models = [fake_model(features=100, outputs=100, seed=seed) for seed in range(8)]
    assert sum(model.size_bytes for model in models) > 1 << 20
    with Remote(small, None, QUICK) as remote:
        for model in [*models, models[0]]:
            with remote.load(model, "", ONE)[0] as engine:
                assert engine.run({"x": rows(1, 100)})["y"].shape == (1, 100)
        used = remote.load(models[1], "", ONE)[0]
        for model in models[2:]:
            remote.load(model, "", ONE)[0].close()
        assert used.session().run({"x": rows(1, 100)})["y"].shape == (1, 100)
    kept = {path.name for path in (Path(small.directory) / "models").iterdir()}
    assert models[1].digest in kept
    assert len(kept) < len(models)


def test_a_disk_without_a_byte_left_is_said(small: Board) -> None:
    disk = Path(small.directory).parent
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    with Remote(small, None, QUICK) as remote:
        with pytest.raises(EngineError, match=r"on small: cannot write .* on the board: the disk is full"):
            remote.load(fake_model(features=4), "", ONE)
        (disk / "filler").unlink()
        assert remote.load(fake_model(features=4), "", ONE)[0].run({"x": rows(1)})["y"].shape == (1, 3)


def test_a_directory_that_cannot_be_written_is_said(small: Board) -> None:
    (Path(small.directory) / "lease").mkdir()
    with pytest.raises(StorageError, match=r"on small: cannot write .* on the board: .*directory"):
        Remote(small, None, QUICK).open()


def test_a_board_without_its_farthing(board: Board, tmp_path: Path) -> None:
    for python in (None, "#!/bin/sh\necho broken >&2; exit 3\n"):
        if python:
            (tmp_path / "venv" / "bin").mkdir(parents=True)
            (tmp_path / "venv" / "bin" / "python").write_text(python)
            (tmp_path / "venv" / "bin" / "python").chmod(0o755)
        with pytest.raises(TargetError, match="farthing target update bench-board"):
            Remote(replace(board, directory=str(tmp_path)), None, QUICK).open()


def test_a_doctor_looks_at_the_board_where_models_are_timed_there(board: Board, tmp_path: Path) -> None:
    """This machine may be as busy and hot as it likes then."""
    boards, root = Boards(tmp_path / "targets"), tmp_path / "root"
    boards.put(board)
    (root / "proc").mkdir(parents=True)
    (root / "proc/loadavg").write_text("55.0 55.0 55.0 1/100 1\n")
    for target, area in (("this", "machine"), ("bench-board", "target")):
        found = examine(target=target, boards=boards.directory, root=root, cache=tmp_path).findings
        by_name = {finding.name: finding for finding in found if finding.area in {"machine", "target"}}
        assert {by_name[name].area for name in ("load", "clock", "temperature", "energy")} == {area}
        assert ("55.0" in by_name["load"].found) == (target == "this")
        assert by_name["memory"].area == "machine", "models are made here all the same"


def test_finding_machines(board: Board, tmp_path: Path) -> None:
    boards = Boards(tmp_path / "targets")
    boards.put(board)
    assert boards.names() == ["bench-board"]
    assert boards.get("bench-board") == board
    with find_machine("this", boards.directory) as machine:
        assert machine.target == Target.detect()
    with find_machine("bench-board", boards.directory, limits=QUICK) as machine:
        assert machine.target.name == "bench-board"
    with (
        pytest.raises(TargetError, match=r"no target is called 'bench-bord'; did you mean 'bench-board'"),
        find_machine("bench-bord", boards.directory),
    ):
        pass
    (boards.directory / "odd.yaml").write_text(
        "name: odd\naddress: {host: -oProxyCommand=x}\ndirectory: /a/b\n"
    )
    with pytest.raises(TargetError, match="not the name or address of a host"):
        boards.get("odd")
    boards.forget("bench-board")
    assert boards.names() == ["odd"]


@pytest.mark.parametrize(
    ("name", "directory"),
    [
        ("this", "/a/b"),
        ("A", "/a/b"),
        ("../x", "/a/b"),
        ("x", "a/b"),
        ("x", "/"),
        ("x", "/home"),
        ("x", "/a/../b/c"),
    ],
)
def test_what_cannot_be_a_board(board: Board, name: str, directory: str) -> None:
    with pytest.raises(ValueError, match=r"name of a target|absolute path"):
        Board(name=name, address=board.address, directory=directory)
    assert plain(board)["name"] == "bench-board"
