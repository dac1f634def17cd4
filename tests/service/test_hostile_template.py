"""A model whose chat template is an attack (CVE-2026-5760): it runs nothing, ends nothing, and tells nothing.

Templates are rendered in Jinja's immutable sandbox by `transformers`; this holds the service to it, over HTTP. What a
template may still do is take time and memory within the sandbox's bounds: a model is only as good as who made it.
"""

from __future__ import annotations

import shutil

import httpx
import pytest

from introspect_service.backend import load_backend
from introspect_service.settings import Settings

ATTACKS = {
    "runs a command": "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "imports": "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch MARK') }}",
    "walks the classes": "{{ ''.__class__.__mro__[1].__subclasses__()[40]('MARK', 'w').write('x') }}",
    "walks them by attr": "{{ (''|attr('__class__')|attr('__mro__')|list)[1].__subclasses__() }}",
    "formats": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "reads the environment": "{{ raise_exception.__globals__ }}",
    "changes what it is given": "{{ messages.clear() }}",
    "reads a file": "{% include '/etc/passwd' %}",
    "goes on for long": "{% for i in range(10**9) %}{{ i }}{% endfor %}",
    "never returns": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
}


@pytest.fixture(scope="module")
def hostile(model_folder, tmp_path_factory):
    """The tests' model with a template that can be changed."""
    folder = tmp_path_factory.mktemp("hostile") / "model"
    shutil.copytree(model_folder, folder)
    return load_backend(Settings(model=str(folder), probes="off", redis="off"))


@pytest.fixture(scope="module")
def served(hostile, make):
    settings = Settings(model=hostile.model.name, redis="off", port=make.free_port())
    with make.running(settings, hostile) as (address, _):
        yield address


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_template_only_fails_its_own_requests(served, hostile, attack, make, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTROSPECT_SECRET_OF_THIS_TEST", "a-secret-in-the-environment")
    own, body = hostile.model.processor.chat_template, {"model": hostile.model.name, "messages": make.messages(), "max_tokens": 1}
    assert own
    hostile.model.processor.chat_template = ATTACKS[attack].replace("MARK", str(tmp_path / "mark"))
    try:
        failed = httpx.post(f"{served}/v1/chat/completions", json=body, timeout=60)
    finally:
        hostile.model.processor.chat_template = own
    assert failed.status_code in (400, 500)
    assert failed.json()["error"]["message"]
    told = failed.text + caplog.text
    assert "a-secret-in-the-environment" not in told
    assert "root:" not in told
    assert not (tmp_path / "mark").exists()
    assert httpx.post(f"{served}/v1/chat/completions", json=body, timeout=60).status_code == 200
    assert httpx.get(f"{served}/readyz").status_code == 200


def test_a_template_that_came_with_the_model_is_the_one_that_is_rendered(model_folder, tmp_path):
    """So that the attacks above are what a shipped template would be."""
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ cycler.__init__ }}")
    loaded = load_backend(Settings(model=str(tmp_path / "model"), probes="off", redis="off"))
    assert loaded.model.processor.chat_template == "{{ cycler.__init__ }}"
