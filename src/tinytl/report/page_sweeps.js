"use strict";
// The plots of the user's own sweeps.
// The layout of a plot with its legend below, whose height has room for it.
function withLegend(plot, names) {
  const inRow = Math.max(1, Math.floor((plot.clientWidth - 70) / (45 + 6.6 * Math.max(0, ...names.map(name => name.length)))));
  const bottom = 52 + 20 * Math.ceil(names.length / inRow);
  plot.style.height = 372 + bottom + "px";
  return {...LAYOUT, margin: {...LAYOUT.margin, b: bottom}, showlegend: names.length > 0,
    legend: {orientation: "h", x: 0, y: -48 / 360, yanchor: "top"}};
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
  }), {...withLegend(section.querySelector(".plot"), lines.length > 1 && lines.length < 25 ? lines : []),
    xaxis: {title: {text: HEADS[across] || across}, type: scale, ...(numeric(across) ? {tickvals: unique(sizes), ticktext: unique(sizes).map(String)} :
      {categoryorder: "array", categoryarray: unique(mine.map(group => safe(group[across]))).sort(natural)})},
    yaxis: {title: {text: validated ? "validation accuracy, %" : "accuracy, %"}}}, CONFIG);
}
