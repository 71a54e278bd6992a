// The table of a page: records that are searched, filtered, sorted, paged, and walked through by keyboard. The page
// holds an index of all records and the records themselves in chunks; one page of rows is in the document at a time.
//
// A page's own part gives, over record i of the index:
//   records, called, size       the chunks' name; what the count calls them; rows of a page
//   words(i, record)            what a search looks through
//   filters                     control -> whether record i fits the control's value
//   order(value)                the comparison that a value of the sort control stands for, or null
//   rows, row(i, place)         the element that holds a page's rows; one of them
//   drawn(found)                called after a page of rows
//   current(row, i, place, by)  called at the row that was gone to (null: none is left), by a "key", by a key on a
//                               row ("row"), by a button that turns the "page", or otherwise ("")
//   focus(), focused(element)   goes back to the rows; whether keys of rows count at an element
//   onRow()                     whether j goes on from the current row, or only to it
//   pictures(row)               the element whose pictures s shows
//   keys, rowKeys               further ones
shared.table = (root, own) => {
  const { byId, data, number, unveilAll, keyOf } = shared;
  const listing = data("listing"), count = listing.id.length;
  const search = byId("f-search"), sort = byId("f-sort");
  const filters = Object.keys(own.filters).map(byId).filter(Boolean);
  const headings = [...root.querySelectorAll("th[data-sort]")];
  const record = (i) => data(`${own.records}-${Math.floor(i / listing.chunk)}`)[i % listing.chunk];

  // ---- search, filters, sort ----
  const words = []; // of each record that was looked through, all in lower case
  const wordsOf = (i) => words[i] ??= own.words(i, record(i)).join("\n").toLowerCase();
  let found = [], at = 0, drawn = 0;
  const apply = () => {
    const active = filters.filter((one) => one.value !== "").map((one) => [own.filters[one.id], one.value]);
    const wanted = search.value.trim().toLowerCase();
    found = [];
    for (let i = 0; i < count; i += 1) {
      if (active.every(([test, value]) => test(i, value)) && (!wanted || wordsOf(i).includes(wanted))) found.push(i);
    }
    const order = own.order(sort.value);
    if (order) found.sort((a, b) => order(a, b) || a - b);
    const [column, way] = sort.value.split(":");
    for (const head of headings) {
      head.removeAttribute("aria-sort");
      if (head.dataset.sort === column) head.setAttribute("aria-sort", way === "down" ? "descending" : "ascending");
    }
    byId("count").textContent = `${number(found.length)} of ${number(count)} ${own.called}`;
    byId("clear").hidden = !active.length && !wanted;
    draw(0);
    go(0, "");
  };
  const reset = () => {
    for (const one of filters) one.value = "";
    search.value = "";
    apply();
  };

  // ---- one page of rows, one of them the current one ----
  const last = () => Math.max(0, Math.ceil(found.length / own.size) - 1);
  const draw = (page) => {
    drawn = Math.max(0, Math.min(page, last()));
    const start = drawn * own.size;
    own.rows.replaceChildren(...found.slice(start, start + own.size).map((i, offset) => own.row(i, start + offset)));
    byId("previous-page").disabled = drawn <= 0;
    byId("next-page").disabled = drawn >= last();
    byId("page-of").textContent = `page ${number(drawn + 1)} of ${number(last() + 1)}`;
    byId("empty").hidden = found.length > 0;
    own.drawn(found);
  };
  const go = (place, by) => {
    at = Math.max(0, Math.min(place, found.length - 1));
    const page = Math.floor(at / own.size);
    if (page !== drawn) draw(page);
    own.current(chosen(), found[at], at, by);
  };
  const chosen = () => own.rows.children[at - drawn * own.size] || null;
  const turn = (by, how) => go(Math.max(0, drawn + by) * own.size, how);

  // ---- controls ----
  shared.searched(search, apply);
  for (const one of [...filters, sort]) one.addEventListener("change", apply);
  for (const head of headings) {
    head.querySelector("button").addEventListener("click", () => {
      const name = head.dataset.sort, first = head.dataset.first, other = first === "up" ? "down" : "up";
      sort.value = `${name}:${sort.value === `${name}:${first}` ? other : first}`;
      apply();
    });
  }
  byId("clear").addEventListener("click", () => { reset(); search.focus(); });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("previous-page").addEventListener("click", () => turn(-1, "page"));
  byId("next-page").addEventListener("click", () => turn(1, "page"));
  byId("pictures").addEventListener("change", (event) => unveilAll(root, event.target.checked));

  // ---- keys ----
  const walk = (by) => (how) => go(at + (own.onRow() ? by : 0), how);
  const keys = {
    j: walk(1), k: walk(-1), n: (how) => turn(1, how), p: (how) => turn(-1, how),
    s: () => { for (const one of own.pictures(chosen()).querySelectorAll("button.picture")) one.click(); },
    "/": () => search.focus(), ...own.keys,
  };
  const rowKeys = {
    ArrowDown: keys.j, ArrowUp: keys.k, Home: (how) => go(0, how), End: (how) => go(found.length - 1, how), ...own.rowKeys,
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target === search) { own.focus(); return; }
    if (event.target.closest("input:not([type=checkbox]), select, textarea")) return;
    const onRow = found.length && own.focused(event.target) && rowKeys[event.key];
    const act = onRow || (byId("keys").checked && keys[keyOf(event)]);
    if (!act) return;
    event.preventDefault();
    if (found.length || event.key === "/") act(onRow ? "row" : "key");
  });

  const open = () => { apply(); root.hidden = false; };
  return {
    record, open, go, turn, reset, chosen, found: () => found, step: (by) => go(at + by, ""),
    stay: (place) => { at = place; }, back: () => go(at, "key"),
  };
};
