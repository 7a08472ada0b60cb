// Makes scrollable parts of a page usable with the keyboard: they get the focus, and the heading above them as name.
// Parts that fit without scrolling are not focusable, so that Tab does not stop at them.
"use strict";

// Of the pages; of the documentation, which also uses this file; and of Swagger UI.
const SCROLLERS = ".scroll, pre.code, .table-wrapper, .highlight pre, pre.microlight";

function nameOf(scroller) {
  const above = [...document.querySelectorAll("h1, h2, h3, summary, legend")].filter(
    (heading) => heading.compareDocumentPosition(scroller) & Node.DOCUMENT_POSITION_FOLLOWING);
  // Headings of the documentation end with a link "¶" to themselves.
  return above.at(-1)?.textContent.replace("¶", "").trim() || document.title;
}

function markScrollers() {
  for (const scroller of document.querySelectorAll(SCROLLERS)) {
    const scrolls = scroller.scrollWidth > scroller.clientWidth || scroller.scrollHeight > scroller.clientHeight;
    if (scrolls === scroller.hasAttribute("tabindex")) continue;
    if (scrolls) {
      scroller.tabIndex = 0;
      scroller.setAttribute("role", "group");
      scroller.setAttribute("aria-label", nameOf(scroller));
    } else if (scroller !== document.activeElement) {
      for (const name of ["tabindex", "role", "aria-label"]) scroller.removeAttribute(name);
    }
  }
}

// Restores the element as the server sent it, for comparing pages.
function unmarkScrollers(part) {
  for (const scroller of [part, ...part.querySelectorAll(SCROLLERS)]) {
    if (!scroller.matches(SCROLLERS)) continue;
    for (const name of ["tabindex", "role", "aria-label"]) scroller.removeAttribute(name);
  }
}

let frame = 0;
function markSoon() {
  frame ||= requestAnimationFrame(() => { frame = 0; markScrollers(); });
}

markScrollers();
addEventListener("resize", markSoon);
// Parts of a closed <details> have no size until it is opened.
document.addEventListener("toggle", markSoon, true);
new MutationObserver(markSoon).observe(document.body, { childList: true, subtree: true });
