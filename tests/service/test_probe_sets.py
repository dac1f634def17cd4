"""Probe sets are changed while the service answers, by its operator alone, and one that does not fit changes nothing."""

from __future__ import annotations

import json
import shutil
import threading
from importlib.resources import files
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from redis import Redis
from safetensors.numpy import load_file, save_file

from introspect_service.events import STREAM_KEY, SignalEvent
from introspect_service.probe_sets import ProbeSets
from introspect_service.settings import Settings

KEY = "the-operator-s-own-key"
CALLER = "a-caller-s-key-of-some-length"
OPERATOR = {"Authorization": f"Bearer {KEY}"}


def make_set(folder, fingerprint, name, **changes):
    """The embedded probe set as one that was fitted for the model of that fingerprint."""
    shutil.copytree(str(files("introspect_probes") / "embedded" / "probes"), folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["fingerprint"] = fingerprint
    path.write_text(json.dumps({**manifest, "name": name, **changes}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, backend):
    """Two sets that fit, and some that do not."""
    root, own = tmp_path_factory.mktemp("sets"), backend.model.fingerprint
    outside = make_set(tmp_path_factory.mktemp("elsewhere") / "outside", own, "outside-1")
    make_set(root / "one", own, "one-1")
    make_set(root / "two", own, "two-1")
    make_set(root / "other-model", "0" * 64, "other-1")
    make_set(root / "other-schema", own, "other-2", feature_schema="0123")
    make_set(root / "other-format", own, "other-3", format="introspect-probes/0")
    (make_set(root / "no-json", own, "x") / "manifest.json").write_text("{")
    (make_set(root / "a-list", own, "x") / "manifest.json").write_text("[]")
    arrays = make_set(root / "cut-off", own, "x") / "probes.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:1000])
    narrow = make_set(root / "too-narrow", own, "x") / "probes.safetensors"
    save_file(
        {
            name: np.ascontiguousarray(array[..., :-1]) if array.ndim and array.size > 50 and not name.startswith("reference") else array
            for name, array in load_file(narrow).items()
        },
        narrow,
    )
    (root / "no-set").mkdir()
    (root / "off").mkdir()
    (root / "off" / "manifest.json").write_text("{}")
    (root / "link").symlink_to(outside)
    return root


@pytest.fixture(scope="module")
def served(settings, backend, folder, make):
    own = settings.model_copy(
        update={"port": make.free_port(), "probe_folder": str(folder), "admin_key": SecretStr(KEY), "api_keys": SecretStr(CALLER)}
    )
    with make.running(own, backend) as (url, app):
        yield url, app


@pytest.fixture
def post(served):
    """Posts to a route of the probe sets, as the operator."""
    yield lambda path, name, headers=OPERATOR: httpx.post(f"{served[0]}/v1/probes{path}", json={"id": name}, headers=headers, timeout=60)
    served[1].state.service.probes.activate("initial")


def active_of(url):
    (active,) = [each for each in httpx.get(f"{url}/v1/probes", headers=OPERATOR).json()["data"] if each["active"]]
    return active


def ask(url, make, **options):
    body = {"model": httpx.get(f"{url}/v1/models", headers=OPERATOR).json()["data"][0]["id"], "messages": make.messages(), "max_tokens": 4}
    return httpx.post(f"{url}/v1/chat/completions", json={**body, "introspection": True, **options}, headers=OPERATOR, timeout=60).json()


def test_what_can_be_chosen_is_listed_without_being_read(served):
    listed = httpx.get(f"{served[0]}/v1/probes", headers={"Authorization": f"Bearer {CALLER}"}).json()["data"]
    names = ["initial", "off", "a-list", "cut-off", "no-json", "one", "other-format", "other-model", "other-schema", "too-narrow", "two"]
    assert [each["id"] for each in listed] == names
    assert [each["id"] for each in listed if each["loaded"]] == ["initial", "off"]
    assert listed[0] == {"id": "initial", "object": "probe_set", "active": True, "loaded": True}


def test_a_set_is_loaded_and_made_active_and_everything_names_it(served, post, make, valkey_server):
    url, _ = served
    card = {"id": "one", "object": "probe_set", "loaded": True, "probe_set": "one-1"}
    card["signals"] = ["confidence", "hallucination_risk", "strategy", "in_domain", "guarantee"]
    assert post("", "one").json() == {**card, "active": False}
    assert "probe_set" not in ask(url, make)["introspection"], "loaded is not active"
    assert post("/active", "one").json() == {**card, "active": True} == active_of(url)
    answer = ask(url, make)
    said = answer["introspection"]
    assert said["probe_set"] == "one-1"
    assert said["calibrated"] is True
    assert 0 <= said["confidence"] <= 1
    assert httpx.get(f"{url}/readyz").json()["probe_set"] == "one-1"
    assert httpx.get(f"{url}/v1/models", headers=OPERATOR).json()["data"][0]["introspection"]["probe_set"] == "one-1"
    metrics = httpx.get(f"{url}/metrics", headers=OPERATOR).text
    assert 'introspect_probe_set_info{id="one",probe_set="one-1"} 1.0' in metrics
    assert "introspect_probe_set_changes_total" in metrics
    with Redis.from_url(valkey_server.connection_url, decode_responses=True) as redis:
        events = [SignalEvent.from_fields(fields) for _, fields in redis.xrange(STREAM_KEY)]
    own = {event.type.split(".")[1]: event.data for event in events if event.subject == answer["id"]}
    assert own["started"].probe_set == own["completed"].introspection.probe_set == "one-1"
    assert post("/active", "off").json() == {"id": "off", "object": "probe_set", "active": True, "loaded": True}
    assert "confidence" not in ask(url, make)["introspection"]


def test_a_running_answer_keeps_the_set_with_which_it_began(served, post, make):
    url, app = served
    post("/active", "one")
    post("", "two")
    body = {"model": app.state.service.backend.model.name, "messages": make.messages(), "stream": True, "introspection": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**body, "max_tokens": 120}, headers=OPERATOR, timeout=120) as response:
        lines = response.iter_lines()
        for _ in range(6):
            next(lines)
        assert app.state.service.runner.running == 1
        assert post("/active", "two").status_code == 200
        assert app.state.service.runner.running == 1, "the swap came while it ran"
        assert ask(url, make)["introspection"]["probe_set"] == "two-1"
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    (said,) = [chunk["introspection"] for chunk in chunks if "introspection" in chunk]
    assert said["probe_set"] == "one-1"


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("other-model", "probe_set_mismatch", "fitted on"),
        ("other-schema", "probe_set_mismatch", "feature schema 0123"),
        ("other-format", "probe_set_unreadable", "introspect-probes/0"),
        ("no-json", "probe_set_unreadable", "JSONDecodeError"),
        ("a-list", "probe_set_unreadable", "introspect train"),
        ("cut-off", "probe_set_unreadable", "SafetensorError"),
        ("too-narrow", "probe_set_mismatch", "introspect train"),
    ],
)
@pytest.mark.parametrize("path", ["", "/active"])
def test_a_set_that_does_not_fit_is_refused_with_the_reason_and_changes_nothing(served, post, folder, path, name, code, says):
    post("/active", "one")
    refused = post(path, name)
    assert refused.status_code == 409, refused.text
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == (code, "id")
    assert says in error["message"]
    assert str(folder) not in error["message"]
    assert active_of(served[0])["id"] == "one"


@pytest.mark.parametrize("name", ["nothing", "no-set", "link"])
def test_what_is_no_set_of_the_folder_is_not_found(post, name):
    for path in ("", "/active"):
        assert post(path, name).json()["error"]["code"] == "probe_set_not_found"


@pytest.mark.parametrize(
    "name", ["..", "../one", "/etc", "one/../two", ".one", "", "a" * 65, "one\x00", "one\n", "%2e%2e", "C:\\x", 3, None]
)
def test_a_name_is_only_a_name(post, name):
    for path in ("", "/active"):
        refused = post(path, name)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "id")


def test_only_the_operator_s_key_changes_anything(served, post):
    for path in ("", "/active"):
        assert post(path, "one", headers={}).status_code == 401
        assert post(path, "one", headers={"Authorization": "Bearer wrong"}).status_code == 401
        refused = post(path, "one", headers={"Authorization": f"Bearer {CALLER}"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "operator_only")
    assert active_of(served[0])["id"] == "initial"


@pytest.mark.parametrize(
    ("key", "answers"),
    [
        (None, {None: 403, "Bearer none": 403, f"Bearer {KEY}": 403}),
        (KEY, {None: 401, "Bearer": 403, f"Basic {KEY}": 401, f"Bearer {KEY[:-1]}": 403, f"Bearer {KEY}\xff": 403, f"bearer {KEY}": 200}),
    ],
)
def test_where_anybody_may_ask_only_the_operator_may_change_and_without_a_key_nobody(settings, backend, make, key, answers):
    own = settings.model_copy(update={"port": make.free_port(), "redis": "off", "admin_key": SecretStr(key) if key else None})
    with make.running(own, backend) as (url, _):
        assert httpx.get(f"{url}/v1/models").status_code == 200
        for given, status in answers.items():
            headers = {"Authorization": given.encode("latin-1")} if given is not None else {}
            response = httpx.post(f"{url}/v1/probes/active", json={"id": "off"}, headers=headers)
            assert response.status_code == status, given
            assert (response.headers.get("www-authenticate") == "Bearer") is (status == 401)
            assert KEY not in response.text


def test_loading_again_reads_again_and_only_so_many_are_held(backend, tmp_path, monkeypatch):
    monkeypatch.setattr("introspect_service.probe_sets.MOST_LOADED", 2)
    own = backend.model.fingerprint
    for name in ("a", "b", "c"):
        make_set(tmp_path / name, own, f"{name}-1")
    probes = ProbeSets(backend, tmp_path)
    probes.activate("a")
    for name in ("b", "c"):
        probes.load(name)
    assert [name for name in probes.ids() if probes.held(name)] == ["initial", "off", "a", "b", "c"], "the active one is kept besides"
    shutil.rmtree(tmp_path / "b")
    make_set(tmp_path / "b", own, "b-2")
    assert probes.held("b").name == "b-1"
    assert probes.load("b").name == probes.held("b").name == "b-2"
    probes.activate("b")
    assert (probes.active, probes.scorer.name) == ("b", "b-2")
    assert probes.held("a") is None


def test_several_operators_at_once_leave_one_set_active(served, post):
    answers = []
    threads = [threading.Thread(target=lambda name=name: answers.append(post("/active", name))) for name in ("one", "two", "off") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [each.status_code for each in answers] == [200] * 6
    assert active_of(served[0])["id"] in ("one", "two", "off")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"probe_folder": "/no/such/folder"}, "expected a folder of probe sets"),
        ({"probe_folder": __file__}, "expected a folder of probe sets"),
        ({"admin_key": "short"}, "16"),
        ({"admin_key": CALLER, "api_keys": f"{CALLER},{KEY}"}, "every caller"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_start(wrong, says):
    with pytest.raises(ValueError, match=says) as refused:
        Settings(**wrong)
    assert CALLER not in str(refused.value)


def test_keys_are_not_shown():
    assert KEY not in repr(Settings(admin_key=KEY, probe_folder=str(Path(__file__).parent)))
