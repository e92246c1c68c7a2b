// Creates elements from data. Strings are inserted as text only: nothing on the page parses markup.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

export const html = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG_NAMESPACE, tag), attributes, children);

export const formatCount = (n) => n.toLocaleString("en");

export function formatOrdinal(n) {
  const suffix = n % 100 > 10 && n % 100 < 14 ? "th" : ({ 1: "st", 2: "nd", 3: "rd" }[n % 10] ?? "th");
  return `${n}${suffix}`;
}

export function formatMilliseconds(ms) {
  return `${ms < 10 ? ms.toFixed(1) : formatCount(Math.round(ms))} ms`;
}

/** A bar that is filled from 0 to 1; values outside are clamped. */
export function scoreBar(score, highest) {
  // Cosines fill the bar at 1; of inner products that go beyond, the highest does.
  const share = score / Math.max(1, highest);
  const bar = html("span", { class: "bar", "aria-hidden": "true" });
  bar.style.setProperty("--score", Math.max(0, Math.min(1, share)));
  return bar;
}
