// Confidence and risk through the answer, over a band of strategies; a click chooses a token.

import { byId, svg, el, visible } from "./dom.js";
import { STRATEGIES, strategyHue, strategyLegend } from "./signals.js";

const HEIGHT = 150;
const TOP = 10;
const BOTTOM = 112;
const BAND = 22;

export function showTimeline(tokens, selected, choose) {
  const box = byId("timeline");
  const width = Math.max(260, box.clientWidth);
  const left = 26;
  const step = (width - left - 4) / Math.max(1, tokens.length);
  const x = (place) => left + (place + 0.5) * step;
  const y = (value) => BOTTOM - value * (BOTTOM - TOP);
  const points = tokens.map((token, place) => [place, token.introspection?.confidence]).filter(([, value]) => value !== undefined);
  const risks = tokens.map((token, place) => [place, token.introspection?.hallucination_risk]).filter(([, value]) => value !== undefined);
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": "Confidence and risk by token, strategies below" },
    selected >= 0 ? svg("rect", { class: "chosen", x: left + selected * step, y: 0, width: step, height: HEIGHT }) : null,
    ...[0, 0.5, 1].flatMap((value) => [
      svg("line", { class: "axis", x1: left, x2: width, y1: y(value), y2: y(value) }),
      svg("text", { x: 0, y: y(value) + 4 }, String(value)),
    ]),
    svg("polyline", { class: "confidence", points: points.map(([place, value]) => `${x(place)},${y(value)}`).join(" ") }),
    points.length === 1 ? svg("circle", { class: "alone", cx: x(points[0][0]), cy: y(points[0][1]), r: 4 }) : null,
    ...risks.map(([place, value]) => svg("circle", { class: "risk", cx: x(place), cy: y(value), r: 4.5 })),
    ...tokens.map((token, place) => band(token, place, left + place * step, step, choose)),
  );
  box.replaceChildren(drawing);
  const present = Object.keys(STRATEGIES).filter((label) => tokens.some((token) => token.introspection?.strategy?.label === label));
  byId("timeline-legend").replaceChildren(
    el("span", {}, el("i", { class: "swatch", vars: { "--hue": "var(--text)" } }), "confidence so far (line)"),
    el("span", {}, el("i", { class: "swatch", vars: { "--hue": "var(--risk)" } }), "risk of a claim (dots)"),
    ...strategyLegend(present),
    present.length ? "" : el("span", {}, "no strategy is told"),
  );
}

function band(token, place, at, step, choose) {
  const label = token.introspection?.strategy?.label;
  const words = `${visible(token.token)}: ${label ? `${label}, ${STRATEGIES[label]}` : "decides nothing"}`;
  return svg(
    "rect",
    { class: label ? "band known" : "band", x: at, y: HEIGHT - BAND, width: step, height: BAND, vars: label ? { "--hue": strategyHue(label) } : {},
      on: { click: () => choose(place) } },
    svg("title", {}, words),
  );
}
