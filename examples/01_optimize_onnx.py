"""An ONNX file and some arrays: find the best artefact for this machine under a budget.

    python examples/01_optimize_onnx.py [OUT]

Wherever ``digits.onnx`` and the arrays stand, put your own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import farthing
from digits_net import write_onnx
from farthing import Split, Task


def my_task() -> Task:
    """Data in splits, and a metric. Calibration needs no labels; the test split is looked at once, at the end."""
    data = farthing.find_task("digits")
    arrays = {name: (split.inputs[""], split.labels) for name, split in data.splits.items()}
    splits = {name: Split({"": x}, y) for name, (x, y) in arrays.items()}  # "" is the model's only input
    return Task("my digits", splits, "top1", labels=data.labels)


def main(out: Path) -> None:
    """Bring the model in, search, and show what was found."""
    with tempfile.TemporaryDirectory() as folder:
        conversion = farthing.convert(write_onnx(Path(folder) / "digits.onnx"))
        for assumption in conversion.assumptions:
            print(f"assumed: {assumption}")
        result = farthing.optimize(
            conversion.model, my_task(), "this", "accuracy_drop<=0.01, size_mb<=0.5", out
        )

    print(result.summary.sentence)
    for candidate in result.candidates:
        speed = f"{candidate.speedup.value:.2f}x" if candidate.speedup else "not timed"
        print(f"{candidate.name:<16} {candidate.options.threads} threads  {speed:<10} {candidate.verdict}")
    print(f"Look at {out / 'report.html'}")

    # From now on only the directory counts. This is all a device does:
    sample = farthing.find_task("digits").split("test").inputs[""][0]
    with farthing.load(out) as predictor:
        outputs = predictor(sample)
    print({name: array.argmax().item() for name, array in outputs.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "best"))
