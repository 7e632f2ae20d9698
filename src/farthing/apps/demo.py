"""The demo: train a small network on real digits, optimise it for this machine, and let the winner read digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farthing import files
from farthing.bench import feeds
from farthing.device.predict import Predictor, load
from farthing.errors import require
from farthing.forge.cache import Cache, key_of
from farthing.forge.convert import convert
from farthing.forge.nets import digits_cnn
from farthing.forge.optimize import optimize
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.model import Manifest, Model, TensorSpec, checked
from farthing.recipe import Listener, Progress, Result, ignore
from farthing.scratch import Scratch
from farthing.task import Task
from farthing.tasks import MNIST_PREPROCESS, mnist_5k

EPOCHS = 10
BUDGET = "accuracy_drop<=0.01"
PICTURES = 8


@dataclass(frozen=True)
class Demo:
    """What the demo shows.

    Attributes:
        result: of the search.
        predictions: picture, true label, predicted label, score.
        pictures: the pictures as files, to try the model on.
    """

    result: Result
    predictions: list[tuple[str, str, str, float]]
    pictures: list[Path]


def run(out: Path, *, cache: Path, seed: int = 0, epochs: int = EPOCHS, listener: Listener = ignore) -> Demo:
    """Train, convert, optimise under one point of accuracy, predict.

    Args:
        out: output directory of the search; pictures to try go beside it, into ``<out>-pictures``.
        cache: where the data, the trained network and the search's results are kept.
        seed: of the training.
        epochs: passes over the training data.
        listener: called with progress.

    Raises:
        AssetError: the digits are not cached and cannot be fetched.
        FarthingError: see `farthing.forge.optimize.optimize`.
    """
    listener(Progress(stage="data", text="5,000 real handwritten digits (MNIST), fetched once"))
    task = mnist_5k(cache, lambda event: listener(Progress(stage="data", text=event)))
    model = Cache(cache).resumed(
        key_of("demo", task.digest, seed, epochs, 2),
        lambda state: train(task, seed, epochs, Workshop(listener, state)),
    )
    result = optimize(
        model,
        task,
        "this",
        BUDGET,
        out,
        cache=cache,
        listener=listener,
        command=f"farthing demo --out {out} --seed {seed}",
    )
    pictures = _pictures(task, out.with_name(f"{out.name}-pictures"))
    truth = task.split("test").labels
    with load(out) as predictor:
        shown = [
            _row(path, str(truth[i]) if truth is not None else "", predictor)
            for i, path in enumerate(pictures)
        ]
    return Demo(result, shown, pictures)


def train(task: Task, seed: int, epochs: int, workshop: Workshop) -> Model:
    """The user's part: a small convolutional network, trained on the task's train split and converted to ONNX."""
    torch = require("torch", "forge")
    from farthing.forge.training import loop
    from farthing.forge.training.losses import loss_of
    from farthing.forge.training.samples import Samples

    torch.manual_seed(seed)
    module = digits_cnn()
    blank = manifest("digits-cnn", task)
    schedule = Schedule(epochs=epochs, seed=seed)
    loop.train(module, Samples(task, blank), loss_of(task, blank), schedule, workshop=workshop)
    real = feeds(task, task.split("validation"), blank, range(8))["image"]
    facts = checked(blank, inputs=(), outputs=())  # the tensors' names and shapes come from the module
    return convert(module, name=blank.name, example=real[:2], samples={"": real}, manifest=facts).model


def manifest(name: str, task: Task) -> Manifest:
    """What a runner must know about a classifier of the digits."""
    return Manifest(
        name=name,
        format="onnx",
        inputs=(
            TensorSpec(
                name="image", dtype="float32", shape=("batch", 1, 28, 28), batch_axis=0, layout="NCHW"
            ),
        ),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 10), batch_axis=0, layout="NC"),),
        preprocess=MNIST_PREPROCESS,
        task=task.name,
        decode="logits",
        labels=task.labels,
        licence="Apache-2.0",
    )


def _pictures(task: Task, directory: Path) -> list[Path]:
    """The first test pictures as PNG files."""
    pillow = require("PIL.Image", "image")
    paths = []
    with Scratch() as folder:
        for i, pixels in enumerate(next(iter(task.split("test").take(range(PICTURES)).values()))):
            draft = folder / "digit.png"
            pillow.fromarray(pixels).save(draft)
            files.write(directory / f"digit-{i}.png", draft.read_bytes())
            paths.append(directory / f"digit-{i}.png")
    return paths


def _row(path: Path, truth: str, predictor: Predictor) -> tuple[str, str, str, float]:
    found: Any = predictor(path, top=1)
    return str(path), truth, found.labels[0], float(found.scores[0])
