"""The Docker files as configuration; no container engine is at hand where the tests run, so nothing is built."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr
from typer.main import get_command

from introspect_service.cli import app
from introspect_service.settings import Settings

ROOT = Path(__file__).parents[2]
SECRETS = {"REDIS_PASSWORD": "s3cret", "INTROSPECT_API_KEYS": "k" * 16}


def filled_in(text):
    """`text` as Compose reads it: variables replaced, `$$` a dollar; a variable without a value is an error, never a default."""
    assert ":-" not in text, "no default for a variable"
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: SECRETS[found[1]], text)
    assert not re.search(r"(?<!\$)\$(?!\$)", text)
    return text.replace("$$", "$")


@pytest.fixture
def compose():
    return yaml.safe_load(filled_in((ROOT / "docker-compose.yml").read_text(encoding="utf-8")))


@pytest.fixture
def dockerfile():
    """Its instructions: name and rest of the line."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def check_command(words):
    """The command line takes these words."""
    group = get_command(app)
    command = group.commands[words[0]]
    return command.make_context(words[0], list(words[1:])).params


def test_every_service_has_a_health_check_and_waits_for_what_it_needs(compose):
    services = compose["services"]
    assert set(services) == {"redis", "service", "consumer"}
    for name, service in services.items():
        assert service["healthcheck"]["test"], name
        if name != "redis":
            assert service["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert services["redis"]["image"].count(":") == 1, "a version, not the latest"
    assert "noeviction" in services["redis"]["command"][-1]


def test_the_commands_are_ones_that_introspect_takes(compose, dockerfile):
    assert check_command(compose["services"]["service"]["command"])["host"] == "0.0.0.0"  # noqa: S104 - inside its container
    consumer = check_command(compose["services"]["consumer"]["command"])
    assert (consumer["group"], list(consumer["types"])) == ("alerts", ["alert"])
    named = dict(dockerfile)
    assert yaml.safe_load(named["ENTRYPOINT"]) == ["introspect"]
    assert check_command(yaml.safe_load(named["CMD"]))["redis"] == "off"


def test_the_service_s_variables_are_settings_and_pass_their_checks(compose, monkeypatch):
    service = compose["services"]["service"]
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.redis_url == "redis://:s3cret@redis:6379/0"
    assert settings.api_keys == SecretStr("k" * 16)
    assert {name.removeprefix("INTROSPECT_").lower() for name in service["environment"]} <= set(Settings.model_fields)
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.drain_seconds
    assert [port.split(":")[0] for port in service["ports"]] == ["127.0.0.1"], "not for the whole network unasked"


def test_there_are_no_default_secrets():
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    uses = re.findall(r"(?:PASSWORD|API_KEYS|AUTH): (.+)|redis://:(.+?)@", text)
    assert len(uses) == 6
    assert all(re.fullmatch(r"\$\{\w+:\?[^}]+\}", one or other) for one, other in uses)


def test_the_image_copies_what_there_is_installs_it_and_runs_as_nobody_in_particular(dockerfile):
    copied = [word for name, rest in dockerfile if name == "COPY" for word in shlex.split(rest)[:-1]]
    assert all((ROOT / word).exists() for word in copied)
    assert {"introspect", "kernels", "probes", "service", "pyproject.toml"} <= set(copied)
    names = [name for name, _ in dockerfile]
    needs_root = [place for place, (name, rest) in enumerate(dockerfile) if name == "RUN" and rest.split()[0] in ("pip", "useradd")]
    assert max(needs_root) < names.index("USER") < names.index("ENTRYPOINT")
    assert dict(dockerfile)["USER"] != "root"
    torch = next(rest for name, rest in dockerfile if name == "ARG").partition("=")[2].strip('"')
    assert torch in (ROOT / "Makefile").read_text(encoding="utf-8"), "what `make` installs"


def test_both_files_say_that_they_were_not_run():
    for name in ("Dockerfile", "docker-compose.yml"):
        assert (ROOT / name).read_text(encoding="utf-8").startswith("# Not run yet")
