"use strict";
// Filters, plots and sortable tables over RUNS, of which COLUMNS are shown. The address's #key=value sets the filters.
const FILTERS = ["data", "model", "method", "norm", "batch_size", "engine"];
const MOST_BARS = 30;
const TICKS_MB = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096];
// showSendToCloud: a button that would upload the figure, there unless told not to
const CONFIG = {responsive: true, displaylogo: false, showSendToCloud: false,
  toImageButtonOptions: {format: "svg"}};
const LAYOUT = {margin: {t: 20, r: 20, b: 50, l: 60}, legend: {orientation: "h", y: -0.22},
  font: {family: "system-ui, sans-serif", size: 13}, colorway:
  ["#1f5fa8", "#d9762b", "#3b8f5a", "#b3394a", "#7a5ba6", "#8a6d4b", "#4aa3b5", "#666f7a"]};

const at = id => document.getElementById(id);
const values = key => [...new Set(RUNS.map(run => run[key]).filter(value => value !== null))]
  .sort((a, b) => typeof a === "number" ? a - b : String(a).localeCompare(b));
const number = value => Number.isInteger(value) ? String(value) : value.toPrecision(4).replace(/\.?0+$/, "");
const shown = () => RUNS.filter(run => FILTERS.every(key =>
  !at("filter-" + key).value || String(run[key]) === at("filter-" + key).value));

function element(parent, tag, text, attributes = {}) {
  const made = parent.appendChild(document.createElement(tag));
  made.textContent = text;
  return Object.assign(made, attributes);
}

function makeFilters() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const key of FILTERS) {
    const label = element(at("filters"), "label", key.replace("_", " ") + " ");
    const select = element(label, "select", "", {id: "filter-" + key});
    element(select, "option", "all", {value: ""});
    for (const value of values(key)) element(select, "option", value, {value: String(value)});
    if (asked.has(key)) select.value = asked.get(key);
    else if (key === "data" && RUNS.length) select.value = commonest("data");
    select.addEventListener("change", () => {
      location.replace("#" + FILTERS.filter(k => at("filter-" + k).value || k === "data")
        .map(k => k + "=" + encodeURIComponent(at("filter-" + k).value)).join("&"));
      draw();
    });
  }
  const curves = [...new Set(RUNS.flatMap(run => Object.keys(run.curves)))].filter(name => name !== "epoch");
  for (const name of curves) element(at("curve"), "option", name, {value: name});
  at("curve").addEventListener("change", draw);
}

function commonest(key) {
  const count = value => RUNS.filter(run => run[key] === value).length;
  return values(key).sort((a, b) => count(b) - count(a))[0];
}

function front(runs) {
  const sorted = [...runs].sort((a, b) => a.measured_mb - b.measured_mb || b.accuracy - a.accuracy);
  let best = -1;
  return sorted.filter(run => run.accuracy > best && (best = run.accuracy, true));
}

function describe(run) {
  const safe = value => String(value).replace(/[<>&]/g, "");
  return `${safe(run.data)}, ${safe(run.model)}, ${safe(run.method)}, ${safe(run.norm)}, ${run.resolution} px, ` +
    `batch ${run.batch_size}, ${safe(run.engine)}, seed ${run.seed}`;
}

function drawScatter(runs) {
  const known = runs.filter(run => run.accuracy !== null && run.measured_mb !== null);
  const traces = [...new Set(known.map(run => run.method))].sort().map(method => {
    const mine = known.filter(run => run.method === method);
    return {name: method, mode: "markers", type: "scatter", marker: {size: 9, opacity: 0.85},
      x: mine.map(run => run.measured_mb), y: mine.map(run => run.accuracy), text: mine.map(describe),
      customdata: mine.map(run => run.address), hovertemplate: "%{text}<br>%{y:.1f} % at %{x:.1f} MB<extra></extra>"};
  });
  const best = front(known);
  traces.push({name: "Pareto front", mode: "lines", type: "scatter", hoverinfo: "skip",
    line: {color: "#9aa5b1", dash: "dot", shape: "hv"},
    x: best.map(run => run.measured_mb), y: best.map(run => run.accuracy)});
  Plotly.react("scatter", traces, {...LAYOUT, xaxis: {title: {text: "measured, MB"}, type: "log", tickvals: TICKS_MB},
    yaxis: {title: {text: "accuracy, %"}}}, CONFIG);
}

function drawSplit(runs) {
  const groups = new Map();
  for (const run of runs) {
    if (!Object.keys(run.split_mb).length) continue;
    const label = [run.method, run.norm, run.resolution + " px", "batch " + run.batch_size, run.engine,
      run.budget_mb === null ? "" : "≤ " + run.budget_mb + " MB"].filter(Boolean).join(", ");
    if (!groups.has(label)) groups.set(label, run);
  }
  const bars = [...groups].sort((a, b) => a[1].measured_mb - b[1].measured_mb).slice(0, MOST_BARS);
  at("split").style.height = Math.max(220, 110 + 24 * bars.length) + "px";
  Plotly.react("split", KINDS.map(kind => ({name: kind, type: "bar", orientation: "h",
    y: bars.map(bar => bar[0]), x: bars.map(bar => bar[1].split_mb[kind] || 0),
    hovertemplate: "%{x:.2f} MB<extra>" + kind + "</extra>"})), {...LAYOUT, barmode: "stack",
    yaxis: {automargin: true, autorange: "reversed"}, margin: {...LAYOUT.margin, t: 30, b: 20}}, CONFIG);
}

function drawCurves(runs) {
  const name = at("curve").value;
  const mine = runs.filter(run => run.curves[name]).slice(0, 60);
  Plotly.react("curves", mine.map(run => ({name: run.name, mode: "lines+markers", x: run.curves.epoch,
    y: run.curves[name], text: describe(run), hovertemplate: "%{text}<br>epoch %{x}: %{y:.4f}<extra></extra>"})),
    {...LAYOUT, showlegend: mine.length < 9, xaxis: {title: {text: "epoch"}}, yaxis: {title: {text: name}}}, CONFIG);
}

function drawRuns(runs) {
  at("runs").replaceChildren();
  const head = element(element(at("runs"), "thead", ""), "tr", "");
  for (const column of [...COLUMNS, "results"]) element(head, "th", column.replace("_", " "));
  const body = element(at("runs"), "tbody", "");
  for (const run of runs) {
    const row = element(body, "tr", "");
    for (const column of COLUMNS) {
      const value = run[column];
      element(row, "td", value === null ? "—" : typeof value === "number" ? number(value) : value);
    }
    const cell = element(row, "td", "", {title: run.name});
    if (run.address) element(cell, "a", "results.json", {href: run.address});
    else cell.textContent = "packed";
  }
  makeSortable(at("runs"));
}

function makeSortable(table) {
  const numeric = text => text.trim() === "—" ? -Infinity : Number.parseFloat(text);
  const isNumber = text => text.trim() === "—" || /^[-+]?[\d.]+(e[-+]?\d+)?$/i.test(text.trim());
  for (const cell of table.querySelectorAll("tbody td")) cell.classList.toggle("number", isNumber(cell.textContent));
  table.querySelectorAll("th").forEach((head, index) => head.addEventListener("click", () => {
    const order = head.dataset.order === "1" ? -1 : 1;
    table.querySelectorAll("th").forEach(other => delete other.dataset.order);
    head.dataset.order = order;
    const rows = [...table.tBodies[0].rows], key = row => row.cells[index].textContent;
    const numbers = rows.every(row => isNumber(key(row)));
    rows.sort((a, b) => order * (numbers ? numeric(key(a)) - numeric(key(b)) : key(a).localeCompare(key(b))));
    table.tBodies[0].append(...rows);
  }));
}

function draw() {
  const runs = shown();
  drawScatter(runs);
  drawSplit(runs);
  drawCurves(runs);
  drawRuns(runs);
}

document.querySelectorAll("main > section:not(#plots) table").forEach(makeSortable);
makeFilters();
draw();
at("scatter").on("plotly_click", event => {
  const address = event.points[0].customdata;
  if (address) window.open(address);
});
