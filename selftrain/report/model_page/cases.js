// The case table. The page holds an index of all posts and, in chunks, the posts themselves; one page of the table
// is in the document at a time. Question 0 is the final one.
(() => {
  const { byId, data, make, isolated, figure, number, meter, label, picture, unveilAll, searched } = shared;
  const root = byId("cases-browser");
  if (!root) return;
  const listing = data("listing");
  const PAGE = 50, FEW_PICTURES = 3, LONG = 280, LINES = 6;
  const count = listing.id.length, asked = listing.questions;
  const frame = byId("case-frame"), table = byId("case-table"), body = byId("case-rows");
  const search = byId("f-search"), sort = byId("f-sort");
  const filters = ["f-outcome", "f-truth", "f-said", "f-question"].map(byId).filter(Boolean);

  // ---- data ----
  const post = (i) => data("cases-" + Math.floor(i / listing.chunk))[i % listing.chunk];
  const words = []; // what the search looks through, a post's all in lower case
  const wordsOf = (i) => {
    if (words[i] === undefined) {
      const [text, images] = post(i);
      words[i] = [listing.id[i], text || "", ...images.map((one) => one[1])].join("\n").toLowerCase();
    }
    return words[i];
  };
  const known = (q, i) => listing.truth[q][i] >= 0;
  const wrong = (q, i) => known(q, i) && listing.truth[q][i] !== listing.said[q][i];
  const anyWrong = (i) => asked.some((_, q) => q > 0 && wrong(q, i));

  // ---- filter and sort ----
  let found = [], at = 0;
  const matches = {
    "f-outcome": (i, wanted) => wanted === "unknown" ? !known(0, i) : known(0, i) && wrong(0, i) === (wanted === "wrong"),
    "f-truth": (i, wanted) => listing.truth[0][i] === Number(wanted),
    "f-said": (i, wanted) => listing.said[0][i] === Number(wanted),
    "f-question": (i, wanted) => wanted === "any" ? anyWrong(i) : wrong(Number(wanted), i),
  };
  const ordered = new Intl.Collator("en", { numeric: true });
  const compare = { // what is not known comes last, whichever way
    file: () => 0,
    id: (a, b) => ordered.compare(listing.id[a], listing.id[b]),
    wrong: (a, b) => listing.believed[a] - listing.believed[b],
    truth: (a, b) => listing.truth[0][a] - listing.truth[0][b],
  };
  const unknownLast = { wrong: (i) => !known(0, i), truth: (i) => !known(0, i) };
  const arrange = () => {
    const [name, way] = sort.value.split(":"), sign = way === "down" ? -1 : 1;
    const by = compare[name] || ((a, b) => listing.score[name][a] - listing.score[name][b]);
    const last = unknownLast[name] || (() => false);
    found.sort((a, b) => last(a) - last(b) || sign * by(a, b) || a - b);
    for (const head of table.querySelectorAll("th[data-sort]")) {
      head.removeAttribute("aria-sort");
      if (head.dataset.sort === name) head.setAttribute("aria-sort", way === "down" ? "descending" : "ascending");
    }
  };
  const apply = () => {
    const active = filters.map((one) => [matches[one.id], one.value]).filter(([, wanted]) => wanted !== "");
    const wanted = search.value.trim().toLowerCase();
    found = [];
    for (let i = 0; i < count; i += 1) {
      if (active.every(([test, chosen]) => test(i, chosen)) && (!wanted || wordsOf(i).includes(wanted))) {
        found.push(i);
      }
    }
    arrange();
    byId("count").textContent = `${number(found.length)} of ${number(count)} posts`;
    byId("clear").hidden = !active.length && !wanted;
    draw(0);
  };

  // ---- one post ----
  const said = (q, i, odds) => { // only classes have colours
    const made = make("span", "says"), answer = listing.said[q][i];
    made.append(q ? isolated(asked[q].answers[answer], "label") : label(asked[q].answers[answer], answer));
    if (odds[q]) made.append(make("span", "figure faint", " " + figure(odds[q][listing.said[q][i]])));
    return made;
  };
  const judged = (q, i) => {
    if (!known(q, i)) return make("span", "judged faint", "truth not known");
    if (!wrong(q, i)) return make("span", "judged right", "✓ right");
    if (q === 0) return make("span", "judged wrong", "✗ wrong"); // the truth stands beside it
    const made = make("span", "judged wrong", "✗ truth: ");
    made.append(isolated(asked[q].answers[listing.truth[q][i]]));
    return made;
  };
  const cell = (className, title) => {
    const made = make("td", className);
    made.setAttribute("role", "cell");
    if (title) made.append(isolated(title, "cell-name"));
    return made;
  };
  const scoreCell = (q, i, odds) => {
    const made = cell(wrong(q, i) ? "score missed" : "score", asked[q].name);
    made.append(make("span", "figure value-of", figure(listing.score[q][i])), meter(listing.score[q][i]), said(q, i, odds), judged(q, i));
    return made;
  };
  const truthCell = (i) => {
    const made = cell("truth", "truth");
    made.append(known(0, i) ? label(asked[0].answers[listing.truth[0][i]], listing.truth[0][i]) : make("span", "faint", "not known"));
    return made;
  };
  const allOdds = (i, odds) => { // of questions with more than two answers
    const made = make("div", "all-odds");
    odds.forEach((shares, q) => {
      if (!shares) return;
      const one = make("dl", "odds");
      one.setAttribute("aria-label", asked[q].name);
      shares.forEach((share, k) => {
        const name = make("dt"), value = make("dd", "figure", figure(share));
        name.append(isolated(asked[q].answers[k]));
        value.append(meter(share));
        one.append(name, value);
      });
      const part = make("div");
      part.append(isolated(asked[q].name, "odds-of"), one);
      made.append(part);
    });
    return made;
  };
  const content = (i, open) => {
    const [text, images, pictures, odds] = post(i);
    const made = make("div", open ? "content open" : "content");
    const words_ = make("p", text ? "case-text" : "case-text none",
      text === null ? "(no text was recorded)" : text || "(no text)");
    words_.dir = "auto";
    made.append(words_);
    if (images.length) {
      const shown = make("div", "pictures"), all = byId("pictures").checked;
      const few = open ? images : images.slice(0, FEW_PICTURES);
      shown.append(...few.map((one, k) => picture(listing.pictures, one, k, images, all)));
      if (pictures > few.length) shown.append(make("span", "faint", `${few.length} of ${number(pictures)}`));
      made.append(shown);
    }
    if (open && odds.some(Boolean)) made.append(allOdds(i, odds));
    return made;
  };
  const holdsMore = (i) => {
    const [text, images, , odds] = post(i);
    return (text || "").length > LONG || (text || "").split("\n").length > LINES || images.length > FEW_PICTURES || odds.some(Boolean);
  };
  const postCell = (i) => {
    const made = cell("post");
    made.append(isolated(listing.id[i], "case-id"), content(i, false));
    if (holdsMore(i)) {
      const more = make("button", "link unfold", "More");
      more.type = "button";
      more.setAttribute("aria-expanded", "false");
      more.addEventListener("click", () => {
        const open = more.getAttribute("aria-expanded") === "false";
        made.querySelector(".content").replaceWith(content(i, open));
        more.setAttribute("aria-expanded", open);
        more.textContent = open ? "Less" : "More";
      });
      made.append(more);
    }
    return made;
  };
  const row = (i, place) => {
    const made = make("tr", wrong(0, i) ? "case missed" : "case");
    made.id = "case-" + place;
    made.tabIndex = -1;
    made.setAttribute("role", "row");
    made.setAttribute("aria-rowindex", place + 2);
    const odds = post(i)[3];
    made.append(postCell(i), truthCell(i), ...asked.map((_, q) => scoreCell(q, i, odds)));
    made.addEventListener("focusin", () => choose(place));
    return made;
  };

  // ---- the table: one page of it ----
  let drawnPage = 0;
  const lastPage = () => Math.max(0, Math.ceil(found.length / PAGE) - 1);
  const draw = (page) => {
    drawnPage = Math.max(0, Math.min(page, lastPage()));
    const start = drawnPage * PAGE;
    body.replaceChildren(...found.slice(start, start + PAGE).map((i, offset) => row(i, start + offset)));
    table.setAttribute("aria-rowcount", found.length + 1);
    byId("previous-page").disabled = drawnPage <= 0;
    byId("next-page").disabled = drawnPage >= lastPage();
    byId("page-of").textContent = `page ${number(drawnPage + 1)} of ${number(lastPage() + 1)}`;
    byId("empty").hidden = found.length > 0;
    frame.hidden = !found.length;
    frame.scrollTop = 0;
    choose(start);
  };
  const choose = (place) => { // the row that Tab reaches
    at = place;
    for (const one of body.querySelectorAll("[tabindex='0'].case")) one.tabIndex = -1;
    const chosen = byId("case-" + at);
    if (chosen) chosen.tabIndex = 0;
  };
  const go = (place) => {
    if (!found.length) return;
    const next = Math.max(0, Math.min(place, found.length - 1));
    if (Math.floor(next / PAGE) !== drawnPage) draw(Math.floor(next / PAGE));
    byId("case-" + next).focus();
  };
  const turn = (page) => { // to another page, and to its top
    draw(page);
    if (frame.getBoundingClientRect().top < 0) root.querySelector(".cases").scrollIntoView();
  };

  // ---- controls and keys ----
  searched(search, apply);
  for (const one of [...filters, sort]) one.addEventListener("change", apply);
  for (const head of table.querySelectorAll("th[data-sort] button")) {
    head.addEventListener("click", () => {
      const name = head.closest("th").dataset.sort;
      const first = name === "id" || name === "truth" ? "up" : "down", other = first === "up" ? "down" : "up";
      sort.value = `${name}:${sort.value === `${name}:${first}` ? other : first}`;
      apply();
    });
  }
  byId("clear").addEventListener("click", () => {
    for (const one of filters) one.value = "";
    search.value = "";
    apply();
    search.focus();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("previous-page").addEventListener("click", () => turn(drawnPage - 1));
  byId("next-page").addEventListener("click", () => turn(drawnPage + 1));
  byId("pictures").addEventListener("change", (event) => unveilAll(body, event.target.checked));
  const chosen = () => byId("case-" + at);
  const onRow = () => body.contains(document.activeElement);
  const open = () => { const more = chosen() && chosen().querySelector(".unfold"); if (more) more.click(); };
  const keys = {
    j: () => go(onRow() ? at + 1 : at), k: () => go(onRow() ? at - 1 : at),
    n: () => { if (drawnPage < lastPage()) go((drawnPage + 1) * PAGE); },
    p: () => go(Math.max(0, drawnPage - 1) * PAGE),
    o: open,
    s: () => { for (const one of chosen() ? chosen().querySelectorAll("button.picture") : []) one.click(); },
    "/": () => search.focus(),
  };
  const inRow = { ArrowDown: keys.j, ArrowUp: keys.k, Home: () => go(0), End: () => go(found.length - 1), Enter: open };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target === search) { go(at); return; }
    if (event.target.closest("input:not([type=checkbox]), select, textarea")) return;
    const run = event.target.matches("tr.case") ? inRow[event.key] || null : null;
    const act = run || (byId("keys").checked ? keys[event.key] : null);
    if (!act) return;
    event.preventDefault();
    act();
  });

  root.hidden = false;
  apply();
})();
