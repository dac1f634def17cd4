"""Consumers against real servers: groups share, join late, go on where they stood, take over, and give up in the end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest

from introspect_service.consumer import Consumer
from introspect_service.events import DEAD_KEY, STREAM_KEY, AlertData, FailedData, SignalEvent
from introspect_service.reader import read


def event(number, *, alert=False):
    data = FailedData(model="m", reason="cancelled", message="")
    if alert:
        data = AlertData(model="m", level="answer", hallucination_risk=0.75, threshold=0.5, start=0, end=1, text="7")
    return SignalEvent.make("c", number, "/introspect/test", data)


def put(broker, *events):
    """Write events; the ids of their entries."""
    with broker.client() as client:
        return [client.xadd(STREAM_KEY, each.to_fields()) for each in events]


def pending(broker, group="g"):
    with broker.client() as client:
        return client.xpending(STREAM_KEY, group)["pending"]


@contextmanager
def consuming(handle, broker, **options):
    """A consumer of the group `g`, closed behind the test."""
    made = Consumer(handle, url=broker.url, **{"group": "g", "claim_seconds": 0.05, **options})
    yield made
    made.close()


def handled_by(broker, **options):
    """Sequence numbers that one run of a consumer handles until nothing comes any more."""
    heard = []
    with consuming(lambda e: heard.append(e.sequence), broker, **options) as consumer:
        consumer.run(idle_seconds=0.2)
    return heard


def test_a_group_that_joins_late_gets_all_that_is_there_and_goes_on_where_it_stood(broker):
    put(broker, *map(event, range(40)))
    assert handled_by(broker) == list(range(40))
    put(broker, event(40))
    assert handled_by(broker) == [40]
    assert handled_by(broker, group="another") == list(range(41))
    assert pending(broker) == 0


def test_a_new_group_can_begin_behind_an_entry_or_at_the_end_and_an_old_one_be_set_back(broker):
    ids = put(broker, *map(event, range(5)))
    assert handled_by(broker, start=ids[2]) == [3, 4]
    assert handled_by(broker, group="end", start="$") == []
    with consuming(print, broker) as consumer:
        consumer.rewind(ids[0])
    assert handled_by(broker) == [1, 2, 3, 4]
    assert [e.sequence for e in read(broker.url, start=ids[3], idle_seconds=0.1)] == [4]


def test_consumers_of_a_group_share_its_events_each_handled_once(broker):
    heard, lock, both = Counter(), threading.Lock(), threading.Barrier(2)
    workers = Counter()

    def work(name):
        first = True

        def handle(e):
            nonlocal first
            if first:  # neither may finish the work before the other has some of it
                both.wait(20)
                first = False
            with lock:
                heard[e.sequence] += 1
                workers[name] += 1

        with consuming(handle, broker, name=name, count=1, claim_seconds=60) as consumer:
            consumer.run(idle_seconds=0.5)

    put(broker, *map(event, range(60)))
    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert heard == dict.fromkeys(range(60), 1)
    assert set(workers) == {"a", "b"}


def test_what_a_dead_consumer_left_is_claimed_by_another(broker):
    ids = put(broker, *map(event, range(6)))
    with broker.client() as client:  # it reads, and is never heard of again
        client.xgroup_create(STREAM_KEY, "g", id="0")
        client.xreadgroup("g", "gone", {STREAM_KEY: ">"}, count=4)
        client.xdel(STREAM_KEY, ids[1])  # the stream has dropped one of them meanwhile
    time.sleep(0.1)
    heard = []
    with consuming(lambda e: heard.append(e.sequence), broker) as consumer:
        consumer.run(idle_seconds=0.3)
        assert sorted(heard) == [0, 2, 3, 4, 5]
        assert consumer.counters.claimed == 3
    assert pending(broker) == 0


def test_what_is_still_being_handled_is_not_claimed(broker):
    put(broker, event(0))
    with broker.client() as client:
        client.xgroup_create(STREAM_KEY, "g", id="0")
        client.xreadgroup("g", "slow", {STREAM_KEY: ">"})
    assert handled_by(broker, claim_seconds=60) == []
    assert pending(broker) == 1


def test_a_consumer_of_the_same_name_begins_with_what_it_left(broker):
    put(broker, *map(event, range(3)))
    with broker.client() as client:
        client.xgroup_create(STREAM_KEY, "g", id="0")
        client.xreadgroup("g", "me", {STREAM_KEY: ">"}, count=2)
    assert handled_by(broker, name="me", claim_seconds=60) == [0, 1, 2]


def test_a_handler_that_fails_is_tried_again_and_then_its_event_goes_to_the_dead_letters(broker):
    tries = Counter()

    def handle(e):
        tries[e.sequence] += 1
        if e.sequence == 1 or (e.sequence == 2 and tries[2] == 1):
            raise RuntimeError("no 1 please")

    ids = put(broker, *map(event, range(4)))
    with consuming(handle, broker, most_deliveries=3) as consumer:
        consumer.run(idle_seconds=1.0)
        counters = consumer.counters
    assert tries == {0: 1, 1: 3, 2: 2, 3: 1}
    assert (counters.handled, counters.failed, counters.dead) == (3, 4, 1)
    with broker.client() as client:
        ((_, letter),) = client.xrange(DEAD_KEY)
    assert (letter["deadentry"], letter["deadgroup"], letter["deadreason"]) == (ids[1], "g", "RuntimeError: no 1 please")
    assert SignalEvent.from_fields(letter) == SignalEvent.from_fields(event(1).to_fields() | {"time": letter["time"]})
    assert pending(broker) == 0


def test_an_event_that_kills_its_consumers_is_given_up_without_being_tried_again(broker):
    put(broker, event(0))
    with broker.client() as client:
        client.xgroup_create(STREAM_KEY, "g", id="0")
        (entry,) = client.xreadgroup("g", "first", {STREAM_KEY: ">"})[0][1]
        client.xclaim(STREAM_KEY, "g", "second", 0, [entry[0]])
    time.sleep(0.1)
    assert handled_by(broker, most_deliveries=2) == []
    with broker.client() as client:
        assert client.xrange(DEAD_KEY)[0][1]["deadreason"] == "not acknowledged in 2 deliveries"


def test_repeated_foreign_and_broken_entries_reach_no_handler(broker):
    again = event(0)
    put(broker, again, again, event(1, alert=True), event(2))
    with broker.client() as client:
        client.xadd(STREAM_KEY, {"type": "introspect.novelty.v9", "data": "{}"})
        client.xadd(STREAM_KEY, {"type": "introspect.failed.v1", "data": "not JSON"})
    heard = []
    with consuming(lambda e: heard.append(e.sequence), broker, types=["introspect.failed.v1"]) as consumer:
        consumer.run(idle_seconds=0.2)
        assert heard == [0, 2]
        assert (consumer.counters.repeated, consumer.counters.skipped, consumer.counters.dead) == (1, 2, 1)
    assert pending(broker) == 0


def test_a_server_that_is_killed_and_comes_back_empty_is_waited_for(broker):
    heard, there = [], threading.Event()

    def handle(e):
        heard.append(e.sequence)
        there.set()

    with consuming(handle, broker) as consumer:
        thread = threading.Thread(target=consumer.run)
        thread.start()
        try:
            put(broker, event(0))
            assert there.wait(20)
            there.clear()
            broker.kill()
            broker.start()
            put(broker, event(1))
            assert there.wait(20)
        finally:
            consumer.stop()
            thread.join(20)
        assert not thread.is_alive()
    assert heard == [0, 1]


def test_a_type_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"introspect\.alert\.v1.*got alert"):
        Consumer(print, group="g", types=["alert"])
