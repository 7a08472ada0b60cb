// Makes the submit page quicker: a choice redraws the form, the commands follow what is typed, a file shows how far it is.
// Without it the page's own buttons do the same.
"use strict";

const PAUSE = 400;
const form = document.querySelector("form[data-spec]");

async function rendered(action) {
  const body = new URLSearchParams(new FormData(form));
  body.set("action", action);
  // Not form.action: a button of that name is in its place.
  const response = await fetch(form.getAttribute("action"), { method: "POST", body, headers: { Accept: "text/html" } });
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

// Only what nobody types in: the commands and the errors.
function follow(page) {
  for (const part of document.querySelectorAll("#commands, #problems, .errors")) {
    const fresh = page.getElementById(part.id);
    if (fresh && fresh.innerHTML !== part.innerHTML) part.innerHTML = fresh.innerHTML;
    const field = form.elements[part.id.replace(/^e-/, "")];
    if (field && part.matches(".errors")) field.toggleAttribute("aria-invalid", part.childElementCount > 0);
  }
}

if (form) {
  let timer = null;
  form.addEventListener("input", (event) => {
    if (event.target.matches("[data-choice]")) return;
    clearTimeout(timer);
    timer = setTimeout(async () => {
      try {
        follow(await rendered("check"));
      } catch {
        // The service is away; sending will say so.
      }
    }, PAUSE);
  });
  form.addEventListener("change", async (event) => {
    if (!event.target.matches("[data-choice]")) return;
    clearTimeout(timer);
    const name = event.target.name;
    const page = await rendered("update");
    form.innerHTML = page.querySelector("form[data-spec]").innerHTML;
    follow(page);
    form.elements[name]?.focus();
  });
}

const upload = document.querySelector("[data-upload]");
if (upload) {
  const [input, bar, status] = ["input", "progress", "[role=status]"].map((part) => upload.querySelector(part));
  const ours = upload.dataset.csrf ? { "X-CSRF-Token": upload.dataset.csrf } : {};
  const pause = (seconds) => new Promise((resolve) => { setTimeout(resolve, 1000 * seconds); });

  // fetch does not tell how much it has sent.
  const piece = (address, file, offset) => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const started = performance.now();
    request.open("PATCH", address);
    const headers = { ...ours, "Content-Type": "application/offset+octet-stream", "Upload-Offset": offset };
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => {
      bar.hidden = false;
      bar.value = (offset + event.loaded) / file.size;
      const left = ((performance.now() - started) / 1000) * (event.total / event.loaded - 1);
      status.textContent = `${Math.round(100 * bar.value)} %, ${Math.ceil(left)} s left`;
    };
    // The service may not have noticed yet that the piece before broke off.
    const passing = () => [409, 429].includes(request.status) || request.status >= 500;
    request.onload = () => (passing() ? reject(request) : resolve(JSON.parse(request.responseText || "{}")));
    request.onerror = reject;
    request.send(file.slice(offset));
  });

  // The tus protocol: a connection that breaks costs nothing of what has arrived.
  const send = async (file) => {
    const begun = await fetch(upload.dataset.upload, { method: "POST", headers: { ...ours, "Upload-Length": file.size } });
    if (!begun.ok) return begun.json();
    const address = begun.headers.get("Location");
    for (let offset = 0, broken = 0; ; ) {
      try {
        return await piece(address, file, offset);
      } catch {
        broken += 1;
        if (broken > 10) return { detail: "The connection breaks again and again; choose the file once more." };
      }
      status.textContent = "The connection broke; going on in a moment.";
      await pause(broken);
      try {
        const looked = await fetch(address, { method: "HEAD" });
        if (looked.status === 404) return { detail: "The upload was given up there; choose the file once more." };
        if (looked.status === 429) await pause(Number(looked.headers.get("Retry-After")));
        if (!looked.ok) continue;
        const now = Number(looked.headers.get("Upload-Offset"));
        if (now > offset) broken = 0;
        offset = now;
      } catch {
        // Still away.
      }
    }
  };

  input.addEventListener("change", async () => {
    const file = input.files[0];
    if (!file) return;
    let answer;
    try {
      answer = await send(file);
    } catch {
      answer = { detail: "The service does not answer; try again." };
    }
    status.textContent = answer.sha256 ? `Sent: ${answer.sha256}` : answer.detail;
    bar.hidden = true;
    if (!answer.sha256) return;
    form.elements.weights.value = answer.sha256;
    form.elements.weights.dispatchEvent(new Event("input", { bubbles: true }));
  });
}
