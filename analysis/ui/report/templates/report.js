"use strict";
// Figures are drawn when they come near; in the dark their inks are exchanged, which vega knows no variables for.
const INKS = {{ DARK | tojson }};
const isDark = matchMedia("(prefers-color-scheme: dark)");

function specOf(figure) {
  const text = figure.querySelector("script[type='application/json']").textContent;
  if (!isDark.matches) return JSON.parse(text);
  const spec = JSON.parse(text.replace(/#[0-9a-fA-F]{6}/g, (ink) => INKS[ink] ?? INKS[ink.toUpperCase()] ?? ink));
  const ink = "#e8eaed", faint = "#a8aeb6", config = (spec.config ??= {});
  spec.background = config.background = "transparent";
  config.axis = { ...config.axis, labelColor: ink, titleColor: ink };
  config.legend = { ...config.legend, labelColor: ink, titleColor: ink };
  config.header = { ...config.header, labelColor: ink, titleColor: ink };
  config.title = { ...config.title, color: ink, subtitleColor: faint };
  return spec;
}

async function draw(figure) {
  const box = figure.querySelector(".chart");
  // An expression is interpreted, not compiled: the page's policy allows no eval.
  await vegaEmbed(box, specOf(figure), { ast: true, actions: false, renderer: "svg", defaultStyle: false });
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", figure.querySelector("img").alt);
  figure.classList.add("drawn");
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    draw(entry.target);
  }
}, { rootMargin: "600px" });
const figures = [...document.querySelectorAll("figure")].filter((of) => of.querySelector(".chart"));
figures.forEach((figure) => near.observe(figure));
isDark.addEventListener("change", () => figures.filter((of) => of.classList.contains("drawn")).forEach(draw));

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
