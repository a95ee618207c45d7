"use strict";
// Below the first view: sweeps, memory by kind, learning curves with a selection, and the table of runs.
const MOST_BARS = 30, MOST_CURVES = 80;
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
      ticktext: names.map(wrapped), tickfont: {size: 11}, ticks: "outside", ticklen: 5, tickcolor: "white"}}, CONFIG);
}

// In lines of about 60 characters.
function wrapped(name) {
  return name.split(", ").reduce((lines, word) => {
    const last = lines.at(-1);
    return last && last.length + word.length < 60 ? [...lines.slice(0, -1), last + ", " + word] : [...lines, word];
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
  const any = mine.some(run => selected.has(run.name)), lines = mine.length < 9;
  Plotly.react("curves", mine.map(run => {
    const bold = selected.has(run.name);
    return {name: runLabel(run), type: "scatter", mode: "lines+markers", showlegend: bold || lines,
      x: run.curves.epoch, y: run.curves[key].map(value => value === null ? null : factor * value), customdata: run.curves.epoch.map(() => run.name),
      line: {width: bold ? 3 : 1.2, color: any && !bold ? "#d5dae0" : colour(run.method)}, marker: {size: bold ? 6 : 3},
      hovertemplate: `<b>${runLabel(run)}</b><br>epoch %{x}: %{y:.4f}<br>${safe(run.name)}<extra></extra>`};
  }), {...LAYOUT, legend: {orientation: "h", y: -0.2}, xaxis: {title: {text: "epoch"}}, yaxis: {title: {text: curveName(key)}}}, CONFIG);
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

// A sweep's own plot: accuracy over one of the settings that vary in it, a line for each of the others.
function drawSweep(section) {
  const mine = GROUPS.filter(group => group.sweeps.includes(section.id.replace(/^sweep-/, "")));
  const keys = independent(mine), box = section.querySelector("select");
  const numeric = key => mine.every(group => group[key] !== "" && !Number.isNaN(Number(group[key])));
  const values = key => unique(mine.map(group => group[key])).length;
  const across = box.value || keys.filter(numeric).sort((a, b) => values(b) - values(a))[0] || keys[0] || "method";
  if (!box.options.length) for (const key of keys) element(box, "option", key, {value: key, selected: key === across});
  const others = group => keys.filter(key => key !== across).map(key => named(group, key)).join(", ");
  const figure = group => group.accuracy ?? group.val_accuracy;
  if (!mine.some(group => figure(group) !== null) || mine.length < 2) {
    section.querySelector(".sweep").hidden = true;
    return;
  }
  const sizes = mine.map(group => Number(group[across]));
  const scale = !numeric(across) ? "category" : Math.min(...sizes) > 0 && Math.max(...sizes) > 16 * Math.min(...sizes) ? "log" : "linear";
  const lines = unique(mine.filter(group => figure(group) !== null).map(others)).sort(natural);
  const validated = mine.every(group => group.accuracy === null);
  Plotly.react(section.querySelector(".plot"), lines.map(line => {
    const on = mine.filter(group => others(group) === line && figure(group) !== null)
      .sort((a, b) => natural(a[across], b[across]));
    return {name: safe(line || across), type: "scatter", mode: numeric(across) ? "lines+markers" : "markers", x: on.map(group => numeric(across) ? Number(group[across]) : safe(group[across])),
      y: on.map(figure), error_y: {type: "data", array: on.map(group => group.std), thickness: 1, width: 0},
      text: on.map(group => group.accuracy === null ? `${figure(group).toFixed(1)} % (validation)` : hover(group)),
      hovertemplate: "<b>" + safe(line) + "</b><br>%{text}<extra></extra>"};
  }), {...LAYOUT, showlegend: lines.length > 1 && lines.length < 25, legend: {orientation: "h", y: -0.2},
    xaxis: {title: {text: HEADS[across] || across}, type: scale, ...(numeric(across) ? {tickvals: unique(sizes), ticktext: unique(sizes).map(String)} :
      {categoryorder: "array", categoryarray: unique(mine.map(group => safe(group[across]))).sort(natural)})},
    yaxis: {title: {text: validated ? "validation accuracy, %" : "accuracy, %"}}}, CONFIG);
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
