"use strict";
// Below the first view: sweeps, memory by kind, learning curves with a selection, and the table of runs.
const MOST_BARS = 30, MOST_CURVES = 80, MOST_NAMES = 9;  // names: in the legend of learning curves
const selected = new Set();
const whole = {};  // which plots show all they have

// "30 of 120 are drawn. [draw all]"
function cut(id, total, most, what) {
  const limit = whole[id] ? total : Math.min(total, most);
  at(id).replaceChildren();
  if (total > most) {
    at(id).append(`${limit} of ${total} ${what} are drawn: filter them, or `);
    element(at(id), "button", whole[id] ? "draw fewer" : "draw all")
      .addEventListener("click", () => { whole[id] = !whole[id]; draw(); });
  }
  return limit;
}

// Settings that a step's memory may depend on; groups that agree in them have one bar.
const ofMemory = key => key !== "data" && (MAIN.includes(key) || /^(blocks|budget_mb|quantize|engine|lite_residual.[^p]|lite_residual.pooling)/.test(key));

function drawSplit(groups) {
  const known = groups.filter(group => KINDS.some(kind => group[kind] !== null))
    .sort((a, b) => a.measured_mb - b.measured_mb);
  at("split").parentElement.hidden = !known.length;
  const labelOf = labeller(known, independent(known).filter(ofMemory)), byLabel = new Map();
  for (const group of known) if (!byLabel.has(labelOf(group))) byLabel.set(labelOf(group), group);
  const all = [...byLabel], shown = all.slice(0, cut("bars-cut", all.length, MOST_BARS, "bars, the smallest,"));
  const names = shown.map(([name]) => safe(name)), bars = shown.map(([, group]) => group);
  at("split").style.height = Math.max(220, 110 + 27 * bars.length) + "px";
  Plotly.react("split", KINDS.map(kind => ({name: kind, type: "bar", orientation: "h",
    y: bars.map((_, index) => index), x: bars.map(group => group[kind] || 0), customdata: names,
    hovertemplate: "%{customdata}<br>%{x:.2f} MB " + kind + "<extra></extra>"})), {...LAYOUT, barmode: "stack",
    legend: {orientation: "h", y: 1, yanchor: "bottom", traceorder: "normal"}, margin: {...LAYOUT.margin, t: 40, l: 20},
    xaxis: {title: {text: "memory, MB"}},
    yaxis: {automargin: true, autorange: "reversed", tickvals: names.map((_, index) => index),
      ticktext: names.map(name => wrapped(name)), tickfont: {size: 11}, ticks: "outside", ticklen: 5, tickcolor: "white"}}, CONFIG);
}

// In lines of about so many characters.
function wrapped(name, most = 60) {
  return name.split(", ").reduce((lines, word) => {
    const last = lines.at(-1);
    return last && last.length + word.length < most ? [...lines.slice(0, -1), last + ", " + word] : [...lines, word];
  }, []).join("<br>");
}

let labelOfShown = group => group.method;
// Curve -> its name, and the factor to the unit in the name.
const CURVES = {"train/loss": ["training loss", 1], "val/loss": ["validation loss", 1], "val/top1": ["validation accuracy, %", 100],
  "val/mean_accuracy": ["validation accuracy, mean over the labels, %", 100]};
const curveName = key => (CURVES[key] || [key])[0];
const runLabel = run => `${safe(labelOfShown(GROUPS[run.group]))}, seed ${run.seed}`;

function drawCurves(runs) {
  labelOfShown = labeller(shownGroups(), independent(shownGroups()));
  const key = at("curve").value, factor = (CURVES[key] || [key, 1])[1], all = runs.filter(run => run.curves[key]);
  at("learning").hidden = !runs.some(run => Object.keys(run.curves).length);
  const ordered = [...all].sort((a, b) => selected.has(b.name) - selected.has(a.name));
  const mine = ordered.slice(0, cut("curves-cut", all.length, MOST_CURVES, "curves")).reverse();
  const any = mine.some(run => selected.has(run.name)), few = mine.length < MOST_NAMES;
  const shown = mine.filter(run => few || selected.has(run.name)), inLegend = shown.length < MOST_NAMES ? shown : [];
  const unit = factor === 100 ? "%{y:.1f} %" : "%{y:.4f}";
  Plotly.react("curves", mine.map(run => {
    const bold = selected.has(run.name);
    return {name: runLabel(run), type: "scatter", mode: "lines+markers", showlegend: inLegend.includes(run),
      x: run.curves.epoch, y: run.curves[key].map(value => value === null ? null : factor * value), customdata: run.curves.epoch.map(() => run.name),
      line: {width: bold ? 3 : 1.2, color: any && !bold ? "#d5dae0" : colour(run.method)}, marker: {size: bold ? 6 : 3},
      hovertemplate: `<b>${wrapped(runLabel(run))}</b><br>epoch %{x}: ${unit}<br>${safe(run.name)}<extra></extra>`};
  }), {...withLegend(at("curves"), inLegend.map(runLabel)), xaxis: {title: {text: "epoch"}}, yaxis: {title: {text: curveName(key)}}}, CONFIG);
  at("curves").removeAllListeners?.("plotly_click");
  at("curves").on("plotly_click", event => {
    const name = event.points[0].customdata;
    selected.has(name) ? selected.delete(name) : selected.add(name);
    drawRunsAndCurves();
  });
}

function selectRuns(runs) {
  selected.clear();
  for (const run of runs) selected.add(run.name);
  drawRunsAndCurves();
}

function makeCurveChoice() {
  const names = unique(RUNS.flatMap(run => Object.keys(run.curves))).filter(name => name !== "epoch");
  for (const name of names) element(at("curve"), "option", curveName(name), {value: name});
  at("curve").addEventListener("change", () => drawRunsAndCurves());
  at("unselect").addEventListener("click", () => { at("words").value = ""; selectRuns([]); });
  at("words").addEventListener("input", () => {
    const joined = phrase => phrase.toLowerCase().replace(/\bseed (\d)/g, "seed=$1");  // "seed 1" is one word
    const words = joined(at("words").value).split(/\s+/).filter(Boolean);
    // A number is a whole one: "seed 1" is not the beginning of "seed 12".
    const says = (run, word) => joined(`${run.name} ${runLabel(run)}`).split(word).slice(1)
      .some(rest => !/\d$/.test(word) || !/^[\d.]/.test(rest));
    selectRuns(words.length ? shownRuns().filter(run => words.every(word => says(run, word))) : []);
  });
}

const byAccuracy = (a, b) => (b.accuracy !== null) - (a.accuracy !== null) || natural(a.data, b.data) || b.accuracy - a.accuracy;
const FIGURES = {accuracy: value => value.toFixed(1), seconds: value => value.toFixed(0), lean_mb: megabytes,
  measured_mb: megabytes, paper_mb: megabytes};
const shownRuns = () => RUNS.filter(run => passes(GROUPS[run.group]) && (!sweep || run.sweep === sweep));

function drawRuns(runs) {
  const varies = column => runs.length < 2 || unique(runs.map(run => run[column])).length > 1;
  const columns = COLUMNS.filter(varies);
  at("same").textContent = columns.length < COLUMNS.length ? "In all of them: " + COLUMNS.filter(c => !varies(c))
    .filter(c => runs[0][c] !== null).map(c => `${c}=${text(runs[0][c])}`).join(", ") + "." : "";
  at("all-runs").hidden = !RUNS.length;
  const ordered = [...runs].sort((a, b) => selected.has(b.name) - selected.has(a.name) || byAccuracy(a, b));
  const figure = (run, column) => FIGURES[column] && run[column] !== null ? FIGURES[column](run[column]) : run[column];
  fillTable(at("runs"), [...columns, "run"], ordered.map(run => {
    const cell = document.createElement("td");
    if (run.address) element(cell, "a", run.name, {href: run.address, title: "its results.json"});
    else cell.textContent = run.name;
    return [...columns.map(column => figure(run, column)), cell];
  }));
  [...at("runs").tBodies[0].rows].forEach((row, index) => row.classList.toggle("selected", selected.has(ordered[index].name)));
}

function drawRunsAndCurves() {
  drawRuns(shownRuns());
  drawCurves(shownRuns());
}

function draw() {
  const groups = shownGroups(), known = points(groups);
  const set = [...KEYS.filter(key => chosen[key]).map(key => `${key}=${encodeURIComponent(chosen[key])}`),
    ...(sweep ? ["sweep=" + encodeURIComponent(sweep)] : [])];
  if (set.length || location.hash.includes("=")) history.replaceState(null, "", "#" + set.join("&"));
  const without = groups.filter(group => group.accuracy === null || group[memory] === null).length;
  const runs = known.reduce((sum, group) => sum + group.seeds, 0), several = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  at("shown").textContent = !GROUPS.length ? "" : `${MEMORY_NOTES[memory]} ${several(known.length, "point")} of ${several(runs, "run")}.` +
    (without ? ` ${without} of the ${groups.length} settings have no test accuracy, or no such memory: ` : "");
  if (GROUPS.length && without) element(at("shown"), "a", "why", {href: "#not_shown"});
  drawLegend(groups);
  drawPanels(groups);
  drawAnswers(known);
  drawSplit(groups);
  drawRunsAndCurves();
}

// A link to a table that is folded unfolds it.
const unfold = () => {
  const fold = document.querySelector(`[id="${CSS.escape(location.hash.slice(1))}"] > details`);
  if (fold) fold.open = true;
};
window.addEventListener("hashchange", unfold);
document.querySelectorAll("nav a").forEach(link => link.addEventListener("click", () => setTimeout(unfold)));
makeFilters();
makeCurveChoice();
draw();
document.querySelectorAll("section:has(.sweep)").forEach(section => {
  drawSweep(section);
  section.querySelector("select").addEventListener("change", () => drawSweep(section));
  section.querySelector("details").addEventListener("toggle", () => Plotly.Plots.resize(section.querySelector(".plot")));
});
