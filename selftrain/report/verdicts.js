// The browser of verdicts: a list, and beside it what was said of the chosen post.
(() => {
  const { byId, data, make, isolated, figure, number, meter, parties, pictureRow, postText } = shared;
  const root = byId("browser");
  if (!root) return;
  const listing = data("listing");
  const list = byId("list"), detail = byId("detail");
  const label = (classNumber) => shared.label(listing.classes[classNumber], classNumber);
  const chip = (text, kind) => make("span", "chip " + kind, text);
  const wrong = (i) => listing.truth[i] >= 0 && listing.truth[i] !== listing.label[i];
  const flag = (columns, i, wanted) => wanted === "any" ? columns[i] > 0 : (columns[i] >> Number(wanted)) & 1;
  let others = null; // id -> its verdicts, in all rounds
  const sameId = (i) => {
    if (!others) {
      others = new Map();
      listing.id.forEach((id, j) => others.set(id, [...(others.get(id) || []), j]));
    }
    return others.get(listing.id[i]).filter((j) => j !== i);
  };

  // ---- the list ----
  const row = (i, place) => {
    const made = make("li", "row");
    made.id = "row-" + place;
    made.setAttribute("role", "option");
    made.setAttribute("aria-posinset", place + 1);
    made.setAttribute("aria-setsize", view.found().length);
    const head = make("span", "row-head"), last = make("span", "row-said");
    last.append(label(listing.label[i]), make("span", "figure", figure(listing.probability[i])));
    const state = listing.consistent[i] ? "consistent" : "divergent";
    head.append(make("span", "dot " + (listing.consistent[i] ? "agreed" : "split")), isolated(listing.id[i], "row-id"),
      make("span", "unseen", `, ${state}, round ${listing.round[i]}, `), last);
    made.append(head, isolated(listing.snippet[i] || "(no text)", "row-text"));
    made.addEventListener("click", () => { view.go(place, ""); reveal(); });
    return made;
  };
  const current = (chosen, i, place, by) => {
    for (const one of list.querySelectorAll("[aria-selected]")) one.removeAttribute("aria-selected");
    if (!chosen) {
      list.removeAttribute("aria-activedescendant");
      detail.replaceChildren();
      return;
    }
    if (by === "key") root.scrollIntoView({ block: "nearest" });
    chosen.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", chosen.id);
    // scrollIntoView would move the whole page
    const top = chosen.offsetTop - list.offsetTop, bottom = top + chosen.offsetHeight;
    if (top < list.scrollTop) list.scrollTop = top;
    if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
    show(i);
    byId("place").textContent = `${number(place + 1)} of ${number(view.found().length)}`;
  };
  const reveal = () => { // on a narrow page the verdict stands below the list
    if (detail.getBoundingClientRect().top > window.innerHeight - 120) detail.scrollIntoView();
  };

  // ---- one verdict ----
  const step = ([, stepNumber, state, classNumber, probability, rationale], earlier) => {
    const made = make("div", "step"), head = make("div", "step-head");
    head.append(make("span", "when", stepNumber === 0 ? "alone" : "after cross-review"));
    if (classNumber < 0) head.append(chip(state === "abstain" ? "abstained" : state, state === "failed" ? "bad" : "quiet"));
    else head.append(label(classNumber), make("span", "figure", figure(probability)));
    if (earlier && earlier[3] !== classNumber) head.append(chip("changed its mind", "note"));
    const words = make("p", "said", rationale || "(no rationale)");
    words.dir = "auto";
    made.append(head, words);
    return made;
  };
  const classifier = (i) => {
    const made = make("div", "step"), head = make("div", "step-head");
    head.append(label(listing.label[i]), make("span", "figure", figure(listing.probability[i])));
    made.append(head, meter(listing.probability[i]));
    return ["classifier", [made]];
  };
  const agents = (judgments) => listing.agents.map((name, agent) => {
    const own = judgments.filter((one) => one[0] === agent);
    return [name, own.map((one, k) => step(one, own[k - 1]))];
  }).filter(([, steps]) => steps.length);
  const chips = (i) => {
    const made = make("p", "chips");
    made.append(listing.consistent[i] ? chip("consistent", "good") : chip("divergent", "split"));
    made.append(chip(`round ${listing.round[i]}, ${listing.rounds[listing.round[i]]}`, "quiet"));
    if (listing.truth[i] >= 0) {
      const truth = chip(wrong(i) ? "classifier wrong: it is " : "classifier right: it is ", wrong(i) ? "bad" : "quiet");
      truth.append(isolated(listing.classes[listing.truth[i]]));
      made.append(truth);
    }
    return made;
  };
  const again = (i) => {
    const made = make("p", "again", "Judged in other rounds too: ");
    for (const j of sameId(i)) {
      const link = make("button", "link", `round ${listing.round[j]}`);
      link.type = "button";
      link.addEventListener("click", () => {
        if (!view.found().includes(j)) view.reset(); // a filter hides it
        view.go(view.found().indexOf(j), "");
      });
      made.append(link, " ");
    }
    return made;
  };
  const show = (i) => {
    const [text, images, judgments, remark] = view.record(i);
    const head = make("header", "verdict-head"), title = make("h3");
    title.tabIndex = -1;
    title.append(isolated(listing.id[i]));
    head.append(title, chips(i));
    const post = make("div", "post"), all = make("div", "parties");
    post.append(postText(text, "post-text", "the manifest is not there any more: no text"));
    if (remark) post.append(make("p", "faint", remark));
    if (images.length) post.append(pictureRow(images, listing.pictures));
    all.append(...parties([classifier(i), ...agents(judgments)]));
    detail.replaceChildren(head, post, all);
    if (sameId(i).length) detail.append(again(i));
  };

  const orders = {
    low: (a, b) => listing.probability[a] - listing.probability[b],
    high: (a, b) => listing.probability[b] - listing.probability[a],
    oldest: (a, b) => listing.round[a] - listing.round[b],
  };
  const view = shared.table(root, {
    records: "verdicts", called: "verdicts", size: 100,
    words: (i, [text, images, judgments]) => [
      listing.id[i], text || "", listing.classes[listing.label[i]], ...images.map((one) => one[1]),
      ...judgments.flatMap((one) => [one[5], one[3] < 0 ? one[2] : listing.classes[one[3]]]),
    ],
    filters: {
      "f-round": (i, wanted) => listing.round[i] === Number(wanted),
      "f-set": (i, wanted) => listing.consistent[i] === Number(wanted),
      "f-class": (i, wanted) => listing.label[i] === Number(wanted),
      "f-changed": (i, wanted) => flag(listing.changed, i, wanted),
      "f-failed": (i, wanted) => flag(listing.failed, i, wanted),
      "f-truth": (i, wanted) => listing.truth[i] >= 0 && wrong(i) === (wanted === "wrong"),
    },
    order: (value) => orders[value] || null,
    rows: list, row, drawn: () => {}, current,
    focus: () => list.focus(), focused: (element) => element === list, onRow: () => true,
    pictures: () => detail,
    rowKeys: {
      PageDown: (by) => view.turn(1, by), PageUp: (by) => view.turn(-1, by),
      Enter: () => { reveal(); detail.querySelector("h3").focus(); },
    },
  });
  byId("previous").addEventListener("click", () => view.step(-1));
  byId("next").addEventListener("click", () => view.step(1));
  view.open();
})();
