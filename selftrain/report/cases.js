// The case table: a row a post, a column a question. Question 0 is the final one.
(() => {
  const { byId, data, make, button, isolated, figure, number, meter, label, pictureRow, postText, probabilities } = shared;
  const root = byId("cases-browser");
  if (!root) return;
  const listing = data("listing"), asked = listing.questions;
  const FEW_PICTURES = 3, LONG = 280, LINES = 6;
  const frame = byId("case-frame"), table = byId("case-table"), body = byId("case-rows");
  const known = (q, i) => listing.truth[q][i] >= 0;
  const wrong = (q, i) => known(q, i) && listing.truth[q][i] !== listing.said[q][i];
  const truthOf = (q, i) => asked[q].answers[listing.truth[q][i]];

  // ---- cells ----
  const cell = (className, title, ...inside) => {
    const made = make("td", className, title ? isolated(title, "cell-name") : null, ...inside);
    made.setAttribute("role", "cell");
    return made;
  };
  const likeliest = (q, i, probs) => { // only classes have colours
    const place = listing.said[q][i], name = asked[q].answers[place];
    return make("span", "says", q ? isolated(name, "label") : label(name, place),
      probs[q] && make("span", "figure faint", " " + figure(probs[q][place])));
  };
  const judged = (q, i) => {
    if (!known(q, i)) return make("span", "judged faint", "truth not known");
    if (!wrong(q, i)) return make("span", "judged right", "✓ right");
    if (q === 0) return make("span", "judged wrong", "✗ wrong"); // the truth stands beside it
    return make("span", "judged wrong", "✗ truth: ", isolated(truthOf(q, i)));
  };
  const scoreCell = (q, i, probs) => {
    const score = listing.score[q][i];
    return cell(wrong(q, i) ? "score missed" : "score", asked[q].name,
      make("span", "figure value-of", figure(score)), meter(score), likeliest(q, i, probs), judged(q, i));
  };
  const truthCell = (i) => cell("truth", "truth",
    known(0, i) ? label(truthOf(0, i), listing.truth[0][i]) : make("span", "faint", "not known"));
  const answers = (probs, q) => make("div", "", isolated(asked[q].name, "probs-of"), // of a question with more than two
    probabilities(asked[q].name, probs.map((prob, k) => [asked[q].answers[k], prob])));
  const content = (i, open) => {
    const [text, images, pictures, probs] = view.record(i);
    const made = make("div", open ? "content open" : "content", postText(text, "case-text", "no text was recorded"));
    if (images.length) {
      const few = open ? images.length : Math.min(FEW_PICTURES, images.length);
      made.append(pictureRow(images, listing.pictures, few));
      if (pictures > few) made.lastChild.append(make("span", "faint", `${few} of ${number(pictures)}`));
    }
    const many = probs.flatMap((one, q) => one ? [answers(one, q)] : []);
    if (open && many.length) made.append(make("div", "all-probs", ...many));
    return made;
  };
  const holdsMore = (i) => {
    const [text, images, , probs] = view.record(i), words = text || "";
    return words.length > LONG || words.split("\n").length > LINES || images.length > FEW_PICTURES || probs.some(Boolean);
  };
  const postCell = (i) => {
    const made = cell("post", "", isolated(listing.id[i], "case-id"), content(i, false));
    if (!holdsMore(i)) return made;
    const more = button("link unfold", "More", () => {
      const open = more.getAttribute("aria-expanded") === "false";
      made.querySelector(".content").replaceWith(content(i, open));
      more.setAttribute("aria-expanded", open);
      more.textContent = open ? "Less" : "More";
    });
    more.setAttribute("aria-expanded", "false");
    made.append(more);
    return made;
  };

  // ---- rows: the current one is that which Tab reaches ----
  const row = (i, place) => {
    const probs = view.record(i)[3];
    const made = make("tr", wrong(0, i) ? "case missed" : "case",
      postCell(i), truthCell(i), ...asked.map((_, q) => scoreCell(q, i, probs)));
    made.tabIndex = -1;
    made.setAttribute("role", "row");
    made.setAttribute("aria-rowindex", place + 2);
    made.addEventListener("focusin", () => { view.stay(place); reach(made); });
    return made;
  };
  const reach = (chosen) => {
    for (const one of body.children) one.tabIndex = one === chosen ? 0 : -1;
  };
  const current = (chosen, i, place, by) => {
    reach(chosen);
    if (!chosen) return;
    if (by === "key" || by === "row") chosen.focus();
    if (by === "page" && frame.getBoundingClientRect().top < 0) root.querySelector(".cases").scrollIntoView();
  };
  const drawn = (found) => {
    table.setAttribute("aria-rowcount", found.length + 1);
    frame.hidden = !found.length;
    frame.scrollTop = 0;
  };

  // ---- what is not known comes last, whichever way ----
  const ordered = new Intl.Collator("en", { numeric: true });
  const orders = {
    file: () => 0,
    id: (a, b) => ordered.compare(listing.id[a], listing.id[b]),
    wrong: (a, b) => listing.believed[a] - listing.believed[b],
    truth: (a, b) => listing.truth[0][a] - listing.truth[0][b],
  };
  const order = (value) => {
    const [name, way] = value.split(":"), sign = way === "down" ? -1 : 1;
    const by = orders[name] || ((a, b) => listing.score[name][a] - listing.score[name][b]);
    const last = name === "wrong" || name === "truth" ? (i) => !known(0, i) : () => false;
    return (a, b) => last(a) - last(b) || sign * by(a, b);
  };
  const open = () => { const more = view.chosen().querySelector(".unfold"); if (more) more.click(); };
  const view = shared.table(root, {
    records: "cases", called: "posts", size: 50,
    words: (i, [text, images]) => [listing.id[i], text || "", ...images.map((one) => one[1])],
    filters: {
      "f-outcome": (i, wanted) => wanted === "unknown" ? !known(0, i) : known(0, i) && wrong(0, i) === (wanted === "wrong"),
      "f-truth": (i, wanted) => listing.truth[0][i] === Number(wanted),
      "f-said": (i, wanted) => listing.said[0][i] === Number(wanted),
      "f-question": (i, wanted) => wanted === "any" ? asked.some((_, q) => q > 0 && wrong(q, i)) : wrong(Number(wanted), i),
    },
    order, rows: body, row, drawn, current,
    focus: () => view.back(), focused: (element) => element.matches("tr.case"),
    onRow: () => body.contains(document.activeElement), pictures: (chosen) => chosen,
    keys: { o: open }, rowKeys: { Enter: open },
  });
  view.open();
})();
