"use strict";
// Without this script every table is there, sorted as written. It adds sorting by a click, and a search by name.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].textContent;
  heads.forEach((head, column) => {
    const sort = () => {
      const rows = [...body.rows];
      const texts = rows.map((row) => value(row, column)).filter((text) => text !== "");
      const numeric = texts.every((text) => /^[-+]?[\d.]+(\s?%| to .*)?$/.test(text));
      const before = head.getAttribute("aria-sort");
      const down = before ? before === "ascending" : numeric;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = numeric ? (a, b) => parseFloat(a) - parseFloat(b) : (a, b) => a.localeCompare(b, undefined, { numeric: true });
      const keyed = rows.map((row) => [value(row, column), row]);
      keyed.sort(([a], [b]) => (a === "" || b === "" ? (a === "") - (b === "") : down ? order(b, a) : order(a, b)));
      body.append(...keyed.map(([, row]) => row));
    };
    // no button inside: browsers leave buttons out of heads that are repeated on each printed page
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sort();
    });
  });
  table.classList.add("clickable");
  if (!table.classList.contains("searchable")) continue;
  const find = document.createElement("input");
  const found = document.createElement("span");
  const place = document.createElement("p");
  find.type = "search";
  find.placeholder = "Find a name";
  find.setAttribute("aria-label", "Find a name in the table");
  found.setAttribute("role", "status");
  place.className = "find";
  place.append(find, " ", found);
  table.parentElement.before(place);
  find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    let n = 0;
    for (const row of body.rows) {
      row.hidden = !value(row, 0).toLowerCase().includes(wanted);
      n += row.hidden ? 0 : 1;
    }
    found.textContent = wanted ? `${n} of ${body.rows.length}` : "";
  });
}
