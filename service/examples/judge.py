"""Keeps score of a service from its stream: answers, alerts, mean confidence. `python service/examples/judge.py [redis://...]`.

Run it twice and the two share the work, for they are of one group; stop one and start it again and nothing is missed.
"""

from __future__ import annotations

import sys

from introspect_service.consumer import Consumer
from introspect_service.events import AlertData, CompletedData, SignalEvent
from introspect_service.reader import DEFAULT_URL

answers: list[float] = []
alerts: list[str] = []


def note(event: SignalEvent) -> None:
    """Take one event into the score."""
    if isinstance(event.data, AlertData):
        alerts.append(event.data.text)
    if isinstance(event.data, CompletedData):
        if event.data.introspection.confidence is not None:
            answers.append(event.data.introspection.confidence)
        mean = f"{sum(answers) / len(answers):.2f}" if answers else "unknown"
        sys.stdout.write(f"{event.subject}: {event.data.text!r}; mean confidence {mean}, {len(alerts)} alerts so far\n")
        sys.stdout.flush()


if __name__ == "__main__":
    Consumer(note, group="judge", url=sys.argv[1] if len(sys.argv) > 1 else DEFAULT_URL).run()
