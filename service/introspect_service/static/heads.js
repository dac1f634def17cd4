// The map of one statistic over layers and heads, and where the heads look on the picture.

import { byId, el, percent, roving } from "./dom.js";

const NAMES = {
  "mass.image": "attention on the picture",
  "mass.sink": "attention on the first token",
  "mass.question": "attention on the question",
  "mass.context": "attention on marked passages",
  "mass.template": "attention on the template",
  "mass.generated": "attention on its own words",
  image_output_share: "share of the output from the picture",
  image_max: "sharpest look at the picture",
  image_entropy: "spread over the picture (nats)",
  entropy: "spread of attention (nats)",
  max_prob: "largest attention",
  lse: "log-sum-exp of the scores (nats)",
  sum_sq: "concentration",
  self_mass: "attention on itself",
  previous_mass: "attention on the token before",
  mean_distance: "mean distance (tokens)",
  windowed_distance: "mean distance, at most 10 (tokens)",
};

export class HeadMap {
  constructor(choose) {
    this.box = byId("map");
    this.columns = 1;
    this.selected = null;
    this.choose = choose;
    roving(this.box, ".head", (place) => this.toggle(place), () => this.columns);
    this.box.addEventListener("click", (event) => {
      const place = [...this.box.querySelectorAll(".head")].indexOf(event.target.closest(".head"));
      if (place >= 0) this.toggle(place);
    });
    for (const event of ["pointerover", "focusin"]) this.box.addEventListener(event, ({ target }) => this.say(target));
  }

  offer(statistics) {
    const select = byId("statistic");
    if (select.options.length) return;
    const known = Object.keys(NAMES).filter((name) => statistics.includes(name));
    const others = statistics.filter((name) => !known.includes(name) && !name.startsWith("argmax"));
    for (const name of [...known, ...others]) select.append(el("option", { value: name }, NAMES[name] ?? name.replaceAll("_", " ").replace(".", ": ")));
  }

  show(report) {
    this.report = report;
    const { values } = report;
    this.columns = values[0].length;
    const known = values.flat().filter((value) => value !== null);
    const low = Math.min(0, ...known);
    const high = Math.max(...known, low + 1e-9);
    this.box.classList.toggle("dense", values.length * this.columns > 256);
    this.box.style.gridTemplateColumns = `auto repeat(${this.columns}, minmax(4px, 1fr))`;
    const cells = [];
    values.forEach((layer, number) => {
      cells.push(el("span", { class: "label" }, `layer ${number}`));
      layer.forEach((value, head) => cells.push(this.cell(number, head, value, (value - low) / (high - low))));
    });
    this.box.replaceChildren(...cells);
    this.mark();
    byId("map-says").textContent = known.length
      ? `From ${show(low)} (empty) to ${show(high)} (full). ${values.length} layers of ${this.columns} heads; a click shows one head alone on the picture.`
      : "No head has such a value here.";
  }

  cell(layer, head, value, share) {
    const words = `layer ${layer}, head ${head}: ${value === null ? "no value" : show(value)}`;
    return el("span", {
      class: value === null ? "head absent" : "head", role: "gridcell", tabindex: layer + head === 0 ? 0 : -1, title: words, "aria-label": words,
      vars: { "--v": value === null ? 0 : share.toFixed(3) },
    });
  }

  toggle(place) {
    const head = { layer: Math.floor(place / this.columns), head: place % this.columns, place };
    this.selected = this.selected?.place === place ? null : head;
    this.mark();
    this.choose(this.selected);
  }

  clear() {
    this.selected = null;
  }

  mark() {
    [...this.box.querySelectorAll(".head")].forEach((cell, place) => cell.setAttribute("aria-selected", String(this.selected?.place === place)));
  }

  say(target) {
    const words = target.closest?.(".head")?.getAttribute("aria-label");
    if (words) byId("map-says").textContent = words;
  }
}

const show = (value) => (Number.isInteger(value) ? String(value) : Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3));

// Each head points at the one patch it attends to most, with the share of its attention that the picture has.
export function showOverlay(report, grid, chosen) {
  const canvas = byId("overlay");
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  byId("overlay-controls").hidden = !grid;
  if (!grid || !report) return;
  const weights = new Float64Array(grid.rows * grid.columns);
  let heads = 0;
  report.patches.forEach((layer, number) =>
    layer.forEach((patch, head) => {
      if (!patch || patch[0] !== 0 || (chosen && (chosen.layer !== number || chosen.head !== head))) return;
      weights[patch[1] * grid.columns + patch[2]] += chosen ? 1 : report.image_mass[number][head];
      heads += 1;
    }),
  );
  const most = Math.max(...weights, 1e-9);
  const width = canvas.width / grid.columns;
  const height = canvas.height / grid.rows;
  const opacity = Number(byId("opacity").value);
  weights.forEach((weight, place) => {
    const at = [(place % grid.columns) * width, Math.floor(place / grid.columns) * height, width, height];
    context.fillStyle = `rgba(6, 18, 28, ${0.4 * opacity * (1 - weight / most)})`;
    context.fillRect(...at);
    if (weight / most > 0.04) {
      context.strokeStyle = `rgba(255, 138, 0, ${opacity * Math.sqrt(weight / most)})`;
      context.lineWidth = 5;
      context.strokeRect(at[0] + 2.5, at[1] + 2.5, width - 5, height - 5);
    }
  });
  const share = weights.reduce((one, other) => Math.max(one, other), 0) / Math.max(1e-9, weights.reduce((one, other) => one + other, 0));
  byId("overlay-says").textContent = chosen
    ? `layer ${chosen.layer}, head ${chosen.head}${heads ? "" : ": keeps nothing of the picture"}`
    : heads ? `${heads} heads; the brightest patch has ${percent(share)} of their looks` : "no head keeps anything of the picture";
}
