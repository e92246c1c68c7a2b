// The page: search, comparison of two texts, and keyboard focus.

import { request, ServerError, setApiKey } from "./api.js";
import { byId, formatCount, html, scoreBar, svg } from "./dom.js";
import { Column, drawLinks } from "./hits.js";

const links = svg("svg", { class: "links", "aria-hidden": "true" });
const page = { releases: [], corpora: [], columns: [], corpus: null, running: null };

// --- releases and corpora ---------------------------------------------------------------------

async function start() {
  showStatus(byId("status"), "Loading…");
  try {
    Object.assign(page, await request("about"));
  } catch (error) {
    return showError(byId("status"), error, start);
  }
  byId("unlock").hidden = true;
  byId("pair").querySelector("button").disabled = false;
  showRelease(page.releases[0]);
  if (!page.corpora.length) {
    byId("search-form").hidden = true;
    showStatus(
      byId("status"),
      ("model" in page.releases[0].models
        ? "A model without a release has no corpus to search. "
        : "This release contains no corpus to search. Recipes add one unless they set " +
          "release.playground: null; make the release again to have it. ") +
        "You can compare two texts.",
    );
    byId("pair-query").focus();
    return;
  }
  const several = page.releases.length > 1;
  byId("corpus").replaceChildren(
    ...page.corpora.map((corpus, index) =>
      html("option", { value: index }, several ? `${corpus.release}: ${corpus.name}` : corpus.name),
    ),
  );
  await openCorpus(page.corpora[0]);
  byId("query").focus();
}

function showRelease(release) {
  const spaces = new Set(Object.values(release.models).map((model) => model.space));
  const models = Object.keys(release.models);
  const note = models.length < 2 ? "" : spaces.size > 1 ? ", a space each" : ", one space";
  byId("release").textContent = `${release.name} · ${models.join(" and ")}${note}`;
}

async function openCorpus(corpus) {
  page.running?.abort();
  page.corpus = corpus;
  const release = page.releases.find(({ name }) => name === corpus.release);
  showRelease(release);
  page.columns = Object.entries(release.models).map(
    ([name, model]) => new Column(name, formatCount(model.dims)),
  );
  byId("results").replaceChildren(...page.columns.map((column) => column.element), links);
  byId("results").classList.toggle("alone", page.columns.length < 2);
  links.replaceChildren();
  showExamples(corpus);
  try {
    const query = new URLSearchParams({ release: corpus.release, corpus: corpus.name });
    const { points, clusters, labels } = await request(`map?${query}`);
    if (page.corpus !== corpus) return;
    for (const { name, map } of page.columns) map.showCorpus(points[name], clusters, labels);
  } catch (error) {
    return showError(byId("status"), error, () => openCorpus(corpus));
  }
  byId("results").hidden = false;
  const total = corpus.passages < corpus.total ? ` of ${formatCount(corpus.total)}` : "";
  showStatus(
    byId("status"),
    `${formatCount(corpus.passages)}${total} passages. Both models search the same ones.`,
  );
}

function showExamples(corpus) {
  byId("examples").hidden = !corpus.examples.length;
  byId("help").hidden = true;
  byId("examples").querySelector("ul").replaceChildren(
    ...corpus.examples.slice(0, 5).map((example) => {
      const button = html("button", { type: "button", dir: "auto" }, example.query);
      button.addEventListener("click", () => {
        byId("query").value = example.query;
        search();
      });
      return html("li", {}, button);
    }),
  );
}

// --- search -----------------------------------------------------------------------------------

async function search() {
  const query = byId("query").value.trim();
  if (!query || !page.corpus) return;
  page.running?.abort();
  const running = (page.running = new AbortController());
  const { release, name: corpus, examples } = page.corpus;
  setBusy(byId("results"), true);
  showStatus(byId("status"), "Searching…");
  let results;
  try {
    const body = { release, corpus, query };
    results = await request("search", { body, signal: running.signal });
  } catch (error) {
    if (error.name === "AbortError") return;
    setBusy(byId("results"), false);
    return showError(byId("status"), error, search);
  }
  setBusy(byId("results"), false);
  byId("examples").hidden = true;
  byId("help").hidden = false;
  showResults(results, new Set(examples.find((example) => example.query === query)?.answers));
}

function showResults(results, answers) {
  const ranks = Object.fromEntries(
    page.columns.map(({ name }) => [
      name,
      new Map((results[name].hits ?? []).map((hit, index) => [hit.row, index + 1])),
    ]),
  );
  for (const column of page.columns) {
    const other = page.columns.find((candidate) => candidate !== column);
    const otherRanks = other ? ranks[other.name] : new Map();
    const shared = new Map([...otherRanks].filter(([row]) => ranks[column.name].has(row)));
    column.show(results[column.name], shared, answers);
  }
  showStatus(byId("status"), describeOverlap(Object.values(ranks)));
  redrawLinks();
}

/** ranks: for each column, row → rank in order. */
function describeOverlap([first, second]) {
  if (!second) return `${first.size} hits.`;
  if (!first.size || !second.size) return "Only one model answered.";
  const shared = [...first.keys()].filter((row) => second.has(row)).length;
  const [firstRow, secondRow] = [first, second].map((ranks) => ranks.keys().next().value);
  const sameTop = firstRow === secondRow ? ", and the top hit is the same" : "";
  return `${shared} of ${Math.max(first.size, second.size)} hits are shared${sameTop}.`;
}

function redrawLinks() {
  const [left, right] = page.columns;
  if (right) drawLinks(links, byId("results"), left, right);
}

// --- comparison of two texts ------------------------------------------------------------------

const SCORE_TITLES = {
  teacher: "teacher",
  student: "student",
  model: "the model",
  across: "student’s query, teacher’s passage",
};

async function compare() {
  const release = page.corpus?.release ?? page.releases[0].name;
  setBusy(byId("scores"), true);
  showStatus(byId("pair-status"), "Comparing…");
  try {
    const body = { release, query: byId("pair-query").value, passage: byId("pair-passage").value };
    const scores = await request("compare", { body });
    const highest = Math.max(...Object.values(scores));
    byId("scores").replaceChildren(
      ...Object.entries(scores).map(([name, score]) =>
        html(
          "div",
          { class: name },
          html("dt", {}, SCORE_TITLES[name]),
          html("dd", {}, score.toFixed(3), scoreBar(score, highest)),
        ),
      ),
    );
    byId("scores").hidden = false;
    const { models } = page.releases.find(({ name }) => name === release);
    const raw = Object.values(models).some((model) => model.similarity === "dot");
    const score = raw ? "Inner product" : "Cosine";
    showStatus(byId("pair-status"), `${score} of the two vectors, by each model.`);
  } catch (error) {
    showError(byId("pair-status"), error, compare);
  }
  setBusy(byId("scores"), false);
}

// --- status lines -----------------------------------------------------------------------------

function showStatus(element, text) {
  element.classList.remove("error");
  element.textContent = text;
}

function setBusy(element, busy) {
  element.setAttribute("aria-busy", String(busy));
}

function showError(element, error, retry) {
  if (!(error instanceof ServerError)) throw error;
  const needsKey = error.status === 401 && document.body.dataset.keys === "required";
  if (needsKey) {
    byId("unlock").hidden = false;
    byId("key").focus();
  }
  const wait = error.retryAfter ? ` Retry in ${error.retryAfter} s.` : "";
  const button = html("button", { type: "button", class: "quiet" }, "Try again");
  button.addEventListener("click", retry);
  element.classList.add("error");
  element.replaceChildren(`${error.message}${wait} `, needsKey ? "" : button);
}

// --- forms, keyboard and pointer --------------------------------------------------------------

byId("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
byId("pair").addEventListener("submit", (event) => {
  event.preventDefault();
  compare();
});
byId("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  setApiKey(byId("key").value);
  byId("key").value = "";
  start();
});
byId("corpus").addEventListener("change", () => openCorpus(page.corpora[byId("corpus").value]));

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    byId("query").select();
  }
});
byId("query").addEventListener("keydown", (event) => {
  const first = page.columns[0]?.buttons[0];
  if (event.key === "ArrowDown" && first) {
    event.preventDefault();
    first.focus();
  }
});

byId("results").addEventListener("keydown", (event) => {
  const button = event.target.closest("button.hit");
  if (!button || event.ctrlKey || event.metaKey || event.altKey) return;
  const lists = page.columns.map((column) => column.buttons);
  const column = lists.findIndex((list) => list.includes(button));
  const index = lists[column].indexOf(button);
  const sameRankIn = (list) => list && (list[index] ?? list.at(-1));
  const target = {
    ArrowDown: () => lists[column][index + 1],
    ArrowUp: () => lists[column][index - 1] ?? byId("query"),
    Home: () => lists[column][0],
    End: () => lists[column].at(-1),
    ArrowLeft: () => sameRankIn(lists[column - 1]),
    ArrowRight: () => sameRankIn(lists[column + 1]),
    Escape: () => byId("query"),
  }[event.key]?.();
  if (!target) return;
  event.preventDefault();
  target.focus();
});

byId("results").addEventListener("click", (event) => {
  const button = event.target.closest("button.hit");
  if (!button) return;
  const expanded = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!expanded));
  redrawLinks();
});

// Highlights a passage wherever it shows: in both lists, on both maps, and its link.
function highlight(row) {
  for (const column of page.columns) column.map.focus(row);
  for (const element of byId("results").querySelectorAll("button.hit, .links path")) {
    element.classList.toggle("highlighted", row != null && element.dataset.row === String(row));
  }
}

const rowAt = (event) => {
  const row = event.target.closest?.("button.hit")?.dataset.row;
  return row == null ? null : Number(row);
};
byId("results").addEventListener("focusin", (event) => {
  const focused = event.target.closest("button.hit");
  if (!focused) return;
  const column = page.columns.find(({ buttons }) => buttons.includes(focused));
  for (const button of column.buttons) button.tabIndex = button === focused ? 0 : -1;
  highlight(rowAt(event));
});
byId("results").addEventListener("focusout", () => highlight(null));
byId("results").addEventListener("pointerover", (event) => {
  if (rowAt(event) != null) highlight(rowAt(event));
});
byId("results").addEventListener("pointerout", (event) => {
  if (rowAt(event) != null) highlight(null);
});
byId("results").addEventListener("passagepointed", (event) => highlight(event.detail));

new ResizeObserver(redrawLinks).observe(byId("results"));
start();
