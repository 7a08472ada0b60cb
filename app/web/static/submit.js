// Makes the submit page quicker: a choice updates the form, the commands follow typing, long lists can be searched, and
// an upload shows its progress. Without JavaScript, the page's buttons do the same.
"use strict";

const PAUSE = 400;
// Lists with at least this many options get a search box.
const LONG = 15;
const form = document.querySelector("form[data-spec]");

async function rendered(action) {
  const body = new URLSearchParams(new FormData(form));
  body.set("action", action);
  // Not form.action, which is the button named "action".
  const response = await fetch(form.getAttribute("action"), { method: "POST", body, headers: { Accept: "text/html" } });
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  if (!page.querySelector("form[data-spec]")) throw new Refusal(page.querySelector("main .lead")?.textContent);
  return page;
}

// A refusal by the service, such as after an expired login. The typed values stay in the form.
class Refusal extends Error {}

function tell(refusal) {
  const notice = document.createElement("div");
  notice.className = "notice bad";
  notice.setAttribute("role", "alert");
  notice.textContent = refusal.message || "The service cannot check the form now.";
  document.querySelector("#problems").replaceChildren(notice);
}

// Replaces only parts without input: the commands and the errors.
function follow(page) {
  for (const part of document.querySelectorAll("#commands, #problems, #outlook, .errors, .notes")) {
    const fresh = page.getElementById(part.id);
    if (fresh && fresh.innerHTML !== part.innerHTML) part.innerHTML = fresh.innerHTML;
    const field = form.elements[part.id.replace(/^e-/, "")];
    if (field && part.matches(".errors")) field.toggleAttribute("aria-invalid", part.childElementCount > 0);
  }
  addCopying();
}

// A copy button beside each command, if the page may use the clipboard: not over plain http from another machine.
function addCopying() {
  if (!navigator.clipboard) return;
  for (const code of document.querySelectorAll("[data-copy]")) {
    if (code.previousElementSibling?.querySelector("button")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy ${code.previousElementSibling.textContent}`);
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        // If the browser forbids it, the user can select the text.
        document.getSelection().selectAllChildren(code);
      }
    });
    code.previousElementSibling.append(" ", button);
  }
}

// A search box above a long list: typing narrows the list, Enter chooses the first match.
function addSearch() {
  for (const place of form.querySelectorAll(".searched")) {
    const list = place.querySelector("select");
    const all = [...list.children].map((group) => ({ group, options: [...group.children] }));
    if (all.flatMap((each) => each.options).length < LONG) continue;
    const box = document.createElement("input");
    box.type = "search";
    box.placeholder = "Search, such as wrn-28 l2";
    box.setAttribute("aria-label", `Search ${form.querySelector(`label[for="${list.id}"]`).textContent}`);
    place.prepend(box);
    const close = () => {
      box.value = "";
      for (const { group, options } of all) group.replaceChildren(...options);
      list.replaceChildren(...all.map((each) => each.group));
      list.removeAttribute("size");
    };
    box.addEventListener("input", (event) => {
      // Searching does not change the job.
      event.stopPropagation();
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      if (words.length === 0) return close();
      const chosen = list.value;
      const left = [];
      for (const { group, options } of all) {
        const told = group.label.toLowerCase();
        const fitting = options.filter((option) => words.every((word) => `${told} ${option.value}`.toLowerCase().includes(word)));
        group.replaceChildren(...fitting);
        if (fitting.length > 0) left.push(group);
      }
      list.replaceChildren(...left);
      list.value = chosen;
      list.size = Math.min(8, Math.max(2, list.options.length + left.length));
    });
    box.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") list.focus();
      if (event.key !== "Enter") return;
      event.preventDefault();
      if (box.value && list.options.length > 0) choose(list.options[0].value);
    });
    const choose = (value) => {
      close();
      list.value = value;
      list.dispatchEvent(new Event("input", { bubbles: true }));
    };
    list.addEventListener("change", () => { if (box.value && list.value) choose(list.value); });
    // If the box is left without a choice, the list gets its earlier value back.
    const before = { value: list.value };
    list.addEventListener("input", () => { before.value = list.value || before.value; });
    place.addEventListener("focusout", (event) => {
      if (!box.value || place.contains(event.relatedTarget)) return;
      close();
      list.value = before.value;
    });
  }
}

// The values of the form's fields, by name.
function entered() {
  const fields = [...form.elements].filter((field) => field.name);
  return new Map(fields.map((field) => [field.name, field.type === "checkbox" ? field.checked : field.value]));
}

// Shows the form as the service renders it for a choice, with the values typed meanwhile.
function redraw(page, before) {
  const typed = [...entered()].filter(([name, value]) => before.has(name) && before.get(name) !== value);
  const active = document.activeElement;
  // Keep the element in which the user types, with the cursor's position.
  const live = form.contains(active) && active.name && !active.matches("[data-choice]") ? active : null;
  const open = [...form.querySelectorAll("details[open]")].map((part) => part.id);
  form.innerHTML = page.querySelector("form[data-spec]").innerHTML;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (live) form.elements[live.name]?.replaceWith?.(live);
  for (const [name, value] of typed) {
    if (live?.name === name) continue;
    const field = form.elements[name];
    if (field) field[field.type === "checkbox" ? "checked" : "value"] = value;
  }
}

if (form) {
  addCopying();
  addSearch();
  let timer = null;
  let choices = 0;
  // Redraws the form as the service adapts it to the field with this name.
  const update = async (name) => {
    clearTimeout(timer);
    const choice = ++choices;
    const before = entered();
    try {
      const page = await rendered("update");
      // After several quick choices, only the last answer is used; it includes the others.
      if (choice !== choices) return;
      const focused = (form.contains(document.activeElement) && document.activeElement.name) || name;
      redraw(page, before);
      addSearch();
      follow(page);
      form.elements[focused]?.focus();
    } catch (error) {
      tell(error instanceof Refusal ? error : new Refusal("The service does not answer; choose again in a moment."));
    }
  };
  form.addEventListener("input", (event) => {
    if (event.target.matches("[data-choice]")) return;
    // The architecture of a known file follows from its sha256.
    if (event.target.matches("[data-sha256]") && /^[0-9a-f]{64}$/.test(event.target.value)) {
      update(event.target.name);
      return;
    }
    clearTimeout(timer);
    timer = setTimeout(async () => {
      try {
        follow(await rendered("check"));
      } catch (error) {
        // If the service does not answer, sending will say so.
        if (error instanceof Refusal) tell(error);
      }
    }, PAUSE);
  });
  form.addEventListener("change", (event) => {
    if (event.target.matches("[data-choice]")) update(event.target.name);
  });
}

const upload = document.querySelector("[data-upload]");
if (upload) {
  const [input, bar, status] = ["input", "progress", "[role=status]"].map((part) => upload.querySelector(part));
  const ours = upload.dataset.csrf ? { "X-CSRF-Token": upload.dataset.csrf } : {};
  const pause = (seconds) => new Promise((resolve) => { setTimeout(resolve, 1000 * seconds); });

  // Below 100 MB, the limit of some proxies; a proxy with a lower limit answers 413, and gets smaller pieces.
  const LEAST_PIECE = 64 * 1024;
  let pieceBytes = 64 * 1024 * 1024;

  // Errors of the service are JSON with a sentence; a proxy answers with a page of its own, which is not shown.
  const problem = (text) => {
    try {
      const { code, detail } = JSON.parse(text);
      return code && detail ? { detail } : null;
    } catch {
      return null;
    }
  };
  const ofProxy = (status) => ({
    detail: status === 413
      ? "A proxy in front of the service refuses the file as too large, even in small pieces; its owner has to allow larger bodies."
      : `A proxy in front of the service answered ${status}; try again later, or tell the owner of the service.`,
  });

  // XMLHttpRequest, since fetch does not report upload progress.
  const piece = (address, file, offset) => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const started = performance.now();
    request.open("PATCH", address);
    const headers = { ...ours, "Content-Type": "application/offset+octet-stream", "Upload-Offset": offset };
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => {
      bar.hidden = false;
      bar.value = (offset + event.loaded) / file.size;
      const rate = event.loaded / (performance.now() - started);
      const left = (file.size - offset - event.loaded) / rate / 1000;
      status.textContent = `${Math.round(100 * bar.value)} %, ${Math.ceil(left)} s left`;
    };
    request.onload = () => resolve(request);
    request.onerror = () => reject(request);
    request.send(file.slice(offset, offset + pieceBytes));
  });

  const smaller = (left) => {
    const tried = Math.min(pieceBytes, left);
    if (tried <= LEAST_PIECE) return false;
    pieceBytes = Math.max(LEAST_PIECE, Math.floor(tried / 2));
    return true;
  };

  // The tus protocol: after a broken connection the upload continues with the missing bytes.
  const send = async (file) => {
    const begun = await fetch(upload.dataset.upload, { method: "POST", headers: { ...ours, "Upload-Length": file.size } });
    if (!begun.ok) return problem(await begun.text()) ?? ofProxy(begun.status);
    const address = begun.headers.get("Location");
    if (!address) return ofProxy(begun.status);
    for (let offset = 0, broken = 0; ; ) {
      let cut = false;
      try {
        const answer = await piece(address, file, offset);
        const said = problem(answer.responseText);
        if (answer.status === 200) return JSON.parse(answer.responseText);
        if (answer.status === 204 && answer.getResponseHeader("Upload-Offset")) {
          offset = Number(answer.getResponseHeader("Upload-Offset"));
          broken = 0;
          continue;
        }
        if (answer.status === 413 && !said) {
          if (smaller(file.size - offset)) continue;
          return ofProxy(413);
        }
        // The service may not have noticed yet that the last piece broke off, or is restarting, so try again. Not after
        // 507: there will be no room in a moment either.
        const passes = [409, 429].includes(answer.status) || (answer.status >= 500 && answer.status !== 507);
        if (!passes) return said ?? ofProxy(answer.status);
      } catch (error) {
        // A proxy answered with a page of its own, which is not JSON.
        if (error instanceof SyntaxError) return ofProxy(200);
        cut = true;
      }
      broken += 1;
      if (broken > 10) return { detail: "The connection breaks again and again; choose the file once more." };
      status.textContent = "The connection broke; continuing in a moment.";
      await pause(broken);
      try {
        const looked = await fetch(address, { method: "HEAD" });
        if (looked.status === 404) return { detail: "The service has deleted the upload; choose the file once more." };
        if (looked.status === 429) await pause(Number(looked.headers.get("Retry-After")) || broken);
        if (!looked.ok) continue;
        const now = Number(looked.headers.get("Upload-Offset"));
        // A proxy may end the connection instead of saying that a piece is too large.
        if (now > offset || (cut && smaller(file.size - offset))) broken = 0;
        offset = now;
      } catch {
        // Still no connection.
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
    const field = form.elements.weights ?? form.elements["teacher.weights"];
    if (!answer.sha256 || !field) return;
    field.value = answer.sha256;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  });
}
