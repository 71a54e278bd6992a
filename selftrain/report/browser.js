// The browser of verdicts. The page holds an index of all verdicts and, in chunks, what was said of them. One page
// of the list and one verdict are in the document at a time.
(() => {
  const { byId, data, make, isolated, figure, number, meter, picture, unveilAll, searched } = shared;
  const root = byId("browser");
  if (!root) return;
  const listing = data("listing");
  const PAGE = 100;
  const count = listing.id.length;
  const list = byId("list"), detail = byId("detail"), search = byId("f-search");
  const controls = ["f-round", "f-set", "f-class", "f-changed", "f-failed", "f-truth", "f-sort"]
    .map(byId).filter(Boolean);

  // ---- data ----
  const verdict = (i) => data("verdicts-" + Math.floor(i / listing.chunk))[i % listing.chunk];
  const words = []; // what the search looks through, a verdict's all in lower case
  const wordsOf = (i) => {
    if (words[i] === undefined) {
      const [text, images, said] = verdict(i);
      const parts = [listing.id[i], text || "", listing.classes[listing.label[i]]];
      for (const image of images) parts.push(image[1]);
      for (const one of said) parts.push(one[5], one[3] < 0 ? one[2] : listing.classes[one[3]]);
      words[i] = parts.join("\n").toLowerCase();
    }
    return words[i];
  };
  let others = null; // id -> its verdicts, in all rounds
  const sameId = (i) => {
    if (!others) {
      others = new Map();
      listing.id.forEach((id, j) => others.set(id, [...(others.get(id) || []), j]));
    }
    return others.get(listing.id[i]).filter((j) => j !== i);
  };

  // ---- elements ----
  const label = (classNumber) => shared.label(listing.classes[classNumber], classNumber);
  const chip = (text, kind) => make("span", "chip " + kind, text);

  // ---- filter and sort ----
  let found = [], at = 0;
  const value = (id) => byId(id) ? byId(id).value : "";
  const flag = (columns, i, wanted) =>
    wanted === "" || (wanted === "any" ? columns[i] > 0 : (columns[i] >> Number(wanted)) & 1);
  const wrong = (i) => listing.truth[i] >= 0 && listing.truth[i] !== listing.label[i];
  const matches = {
    "f-round": (i, wanted) => listing.round[i] === Number(wanted),
    "f-set": (i, wanted) => listing.consistent[i] === Number(wanted),
    "f-class": (i, wanted) => listing.label[i] === Number(wanted),
    "f-changed": (i, wanted) => flag(listing.changed, i, wanted),
    "f-failed": (i, wanted) => flag(listing.failed, i, wanted),
    "f-truth": (i, wanted) => listing.truth[i] >= 0 && wrong(i) === (wanted === "wrong"),
  };
  const apply = () => {
    const active = Object.entries(matches)
      .map(([id, test]) => [test, value(id)]).filter(([, wanted]) => wanted !== "");
    const wanted = search.value.trim().toLowerCase();
    found = [];
    for (let i = 0; i < count; i += 1) {
      if (active.every(([test, chosen]) => test(i, chosen)) && (!wanted || wordsOf(i).includes(wanted))) {
        found.push(i);
      }
    }
    const order = value("f-sort");
    const p = listing.probability;
    if (order === "low") found.sort((a, b) => p[a] - p[b] || a - b);
    if (order === "high") found.sort((a, b) => p[b] - p[a] || a - b);
    if (order === "oldest") found.sort((a, b) => listing.round[a] - listing.round[b] || a - b);
    byId("count").textContent = `${number(found.length)} of ${number(count)} verdicts`;
    byId("clear").hidden = !active.length && !wanted;
    list.scrollTop = 0;
    select(0);
  };

  // ---- the list: one page of it ----
  let drawnPage = null;
  const row = (i, place) => {
    const made = make("li", "row");
    made.id = "row-" + place;
    made.setAttribute("role", "option");
    made.setAttribute("aria-posinset", place + 1);
    made.setAttribute("aria-setsize", found.length);
    const head = make("span", "row-head");
    head.append(make("span", "dot " + (listing.consistent[i] ? "agreed" : "split")), isolated(listing.id[i], "row-id"));
    const state = listing.consistent[i] ? "consistent" : "divergent";
    head.append(make("span", "unseen", `, ${state}, round ${listing.round[i]}, `));
    const said = make("span", "row-said");
    said.append(label(listing.label[i]), make("span", "figure", figure(listing.probability[i])));
    head.append(said);
    made.append(head);
    const snippet = isolated(listing.snippet[i] || "(no text)", "row-text");
    made.append(snippet);
    made.addEventListener("click", () => { select(place); reveal(); });
    return made;
  };
  const draw = (page) => {
    const start = page * PAGE, shown = found.slice(start, start + PAGE);
    list.replaceChildren(...shown.map((i, offset) => row(i, start + offset)));
    const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    byId("previous-page").disabled = page <= 0;
    byId("next-page").disabled = page >= last;
    byId("page-of").textContent = `page ${number(page + 1)} of ${number(last + 1)}`;
    byId("empty").hidden = found.length > 0;
    drawnPage = page;
  };
  const select = (place) => {
    at = Math.max(0, Math.min(place, found.length - 1));
    const page = Math.floor(at / PAGE);
    const same = drawnPage === page && list.querySelector("#row-" + at) && select.of === found;
    if (!same) draw(page);
    select.of = found;
    for (const chosen of list.querySelectorAll("[aria-selected]")) chosen.removeAttribute("aria-selected");
    const chosen = byId("row-" + at);
    if (!chosen) {
      list.removeAttribute("aria-activedescendant");
      detail.replaceChildren();
      return;
    }
    chosen.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", chosen.id);
    // scrollIntoView would move the whole page
    const top = chosen.offsetTop - list.offsetTop, bottom = top + chosen.offsetHeight;
    if (top < list.scrollTop) list.scrollTop = top;
    if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
    tell(found[at]);
  };
  const reveal = () => { // on a narrow page the verdict stands below the list
    if (detail.getBoundingClientRect().top > window.innerHeight - 120) detail.scrollIntoView();
  };

  // ---- one verdict ----
  const step = (one, earlier) => {
    const [, number_, state, classNumber, probability, rationale] = one;
    const made = make("div", "step");
    const head = make("div", "step-head");
    head.append(make("span", "when", number_ === 0 ? "alone" : "after cross-review"));
    if (classNumber < 0) head.append(chip(state === "abstain" ? "abstained" : state, state === "failed" ? "bad" : "quiet"));
    else head.append(label(classNumber), make("span", "figure", figure(probability)));
    if (earlier && earlier[3] !== classNumber) head.append(chip("changed its mind", "note"));
    const said = make("p", "said", rationale || "(no rationale)");
    said.dir = "auto";
    made.append(head, said);
    return made;
  };
  const party = (name, children) => {
    const made = make("section", "party");
    const title = make("h4");
    title.append(isolated(name));
    made.append(title, ...children);
    return made;
  };
  const parties = (i, said) => {
    const made = make("div", "parties");
    const head = make("div", "step-head");
    head.append(label(listing.label[i]), make("span", "figure", figure(listing.probability[i])));
    const own = make("div", "step");
    own.append(head, meter(listing.probability[i]));
    made.append(party("classifier", [own]));
    listing.agents.forEach((name, agent) => {
      const steps = said.filter((one) => one[0] === agent);
      if (steps.length) made.append(party(name, steps.map((one, k) => step(one, steps[k - 1]))));
    });
    const rows = Math.max(...[...made.children].map((one) => one.children.length));
    for (const one of made.children) one.style.gridRow = "span " + rows;
    return made;
  };
  const tell = (i) => {
    const [text, images, said, remark] = verdict(i);
    const head = make("header", "verdict-head");
    const title = make("h3");
    title.tabIndex = -1;
    title.append(isolated(listing.id[i]));
    const chips = make("p", "chips");
    const outcome = listing.rounds[listing.round[i]];
    chips.append(listing.consistent[i] ? chip("consistent", "good") : chip("divergent", "split"));
    chips.append(chip(`round ${listing.round[i]}, ${outcome}`, "quiet"));
    if (listing.truth[i] >= 0) {
      const truth = chip(wrong(i) ? "classifier wrong: it is " : "classifier right: it is ", wrong(i) ? "bad" : "quiet");
      truth.append(isolated(listing.classes[listing.truth[i]]));
      chips.append(truth);
    }
    head.append(title, chips);
    const post = make("div", "post");
    const words_ = make("p", "post-text" + (text ? "" : " none"),
      text === null ? "(the manifest is not there any more: no text)" : text || "(no text)");
    words_.dir = "auto";
    post.append(words_);
    if (remark) post.append(make("p", "faint", remark));
    if (images.length) {
      const shown = make("div", "pictures");
      const all = byId("pictures").checked;
      shown.append(...images.map((one, k) => picture(listing.pictures, one, k, images, all)));
      post.append(shown);
    }
    detail.replaceChildren(head, post, parties(i, said));
    const again = sameId(i);
    if (again.length) {
      const links = make("p", "again", "Judged in other rounds too: ");
      for (const j of again) {
        const link = make("button", "link", `round ${listing.round[j]}`);
        link.type = "button";
        link.addEventListener("click", () => goTo(j));
        links.append(link, " ");
      }
      detail.append(links);
    }
    byId("place").textContent = `${number(at + 1)} of ${number(found.length)}`;
  };
  const goTo = (j) => { // a filter may hide it: then the filters are let go
    if (!found.includes(j)) reset();
    select(found.indexOf(j));
  };

  // ---- controls and keys ----
  const reset = () => {
    for (const one of controls) if (one.id !== "f-sort") one.value = "";
    search.value = "";
    apply();
  };
  searched(search, apply);
  for (const one of controls) one.addEventListener("change", apply);
  byId("clear").addEventListener("click", () => { reset(); search.focus(); });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("previous-page").addEventListener("click", () => select((drawnPage - 1) * PAGE));
  byId("next-page").addEventListener("click", () => select((drawnPage + 1) * PAGE));
  byId("previous").addEventListener("click", () => select(at - 1));
  byId("next").addEventListener("click", () => select(at + 1));
  byId("pictures").addEventListener("change", (event) => unveilAll(detail, event.target.checked));
  const keys = {
    j: () => select(at + 1), k: () => select(at - 1),
    n: () => select((drawnPage + 1) * PAGE), p: () => select(Math.max(0, drawnPage - 1) * PAGE),
    s: () => { for (const one of detail.querySelectorAll("button.picture")) one.click(); },
    "/": () => search.focus(),
  };
  const inList = { ArrowDown: keys.j, ArrowUp: keys.k, PageDown: keys.n, PageUp: keys.p,
    Home: () => select(0), End: () => select(found.length - 1),
    Enter: () => { reveal(); detail.querySelector("h3").focus(); } };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target === search) { list.focus(); return; }
    if (event.target.closest("input:not([type=checkbox]), select, textarea")) return;
    const run = event.target === list && found.length ? inList[event.key] || null : null;
    const act = run || (byId("keys").checked ? keys[event.key] : null);
    if (!act) return;
    event.preventDefault();
    if (!run && event.key !== "s") root.scrollIntoView({ block: "nearest" });
    act();
  });

  apply();
  root.hidden = false;
})();
