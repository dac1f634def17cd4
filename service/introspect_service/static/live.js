// The table of requests, fed by the Redis stream itself: other clients' answers show too, those of every replica.

import { events, request } from "./api.js";
import { byId, el, percent } from "./dom.js";

const MOST_ROWS = 100;
const PAUSE_MS = 2000;
const HISTORY_MS = 600_000; // ids of entries are milliseconds since 1970

export class Live {
  constructor(open) {
    this.open = open;
    this.rows = new Map();
    this.last = null;
    this.controller = null;
  }

  async run() {
    for (;;) {
      this.controller = new AbortController();
      try {
        const headers = this.last ? { "Last-Event-ID": this.last } : {};
        const response = await request(`/v1/signals?from=${Date.now() - HISTORY_MS}`, { headers, signal: this.controller.signal });
        this.say("connected");
        for await (const event of events(response)) this.hear(event);
        this.say("ended; connecting again…");
      } catch (problem) {
        if (problem.status === 404) return this.say("off: the service runs with --redis off");
        this.say(problem.status ? problem.message : "the service does not answer; trying again…");
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  }

  say(words) {
    byId("live-state").textContent = words;
  }

  hear({ event, id, data }) {
    if (event === "away") return this.say("the stream's server is away; events wait for it");
    if (event === "back") return this.say("connected");
    if (!event.startsWith("introspect.")) return;
    if (id) this.last = id;
    const entry = JSON.parse(data);
    const row = this.rowOf(entry);
    row.count += 1;
    row.cells.count.textContent = row.count;
    this.tell(row, event.split(".")[1], entry.data);
    row.element.classList.add("fresh");
    clearTimeout(row.timer);
    row.timer = setTimeout(() => row.element.classList.remove("fresh"), 1200);
  }

  rowOf(entry) {
    const key = `${entry.source} ${entry.subject}`;
    const found = this.rows.get(key);
    if (found) return found;
    byId("live-empty").hidden = true;
    const names = ["time", "state", "text", "confidence", "risk", "strategy", "tokens", "count"];
    const classes = { text: "text", confidence: "num", risk: "num", tokens: "num", count: "num" };
    const cells = Object.fromEntries(names.map((name) => [name, el("td", { class: classes[name] })]));
    cells.time.textContent = new Date(entry.time).toLocaleTimeString();
    cells.time.title = `${entry.subject} from ${entry.source}`;
    const button = el("button", { type: "button", title: "Show this answer above" });
    button.addEventListener("click", () => this.open(entry.subject));
    cells.text.append(button);
    const row = { element: el("tr", {}, ...names.map((name) => cells[name])), cells, button, text: "", state: "", alerts: [], tokens: 0, count: 0, timer: 0 };
    this.rows.set(key, row);
    byId("requests").prepend(row.element);
    if (this.rows.size > MOST_ROWS) {
      const [oldest, gone] = this.rows.entries().next().value;
      gone.element.remove();
      this.rows.delete(oldest);
    }
    return row;
  }

  tell(row, kind, data) {
    const { cells, button } = row;
    if (kind === "started") row.state = "started";
    if (kind === "step") {
      row.state = "writing";
      for (const token of data.tokens) row.text += token.text;
      row.tokens += data.tokens.length;
      const last = data.tokens.at(-1).introspection;
      if (last.confidence !== undefined) cells.confidence.textContent = percent(last.confidence);
    }
    if (kind === "completed") {
      const said = data.introspection;
      row.state = said.note ? "completed, outside what the model knows" : "completed";
      row.text = data.text;
      row.tokens = data.completion_tokens;
      cells.confidence.textContent = said.confidence === undefined ? "–" : percent(said.confidence);
      cells.risk.textContent = said.hallucination_risk === undefined ? "–" : percent(said.hallucination_risk);
      cells.strategy.textContent = said.strategy?.label ?? "–";
    }
    if (kind === "failed") row.state = `failed: ${data.reason}`;
    if (kind === "feedback") row.state = `said to be ${data.label}`;
    if (kind === "alert") this.alert(row, data);
    cells.state.textContent = row.alerts.length ? `${row.state}; alerts: ${row.alerts.length}` : row.state;
    button.textContent = row.text.length > 160 ? `${row.text.slice(0, 160)}…` : row.text;
    cells.tokens.textContent = row.tokens || "";
  }

  alert(row, data) {
    const what = data.level === "answer" ? "the whole answer" : `“${data.text.trim()}”`;
    row.alerts.push(`${what}: risk ${percent(data.hallucination_risk)}, over ${percent(data.threshold)}`);
    row.cells.state.title = row.alerts.join("\n");
    row.element.classList.add("alerted");
  }
}
