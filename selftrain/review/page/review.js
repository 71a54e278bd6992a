// The review page. It shows one post, sends one answer, and shows the next post only when the server has said
// that the answer is on its disk; an answer that could not be saved stays on the screen and is sent again.
(() => {
  const { byId, data, make, button, chip, isolated, number, step, parties, evidence, keyOf } = shared;
  const settings = data("settings");
  const RETRIES = [1, 2, 4, 8, 15]; // seconds
  const POLL = 5, TIMEOUT = 20;

  let reviewer = "", mode = "", post = null, last = null, busy = false, lastSeen = Date.now();
  let snippet = ""; // of the post that was answered last

  // ---- names ----
  const stored = (store, name, value) => { // a browser may refuse to keep anything
    try {
      if (value === undefined) return store.getItem(name) || "";
      store.setItem(name, value);
    } catch { /* asked for again at the next visit */ }
    return "";
  };
  const place = (label) => settings.classes.findIndex((one) => one.name === label);
  const named = (label) => {
    const at = place(label);
    return at < 0 ? make("span", "label", "unsure") : shared.label(settings.classes[at].shown, at);
  };
  const words = (label) => place(label) < 0 ? "unsure" : settings.classes[place(label)].shown;
  const say = (text) => { byId("live").textContent = text; };

  // ---- asking the server ----
  class Refused extends Error {
    constructor(status, reason) { super(reason); this.status = status; }
  }
  const ask = async (path, fields) => {
    const stop = new AbortController(), timer = setTimeout(() => stop.abort(), 1000 * TIMEOUT);
    try {
      const answer = await fetch("/api/" + path, {
        method: "POST", headers: { "Content-Type": "application/json" }, cache: "no-store",
        body: JSON.stringify({ reviewer, ...fields }), signal: stop.signal,
      });
      const told = await answer.json();
      if (answer.ok) return told;
      throw new Refused(answer.status, told.error);
    } finally {
      clearTimeout(timer);
    }
  };
  const reasonOf = (error) => error instanceof Refused ? error.message
    : error.name === "AbortError" ? "the server does not answer" : "the server cannot be reached";

  // asks until the server has answered; whatever it takes, what was asked stays on the screen
  let tryNow = () => {};
  const insist = async (path, fields, what) => {
    for (let tries = 0; ; tries += 1) {
      try {
        const told = await ask(path, fields);
        hideFault();
        return told;
      } catch (error) {
        if (error instanceof Refused && error.status < 500 && error.status !== 403) throw error;
        const wait = RETRIES[Math.min(tries, RETRIES.length - 1)];
        fault(`${what}: ${reasonOf(error)}. Trying again every few seconds${mode === "post" ? "; the answer stays here" : ""}.`);
        await new Promise((go) => {
          tryNow = go;
          setTimeout(go, 1000 * wait);
        });
      }
    }
  };
  const fault = (text, mild) => {
    if (mode === "end") { byId("end-words").textContent = text; return; }
    if (mode !== "post") {
      if (mode !== "name") door();
      byId("name-fault").textContent = text;
      byId("name-fault").hidden = false;
      return;
    }
    byId("fault-words").textContent = text;
    byId("fault").classList.toggle("mild", Boolean(mild));
    byId("fault").hidden = false;
  };
  const hideFault = () => { byId("fault").hidden = byId("name-fault").hidden = true; };

  // one thing at a time: a second key while the first is under way does nothing
  const once = (work) => async (...given) => {
    if (busy) return;
    busy = true;
    disable(true);
    try {
      await work(...given);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      // the post is not ours any more, or was answered in another window: go on with what is
      await refresh(error.message);
    } finally {
      busy = false;
      disable(false);
    }
  };
  const refresh = async (reason) => {
    const told = await insist("begin", {}, "Not connected");
    last = told.last;
    show(told);
    if (mode === "post") fault(`${reason}. This is the next post.`, true);
    say(reason);
  };
  const disable = (yes) => {
    for (const one of byId("answers").querySelectorAll(".choice, .others button")) one.disabled = yes;
    byId("end-undo").disabled = yes || !last;
    byId("undo").disabled = yes || !last;
  };

  // ---- what a reviewer does ----
  const decide = once(async (label) => {
    if (mode !== "post") return;
    const chosen = buttonOf(label), answered = post;
    chosen.classList.add("chosen");
    const told = await insist("decide", { post: answered.id, label }, "Not saved");
    last = told.answered;
    snippet = (answered.text || "").replace(/\s+/g, " ").slice(0, 90);
    show(told);
    say(`Saved: ${words(label)}. ${agreement(last)} ${place_()}`);
  });
  const skip = once(async () => {
    if (mode !== "post") return;
    const told = await insist("skip", { post: post.id }, "Not skipped");
    show(told);
    say(`Skipped. ${place_()}`);
  });
  const undo = once(async () => {
    if (!last) return;
    const taken = last;
    const told = await insist("undo", { post: taken.id }, "Not undone");
    last = told.last;
    snippet = "";
    show(told);
    buttonOf(taken.label).classList.add("before");
    say(`Undone: you had said ${words(taken.label)}. ${place_()}`);
  });
  const place_ = () => mode === "post" ? byId("post-number").textContent + "." : byId("end-title").textContent;
  const buttonOf = (label) => place(label) < 0 ? byId("unsure") : byId("classes").children[place(label)];

  // ---- showing ----
  const parts = ["name-page", "work", "end"];
  const turn = (to, part) => {
    mode = to;
    for (const one of parts) byId(one).hidden = one !== part;
  };
  const show = (told) => {
    head(told);
    post = told.post;
    if (post) { turn("post", "work"); drawPost(); } else { turn("end", "end"); drawEnd(told); }
    drawPrevious();
    window.scrollTo(0, 0);
    byId(post ? "post" : "end").focus({ preventScroll: true });
  };
  const seconds = (value) => value < 10 ? value.toFixed(1) : Math.round(value);
  const head = ({ progress, stats }) => {
    const share = progress.entered ? progress.reviewed / progress.budget : 0;
    byId("done").style.width = 100 * share + "%";
    byId("track").setAttribute("aria-valuemax", progress.budget);
    byId("track").setAttribute("aria-valuenow", progress.reviewed);
    byId("count").replaceChildren(make("b", "", number(progress.reviewed)), ` of ${number(progress.budget)}`);
    byId("count").append(make("span", "unseen", " posts reviewed"));
    byId("second").textContent = progress.doubled
      ? `second reviews ${number(progress.second)} of ${number(progress.doubled)}` : "";
    const { posts, agreed, kappa } = stats.agreement;
    byId("kappa").textContent = !posts ? "" : kappa === null
      ? `agreement ${number(agreed)} of ${number(posts)}` : `agreement κ ${kappa.toFixed(2)} on ${number(posts)}`;
    byId("pace").textContent = stats.seconds === null ? "" : `${seconds(stats.seconds)} s a post`;
    byId("stats").hidden = byId("progress").hidden = false;
  };
  const drawPost = () => {
    hideFault();
    byId("post-number").textContent = `Post ${number(post.place + 1)}`;
    byId("post-id").textContent = post.shown;
    const text = byId("text");
    text.textContent = post.text === null ? "(the manifest is not there any more: no text)" : post.text || "(no text)";
    text.classList.toggle("none", !post.text);
    text.classList.toggle("long", (post.text || "").length > 400);
    byId("remark").textContent = post.remark;
    byId("remark").hidden = !post.remark;
    for (const one of document.querySelectorAll(".chosen, .before")) one.classList.remove("chosen", "before");
    byId("before").hidden = !(post.opinions && post.opinions.length);
    showParties("before-parties", post.opinions || [], null);
    album.open();
  };

  // ---- what machines said ----
  const lastWord = (opinion) => opinion.steps[opinion.steps.length - 1];
  const states = { abstain: "abstained" };
  const wordOf = ({ label, state }) => label === null ? states[state] || state : words(label);
  const compared = (opinion, label) => { // who is unsure, and who names no class, agrees with nobody
    const said = lastWord(opinion).label;
    return label === null || said === null || place(label) < 0 ? "" : said === label ? "agrees" : "differs";
  };
  const agreement = ({ label, opinions }) => opinions
    .map((one) => compared(one, label) === "agrees" ? `${one.who} agrees.` : `${one.who} said ${wordOf(lastWord(one))}.`)
    .join(" ");
  const stepOf = (one, earlier) => step({
    ...one, label: one.label === null ? null : named(one.label), changed: earlier && earlier.label !== one.label,
  });
  const showParties = (where, opinions, label) => {
    const all = parties(opinions.map(({ who, steps }) => [who, steps.map((one, k) => stepOf(one, steps[k - 1]))]));
    all.forEach((one, k) => {
      one.classList.add(...[compared(opinions[k], label)].filter(Boolean));
      if (opinions[k].log_odds.length) one.lastChild.append(evidence(opinions[k].log_odds));
    });
    byId(where).replaceChildren(...all);
  };
  const mark = (opinion, label) => {
    const [kind, sign] = { agrees: ["good", " ✓ "], differs: ["bad", " ✗ "], "": ["", " "] }[compared(opinion, label)];
    return make("li", "", chip(isolated(opinion.who), kind, sign, isolated(wordOf(lastWord(opinion)))));
  };
  const drawPrevious = () => {
    const shown = last && mode === "post";
    byId("previous").hidden = !shown;
    if (!shown) return;
    const line = byId("previous-line");
    line.replaceChildren(make("span", "faint", "Last answer"), named(last.label));
    if (snippet) line.append(isolated(snippet, "snippet"));
    else line.append(isolated(last.shown, "snippet path"));
    byId("previous-marks").replaceChildren(...last.opinions.map((one) => mark(one, last.label)));
    byId("why").hidden = !last.opinions.length;
    showParties("previous-parties", last.opinions, last.label);
  };

  // ---- pictures: veiled until somebody asks ----
  const album = (() => {
    let at = 0, seen = new Set();
    const button = byId("picture"), image = byId("image"), missing = byId("picture-fault");
    const veil = () => {
      const shown = seen.has(at);
      button.setAttribute("aria-pressed", shown);
      button.classList.toggle("shown", shown);
    };
    const draw = () => {
      const count = post.images.length;
      missing.hidden = true;
      button.hidden = false;
      image.alt = `picture ${at + 1} of ${count}`;
      image.src = `/picture/${post.place}/${at}`;
      button.title = post.images[at];
      byId("album-place").textContent = `${at + 1} of ${count}`;
      byId("earlier").disabled = at === 0;
      byId("later").disabled = at === count - 1;
      veil();
    };
    image.addEventListener("error", async () => {
      const source = image.getAttribute("src");
      if (!source || !post) return;
      let reason = "the server cannot be reached";
      try {
        const answer = await fetch(source, { cache: "no-store" });
        reason = answer.ok ? "it cannot be drawn" : (await answer.json()).error;
      } catch { /* that is the reason */ }
      if (image.getAttribute("src") !== source) return;
      button.hidden = true;
      missing.textContent = `Picture ${at + 1} cannot be shown: ${reason}`;
      missing.hidden = false;
    });
    button.addEventListener("click", () => {
      if (seen.has(at)) seen.delete(at); else seen.add(at);
      veil();
    });
    const step = (by) => {
      if (mode !== "post" || at + by < 0 || at + by >= post.images.length) return;
      at += by;
      draw();
    };
    byId("earlier").addEventListener("click", () => step(-1));
    byId("later").addEventListener("click", () => step(1));
    return {
      open: () => {
        at = 0;
        seen = new Set();
        byId("album").hidden = !post.images.length;
        byId("album-row").hidden = post.images.length < 2;
        image.removeAttribute("src");
        if (post.images.length) draw();
      },
      step,
      toggle: () => {
        if (mode !== "post" || !post.images.length) return;
        seen = seen.has(at) ? new Set() : new Set(post.images.keys());
        veil();
        say(seen.has(at) ? "Pictures shown." : "Pictures blurred.");
      },
    };
  })();

  // ---- the end ----
  const percent = (value) => (100 * value).toFixed(1) + " %";
  const tile = (term, value, more) =>
    make("div", "", make("dt", "", term), make("dd", "", value, more && make("small", "", more)));
  const drawEnd = ({ progress, stats, end }) => {
    const spent = progress.left === 0;
    const waiting = progress.entered - progress.reviewed;
    byId("end-title").textContent = end.finished
      ? (spent ? "The budget is spent" : "All posts are reviewed") : "Nothing waits for you now";
    const open = end.second_open ? `${number(end.second_open)} second reviews wait for somebody else. ` : "";
    byId("end-words").textContent = end.finished
      ? `${number(progress.reviewed)} posts are reviewed. ${open}` + (end.second_open ? "" : "Thank you.")
      : progress.entered ? `${number(waiting)} posts are with other reviewers. ${open}This page looks again every ${POLL} seconds.`
        : "No post has entered the review yet. This page looks again every few seconds.";
    const { posts, agreed, kappa } = stats.agreement;
    const tiles = [tile("reviewed", number(progress.reviewed), `of a budget of ${number(progress.budget)}`)];
    if (progress.unsure) tiles.push(tile("unsure", number(progress.unsure)));
    if (progress.doubled) {
      tiles.push(tile("agreement", kappa === null ? "–" : `κ ${kappa.toFixed(2)}`, posts
        ? `${number(agreed)} of ${number(posts)} alike` : "nobody has reviewed a post twice yet"));
    }
    if (stats.seconds !== null) tiles.push(tile("median", `${seconds(stats.seconds)} s`, "a post"));
    byId("end-stats").replaceChildren(...tiles);
    drawEstimates(end.finished ? JSON.stringify([progress, last]) : "");
    byId("end-undo").hidden = !last;
    byId("end-next").hidden = !end.finished;
    byId("end-command").textContent = settings.command;
    byId("end-train").textContent = settings.train;
  };
  let estimated = ""; // of which state of the review
  const drawEstimates = async (state) => { // apart from the answers: the first one takes a moment
    if (state === estimated) return;
    estimated = state;
    const into = byId("end-estimates");
    if (!state) { into.replaceChildren(); return; }
    if (!into.children.length) into.replaceChildren(make("p", "faint", "Estimating how many machine labels are wrong …"));
    try {
      const { estimates } = await ask("estimates", {});
      if (state === estimated) into.replaceChildren(...estimates.map(estimate));
    } catch (error) {
      estimated = "";
      into.replaceChildren(make("p", "faint", `No estimate: ${reasonOf(error)}.`));
    }
  };
  const estimate = ({ batch, errors, why }) => {
    const title = make("h3", "", "Wrong machine labels");
    if (!errors) return make("div", "", title, make("p", "", why));
    const all = errors.all, shown = Math.min(Math.max(all.value, all.low), all.high);
    return make("div", "", title, make("p", "", make("strong", "", percent(shown)),
      ` of ${number(all.posts)} posts, 95 % interval ${percent(all.low)} to ${percent(all.high)}; ${number(all.wrong)} of ${number(all.reviewed)} reviewed labels were wrong. (`,
      isolated(batch), ")"));
  };

  // ---- the door ----
  const enter = async (name) => {
    reviewer = name;
    try {
      const told = await insist("begin", {}, "Not connected");
      stored(sessionStorage, "reviewer", name);
      stored(localStorage, "reviewer", name);
      byId("who-name").textContent = name;
      byId("who").hidden = false;
      last = told.last;
      show(told);
      disable(false);
      if (!last && matchMedia("(min-width: 60rem)").matches) byId("policy").open = true; // a newcomer reads it
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      door();
      byId("name-fault").textContent = error.message;
      byId("name-fault").hidden = false;
    }
  };
  const door = () => {
    turn("name", "name-page");
    byId("who").hidden = true;
    byId("name").value = reviewer || stored(localStorage, "reviewer");
    byId("name").focus();
    byId("name").select();
  };
  byId("name-form").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("name-fault").hidden = true;
    const name = byId("name").value.trim();
    if (name) enter(name);
  });
  byId("who").addEventListener("click", once(async () => {
    await insist("leave", {}, "Not left");
    stored(sessionStorage, "reviewer", "");
    last = null;
    door();
  }));

  // ---- keys and buttons ----
  const first = (event, act) => { if (event.detail < 2) act(); }; // a double tap answers one post, not two
  settings.classes.forEach((one, at) => {
    const key = at < 9 ? String(at + 1) : "";
    const made = button(`choice class-${at % 4}`, "", (event) => first(event, () => decide(one.name)));
    made.append(...(key ? [make("kbd", "", key)] : []), isolated(one.shown, "label"));
    byId("classes").append(made);
    if (!key) return;
    made.setAttribute("aria-keyshortcuts", key);
    byId("class-keys").append(
      make("tr", "", make("td", "", make("kbd", "", key)), make("td", "", shared.label(one.shown, at))));
  });
  byId("unsure").addEventListener("click", (event) => first(event, () => decide(settings.unsure)));
  byId("skip").addEventListener("click", (event) => first(event, skip));
  byId("undo").addEventListener("click", (event) => first(event, undo));
  byId("end-undo").addEventListener("click", (event) => first(event, undo));
  byId("try-now").addEventListener("click", () => tryNow());
  window.addEventListener("online", () => tryNow());
  const help = byId("help");
  const showHelp = () => { help.showModal(); byId("close-help").focus(); };
  byId("ask-help").addEventListener("click", showHelp);
  const fold = (one) => { one.open = !one.open; };
  const keys = {
    u: () => decide(settings.unsure), s: skip, z: undo, b: album.toggle,
    ArrowLeft: () => album.step(-1), ArrowRight: () => album.step(1),
    p: () => fold(byId("policy")), w: () => fold(byId("why")),
    "?": showHelp,
  };
  document.addEventListener("keydown", (event) => {
    lastSeen = Date.now();
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || help.open) return;
    if (mode === "name" || !byId("keys").checked || event.target.closest("input, textarea, select")) return;
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code); // some keyboards want Shift for digits
    const at = digit ? Number(digit[1]) - 1 : -1;
    const act = at >= 0 && at < settings.classes.length ? () => decide(settings.classes[at].name) : keys[keyOf(event)];
    if (!act) return;
    event.preventDefault();
    act();
  });
  document.addEventListener("pointerdown", () => { lastSeen = Date.now(); });

  // ---- the lease: renewed while somebody is there ----
  const hold = async () => {
    if (busy || mode !== "post" || document.hidden || Date.now() - lastSeen > 2000 * settings.lease) return;
    const asked = post.id;
    try {
      const { held } = await ask("hold", { post: asked });
      if (!held && !busy && mode === "post" && post.id === asked) {
        await once(() => refresh("The post that was open here went to somebody else meanwhile"))();
      }
    } catch { /* not connected now: the next answer says so, and stays on the screen */ }
  };
  setInterval(hold, 1000 * Math.max(settings.lease / 3, 1));
  document.addEventListener("visibilitychange", () => { lastSeen = Date.now(); hold(); });
  setInterval(async () => {
    if (busy || mode !== "end" || document.hidden) return;
    try {
      const told = await ask("next", {});
      if (busy || mode !== "end") return;
      if (told.post) { show(told); say("A post is free again."); } else { head(told); drawEnd(told); }
    } catch { /* looked at again in a moment */ }
  }, 1000 * POLL);
  window.addEventListener("beforeunload", (event) => { if (busy) event.preventDefault(); });

  // ---- begin: the token is in a cookie now, and no more in the URL ----
  const given = new URLSearchParams(location.search).get("reviewer");
  history.replaceState(null, "", "/");
  const known = (given || stored(sessionStorage, "reviewer")).trim();
  if (known) enter(known); else door();
})();
