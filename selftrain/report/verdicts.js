// The browser of verdicts: a list, and beside it what was said of the chosen post.
(() => {
  const {
    byId, data, make, button, chip, isolated, figure, number, step, parties, probabilities, evidence, pictureRow, postText,
  } = shared;
  const root = byId("browser");
  if (!root) return;
  const listing = data("listing");
  const list = byId("list"), detail = byId("detail");
  const label = (classNumber) => shared.label(listing.classes[classNumber], classNumber);
  const wrong = (i) => listing.truth[i] >= 0 && listing.truth[i] !== listing.decided[i];
  const flag = (columns, i, wanted) => wanted === "any" ? columns[i] > 0 : (columns[i] >> Number(wanted)) & 1;
  let others = null; // id -> its verdicts, in all rounds
  const sameId = (i) => {
    others ??= Map.groupBy(listing.id.keys(), (j) => listing.id[j]);
    return others.get(listing.id[i]).filter((j) => j !== i);
  };

  // ---- the list ----
  const row = (i, place) => {
    const state = listing.consistent[i] ? "consistent" : "divergent";
    const made = make("li", "row",
      make("span", "row-head", make("span", "dot " + (listing.consistent[i] ? "agreed" : "split")),
        isolated(listing.id[i], "row-id"), make("span", "unseen", `, ${state}, round ${listing.round[i]}, `),
        make("span", "row-said", label(listing.decided[i]), make("span", "figure", figure(listing.sure[i])))),
      isolated(listing.snippet[i] || "(no text)", "row-text"));
    made.id = "row-" + place;
    made.setAttribute("role", "option");
    made.setAttribute("aria-posinset", place + 1);
    made.setAttribute("aria-setsize", view.found().length);
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
  const classifier = (i) => ["classifier", [
    step({ label: label(listing.label[i]), probability: listing.probability[i] })]];
  const judged = ([, number, state, place, probability, words, thoughts], earlier) => step({
    label: place < 0 ? null : label(place), state, probability, words: words || "(no rationale)", thoughts,
    when: number === 0 ? "alone" : "after cross-review", changed: earlier && earlier[3] !== place,
  });
  const agents = (judgments) => listing.agents.map((name, agent) => {
    const own = judgments.filter((one) => one[0] === agent);
    return [name, own.map((one, k) => judged(one, own[k - 1]))];
  }).filter(([, steps]) => steps.length);
  const together = (i, [threshold, probs, added, history]) => make("section", "together",
    make("h4", "", "Posterior: all of it together"),
    make("p", "step-head", label(listing.decided[i]), make("span", "figure", figure(listing.sure[i])),
      make("span", "faint", `${listing.consistent[i] ? "learned" : "not learned"}: the threshold is ${threshold.toFixed(2)}`)),
    make("p", "faint", "What each party added to the log-odds of this label over the runner-up:"),
    evidence(added),
    probs.length > 2 && probabilities("posterior", [...probs].sort((a, b) => b[1] - a[1]).map(([place, q]) => [listing.classes[place], q])),
    history.length > 1 && make("p", "faint", "Round by round: ", ...history.flatMap(([number, place, q], k) => [
      k ? " → " : "", `${number}: `, label(place), ` ${figure(q)}`])));
  const weighed = (i) => view.record(i)[4] !== null;
  const chips = (i) => make("p", "chips",
    listing.consistent[i] ? chip("consistent", "good") : chip("divergent", "split"),
    chip(`round ${listing.round[i]}, ${listing.rounds[listing.round[i]]}`, "quiet"),
    listing.truth[i] < 0 ? null : chip(`${weighed(i) ? "posterior" : "classifier"} ${wrong(i) ? "wrong" : "right"}: it is `,
      wrong(i) ? "bad" : "quiet", isolated(listing.classes[listing.truth[i]])));
  const again = (i) => make("p", "again", "Judged in other rounds too: ", ...sameId(i).flatMap((j) => [
    button("link", `round ${listing.round[j]}`, () => {
      if (!view.found().includes(j)) view.reset(); // a filter hides it
      view.go(view.found().indexOf(j), "");
    }), " "]));
  const show = (i) => {
    const [text, images, judgments, remark, posterior] = view.record(i);
    const title = make("h3", "", isolated(listing.id[i]));
    title.tabIndex = -1;
    detail.replaceChildren(make("div", "",
      make("header", "verdict-head", title, chips(i)),
      make("div", "post", postText(text, "post-text", "the manifest is not there any more: no text"),
        remark ? make("p", "faint", remark) : null, images.length ? pictureRow(images, listing.pictures) : null),
      posterior && together(i, posterior),
      make("div", "parties", ...parties([classifier(i), ...agents(judgments)]))));
    if (sameId(i).length) detail.append(again(i));
  };

  const orders = {
    "q-low": (a, b) => listing.sure[a] - listing.sure[b],
    "q-high": (a, b) => listing.sure[b] - listing.sure[a],
    low: (a, b) => listing.probability[a] - listing.probability[b],
    high: (a, b) => listing.probability[b] - listing.probability[a],
    oldest: (a, b) => listing.round[a] - listing.round[b],
  };
  const view = shared.table(root, {
    records: "verdicts", called: "verdicts", size: 100,
    words: (i, [text, images, judgments]) => [
      listing.id[i], text || "", listing.classes[listing.label[i]], ...images.map((one) => one[1]),
      ...judgments.flatMap((one) => [one[5], one[6], one[3] < 0 ? one[2] : listing.classes[one[3]]]),
    ],
    filters: {
      "f-round": (i, wanted) => listing.round[i] === Number(wanted),
      "f-set": (i, wanted) => listing.consistent[i] === Number(wanted),
      "f-decided": (i, wanted) => listing.decided[i] === Number(wanted),
      "f-sure": (i, wanted) => {
        if (wanted === "overruled") return listing.decided[i] !== listing.label[i];
        const [low, high] = wanted.split(" ").map(Number);
        return listing.sure[i] >= low && listing.sure[i] < high;
      },
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
