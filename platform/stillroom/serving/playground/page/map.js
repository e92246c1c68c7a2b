// A corpus in one encoder's plane: passages as dots coloured by cluster, the query and its hits.

import { formatCount, html, svg } from "./dom.js";

const WIDTH = 560;
const HEIGHT = 320;
const MARGIN = 18;
const POINTER_RADIUS = 24; // within which the pointer finds a passage

export class CorpusMap {
  constructor(name) {
    this.dots = svg("g", { class: "dots" });
    this.marks = svg("g", { class: "marks" });
    this.highlight = svg("g");
    this.picture = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Map of the corpus by the ${name}` },
      this.dots,
      this.highlight,
      this.marks,
    );
    this.caption = html("figcaption", { class: "soft", dir: "auto" });
    this.figure = html("figure", { class: "map" }, this.picture, this.caption);
    this.picture.addEventListener("pointermove", (event) =>
      this.#dispatchPointed(this.#nearestPassage(event)),
    );
    this.picture.addEventListener("pointerleave", () => this.#dispatchPointed(null));
  }

  /** points, clusters, labels: [x, y], cluster and label of each passage. */
  showCorpus(points, clusters, labels) {
    Object.assign(this, { points, clusters, labels });
    this.query = null;
    this.hits = [];
    this.#draw();
  }

  /** query: its [x, y]; hits: rows of passages, best first; shared: rows that both encoders found. */
  showQuery(query, hits, shared) {
    Object.assign(this, { query, hits, shared });
    this.#draw();
  }

  clear() {
    if (this.points) this.showQuery(null, [], new Set());
  }

  /** Highlights one passage, or none. */
  focus(row) {
    this.highlight.replaceChildren();
    if (row == null || !this.points) {
      this.caption.textContent = this.summary;
      return;
    }
    const [x, y] = this.#toPixels(this.points[row]);
    this.highlight.append(svg("circle", { class: "highlight", cx: x, cy: y, r: 9 }));
    this.caption.textContent = this.labels[row];
  }

  #draw() {
    this.#toPixels = this.#fitScale(this.query ? [...this.points, this.query] : this.points);
    this.pixels = this.points.map(this.#toPixels);
    const width = Math.max(3.5, Math.min(8, 110 / Math.sqrt(this.points.length)));
    const paths = [];
    this.pixels.forEach(([x, y], row) => {
      const cluster = this.clusters[row];
      paths[cluster] = `${paths[cluster] ?? ""}M${x} ${y}h0`; // round line caps make it a dot
    });
    this.dots.replaceChildren(
      ...paths.map((d, cluster) => svg("path", { class: `dot c${cluster}`, d, "stroke-width": width })),
    );
    const clusters = paths.filter(Boolean).length;
    this.summary = `${formatCount(this.points.length)} passages in the teacher’s ${clusters} clusters`;
    this.#drawMarks();
    this.focus(null);
  }

  // The query may lie outside the passages, so the picture spans both. Both axes have one scale,
  // because the eye compares distances in the plane.
  #fitScale(points) {
    const range = (axis) => {
      let low = Infinity, high = -Infinity;
      for (const point of points) {
        low = Math.min(low, point[axis]);
        high = Math.max(high, point[axis]);
      }
      return [low, high];
    };
    const [[left, right], [bottom, top]] = [range(0), range(1)];
    const scale = Math.min(
      (WIDTH - 2 * MARGIN) / Math.max(right - left, 1e-9),
      (HEIGHT - 2 * MARGIN) / Math.max(top - bottom, 1e-9),
    );
    const centre = [(left + right) / 2, (bottom + top) / 2];
    return ([x, y]) => [
      Math.round(10 * (WIDTH / 2 + (x - centre[0]) * scale)) / 10,
      Math.round(10 * (HEIGHT / 2 - (y - centre[1]) * scale)) / 10,
    ];
  }

  #drawMarks() {
    const marks = [];
    if (this.query) {
      const [x, y] = this.#toPixels(this.query);
      marks.push(
        svg("path", { class: "cross", d: `M${x} 0V${HEIGHT}M0 ${y}H${WIDTH}` }),
        ...this.hits.toReversed().map((row) => {
          const [cx, cy] = this.pixels[row];
          return svg("circle", { class: this.shared.has(row) ? "hit shared" : "hit", cx, cy, r: 5 });
        }),
        svg("circle", { class: "query", cx: x, cy: y, r: 6 }),
      );
    }
    this.marks.replaceChildren(...marks);
  }

  #toPixels = (point) => point;

  #nearestPassage(event) {
    if (!this.pixels) return null;
    const box = this.picture.getBoundingClientRect();
    const x = ((event.clientX - box.left) * WIDTH) / box.width;
    const y = ((event.clientY - box.top) * HEIGHT) / box.height;
    let nearest = null, least = POINTER_RADIUS ** 2;
    this.pixels.forEach(([px, py], row) => {
      const squared = (px - x) ** 2 + (py - y) ** 2;
      if (squared < least) [nearest, least] = [row, squared];
    });
    return nearest;
  }

  #dispatchPointed(row) {
    this.picture.dispatchEvent(new CustomEvent("passagepointed", { bubbles: true, detail: row }));
  }
}
