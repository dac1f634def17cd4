// Whether answers still look like those of the calibration: asked for again and again, and after each answer of this page.

import { getJson } from "./api.js";
import { byId, el } from "./dom.js";

const PAUSE_MS = 10000;
const NAMES = {
  confidence: "confidence",
  hallucination_risk: "hallucination risk",
  in_domain: "likeness to the calibration",
  mean_logprob: "log-probability of tokens, nats",
  feature_distance: "distance of head statistics from the fit, deviations",
};

const number = (value) => (Math.abs(value) < 0.005 ? "0.00" : value.toFixed(2));
const place = (cache) => (cache === "whole" ? "kept whole" : "reduced");

export async function showDrift() {
  let report;
  try {
    report = await getJson("/v1/probes/drift");
  } catch {
    return; // the rest of the page says that the service is away
  }
  const rows = (report.kinds ?? []).flatMap((kind) => kind.streams.filter((stream) => stream.answers).map((stream) => rowOf(kind, stream)));
  byId("drift-rows").replaceChildren(...rows);
  byId("drift-scroll").hidden = !rows.length;
  byId("drift-state").textContent = words(report);
}

function words(report) {
  if (!report.watched) return `not watched: ${report.reason}`;
  const seen = report.kinds.reduce((sum, kind) => sum + kind.answers, 0);
  if (!seen) return `answers will be compared with those that ${report.probe_set} was calibrated on`;
  const told = report.kinds.flatMap((kind) => kind.streams).some((stream) => stream.alarms);
  const answers = `${seen} answer${seen === 1 ? "" : "s"}`;
  return told ? `a change was told within ${answers}` : `no change told in ${answers}`;
}

function rowOf(kind, stream) {
  const told = stream.alarms ? `at answer ${stream.last_alarm}, ${new Date(stream.last_alarm_time).toLocaleTimeString()}` : "none";
  return el(
    "tr",
    { class: stream.alarms ? "drifted" : undefined },
    el("td", {}, NAMES[stream.name] ?? stream.name),
    el("td", {}, place(kind.cache)),
    el("td", { class: "num" }, number(stream.reference)),
    el("td", { class: "num" }, stream.recent === undefined ? "–" : number(stream.recent)),
    el("td", { class: "num" }, String(stream.answers)),
    el("td", {}, told),
  );
}

export async function watchDrift() {
  for (;;) {
    if (!document.hidden) await showDrift();
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}
