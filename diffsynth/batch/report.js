"use strict";
// The page is complete without this; it adds search, choices, order, pages and a larger view.
const PAGE = 120, MOST_CHOICES = 60;
const gallery = document.querySelector(".gallery");
const tools = document.querySelector(".tools");
const pages = document.querySelector(".pages");
const dialog = document.querySelector("dialog");
const found = tools.querySelector(".found");
const search = tools.querySelector("input");
const names = JSON.parse(gallery.dataset.names);
const images = Array.from(gallery.children, (figure, number) => ({
  figure, number,
  text: figure.textContent.toLowerCase(),
  values: Array.from(figure.querySelectorAll("figcaption b"), (value) => value.textContent),
}));
let shown = images, page = 0, open = -1;

const compare = (one, two) => one.localeCompare(two, undefined, { numeric: true });

function addSelect(label, options) {
  const box = document.createElement("label"), select = document.createElement("select");
  box.append(label, select);
  for (const [value, text] of options) select.add(new Option(text, value));
  tools.insertBefore(box, found);
  select.addEventListener("change", refresh);
  return select;
}

const choices = [];
names.forEach((name, place) => {
  const values = [...new Set(images.map((image) => image.values[place]))];
  if (values.length > 1 && values.length <= MOST_CHOICES) {
    const options = values.sort(compare).map((value) => [value, value.length > 60 ? value.slice(0, 59) + "…" : value]);
    choices.push({ place, select: addSelect(name, [["", "all"], ...options.map(([value, text]) => ["=" + value, text])]) });
  }
});
const order = addSelect("order", [["", "as in the job"], ...names.map((name, place) => [place, name])]);

function refresh() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = images.filter((image) =>
    words.every((word) => image.text.includes(word)) &&
    choices.every(({ place, select }) => !select.value || select.value === "=" + image.values[place]));
  if (order.value !== "") {
    const place = Number(order.value);
    shown = shown.slice().sort((one, two) => compare(one.values[place], two.values[place]) || one.number - two.number);
  }
  page = 0;
  show();
}

function show() {
  const last = Math.max(Math.ceil(shown.length / PAGE) - 1, 0);
  page = Math.min(Math.max(page, 0), last);
  gallery.replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map((image) => image.figure));
  pages.hidden = last === 0;
  pages.querySelector("span").textContent = `${page + 1} of ${last + 1}`;
  pages.querySelector('[data-step="-1"]').disabled = page === 0;
  pages.querySelector('[data-step="1"]').disabled = page === last;
  const all = images.length.toLocaleString("en");
  found.textContent = shown.length === images.length ? `${all} images` : `${shown.length.toLocaleString("en")} of ${all} images`;
}

function view(place) {
  if (place < 0 || place >= shown.length) return;
  open = place;
  const { figure } = shown[place], link = figure.querySelector("a"), thumbnail = figure.querySelector("img");
  const large = dialog.querySelector("img");
  large.src = link ? link.href : thumbnail.src;
  large.alt = thumbnail.alt;
  dialog.querySelector("figcaption").replaceChildren(...figure.querySelector("figcaption").cloneNode(true).childNodes);
  if (!dialog.open) dialog.showModal();
}

gallery.addEventListener("click", (event) => {
  const figure = event.target.closest("figure");
  if (!figure || !figure.querySelector("img") || event.target.closest("figcaption")) return;
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  view(shown.findIndex((image) => image.figure === figure));
});
pages.addEventListener("click", (event) => {
  if (!event.target.dataset.step) return;
  page += Number(event.target.dataset.step);
  show();
  tools.scrollIntoView();
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || "close" in event.target.dataset) dialog.close();
  else if (event.target.dataset.step) view(open + Number(event.target.dataset.step));
});
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") view(open - 1);
  if (event.key === "ArrowRight") view(open + 1);
});
dialog.addEventListener("close", () => dialog.querySelector("img").removeAttribute("src"));
search.addEventListener("input", refresh);
tools.addEventListener("submit", (event) => event.preventDefault());
tools.hidden = false;
show();
