"""A program that searches and gets killed: `test_output` runs it.

It reads an order as JSON from its first argument. For each moment a forked copy of it runs the search and ends
itself with SIGKILL there: at the n-th thing it tells, or before the n-th change to a file beside the output
directory. What is left after each kill goes to standard output as a line of JSON; the first search that comes to
its end is the last.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from farthing.bench import Rule
from farthing.errors import FarthingError
from farthing.files import file_digest
from farthing.forge import optimize, output
from farthing.forge.ladder import rounds
from farthing.model import Model
from farthing.recipe import Progress
from farthing.task import Split, Task

CHANGES = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "ctypes.dlsym",
    "shutil.rmtree",
}


def tree(directory: Path) -> dict[str, str]:
    return {str(path): file_digest(path) for path in sorted(directory.rglob("*")) if path.is_file()}


def search(order: dict[str, Any], listener: Any) -> None:
    rounds.SPRINT = Rule(warmup=1, min_count=3, min_seconds=0.02)
    rounds.FINAL = Rule(warmup=1, min_count=3, min_seconds=0.02)
    rounds.FINALISTS = 1
    data = np.load(order["data"])
    splits = {
        name: Split({"": data[f"{name}_x"]}, data[f"{name}_y"])
        for name in ("calibration", "validation", "test")
    }
    optimize.optimize(
        Model.open(order["model"]),
        Task("digits", splits, "top1"),
        out=Path(order["out"]),
        cache=Path(order["cache"]),
        engines=("onnxruntime",),
        threads=(1,),
        listener=listener,
    )


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(order: dict[str, Any], kind: str, moment: int) -> None:
    told: list[str] = []

    def listen(event: Progress) -> None:
        if told[-1:] != [event.text]:
            told.append(event.text)
            if kind == "told" and len(told) == moment:
                die()

    if kind == "change":
        beside, count = str(Path(order["out"]).parent / "."), itertools.count(1)

        def watch(name: str, arguments: tuple[Any, ...]) -> None:
            if name not in CHANGES or (name == "open" and not _writes(arguments)):
                return
            near = name == "ctypes.dlsym" or any(str(part).startswith(beside[:-1]) for part in arguments)
            if near and next(count) == moment:
                die()

        sys.addaudithook(watch)
    search(order, listen)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return bool(mode and set("wxa+") & set(mode)) or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def state(order: dict[str, Any]) -> dict[str, Any]:
    """What the output directory and its neighbourhood look like."""
    out = Path(order["out"])
    whole = True
    try:
        output.read_summary(out)
        Model.open(out)
    except FarthingError:
        whole = False
    left = sorted(path.name for path in out.parent.iterdir() if path.name.startswith(".tmp-"))
    return {"whole": whole, "tree": tree(out) if out.exists() else {}, "left": left}


def main() -> None:
    order = json.loads(sys.argv[1])
    for kind, moment in order["moments"]:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run(order, kind, moment)
                code = 0
            finally:
                if code:
                    traceback.print_exc()
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status)
        said = {"kind": kind, "moment": moment, "killed": killed, "status": status}
        sys.stdout.write(json.dumps({**said, **state(order)}) + "\n")
        if not killed:
            return


if __name__ == "__main__":
    main()
