// One encoder's column: its map, its times and its hits; and the links between shared hits.

import { formatMilliseconds, formatOrdinal, html, scoreBar, svg } from "./dom.js";
import { CorpusMap } from "./map.js";

const OTHER_ENCODER = { teacher: "student", student: "teacher" };

export class Column {
  constructor(name, dims) {
    this.name = name;
    this.map = new CorpusMap(name);
    this.times = html("p", { class: "times soft" });
    this.list = html("ol", { class: "hits", "aria-label": `The ${name}’s hits` });
    this.element = html(
      "section",
      { class: `column ${name}`, "aria-labelledby": `${name}-title` },
      html("h2", { id: `${name}-title` }, name, " ", html("small", {}, `${dims} dimensions`)),
      this.map.figure,
      this.times,
      this.list,
    );
  }

  get buttons() {
    return [...this.list.querySelectorAll("button")];
  }

  /**
   * result: {hits: [{row, score, text}], point, encode_ms, search_ms} or {error}.
   * otherRanks: row → its rank in the other column, of hits that both have.
   * answers: rows that were judged to answer the query.
   */
  show(result, otherRanks, answers) {
    if (result.error) {
      this.map.clear();
      this.times.textContent = "";
      this.list.replaceChildren(html("li", { class: "notice" }, result.error));
      return;
    }
    const { hits } = result;
    this.map.showQuery(result.point, hits.map((hit) => hit.row), new Set(otherRanks.keys()));
    this.times.replaceChildren(
      "encoded in ", html("b", {}, formatMilliseconds(result.encode_ms)),
      ", searched in ", html("b", {}, formatMilliseconds(result.search_ms)),
    );
    this.list.replaceChildren(
      ...hits.map((hit, index) =>
        this.#hitElement(hit, hits[0].score, index + 1, otherRanks.get(hit.row), answers.has(hit.row)),
      ),
    );
  }

  #hitElement({ row, score, text }, highest, rank, otherRank, isAnswer) {
    const otherName = OTHER_ENCODER[this.name];
    const button = html(
      "button",
      {
        type: "button",
        class: otherRank ? "hit shared" : "hit",
        "data-row": row,
        tabindex: rank > 1 ? -1 : 0, // the list is one tab stop; arrow keys move within it
        "aria-expanded": "false",
      },
      html("span", { class: "rank" }, String(rank)),
      html("span", { class: "text", dir: "auto" }, text),
      html("span", { class: "score" }, score.toFixed(3), scoreBar(score, highest)),
      html(
        "span",
        { class: "notes" },
        otherRank && html("span", { class: "also" }, `${otherName}’s ${formatOrdinal(otherRank)}`),
        isAnswer && html("span", { class: "answer" }, "judged an answer"),
      ),
    );
    return html("li", {}, button);
  }
}

/** Draws a line for each shared hit across the gap between two lists, from rank to rank. */
export function drawLinks(picture, frame, left, right) {
  const box = frame.getBoundingClientRect();
  const [leftBox, rightBox] = [left.list.getBoundingClientRect(), right.list.getBoundingClientRect()];
  if (rightBox.left < leftBox.right) {
    picture.replaceChildren(); // the lists are below each other: there is no gap
    return;
  }
  const [x0, x1] = [leftBox.right - box.left + 4, rightBox.left - box.left - 4];
  const middleY = (button) => {
    const rank = button.querySelector(".rank").getBoundingClientRect();
    return Math.round(rank.top + rank.height / 2 - box.top);
  };
  const rightEnds = new Map(right.buttons.map((button) => [button.dataset.row, middleY(button)]));
  const bend = (x1 - x0) / 2;
  picture.replaceChildren(
    ...left.buttons
      .filter((button) => rightEnds.has(button.dataset.row))
      .map((button) => {
        const [y0, y1] = [middleY(button), rightEnds.get(button.dataset.row)];
        const d = `M${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`;
        return svg("path", { d, "data-row": button.dataset.row });
      }),
  );
}
