"use strict";
// Sort a table by clicking a heading. The first click sorts numbers in descending and names in ascending order, the
// next one reverses the order. Cells without a number come last, sorted by their text.
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
