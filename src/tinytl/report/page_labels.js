"use strict";
// What points and settings are called, and where the labels of a panel's front lie.
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
  const seen = ([x, y]) => x >= 0 && y >= 0 && x <= place.size[0] && y <= place.size[1];
  return order.filter(group => seen(place(group))).flatMap(group => {
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

// group -> its place in px in a plot of that size which shows these ranges
function placing(range, [width, height]) {
  const share = (value, [from, to]) => (value - from) / (to - from);
  const place = group => [width * share(Math.log10(group[memory]), range.x), height * (1 - share(group.accuracy, range.y))];
  return Object.assign(place, {size: [width, height]});
}
