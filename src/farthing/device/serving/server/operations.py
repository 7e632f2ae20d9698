"""What a server offers besides inference, as plain data: HTTP and gRPC only write it down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection
from typing import Any

from msgspec import UNSET, UnsetType

import farthing
from farthing.device.serving.server.http import Refusal
from farthing.device.serving.server.protocol import EXTENSIONS, tensor_metadata
from farthing.device.serving.server.repository import Repository
from farthing.device.serving.service import Answer
from farthing.errors import FarthingError, ProtocolError, UnknownModelError


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions."""
    return {"name": "farthing", "version": farthing.__version__, "extensions": EXTENSIONS}


def model_metadata(repository: Repository, name: str, version: str) -> dict[str, Any]:
    """Tensors, versions and platform of a model.

    Raises:
        UnknownModelError: it is not served.
    """
    served = repository.find(name, version)
    return {
        "name": served.name,
        "versions": [one.version for one in repository.served() if one.name == served.name],
        "platform": served.facts.platform,
        "inputs": tensor_metadata(served.inputs),
        "outputs": tensor_metadata(served.outputs),
        "parameters": {"version": served.version, "digest": served.facts.digest},
    }


def statistics(repository: Repository, name: str = "", version: str = "") -> list[dict[str, Any]]:
    """What each version has done: of all models, of one, or of one version.

    Raises:
        UnknownModelError: one is named that is not served.
    """
    if name:
        repository.find(name, version)
    return [
        one.tally.statistics(one.name, one.version)
        for one in repository.served()
        if name in {"", one.name} and version in {"", one.version}
    ]


def index(repository: Repository, ready: bool) -> list[dict[str, str]]:
    """What is served, and, unless only that is asked for, what could not be and why."""
    lines = [line._asdict() for line in repository.index()]
    return [line for line in lines if line["state"] == "READY" or not ready]


async def load(repository: Repository, name: str, parameters: Collection[str]) -> None:
    """Load what now lies where a model is kept. It comes to its end even if the client goes away.

    Raises:
        ProtocolError: there are parameters.
        UnknownModelError: no model of that name lies there.
        Refusal: 422, it cannot be served.
    """
    if parameters:
        raise ProtocolError(
            f"parameters {sorted(parameters)} are not taken: what is loaded is what lies on the disk"
        )
    await _change(repository.load(name))


async def unload(repository: Repository, name: str, parameters: Collection[str]) -> None:
    """Serve a model no longer. It comes to its end even if the client goes away.

    Raises:
        ProtocolError: there are parameters other than ``unload_dependents``.
        UnknownModelError: it is not served.
    """
    others = set(parameters) - {"unload_dependents"}
    if others:
        raise ProtocolError(f"parameters {sorted(others)} are not taken")
    await _change(repository.unload(name))


async def _change(work: Awaitable[None]) -> None:
    try:
        await asyncio.shield(work)
    except UnknownModelError:
        raise
    except FarthingError as error:
        raise Refusal(422, str(error)) from error


def remarks(answer: Answer) -> dict[str, str | float] | UnsetType:
    """What there is to say about an answer that is not the plain one."""
    if answer.confidence is None and not answer.reason:
        return UNSET
    said: dict[str, str | float] = {"source": answer.source}
    if answer.confidence is not None:
        said["confidence"] = answer.confidence
    if answer.reason:
        said["reason"] = answer.reason
    return said
