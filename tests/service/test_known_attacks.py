"""Attacks on other servers that are not tried elsewhere in this folder, each named by its number.

Elsewhere: addresses that lead inside (CVE-2026-24779, CVE-2025-6242) in test_remote_images.py and test_images.py; a
decoder's words (CVE-2026-22778), video frames (CVE-2026-5497) and bombs in test_images.py; a huge `n` (CVE-2026-34756)
and malformed tools (CVE-2025-48944) in test_errors.py; paths around the key (CVE-2026-48746) in test_admission.py;
a template that came with a model (CVE-2026-5760) in test_hostile_template.py;
pickles from sockets and files (CVE-2026-3059, -3060, -3989, -7301) in tests/structure/test_safety.py.
"""

from __future__ import annotations

import hmac
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr, ValidationError

from introspect.types import Request
from introspect_service import admission
from introspect_service.settings import Settings


def ask(url, settings, content, **options):
    body = {"model": settings.model, "messages": [{"role": "user", "content": content}], "max_tokens": 2, **options}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


@pytest.mark.parametrize("size", [(1, 1), (1, 40_000), (40_000, 1), (2, 3)])
def test_pictures_of_absurd_shape_stop_nothing(url, settings, make, size):
    """CVE-2026-22773: a picture of one pixel ended the engine."""
    uri = make.data_uri(make.encoded(Image.fromarray(np.zeros((size[1], size[0], 3), dtype=np.uint8))))
    assert ask(url, settings, [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "hello"}]).status_code in (
        200,
        400,
    )
    assert ask(url, settings, "hello").status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("given", ["first-key-of-two-0", "second-key-of-two-", "f", ""])
async def test_all_keys_are_compared_whole_whichever_is_right(monkeypatch, given):
    """CVE-2025-59425: the time of a comparison told how much of a key was right."""
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    async def nothing(*_):
        pass

    monkeypatch.setattr(admission, "hmac", SimpleNamespace(compare_digest=compare))
    guard = admission.ApiKeys(nothing, ["first-key-of-two-0", "second-key-of-two-1"])
    scope = {"type": "http", "method": "POST", "path": "/v1/x", "headers": [(b"authorization", f"Bearer {given}".encode())]}
    await guard(scope, nothing, nothing)
    assert compared == [(32, 32)] * 2


@pytest.mark.parametrize("field", ["chat_template", "chat_template_kwargs", "vllm_xargs", "guided_regex", "logits_processors"])
def test_what_a_caller_says_of_templates_and_processors_is_never_used(url, settings, field):
    """CVE-2025-62426 (template arguments), CVE-2026-7304 (a pickled logits processor): no such thing is read."""
    plain = ask(url, settings, "hello").json()["usage"]
    hostile = ask(url, settings, "hello", **{field: {"add_generation_prompt": False, "x": "{% for i in range(10**9) %}{% endfor %}"}})
    assert hostile.status_code == 200
    assert hostile.json()["usage"] == plain


@pytest.mark.parametrize("content", ["", " ", [], [{"type": "text", "text": ""}]])
def test_an_empty_prompt_ends_nothing(url, settings, content):
    """vLLM 0.5.4 stopped at an empty prompt."""
    assert ask(url, settings, content).status_code in (200, 400)
    assert ask(url, settings, "hello").status_code == 200


def test_a_caller_s_text_is_no_template(backend):
    """CVE-2026-5760: a template from outside was run. A message's braces are only characters."""
    long, short = (backend.engine.encode(Request.ask("r", text)) for text in ("{{ 7 * 7 }} {% raw %}", "49"))
    assert len(long.token_ids) > len(short.token_ids)


@pytest.mark.parametrize("name", ["..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/labels", "..\\..\\x", "chatcmpl-%00", "a" * 5_000])
@pytest.mark.parametrize("route", ["", "/answer", "/events", "/feedback"])
def test_an_answer_s_id_is_no_path(url, name, route):
    """CVE-2026-7302: a path in a request was written to."""
    address = f"{url}/v1/introspection/{name}{route}"
    response = httpx.post(address, json={"label": "right"}) if route == "/feedback" else httpx.get(address)
    assert response.status_code in (400, 404, 405)


def test_a_thousand_ranges_are_one_file(url):
    """CVE-2025-62727: overlapping ranges of a static file took quadratic time. Ranges are not served at all."""
    plain = httpx.get(f"{url}/page/main.js")
    many = httpx.get(f"{url}/page/main.js", headers={"Range": "bytes=" + ",".join(f"{n}-{n + 1}" for n in range(1_000))})
    assert (many.status_code, many.content) == (200, plain.content)


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
def test_forms_are_not_parsed(url, kind):
    """CVE-2024-47874: a form field without an end filled the memory."""
    response = httpx.post(f"{url}/v1/chat/completions", content=b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"a" * 100_000,
                          headers={"Content-Type": kind})  # fmt: skip
    assert response.status_code in (400, 415)


def test_no_secret_is_in_an_error_a_status_or_a_log(settings, backend, make, caplog):
    caplog.set_level("DEBUG")
    key, password = "a-key-of-sixteen-or-more", "the-password-of-redis"
    redis = f"redis://user:{password}@127.0.0.1:{make.free_port()}/0"  # nobody listens there
    own = settings.model_copy(update={"api_keys": SecretStr(key), "redis": redis, "port": make.free_port()})
    headers = {"Authorization": f"Bearer {key}"}
    with make.running(own, backend) as (address, _):
        said = [repr(own), httpx.get(f"{address}/readyz").text, httpx.get(f"{address}/metrics", headers=headers).text]
        said += [httpx.post(f"{address}/v1/chat/completions", json={}, headers={"Authorization": f"Bearer {key}x"}).text]
        said += [httpx.post(f"{address}/v1/chat/completions", json={"model": "x"}, headers=headers).text]
        said += [ask(address, own, "hello", introspection=True).text]
        body = {"model": own.model, "messages": [{"role": "user", "content": "hello"}], "introspection": True}
        answer = httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60)
        said += [answer.text, str(answer.headers)]
        assert answer.json()["introspection"]["published"] is False
    with pytest.raises(ValidationError) as wrong:
        Settings(redis=f"http://user:{password}@host", api_keys="too-short,")
    said += [caplog.text, str(wrong.value)]
    assert "too-short" not in str(wrong.value)
    assert "the stream's server does not answer" in caplog.text
    assert not [text for text in said if password in text or key in text]
