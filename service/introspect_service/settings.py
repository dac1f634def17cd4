"""How the service is configured: `INTROSPECT_*` variables, or the options of `introspect serve`."""

from __future__ import annotations

import re
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from introspect.types import Budget
from introspect_service.budgets import make_budget

EMBEDDED_REDIS_PORT = 6399
"""Where the embedded Valkey listens, on the loopback only; fixed, so that a reader knows the address beforehand."""

SHORTEST_KEY = 16
"""Characters of an API key: fewer could be guessed."""

_HOST = re.compile(r"(?=.{1,253}(?::|$))[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?")
_REDIS_SCHEMES = ("redis", "rediss", "unix")

Port = Annotated[int, Field(ge=0, le=65_535)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """Frozen settings; unknown names are refused.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 lets the system choose.
        model: `embedded`, a local folder, or a hub id.
        device: torch device of the model.
        engine: `process` lets the model compute in a process of its own, which takes nothing of the time that HTTP, probes and
            stream need; `thread` in this one.
        threads: threads that torch computes with on a CPU; where absent one for a small model, which more would only slow down,
            and as many as torch chooses for others.
        probes: `embedded` (used where it fits the model), `off`, or the folder of a probe set.
        allow_mismatch: score with a probe set that was not fitted for the model; every output says so.
        probe_folder: whose subfolders are probe sets that may be loaded while the service runs; none where absent.
        admin_key: the operator's key, which changing the probe set needs; where absent it cannot be changed.
        policy: who chooses the KV entries to keep; nothing means `full`, or `snapkv` where a budget is given.
        kv_budget: entries per KV head such as `64`, or a share of the prompt such as `25%`.
        heads: a file of visual-head scores, for the policies that need them; by default the one beside the model.
        redis: `embedded`, `off`, or the URL of a Redis or Valkey server.
        redis_port: loopback port of the embedded Valkey.
        stream_max_length: entries that the stream keeps, about.
        event_queue: step events that may wait for the stream before the oldest is dropped.
        alert_risk: an `alert` event is published for every hallucination risk over it; 1 for none.
        replica: name of this server in the `source` of its events; the host's name by default.
        max_body_bytes: largest request body.
        max_image_bytes: largest encoded picture.
        max_pixels: pixels of all pictures of a request together, checked before they are decoded.
        client_seconds: how long a client may take to send its request's body, or to read one piece of the answer.
        max_connections: connections and responses at once, all routes together; beyond it the answer is 503.
        max_images: pictures in a request.
        remote_image_hosts: hosts from which pictures are fetched, separated by commas, `host` or `host:port`; none where absent.
        remote_image_http: fetch them over plain http too.
        remote_image_seconds: how long fetching all pictures of a request may take.
        max_messages: messages in a request.
        max_prompt_chars: characters of all texts of a request together.
        max_tokens: longest answer that can be asked for.
        default_max_tokens: longest answer where the request does not say.
        max_choices: answers to one request (`n`); each takes a place, so that no more than there are places can be asked for.
        max_batch: requests that are answered at once; more wait.
        queue_depth: requests that may wait for the engine.
        drain_seconds: how long accepted requests may take to finish when the service is told to stop.
        keep_answers: recent answers whose head statistics can be asked for; 0 keeps none.
        keep_bytes: memory of all of them together, about.
        max_viewers: event streams that may be open at once, chat completions aside.
        api_keys: keys of which a caller must have one, separated by commas; anybody may ask where absent.
        rate_limit: requests that a caller may post in a minute; any number where absent.
        log_format: `text`, or `json` for one object a line and one line for each answer; neither has prompts, pictures or answers.
        otel: spans and evaluation events over OpenTelemetry; needs the extra `otel`, and takes its exporters from the `OTEL_*` variables.
        traces: folder to which answers that get feedback are written, with their labels; nowhere where absent.
    """

    model_config = SettingsConfigDict(
        env_prefix="INTROSPECT_", frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    port: Port = 8000
    model: Annotated[str, Field(min_length=1)] = "embedded"
    device: str = "cpu"
    engine: Literal["process", "thread"] = "thread" if sys.platform == "win32" else "process"
    threads: Annotated[int, Field(ge=1, le=1_024)] | None = None
    probes: Annotated[str, Field(min_length=1)] = "embedded"
    allow_mismatch: bool = False
    probe_folder: str | None = None
    admin_key: SecretStr | None = None
    policy: str | None = None
    kv_budget: str | None = None
    heads: str | None = None
    redis: Annotated[str, Field(repr=False)] = "embedded"  # an address may hold a password
    redis_port: Annotated[int, Field(ge=1, le=65_535)] = EMBEDDED_REDIS_PORT
    stream_max_length: Count = 10_000
    event_queue: Count = 4_096
    alert_risk: Annotated[float, Field(gt=0, le=1)] = 0.5
    replica: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = Field(default_factory=lambda: socket.gethostname()[:64] or "local")
    max_body_bytes: Count = 12_000_000
    max_image_bytes: Count = 8_000_000
    max_pixels: Count = 16_000_000
    client_seconds: Annotated[float, Field(gt=0)] = 30.0
    max_connections: Count = 512
    max_images: Count = 8
    remote_image_hosts: str | None = None
    remote_image_http: bool = False
    remote_image_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    max_messages: Count = 64
    max_prompt_chars: Count = 32_000
    max_tokens: Count = 1_024
    default_max_tokens: Count = 128
    max_choices: Count = 8
    max_batch: Annotated[int, Field(ge=1, le=256)] = 8
    queue_depth: Count = 16
    drain_seconds: Annotated[float, Field(ge=0)] = 10.0
    keep_answers: Annotated[int, Field(ge=0)] = 64
    keep_bytes: Count = 64_000_000
    max_viewers: Count = 32
    api_keys: SecretStr | None = None
    rate_limit: Count | None = None
    log_format: Literal["text", "json"] = "text"
    otel: bool = False
    traces: str | None = None

    @field_validator("redis")
    @classmethod
    def _redis_is_known(cls, value: str) -> str:
        if value in ("embedded", "off"):
            return value
        if urlsplit(value).scheme not in _REDIS_SCHEMES:
            raise ValueError('expected "embedded", "off" or an address such as redis://host:6379/0')
        return value

    @field_validator("probe_folder")
    @classmethod
    def _folder_is_there(cls, value: str | None) -> str | None:
        if value is not None and not Path(value).is_dir():
            raise ValueError(f"expected a folder of probe sets, got {value!r}, which is none")
        return value

    @field_validator("remote_image_hosts")
    @classmethod
    def _hosts_are_names(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if find_spec("httpx") is None:
            raise ValueError("pictures can be fetched with pip install 'introspect-mllm[remote-images]' (httpx is missing)")
        if not all(_HOST.fullmatch(each.strip()) for each in value.split(",")):
            raise ValueError("expected hosts such as images.example.org or images.example.org:8443, separated by commas")
        return value.lower()

    @field_validator("admin_key")
    @classmethod
    def _admin_key_is_long(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and (len(value) < SHORTEST_KEY or not value.get_secret_value().isascii()):
            raise ValueError(f"expected a key of at least {SHORTEST_KEY} ASCII characters")
        return value

    @field_validator("api_keys")
    @classmethod
    def _keys_are_long(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and any(len(key) < SHORTEST_KEY or not key.isascii() for key in _split(value)):
            raise ValueError(f"expected keys of at least {SHORTEST_KEY} ASCII characters each, separated by commas")
        return value

    @field_validator("engine")
    @classmethod
    def _engine_can_be_there(cls, value: str) -> str:
        if value == "process" and sys.platform == "win32":
            raise ValueError('expected "thread": on Windows a process cannot be given its end of the connection')
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        make_budget(self.kv_budget, self.policy)
        if self.default_max_tokens > self.max_tokens:
            raise ValueError(f"default_max_tokens ({self.default_max_tokens}) is above max_tokens ({self.max_tokens})")
        if self.admin_key is not None and self.admin_key.get_secret_value() in self.keys:
            raise ValueError("admin_key is one of api_keys too: then every caller were an operator")
        if self.redis == "embedded" and self.redis_port == self.port:
            raise ValueError(f"port and redis_port are both {self.port}: give one of them another")
        return self

    @property
    def budget(self) -> Budget:
        """The budget of a request that does not ask for one."""
        return make_budget(self.kv_budget, self.policy)

    @property
    def most_choices(self) -> int:
        """The largest `n`: more than there are places could never be taken."""
        return min(self.max_choices, self.max_batch + self.queue_depth)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of which a caller must have one; none where anybody may ask."""
        return _split(self.api_keys) if self.api_keys is not None else ()

    @property
    def image_hosts(self) -> tuple[str, ...]:
        """The hosts from which pictures are fetched."""
        return tuple(each.strip() for each in self.remote_image_hosts.split(",")) if self.remote_image_hosts else ()

    @property
    def opening_keys(self) -> tuple[str, ...]:
        """The keys that are let in: where callers need one, the operator's is good too."""
        operator = (self.admin_key.get_secret_value(),) if self.admin_key is not None else ()
        return (*self.keys, *operator) if self.keys else ()

    @property
    def redis_url(self) -> str | None:
        """Address of the stream's server; nothing where the stream is off."""
        if self.redis == "off":
            return None
        return f"redis://127.0.0.1:{self.redis_port}" if self.redis == "embedded" else self.redis


def _split(keys: SecretStr) -> tuple[str, ...]:
    return tuple(key.strip() for key in keys.get_secret_value().split(","))


def without_password(url: str) -> str:
    """`url` as it may be shown: user and password left out."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
