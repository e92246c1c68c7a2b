// One encoder's column: its map, its times, its hits. And the threads between shared hits.

import { h, milliseconds, ordinal, svg } from "./dom.js";
import { CorpusMap } from "./map.js";

const OTHER = { teacher: "student", student: "teacher" };

export class Column {
  constructor(name, dims) {
    this.name = name;
    this.map = new CorpusMap(name);
    this.times = h("p", { class: "times soft" });
    this.list = h("ol", { class: "hits", "aria-label": `The ${name}’s hits` });
    this.element = h(
      "section",
      { class: `column ${name}`, "aria-labelledby": `${name}-title` },
      h("h2", { id: `${name}-title` }, name, " ", h("small", {}, `${dims} dimensions`)),
      this.map.figure,
      this.times,
      this.list,
    );
  }

  get buttons() {
    return [...this.list.querySelectorAll("button")];
  }

  /**
   * found: {hits: [{row, score, text}], at, encode_ms, search_ms} or {error}.
   * elsewhere: row → rank of the other column's hits. answers: rows that were judged to answer.
   */
  show(found, elsewhere, answers) {
    if (found.error) {
      this.map.clear();
      this.times.textContent = "";
      this.list.replaceChildren(h("li", { class: "notice" }, found.error));
      return;
    }
    const { hits } = found;
    this.map.mark(found.at, hits.map((hit) => hit.row), new Set(elsewhere.keys()));
    this.times.replaceChildren(
      "encoded in ", h("b", {}, milliseconds(found.encode_ms)),
      ", searched in ", h("b", {}, milliseconds(found.search_ms)),
    );
    this.list.replaceChildren(
      ...hits.map((hit, place) => this.#hit(hit, place, elsewhere.get(hit.row), answers)),
    );
  }

  #hit({ row, score, text }, place, otherRank, answers) {
    const bar = h("span", { class: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--score", Math.max(0, Math.min(1, score)));
    const button = h(
      "button",
      {
        type: "button",
        class: otherRank ? "hit shared" : "hit",
        "data-row": row,
        tabindex: place ? -1 : 0, // one stop for the list; arrows do the rest
        "aria-expanded": "false",
      },
      h("span", { class: "rank" }, String(place + 1)),
      h("span", { class: "text" }, text),
      h("span", { class: "score" }, score.toFixed(3), bar),
      h(
        "span",
        { class: "notes" },
        otherRank && h("span", { class: "also" }, `${OTHER[this.name]}’s ${ordinal(otherRank)}`),
        answers.has(row) && h("span", { class: "answer" }, "judged an answer"),
      ),
    );
    return h("li", {}, button);
  }
}

/** Lines across the gap between two lists, from each shared hit's rank to its rank over there. */
export function drawThreads(picture, frame, left, right) {
  const box = frame.getBoundingClientRect();
  const [from, to] = [left.list.getBoundingClientRect(), right.list.getBoundingClientRect()];
  if (to.left < from.right) {
    picture.replaceChildren(); // one below the other: nothing to cross
    return;
  }
  const [x0, x1] = [from.right - box.left + 4, to.left - box.left - 4];
  const middle = (button) => {
    const rank = button.querySelector(".rank").getBoundingClientRect();
    return Math.round(rank.top + rank.height / 2 - box.top);
  };
  const ends = new Map(right.buttons.map((button) => [button.dataset.row, middle(button)]));
  const bend = (x1 - x0) / 2;
  picture.replaceChildren(
    ...left.buttons
      .filter((button) => ends.has(button.dataset.row))
      .map((button) => {
        const [y0, y1] = [middle(button), ends.get(button.dataset.row)];
        const d = `M${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`;
        return svg("path", { d, "data-row": button.dataset.row });
      }),
  );
}
