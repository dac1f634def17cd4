"""Prometheus metrics: what LLM servers measure, by vLLM's names behind `introspect_`, and what only this one knows.

Counted where the client sees it: a token's time is when its chunk can be sent, which is when its signal is final. No
label ever holds anything of a request.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from introspect.callers import ManyCallers
from introspect_service.bus import SignalBus
from introspect_service.generation import Begun, Ended, Progress, Token
from introspect_service.probe_sets import ProbeSets
from introspect_service.records import RecordStore
from introspect_service.runner import Failed, Listener, Runner
from introspect_service.sse import Viewers

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_SHARES = tuple(step / 10 for step in range(1, 11))


class Metrics:
    """All metrics of one service, in a registry of their own.

    Args:
        runner: knows who waits.
        engine: knows how it is itself.
        bus: counts events.
        records: knows what is remembered.
        viewers: knows how many streams are open.
        probes: knows who scores.
    """

    def __init__(
        self, runner: Runner, engine: ManyCallers, bus: SignalBus, records: RecordStore, viewers: Viewers, probes: ProbeSets
    ) -> None:
        registry = CollectorRegistry()

        def histogram(name: str, words: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"introspect_{name}", words, buckets=buckets, registry=registry)

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"introspect_{name}", words, labels, registry=registry)

        self._registry = registry
        self._first = histogram("time_to_first_token_seconds", "From the request's arrival to its first token.")
        self._between = histogram("inter_token_latency_seconds", "Between two tokens of an answer.", _TOKEN_SECONDS)
        self._whole = histogram("e2e_request_latency_seconds", "From the request's arrival to its last token.")
        self._prefill = histogram("request_queue_and_prefill_seconds", "From the request's arrival until its prompt was read.")
        self._prompt = counter("prompt_tokens", "Tokens of prompts that were read.")
        self._generated = counter("generation_tokens", "Tokens of answers, end tokens included.")
        self._success = counter("request_success", "Answers that were completed.", "finished_reason")
        self._failure = counter("request_failure", "Answers that were not completed.", "reason")
        self.rejections = counter("admission_rejections", "Requests that were turned away.", "reason")
        self._confidence = histogram("answer_confidence_ratio", "Confidence of answers.", _SHARES)
        self._risk = histogram("answer_hallucination_risk_ratio", "Hallucination risk of answers.", _SHARES)
        self._outside = counter("answers_outside_domain", "Answers to prompts unlike those of the calibration.")
        registry.register(_Now(runner, engine, bus, records, viewers, probes))

    def text(self) -> bytes:
        """All of them, in Prometheus's text format."""
        return generate_latest(self._registry)

    def listener(self) -> Listener:
        """What measures one request, which has arrived now."""
        arrived = last = time.perf_counter()
        tokens = 0

        def hear(what: Progress | Failed) -> None:
            nonlocal last, tokens
            now = time.perf_counter()
            match what:
                case Begun(prompt):
                    self._prefill.observe(now - arrived)
                    self._prompt.inc(len(prompt.token_ids))
                case Token():
                    tokens += 1
                    (self._first if tokens == 1 else self._between).observe(now - (arrived if tokens == 1 else last))
                    self._generated.inc()
                    last = now
                case Ended():
                    self._whole.observe(now - arrived)
                    self._success.labels(what.finish_reason).inc()
                    self._observe_signals(what)
                case Failed():
                    self._failure.labels(what.reason).inc()

        return hear

    def _observe_signals(self, ended: Ended) -> None:
        said = ended.signal
        if said.confidence is not None:
            self._confidence.observe(said.confidence)
        if said.hallucination_risk is not None:
            self._risk.observe(said.hallucination_risk)
        if said.in_domain is not None and said.in_domain < 0.5:
            self._outside.inc()


class _Now(Collector):
    """What others count already, read when it is asked for."""

    def __init__(
        self, runner: Runner, engine: ManyCallers, bus: SignalBus, records: RecordStore, viewers: Viewers, probes: ProbeSets
    ) -> None:
        self._runner, self._engine, self._bus = runner, engine, bus
        self._records, self._viewers, self._probes = records, viewers, probes

    def collect(self) -> Iterable[Metric]:
        """The metrics of this moment."""
        counters = self._bus.counters
        yield from self._gauges()
        scorer = GaugeMetricFamily("introspect_probe_set_info", "1; who scores new answers.", labels=["id", "probe_set"])
        scorer.add_metric([self._probes.active, self._probes.scorer.name or ""], 1)
        yield scorer
        yield from self._drift()
        restarts = "Processes of the engine that ended by themselves, so that another had to begin."
        yield CounterMetricFamily("introspect_engine_restarts", restarts, value=self._engine.restarts)
        yield CounterMetricFamily("introspect_probe_set_changes", "Probe sets made active.", value=self._probes.changes)
        yield CounterMetricFamily("introspect_events_published", "Events that the stream's server confirmed.", value=counters.published)
        yield CounterMetricFamily("introspect_event_writes_failed", "Batches that could not be written.", value=counters.failed_writes)
        dropped = CounterMetricFamily("introspect_events_dropped", "Events that were given up.", labels=["reason"])
        for reason in sorted({"step_overflow", "kept_overflow", "shutdown", *counters.dropped}):
            dropped.add_metric([reason], counters.dropped[reason])
        yield dropped

    def _gauges(self) -> Iterator[Metric]:
        for name, words, value in (
            ("num_requests_running", "Requests that the engine works on.", self._runner.running),
            ("num_requests_waiting", "Requests that wait for the engine.", self._runner.waiting),
            ("engine_up", "Whether the engine takes requests.", int(self._engine.alive)),
            ("kv_cache_allocated_bytes", "Memory that the engine holds for keys and values.", self._engine.kv_bytes.allocated),
            ("kv_cache_used_bytes", "Memory of the keys and values that are there.", self._engine.kv_bytes.filled),
            ("events_waiting", "Events that are not confirmed yet.", self._bus.waiting),
            ("stream_connected", "Whether the last write to the stream went through.", int(self._bus.connected)),
            ("answers_kept", "Answers whose head statistics are remembered.", len(self._records)),
            ("answers_kept_bytes", "Memory of those, about.", self._records.bytes),
            ("event_streams_open", "Event streams that are open.", self._viewers.count),
        ):
            yield GaugeMetricFamily(f"introspect_{name}", words, value=value)

    def _drift(self) -> Iterator[Metric]:
        """Of each stream that is watched; no samples where none is."""
        labels = ["stream", "cache"]
        alarms = CounterMetricFamily("introspect_drift_alarms", "Changes told in a stream of the answers.", labels=labels)
        recent = GaugeMetricFamily("introspect_drift_recent", "Mean of the stream over the last answers.", labels=labels)
        usual = GaugeMetricFamily("introspect_drift_reference", "Mean of the stream over the calibration's answers.", labels=labels)
        for kind in self._probes.drift.report().kinds or ():
            for stream in kind.streams:
                place = [stream.name, kind.cache]
                alarms.add_metric(place, stream.alarms)
                usual.add_metric(place, stream.reference)
                if stream.recent is not None:
                    recent.add_metric(place, stream.recent)
        yield from (alarms, recent, usual)
