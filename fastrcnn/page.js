"use strict";
// Headings of sortable tables: first falling, where names rise, then the other way round. A cell without a number is last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const was = head.getAttribute("aria-sort");
    const rising = was === "none" ? column === 0 : was === "descending";
    for (const other of heads) other.setAttribute("aria-sort", other === head ? (rising ? "ascending" : "descending") : "none");
    const value = row => {
      const text = row.cells[column].textContent.trim();
      return column ? parseFloat(text.replace(/,/g, "").replace("−", "-")) : text;
    };
    const rows = [...table.tBodies[0].rows].map(row => [value(row), row]);
    rows.sort(([a], [b]) => {
      if (typeof a === "string") return (rising ? 1 : -1) * a.localeCompare(b, undefined, { numeric: true });
      if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
      return rising ? a - b : b - a;
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }));
}
