// What the scripts of all pages share. The page holds its data as JSON in elements, in chunks that are parsed
// when somebody looks. Whatever comes from a file becomes a text node: it is shown, never interpreted.
"use strict";
const shared = (() => {
  const byId = (id) => document.getElementById(id);

  // ---- data: parsed once, when it is asked for ----
  const parsed = new Map();
  const data = (id) => {
    if (!parsed.has(id)) parsed.set(id, JSON.parse(byId(id).textContent));
    return parsed.get(id);
  };
  const pictureUrl = (chunk, number) => data("pictures-" + Math.floor(number / chunk))[number % chunk];

  // ---- elements: strings among `inside` become text ----
  const make = (tag, className, ...inside) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...inside.filter((one) => one !== undefined && one !== null && one !== false));
    return made;
  };
  const button = (className, text, clicked) => {
    const made = make("button", className, text);
    made.type = "button";
    made.addEventListener("click", clicked);
    return made;
  };
  const isolate = (element) => { // text of any script, which disturbs nothing around it
    element.dir = "auto";
    return element;
  };
  const isolated = (text, className) => isolate(make("bdi", className, text));
  const figure = (value) => value === null ? "–" : value.toFixed(3);
  const number = (value) => value.toLocaleString("en");
  const meter = (value) => {
    const bar = make("span"), made = make("span", "meter", bar);
    bar.style.width = Math.round(100 * value) + "%";
    made.setAttribute("aria-hidden", "true");
    return made;
  };
  const postText = (text, className, missing) => // null: nobody knows it any more
    isolate(make("p", text ? className : className + " none", text === null ? `(${missing})` : text || "(no text)"));
  const label = (name, place) => isolated(name, "label class-" + place % 4);
  const chip = (text, kind, ...inside) => make("span", "chip " + kind, text, ...inside);

  // ---- what was said of a post: a label (an element) or why there is none, its probability, the reasons ----
  const step = ({ label, state, probability, words, thoughts, when, changed }) => {
    const nothing = () => chip(state === "abstain" ? "abstained" : state, state === "failed" ? "bad" : "quiet");
    const sure = probability === null || probability === undefined ? null : figure(probability);
    const made = make("div", "step", make("div", "step-head", when && make("span", "when", when), label || nothing(),
      label && sure && make("span", "figure", sure), changed ? chip("changed its mind", "note") : null));
    if (words) made.append(isolate(make("p", "said", words)));
    else if (label && sure) made.append(meter(probability));
    if (thoughts) made.append(make("details", "", make("summary", "faint", "thoughts before it"), isolate(make("p", "said faint", thoughts))));
    return made;
  };
  const parties = (all) => { // [name, elements]: what was said at the same step stands at the same height
    const rows = 1 + Math.max(0, ...all.map(([, steps]) => steps.length));
    return all.map(([name, steps]) => {
      const made = make("section", "party", make("h4", "", isolated(name)), ...steps);
      made.style.gridRow = "span " + rows;
      return made;
    });
  };
  const figures = (className, called, rows) => { // [name, elements]
    const made = make("dl", className, ...rows.flatMap(([name, inside]) => [
      make("dt", "", isolated(name)), make("dd", "figure", ...inside)]));
    made.setAttribute("aria-label", called);
    return made;
  };
  const probabilities = (called, all) => // [name, probability]
    figures("probs", called, all.map(([name, value]) => [name, [figure(value), meter(value)]]));
  const evidence = (all) => { // [party, log-odds that it added]: for the label to the right, against it to the left
    const most = Math.max(1, ...all.map(([, value]) => Math.abs(value)));
    return figures("evidence", "log-odds that each party added", all.map(([name, value]) => {
      const bar = make("span", value < 0 ? "against" : "for"), made = make("span", "lean", bar);
      bar.style.width = 50 * Math.abs(value) / most + "%";
      made.setAttribute("aria-hidden", "true");
      return [name, [made, (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2)]];
    }));
  };

  // ---- pictures: veiled until somebody asks ----
  const unveil = (picture, yes) => {
    picture.setAttribute("aria-pressed", yes);
    picture.classList.toggle("shown", yes);
  };
  const picture = (chunk, [place, name], k, all, shown) => {
    if (place < 0) return make("div", "picture missing", make("span", "", "not embedded"), isolated(name, "path"));
    const image = make("img"), made = button("picture", image, () => unveil(made, !made.classList.contains("shown")));
    image.alt = `picture ${k + 1} of ${all.length}`;
    image.src = pictureUrl(chunk, place);
    made.append(make("span", "veil", "Show"));
    made.title = name;
    unveil(made, shown);
    return made;
  };
  const pictureRow = (images, chunk, most = images.length) => {
    const shown = byId("pictures").checked;
    return make("div", "pictures", ...images.slice(0, most).map((one, k) => picture(chunk, one, k, images, shown)));
  };
  const unveilAll = (inside, yes) => {
    for (const one of inside.querySelectorAll("button.picture")) unveil(one, yes);
  };

  const searched = (field, then) => { // not at every letter
    let waiting = 0;
    field.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(then, 120);
    });
  };
  // what a key is called, whatever Caps Lock or a layout without Latin letters make of it
  const keyOf = ({ key, code }) => key.length > 1 ? key
    : key > "\x7f" && /^Key.$/.test(code) ? code[3].toLowerCase() : key.toLowerCase();
  return {
    byId, data, make, button, isolated, figure, number, meter, label, chip, postText, step, parties, probabilities,
    evidence, pictureRow, unveilAll, searched, keyOf,
  };
})();
