"use strict";
// The table of all layers, which can be sorted and searched. Rows are drawn as they come into view.
(() => {
  const STEP = 40;  // rows drawn at a time
  const data = JSON.parse(document.getElementById("layer-data").textContent);
  const panel = document.getElementById("layers");
  const body = panel.querySelector("tbody");
  const room = panel.querySelector(".window");
  const said = panel.querySelector("output");
  const more = panel.querySelector(".more");
  const search = panel.querySelector("input");
  const chosen = [...panel.querySelectorAll("select")];
  const heads = [...panel.querySelectorAll("th[data-column]")];

  const names = [];
  data.rest.forEach((rest, row) => names.push((row ? names[row - 1].slice(0, data.shared[row]) : "") + rest));
  const count = names.length;
  const words = ([known, indices]) => indices.map((index) => known[index]);
  const columns = {
    name: names, type: words(data.type), shape: words(data.shape), stored: words(data.stored),
    params: data.params, nbytes: data.nbytes,
    bits: data.nbytes.map((nbytes, row) => data.params[row] ? 8 * nbytes / data.params[row] : null),
    sqnr: data.sqnr.map((value, row) => value === null && data.mse[row] === 0 ? Infinity : value),  // nothing is lost
    cosine: data.cosine, mse: data.mse, error: data.error,
  };
  const sought = names.map((name, row) =>
    `${name} ${columns.type[row]} ${columns.stored[row]} ${columns.shape[row]}`.toLowerCase());

  const scaled = (units) => (value) => {
    let unit = 0;
    while (value >= 999.5 && unit < units.length - 1) { value /= 1000; unit += 1; }
    return `${value.toFixed(unit ? (value < 10 ? 2 : 1) : 0)} ${units[unit]}`.trim();
  };
  const small = (value) => value === 0 || (value >= 1e-4 && value < 1e3) ? String(Number(value.toPrecision(3)))
    : value.toExponential(2);
  const forms = {
    params: scaled(["", "k", "M", "B", "T"]), nbytes: scaled(["B", "kB", "MB", "GB", "TB", "PB"]),
    bits: (value) => value.toFixed(2), sqnr: (value) => value === Infinity ? "∞" : value.toFixed(1), cosine: (value) => value.toFixed(6),
    mse: small, error: small,
  };
  const natural = (text) => text.replace(/\d+/g, (digits) => digits.padStart(12, "0"));  // 2 before 10

  let order = null;      // {column, falling}, or null for the order of the model
  let shown = [];        // indices of the matching rows, in the order shown
  let drawn = 0;

  const compare = (values, falling) => (a, b) => {
    const left = values[a], right = values[b];
    if (left === null || right === null) return (left === null) - (right === null) || a - b;  // always last
    return (left === right ? 0 : (left < right) === falling ? 1 : -1) || a - b;
  };

  const sorted = (values) => {
    const known = [...new Set(values)].map((value) => [natural(value), value]);
    known.sort(([left], [right]) => (left < right ? -1 : left > right ? 1 : 0));
    return known.map(([, value]) => value);
  };
  const ranks = new Map();  // ranks of the values of text columns, since comparing texts takes long
  const comparable = (column) => {
    const values = columns[column];
    if (typeof values[0] !== "string") return values;
    if (!ranks.has(column)) {
      const rank = new Map(sorted(values).map((value, index) => [value, index]));
      ranks.set(column, values.map((value) => rank.get(value)));
    }
    return ranks.get(column);
  };

  const naming = (name) => {  // a line breaks behind a dot or a slash, if it must
    const code = document.createElement("code");
    name.split(/(?<=[./])/).forEach((part, index) => {
      if (index) code.append(document.createElement("wbr"));
      code.append(part);
    });
    return code;
  };

  const draw = (until) => {
    const rows = document.createDocumentFragment();
    for (; drawn < Math.min(until, shown.length); drawn += 1) {
      const row = document.createElement("tr");
      for (const head of heads) {
        const column = head.dataset.column, value = columns[column][shown[drawn]];
        const cell = document.createElement("td");
        cell.dataset.label = head.dataset.label;
        if (head.classList.contains("r")) cell.className = "r";
        const text = value === null ? "–" : forms[column] ? forms[column](value) : value;
        if (column === "name") cell.append(naming(text));
        else cell.textContent = text;
        row.append(cell);
      }
      rows.append(row);
    }
    body.append(rows);
    more.hidden = drawn >= shown.length;
    said.textContent = shown.length === count ? `${count.toLocaleString("en")} layers`
      : `${shown.length.toLocaleString("en")} of ${count.toLocaleString("en")} layers`;
  };

  const find = () => {
    const parts = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = chosen.filter((select) => select.value !== "");
    shown = [];
    for (let row = 0; row < count; row += 1) {
      if (parts.every((part) => sought[row].includes(part))
        && wanted.every((select) => columns[select.dataset.column][row] === select.value)) shown.push(row);
    }
    if (order) shown.sort(compare(comparable(order.column), order.falling));
    drawn = 0;
    body.replaceChildren();
    room.scrollTop = 0;
    draw(STEP);
  };

  const turn = (head) => {
    const column = head.dataset.column, first = head.dataset.first === "falling";
    if (!order || order.column !== column) order = { column, falling: first };
    else order = order.falling === first ? { column, falling: !first } : null;
    for (const other of heads) other.removeAttribute("aria-sort");
    if (order) head.setAttribute("aria-sort", order.falling ? "descending" : "ascending");
    find();
  };

  for (const select of chosen) {
    for (const value of sorted(columns[select.dataset.column])) {
      select.append(new Option(value, value));
    }
    select.addEventListener("change", find);
  }
  for (const head of heads) head.querySelector("button").addEventListener("click", () => turn(head));
  search.addEventListener("input", find);
  more.addEventListener("click", () => draw(Infinity));
  room.addEventListener("scroll", () => {
    if (room.scrollTop + room.clientHeight > room.scrollHeight - 600) draw(drawn + STEP);
  });
  window.addEventListener("beforeprint", () => {
    draw(Infinity);
    for (const folded of document.querySelectorAll("details")) folded.open = true;
  });
  panel.classList.add("ready");
  find();
})();
