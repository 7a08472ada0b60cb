// Makes a board interactive: search while typing, a bar of the entries chosen to compare, tooltips of the chart's dots.
// Without JavaScript, Enter searches, the tick boxes still work, and the dots have titles.
"use strict";

const SEARCH_MS = 250;
const MOST_COMPARED = 4;

const results = document.getElementById("results");
const announced = document.getElementById("announced");
const view = document.querySelector("form[data-view]");
const search = view.elements.q;
const bar = document.getElementById("compare");

// --- search ---------------------------------------------------------------------------------------------------------

let timer = null;
let request = null;

// The address of the view with the typed words, from its first page on.
function searched() {
  const query = new URLSearchParams(location.search);
  query.delete("page");
  if (search.value.trim()) query.set("q", search.value);
  else query.delete("q");
  const text = query.toString();
  return location.pathname + (text && `?${text}`);
}

function stop() {
  clearTimeout(timer);
  request?.abort();
}

async function find() {
  const words = search.value;
  const address = searched();
  request = new AbortController();
  try {
    const response = await fetch(address, { headers: { Accept: "text/html" }, signal: request.signal });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const fresh = page.getElementById("results");
    // The login has expired, or the view is not valid: Enter loads the page that says so.
    if (!response.ok || !fresh) return;
    results.replaceChildren(...fresh.childNodes);
  } catch {
    // A newer search replaced this one, or the service does not answer; Enter tries again.
    return;
  }
  history.replaceState(null, "", address);
  // The value that the form has when the browser comes back to this page.
  search.defaultValue = words;
  announced.textContent = results.querySelector(".count").dataset.said;
  tickChosen();
}

search.addEventListener("input", () => {
  stop();
  timer = setTimeout(find, SEARCH_MS);
});
// Otherwise leaving the field would load the page that is already shown.
search.addEventListener("change", (event) => event.stopPropagation());
view.addEventListener("submit", stop);

// --- compare --------------------------------------------------------------------------------------------------------

const chosen = new Map();

function boxes() {
  return [...results.querySelectorAll("input[name=entries]")];
}

function tickChosen() {
  const shown = boxes();
  for (const box of shown) box.checked = chosen.has(box.value);
  const there = new Set(shown.map((box) => box.value));
  bar.querySelectorAll("input[type=hidden]").forEach((field) => field.remove());
  for (const id of chosen.keys()) {
    if (there.has(id)) continue;
    const field = document.createElement("input");
    Object.assign(field, { type: "hidden", name: "entries", value: id });
    bar.append(field);
  }
  say();
}

function say() {
  const names = [...chosen.values()].join(", ");
  const advice = chosen.size < 2 ? "Tick one more to compare: " : chosen.size > MOST_COMPARED ? "At most four: " : "";
  bar.querySelector(".chosen").textContent = advice + names;
  bar.querySelector("button").disabled = chosen.size < 2 || chosen.size > MOST_COMPARED;
  bar.classList.toggle("shown", chosen.size > 0);
}

function readTicks() {
  for (const box of boxes()) {
    if (box.checked) chosen.set(box.value, box.dataset.name);
    else chosen.delete(box.value);
  }
  say();
}

results.addEventListener("change", (event) => {
  if (event.target.matches("input[name=entries]")) readTicks();
});
bar.addEventListener("reset", () => {
  chosen.clear();
  tickChosen();
});
// Browsers restore ticks when the user comes back to the page.
addEventListener("pageshow", readTicks);

// --- chart ----------------------------------------------------------------------------------------------------------

function dotOf(event) {
  return event.target.closest?.(".scatter a");
}

// The browser's own tooltip is slow and never shown for the keyboard: use the title as the link's name and show our own.
function nameOf(dot) {
  const title = dot.querySelector("title");
  if (title) {
    dot.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  return dot.getAttribute("aria-label");
}

function show(dot) {
  const figure = dot.closest("figure");
  let tip = figure.querySelector(".tip");
  if (!tip) {
    tip = document.createElement("p");
    tip.className = "tip";
    tip.setAttribute("aria-hidden", "true");
    figure.append(tip);
  }
  tip.textContent = nameOf(dot);
  tip.hidden = false;
  const frame = figure.getBoundingClientRect();
  const place = dot.getBoundingClientRect();
  const left = place.left + place.width / 2 - frame.left - tip.offsetWidth / 2;
  tip.style.left = `${Math.max(0, Math.min(left, frame.width - tip.offsetWidth))}px`;
  const above = place.top - frame.top - tip.offsetHeight - 6;
  const hasRoom = above + frame.top >= 0;
  tip.style.top = `${hasRoom ? above : place.bottom - frame.top + 6}px`;
}

function hide(event) {
  const tip = dotOf(event)?.closest("figure").querySelector(".tip");
  if (tip) tip.hidden = true;
}

for (const type of ["pointerover", "focusin"]) {
  results.addEventListener(type, (event) => { if (dotOf(event)) show(dotOf(event)); });
}
for (const type of ["pointerout", "focusout"]) results.addEventListener(type, hide);

const STEPS = { ArrowRight: ["cx", 1], ArrowLeft: ["cx", -1], ArrowDown: ["cy", 1], ArrowUp: ["cy", -1] };

results.addEventListener("keydown", (event) => {
  const dot = dotOf(event);
  const step = STEPS[event.key];
  if (!dot || !step) return;
  event.preventDefault();
  const [axis, by] = step;
  const other = axis === "cx" ? "cy" : "cx";
  const at = (each, name) => Number(each.querySelector("circle").getAttribute(name));
  const dots = [...dot.closest("svg").querySelectorAll("a")];
  dots.sort((a, b) => at(a, axis) - at(b, axis) || at(a, other) - at(b, other));
  const next = dots[dots.indexOf(dot) + by];
  if (!next) return;
  dot.setAttribute("tabindex", "-1");
  next.setAttribute("tabindex", "0");
  next.focus();
});
