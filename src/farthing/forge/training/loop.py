"""The loop: epochs of steps, deterministic, with checkpoints; killed at any moment it goes on to the same weights."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import farthing
from farthing import files
from farthing.config import Section, plain
from farthing.errors import TrainingError
from farthing.forge.cache import key_of
from farthing.forge.training import checkpoint
from farthing.forge.training.losses import Loss, hitting
from farthing.forge.training.samples import Samples
from farthing.forge.training.schedule import Schedule
from farthing.forge.workshop import Workshop
from farthing.recipe import Progress

Array = NDArray[Any]
Clock = Callable[[], float]
SAVE_SECONDS = 30.0  # between checkpoints within an epoch
TELL_SECONDS = 5.0  # between words on how it goes within an epoch


class Epoch(Section, frozen=True, kw_only=True):
    """What one pass over the data gave.

    Attributes:
        number: from 1; ``total`` is how many there will be.
        loss: mean over the (augmented) samples, as they came.
        accuracy: share of them answered right, 0..1; None if the loss does not say.
    """

    number: int
    total: int
    loss: float
    accuracy: float | None = None


class History(Section, frozen=True, kw_only=True):
    """What a training gave, epoch by epoch."""

    epochs: tuple[Epoch, ...]


@dataclass
class Moment:
    """Where a training is, for its hooks.

    Attributes:
        module: what is trained.
        optimizer: what changes its weights.
        steps, epochs: how many there are in all.
        step, epoch: the present ones, from 0; after the last step, ``step`` is ``steps``.
        random: a generator for what a hook draws, seeded anew for each step.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    epochs: int
    step: int = 0
    epoch: int = 0
    random: torch.Generator = field(default_factory=torch.Generator)


class Hook:
    """What takes part in a training beside the loop; a subclass overrides what it needs.

    What a hook does must depend on the moment, the module and its own state alone; then a training that was killed goes
    on to the same weights.
    """

    def start(self, moment: Moment) -> None:
        """Before the first step of this process, once the state of an earlier one is restored."""

    def before_step(self, moment: Moment) -> None:
        """Before the outputs are computed."""

    def after_backward(self, moment: Moment) -> None:
        """The gradients are there, not yet clipped, and no weight has changed."""

    def after_step(self, moment: Moment) -> None:
        """The weights have changed; ``moment.step`` is still the same."""

    def after_epoch(self, moment: Moment) -> None:
        """The last step of an epoch is done; ``moment.epoch`` is still the same."""

    def state(self) -> dict[str, Any]:
        """What the hook must know to go on: tensors, numbers, text, and lists and maps of them."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave in an earlier process."""


def train(
    module: nn.Module,
    samples: Samples,
    loss: Loss,
    schedule: Schedule,
    *,
    workshop: Workshop | None = None,
    hooks: Sequence[Hook] = (),
    clock: Clock = time.monotonic,
) -> History:
    """Train a module in place; it is left in evaluation mode.

    With ``workshop.state`` it keeps a checkpoint there after each epoch, and each half minute of longer ones. The same
    call with the same module, killed at any moment and made again, goes on from there and gives the very weights that
    an undisturbed one gives; made once more when it is done, it gives them at once.

    Args:
        module: takes the inputs of a batch, gives one output or several. Parameters that do not require gradients stay.
        samples: what it is trained on.
        loss: of outputs and batch; if it is a module (with learned projections, say), its parameters are trained too.
        schedule: how.
        workshop: hears of progress, stage ``train``; keeps the checkpoint.
        hooks: take part, in their order.
        clock: seconds, for the time left.

    Raises:
        TrainingError: the loss or a weight is no longer a number, or there are no weights.
        TaskError: labels that the loss cannot use; samples that cannot be augmented so.
        StorageError: a checkpoint cannot be written.
    """
    with alone(schedule.threads):
        run = _Run(module, samples, loss, schedule, workshop or Workshop(), hooks, clock)
        run.resume()
        run.go()
    return History(epochs=tuple(run.epochs))


@contextlib.contextmanager
def alone(threads: int) -> Iterator[None]:
    """Set torch's threads for a ``with`` block; they and its random state are as before afterwards."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@dataclass
class _Sums:
    """Of the present epoch."""

    loss: float = 0.0
    right: float = 0.0
    seen: int = 0

    def epoch(self, number: int, total: int, judged: bool) -> Epoch:
        accuracy = self.right / self.seen if judged else None
        return Epoch(number=number, total=total, loss=self.loss / self.seen, accuracy=accuracy)


class _Run:
    def __init__(
        self,
        module: nn.Module,
        samples: Samples,
        loss: Loss,
        schedule: Schedule,
        workshop: Workshop,
        hooks: Sequence[Hook],
        clock: Clock,
    ) -> None:
        self.module, self.samples, self.loss, self.schedule = module, samples, loss, schedule
        self.workshop, self.hooks, self.clock = workshop, hooks, clock
        self.judge = hitting(loss)
        self.learned = loss if isinstance(loss, nn.Module) else nn.Module()
        both = [*module.parameters(), *self.learned.parameters()]
        self.parameters = [parameter for parameter in both if parameter.requires_grad]
        if not self.parameters:
            raise TrainingError(
                f"{samples.manifest.name} has no weights that could be trained: leave the steps that train out"
            )
        self.bf16 = schedule.in_bf16
        self.per_epoch = -(-len(samples) // schedule.batch)
        self.moment = Moment(
            module, _optimizer(self.parameters, schedule), self.per_epoch * schedule.epochs, schedule.epochs
        )
        self.epochs: list[Epoch] = []
        self.sums = _Sums()
        self.key = "" if workshop.state is None else self._key()
        self.saved, self.told = clock(), -math.inf
        self.started, self.first = clock(), 0

    # Going ------------------------------------------------------------------------------------------------------

    def go(self) -> None:
        moment = self.moment
        self.module.train()
        for hook in self.hooks:
            hook.start(moment)
        while moment.step < moment.steps:
            moment.epoch, place = divmod(moment.step, self.per_epoch)
            order = self._order(moment.epoch)
            for picks in order[place:]:
                self._step(picks)
            self._end_epoch()
        self.module.eval()

    def _order(self, epoch: int) -> list[Tensor]:
        """The samples of each step of an epoch, in batches of one size but for one sample."""
        shuffled = torch.randperm(len(self.samples), generator=self._random("order", epoch))
        return list(torch.tensor_split(shuffled, self.per_epoch))

    def _step(self, picks: Tensor) -> None:
        moment = self.moment
        self._seed(moment.step)
        for group in moment.optimizer.param_groups:
            _set(group, self.schedule, moment.step, moment.steps)
        self._each("before_step")
        batch = self.samples.batch(picks, self.schedule.augment, self._random("augment", moment.step))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            raw = self.module(*batch.inputs)
        outputs = [part.float() for part in ((raw,) if isinstance(raw, Tensor) else raw)]
        error = self.loss(outputs, batch)
        value = float(error.detach())
        if not math.isfinite(value):
            raise TrainingError(self._complaint("the loss is no longer a number"))
        moment.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(error)
        self._each("after_backward")
        if self.schedule.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.schedule.clip)
        moment.optimizer.step()
        self._each("after_step")
        if self.judge is not None:
            self.sums.right += float(self.judge.hits(outputs, batch).sum())
        self.sums.loss += value * len(picks)
        self.sums.seen += len(picks)
        moment.step += 1
        self._between()

    def _between(self) -> None:
        """Within an epoch: tell how it goes, and keep a checkpoint if the last one is old."""
        now, within = self.clock(), self.moment.step % self.per_epoch
        if within and now - self.told >= TELL_SECONDS:
            self._tell(
                self.sums.epoch(self.moment.epoch + 1, self.moment.epochs, self.judge is not None), now
            )
        if within and now - self.saved >= SAVE_SECONDS:
            self._save()

    def _end_epoch(self) -> None:
        self._check_weights()
        self._each("after_epoch")
        done = self.sums.epoch(self.moment.epoch + 1, self.moment.epochs, self.judge is not None)
        self.epochs.append(done)
        self.sums = _Sums()
        self._save()
        self._tell(done, self.clock())

    def _each(self, name: str) -> None:
        for hook in self.hooks:
            getattr(hook, name)(self.moment)

    # Chance -----------------------------------------------------------------------------------------------------

    def _random(self, what: str, number: int) -> torch.Generator:
        """Randomness that depends on the seed, its use and the step alone: nothing of it need be kept."""
        digest = files.digest(f"{self.schedule.seed} {what} {number}".encode())
        return torch.Generator().manual_seed(int(digest[:8], 16))  # torch's engine takes 32 bits

    def _seed(self, step: int) -> None:
        self.moment.random = self._random("hooks", step)
        torch.default_generator.manual_seed(self._random("dropout", step).initial_seed())

    # Failing ----------------------------------------------------------------------------------------------------

    def _check_weights(self) -> None:
        for name, tensor in self.module.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise TrainingError(self._complaint(f"{name} is no longer made of numbers"))

    def _complaint(self, what: str) -> str:
        number, within = self.moment.epoch + 1, self.moment.step % self.per_epoch + 1
        lr = self.schedule.rate(min(self.moment.step, self.moment.steps - 1), self.moment.steps)
        return (
            f"{what} in epoch {number} of {self.moment.epochs}, step {within} of {self.per_epoch}, at learning rate "
            f"{lr:.2g}: lower `lr` (now {self.schedule.lr:g}), or limit the gradients with `clip: 1.0`"
        )

    # Keeping ----------------------------------------------------------------------------------------------------

    def _key(self) -> str:
        """What decides the weights that come out, as far as this loop knows it."""
        weights = [checkpoint.digest_of(part.state_dict()) for part in (self.module, self.learned)]
        parts = [type(part).__qualname__ for part in (self.loss, *self.hooks)]
        versions = [farthing.__version__, str(torch.__version__)]
        return key_of(self.schedule, self.bf16, self.samples.digest, weights, parts, versions)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one of this training."""
        found = checkpoint.load(self.workshop.state, self.key) if self.workshop.state else None
        if found is None:
            return
        self.module.load_state_dict(found["module"])
        self.learned.load_state_dict(found["loss"])
        self.moment.optimizer.load_state_dict(found["optimizer"])
        self.moment.step = self.first = found["step"]
        self.moment.epoch = min(self.first // self.per_epoch, self.moment.epochs - 1)
        self.epochs = [Epoch(**fields) for fields in found["epochs"]]
        self.sums = _Sums(**found["sums"])
        for hook, state in zip(self.hooks, found["hooks"], strict=True):
            hook.restore(state)

    def _save(self) -> None:
        if self.workshop.state is None:
            return
        content = {
            "module": self.module.state_dict(),
            "loss": self.learned.state_dict(),
            "optimizer": self.moment.optimizer.state_dict(),
            "step": self.moment.step,
            "epochs": [plain(epoch) for epoch in self.epochs],
            "sums": vars(self.sums),
            "hooks": [hook.state() for hook in self.hooks],
        }
        checkpoint.save(self.workshop.state, self.key, content)
        self.saved = self.clock()

    # Speaking ---------------------------------------------------------------------------------------------------

    def _tell(self, epoch: Epoch, now: float) -> None:
        self.told = now
        moment = self.moment
        right = "" if epoch.accuracy is None else f", {epoch.accuracy:.1%} right"
        left = (moment.steps - moment.step) * (now - self.started) / max(1, moment.step - self.first)
        ending = f", {_duration(left)} left" if moment.step < moment.steps else ""
        text = f"epoch {epoch.number}/{epoch.total}: loss {epoch.loss:.3g}{right}{ending}"
        self.workshop.listener(Progress(stage="train", text=text, done=moment.step, total=moment.steps))


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60 % 60, whole // 3600
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole % 60:02} s"


def _optimizer(parameters: list[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, schedule.lr, momentum=0.9, weight_decay=schedule.weight_decay, nesterov=True
        )
    return torch.optim.AdamW(parameters, schedule.lr, weight_decay=schedule.weight_decay)


def _set(group: dict[str, Any], schedule: Schedule, step: int, steps: int) -> None:
    """Give a group of parameters the learning rate and momentum of a step."""
    group["lr"] = schedule.rate(step, steps)
    momentum = schedule.momentum(step, steps)
    if "betas" in group:
        group["betas"] = (momentum, group["betas"][1])
    else:
        group["momentum"] = momentum


@torch.no_grad()
def predict(module: nn.Module, inputs: Array, batch: int = 256) -> Array:
    """The first output of a module for many samples, in evaluation mode, float32; its mode is as before afterwards.

    Args:
        module: takes one input.
        inputs: float32, samples along the first axis.
        batch: samples at a time.
    """
    training = module.training
    module.eval()
    x = torch.from_numpy(np.ascontiguousarray(inputs, np.float32))
    answers = [module(part) for part in torch.split(x, batch)]
    module.train(training)
    return np.asarray(torch.cat([_first(answer).float() for answer in answers]).numpy())


def _first(answer: Tensor | Sequence[Tensor]) -> Tensor:
    return answer if isinstance(answer, Tensor) else answer[0]
