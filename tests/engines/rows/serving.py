"""A small server that is told what to do wrong: models are functions, answers are written as our own server does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from farthing.device.serving.server.protocol import decode, encode, tensor_metadata
from farthing.errors import ProtocolError
from farthing.model import TensorSpec
from rows import Array

LENGTH = "Inference-Header-Content-Length"


class Hosted(NamedTuple):
    """A model on a server."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    compute: Callable[[Mapping[str, Array]], Mapping[str, Array]]


class Told(NamedTuple):
    """What a server is told to answer instead of what it should."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Server:
    """Serves `models` by name at `url`; stops with the interpreter, or when it is told to.

    Attributes:
        models: name -> model; more may be added.
        seen: path and headers of each request.
        told: answers that go before the real ones, the first first.
        binary: whether the binary tensor extension is announced and used.
    """

    def __init__(self, models: Mapping[str, Hosted] | None = None, binary: bool = True) -> None:
        self.models = dict(models or {})
        self.binary = binary
        self.seen: list[tuple[str, Mapping[str, str], bytes]] = []
        self.told: list[Told] = []
        self.connections = 0
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = 30

            def setup(self) -> None:
                served.connections += 1
                super().setup()

            def do_GET(self) -> None:
                self._answer(b"")

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def _answer(self, body: bytes) -> None:
                served.seen.append((self.path, dict(self.headers), body))
                told = served.told.pop(0) if served.told else served.answer(self.path, body, self.headers)
                self.send_response(told.status)
                for name, value in {"Content-Length": str(len(told.body)), **told.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(told.body)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: Any) -> None:
                pass  # clients that vanish

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def answer(self, path: str, body: bytes, headers: Any) -> Told:
        """What a server of the Open Inference Protocol says."""
        if path == "/v2":
            known = ["binary_tensor_data"] if self.binary else []
            return said({"name": "test", "version": "0", "extensions": known})
        _, version, _, name, *rest = path.split("/")
        model = self.models.get(name)
        if model is None or version != "v2":
            return said({"error": f"unknown model {name}"}, 404)
        if rest[-1:] != ["infer"]:
            tensors = {
                side: [
                    {"name": one.name, "datatype": one.datatype, "shape": one.shape}
                    for one in tensor_metadata(getattr(model, side))
                ]
                for side in ("inputs", "outputs")
            }
            return said({"name": name, "versions": ["1"], "platform": "python", **tensors})
        return self._infer(name, model, body, headers.get(LENGTH))

    def _infer(self, name: str, model: Hosted, body: bytes, length: str | None) -> Told:
        try:
            asked = decode(body, None if length is None else int(length))
            data, header = encode(name, "1", asked, model.compute(asked.feeds))
        except ProtocolError as error:
            return said({"error": str(error)}, 400)
        return Told(200, data, {} if header is None else {LENGTH: str(header)})


def said(content: object, status: int = 200) -> Told:
    return Told(status, json.dumps(content).encode(), {"Content-Type": "application/json"})
