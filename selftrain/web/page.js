// What the scripts of all pages share. The page holds its data as JSON in elements, in chunks that are parsed
// when somebody looks. Whatever comes from a file goes through textContent: it is shown, never interpreted.
"use strict";
const shared = (() => {
  const byId = (id) => document.getElementById(id);

  // ---- data: parsed once, when it is asked for ----
  const parsed = new Map();
  const data = (id) => {
    if (!parsed.has(id)) parsed.set(id, JSON.parse(byId(id).textContent));
    return parsed.get(id);
  };
  const pictureUrl = (starts, number) => { // starts: the number of each chunk's first picture
    let at = 0;
    while (at + 1 < starts.length && starts[at + 1] <= number) at += 1;
    return data("pictures-" + at)[number - starts[at]];
  };

  // ---- elements ----
  const make = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const isolated = (text, className) => { // a name of any script disturbs nothing around it
    const made = make("bdi", className, text);
    made.dir = "auto";
    return made;
  };
  const figure = (value) => value === null ? "–" : value.toFixed(3);
  const number = (value) => value.toLocaleString("en");
  const meter = (value) => {
    const made = make("span", "meter"), bar = make("span");
    bar.style.width = Math.round(100 * value) + "%";
    made.append(bar);
    made.setAttribute("aria-hidden", "true");
    return made;
  };
  const postText = (text, className, missing) => { // null: nobody knows it any more
    const made = make("p", text ? className : className + " none", text === null ? `(${missing})` : text || "(no text)");
    made.dir = "auto";
    return made;
  };
  const parties = (all) => { // [name, elements]: what was said at the same step stands at the same height
    const rows = 1 + Math.max(0, ...all.map(([, steps]) => steps.length));
    return all.map(([name, steps]) => {
      const made = make("section", "party"), title = make("h4");
      title.append(isolated(name));
      made.append(title, ...steps);
      made.style.gridRow = "span " + rows;
      return made;
    });
  };
  const label = (name, place) => isolated(name, "label class-" + Math.min(place, 2));

  // ---- pictures: veiled until somebody asks ----
  const unveil = (button, yes) => {
    button.setAttribute("aria-pressed", yes);
    button.classList.toggle("shown", yes);
  };
  const picture = (starts, [place, name], k, all, shown) => {
    if (place < 0) {
      const missing = make("div", "picture missing");
      missing.append(make("span", "", "not embedded"), isolated(name, "path"));
      return missing;
    }
    const made = make("button", "picture");
    made.type = "button";
    const image = make("img");
    image.alt = `picture ${k + 1} of ${all.length}`;
    image.src = pictureUrl(starts, place);
    made.append(image, make("span", "veil", "Show"));
    unveil(made, shown);
    made.addEventListener("click", () => unveil(made, !made.classList.contains("shown")));
    made.title = name;
    return made;
  };
  const pictureRow = (images, starts, most = images.length) => {
    const made = make("div", "pictures"), all = byId("pictures").checked;
    made.append(...images.slice(0, most).map((one, k) => picture(starts, one, k, images, all)));
    return made;
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
  return {
    byId, data, make, isolated, figure, number, meter, label, postText, parties, pictureRow, unveilAll, searched,
  };
})();
