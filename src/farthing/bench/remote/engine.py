"""An engine on a board, used like one of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from numpy.typing import NDArray

from farthing.bench.remote import wire
from farthing.engines.base import Tensors, check_feeds
from farthing.errors import EngineError, LinkError
from farthing.links.ssh import printable
from farthing.model import Model, TensorSpec
from farthing.options import EngineOptions

if TYPE_CHECKING:
    from farthing.bench.remote.machine import Remote


class RemoteEngine:
    """A model in an engine of a board; see `farthing.engines.base.Engine`.

    If the connection is made anew the model is loaded anew; only a stream that has begun to keep a state is lost then,
    and says so.

    Attributes:
        machine: the board.
    """

    name: ClassVar[str] = ""
    formats: ClassVar[frozenset[str]] = frozenset()
    concurrency: ClassVar[Literal["threads", "serial"]] = "serial"
    _installed: ClassVar[str] = ""

    def __init__(
        self,
        machine: Remote,
        model: Model,
        options: EngineOptions,
        loaded: wire.Loaded,
        parent: Self | None = None,
    ) -> None:
        self.machine = machine
        self.inputs: Sequence[TensorSpec] = model.manifest.data_inputs
        self.outputs: Sequence[TensorSpec] = _outputs(model)
        self.stateful = loaded.stateful
        self.version = printable(loaded.version, 40)
        self._model, self._options, self._parent = model, options, parent
        self._handle = loaded.handle
        self._generation = machine.generation
        self._begun = False
        self._closed = False

    @property
    def label(self) -> str:
        """What it is, for people."""
        return f"{self._model.manifest.name} in {self.name}"

    def handle(self) -> int:
        """Its number on the board, where the model is loaded anew if the connection is another.

        Raises:
            EngineError: it is closed, or the state of its stream is lost.
        """
        if self._closed:
            raise EngineError("this engine is closed: open the model again")
        self.machine.talk()
        if self._generation != self.machine.generation:
            if self.stateful and self._begun:
                raise EngineError(
                    f"the connection to {self.machine.board.name} broke, and the state of this stream with it: "
                    "open a session() for another"
                )
            if self._parent:
                self._handle = streamed(self.machine, self._parent).handle
            else:
                self._handle = loaded(self.machine, self._model, self.name, self._options).handle
            self._generation = self.machine.generation
        return self._handle

    @classmethod
    def installed(cls) -> str:
        """See `Engine.installed`: what the board says."""
        return cls._installed

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        check_feeds(self.inputs, feeds)
        if self.stateful:
            handle, self._begun = self.handle(), True
            return self._ask(handle, feeds)
        return self.machine.steady(lambda: self._ask(self.handle(), feeds))

    def _ask(self, handle: int, feeds: Tensors) -> dict[str, NDArray[Any]]:
        _, answer = self.machine.talk().ask(
            wire.Run(handle=handle), wire.Yes, feeds, self.machine.limits.load
        )
        self._check(answer)
        return {spec.name: answer[spec.name] for spec in self.outputs}

    def _check(self, answer: Tensors) -> None:
        if set(answer) != {spec.name for spec in self.outputs}:
            raise LinkError(f"{self.machine.board.name} answers with other outputs than the model has")
        for spec in self.outputs:
            array = answer[spec.name]
            fits = len(array.shape) == len(spec.shape) and all(
                isinstance(size, str) or size == found
                for size, found in zip(spec.shape, array.shape, strict=True)
            )
            if array.dtype.name != spec.dtype or not fits:
                raise LinkError(
                    f"{self.machine.board.name} answers {spec.name!r} as {array.dtype} {list(array.shape)}, "
                    f"but the model gives {spec.dtype} {list(spec.shape)}"
                )

    def session(self) -> Self:
        """See `Engine.session`."""
        stream = self.machine.steady(lambda: streamed(self.machine, self))
        return type(self)(self.machine, self._model, self._options, stream, self._parent or self)

    def close(self) -> None:
        """See `Engine.close`; a board that is gone has closed it already."""
        if not self._closed and self._generation == self.machine.generation:
            self.machine.forget(self._handle)
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _outputs(model: Model) -> list[TensorSpec]:
    return [spec for spec in model.manifest.outputs if spec.role != "state"]


def opened(machine: Remote, model: Model, engine: str, options: EngineOptions) -> tuple[RemoteEngine, float]:
    """A model loaded on a board, and the milliseconds that took there."""
    found = machine.steady(lambda: loaded(machine, model, engine, options))
    # An engine's name and formats belong to its class.
    facts = {
        "name": printable(found.name, 40),
        "formats": frozenset({model.manifest.format}),
        "_installed": printable(found.version, 40),
    }
    kind: type[RemoteEngine] = type("RemoteEngine", (RemoteEngine,), facts)
    return kind(machine, model, options, found), found.load_ms


def loaded(machine: Remote, model: Model, engine: str, options: EngineOptions) -> wire.Loaded:
    """Have a model loaded; what is said of it must be true of the model that was sent."""
    machine.send(model)
    request = wire.Load(digest=model.digest, engine=engine, options=options)
    found, _ = machine.talk().ask(request, wire.Loaded, seconds=machine.limits.load)
    for specs, ours in ((found.inputs, model.manifest.data_inputs), (found.outputs, _outputs(model))):
        if [spec.name for spec in specs] != [spec.name for spec in ours]:
            raise LinkError(
                f"{machine.board.name} loaded a model with other tensors than the one it was sent"
            )
    if not 0 <= found.load_ms < 1e9:
        raise LinkError(f"{machine.board.name} says loading took {found.load_ms} ms, which makes no sense")
    return found


def streamed(machine: Remote, parent: RemoteEngine) -> wire.Loaded:
    """A stream of its own of an engine there."""
    return machine.talk().ask(wire.Session(handle=parent.handle()), wire.Loaded)[0]
