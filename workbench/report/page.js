"use strict";
// Tables that sort by a click on a column's name and filter by what is typed below it. A cell is a number, a text, null,
// or {t: text, v: value to sort by, b: best of its column, h: link}. Only a page of rows is in the document at a time.
const PAGE = 200;

const textOf = (cell) => (cell === null ? "" : typeof cell === "object" ? cell.t : String(cell));
const valueOf = (cell) => (cell !== null && typeof cell === "object" ? (cell.v ?? cell.t) : cell);

// ">0.9", "<=3", "=7", "3..7": numbers; anything else: part of the text, "!word": not in the text.
function condition(typed) {
  const words = typed.trim();
  const bound = words.match(/^(>=|<=|>|<|=)\s*(-?[\d.]+(?:e[-+]?\d+)?)$/i);
  if (bound) {
    const limit = Number(bound[2]);
    const compare = {
      ">": (x) => x > limit, "<": (x) => x < limit, ">=": (x) => x >= limit, "<=": (x) => x <= limit,
      "=": (x) => x === limit,
    }[bound[1]];
    return (cell) => { const x = valueOf(cell); return typeof x === "number" && compare(x); };
  }
  const range = words.match(/^(-?[\d.]+(?:e[-+]?\d+)?)\.\.(-?[\d.]+(?:e[-+]?\d+)?)$/i);
  if (range) {
    return (cell) => { const x = valueOf(cell); return typeof x === "number" && x >= Number(range[1]) && x <= Number(range[2]); };
  }
  const not = words.startsWith("!");
  const part = (not ? words.slice(1) : words).toLowerCase();
  return (cell) => textOf(cell).toLowerCase().includes(part) !== not;
}

// Empty cells come last whichever way is up; numbers before texts.
function order(a, b, direction) {
  const x = valueOf(a), y = valueOf(b);
  const emptyX = x === null || x === "", emptyY = y === null || y === "";
  if (emptyX || emptyY) return emptyX - emptyY;
  if (typeof x === "number" && typeof y === "number") return direction * (x - y);
  if (typeof x === "number" || typeof y === "number") return typeof x === "number" ? -1 : 1;
  return direction * x.localeCompare(y, undefined, { numeric: true });
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function show(table, parent) {
  const filters = table.columns.map(() => "");
  let sorted = { column: -1, direction: 1 }, page = 0, rows = table.rows;
  const body = element("tbody"), count = element("span", { className: "count" });
  const back = element("button", { textContent: "‹ previous", onclick: () => { page -= 1; draw(); } });
  const on = element("button", { textContent: "next ›", onclick: () => { page += 1; draw(); } });
  const heads = table.columns.map((name, column) => {
    const sort = element("button", { textContent: name, title: "sort" });
    const filter = element("input", { type: "search", placeholder: "filter", ariaLabel: `filter ${name}` });
    const head = element("th", { scope: "col" }, sort, element("br"), filter);
    sort.onclick = () => {
      sorted = { column, direction: sorted.column === column ? -sorted.direction : 1 };
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sorted.direction > 0 ? "ascending" : "descending");
      select();
    };
    filter.oninput = () => { filters[column] = filter.value; select(); };
    return head;
  });

  function select() {
    const wanted = filters.map((typed, column) => [column, typed]).filter(([, typed]) => typed.trim())
      .map(([column, typed]) => [column, condition(typed)]);
    rows = table.rows.filter((row) => wanted.every(([column, fits]) => fits(row[column])));
    if (sorted.column >= 0) rows.sort((a, b) => order(a[sorted.column], b[sorted.column], sorted.direction));
    page = 0;
    draw();
  }

  function draw() {
    const start = page * PAGE, end = Math.min(start + PAGE, rows.length);
    body.replaceChildren(...rows.slice(start, end).map((row) => element("tr", {}, ...row.map((cell, column) => {
      const text = textOf(cell);
      const made = element("td", {});
      if (typeof valueOf(cell) === "number") made.classList.add("number");
      if (text.length > 60) made.classList.add("long");
      if (cell !== null && cell.b) made.classList.add("best");
      if (table.columns[column] === "status") made.classList.add(`status-${text}`);
      made.append(cell !== null && cell.h ? element("a", { href: cell.h, textContent: text }) : text);
      return made;
    }))));
    const all = rows.length === table.rows.length ? "" : ` (of ${table.rows.length})`;
    count.textContent = rows.length > PAGE ? `${start + 1}–${end} of ${rows.length} rows${all}` : `${rows.length} rows${all}`;
    back.hidden = on.hidden = rows.length <= PAGE;
    back.disabled = page === 0;
    on.disabled = end >= rows.length;
  }

  draw();
  parent.append(
    element("h2", { textContent: table.title }),
    ...(table.note ? [element("p", { className: "note", textContent: table.note })] : []),
    element("div", { className: "bar" }, count, back, on),
    element("div", { className: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body)),
  );
}

const data = JSON.parse(document.getElementById("data").textContent);
for (const table of data.tables) show(table, document.getElementById("tables"));
for (const table of data.runs) show(table, document.getElementById("runs"));
