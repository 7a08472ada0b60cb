// Keeps a page current: the server renders it again, and what changed takes the place of what is shown.
// A page says how: `data-events` names an event stream that tells when, `data-poll-seconds` a period.
"use strict";

const PAUSE_MS = 1000;
const FALLBACK_POLL_MS = 5000;

async function refresh() {
  const response = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!response.ok) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const old = document.querySelector("main");
  const fresh = page.querySelector("main");
  // Nobody's half-made choice, open section or place in the log may be lost to an update.
  if (old.contains(document.activeElement) && document.activeElement.matches("select, input")) return;
  const open = [...old.querySelectorAll("details")].map((details) => details.open);
  fresh.querySelectorAll("details").forEach((details, index) => { details.open = open[index] ?? false; });
  const log = old.querySelector(".log");
  const scroll = log && { top: log.scrollTop, atEnd: log.scrollTop + log.clientHeight >= log.scrollHeight - 8 };
  if (old.innerHTML !== fresh.innerHTML) old.innerHTML = fresh.innerHTML;
  const freshLog = old.querySelector(".log");
  if (freshLog && scroll) freshLog.scrollTop = scroll.atEnd ? freshLog.scrollHeight : scroll.top;
  if (!fresh.dataset.events) delete old.dataset.events;
}

function throttled(action) {
  let timer = null;
  return () => {
    timer ??= setTimeout(() => { timer = null; action(); }, PAUSE_MS);
  };
}

function poll(milliseconds, wanted = () => true) {
  const timer = setInterval(() => {
    if (!wanted()) clearInterval(timer);
    else if (!document.hidden) refresh();
  }, milliseconds);
}

function follow(main) {
  const stream = new EventSource(main.dataset.events);
  const changed = throttled(async () => {
    await refresh();
    // The page of an ended job names no stream any more.
    if (!main.dataset.events) stream.close();
  });
  for (const type of ["state", "progress", "epoch", "attack"]) stream.addEventListener(type, changed);
  stream.onerror = () => {
    if (stream.readyState === EventSource.CLOSED) poll(FALLBACK_POLL_MS, () => Boolean(main.dataset.events));
  };
}

const main = document.querySelector("main");
if (main.dataset.events) follow(main);
if (main.dataset.pollSeconds) poll(1000 * Number(main.dataset.pollSeconds));
document.querySelectorAll(".log").forEach((log) => { log.scrollTop = log.scrollHeight; });
