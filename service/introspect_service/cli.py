"""The command `introspect`. What a subcommand needs is imported when it runs, so that help is quick."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from introspect_service import bench, chain, score_heads, study
from introspect_service.commands import Commands, fail

if TYPE_CHECKING:
    from introspect_service.settings import Settings

app = typer.Typer(
    name="introspect",
    cls=Commands,
    help="Serve a multimodal LLM and tell, beside every answer, how far the answer can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

ModelOption = Annotated[str | None, typer.Option("--model", help="A folder or hub id.", show_default="embedded")]
ProbesOption = Annotated[
    str | None, typer.Option("--probes", help="The folder of a probe set, or off.", show_default="embedded, where it fits")
]
MismatchOption = Annotated[bool | None, typer.Option("--allow-mismatch", help="Use probes that were not fitted for the model, and say so.")]
PolicyOption = Annotated[
    str | None,
    typer.Option("--policy", help="Who chooses the KV entries to keep; under a budget, coverage is recommended.", show_default="full"),
]
BudgetOption = Annotated[str | None, typer.Option("--kv-budget", help="Entries per KV head, such as 64, or 25% of the prompt.")]
HeadsOption = Annotated[
    str | None, typer.Option("--heads", help="Visual-head scores, for sparsemm.", show_default="those beside the model")
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="Torch device.", show_default="cpu")]


@app.command()
def serve(
    *,
    model: ModelOption = None,
    probes: ProbesOption = None,
    allow_mismatch: MismatchOption = None,
    policy: PolicyOption = None,
    kv_budget: BudgetOption = None,
    heads: HeadsOption = None,
    device: DeviceOption = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="Where the model computes: process or thread.", show_default="process")
    ] = None,
    redis: Annotated[
        str | None, typer.Option("--redis", help="Where signals are published: embedded, off or redis://...", show_default="embedded")
    ] = None,
    redis_port: Annotated[int | None, typer.Option("--redis-port", help="Port of the embedded Valkey.", show_default="6399")] = None,
    alert_risk: Annotated[
        float | None,
        typer.Option("--alert-risk", help="Publish an alert for a hallucination risk over it; 1 for none.", show_default="0.5"),
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on.", show_default="8000")] = None,
    log_level: Annotated[str, typer.Option("--log-level", help="Of the web server.")] = "warning",
    log_format: Annotated[
        str | None, typer.Option("--log-format", help="text, or json for one line an answer.", show_default="text")
    ] = None,
) -> None:
    """Serve chat completions with signals; every option is also a variable INTROSPECT_..."""
    settings = _settings(
        model=model, probes=probes, allow_mismatch=allow_mismatch, policy=policy, kv_budget=kv_budget, heads=heads, device=device,
        engine=engine, redis=redis, redis_port=redis_port, alert_risk=alert_risk, log_format=log_format, host=host, port=port,
    )  # fmt: skip
    from introspect_service.embedded_valkey import EmbeddedValkey
    from introspect_service.launching import launch
    from introspect_service.ports import claim_port

    # Ports first: loading takes seconds, and a taken port should not cost them.
    bound = claim_port(settings.host, settings.port)
    if settings.redis == "embedded":
        EmbeddedValkey(settings.redis_port).claim_port()
    launched = launch() if settings.engine == "process" else None  # it imports what it needs while we do
    _hide_progress_bars()
    from introspect_service.backend import load_backend
    from introspect_service.serve import greeting
    from introspect_service.serve import serve as run

    backend, number = load_backend(settings, launched), bound.getsockname()[1]
    with closing(backend.engine):
        has_listened = run(settings, backend, bound, lambda: typer.echo(greeting(settings, backend, number)), log_level)
    if not has_listened:
        raise typer.Exit(1)


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(help="A png, jpeg or webp file.", exists=True, dir_okay=False, readable=True)],
    question: Annotated[str, typer.Argument(help="What to ask of it.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    context: Annotated[list[str] | None, typer.Option("--context", help="A passage to be read; may be given again.")] = None,
    model: ModelOption = None,
    probes: ProbesOption = None,
    allow_mismatch: MismatchOption = None,
    policy: PolicyOption = None,
    kv_budget: BudgetOption = None,
    heads: HeadsOption = None,
    device: DeviceOption = None,
) -> None:
    """Ask one question about one picture, and show how far the answer can be trusted."""
    settings = _settings(
        model=model,
        probes=probes,
        allow_mismatch=allow_mismatch,
        policy=policy,
        kv_budget=kv_budget,
        heads=heads,
        device=device,
        redis="off",
        engine="thread",  # for one question nothing is worth another process
    )
    _hide_progress_bars()
    from introspect_service.ask import ask as put
    from introspect_service.backend import load_backend

    try:
        asked = put(load_backend(settings), settings, image, question, tuple(context or ()))
    except OSError as problem:
        fail(str(problem))
    if as_json:
        typer.echo(asked.model_dump_json())
        return
    from rich.console import Console

    from introspect_service.console import show

    show(Console(highlight=False), asked.tokens, asked.introspection)


@app.command()
def watch(
    redis: Annotated[str | None, typer.Option("--redis", help="The stream's server.", show_default="the embedded one")] = None,
    *,
    start: Annotated[str, typer.Option("--from", help="$ for what comes from now on, 0 for all that is still there.")] = "$",
) -> None:
    """Print the events of the stream as they come, one JSON object a line."""
    from redis.exceptions import RedisError

    from introspect_service.reader import DEFAULT_URL, read

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it wherever it is, without a traceback
    try:
        for event in read(redis or DEFAULT_URL, start=start):
            typer.echo(event.model_dump_json(serialize_as_any=True))
    except (RedisError, ValueError) as problem:
        fail(f"{problem} (is the service running? the address of its stream is --redis)")


bench.register(app)


@app.command()
def consume(
    *,
    group: Annotated[str, typer.Option("--group", help="Consumers of one group share its events.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Of this consumer, unique in its group.", show_default="host and process")
    ] = None,
    redis: Annotated[str | None, typer.Option("--redis", help="The stream's server.", show_default="the embedded one")] = None,
    start: Annotated[str, typer.Option("--from", help="Where a new group begins: 0, $ or the id of an entry.")] = "0",
    types: Annotated[list[str] | None, typer.Option("--type", help="Such as alert; may be given again.", show_default="all")] = None,
    claim_seconds: Annotated[float, typer.Option("--claim-seconds", help="When an unfinished event is taken over.", min=0.1)] = 60.0,
    idle_seconds: Annotated[float | None, typer.Option("--idle-seconds", help="End after so long without an event.", min=0.1)] = None,
) -> None:
    """Print events as a member of a group, which share the work; an event is done when it is printed."""
    from redis.exceptions import RedisError

    from introspect_service.consumer import Consumer
    from introspect_service.events import SignalEvent
    from introspect_service.reader import DEFAULT_URL

    def show(event: SignalEvent) -> None:
        typer.echo(event.model_dump_json(serialize_as_any=True))

    try:
        consumer = Consumer(
            show, group=group, url=redis or DEFAULT_URL, name=name, start=start, claim_seconds=claim_seconds,
            types=[kind if "." in kind else f"introspect.{kind}.v1" for kind in types or ()],
        )  # fmt: skip
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: consumer.stop())
        consumer.run(idle_seconds=idle_seconds)
        consumer.close()
    except (RedisError, ValueError) as problem:
        fail(str(problem))


@app.command()
def asyncapi() -> None:
    """Print the stream's AsyncAPI description, as service/asyncapi.json has it."""
    from introspect_service.asyncapi import asyncapi_text

    typer.echo(asyncapi_text(), nl=False)


chain.register(app)
score_heads.register(app)
study.register(app)


def _settings(**given: Any) -> Settings:
    """Settings from the options that were given, over the environment."""
    from pydantic import ValidationError

    from introspect_service.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as problem:
        for error in problem.errors():
            name = ".".join(str(part) for part in error["loc"])
            option = f"--{name.replace('_', '-')} (INTROSPECT_{name.upper()}): " if name else ""
            typer.echo(f"introspect: {option}{error['msg'].removeprefix('Value error, ')}", err=True)
        raise typer.Exit(1) from None


def _hide_progress_bars() -> None:
    """No bars for reading files that are here; those of a download stay."""
    from transformers.utils import logging

    logging.disable_progress_bar()
