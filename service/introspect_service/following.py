"""The engine as the service uses it: steps are heard where they are made, not on a thread for each caller."""

from __future__ import annotations

from collections.abc import Callable

from introspect.async_engine import AsyncEngine, Sink
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
