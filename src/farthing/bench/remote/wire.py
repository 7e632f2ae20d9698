"""What this machine and the worker on a board say to each other: frames of a JSON header and the bytes of tensors.

A frame is the header's length (4 bytes, little-endian), the header, and the tensors one after another in the order
the header lists them, each in C order, little-endian. Nothing in it is code. Every length is checked against a limit
before memory is set aside for it, every header against the types below.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.bench.racing import Rule
from farthing.config import Section
from farthing.engines.base import Tensors
from farthing.errors import FeedError, LinkError
from farthing.model import DTYPES, TensorSpec
from farthing.options import EngineOptions
from farthing.target import Target

PROTOCOL = 2
HEADER_BYTES = 1 << 20
TENSOR_BYTES = 256 << 20
TENSORS = 1024
Array = NDArray[Any]
Message = TypeVar("Message")
_NUMERIC = DTYPES - {"str", "bfloat16"}
_LENGTH = struct.Struct("<I")


class Hello(Section, frozen=True, kw_only=True, tag="hello"):
    """The first request: who asks, and how many seconds to wait while another measures; negative only looks."""

    protocol: int
    who: str
    wait: float


class OfModel(Section, frozen=True, kw_only=True):
    """A request about a model, named by its digest."""

    digest: str


class Has(OfModel, frozen=True, kw_only=True, tag="has"):
    """Is a model there?"""


class Part(OfModel, frozen=True, kw_only=True, tag="part"):
    """The next piece of a model's file (tensor ``part``); ``total`` is the size of the whole model, in bytes."""

    name: str
    total: int


class Adopt(OfModel, frozen=True, kw_only=True, tag="adopt"):
    """All parts were sent: check the model and keep it."""


class OfRuntime(OfModel, frozen=True, kw_only=True):
    """A request about a model in an engine that is to be started for it."""

    engine: str
    options: EngineOptions


class Load(OfRuntime, frozen=True, kw_only=True, tag="load"):
    """Load a model into an engine."""


class Memory(OfRuntime, frozen=True, kw_only=True, tag="memory"):
    """Peak memory of a process that loads and runs a model."""


class OfEngine(Section, frozen=True, kw_only=True):
    """A request about an engine that is open, named by its handle."""

    handle: int


class Run(OfEngine, frozen=True, kw_only=True, tag="run"):
    """Compute; the feeds are the frame's tensors, as the outputs are the answer's."""


class Session(OfEngine, frozen=True, kw_only=True, tag="session"):
    """A stream of its own."""


class Close(OfEngine, frozen=True, kw_only=True, tag="close"):
    """Give an engine's memory back."""


class Keep(Section, frozen=True, kw_only=True, tag="keep"):
    """Which of these feeds are not there? All others may go."""

    feeds: tuple[str, ...]


class Feed(Section, frozen=True, kw_only=True, tag="feed"):
    """A feed to race on: the frame's tensors."""

    key: str


class Entry(Section, frozen=True, kw_only=True):
    """An engine in a race, and the feeds it runs on in turn."""

    handle: int
    feeds: tuple[str, ...]


class Race(Section, frozen=True, kw_only=True, tag="race"):
    """Time engines interleaved; ``metered_batch`` is the samples of a call where one engine's energy is asked for."""

    entries: tuple[Entry, ...]
    rule: Rule
    metered_batch: int | None = None


class Serve(Section, frozen=True, kw_only=True, tag="serve"):
    """Answer queries that arrive at random, so many a second, with so many threads."""

    entry: Entry
    rate: float
    rule: Rule
    workers: int


class Heat(Section, frozen=True, kw_only=True, tag="heat"):
    """How hot is it?"""


Request = (
    Hello | Has | Part | Adopt | Load | Run | Session | Close | Keep | Feed | Race | Serve | Memory | Heat
)


class Busy(Section, frozen=True, kw_only=True, tag="busy"):
    """Another measures there; this worker waits."""

    who: str
    since: str


class Ready(Section, frozen=True, kw_only=True, tag="ready"):
    """What the machine is and has.

    Attributes:
        protocol, version: of the worker and of Farthing there.
        stamp: digest of the files of Farthing that were installed there; empty if nobody noted it.
        python: version of its Python.
        target, description, meter: as `farthing.bench.machine.Machine` has them.
        engines: engine -> version of its package.
        temperature: degrees Celsius.
        load, governors, turbo: as `farthing.sysfs` reads them.
        holder, since: who measures there now, for a worker that only looks.
        models_mb: size of the models kept there.
        fell: the entrant whose turn it was when the worker before this one died in a race; None if it did not.
    """

    protocol: int
    version: str
    stamp: str
    python: str
    target: Target
    description: str
    meter: str
    engines: dict[str, str]
    temperature: float | None
    load: float | None = None
    governors: tuple[str, ...] = ()
    turbo: bool | None = None
    holder: str = ""
    since: str = ""
    models_mb: float = 0.0
    fell: int | None = None


class Yes(Section, frozen=True, kw_only=True, tag="yes"):
    """Done; outputs of a run come with it."""


class Held(Section, frozen=True, kw_only=True, tag="held"):
    """Whether a model is there."""

    there: bool


class Lacking(Section, frozen=True, kw_only=True, tag="lacking"):
    """The feeds that are not there."""

    missing: tuple[str, ...]


class Loaded(Section, frozen=True, kw_only=True, tag="loaded"):
    """An engine is ready."""

    handle: int
    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    stateful: bool
    load_ms: float


class Tick(Section, frozen=True, kw_only=True, tag="tick"):
    """How far a race is."""

    done: int
    total: int


class Over(Section, frozen=True, kw_only=True):
    """A run is over: degrees Celsius before and after it."""

    before: float | None
    after: float | None


class Raced(Over, frozen=True, kw_only=True, tag="raced"):
    """A race is over: calls made by each engine; tensors ``calls0``, ``rounds0``, ``calls1`` ... hold seconds."""

    made: tuple[int, ...]
    energy_mj: float | None


class Served(Over, frozen=True, kw_only=True, tag="served"):
    """A server run is over after so many seconds; the tensor ``latencies`` has those of each query."""

    seconds: float


class Peak(Section, frozen=True, kw_only=True, tag="peak"):
    """Peak memory, and what of it the model added, MB."""

    peak: float
    added: float


class Warmth(Section, frozen=True, kw_only=True, tag="warmth"):
    """Degrees Celsius; None where there is no sensor."""

    celsius: float | None


class Failed(Section, frozen=True, kw_only=True, tag="failed"):
    """The name of an error of `farthing.errors`, and its message; of a race the entrant that failed."""

    kind: str
    message: str
    entrant: int | None = None


Answer = Busy | Ready | Yes | Held | Lacking | Loaded | Tick | Raced | Served | Peak | Warmth | Failed


class TensorHead(Section, frozen=True, kw_only=True):
    """A tensor that follows the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in _NUMERIC:
            raise ValueError(f"tensors of {self.dtype!r} are not sent")
        if len(self.shape) > 32 or any(size < 0 for size in self.shape):
            raise ValueError(f"{list(self.shape)} is no shape")

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Header(Section, Generic[Message], frozen=True, kw_only=True):
    """A frame's header; an answer has the number of the request it answers."""

    number: int
    message: Message
    tensors: tuple[TensorHead, ...] = ()


def pack(number: int, message: Request | Answer, tensors: Tensors | None = None) -> list[bytes | memoryview]:
    """A frame, in pieces to be written one after another.

    Raises:
        FeedError: a tensor is of a type that is not sent, or there is too much.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in (tensors or {}).items()}
    for name, array in arrays.items():
        if array.dtype.name not in _NUMERIC or not array.dtype.isnative:
            raise FeedError(f"tensor {name!r} is {array.dtype}: only plain numbers are sent to a board")
    if sum(array.nbytes for array in arrays.values()) > TENSOR_BYTES or len(arrays) > TENSORS:
        raise FeedError(f"more than {TENSOR_BYTES >> 20} MiB of tensors at once: use a smaller batch")
    heads = tuple(
        TensorHead(name=name, dtype=array.dtype.name, shape=array.shape) for name, array in arrays.items()
    )
    header = msgspec.json.encode(Header(number=number, message=message, tensors=heads))
    if len(header) > HEADER_BYTES:
        raise FeedError(f"a frame's header has {len(header)} bytes, more than a board takes")
    bodies = [array.reshape(-1).view(np.uint8).data for array in arrays.values() if array.nbytes]
    return [_LENGTH.pack(len(header)) + header, *bodies]


def unpack(read_into: Callable[[memoryview], None], kind: Any) -> tuple[int, Any, dict[str, Array]]:
    """Read one frame: its number, its message and its tensors.

    Args:
        read_into: fills a buffer, or raises.
        kind: `Request` or `Answer`.

    Raises:
        LinkError: it is longer than its limits, or not of the kind.
    """
    length = _LENGTH.unpack(_bytes(read_into, _LENGTH.size))[0]
    if length > HEADER_BYTES:
        raise LinkError(f"a frame with a header of {length} bytes came: refused")
    try:
        header: Header[Any] = msgspec.json.decode(_bytes(read_into, length), type=Header[kind])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise LinkError(f"a frame came that is none of ours: {error}") from error
    heads = header.tensors
    if len(heads) > TENSORS or sum(head.bytes for head in heads) > TENSOR_BYTES:
        raise LinkError(f"a frame with more than {TENSOR_BYTES >> 20} MiB came: refused")
    if len({head.name for head in heads}) != len(heads):
        raise LinkError("a frame came with two tensors of one name: refused")
    return header.number, header.message, {head.name: _tensor(read_into, head) for head in heads}


def _bytes(read_into: Callable[[memoryview], None], count: int) -> bytearray:
    buffer = bytearray(count)
    if count:
        read_into(memoryview(buffer))
    return buffer


def _tensor(read_into: Callable[[memoryview], None], head: TensorHead) -> Array:
    try:
        array = np.empty(head.shape, head.dtype)
    except ValueError as error:  # no bytes, but axes beyond all measure
        raise LinkError(f"a frame came with a tensor of shape {list(head.shape)}: refused") from error
    if array.nbytes:
        read_into(array.reshape(-1).view(np.uint8).data)
    if array.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise LinkError(f"the truth values in tensor {head.name!r} are none")
    return array


def key_of(feed: Mapping[str, Array]) -> str:
    """A feed's name: SHA-256 over its tensors."""
    found = hashlib.sha256()
    for name, array in sorted(feed.items()):
        found.update(repr((name, array.dtype.str, array.shape)).encode())
        found.update(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
    return found.hexdigest()
