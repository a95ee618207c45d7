"use strict";
// What the shown points answer: the best that fits a budget, and TinyTL beside full fine-tuning.
const deviation = (a, b) => a.std === null || b.std === null ? null : Math.hypot(a.std, b.std);

// "+3.1 (2.4 × its standard deviation)": the deviation of a difference of two seeds
function lead(best, next) {
  const difference = best.accuracy - next.accuracy, spread = deviation(best, next);
  if (spread === null) return `+${difference.toFixed(1)} (one seed: deviation not known)`;
  if (spread === 0) return `+${difference.toFixed(1)} (no deviation)`;
  return `+${difference.toFixed(1)} (${(difference / spread).toFixed(1)} × its standard deviation)`;
}

function drawAnswers(known) {
  const sets = unique(known.map(group => group.data)).sort(natural);
  const budget = Number(at("budget").value) || Infinity;
  fillTable(at("best"), ["data", "best that fits", "accuracy", "seeds", "MB", "next method", "accuracy ", "lead, points"],
    sets.map(data => {
      const fitting = known.filter(group => group.data === data && group[memory] <= budget)
        .sort((a, b) => b.accuracy - a.accuracy);
      const best = fitting[0], next = best && fitting.find(group => group.method !== best.method);
      if (!best) return [data, "nothing", ...Array(6).fill(null)];
      return [data, label(best), accuracy(best), best.seeds, megabytes(best[memory]), next ? label(next) : null,
        next ? accuracy(next) : null, next ? lead(best, next) : null];
    }));
  const rows = sets.map(data => equal(data, known)).filter(row => row);
  at("equal-part").hidden = !rows.length;
  fillTable(at("equal"), ["data", "accuracy that both reach", "TinyTL needs", "full needs", "TinyTL at most",
    "full at most"], rows);
}

// The least memory with which each of the two reaches the most that both of them reach.
function equal(data, known) {
  const of = names => known.filter(group => group.data === data && names.includes(group.method))
    .sort((a, b) => b.accuracy - a.accuracy);
  const tinytl = of(["tinytl", "tinytl_l"]), full = of(["full"]);
  if (!tinytl.length || !full.length) return null;
  const level = Math.min(tinytl[0].accuracy, full[0].accuracy);
  const least = groups => groups.filter(group => group.accuracy >= level).sort((a, b) => a[memory] - b[memory])[0];
  const told = group => `${megabytes(group[memory])} (${accuracy(group)} %: ${label(group)})`;
  return [data, level.toFixed(1) + " %", told(least(tinytl)), told(least(full)), accuracy(tinytl[0]), accuracy(full[0])];
}
