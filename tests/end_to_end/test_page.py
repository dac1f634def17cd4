"""The page at `/`, clicked through in headless Chromium against a real service with the embedded model."""

from __future__ import annotations

import base64
import math
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from introspect_probes.drift import STREAMS
from introspect_probes.probe_set import load_probe_set
from introspect_probes.reference import Reference

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from introspect_service.cli import app; app(prog_name='introspect')"]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1400",
)  # fmt: skip
PATIENCE = 90


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """`introspect serve` as a process, with the embedded probe set and a reference for drift that is known here."""
    port, redis_port, probes = free_port(), free_port(), tmp_path_factory.mktemp("probes")
    usual = np.random.default_rng(0).normal(0.25, 0.01, (100, len(STREAMS))).astype(np.float32)
    replace(load_probe_set(), reference=Reference(STREAMS, usual, usual[:0])).save(probes)
    arguments = [*COMMAND, "serve", "--port", str(port), "--redis-port", str(redis_port), "--probes", str(probes)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as process:
        try:
            assert "service" in process.stdout.readline()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@pytest.fixture(scope="module")
def chromium():
    """One browser for all tests."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(programs[1]))
    try:
        yield browser
    finally:
        browser.quit()


class Page:
    """The page as a reader uses it."""

    def __init__(self, browser, url):
        self.browser, self.url = browser, url

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def js(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def until(self, condition):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, PATIENCE).until(lambda _: condition())

    def ask(self, question, sample=0):
        self.all("#samples button")[sample].click()
        self.until(
            lambda: self.one("#frame").is_displayed() and self.all("#samples button")[sample].get_attribute("aria-pressed") == "true"
        )
        field = self.one("#question")
        field.clear()
        field.send_keys(question)
        self.one("#go").click()
        self.until(lambda: self.one("#status").text.startswith("complete"))
        self.until(lambda: self.all("#map .head"))

    @property
    def answer_id(self):
        return self.one("#download").get_attribute("href").rpartition("/")[2]

    def report(self):
        """What the service says of the answer that is shown."""
        return httpx.get(f"{self.url}/v1/introspection/{self.answer_id}/answer", timeout=30).json()

    def tokens(self):
        """Text, share of the scale and mark of each token."""
        return self.js(
            "return [...document.querySelectorAll('.token')].map(t => ({text: t.textContent, share: +t.style.getPropertyValue('--v'),"
            " marked: t.classList.contains('marked')}))"
        )

    def choose(self, select, value):
        self.js(
            "const s = document.querySelector(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input', {bubbles: true}));"
            "s.dispatchEvent(new Event('change', {bubbles: true}))",
            select,
            value,
        )


@pytest.fixture
def page(chromium, url):
    """The page, loaded afresh; afterwards the browser must not have complained, nor asked anybody else."""
    chromium.get_log("browser")
    chromium.get(f"{url}/")
    shown = Page(chromium, url)
    shown.until(lambda: shown.one("#model").text != "…")
    yield shown
    assert chromium.get_log("browser") == []
    asked = shown.js("return performance.getEntriesByType('resource').map(e => e.name)")
    assert asked
    assert all(name.startswith((url, "data:")) for name in asked), asked


@pytest.fixture
def described(page):
    """The page with an answer of several claims."""
    page.ask("describe everything")
    return page


def test_the_page_allows_nothing_but_its_own_files(url):
    response = httpx.get(f"{url}/")
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert httpx.get(f"{url}/", headers={"If-None-Match": response.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("path", ["../settings.py", "%2e%2e/settings.py", "/etc/passwd", "samples/../../app.py", "nothing.js", ""])
def test_only_the_page_s_own_files_are_sent(url, path):
    assert httpx.get(f"{url}/page/{path}").status_code == 404


def test_model_output_is_only_ever_put_in_as_text():
    scripts = [path.read_text(encoding="utf-8") for path in (ROOT / "service/introspect_service/static").glob("*.js")]
    assert len(scripts) > 5
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "https:"):
        assert not any(word in script for script in scripts), word


def test_an_answer_is_shown_with_the_service_s_own_numbers(described):
    page, told = described, described.report()
    assert "".join(token["text"] for token in page.tokens()) == told["text"] == "".join(token["token"] for token in told["tokens"])
    said = told["introspection"]
    assert page.one("#gauge text").text == f"{round_half(100 * said['confidence'])} %"
    assert str(round_half(100 * said["confidence"])) in page.one("#gauge-says").text
    assert said["strategy"]["label"] in page.one("#facts").text
    assert said["probe_set"] in page.one("#facts").text
    assert page.one("#outside").is_displayed() == ("note" in said)
    image = told["kept"]["image"]
    assert f"of {image['logical']}" in page.one("#kept").text


def round_half(value):
    """As JavaScript's toFixed(0) rounds."""
    return math.floor(value + 0.5)


GUARANTEED = """
const [accepted, done] = [arguments[1], arguments[2]];
const guarantee = accepted === null ? undefined : {accepted, threshold: 0.9, target_risk: 0.05, delta: 0.1};
import('/page/gauge.js').then(m => {
  m.showFacts({...arguments[0], introspection: {...arguments[0].introspection, guarantee}});
  done([...document.querySelectorAll('#facts dt')].map(t => [t.textContent, t.nextSibling.textContent.replaceAll('\\u00a0', ' ')]));
});
"""


def test_a_guarantee_is_told_where_the_probe_set_has_one_and_only_there(described):
    report = described.report()
    own = report["introspection"]["guarantee"]
    assert ("none: " in described.one("#facts").text) != own["accepted"]
    kept, missed, none = (dict(described.browser.execute_async_script(GUARANTEED, report, told)) for told in (True, False, None))
    assert "Guarantee" not in none
    assert kept["Guarantee"].startswith("at most 5 % of the answers over the threshold of 90 % are wrong, unless")
    assert "(a chance of 10 %)" in kept["Guarantee"]
    assert missed["Guarantee"] == "none: the confidence is under the threshold of 90 %"


def test_colour_and_marks_follow_the_chosen_signal_and_threshold(described):
    page, told = described, described.report()["tokens"]
    risks = [token["introspection"].get("hallucination_risk") for token in told]
    assert sum(risk is not None for risk in risks) >= 3
    assert [token["share"] for token in page.tokens()] == pytest.approx([risk or 0 for risk in risks], abs=1e-3)
    known = sorted(risk for risk in risks if risk is not None)
    middle = math.ceil(100 * known[len(known) // 2]) / 100
    for threshold in (0, middle, 1):
        page.choose("#threshold", str(threshold))
        assert [token["marked"] for token in page.tokens()] == [risk is not None and risk >= threshold for risk in risks]
    page.choose("#signal", "probability")
    assert [token["share"] for token in page.tokens()] == pytest.approx([math.exp(token["logprob"]) for token in told], abs=1e-3)
    page.choose("#signal", "strategy")
    states = [token["introspection"].get("strategy") for token in told]
    assert [token["share"] > 0 for token in page.tokens()] == [state is not None for state in states]
    assert not page.one("#threshold-label").is_displayed()
    assert len(page.all("#timeline .band.known")) == sum(state is not None for state in states)


def test_tokens_and_heads_can_be_walked_through_with_the_keyboard(described):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page, told = described, described.report()
    press = lambda *keys: ActionChains(page.browser).send_keys(*keys).perform()  # noqa: E731
    page.js("document.querySelector('.token[aria-selected=true]').focus()")
    press(Keys.HOME)
    press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    focused = page.js("return [...document.querySelectorAll('.token')].indexOf(document.activeElement)")
    assert focused == 1
    token = told["tokens"][1]
    card = page.one("#card").text
    assert page.one("#card").is_displayed()
    assert f"{100 * math.exp(token['logprob']):.1f} %" in card
    assert all(each["token"].strip() in card for each in token["top_logprobs"])
    press(Keys.ENTER)
    page.until(lambda: page.one("#map-token").text == token["token"].strip())
    press(Keys.ESCAPE)
    assert not page.one("#card").is_displayed()

    shape = told["shape"]
    assert len(page.all("#map .head")) == shape["layers"] * shape["heads"]
    page.js("document.querySelector('#map .head').focus()")
    press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ENTER)
    assert page.one("#map .head[aria-selected=true]").get_attribute("aria-label").startswith("layer 1, head 1")


def test_the_map_and_the_overlay_show_the_chosen_token_s_heads(described):
    page, told = described, described.report()
    places = [place for place, token in enumerate(told["tokens"]) if token["token"].strip()][:2]
    pictures = []
    for place in places:
        page.js("document.querySelectorAll('.token')[arguments[0]].click()", place)
        asked = {"token": told["tokens"][place]["index"], "statistic": "image_output_share"}
        page.choose("#statistic", "image_output_share")
        heads = httpx.get(f"{page.url}/v1/introspection/{page.answer_id}/heads", params=asked).json()
        values = [value for layer in heads["values"] for value in layer]
        low, high = min(0, *values), max(values)
        expected = pytest.approx([(value - low) / (high - low) for value in values], abs=2e-3)
        page.until(lambda expected=expected: page.js(SHARES) == expected)
        pictures.append(page.js("return document.querySelector('#overlay').toDataURL()"))
    assert pictures[0] != pictures[1]
    blank = page.js("const c = document.createElement('canvas'); c.width = c.height = 480; return c.toDataURL()")
    assert blank not in pictures
    page.choose("#statistic", "retained.image")
    page.until(lambda: len(page.all("#map .head")) == told["shape"]["layers"] * told["shape"]["kv_heads"])


SHARES = "return [...document.querySelectorAll('#map .head')].map(h => +h.style.getPropertyValue('--v'))"


def test_feedback_is_given_with_a_click(described):
    described.one("#feedback [data-label=wrong]").click()
    described.until(lambda: "published on the stream" in described.one("#feedback-says").text)
    assert "stored" not in described.one("#feedback-says").text


def test_drift_is_shown_beside_what_is_usual(described):
    described.until(lambda: described.all("#drift-rows tr"))
    watched = httpx.get(f"{described.url}/v1/probes/drift", timeout=30).json()
    shown = [[cell.text for cell in row.find_elements("css selector", "td")] for row in described.all("#drift-rows tr")]
    confidence = next(stream for stream in watched["kinds"][0]["streams"] if stream["name"] == "confidence")
    assert shown[0] == ["confidence", "kept whole", "0.25", f"{confidence['recent']:.2f}", str(confidence["answers"]), "none"]
    assert described.one("#drift-state").text.startswith("no change told in ")


def test_other_clients_answers_show_live_and_can_be_opened(page, url):
    page.until(lambda: page.one("#live-state").text == "connected")
    picture = base64.b64encode((ROOT / "samples/scene-2.png").read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": "describe everything"},
    ]
    model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE).json()
    mine = f"//tr[td[contains(@title, '{answer['id']}')]]"
    row = page.until(lambda: next(iter(page.browser.find_elements("xpath", mine)), None))
    page.until(lambda: "completed" in row.text)
    assert answer["choices"][0]["message"]["content"][:100] in row.text
    row.find_element("css selector", "button").click()
    page.until(lambda: page.one("#status").text.startswith("complete"))
    assert page.answer_id == answer["id"]
    assert "".join(token["text"] for token in page.tokens()) == answer["choices"][0]["message"]["content"]


def test_a_dropped_picture_is_asked_about_and_a_wrong_file_refused(page):
    drop = (
        "const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0)); const data = new DataTransfer();"
        "data.items.add(new File([bytes], 'x', {type: arguments[1]}));"
        "document.querySelector('#drop').dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}))"
    )
    page.js(drop, base64.b64encode(b"hello").decode(), "text/plain")
    assert "png, jpeg or webp" in page.one("#problem").text
    page.js(drop, base64.b64encode((ROOT / "samples/scene-3.png").read_bytes()).decode(), "image/png")
    page.until(lambda: page.one("#frame").is_displayed())
    page.one("#question").send_keys("how many digits ?\n")
    page.until(lambda: page.one("#status").text.startswith("complete"))
    assert page.report()["images"] == [{"rows": 12, "columns": 12}]


def test_what_the_model_does_not_know_is_said(page):
    page.ask("what is in this picture ?", sample=4)
    said = page.report()["introspection"]
    assert said["note"] in page.one("#outside").text


@pytest.mark.parametrize("width", [360, 700])
def test_nothing_is_cut_off_on_a_narrow_window(page, width):
    emulate = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", emulate)
    try:
        page.ask("describe everything")
        assert page.js("return document.documentElement.scrollWidth") <= width
        assert page.one("#map").is_displayed()
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_dark_and_light_are_both_readable_and_can_be_switched(page):
    def contrast():
        return page.js(
            "const s = getComputedStyle(document.querySelector('#ask')); const lum = c => { const [r, g, b] = c.match(/[\\d.]+/g)"
            ".map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126*r + .7152*g + .0722*b; };"
            "const [a, b] = [lum(s.color), lum(s.backgroundColor)]; return [a > b, (Math.max(a, b) + .05) / (Math.min(a, b) + .05)]"
        )

    (was_dark, first), _ = contrast(), page.one("#theme").click()
    is_dark, second = contrast()
    assert was_dark != is_dark
    assert min(first, second) > 7  # WCAG's enhanced contrast
