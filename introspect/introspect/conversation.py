"""Several turns of a conversation on one cache: pictures and earlier turns are not prefilled again."""

from __future__ import annotations

from collections.abc import Generator

from introspect.answer import Answer
from introspect.engine import Engine
from introspect.types import Request, StepTrace


class Conversation:
    """Keeps the cache of a turn for the next one.

    The next turn's tokens that are not in it are fed one by one through decode steps. A turn that
    does not continue the last one (other pictures, another budget, another beginning) is prefilled anew.
    Under a budget the entries that were kept of earlier turns stay as they are: only what is
    new comes on top, until the slack is full.

    Args:
        engine: the model and its limits.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._scheduler = engine, engine.scheduler()
        self._last: Answer | None = None
        self.reused = 0
        """Tokens of the latest turn's prompt that came from the cache."""

    def send(self, request: Request) -> Generator[StepTrace, None, None]:
        """Answer a request whose messages are the whole conversation so far. Closing the iterator gives the cache up.

        Raises:
            RequestError: it cannot be served; the cache is as it was.
        """
        prompt = self._engine.encode(request)
        answer, self.reused = self._scheduler.continue_with(prompt, self._last)
        self._last = None
        try:
            while self._last is None:
                for _, event in self._scheduler.step():
                    if isinstance(event, Exception):
                        raise event
                    if event.finish_reason is not None:
                        self._last = answer
                    yield event
        finally:
            if self._last is not answer:
                self._scheduler.cancel(answer)

    def close(self) -> None:
        """Free the cache."""
        if self._last is not None:
            self._scheduler.release(self._last)
            self._last = None
