// One cursor for all charts of a training: the pointer over a chart, or the slider, chooses the epoch whose values all
// charts show. Without JavaScript, the slider's button loads the same from the service. live.js may replace the figure
// at any time, so the chosen epoch is kept only in the page's address.
"use strict";

{
  const PAUSE_MS = 300;
  let timer = null;

  const epochsOf = (figure) => figure.dataset.epochs.split(" ").map(Number);

  // The position in `epochs` of the epoch that is nearest to `epoch`.
  function nearest(epochs, epoch) {
    let best = 0;
    epochs.forEach((each, place) => { if (Math.abs(each - epoch) < Math.abs(epochs[best] - epoch)) best = place; });
    return best;
  }

  // Moves the cursor to the nearest drawn epoch, and returns that epoch.
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

  // Gives the slider a text with all values, for users of screen readers.
  function say(figure, epoch) {
    const values = [...figure.querySelectorAll("[data-name]")];
    const said = values.map((each) => `${each.dataset.name} ${each.textContent}`);
    figure.querySelector("[type=range]").setAttribute("aria-valuetext", `epoch ${epoch}: ${said.join(", ")}`);
  }

  // Writes the epoch into the page's address; the last epoch is the default and is left out.
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

  // The epoch, not rounded, under the pointer; null outside the charts.
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
    // The slider stays within the epochs that are drawn.
    event.target.value = epoch;
    say(figure, epoch);
    keep(figure, epoch);
  });

  document.addEventListener("pointermove", (event) => {
    const figure = figureOf(event);
    const epoch = figure && epochAt(figure, event);
    if (epoch) show(figure, epoch);
  });

  // When the pointer leaves the figure, the cursor goes back to the slider's epoch. A click sets the slider.
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
