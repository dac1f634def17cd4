"""The clock of the service's machine is set back an hour in mid-stream: order, repetition and resuming hang on nothing of it."""

from __future__ import annotations

from datetime import datetime, timedelta

from redis import Redis

from introspect_service import clock
from introspect_service.consumer import Consumer
from introspect_service.events import STREAM_KEY
from introspect_service.reader import read


def test_a_clock_set_back_changes_times_and_nothing_else(client, settings, make, valkey_server, monkeypatch):
    class AnHourAgo(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(hours=1)

    with Redis.from_url(valkey_server.connection_url, decode_responses=True) as server:
        before = server.xrevrange(STREAM_KEY, count=1)
    start = before[0][0] if before else "0"
    stream = client.chat.completions.create(model=settings.model, messages=make.messages(), max_tokens=60, stream=True)
    answer = next(stream).id
    for _ in range(10):
        next(stream)
    monkeypatch.setattr(clock, "datetime", AnHourAgo)
    for _ in stream:
        pass
    with Redis.from_url(valkey_server.connection_url, decode_responses=True) as server:
        entries = [(number, fields) for number, fields in server.xrange(STREAM_KEY, f"({start}") if fields["subject"] == answer]
    times = [datetime.fromisoformat(fields["time"]) for _, fields in entries]
    assert timedelta(minutes=59) < max(times) - times[-1] < timedelta(minutes=61)
    # ids and sequence count the answer's events; the stream's order is the server's.
    assert [fields["id"] for _, fields in entries] == [f"{answer}/{number}" for number in range(len(entries))]
    assert [fields["type"].split(".")[1] for _, fields in entries] == ["started", *["step"] * (len(entries) - 2), "completed"]
    assert len({number for number, _ in entries}) == len(entries)
    # Who goes on behind an entry from before the change misses nothing, and a group hands everything on once.
    seen = entries[1][0]
    resumed = [event.id for event in read(valkey_server.connection_url, start=seen, idle_seconds=0.3) if event.subject == answer]
    assert resumed == [fields["id"] for _, fields in entries[2:]]
    handled = []
    consumer = Consumer(lambda event: handled.append(event.id), group="clock", start=start, url=valkey_server.connection_url)
    consumer.run(idle_seconds=0.3)
    consumer.close()
    assert [name for name in handled if name.startswith(answer)] == [fields["id"] for _, fields in entries]
    assert consumer.counters.repeated == 0
    (completed,) = [fields for _, fields in entries if fields["type"].endswith("completed.v1")]
    assert '"seconds":-' not in completed["data"]
