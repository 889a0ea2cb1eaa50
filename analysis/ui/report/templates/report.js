"use strict";
for (const select of document.querySelectorAll("select.member")) {
  const show = () => {
    for (const option of select.options) document.getElementById(option.value).hidden = !option.selected;
  };
  select.closest(".chooser").hidden = false;
  select.addEventListener("change", show);
  show();
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const th = button.closest("th"), body = th.closest("table").tBodies[0];
    const sign = th.ariaSort === "descending" ? 1 : -1;
    for (const other of th.parentElement.cells) other.removeAttribute("aria-sort");
    th.ariaSort = sign === 1 ? "ascending" : "descending";
    const value = (row) => row.cells[th.cellIndex].dataset.value;
    const compare = (a, b) => (a === "" || b === "" ? (a === "") - (b === "") : sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b));
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
  });
}
