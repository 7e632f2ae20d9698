"""What ``/metrics`` says of a server: each model's requests, and the server's own room."""

from __future__ import annotations

from farthing.device.serving.server.core import Core
from farthing.device.watch import exposition, triton
from farthing.device.watch.exposition import Kind, Metric, Sample


def metrics(core: Core, held: int, with_triton: bool) -> list[Metric]:
    """The metrics of a server.

    Args:
        core: what it serves.
        held: bytes of requests and answers that it holds.
        with_triton: add those that Triton has too, by its names.
    """
    models = {
        (one.name, one.version): one.tally.monitor.performance(one.waiting)
        for one in core.repository.served()
    }
    return [
        *exposition.inference(models),
        *(triton.aliases(models) if with_triton else ()),
        _plain("ready", "gauge", "Whether requests should be sent here", core.ready),
        _plain("requests_in_flight", "gauge", "Requests that wait for their answer", core.under_way),
        _plain("requests_total", "counter", "Inference requests that have ended", core.done),
        _plain(
            "buffered_bytes", "gauge", "Bytes of requests, and of answers not yet taken, that are held", held
        ),
    ]


def _plain(name: str, kind: Kind, text: str, value: float) -> Metric:
    return Metric(name=f"farthing_server_{name}", kind=kind, text=text, samples=(Sample(value=int(value)),))
