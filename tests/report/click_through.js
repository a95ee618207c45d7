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
told.best = cellsOf("best");
change("budget", "20");
told.best_in_20 = cellsOf("best");
told.equal = cellsOf("equal");
document.querySelectorAll("#memory input")[1].click();
told.measured = document.querySelector(".panel .plot").data.filter(trace => trace.mode === "markers")[0].x;
change("filter-method", "tinytl");
told.filtered = cellsOf("runs").length;
told.address = location.hash;
change("words", "tinytl seed 1");
told.selected = document.querySelectorAll("#runs tr.selected").length;
told.bold = document.getElementById("curves").data.filter(trace => trace.line.width === 3).length;
document.getElementById("reset").click();
told.all = cellsOf("runs").length;
const table = document.querySelector("#real_images table");
const seeds = [...table.tHead.rows[0].cells].findIndex(head => head.textContent === "accuracy");
table.tHead.rows[0].cells[seeds].click();
told.sorted = [...table.tBodies[0].rows].map(row => row.cells[seeds].textContent);
told.markdown = markdown(table).split("\n");
told.latex = latex(table);
told.folded = [...document.querySelectorAll("section > details:not([open])")].map(fold => fold.parentElement.id);
told.widths = [document.documentElement.scrollWidth, window.innerWidth];
document.body.appendChild(document.createElement("pre")).id = "told";
document.getElementById("told").textContent = JSON.stringify(told);
