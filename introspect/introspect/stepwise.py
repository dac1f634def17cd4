"""Work that is done a piece at a time: a model's forward call, paused between its layers.

A forward call cannot be left and entered again, but the thread that it runs on
can be made to wait. It and its caller take turns; they never run at the same time.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable

Pause = Callable[[int], None]
"""Called by the work after each piece with its cost; returns when the work may go on."""


class _StoppedError(BaseException):
    """Unwinds work that nobody waits for any more."""


class Stepwise:
    """Runs `work` on a thread of its own, and only while `advance` waits for it.

    Args:
        work: what to do; calls the function it is given after each piece.
    """

    def __init__(self, work: Callable[[Pause], None]) -> None:
        self._work, self._context = work, contextvars.copy_context()
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._left: int | None = None
        self._done = self._stopped = False
        self._problem: BaseException | None = None

    def advance(self, allowance: int | None) -> bool:
        """Do pieces until their cost reaches `allowance`, or all that is left; whether the work is done.

        Raises:
            BaseException: what the work raised.
        """
        self._left = allowance
        if self._thread is None and allowance is None:
            self._context.run(self._work, lambda _cost: None)
            self._done = True
        elif not self._done:
            self._hand_over()
        if self._problem is not None:
            raise self._problem
        return self._done

    def cancel(self) -> None:
        """Unwind the work where it waits."""
        self._stopped = True
        if self._thread is not None and not self._done:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="introspect-prefill", daemon=True)
            self._thread.start()
        self._go.release()
        self._back.acquire()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._context.run(self._work, self._pause)
        except _StoppedError:
            pass
        except BaseException as problem:  # noqa: BLE001 - raised again where the work is waited for
            self._problem = problem
        self._done = True
        self._back.release()

    def _pause(self, cost: int) -> None:
        if self._left is None:
            return
        self._left -= cost
        if self._left <= 0:
            self._back.release()
            self._go.acquire()
            if self._stopped:
                raise _StoppedError
