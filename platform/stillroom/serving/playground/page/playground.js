// The page: asks, shows, and moves the focus about.

import { ask, Refused, useKey } from "./api.js";
import { $, count, h, svg } from "./dom.js";
import { Column, drawThreads } from "./hits.js";

const threads = svg("svg", { class: "threads", "aria-hidden": "true" });
const page = { releases: [], corpora: [], columns: [], corpus: null, running: null };

// --- what there is ---------------------------------------------------------------------------

async function start() {
  say($("status"), "Loading…");
  let told;
  try {
    told = await ask("about");
  } catch (fault) {
    return refused($("status"), fault, start);
  }
  $("unlock").hidden = true;
  Object.assign(page, told);
  $("pair").querySelector("button").disabled = false;
  describeRelease(page.releases[0]);
  if (!page.corpora.length) {
    $("ask").hidden = true;
    say(
      $("status"),
      "This release carries no corpus to search in. Recipes put one there unless they say " +
        "release.playground: null; make the release again to have it. Two texts can be compared.",
    );
    $("one").focus();
    return;
  }
  const several = page.releases.length > 1;
  $("corpus").replaceChildren(
    ...page.corpora.map((corpus, place) =>
      h("option", { value: place }, several ? `${corpus.release}: ${corpus.name}` : corpus.name),
    ),
  );
  await open(page.corpora[0]);
  $("query").focus();
}

function describeRelease(release) {
  const spaces = new Set(Object.values(release.models).map((model) => model.space));
  const models = Object.keys(release.models);
  const shared = models.length < 2 ? "" : spaces.size > 1 ? ", a space each" : ", one space";
  $("release").textContent = `${release.name} · ${models.join(" and ")}${shared}`;
}

const releaseOf = (corpus) => page.releases.find((release) => release.name === corpus.release);

async function open(corpus) {
  page.running?.abort();
  page.corpus = corpus;
  const release = releaseOf(corpus);
  describeRelease(release);
  page.columns = Object.entries(release.models).map(
    ([name, model]) => new Column(name, count(model.dims)),
  );
  $("results").replaceChildren(...page.columns.map((column) => column.element), threads);
  $("results").classList.toggle("alone", page.columns.length < 2);
  threads.replaceChildren();
  showExamples(corpus);
  const of = corpus.passages < corpus.total ? ` of ${count(corpus.total)}` : "";
  try {
    const query = new URLSearchParams({ release: corpus.release, corpus: corpus.name });
    const map = await ask(`map?${query}`);
    if (page.corpus !== corpus) return;
    for (const { name, map: drawn } of page.columns) {
      drawn.show(map.points[name], map.clusters, map.labels);
    }
  } catch (fault) {
    return refused($("status"), fault, () => open(corpus));
  }
  $("results").hidden = false;
  say($("status"), `${count(corpus.passages)}${of} passages. Both models answer from them.`);
}

function showExamples(corpus) {
  $("examples").hidden = !corpus.examples.length;
  $("help").hidden = true;
  $("examples").querySelector("ul").replaceChildren(
    ...corpus.examples.slice(0, 5).map((example) => {
      const button = h("button", { type: "button" }, example.query);
      button.addEventListener("click", () => {
        $("query").value = example.query;
        search();
      });
      return h("li", {}, button);
    }),
  );
}

// --- search ----------------------------------------------------------------------------------

async function search() {
  const query = $("query").value.trim();
  if (!query || !page.corpus) return;
  page.running?.abort();
  const running = (page.running = new AbortController());
  const { release, name: corpus, examples } = page.corpus;
  busy($("results"), true);
  say($("status"), "Searching…");
  let found;
  try {
    const body = { release, corpus, query };
    found = await ask("search", { body, signal: running.signal });
  } catch (fault) {
    if (fault.name === "AbortError") return;
    busy($("results"), false);
    return refused($("status"), fault, search);
  }
  busy($("results"), false);
  $("examples").hidden = true;
  $("help").hidden = false;
  const ranks = Object.fromEntries(
    page.columns.map(({ name }) => [
      name,
      new Map((found[name].hits ?? []).map((hit, place) => [hit.row, place + 1])),
    ]),
  );
  const answers = new Set(examples.find((example) => example.query === query)?.answers);
  for (const column of page.columns) {
    const other = page.columns.find((one) => one !== column);
    const elsewhere = other ? ranks[other.name] : new Map();
    const shared = new Map([...elsewhere].filter(([row]) => ranks[column.name].has(row)));
    column.show(found[column.name], shared, answers);
  }
  say($("status"), overlap(Object.values(ranks)));
  redraw();
}

function overlap(ranks) {
  const [one, other] = ranks;
  if (!other) return `${one.size} hits.`;
  if (!one.size || !other.size) return "Only one model answered.";
  const shared = [...one.keys()].filter((row) => other.has(row)).length;
  const first = [one, other].map((of) => of.keys().next().value);
  const same = first[0] === first[1] ? ", and the same one first" : "";
  return `${shared} of ${Math.max(one.size, other.size)} hits are shared${same}.`;
}

function redraw() {
  const [left, right] = page.columns;
  if (right) drawThreads(threads, $("results"), left, right);
}

// --- two texts -------------------------------------------------------------------------------

const NAMES = {
  teacher: "teacher",
  student: "student",
  across: "student’s query, teacher’s passage",
};

async function compare() {
  const release = page.corpus?.release ?? page.releases[0].name;
  busy($("cosines"), true);
  say($("pair-status"), "Comparing…");
  try {
    const body = { release, query: $("one").value, passage: $("other").value };
    const found = await ask("compare", { body });
    $("cosines").replaceChildren(
      ...Object.entries(found).map(([name, cosine]) => {
        const bar = h("span", { class: "bar", "aria-hidden": "true" });
        bar.style.setProperty("--score", Math.max(0, Math.min(1, cosine)));
        return h(
          "div",
          { class: name },
          h("dt", {}, NAMES[name]),
          h("dd", {}, cosine.toFixed(3), bar),
        );
      }),
    );
    $("cosines").hidden = false;
    say($("pair-status"), "Cosine of the two vectors, by each model.");
  } catch (fault) {
    refused($("pair-status"), fault, compare);
  }
  busy($("cosines"), false);
}

// --- said to the reader ----------------------------------------------------------------------

function say(place, text) {
  place.classList.remove("fault");
  place.textContent = text;
}

function busy(element, is) {
  element.setAttribute("aria-busy", String(is));
}

function refused(place, fault, again) {
  if (!(fault instanceof Refused)) throw fault;
  const locked = fault.status === 401 && document.body.dataset.keys === "required";
  if (locked) {
    $("unlock").hidden = false;
    $("key").focus();
  }
  const wait = fault.retryAfter ? ` It asks to wait ${fault.retryAfter} s.` : "";
  const retry = h("button", { type: "button", class: "quiet" }, "Try again");
  retry.addEventListener("click", again);
  place.classList.add("fault");
  place.replaceChildren(`${fault.message}${wait} `, locked ? "" : retry);
}

// --- hands -----------------------------------------------------------------------------------

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
$("pair").addEventListener("submit", (event) => {
  event.preventDefault();
  compare();
});
$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  $("key").value = "";
  start();
});
$("corpus").addEventListener("change", () => open(page.corpora[$("corpus").value]));

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    $("query").select();
  }
});
$("query").addEventListener("keydown", (event) => {
  const first = page.columns[0]?.buttons[0];
  if (event.key === "ArrowDown" && first) {
    event.preventDefault();
    first.focus();
  }
});

$("results").addEventListener("keydown", (event) => {
  const button = event.target.closest("button.hit");
  if (!button || event.ctrlKey || event.metaKey || event.altKey) return;
  const lists = page.columns.map((column) => column.buttons);
  const across = lists.findIndex((list) => list.includes(button));
  const down = lists[across].indexOf(button);
  const to = {
    ArrowDown: () => lists[across][down + 1],
    ArrowUp: () => lists[across][down - 1] ?? $("query"),
    Home: () => lists[across][0],
    End: () => lists[across].at(-1),
    ArrowLeft: () => beside(lists[across - 1], down),
    ArrowRight: () => beside(lists[across + 1], down),
    Escape: () => $("query"),
  }[event.key]?.();
  if (!to) return;
  event.preventDefault();
  to.focus();
});

const beside = (list, place) => list && (list[place] ?? list.at(-1));

$("results").addEventListener("click", (event) => {
  const button = event.target.closest("button.hit");
  if (!button) return;
  const open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  redraw();
});

// The passage that is looked at is lit wherever it shows: both lists, both maps, its thread.
function light(row) {
  for (const column of page.columns) column.map.focus(row);
  for (const element of $("results").querySelectorAll("button.hit, .threads path")) {
    element.classList.toggle("lit", row != null && element.dataset.row === String(row));
  }
}

const rowOf = (event) => {
  const row = event.target.closest?.("button.hit")?.dataset.row;
  return row == null ? null : Number(row);
};
$("results").addEventListener("focusin", (event) => {
  const button = event.target.closest("button.hit");
  if (!button) return;
  const list = page.columns.find((column) => column.buttons.includes(button));
  for (const one of list.buttons) one.tabIndex = one === button ? 0 : -1;
  light(rowOf(event));
});
$("results").addEventListener("focusout", () => light(null));
$("results").addEventListener("pointerover", (event) => {
  if (rowOf(event) != null) light(rowOf(event));
});
$("results").addEventListener("pointerout", (event) => {
  if (rowOf(event) != null) light(null);
});
$("results").addEventListener("near", (event) => light(event.detail));

new ResizeObserver(redraw).observe($("results"));
start();
