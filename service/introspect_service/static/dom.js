// Small helpers to build elements. Text only ever goes in as text: a model's answer may hold anything.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === "vars") for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const el = (tag, properties = {}, ...children) => fill(document.createElement(tag), properties, children);
export const svg = (tag, properties = {}, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

export const percent = (value, digits = 0) => `${(100 * value).toFixed(digits)} %`;

export const visible = (text) => text.replaceAll("\n", "⏎").replaceAll(" ", "·") || "∅";

// Arrow keys move among the children of a group, of which one is in the order of Tab (WAI-ARIA's "roving tabindex").
export function roving(group, selector, choose, columns = () => 1) {
  group.addEventListener("keydown", (event) => {
    const items = [...group.querySelectorAll(selector)];
    const at = items.indexOf(event.target);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? items.length - 1 : step === undefined ? -1 : at + step;
    if ((event.key === "Enter" || event.key === " ") && at >= 0) {
      event.preventDefault();
      choose(at);
    } else if (at >= 0 && to >= 0 && to < items.length) {
      event.preventDefault();
      for (const item of items) item.tabIndex = -1;
      items[to].tabIndex = 0;
      items[to].focus();
    }
  });
}
