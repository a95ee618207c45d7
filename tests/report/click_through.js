// Clicks through the page as a reader would, and leaves in the page what each step shows.
const told = {};
const cellsOf = id => [...document.querySelectorAll(`#${id} tbody tr`)].map(row => [...row.cells].map(cell => cell.textContent));
const change = (id, value) => {
  const box = document.getElementById(id);
  box.value = value;
  box.dispatchEvent(new Event(box.tagName === "INPUT" ? "input" : "change"));
};
told.panels = [...document.querySelectorAll(".panel h3")].map(title => title.firstChild.textContent);
const panel = document.querySelector(".panel .plot");
told.points = panel.data.filter(trace => trace.mode === "markers" && trace.name !== "the paper")
  .flatMap(trace => trace.x.map((x, index) => [trace.name, x, trace.y[index], trace.error_y.array[index]]));
told.front = [panel.data[0].x, panel.data[0].y];
told.paper = panel.data.at(-1).x.length;
told.labels = panel.layout.annotations.map(label => label.text).sort();
told.usual = document.querySelector(".panel h3 small").textContent;
change("filter-seeds", "2");
told.repeated = cellsOf("best").map(row => row.slice(0, 2));
change("filter-seeds", "");
told.best = cellsOf("best");
change("budget", "20");
told.best_in_20 = cellsOf("best");
told.equal = cellsOf("equal");
document.querySelectorAll("#memory input")[1].click();
told.note = document.getElementById("shown").textContent;
told.measured = document.querySelector(".panel .plot").data.filter(trace => trace.mode === "markers")[0].x;
change("filter-method", "tinytl");
told.filtered = cellsOf("runs").length;
told.address = location.hash;
change("words", "tinytl seed 1");
told.selected = document.querySelectorAll("#runs tr.selected").length;
told.bold = document.getElementById("curves").data.filter(trace => trace.line.width === 3).length;
document.getElementById("unselect").click();
const curves = document.getElementById("curves");
told.hover = curves.data[0].hovertemplate;
curves.emit("plotly_click", {points: [{customdata: curves.data[0].customdata[0]}]});
told.clicked = [...document.querySelectorAll("#runs tr.selected")].map(row => row.cells[row.cells.length - 1].textContent);
document.getElementById("reset").click();
told.all = cellsOf("runs").length;
change("words", "seed 1");
told.seed_one = document.querySelectorAll("#runs tr.selected").length;
const table = document.querySelector("#real_images table");
const column = [...table.tHead.rows[0].cells].findIndex(head => head.textContent === "accuracy, %");
const sorted = () => {
  table.tHead.rows[0].cells[column].click();
  return [...table.tBodies[0].rows].map(row => row.cells[column].textContent);
};
told.sorted = [sorted(), sorted()];
Object.defineProperty(navigator, "clipboard", {value: {writeText: async content => { told.copied = content; }}});
const copied = as => {
  document.querySelector(`#real_images button[data-as=${as}]`).click();
  return told.copied;
};
told.markdown = copied("markdown").split("\n");
told.latex = copied("latex");
told.folded = [...document.querySelectorAll("section > details:not([open])")].map(fold => fold.parentElement.id);
told.widths = [document.documentElement.scrollWidth, window.innerWidth];
document.body.appendChild(document.createElement("pre")).id = "told";
document.getElementById("told").textContent = JSON.stringify(told);
