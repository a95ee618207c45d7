"use strict";
// The first view: filters, a plot of accuracy against memory for each data set, and what they answer.
// The address's #key=value sets the filters.
const MAIN = ["data", "model", "method", "norm", "resolution", "batch_size", "engine"];
const MEMORY = {lean_mb: "under the lean engine (predicted)", measured_mb: "as trained (measured)",
  paper_mb: "the paper's count"};
const MEMORY_NOTES = {
  lean_mb: "What a training step of these settings takes on the lean engine of this version, whichever engine trained the run.",
  measured_mb: "What a training step took in the run itself, on stock PyTorch or on the lean engine of its version.",
  paper_mb: "The count by which the paper's tables are made; a real step takes more."};
const TICKS_MB = [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];
const COLOURS = {last: "#7b8794", bias: "#2f7ed8", norm_last: "#8a5fbf", tinytl_l: "#3fa7a0", tinytl: "#1d8a4e",
  full: "#d9622b"};
const OTHER_COLOURS = ["#b3394a", "#8a6d4b", "#c2a11c", "#0b4f6c"];
const SHAPES = {gn: "circle", bn_frozen: "square", bn: "triangle-up", native: "x"};
const NORMS = {gn: "GroupNorm", bn_frozen: "BatchNorm, stored statistics", bn: "BatchNorm, statistics of the batch", native: "the network's own"};
const SIGNS = {circle: "●", square: "■", "triangle-up": "▲", x: "✖", "diamond-open": "◇"};
// showSendToCloud: a button that would upload the figure, there unless told not to
const CONFIG = {responsive: true, displaylogo: false, showSendToCloud: false, toImageButtonOptions: {format: "svg"},
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};
const LAYOUT = {margin: {t: 12, r: 16, b: 44, l: 50}, font: {family: "system-ui, sans-serif", size: 12},
  hoverlabel: {align: "left", font: {size: 11}}, hovermode: "closest"};

const PANEL_MARGIN = {t: 26, r: 14, b: 44, l: 50};

let memory = "lean_mb", sweep = "", fewestSeeds = 1;
const chosen = {};
const methods = unique([...GROUPS, ...PAPER].map(group => group.method)).sort();
const colour = method => COLOURS[method] ||
  OTHER_COLOURS[methods.filter(name => !COLOURS[name]).indexOf(method) % OTHER_COLOURS.length];
const shape = norm => SHAPES[norm] || "x";
const safe = value => String(value).replace(/[<>&]/g, "");
const passes = group => KEYS.every(key => !chosen[key] || group[key] === chosen[key]) &&
  (!sweep || group.sweeps.includes(sweep));
const shownGroups = () => GROUPS.filter(passes);
const points = groups => groups.filter(group => group.accuracy !== null && group[memory] !== null && group.seeds >= fewestSeeds);
const accuracy = group => group.accuracy.toFixed(1) + (group.std === null ? "" : " ± " + group.std.toFixed(1));
function select(parent, key, options, change) {
  const box = element(element(parent, "label", (key.includes(".") ? key : HEADS[key] || key.replaceAll("_", " ")) + " "), "select", "", {id: "filter-" + key});
  element(box, "option", "all", {value: ""});
  for (const value of options) element(box, "option", value, {value: String(value)});
  box.addEventListener("change", () => change(box.value));
  return box;
}

function makeFilters() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const key of KEYS) {
    const box = select(at(MAIN.includes(key) ? "filters" : "more-filters"), key,
      unique(GROUPS.map(group => group[key])).sort(natural), value => { chosen[key] = value; draw(); });
    if (asked.has(key)) box.value = chosen[key] = asked.get(key);
  }
  const most = Math.max(1, ...GROUPS.map(group => group.seeds || 0));
  const fewest = select(at("filters"), "seeds", Array.from({length: most - 1}, (_, index) => index + 2),
    value => { fewestSeeds = Number(value) || 1; draw(); });
  for (const option of [...fewest.options].slice(1)) option.textContent = "at least " + option.value;
  fewest.parentElement.hidden = most < 2;
  const box = select(at("more-filters"), "sweep", unique(GROUPS.flatMap(group => group.sweeps)).sort(natural),
    value => { sweep = value; draw(); });
  if (asked.has("sweep")) box.value = sweep = asked.get("sweep");
  at("more").querySelector("summary").textContent =
    `other settings in which runs differ (${at("more-filters").childElementCount})`;
  at("more").hidden = GROUPS.length < 2;
  at("reset").hidden = GROUPS.length < 2;
  at("more").open = [...asked.keys()].some(key => key === "sweep" || KEYS.includes(key) && !MAIN.includes(key));
  for (const [key, words] of Object.entries(MEMORY)) {
    const choice = element(at("memory"), "label", words);
    choice.prepend(Object.assign(document.createElement("input"),
      {type: "radio", name: "memory", value: key, checked: key === memory}));
    choice.firstChild.addEventListener("change", () => { memory = key; draw(); });
  }
  at("reset").addEventListener("click", () => {
    for (const box of document.querySelectorAll("[id^=filter-]")) box.value = "";
    for (const key of KEYS) chosen[key] = "";
    sweep = "";
    fewestSeeds = 1;
    draw();
  });
  at("budget").addEventListener("input", () => drawAnswers(points(shownGroups())));
}

function front(groups) {
  const sorted = [...groups].sort((a, b) => a[memory] - b[memory] || b.accuracy - a.accuracy);
  let best = -1;
  return sorted.filter(group => group.accuracy > best && (best = group.accuracy, true));
}

function hover(group) {
  const kin = GROUPS.filter(other => other.data === group.data && other.method === group.method);
  const more = varying(kin).filter(key => MAIN.includes(key) || group[key] !== usual(tested(group.data), key));
  const lines = more.length ? [wrapped(more.map(key => safe(named(group, key))).join(", "), 42)] : [];
  return `<b>${safe(group.method)}</b>: ${accuracy(group)} % (${seeds(group)})<br>` +
    Object.keys(MEMORY).filter(key => group[key] !== null).map(key => `${megabytes(group[key])} MB ${MEMORY[key]}`)
      .concat(lines).join("<br>");
}

function traces(groups, best) {
  const kinds = unique(groups.map(group => group.method + "\n" + group.norm)).sort();
  return kinds.map(kind => {
    const mine = groups.filter(group => group.method + "\n" + group.norm === kind);
    return {name: safe(kind.replace("\n", ", ")), type: "scatter", mode: "markers", showlegend: false,
      x: mine.map(group => group[memory]), y: mine.map(group => group.accuracy), text: mine.map(hover),
      customdata: mine.map(group => group.id), hovertemplate: "%{text}<extra></extra>",
      marker: {size: mine.map(group => best.includes(group) ? 11 : 8), color: colour(mine[0].method),
        symbol: shape(mine[0].norm), opacity: mine.map(group => best.includes(group) ? 1 : 0.55),
        line: {width: 1, color: "white"}},
      error_y: {type: "data", array: mine.map(group => group.std), thickness: 1.5, width: 0}};
  });
}

// The ranges of a panel's axes. Points far below the front are left out of the view, and counted.
function ranges(mine, best, paper) {
  const x = [...mine.map(group => group[memory]), ...paper.x].map(Math.log10);
  const y = [...best.map(group => group.accuracy), ...paper.y];
  const all = [...mine.map(group => group.accuracy), ...paper.y];
  const high = Math.max(...all), span = Math.max(high - Math.min(...y), 4);
  const low = Math.max(Math.min(...all), Math.min(...y) - 0.8 * span) - 0.08 * span;
  return {x: [Math.min(...x) - 0.08, Math.max(...x) + 0.08], y: [low, high + 0.3 * span],
    below: mine.filter(group => group.accuracy < low).length};
}

// Powers of two; steps between them where the axis has few.
const ticks = ([from, to]) => to - from > 0.9 ? TICKS_MB : TICKS_MB.flatMap(mb => [mb, 1.25 * mb, 1.5 * mb, 1.75 * mb]);

function drawPanel(panel, mine, data) {
  const best = front(mine), paper = paperTrace(data), range = ranges(mine, best, paper);
  const title = panel.querySelector("h3");
  const settings = usualSettings(data);
  const words = [mine.length && settings ? "unless labelled: " + settings : "", paper.x.length ? "◇ the paper, by its own count of memory" : "",
    range.below ? `${range.below} point${range.below > 1 ? "s lie" : " lies"} below; a double click shows all` : ""].filter(Boolean);
  if (words.length) element(title, "small", " " + words.join("; "));
  const plot = panel.querySelector(".plot"), {t, r, b, l} = PANEL_MARGIN;
  const size = [plot.clientWidth - l - r, plot.clientHeight - t - b];
  Plotly.newPlot(plot, [{type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false, name: "front",
    line: {color: "#9aa5b1", dash: "dot", shape: "hv"}, x: best.map(group => group[memory]),
    y: best.map(group => group.accuracy)}, ...traces(mine, best), paper],
    {...LAYOUT, margin: PANEL_MARGIN, annotations: annotations(best, mine, placing(range, size)),
      xaxis: {type: "log", tickvals: ticks(range.x), title: {text: "memory, MB, " + MEMORY[GROUPS.length ? memory : "paper_mb"]}, range: range.x},
      yaxis: {title: {text: "accuracy, %"}, range: range.y}}, {...CONFIG, doubleClick: "autosize"});
  plot.on("plotly_relayout", event => {  // another part of the plot: its labels have other places
    const {xaxis, yaxis, _size} = plot._fullLayout, view = {x: xaxis.range, y: yaxis.range};
    if (!("annotations" in event)) Plotly.relayout(plot, {annotations: annotations(best, mine, placing(view, [_size.w, _size.h]))});
  });
  plot.on("plotly_click", event => {
    const id = event.points[0].customdata;
    if (id !== undefined) selectRuns(RUNS.filter(run => run.group === id));
  });
}

function paperTrace(data) {
  const mine = PAPER.filter(point => point.data === data);
  return {name: "the paper", type: "scatter", mode: "markers", showlegend: false,
    x: mine.map(point => point.mb), y: mine.map(point => point.accuracy),
    text: mine.map(point => `<b>the paper</b>: ${point.row}<br>${point.accuracy} % at ${point.mb} MB (its count)`),
    hovertemplate: "%{text}<extra></extra>",
    marker: {size: 9, symbol: "diamond-open", color: mine.map(point => colour(point.method))}};
}

function drawPanels(groups) {
  const known = points(groups);
  const size = data => known.filter(group => group.data === data).length;
  let sets = unique(known.map(group => group.data)).sort((a, b) => size(b) - size(a) || natural(a, b));
  if (!sets.length && !GROUPS.length) sets = unique(PAPER.map(point => point.data));
  const old = [...at("panels").querySelectorAll(".plot")];
  setTimeout(() => old.forEach(plot => Plotly.purge(plot)), 1000);  // not before a drawing in progress has ended
  at("panels").replaceChildren();
  const panels = sets.map(data => {  // all before the first plot: their number decides their width
    const panel = element(at("panels"), "div", "", {className: "panel"});
    element(panel, "h3", data);
    element(panel, "div", "", {className: "plot"});
    return panel;
  });
  at("front-note").hidden = !known.length;
  panels.forEach((panel, index) =>
    drawPanel(panel, known.filter(group => group.data === sets[index]), sets[index]));
  if (!sets.length) element(at("panels"), "p", "None of these runs has an accuracy and a memory.");
}

function drawLegend(groups) {
  at("legend").replaceChildren();
  const known = unique((GROUPS.length ? groups : PAPER).map(group => group.method)).filter(Boolean);
  for (const method of [...Object.keys(METHODS), ...methods].filter((name, index, all) => known.includes(name) && all.indexOf(name) === index)) {
    const item = element(at("legend"), "span", (GROUPS.length ? "● " : "◇ ") + method);
    item.style.color = colour(method);
    if (METHODS[method]) element(item, "small", " trains " + METHODS[method]);
  }
  for (const norm of unique(groups.map(group => group.norm)).sort()) {
    const item = element(at("legend"), "span", SIGNS[shape(norm)] + " " + norm);
    if (NORMS[norm]) element(item, "small", " " + NORMS[norm]);
  }
}
