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
  hoverlabel: {align: "left"}, hovermode: "closest"};

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
const seeds = group => group.seeds + (group.seeds > 1 ? " seeds" : " seed");
const SAY = {
  resolution: value => value + " px", batch_size: value => "batch " + value, epochs: value => value + (value === "1" ? " epoch" : " epochs"),
  blocks: value => value === "all" ? "all blocks" : `last ${value} blocks`, budget_mb: value => value === "none" ? "no budget" : `budget ${value} MB`,
  "engine.micro_batch": value => value === "none" ? "whole batch" : "micro-batch " + value,
  "data.stream": value => value === "True" ? "stream" : "no stream", "data.drift": value => value === "True" ? "drift" : "no drift"};
const named = (group, key) => ["method", "norm", "data", "model", "engine"].includes(key) ? group[key] :
  SAY[key] ? SAY[key](group[key]) : key.startsWith("lite_residual.") ? `${key.replace(/[_.]/g, " ")} ${group[key]}` : key + "=" + group[key];
// The settings, apart from `without`, in which a group's kin differ.
const varying = (groups, without = []) => KEYS.filter(key => !without.includes(key) &&
  unique(groups.map(group => group[key])).length > 1);
// Those that no other one decides: of two that always change together the first.
function independent(groups) {
  const kept = [];
  for (const key of varying(groups)) {
    const decides = other => unique(groups.map(group => group[other] + "\n" + group[key])).length ===
      unique(groups.map(group => group[other])).length;
    if (!kept.some(decides)) kept.push(key);
  }
  return kept;
}
// A group's values of the keys; of the rarer settings only where they are not the usual ones of `groups`.
function labeller(groups, keys) {
  const usually = Object.fromEntries(keys.map(key => [key, MAIN.includes(key) ? null : usual(groups, key)]));
  return group => keys.filter(key => group[key] !== usually[key]).map(key => named(group, key)).join(", ") || group.method;
}

function usual(groups, key) {
  const count = value => groups.filter(group => group[key] === value).length;
  return unique(groups.map(group => group[key])).sort((a, b) => count(b) - count(a))[0];
}

// The settings that labels name where they are not the usual ones of the data set.
const labelled = () => KEYS.filter(key => (MAIN.includes(key) && !["data", "method", "engine"].includes(key)) ||
  (key === "engine" && memory === "measured_mb") || ["blocks", "epochs", "engine.micro_batch", "quantize"].includes(key) ||
  ["data.stream", "data.drift"].includes(key) || /^lite_residual.(kernel|groups|expansion|pooling|upsampling)/.test(key));
const tested = data => GROUPS.filter(group => group.data === data && group.accuracy !== null);

// What sets a point apart from the usual one of its data set: "tinytl, gn, 176 px".
function label(group) {
  const kin = tested(group.data);
  return [group.method, ...labelled().filter(key => group[key] !== usual(kin, key)).map(key => named(group, key))].join(", ");
}

// "bn_frozen, 112 px, batch 8": what holds for a point whose label does not say otherwise
function usualSettings(data) {
  const kin = tested(data), usually = Object.fromEntries(labelled().map(key => [key, usual(kin, key)]));
  return ["model", "norm", "resolution", "batch_size", "epochs", "engine"].filter(key => key in usually)
    .map(key => named(usually, key)).join(", ");
}

function select(parent, key, options, change) {
  const box = element(element(parent, "label", key.replace("_", " ") + " "), "select", "", {id: "filter-" + key});
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
  const more = varying(kin).map(key => safe(named(group, key)));
  const lines = [];
  for (let i = 0; i < more.length; i += 3) lines.push(more.slice(i, i + 3).join(", "));
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

const holds = ([left, top, right, bottom], [x, y]) => left < x && x < right && top < y && y < bottom;
const along = ([x, y], [dx, dy]) => Array.from({length: 15}, (_, step) => [x + dx * (step + 2) / 18, y + dy * (step + 2) / 18]);
const turn = ([ax, ay], [bx, by], [cx, cy]) => Math.sign((bx - ax) * (cy - ay) - (by - ay) * (cx - ax));
const cross = ([a, b], [c, d]) => turn(a, b, c) !== turn(a, b, d) && turn(c, d, a) !== turn(c, d, b);

// Labels of the front, placed from its one end or from the other, whichever needs the shorter lines.
function annotations(best, all, place) {
  const far = labels => labels.reduce((sum, {ax, ay}) => sum + Math.hypot(ax, ay), 400 * (best.length - labels.length));
  return [best, [...best].reverse()].map(order => placed(order, all, place)).sort((a, b) => far(a) - far(b))[0];
}

// Each label at the first place around its point where it lies over no other label and on no point, and its
// line, if possible, crosses no other. One without a place is left out.
function placed(order, all, place) {
  const lines = [];
  const dots = all.map(group => place(group)), boxes = dots.map(([x, y]) => [x - 4, y - 4, x + 4, y + 4]);
  const free = box => boxes.every(other => box[2] < other[0] || other[2] < box[0] || box[3] < other[1] || other[3] < box[1]);
  const inside = (box, [width, height]) => box[0] > 0 && box[2] < width + 12 && box[1] > -24 && box[3] < height;
  return order.flatMap(group => {
    const [x, y] = place(group), words = safe(label(group)), wide = 6 * words.length;
    const around = [16, 30, 46, 64, 84, 106, 130, 156, 190].flatMap(far => [12, 36, 60, 90, 130].flatMap(aside =>
      [[-aside, -far], [aside, far], [aside, -far], [-aside, far]]));
    const box = ([dx, dy]) => [x + dx - (dx < 0 ? wide : 0), y + dy - 8, x + dx + (dx < 0 ? 0 : wide), y + dy + 8];
    const line = ([dx, dy]) => [[x, y], [x + dx, y + dy]];
    const clear = at => lines.every(([start, end, other]) => !cross(line(at), [start, end]) &&
      !along(start, [end[0] - start[0], end[1] - start[1]]).some(point => holds(box(at), point)) &&
      !along([x, y], at).some(point => holds(other, point)));
    const possible = around.filter(at => free(box(at)) && inside(box(at), place.size));
    const found = possible.find(clear) || possible[0];
    if (!found) return [];
    const [ax, ay] = found;
    boxes.push(box(found));
    lines.push([...line(found), box(found)]);
    return {x: Math.log10(group[memory]), y: group.accuracy, text: words, showarrow: true, arrowhead: 0, arrowwidth: 0.6,
      arrowcolor: "#9aa5b1", ax, ay, xanchor: ax < 0 ? "right" : "left", borderpad: 0,
      font: {size: 10.5, color: colour(group.method)}};
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
  const words = [mine.length ? "unless labelled: " + usualSettings(data) : "", paper.x.length ? "◇ the paper, by its own count of memory" : "",
    range.below ? `${range.below} point${range.below > 1 ? "s lie" : " lies"} below; a double click shows all` : ""].filter(Boolean);
  if (words.length) element(title, "small", " " + words.join("; "));
  const plot = panel.querySelector(".plot"), {t, r, b, l} = PANEL_MARGIN;
  const [width, height] = [plot.clientWidth - l - r, plot.clientHeight - t - b];
  const share = (value, [from, to]) => (value - from) / (to - from);
  const place = group => [width * share(Math.log10(group[memory]), range.x), height * (1 - share(group.accuracy, range.y))];
  place.size = [width, height];
  Plotly.newPlot(plot, [{type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false, name: "front",
    line: {color: "#9aa5b1", dash: "dot", shape: "hv"}, x: best.map(group => group[memory]),
    y: best.map(group => group.accuracy)}, ...traces(mine, best), paper],
    {...LAYOUT, margin: PANEL_MARGIN, annotations: annotations(best, mine, place),
      xaxis: {type: "log", tickvals: ticks(range.x), title: {text: "memory, MB, " + MEMORY[GROUPS.length ? memory : "paper_mb"]}, range: range.x},
      yaxis: {title: {text: "accuracy, %"}, range: range.y}}, {...CONFIG, doubleClick: "autosize"});
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
