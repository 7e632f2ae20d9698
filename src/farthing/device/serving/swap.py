"""Swapped: a service whose inside can be exchanged while it answers."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

from farthing.device.serving.service import GRACE, Answer, Request, Service
from farthing.errors import ClosedError, FarthingError, ModelError
from farthing.model import TensorSpec


class Swapped(Service):
    """Passes requests to one service at a time, and to another after `swap`. No request is lost over it.

    Args:
        inner: what answers at first.
    """

    def __init__(self, inner: Service) -> None:
        self._inner = inner
        self._turn = threading.Lock()
        self._closers: list[threading.Thread] = []
        self._closed = False
        self.name, self.inputs, self.outputs = inner.name, inner.inputs, inner.outputs
        self.stateful = inner.stateful

    @property
    def inner(self) -> Service:
        """What answers now."""
        return self._inner

    @property
    def waiting(self) -> int:
        """See `Service.waiting`."""
        return self._inner.waiting

    def submit(self, request: Request) -> Future[Answer]:
        """See `Service.submit`."""
        while True:
            inner = self._inner
            future = inner.submit(request)
            if inner is self._inner or not _turned_away(future):
                return future

    def ask(self, request: Request) -> asyncio.Future[Answer]:
        """See `Service.ask`."""
        while True:
            inner = self._inner
            future = inner.ask(request)
            if inner is self._inner or not _turned_away(future):
                return future

    def swap(self, fresh: Service, grace: float = GRACE) -> threading.Thread:
        """Answer with another service from now on. The one before answers those it has, and is closed then.

        Args:
            fresh: what answers from now on; open and ready. It is closed if it is refused.
            grace: seconds that the one before may take for it.

        Returns:
            The thread that closes the one before; nobody needs to wait for it.

        Raises:
            ModelError: it takes or gives other tensors, or keeps a state where this one does not. Nothing has changed
                then.
            ClosedError: the service is closed.
        """
        try:
            self._check(fresh)
            return self._exchanged(fresh, grace)
        except FarthingError:
            fresh.close()
            raise

    def _check(self, fresh: Service) -> None:
        for what, ours, theirs in (
            ("takes", self.inputs, fresh.inputs),
            ("gives", self.outputs, fresh.outputs),
        ):
            if [_face(spec) for spec in ours] != [_face(spec) for spec in theirs]:
                raise ModelError(
                    f"{fresh.name} {what} {[_face(spec) for spec in theirs]}, but {self.name} {what} "
                    f"{[_face(spec) for spec in ours]}: its callers would be refused"
                )
        if fresh.stateful and not self.stateful:
            raise ModelError(
                f"{fresh.name} keeps a state from call to call, but {self.name} does not: it cannot take its place"
            )

    def _exchanged(self, fresh: Service, grace: float) -> threading.Thread:
        with self._turn:
            if self._closed:
                raise ClosedError(f"{self.name} is closed: nothing takes its place")
            before, self._inner = self._inner, fresh
            self.name = fresh.name
            closer = threading.Thread(
                target=before.close, args=(grace,), name=f"closing {before.name}", daemon=True
            )
            self._closers = [one for one in self._closers if one.is_alive()] + [closer]
            closer.start()
        return closer

    def close(self, grace: float = GRACE) -> None:
        """See `Service.close`."""
        with self._turn:
            self._closed = True
            closers = self._closers
        self._inner.close(grace)
        for closer in closers:
            closer.join(grace)


def _face(spec: TensorSpec) -> tuple[str, str, tuple[int | str, ...]]:
    """What callers see of a tensor; how a free axis is called does not matter to them."""
    return spec.name, spec.dtype, tuple(size if isinstance(size, int) else "any" for size in spec.shape)


def _turned_away(future: Future[Answer] | asyncio.Future[Answer]) -> bool:
    """Whether a request came too late for the service it was given to."""
    return future.done() and not future.cancelled() and isinstance(future.exception(), ClosedError)
