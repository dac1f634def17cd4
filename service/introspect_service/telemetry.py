"""OpenTelemetry: a span for each answer and an event for each of its signals, by the GenAI semantic conventions.

Needs the extra `otel`, and is imported only where `INTROSPECT_OTEL` is on. Span `chat {model}` and events
`gen_ai.evaluation.result` have the names of open-telemetry/semantic-conventions-genai (all of it "Development" there).
No prompt, no picture and no word of an answer is ever in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from opentelemetry import context, propagate, trace
from opentelemetry._logs import Logger, LogRecord, SeverityNumber, get_logger_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from introspect.types import Request
from introspect_probes.signals import AnswerSignal
from introspect_service.errors import ServiceError
from introspect_service.generation import Begun, Ended, Progress, Scores, Token
from introspect_service.limits import ASGIApp, Receive, Scope, Send
from introspect_service.runner import Failed, Follows, Listener, Runner, Ticket

_NAME = "introspect_service"
EVALUATION = "gen_ai.evaluation.result"


class Telemetry:
    """Where spans and events go.

    Args:
        tracer: makes the spans.
        logger: takes the events.
        close: flushes what was made here.
    """

    def __init__(self, tracer: Tracer, logger: Logger, close: Callable[[], None] = lambda: None) -> None:
        self._tracer, self._logger, self.close = tracer, logger, close

    @classmethod
    def start(cls) -> Telemetry:
        """The process's own providers where it has some; else exporters over OTLP, as the `OTEL_*` variables say.

        Raises:
            ServiceError: there is no exporter for OTLP.
        """
        if isinstance(trace.get_tracer_provider(), TracerProvider):  # set by `opentelemetry-instrument`, or by the program around us
            return cls(trace.get_tracer(_NAME), get_logger_provider().get_logger(_NAME))
        try:
            from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as problem:
            raise ServiceError("INTROSPECT_OTEL needs an exporter: pip install 'introspect-mllm[otel]'") from problem
        resource = Resource.create({"service.name": "introspect"} | dict(Resource.create().attributes))
        spans, events = TracerProvider(resource=resource), LoggerProvider(resource=resource)
        spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        events.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))

        def close() -> None:
            spans.shutdown()
            events.shutdown()

        return cls(spans.get_tracer(_NAME), events.get_logger(_NAME), close)

    def listener(self, request: Request, model: str) -> Listener:
        """What makes the span of an answer that is asked for now, as a child of the current one."""
        options = request.sampling
        asked: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "introspect",
            "gen_ai.request.model": model,
            "gen_ai.request.max_tokens": options.max_tokens,
            "gen_ai.request.temperature": options.temperature,
            "gen_ai.request.top_p": options.top_p,
            "gen_ai.response.id": request.id,
            "gen_ai.response.model": model,
        }
        if options.seed is not None:
            asked["gen_ai.request.seed"] = options.seed
        parent, began, started = context.get_current(), time.time_ns(), time.perf_counter()
        made: Span | None = None
        is_first = True

        def hear(what: Progress | Failed) -> None:
            nonlocal is_first, made
            if made is None:  # not before: a request that is not taken after all has no span
                # The model runs in this very process, for which the conventions have kind INTERNAL.
                made = self._tracer.start_span(f"chat {model}", context=parent, kind=SpanKind.INTERNAL, attributes=asked, start_time=began)
            span = made
            match what:
                case Begun(prompt):
                    span.set_attribute("gen_ai.usage.input_tokens", len(prompt.token_ids))
                    span.set_attribute("introspect.kv_budget.policy", prompt.budget.policy)
                    span.set_attribute("introspect.kv_budget.effective", round(prompt.budget.effective, 2))
                case Token() if is_first:
                    is_first = False
                    span.set_attribute("gen_ai.response.time_to_first_chunk", time.perf_counter() - started)
                case Ended():
                    span.set_attribute("gen_ai.usage.output_tokens", what.tokens)
                    span.set_attribute("gen_ai.response.finish_reasons", [what.finish_reason])
                    self._tell(span, request.id, what.signal)
                    span.end()
                case Failed():
                    span.set_attribute("error.type", what.reason)
                    span.set_status(Status(StatusCode.ERROR, what.reason))
                    span.end()

        return hear

    def _tell(self, span: Span, answer: str, signal: AnswerSignal) -> None:
        """An event for each signal of the answer that is known."""
        by = f"probe set {signal.probe_set}" if signal.calibrated else "not calibrated"
        if signal.confidence is not None:
            self._emit(span, answer, "introspect.confidence", {"score.value": signal.confidence}, f"P(the answer is correct); {by}")
        if signal.hallucination_risk is not None:
            risk = {"score.value": signal.hallucination_risk}
            self._emit(span, answer, "introspect.hallucination_risk", risk, f"P(some claim of the answer is false); {by}")
        if signal.strategy is not None:
            label, probability = signal.strategy.label, signal.strategy.probabilities[signal.strategy.label]
            said = {"score.label": label, "score.value": probability}
            self._emit(span, answer, "introspect.strategy", said, f"what the model leaned on, and how probable that is; {by}")

    def _emit(self, span: Span, answer: str, name: str, said: Mapping[str, str | float], explanation: str) -> None:
        attributes: dict[str, AttributeValue] = {
            "gen_ai.evaluation.name": name,
            "gen_ai.evaluation.explanation": explanation,
            "gen_ai.response.id": answer,
        }
        attributes |= {f"gen_ai.evaluation.{key}": value for key, value in said.items()}
        record = LogRecord(
            timestamp=time.time_ns(),
            context=trace.set_span_in_context(span),
            severity_number=SeverityNumber.INFO,
            event_name=EVALUATION,
            attributes=attributes,
        )
        self._logger.emit(record)


class TracedRunner(Runner):
    """A `Runner` whose answers each have a span.

    Args:
        engine: see `Runner`.
        queue_depth: see `Runner`.
        max_batch: see `Runner`.
        telemetry: where the spans go.
        model: the model's name.
    """

    def __init__(self, engine: Follows, *, queue_depth: int, max_batch: int, telemetry: Telemetry, model: str) -> None:
        super().__init__(engine, queue_depth=queue_depth, max_batch=max_batch)
        self._telemetry, self._model = telemetry, model

    def submit(self, request: Request, listener: Listener, scorer: Scores) -> Ticket:
        """See `Runner.submit`; the span begins now."""
        traced = self._telemetry.listener(request, self._model)

        def both(what: Progress | Failed) -> None:
            traced(what)
            listener(what)

        return super().submit(request, both, scorer)


class IncomingContext:
    """Takes the caller's trace from the request's headers (W3C `traceparent`), so that answers' spans belong to it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app within the caller's trace, unless another instrumentation has one already."""
        if scope["type"] != "http" or trace.get_current_span().get_span_context().is_valid:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        token = context.attach(propagate.extract(headers))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)
