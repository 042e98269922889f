// Filters the samples of each task and enlarges their images. Without it the page shows everything.
"use strict";

for (const form of document.querySelectorAll("form.filters")) {
  const section = form.closest("section");
  const lists = [...section.querySelectorAll("details.list")];
  const samples = [...section.querySelectorAll("[data-verdict]")];
  const texts = samples.map((sample) => sample.textContent.toLowerCase());
  const { category, words } = form.elements;
  const ticked = (name) => [...form.querySelectorAll(`[name=${name}]:checked`)].map((box) => box.value);

  const apply = () => {
    const verdicts = ticked("verdict");
    const flags = ticked("flag");
    const wanted = words.value.trim().toLowerCase();
    const fits = ({ dataset }, number) =>
      (!verdicts.length || verdicts.includes(dataset.verdict)) &&
      (!flags.length || flags.some((flag) => dataset.flags.split(" ").includes(flag))) &&
      (!category?.selectedIndex || dataset.category === category.value) &&
      texts[number].includes(wanted);
    samples.forEach((sample, number) => (sample.hidden = !fits(sample, number)));
    const shown = samples.filter((sample) => !sample.hidden).length;
    const filtered = shown < samples.length;
    for (const list of lists) {
      list.hidden = !list.querySelector("[data-verdict]:not([hidden])");
      list.open ||= filtered;
    }
    section.querySelector(".nothing").hidden = shown > 0;
    form.querySelector("output").textContent = filtered ? `${shown} of ${samples.length} samples` : `${shown} samples`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
}

document.addEventListener("click", ({ target }) => {
  if (target.matches(".frame, .frame *")) target.closest(".sample")?.classList.toggle("large");
});
