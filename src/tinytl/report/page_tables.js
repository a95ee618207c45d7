"use strict";
// Small helpers of the page, and tables: sortable, copied as Markdown or LaTeX, without constant columns.
const at = id => document.getElementById(id);
const number = value => Number.isInteger(value) ? String(value) : value.toPrecision(4).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
const megabytes = value => value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
const text = value => value === null || value === undefined ? "—" : typeof value === "number" ? number(value) : String(value);
const unique = values => [...new Set(values)];
const natural = (a, b) => a !== "" && b !== "" && !Number.isNaN(a - b) ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});

function element(parent, tag, content, attributes = {}) {
  const made = parent.appendChild(document.createElement(tag));
  made.textContent = content;
  return Object.assign(made, attributes);
}

function fillTable(table, columns, rows) {
  table.replaceChildren();
  const head = element(element(table, "thead", ""), "tr", "");
  for (const column of columns) element(head, "th", HEADS[column] || column.replaceAll("_", " "));
  const body = element(table, "tbody", "");
  for (const row of rows) {
    const line = element(body, "tr", "");
    for (const cell of row) {
      if (cell instanceof Node) line.append(cell);
      else element(line, "td", text(cell));
    }
  }
  makeSortable(table);
}

function makeSortable(table) {
  const missing = value => value === "—" || value === "";
  const isNumber = value => missing(value) || /^[-+]?[\d.]+(e[-+]?\d+)?( ± [\d.]+)?( MB| %)?$/i.test(value);
  const key = (row, index) => row.cells[index].textContent.trim();
  for (const cell of table.querySelectorAll("tbody td")) cell.classList.toggle("short", cell.textContent.length < 24);
  table.querySelectorAll("th").forEach((head, index) => {  // numbers are at the right, with their column's head
    const column = [...table.tBodies[0].rows].map(row => row.cells[index]), texts = column.map(cell => cell.textContent.trim());
    const numeric = texts.every(isNumber) && !texts.every(missing);
    for (const cell of [head, ...column]) cell.classList.toggle("number", numeric);
  });
  table.querySelectorAll("th").forEach((head, index) => head.addEventListener("click", () => {
    const order = head.dataset.order === "1" ? -1 : 1;
    table.querySelectorAll("th").forEach(other => delete other.dataset.order);
    head.dataset.order = order;
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {  // what is missing comes last in both orders
      const [x, y] = [key(a, index), key(b, index)];
      return missing(x) - missing(y) || order * (isNumber(x) && isNumber(y) ? parseFloat(x) - parseFloat(y) : natural(x, y));
    });
    table.tBodies[0].append(...rows);
  }));
}

const cells = row => [...row.cells].map(cell => cell.textContent.trim().replace(/\s+/g, " "));

function markdown(table) {
  const line = row => "| " + cells(row).map(cell => cell.replace(/\|/g, "\\|")).join(" | ") + " |\n";
  const [head, ...rows] = table.rows;
  return line(head) + "|" + " --- |".repeat(head.cells.length) + "\n" + rows.map(line).join("");
}

function latex(table) {
  const escape = cell => cell.replace(/\\/g, "\\textbackslash ").replace(/[&%$#_{}]/g, "\\$&")
    .replace(/~/g, "\\textasciitilde ").replace(/\^/g, "\\textasciicircum ").replace(/±/g, "$\\pm$").replace(/—/g, "--");
  const line = row => cells(row).map(escape).join(" & ") + " \\\\\n";
  const [head, ...rows] = table.rows;
  return `\\begin{tabular}{${"l".repeat(head.cells.length)}}\n\\toprule\n${line(head)}\\midrule\n` +
    rows.map(line).join("") + "\\bottomrule\n\\end{tabular}\n";
}

async function copy(button) {
  const table = button.closest("section").querySelector("table");
  const content = button.dataset.as === "latex" ? latex(table) : markdown(table);
  try {
    await navigator.clipboard.writeText(content);
  } catch {  // a page opened as a file may not be allowed to
    const area = element(document.body, "textarea", content);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "copied";
  setTimeout(() => button.textContent = "copy " + (button.dataset.as === "latex" ? "LaTeX" : "Markdown"), 1500);
}

document.querySelectorAll("section > details table").forEach(makeSortable);
document.querySelectorAll("button.copy").forEach(button => button.addEventListener("click", () => copy(button)));
