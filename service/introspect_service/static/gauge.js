// The answer as a whole: the confidence gauge with what it means, the other facts, and what the budget kept.

import { byId, el, percent, svg } from "./dom.js";
import { STRATEGIES } from "./signals.js";

export function showGauge(said) {
  const known = said.confidence !== undefined;
  const arc = "M 22 104 A 78 78 0 0 1 178 104";
  const length = Math.PI * 78;
  byId("gauge").replaceChildren(
    svg("title", { id: "gauge-title" }, known ? `Confidence ${percent(said.confidence)}` : "No confidence is told"),
    svg("path", { d: arc, class: "track" }),
    known ? svg("path", { d: arc, class: "value", "stroke-dasharray": `${said.confidence * length} ${length}` }) : null,
    svg("text", { x: 100, y: 98 }, known ? percent(said.confidence) : "–"),
    svg("text", { x: 22, y: 117, class: "end" }, "0"),
    svg("text", { x: 178, y: 117, class: "end" }, "100"),
  );
  byId("gauge-says").textContent = meaning(said);
}

function meaning(said) {
  if (said.confidence === undefined) {
    return "No probe set fits this model, so there is no calibrated confidence; the scores beside it are not probabilities.";
  }
  if (said.note && !said.mismatch) {
    return `The prompt is unlike those of the calibration, so the answer is held to be right with no more than ${percent(said.confidence)}.`;
  }
  const words = `Of a hundred answers with this confidence, about ${Math.round(100 * said.confidence)} are right`;
  return said.mismatch ? `${words}, were the probe set made for this. It is not: ${said.mismatch}` : `${words}, among prompts like those of the calibration.`;
}

export function showFacts(report) {
  const said = report.introspection;
  const budget = report.effective_budget;
  const facts = [];
  if (said.hallucination_risk !== undefined) facts.push(["Hallucination risk", `${percent(said.hallucination_risk)} that some claim is false`]);
  if (said.strategy) facts.push(["Strategy", `${said.strategy.label}: ${STRATEGIES[said.strategy.label]}${alsoPossible(said.strategy)}`]);
  if (said.guarantee) facts.push(["Guarantee", promise(said.guarantee)]);
  if (said.in_domain !== undefined) facts.push(["Like the calibration", percent(said.in_domain)]);
  facts.push(["KV budget", `${budget.policy}, ${budget.effective.toFixed(0)} of ${budget.prompt_tokens} entries a head`]);
  facts.push(["Probe set", said.calibrated ? said.probe_set : "none that fits"]);
  facts.push(["Time", `${report.seconds.toFixed(2)} s, ${report.tokens.length} token${report.tokens.length === 1 ? "" : "s"}`]);
  if (said.scores && said.confidence === undefined) {
    for (const [name, value] of Object.entries(said.scores)) facts.push([name.replaceAll("_", " "), value.toFixed(3)]);
  }
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function promise({ accepted, threshold, target_risk, delta }) {
  if (!accepted) return `none: the confidence is under the threshold of ${percent(threshold)}`;
  const share = `at most ${percent(target_risk)} of the answers over the threshold of ${percent(threshold)} are wrong`;
  return `${share}, unless the choice of the threshold was unlucky (a chance of ${percent(delta)}) or prompts are no longer like those of the calibration`;
}

function alsoPossible(strategy) {
  const others = strategy.set.filter((label) => label !== strategy.label);
  return others.length ? ` (or ${others.join(", ")})` : "";
}

export function showKept(kept) {
  const rows = Object.entries(kept).flatMap(([segment, { logical, retained }]) => [
    el("span", {}, segment),
    el("span", { class: "bar" }, el("i", { vars: { width: `${Math.min(100, (100 * retained) / logical)}%` } })),
    el("span", { class: "num" }, `${retained.toFixed(retained % 1 ? 1 : 0)} of ${logical}`),
  ]);
  byId("kept").replaceChildren(...rows);
}
