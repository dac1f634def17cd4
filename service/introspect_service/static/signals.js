// What tokens can be coloured by: the value of each signal as a share of its scale, and when it is worth a mark.

import { el } from "./dom.js";

export const STRATEGIES = {
  perceiving: "from the picture",
  reading: "from the marked passage",
  recalling: "from what was learned",
  "self-conditioned": "from its own words",
  guessing: "from none of these",
};

export const strategyHue = (label) => `var(--${label})`;

const probability = (token) => Math.exp(token.logprob);

export const SIGNALS = {
  risk: { of: (token) => token.introspection?.hallucination_risk, hue: "--risk", marks: "above", ends: ["0 safe", "1 risky"], start: 0.5 },
  confidence: { of: (token) => token.introspection?.confidence, hue: "--good", marks: "below", ends: ["0 unsure", "1 sure"], start: 0.5 },
  probability: { of: probability, hue: "--good", marks: "below", ends: ["0", "1"], start: 0.5 },
  // Two nats is a choice among seven or so equals: what lies beyond has the scale's last colour.
  entropy: { of: (token) => token.entropy, top: 2, hue: "--other", marks: "above", ends: ["0", "2 nats or more"], start: 1 },
  strategy: { of: () => undefined },
};

// How a token looks under a signal: `share` of the scale, or the hue of its strategy; nothing where it has no value.
export function look(token, name, threshold) {
  if (name === "strategy") {
    const label = token.introspection?.strategy?.label;
    return label ? { share: 0.6, hue: strategyHue(label), marked: false } : null;
  }
  const signal = SIGNALS[name];
  const value = signal.of(token);
  if (value === undefined || value === null) return null;
  const marked = signal.marks === "above" ? value >= threshold : value <= threshold;
  return { share: Math.max(0, Math.min(1, value / (signal.top ?? 1))), hue: `var(${signal.hue})`, marked };
}

export function strategyLegend(present = Object.keys(STRATEGIES)) {
  return present.map((label) =>
    el("span", { title: STRATEGIES[label] }, el("i", { class: "swatch", vars: { "--hue": strategyHue(label) } }), label),
  );
}

export function legendOf(name) {
  if (name === "strategy") return strategyLegend();
  const { ends, hue } = SIGNALS[name];
  return [el("span", {}, ends[0]), el("i", { class: "scale", vars: { "--hue": `var(${hue})` } }), el("span", {}, ends[1])];
}
