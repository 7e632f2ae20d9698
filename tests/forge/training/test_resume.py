"""A training that was killed goes on to the very weights of an undisturbed one; what is left behind is harmless."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from farthing import files
from farthing.errors import StorageError
from farthing.forge.training import checkpoint
from farthing.forge.training.loop import Hook, Moment, train
from farthing.forge.training.losses import CrossEntropy
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop

POINTS = [
    "start:0", "before_step:0", "after_backward:1", "after_step:2", "sync:0", "sync:1", "replace:0", "replace:1",
    "after_epoch:0", "after_epoch:0", "before_step:2", "sync:3",
]  # fmt: skip


def killed(state: Path, *points: str) -> list[str]:
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, str(script), str(state), *points], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_killed_anywhere_it_gives_the_same_weights(tmp_path: Path) -> None:
    undisturbed, *ends, last = killed(tmp_path / "state", *POINTS)
    assert ends == [f"{point} killed" for point in POINTS]
    assert last == undisturbed
    assert {path.name for path in (tmp_path / "state").iterdir()} == {checkpoint.FILE}


class Counter(Hook):
    """How many steps were made in this process."""

    def __init__(self, interrupt_at: int = -1) -> None:
        self.steps = 0
        self.interrupt_at = interrupt_at

    def before_step(self, moment: Moment) -> None:
        if moment.step == self.interrupt_at:
            raise KeyboardInterrupt
        self.steps += 1


def run(state: Path, seed: int = 0, counter: Counter | None = None, **schedule: Any) -> tuple[Tensor, int]:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(40, 6)).astype(np.float32), generator.integers(0, 2, 40)
    torch.manual_seed(seed)
    net, counter = nn.Linear(6, 2), counter or Counter()
    train(
        net,
        Samples.of_arrays(x, y),
        CrossEntropy(),
        Schedule(**{"epochs": 3, "batch": 20, **schedule}),
        workshop=Workshop(state=state),
        hooks=[counter],
    )
    return net.weight.detach(), counter.steps


def test_done_work_is_not_done_again(tmp_path: Path) -> None:
    first, steps = run(tmp_path)
    second, none = run(tmp_path)
    assert (steps, none) == (6, 0)
    assert torch.equal(first, second)


def test_ctrl_c_leaves_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, counter=Counter(interrupt_at=5))
    weights, steps = run(tmp_path)
    assert steps == 2
    assert torch.equal(weights, run(tmp_path / "other")[0])


@pytest.mark.parametrize("other", [{"seed": 1}, {"lr": 0.1}, {"epochs": 4}], ids=str)
def test_another_trainings_checkpoint_is_left_alone(other: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, **other)[1] == 2 * other.get("epochs", 3)


def test_a_training_with_other_hooks_is_another(tmp_path: Path) -> None:
    x = np.ones((8, 2), np.float32)
    for hooks in ([], [Counter()], [Hook(), Counter()]):
        torch.manual_seed(0)
        train(
            nn.Linear(2, 2),
            Samples.of_arrays(x, np.zeros(8, np.int64)),
            CrossEntropy(),
            Schedule(epochs=1),
            workshop=Workshop(state=tmp_path),
            hooks=hooks,
        )
        assert all(hook.steps == 1 for hook in hooks if isinstance(hook, Counter))


class Trap:
    """Code that would run if the checkpoint were unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("caught",)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"nonsense", pickle.dumps(Trap()), pickle.dumps({"key": 1})],
    ids=["empty", "cut", "nonsense", "trap", "pickle"],
)
def test_a_damaged_or_evil_checkpoint_is_not_used(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / checkpoint.FILE).write_bytes(content)
    assert run(tmp_path)[1] == 6
    assert not Path("caught").exists()


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_half_a_checkpoint_is_not_used(share: float, tmp_path: Path) -> None:
    run(tmp_path)
    whole = (tmp_path / checkpoint.FILE).read_bytes()
    (tmp_path / checkpoint.FILE).write_bytes(whole[: int(share * len(whole))])
    assert run(tmp_path)[1] == 6


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, counter=Counter(interrupt_at=3))
    kept = (tmp_path / checkpoint.FILE).read_bytes()

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "sync", full)
        with pytest.raises(StorageError, match="the disk is full"):
            run(tmp_path)
    assert (tmp_path / checkpoint.FILE).read_bytes() == kept
    assert torch.equal(run(tmp_path)[0], run(tmp_path / "other")[0])


def test_parts_of_one_work_keep_apart(tmp_path: Path) -> None:
    workshop = Workshop(state=tmp_path)
    assert workshop.part("first").state == tmp_path / "first"
    assert Workshop().part("first").state is None
