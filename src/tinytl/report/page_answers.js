"use strict";
// What the shown points answer: the best that fits a budget, and TinyTL beside full fine-tuning.
const deviation = (a, b) => a.std === null || b.std === null ? null : Math.hypot(a.std, b.std);

// "+3.1 (2.4 × its standard deviation)": the deviation of a difference of two seeds
function lead(best, next) {
  const difference = best.accuracy - next.accuracy, spread = deviation(best, next);
  if (spread === null) return `+${difference.toFixed(1)} (deviation unknown)`;
  if (spread === 0) return `+${difference.toFixed(1)} (no deviation)`;
  return `+${difference.toFixed(1)} (${(difference / spread).toFixed(1)} × its standard deviation)`;
}

function drawAnswers(known) {
  const sets = unique(known.map(group => group.data)).sort(natural);
  const budget = Number(at("budget").value) || Infinity;
  fillTable(at("best"), ["data", "most accurate that fits", "accuracy, %", "seeds", "memory, MB", "next method", "its accuracy, %",
    "its seeds", "lead, points"],
    sets.map(data => {
      const fitting = known.filter(group => group.data === data && group[memory] <= budget)
        .sort((a, b) => b.accuracy - a.accuracy);
      const best = fitting[0], next = best && fitting.find(group => group.method !== best.method);
      if (!best) return [data, `nothing: the least is ${leastOf(data, known)}`, ...Array(7).fill(null)];
      const beside = next ? [label(next), accuracy(next), next.seeds, lead(best, next)] : ["no other method fits", ...Array(3).fill(null)];
      return [data, label(best), accuracy(best), best.seeds, megabytes(best[memory]), ...beside];
    }));
  const rows = sets.map(data => equal(data, known)).filter(row => row);
  at("equal-part").hidden = !rows.length;
  fillTable(at("equal"), ["data", "accuracy that both reach, %", "TinyTL needs, MB", "TinyTL's setting", "full needs, MB",
    "full's setting", "TinyTL / full", "TinyTL's best, %", "full's best, %"], rows);
}

function leastOf(data, known) {
  const [least] = known.filter(group => group.data === data).sort((a, b) => a[memory] - b[memory]);
  return `${megabytes(least[memory])} MB, ${label(least)}`;
}

// The least memory with which each of the two reaches the most that both of them reach.
function equal(data, known) {
  const of = names => known.filter(group => group.data === data && names.includes(group.method))
    .sort((a, b) => b.accuracy - a.accuracy);
  const tinytl = of(["tinytl", "tinytl_l"]), full = of(["full"]);
  if (!tinytl.length || !full.length) return null;
  const level = Math.min(tinytl[0].accuracy, full[0].accuracy);
  const least = groups => groups.filter(group => group.accuracy >= level).sort((a, b) => a[memory] - b[memory])[0];
  const [a, b] = [least(tinytl), least(full)];
  const told = group => `${label(group)} (${accuracy(group)} %, ${seeds(group)})`;
  return [data, level.toFixed(1), megabytes(a[memory]), told(a), megabytes(b[memory]), told(b), (a[memory] / b[memory]).toFixed(2),
    accuracy(tinytl[0]), accuracy(full[0])];
}
