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
  input.addEventListener("change", () => {
    const file = input.files[0];
    if (!file) return;
    // fetch does not tell how much it has sent.
    const request = new XMLHttpRequest();
    const started = performance.now();
    request.open("POST", upload.dataset.upload);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => {
      bar.hidden = false;
      bar.value = event.loaded / event.total;
      const left = ((performance.now() - started) / 1000) * (event.total / event.loaded - 1);
      status.textContent = `${Math.round(100 * bar.value)} %, ${Math.ceil(left)} s left`;
    };
    request.onload = () => {
      const answer = JSON.parse(request.responseText || "{}");
      status.textContent = request.status === 201 ? `Sent: ${answer.sha256}` : answer.detail;
      bar.hidden = true;
      if (request.status !== 201) return;
      form.elements.weights.value = answer.sha256;
      form.elements.weights.dispatchEvent(new Event("input", { bubbles: true }));
    };
    request.onerror = () => { status.textContent = "The connection broke; choose the file again."; };
    request.send(file);
  });
}
