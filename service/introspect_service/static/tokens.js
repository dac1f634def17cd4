// The answer's tokens, coloured, and the card of the one that is pointed at.

import { byId, el, percent, roving, visible } from "./dom.js";
import { look, SIGNALS, STRATEGIES, legendOf, strategyHue } from "./signals.js";

const MOST_SHOWN = 3000; // elements that a browser lays out without a pause

export class Tokens {
  constructor(choose) {
    this.box = byId("tokens");
    this.card = byId("card");
    this.choose = choose;
    this.list = [];
    this.selected = -1;
    roving(this.box, ".token", (place) => this.select(place));
    this.box.addEventListener("focusin", (event) => this.showCard(event.target));
    this.box.addEventListener("focusout", () => this.hideCard());
    this.box.addEventListener("pointerover", (event) => this.showCard(event.target));
    this.box.addEventListener("pointerleave", () => this.hideCard());
    this.box.addEventListener("click", (event) => {
      const place = [...this.box.children].indexOf(event.target.closest(".token"));
      if (place >= 0) this.select(place);
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.hideCard());
    byId("signal").addEventListener("change", () => this.setSignal());
    byId("threshold").addEventListener("input", () => this.paint());
    this.setSignal();
  }

  clear() {
    this.list = [];
    this.selected = -1;
    this.box.replaceChildren();
    this.hideCard();
  }

  add(token) {
    this.list.push(token);
    if (this.list.length > MOST_SHOWN) return;
    const item = el("span", { class: "token", role: "option", "aria-selected": "false", tabindex: this.list.length === 1 ? 0 : -1 }, token.token);
    this.box.append(item);
    this.paintOne(item, token);
  }

  // The whole answer again with all that is known of it.
  replace(list) {
    const chosen = this.selected;
    this.clear();
    for (const token of list) this.add(token);
    if (chosen >= 0 && chosen < list.length) this.mark(chosen);
  }

  select(place) {
    this.mark(place);
    this.choose(place);
  }

  mark(place) {
    this.selected = place;
    [...this.box.children].forEach((item, at) => {
      item.setAttribute("aria-selected", String(at === place));
      item.tabIndex = at === place ? 0 : -1;
    });
  }

  setSignal() {
    this.signal = byId("signal").value;
    const { marks, start, top } = SIGNALS[this.signal];
    byId("threshold-label").hidden = !marks;
    if (marks) {
      byId("threshold-way").textContent = marks;
      byId("threshold").max = top ?? 1;
      byId("threshold").value = start;
    }
    byId("legend").replaceChildren(...legendOf(this.signal));
    this.paint();
  }

  paint() {
    byId("threshold-value").textContent = Number(byId("threshold").value).toFixed(2);
    [...this.box.children].forEach((item, place) => this.paintOne(item, this.list[place]));
  }

  paintOne(item, token) {
    const seen = look(token, this.signal, Number(byId("threshold").value));
    item.style.setProperty("--v", seen ? seen.share.toFixed(3) : 0);
    if (seen) item.style.setProperty("--hue", seen.hue);
    item.classList.toggle("marked", Boolean(seen?.marked));
    item.setAttribute("aria-label", describe(token));
  }

  showCard(target) {
    const item = target.closest?.(".token");
    if (!item) return;
    const token = this.list[[...this.box.children].indexOf(item)];
    this.card.replaceChildren(...cardOf(token));
    this.card.hidden = false;
    const place = item.getBoundingClientRect();
    const width = this.card.offsetWidth;
    const left = Math.max(8, Math.min(place.left + window.scrollX, document.documentElement.clientWidth - width - 8));
    this.card.style.left = `${left}px`;
    this.card.style.top = `${place.bottom + window.scrollY + 8}px`;
  }

  hideCard() {
    this.card.hidden = true;
  }
}

function describe(token) {
  const risk = token.introspection?.hallucination_risk;
  return `${token.token.trim() || visible(token.token)}, probability ${percent(Math.exp(token.logprob))}${risk === undefined ? "" : `, risk ${percent(risk)}`}`;
}

function cardOf(token) {
  const said = token.introspection ?? {};
  const facts = [["probability", percent(Math.exp(token.logprob), 1)]];
  if (token.entropy !== undefined && token.entropy !== null) facts.push(["entropy", `${token.entropy.toFixed(2)} nats`]);
  if (said.hallucination_risk !== undefined) {
    facts.push(["risk", `${percent(said.hallucination_risk)} (heads and logits ${percent(said.internal)}, place ${percent(said.prior)})`]);
  } else {
    facts.push(["risk", "none told: no claim is decided here"]);
  }
  if (said.confidence !== undefined) facts.push(["confidence", `${percent(said.confidence)} so far`]);
  if (said.strategy) facts.push(["strategy", `${said.strategy.label}: ${STRATEGIES[said.strategy.label]}`]);
  const list = el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  return [el("h4", {}, visible(token.token)), list, strategyBars(said.strategy), candidates(token)];
}

function strategyBars(strategy) {
  if (!strategy) return "";
  const rows = Object.entries(strategy.probabilities).sort((one, other) => other[1] - one[1]);
  return bars(rows.map(([label, value]) => [el("span", {}, label), value, strategyHue(label)]));
}

function candidates(token) {
  if (!token.top_logprobs?.length) return "";
  return bars(token.top_logprobs.slice(0, 5).map((each) => [el("code", {}, visible(each.token)), Math.exp(each.logprob), "var(--good)"]));
}

function bars(rows) {
  const cells = rows.flatMap(([name, value, hue]) => [
    name,
    el("span", { class: "bar" }, el("i", { vars: { width: percent(value, 1).replace(" ", ""), background: hue } })),
    el("span", { class: "num" }, percent(value)),
  ]);
  return el("div", { class: "bars" }, ...cells);
}
