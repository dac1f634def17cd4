"""Settings that do not make sense are refused at start, in words that say what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from introspect.types import Budget
from introspect_service.budgets import override_budget
from introspect_service.settings import EMBEDDED_REDIS_PORT, Settings, without_password


def test_the_defaults_are_those_that_are_documented():
    settings = Settings()
    assert (settings.host, settings.port, settings.model, settings.probes) == ("127.0.0.1", 8000, "embedded", "embedded")
    assert settings.budget == Budget()
    assert settings.redis_url == f"redis://127.0.0.1:{EMBEDDED_REDIS_PORT}" == "redis://127.0.0.1:6399"


def test_variables_are_read_and_options_win(monkeypatch):
    monkeypatch.setenv("INTROSPECT_PORT", "9000")
    monkeypatch.setenv("INTROSPECT_KV_BUDGET", "25%")
    assert Settings().port == 9000
    assert Settings().budget == Budget(policy="snapkv", ratio=0.25)
    assert Settings(port=9001).port == 9001


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"port": 70_000}, "65535"),
        ({"kv_budget": "lots"}, "25%"),
        ({"kv_budget": "101%"}, "25%"),
        ({"kv_budget": "-3"}, "25%"),
        ({"policy": "full", "kv_budget": "64"}, "keeps the whole cache"),
        ({"policy": "snapkv"}, "give a kv_budget"),
        ({"redis": "http://host"}, "redis://"),
        ({"redis": "on"}, "redis://"),
        ({"port": 6399}, "another"),
        ({"default_max_tokens": 2_000}, "above max_tokens"),
        ({"queue_depth": 0}, "greater"),
        ({"replica": "a/b"}, "pattern"),
        ({"colour": "red"}, "not permitted"),
    ],
)
def test_what_does_not_make_sense_is_refused(wrong, says):
    with pytest.raises(ValidationError, match=says):
        Settings(**wrong)


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


@pytest.mark.parametrize(
    ("server", "asked", "meant"),
    [
        ((None, None), (None, None), Budget()),
        ((None, None), ("64", None), Budget("snapkv", entries=64)),
        (("25%", "random"), (None, None), Budget("random", ratio=0.25)),
        (("25%", "random"), ("64", None), Budget("random", entries=64)),
        (("25%", "random"), (None, "snapkv"), Budget("snapkv", ratio=0.25)),
        (("25%", "random"), (None, "full"), Budget()),
        ((None, "full"), ("12.5%", None), Budget("snapkv", ratio=0.125)),
    ],
)
def test_a_request_s_budget_stands_over_the_server_s(server, asked, meant):
    assert override_budget(*server, *asked) == meant


def test_passwords_are_not_shown():
    assert without_password("redis://me:secret@host:6379/0?password=secret") == "redis://host:6379/0"


def test_the_readme_lists_every_setting_with_its_default():
    text = (Path(__file__).parents[2] / "service" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `INTROSPECT_(\w+)` \| `?([^`|]*?)`? \|", text, re.MULTILINE))
    defaults = {name.upper(): field.default for name, field in Settings.model_fields.items()}
    defaults["REPLICA"] = "the host's name"
    assert rows == {name: "none" if value is None else str(value) for name, value in defaults.items()}


def test_an_engine_s_process_is_refused_where_it_cannot_be_begun(monkeypatch):
    monkeypatch.setattr("introspect_service.settings.sys.platform", "win32")
    with pytest.raises(ValidationError, match='expected "thread"'):
        Settings(engine="process")
