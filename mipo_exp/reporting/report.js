// Filters of the lists of samples and pairs: what is typed is looked for in an item's text, every other control holds its
// value against the item's data of that name.
for (const form of document.querySelectorAll("form[data-list]")) {
  const items = [...document.getElementById(form.dataset.list).children];
  const texts = items.map((item) => item.textContent.toLowerCase());
  const update = () => {
    const controls = [...form.elements].filter((control) => control.name && control.value !== "");
    const shown = items.filter((item, i) => {
      item.hidden = !controls.every(({ name, type, value }) =>
        type === "search" ? texts[i].includes(value.toLowerCase())
          : type === "number" ? Number(item.dataset[name]) >= Number(value)
            : item.dataset[name].split(" ").includes(value));
      return !item.hidden;
    });
    form.querySelector("output").textContent = `${shown.length} of ${items.length}`;
  };
  form.hidden = false;
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}
