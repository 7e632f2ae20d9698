"""Another machine as an engine: any server of the Open Inference Protocol, or one like TensorFlow Serving.

A model of format ``oip`` is a file that says where its server is and how patient to be; the computing is done there.
"""

from __future__ import annotations

import netrc
import re
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from farthing.config import convert, parse, plain, to_json
from farthing.engines.base import (
    FileTensor,
    Tensors,
    check_feeds,
    check_manifest,
    check_options,
    refuse_closed,
    spec_of,
)
from farthing.engines.openinference import DATATYPES
from farthing.engines.remote.client import Client, Patience, RemoteStats
from farthing.engines.remote.inference import OpenInference, Place, Served
from farthing.engines.remote.tfserving import DEFAULT, TensorFlowServing
from farthing.engines.remote.transport import Address, Pool, address_of
from farthing.errors import ConfigError, EngineError, FarthingError, ModelError, UnsupportedError
from farthing.model import Manifest, Model, TensorSpec
from farthing.options import EngineOptions

FILE = "remote.json"
CERTIFICATE = "ca.pem"
MAX_FILE_BYTES = 1 << 20
Clock = Callable[[], float]


class Remote(Patience, frozen=True, kw_only=True):
    """Content of the file of an ``oip`` model. It holds no token.

    Attributes:
        url: of the server, as in ``https://host:8000``; a path in it goes before that of the protocol.
        model: its name there.
        version: of the model; empty: the server's choice, which may change.
        protocol: ``oip`` (Open Inference Protocol, REST v2) or ``tensorflow_serving`` (REST v1).
        signature: of a TensorFlow model.
        binary: tensors go as raw bytes; None: if the server announces that it takes them.
        lazy: open without asking the server; the first ``run`` does. For devices that start before their network.
        check_certificate: of an https server. False lets anybody in between read and answer.
    """

    url: str
    model: str
    version: str = ""
    protocol: Literal["oip", "tensorflow_serving"] = "oip"
    signature: str = DEFAULT
    binary: bool | None = None
    lazy: bool = False
    check_certificate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        address_of(self.url)
        if not self.model:
            raise ConfigError("the name of the model on the server is empty")


class OipEngine:
    """Runs an ``oip`` model: each call is a request, over connections that are kept. Sessions share them.

    Args:
        model: its first file is a `Remote`; a file ``ca.pem`` beside it vouches for the server's certificate.
        options: one thread, the caller's.
        token: bearer token; None: the password of the entry with the login ``bearer`` for the host in ``~/.netrc``, if
            there is one and it does not go over plain HTTP to another machine.
        clock: seconds that do not go back.
        sleep: waits between retries.

    Raises:
        ModelError: the file is no `Remote`, or the manifest is not what the server says.
        EngineError: options it cannot honour, or state tensors.
        RemoteError: the server does not answer, or refuses.
    """

    name: ClassVar[str] = "oip"
    formats: ClassVar[frozenset[str]] = frozenset({"oip"})
    concurrency: ClassVar[Literal["threads", "serial"]] = "threads"
    stateful = False

    def __init__(
        self,
        model: Model,
        options: EngineOptions,
        *,
        token: str | None = None,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        check_options("a server", options)
        if options.threads != 1 or options.providers:
            raise EngineError(
                "the server computes, with threads and providers of its own: threads=1, no providers"
            )
        manifest = model.manifest
        if any(spec.role == "state" for spec in (*manifest.inputs, *manifest.outputs)):
            raise EngineError(f"{model.path} has state tensors: a server keeps no streams for us")
        refuse_types(model)
        remote = _read(model)
        self.inputs: Sequence[TensorSpec] = manifest.inputs
        self.outputs: Sequence[TensorSpec] = manifest.outputs
        authority = model.path / CERTIFICATE if CERTIFICATE in manifest.files else None
        self._shared: _Shared | None = _Shared(
            model, remote, client_of(remote, token, authority, clock, sleep)
        )
        if not remote.lazy:
            try:
                self._shared.served(self._shared.client.deadline())
            except FarthingError:
                self.close()
                raise

    @classmethod
    def installed(cls) -> str:
        """See `Engine.installed`: it needs nothing; the version is that of the protocol."""
        return "2"

    @property
    def version(self) -> str:
        """Name and version of the server, as far as it said them."""
        known = self._shared.known if self._shared else None
        return known.server if known else "not asked yet"

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """See `Engine.run`.

        Raises:
            CircuitOpenError: the server failed several times in a row and is left alone; says until when.
            RemoteError: it cannot be reached, did not answer in time, refused, or answered something else.
        """
        check_feeds(self.inputs, feeds)
        shared = self._shared
        if shared is None:
            refuse_closed()
        deadline = shared.client.deadline()
        binary = shared.served(deadline).binary if shared.remote.binary is None else shared.remote.binary
        return shared.speaker.infer(feeds, self.inputs, self.outputs, binary, deadline)

    def stats(self) -> RemoteStats:
        """What was asked of the server so far, by all sessions."""
        if self._shared is None:
            refuse_closed()
        return self._shared.client.stats()

    def session(self) -> Self:
        """Another handle on the same server, with the same connections and the same breaker."""
        if self._shared is None:
            refuse_closed()
        self._shared.join()
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def close(self) -> None:
        """Close the connections, with the last session."""
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Shared:
    """What the sessions of an engine have in common."""

    def __init__(self, model: Model, remote: Remote, client: Client) -> None:
        self.remote, self.client = remote, client
        self.speaker = speaker_of(remote, client)
        self.known: Served | None = None
        self._model = model
        self._users = 1
        self._lock, self._asking = threading.Lock(), threading.Lock()

    def served(self, deadline: float) -> Served:
        """What the server says of the model, asked once and held against the manifest."""
        if self.known is not None:
            return self.known
        self.client.wait_for(self._asking, deadline)
        try:
            if self.known is None:
                self.known = self._asked(deadline)
            return self.known
        finally:
            self._asking.release()

    def _asked(self, deadline: float) -> Served:
        served, manifest = self.speaker.served(deadline), self._model.manifest
        if served.inputs or served.outputs:
            check_manifest(
                self._model,
                _in_order(served.inputs, manifest.inputs),
                _in_order(served.outputs, manifest.outputs),
            )
        return served

    def join(self) -> None:
        """One more session."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """One session less."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self.client.close()


def remote_model(
    url: str,
    *,
    name: str = "",
    inputs: Sequence[TensorSpec] = (),
    outputs: Sequence[TensorSpec] = (),
    token: str | None = None,
    ca: Path | None = None,
    path: Path | None = None,
    **settings: Any,
) -> Model:
    """A model that is computed by a server, which is asked what it takes and gives.

    A first axis of free size is taken as the batch.

    Args:
        url: of the model, as in ``https://host:8000/v2/models/NAME`` or, for servers like TensorFlow Serving,
            ``http://host:8501/v1/models/NAME``; each may go on with ``/versions/VERSION``.
        name: of the model here; by default as there.
        inputs, outputs: the tensors, for servers that do not say which.
        token: see `OipEngine`; it is not kept.
        ca: file of certificates, one of which vouches for the server's; it is kept with the model.
        path: directory to write; None makes a temporary one that lives as long as the returned model.
        **settings: further fields of `Remote`.

    Raises:
        ConfigError: not the URL of a model, or settings that there are not.
        RemoteError: the server does not answer, or refuses.
        ModelError: it does not say what it takes, or something that cannot be.
        StorageError: ``path`` cannot be written.
    """
    remote = _located(url, settings)
    client = client_of(remote, token, ca)
    try:
        served = speaker_of(remote, client).served(client.deadline())
    finally:
        client.close()
    try:
        manifest = Manifest(
            name=name or remote.model,
            format="oip",
            inputs=_specs(served.inputs, inputs, url),
            outputs=_specs(served.outputs, outputs, url),
        )
    except ConfigError as error:
        raise ModelError(f"{url} describes no model that can be: {error}") from error
    content: dict[str, bytes | Path] = {FILE: to_json(remote)}
    return Model.create(manifest, content | ({CERTIFICATE: ca} if ca else {}), path)


_MODEL_URL = re.compile(
    r"(?P<server>.+)/(?P<v>v[12])/models/(?P<model>[^/?#]+)(/versions/(?P<version>[^/?#]+))?/?"
)


def _located(url: str, settings: dict[str, Any]) -> Remote:
    """What the URL of a model says, and the settings."""
    found = _MODEL_URL.fullmatch(url)
    if found is None:
        raise ConfigError(
            f"{url!r} is not the URL of a served model: give one like http://host:8000/v2/models/NAME "
            "(Open Inference Protocol) or http://host:8501/v1/models/NAME (TensorFlow Serving)"
        )
    address_of(found["server"])  # what is wrong with it is said without repeating it: there may be a password
    told = {
        "url": found["server"],
        "model": unquote(found["model"]),
        "version": unquote(found["version"] or ""),
        "protocol": "oip" if found["v"] == "v2" else "tensorflow_serving",
    }
    return convert({**plain(settings), **told}, Remote, url)


def _specs(tensors: Sequence[FileTensor], told: Sequence[TensorSpec], url: str) -> tuple[TensorSpec, ...]:
    """What the server says, and where it says nothing what its user does."""
    if not tensors and told:
        return tuple(told)
    if not tensors or any(one.shape is None for one in tensors):
        raise ModelError(
            f"{url} does not say which tensors the model takes and gives: say it yourself "
            "(inputs and outputs, as in a manifest)"
        )
    return tuple(spec_of(one.name, one.dtype, one.shape or ()) for one in tensors)


def _in_order(tensors: Sequence[FileTensor], specs: Sequence[TensorSpec]) -> list[FileTensor]:
    """Tensors in the order of the manifest, which a server need not keep."""
    order = [spec.name for spec in specs]
    return sorted(tensors, key=lambda one: order.index(one.name) if one.name in order else len(order))


def speaker_of(remote: Remote, client: Client) -> OpenInference | TensorFlowServing:
    """What speaks the server's protocol."""
    place = Place(remote.model, remote.version, remote.signature)
    return OpenInference(client, place) if remote.protocol == "oip" else TensorFlowServing(client, place)


def client_of(
    remote: Remote,
    token: str | None,
    ca: Path | None,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Client:
    """A client of the server; nothing is sent yet.

    Raises:
        ConfigError: certificates, a token or a ``~/.netrc`` that cannot be read.
    """
    address = address_of(remote.url)
    pool = Pool(address, _tls(remote, ca) if address.tls else None, clock)
    known = token_of(address) if token is None else token
    return Client(pool, remote, known, clock, sleep, np.random.default_rng().random)


def _tls(remote: Remote, ca: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"cannot read certificates from {ca}: {error.strerror or error}") from error
    if not remote.check_certificate:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def token_of(address: Address) -> str:
    """The bearer token that the user keeps for this host; not for plain HTTP to another machine."""
    place = Path("~/.netrc").expanduser()
    if not (address.tls or address.local) or not place.is_file():
        return ""
    try:
        login, _, token = netrc.netrc().hosts.get(address.host, ("", "", ""))
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {place}: {error}") from error
    return token or "" if login == "bearer" else ""


def refuse_types(model: Model) -> None:
    """Refuse tensors that no protocol can carry.

    Raises:
        UnsupportedError: complex numbers or bfloat16.
    """
    for spec in (*model.manifest.inputs, *model.manifest.outputs):
        if spec.dtype not in DATATYPES:
            raise UnsupportedError(f"{model.path}: {spec.name!r} is {spec.dtype}, which servers do not take")


def _read(model: Model) -> Remote:
    try:
        raw = model.file.read_bytes()
        if len(raw) > MAX_FILE_BYTES:
            raise ModelError(f"{model.file} is too large for the description of a server: refused")
        return convert(parse(raw, ".json", str(model.file)), Remote, str(model.file))
    except OSError as error:
        raise ModelError(f"cannot read {model.file}: {error.strerror or error}") from error
    except ConfigError as error:
        raise ModelError(f"this does not describe a server: {error}") from error
