// Keeps a page current: the server renders it again, and each part that changed takes the place of the old one.
// A page says how: `data-events` names an event stream that tells when, `data-poll-seconds` a period.
"use strict";

const PAUSE_MS = 1000;
const POLL_MS = 5000;

const main = document.querySelector("main");

// What somebody is using stays as it is until they leave it: a focused control, selected text.
function inUse(part) {
  const selection = document.getSelection();
  const selected = selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  return selected || part.contains(document.activeElement);
}

// A live region stays the same element, or nothing would be said; and it says only what is news.
function announce(old, fresh) {
  if (old.dataset.said === fresh.dataset.said) return;
  old.dataset.said = fresh.dataset.said;
  old.textContent = fresh.textContent;
}

function replace(old, fresh) {
  const wasOpen = old.matches("details") && old.open;
  const atEnd = old.scrollTop + old.clientHeight >= old.scrollHeight - 8;
  const top = old.scrollTop;
  old.replaceWith(fresh);
  if (wasOpen) fresh.open = true;
  if (fresh.matches(".log")) fresh.scrollTop = atEnd ? fresh.scrollHeight : top;
}

// Where parts came or went, the whole takes the place of the whole.
function update(fresh) {
  const before = [...main.children];
  const after = [...fresh.children];
  if (before.length === after.length) {
    before.forEach((old, index) => {
      if (old.dataset.said && after[index].dataset.said) {
        announce(old, after[index]);
        return;
      }
      const same = old.cloneNode(true);
      if (same.matches("details")) same.open = false;
      unmarkScrollers(same);
      if (same.outerHTML !== after[index].outerHTML && !inUse(old)) replace(old, after[index]);
    });
  } else if (!inUse(main)) {
    const log = main.querySelector(".log");
    const top = log && log.scrollTop;
    main.replaceChildren(...after);
    const freshLog = main.querySelector(".log");
    if (freshLog) freshLog.scrollTop = top ?? freshLog.scrollHeight;
  } else {
    return;
  }
  // The page of an ended job names no stream any more.
  if (!fresh.dataset.events) delete main.dataset.events;
}

async function refresh() {
  try {
    const response = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!response.ok) return;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    update(page.querySelector("main"));
  } catch {
    // The service is away; the next event or period tries again.
  }
}

function poll(milliseconds, wanted = () => true) {
  const timer = setInterval(() => {
    if (!wanted()) clearInterval(timer);
    else if (!document.hidden) refresh();
  }, milliseconds);
}

function follow() {
  const isLive = () => Boolean(main.dataset.events);
  const stream = new EventSource(main.dataset.events);
  let timer = null;
  const changed = () => {
    timer ??= setTimeout(async () => { timer = null; await refresh(); }, PAUSE_MS);
  };
  for (const type of ["state", "progress", "epoch", "attack"]) stream.addEventListener(type, changed);
  stream.onerror = () => {
    // Also when the service ends the stream, after the job's last state: the page may not have been able to show it.
    if (!isLive()) {
      stream.close();
      return;
    }
    changed();
    if (stream.readyState === EventSource.CLOSED) poll(POLL_MS, isLive);
  };
}

if (main.dataset.events) follow();
if (main.dataset.pollSeconds) poll(1000 * Number(main.dataset.pollSeconds));
document.querySelectorAll(".log").forEach((log) => { log.scrollTop = log.scrollHeight; });

// A view's form needs no button where there are scripts.
document.querySelectorAll("form[data-auto]").forEach((form) => {
  form.addEventListener("change", () => form.requestSubmit());
  form.addEventListener("submit", () => {
    // Short addresses to share: what was not chosen is not in them, nor the columns that are there anyway.
    const boxes = [...form.querySelectorAll("[type=checkbox]")];
    const isUsual = !new URLSearchParams(location.search).has("columns");
    if (isUsual && boxes.every((box) => box.checked === box.defaultChecked)) {
      for (const box of boxes) box.disabled = true;
    }
    for (const field of form.elements) if (field.value === "") field.disabled = true;
  });
  // The page as it was left comes back with the browser's button.
  addEventListener("pageshow", () => {
    for (const field of form.elements) field.disabled = false;
  });
});

// Browsers put back what was chosen before a page was left; the fields say what this address shows.
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-view]")) form.reset();
});
