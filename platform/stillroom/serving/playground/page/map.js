// A corpus in one encoder's plane: its passages as dots, coloured by cluster; the query, its hits.

import { count, svg, h } from "./dom.js";

const WIDTH = 560;
const HEIGHT = 320;
const EDGE = 18;

export class CorpusMap {
  constructor(name) {
    this.dots = svg("g", { class: "dots" });
    this.marks = svg("g", { class: "marks" });
    this.near = svg("g");
    this.picture = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Map of the corpus by the ${name}` },
      this.dots,
      this.near,
      this.marks,
    );
    this.caption = h("figcaption", { class: "soft" });
    this.figure = h("figure", { class: "map" }, this.picture, this.caption);
    this.picture.addEventListener("pointermove", (event) => this.#point(event));
    this.picture.addEventListener("pointerleave", () => this.#unpoint());
  }

  /** points: [x, y] of each passage; clusters and labels: of each as well. */
  show(points, clusters, labels) {
    Object.assign(this, { points, clusters, labels });
    this.query = null;
    this.hits = [];
    this.#draw();
  }

  /** at: the query's [x, y]; hits: rows of passages, best first; shared: those both have. */
  mark(at, hits, shared) {
    Object.assign(this, { query: at, hits, shared });
    this.#draw();
  }

  clear() {
    if (this.points) this.mark(null, [], new Set());
  }

  /** Point out one passage, or none. */
  focus(row) {
    this.near.replaceChildren();
    if (row == null || !this.points) {
      this.caption.textContent = this.told;
      return;
    }
    const [x, y] = this.#place(this.points[row]);
    this.near.append(svg("circle", { class: "near", cx: x, cy: y, r: 9 }));
    this.caption.textContent = this.labels[row];
  }

  // The query may fall outside of the passages, so the picture spans both; one scale for both
  // axes, for the plane's distances are what the eye compares.
  #draw() {
    const all = this.query ? [...this.points, this.query] : this.points;
    const range = (axis) => {
      let low = Infinity, high = -Infinity;
      for (const point of all) {
        low = Math.min(low, point[axis]);
        high = Math.max(high, point[axis]);
      }
      return [low, high];
    };
    const [[left, right], [bottom, top]] = [range(0), range(1)];
    const scale = Math.min(
      (WIDTH - 2 * EDGE) / Math.max(right - left, 1e-9),
      (HEIGHT - 2 * EDGE) / Math.max(top - bottom, 1e-9),
    );
    const middle = [(left + right) / 2, (bottom + top) / 2];
    this.#place = ([x, y]) => [
      Math.round(10 * (WIDTH / 2 + (x - middle[0]) * scale)) / 10,
      Math.round(10 * (HEIGHT / 2 - (y - middle[1]) * scale)) / 10,
    ];
    this.placed = this.points.map(this.#place);
    const width = Math.max(3.5, Math.min(8, 110 / Math.sqrt(this.points.length)));
    const paths = [];
    this.placed.forEach(([x, y], row) => {
      const cluster = this.clusters[row];
      paths[cluster] = `${paths[cluster] ?? ""}M${x} ${y}h0`; // round caps make it a dot
    });
    this.dots.replaceChildren(
      ...paths.map((d, cluster) => svg("path", { class: `dot c${cluster}`, d, "stroke-width": width })),
    );
    const groups = paths.filter(Boolean).length;
    this.told = `${count(this.points.length)} passages in the teacher’s ${groups} clusters`;
    this.#drawMarks();
    this.focus(null);
  }

  #drawMarks() {
    const marks = [];
    if (this.query) {
      const [x, y] = this.#place(this.query);
      marks.push(
        svg("path", { class: "cross", d: `M${x} 0V${HEIGHT}M0 ${y}H${WIDTH}` }),
        ...this.hits.toReversed().map((row) => {
          const [cx, cy] = this.placed[row];
          return svg("circle", { class: this.shared.has(row) ? "hit shared" : "hit", cx, cy, r: 5 });
        }),
        svg("circle", { class: "query", cx: x, cy: y, r: 6 }),
      );
    }
    this.marks.replaceChildren(...marks);
  }

  #place = (point) => point;

  #point(event) {
    if (!this.placed) return;
    const box = this.picture.getBoundingClientRect();
    const x = ((event.clientX - box.left) * WIDTH) / box.width;
    const y = ((event.clientY - box.top) * HEIGHT) / box.height;
    let best = null, least = 24 ** 2;
    this.placed.forEach(([px, py], row) => {
      const away = (px - x) ** 2 + (py - y) ** 2;
      if (away < least) [best, least] = [row, away];
    });
    this.picture.dispatchEvent(new CustomEvent("near", { bubbles: true, detail: best }));
  }

  #unpoint() {
    this.picture.dispatchEvent(new CustomEvent("near", { bubbles: true, detail: null }));
  }
}
