"""The engine as the service uses it: steps are heard where they are made, not on a thread for each caller."""

from __future__ import annotations

import threading
from collections.abc import Callable

from introspect.async_engine import AsyncEngine, EngineClosedError, Sink
from introspect.types import Request


class FollowedEngine(AsyncEngine):
    """An `AsyncEngine` that calls back."""

    def follow(self, request: Request, sink: Sink) -> Callable[[], None]:
        """Run a request beside everything else that runs.

        Args:
            request: what to answer.
            sink: takes each step, or the error that ends the answer, on the engine's thread: it must not dally, nor raise.

        Returns:
            What ends the answer and frees its memory; call it when nobody listens any more, even behind its end.

        Raises:
            RequestError: the request cannot be served.
        """
        ticket = self._submit(self.encode(request), sink)
        return lambda: self._cancel(ticket)

    def _run(self) -> None:
        """As it is; but where not even the end of everything goes well, whoever still waits is told rather than left to wait."""
        try:
            super()._run()
        finally:
            with self._changed:
                left = [*self._tickets.values(), *self._coming] if self._thread in (threading.current_thread(), None) else []
                if left:
                    self._tickets.clear()
                    self._coming.clear()
                    self._scheduler = self._thread = None
            for ticket in left:
                ticket.sink(EngineClosedError("the engine failed"))
