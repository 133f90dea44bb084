"use strict";
// Headings of sortable tables: numbers first fall, names rise, then the other way round. A cell without a number is
// last; of several such the text decides.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const was = head.getAttribute("aria-sort");
    const rising = was === "none" ? column === 0 : was === "descending";
    for (const other of heads) other.setAttribute("aria-sort", other === head ? (rising ? "ascending" : "descending") : "none");
    const rows = [...table.tBodies[0].rows].map(row => {
      const text = row.cells[column].textContent.trim();
      return { row, text, number: column ? parseFloat(text.replace(/,/g, "")) : NaN };
    });
    rows.sort((a, b) => {
      if (isNaN(a.number) && isNaN(b.number)) {
        return (rising ? 1 : -1) * a.text.localeCompare(b.text, undefined, { numeric: true });
      }
      if (isNaN(a.number) || isNaN(b.number)) return isNaN(a.number) - isNaN(b.number);
      return rising ? a.number - b.number : b.number - a.number;
    });
    table.tBodies[0].append(...rows.map(({ row }) => row));
  }));
}
