// Keeps a page current: fetches it again from the server, and replaces the parts that have changed. Its <main> says
// when: after events of the stream at `data-events`, or every `data-poll-seconds` seconds.
"use strict";

const PAUSE_MS = 1000;
const POLL_MS = 5000;

const main = document.querySelector("main");

// Whether the user has focused a control in this part, or selected text in it. Such a part is not replaced yet.
function inUse(part) {
  const selection = document.getSelection();
  const selected = selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  return selected || part.contains(document.activeElement);
}

// Screen readers announce changes within a live region, so its element is kept. Its text changes only if there is news.
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

// Replaces changed parts. If parts were added or removed, replaces all of them.
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
  // The page of a job that has ended names no stream.
  if (!fresh.dataset.events) delete main.dataset.events;
}

async function refresh() {
  try {
    const response = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!response.ok) return;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    update(page.querySelector("main"));
  } catch {
    // The service does not answer; the next event or period tries again.
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
    // Called also when the service ends the stream after the job's last state, which the page may not show yet.
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

// With JavaScript a view's form is sent after each change, without a button.
document.querySelectorAll("form[data-auto]").forEach((form) => {
  form.addEventListener("change", () => form.requestSubmit());
  form.addEventListener("submit", () => {
    // Keep addresses short: leave out empty fields, and the columns if they are the usual ones.
    const boxes = [...form.querySelectorAll("[type=checkbox]")];
    const isUsual = !new URLSearchParams(location.search).has("columns");
    if (isUsual && boxes.every((box) => box.checked === box.defaultChecked)) {
      for (const box of boxes) box.disabled = true;
    }
    for (const field of form.elements) if (field.value === "") field.disabled = true;
  });
  // When the user comes back with the browser's button, the page is as they left it: with disabled fields.
  addEventListener("pageshow", () => {
    for (const field of form.elements) field.disabled = false;
  });
});

// Browsers restore earlier choices when the user comes back. Reset them, so that the fields match the address.
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-view]")) form.reset();
});
