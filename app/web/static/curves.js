// One cursor for all charts of a training: a pointer over any of them, or the slider's keys, show what each has there.
// Without it the slider's button asks the service for the same. live.js may exchange the figure at any time: what is
// kept here is in the page's address and nowhere else.
"use strict";

{
  const PAUSE_MS = 300;
  let timer = null;

  const epochsOf = (figure) => figure.dataset.epochs.split(" ").map(Number);

  // Place of the drawn epoch that is nearest.
  function nearest(epochs, epoch) {
    let best = 0;
    epochs.forEach((each, place) => { if (Math.abs(each - epoch) < Math.abs(epochs[best] - epoch)) best = place; });
    return best;
  }

  function show(figure, epoch) {
    const epochs = epochsOf(figure);
    const place = nearest(epochs, epoch);
    const x = (epochs[place] - 1) / (figure.dataset.total - 1) * figure.dataset.width;
    for (const line of figure.querySelectorAll(".at")) {
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
    for (const value of figure.querySelectorAll(".value")) value.textContent = value.dataset.values.split("|")[place];
    figure.querySelector("output").textContent = epochs[place];
    return epochs[place];
  }

  // For who hears the slider: the values that the others see.
  function say(figure, epoch) {
    const values = [...figure.querySelectorAll("[data-name]")];
    const said = values.map((each) => `${each.dataset.name} ${each.textContent}`);
    figure.querySelector("[type=range]").setAttribute("aria-valuetext", `epoch ${epoch}: ${said.join(", ")}`);
  }

  // The address of what is shown; that of the page as it began where the cursor stands at its end.
  function keep(figure, epoch) {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const address = new URL(location.href);
      const isLast = epoch === epochsOf(figure).at(-1);
      if (isLast) address.searchParams.delete("epoch");
      else address.searchParams.set("epoch", epoch);
      history.replaceState(history.state, "", address);
    }, PAUSE_MS);
  }

  const figureOf = (event) => event.target instanceof Element && event.target.closest(".curves");

  function epochAt(figure, event) {
    const plot = event.target.closest(".plot");
    if (!plot) return null;
    const box = plot.firstElementChild.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    return 1 + share * (figure.dataset.total - 1);
  }

  document.addEventListener("input", (event) => {
    const figure = figureOf(event);
    if (!figure || event.target.type !== "range") return;
    const epoch = show(figure, Number(event.target.value));
    // Where nothing is drawn yet the slider does not go.
    event.target.value = epoch;
    say(figure, epoch);
    keep(figure, epoch);
  });

  document.addEventListener("pointermove", (event) => {
    const figure = figureOf(event);
    const epoch = figure && epochAt(figure, event);
    if (epoch) show(figure, epoch);
  });

  // A pointer that goes leaves the cursor where it was set; a click sets it.
  document.addEventListener("pointerout", (event) => {
    const figure = figureOf(event);
    if (!figure || figure.contains(event.relatedTarget)) return;
    show(figure, Number(figure.querySelector("[type=range]").value));
  });

  document.addEventListener("click", (event) => {
    const figure = figureOf(event);
    const chosen = figure && epochAt(figure, event);
    if (!chosen) return;
    const epoch = show(figure, chosen);
    figure.querySelector("[type=range]").value = epoch;
    say(figure, epoch);
    keep(figure, epoch);
  });
}
