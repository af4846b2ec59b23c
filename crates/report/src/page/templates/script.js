// Each run of the page has a drawing and a slider of its own.
const partOf = (run, name) => run.querySelector(`[data-part="${name}"]`);
const startDrawing = (run) => {
  const data = JSON.parse(partOf(run, "drawing-data").textContent);
  const cells = [...run.querySelectorAll(".unet .cell")];
  const told = partOf(run, "cell-text");
  const plan = partOf(run, "plan-choice");
  const criterion = partOf(run, "criterion-choice");
  run.querySelectorAll("[data-needs-script]").forEach((e) => { e.hidden = false; });
  const draw = () => {
    const chosen = plan && plan.selectedIndex >= 0 ? data.plans[plan.selectedIndex] : null;
    const shade = criterion ? data.criteria[criterion.selectedIndex] : null;
    const gone = new Set(chosen ? chosen.removed : []);
    for (const cell of cells) {
      const i = Number(cell.dataset.i);
      const heat = shade ? shade.heat[i] : 0;
      const score = shade ? `, ${shade.label} ${shade.scores[i]}` : "";
      const text = `${data.layers[i]}${score}${gone.has(i) ? ", removed" : ""}`;
      cell.style.setProperty("--h", heat);
      cell.classList.toggle("hot", heat >= 5);
      cell.classList.toggle("gone", gone.has(i));
      cell.title = text;
      cell.setAttribute("aria-label", text);
    }
    partOf(run, "plan-text").textContent = chosen ? chosen.text : "";
  };
  const tell = (e) => {
    const cell = e.target.closest(".unet .cell");
    if (cell) told.textContent = cell.title;
  };
  for (const kind of ["mouseover", "focusin", "click"]) run.addEventListener(kind, tell);
  // One stop for Tab; arrow keys move inside the drawing.
  if (cells.length) cells[0].tabIndex = 0;
  run.querySelector(".unet").addEventListener("keydown", (e) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[e.key];
    const at = cells.indexOf(e.target);
    if (!step || at < 0) return;
    const next = cells[(at + step + cells.length) % cells.length];
    cells[at].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    e.preventDefault();
  });
  for (const choice of [plan, criterion]) if (choice) choice.addEventListener("change", draw);
  draw();
};
const startSlider = (run) => {
  const part = (name) => partOf(run, `slide-${name}`);
  if (!part("at")) return;
  const rows = [...run.querySelectorAll(".gallery tbody tr")];
  const show = () => {
    const images = rows[part("row").selectedIndex].querySelectorAll("img");
    const column = part("column").selectedIndex + 1;
    for (const [name, image] of [["under", images[column]], ["over", images[0]]]) {
      part(name).src = image.src;
      part(name).alt = image.alt;
      part(name).className = image.className;
    }
    part("name").textContent = part("column").value;
  };
  const slide = () => { part("over").style.clipPath = `inset(0 ${100 - part("at").value}% 0 0)`; };
  for (const name of ["row", "column"]) part(name).addEventListener("change", show);
  part("at").addEventListener("input", slide);
  show();
  slide();
};
for (const run of document.querySelectorAll(".run-body")) {
  startDrawing(run);
  startSlider(run);
}
