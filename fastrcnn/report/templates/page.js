"use strict";
// A click on a heading sorts the table. The first click sorts numbers in descending order and names in ascending order,
// and the next click reverses the order. Cells without a number come last, sorted by their text.
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
