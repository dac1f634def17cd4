// The page: ask, watch the answer arrive, look into it, and see the stream of all answers below.

import { answer, getJson, postJson, setKey } from "./api.js";
import { byId, el, percent } from "./dom.js";
import { showDrift, watchDrift } from "./drift.js";
import { showFacts, showGauge, showKept } from "./gauge.js";
import { HeadMap, showOverlay } from "./heads.js";
import { Live } from "./live.js";
import { Picture } from "./picture.js";
import { showTimeline } from "./timeline.js";
import { Tokens } from "./tokens.js";

const state = { model: null, id: null, report: null, heads: null, own: false, abort: null };

const tokens = new Tokens((place) => chooseToken(place));
const map = new HeadMap(() => drawOverlay());
const picture = new Picture(
  (questions) => {
    state.own = false;
    drawOverlay();
    suggest(questions);
  },
  (words) => complain(words),
);
const live = new Live((id) => showStored(id));

function say(words) {
  byId("status").textContent = words;
}

function complain(words) {
  byId("problem").textContent = words;
  byId("problem").hidden = !words;
}

function suggest(questions) {
  const field = byId("question");
  const buttons = questions.map((words) => {
    const button = el("button", { type: "button" }, words);
    button.addEventListener("click", () => {
      field.value = words;
      byId("go").focus();
    });
    return button;
  });
  byId("suggestions").replaceChildren(...buttons);
  if (questions.length && !field.value) field.value = questions[0];
}

function clearAnswer() {
  Object.assign(state, { id: null, report: null, heads: null, own: false });
  complain("");
  tokens.clear();
  map.clear();
  byId("tokens").removeAttribute("aria-busy");
  for (const id of ["empty", "whole", "outside"]) byId(id).hidden = true;
  for (const id of ["tokens", "coloring"]) byId(id).hidden = false;
  byId("feedback-says").textContent = "";
  drawOverlay();
}

function requestBody() {
  const budget = byId("budget").value;
  const introspection = !budget ? true : budget === "full" ? { policy: "full" } : { kv_budget: budget, policy: "snapkv" };
  const parts = [{ type: "text", text: byId("question").value.trim() }];
  if (picture.uri) parts.unshift({ type: "image_url", image_url: { url: picture.uri } });
  return { model: state.model, messages: [{ role: "user", content: parts }], stream: true, logprobs: true, top_logprobs: 5, introspection };
}

async function ask() {
  state.abort?.abort();
  const abort = new AbortController();
  state.abort = abort;
  clearAnswer();
  state.own = true;
  working(true);
  say("reading the picture and the question…");
  let id = null;
  try {
    for await (const chunk of answer(requestBody(), abort.signal)) {
      id ??= chunk.id;
      const choice = chunk.choices[0];
      for (const token of choice?.logprobs?.content ?? []) tokens.add(token);
      if (tokens.list.length) say(`${tokens.list.length} tokens…`);
      if (chunk.introspection) warnOutside(chunk.introspection);
    }
    await showReport(id);
    showDrift();
  } catch (problem) {
    if (state.abort !== abort) return; // asked again since
    if (abort.signal.aborted) say("stopped");
    else fail(problem);
  } finally {
    if (state.abort === abort) working(false);
  }
}

function fail(problem) {
  say("");
  complain(problem.status ? problem.message : "The service does not answer.");
  if (problem.status === 401) {
    byId("key-row").hidden = false;
    byId("key").focus();
  }
  if (!tokens.list.length) byId("empty").hidden = false;
}

function working(on) {
  byId("go").disabled = on;
  byId("stop").hidden = !on;
  byId("tokens").setAttribute("aria-busy", String(on));
}

function warnOutside(said) {
  const words = said.note ?? "";
  const share = said.in_domain === undefined ? "" : ` (${percent(said.in_domain)} like what the probes were fitted on)`;
  byId("outside").textContent = words ? `${words}${share}` : "";
  byId("outside").hidden = !words;
}

async function showStored(id) {
  if (id === state.id) return;
  state.abort?.abort();
  state.abort = null;
  working(false);
  clearAnswer();
  try {
    await showReport(id);
  } catch (problem) {
    fail(problem);
  }
  byId("answer").scrollIntoView({ block: "start" });
}

async function showReport(id) {
  const report = await getJson(`/v1/introspection/${id}/answer`);
  state.id = id;
  state.report = report;
  if (report.state !== "completed") {
    tokens.replace(report.tokens);
    return say(report.state === "failed" ? "this answer was not completed" : "still being written");
  }
  tokens.replace(report.tokens);
  warnOutside(report.introspection);
  byId("whole").hidden = false;
  showGauge(report.introspection);
  showFacts(report);
  showKept(report.kept);
  map.offer(report.statistics);
  byId("download").href = `/v1/introspection/${id}`;
  say(report.tokens.length ? "complete" : "complete, and empty");
  // The claim most in doubt is what a reader asks about first.
  const risks = report.tokens.map((token) => token.introspection?.hallucination_risk ?? -1);
  const first = risks.length ? risks.indexOf(Math.max(...risks)) : -1;
  if (first >= 0) {
    tokens.mark(first);
    await chooseToken(first);
  } else {
    drawTimeline();
  }
}

const drawTimeline = () => showTimeline(tokens.list, tokens.selected, (place) => tokens.select(place));

async function chooseToken(place) {
  if (!state.report) return;
  drawTimeline();
  const token = tokens.list[place];
  byId("map-token").textContent = token.token.trim() || "␣";
  const asked = new URLSearchParams({ token: token.index, statistic: byId("statistic").value, row: byId("row").value });
  try {
    const heads = await getJson(`/v1/introspection/${state.id}/heads?${asked}`);
    if (tokens.selected !== place) return; // chosen another one since
    state.heads = heads;
    map.show(heads);
    drawOverlay();
  } catch (problem) {
    byId("map-says").textContent = problem.status ? problem.message : "The service does not answer.";
  }
}

// Only over the picture that this answer is about: an answer taken from the stream came with a picture we do not have.
function drawOverlay() {
  const grid = state.own && picture.uri ? state.report?.images[0] : null;
  showOverlay(state.heads, grid ?? null, map.selected);
}

async function label(button) {
  const says = byId("feedback-says");
  try {
    const taken = await (await postJson(`/v1/introspection/${state.id}/feedback`, { label: button.dataset.label })).json();
    const where = [taken.published ? "published on the stream" : "", taken.stored ? "stored for training" : ""].filter(Boolean);
    says.textContent = `Noted as ${taken.label}${where.length ? `, ${where.join(" and ")}` : ", and kept nowhere: the stream is away"}.`;
  } catch (problem) {
    says.textContent = problem.status ? problem.message : "The service does not answer.";
  }
}

async function begin() {
  try {
    const [card] = (await getJson("/v1/models")).data;
    const known = card.introspection;
    state.model = card.id;
    byId("model").textContent = `${card.id}: ${known.num_layers} layers of ${known.num_heads} heads.`;
    byId("probes").textContent = known.probe_set ? `Probe set ${known.probe_set}.` : "No probe set fits: uncalibrated scores only.";
  } catch (problem) {
    fail(problem);
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("form").requestSubmit();
  }
});
byId("stop").addEventListener("click", () => state.abort?.abort());
byId("opacity").addEventListener("input", drawOverlay);
for (const id of ["statistic", "row"]) byId(id).addEventListener("change", () => tokens.selected >= 0 && chooseToken(tokens.selected));
for (const button of byId("feedback").querySelectorAll("button")) button.addEventListener("click", () => label(button));
byId("key-row").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  complain("");
  begin();
  live.controller?.abort();
  showDrift();
});
byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
window.addEventListener("resize", () => state.report && drawTimeline());

picture.offerSamples();
begin();
live.run();
watchDrift();
