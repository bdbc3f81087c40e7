"use strict";
// The page's script: sorting, charts with uPlot, sliders, the filter, copying and the theme.
const root = document.documentElement;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
const data = (figure) => JSON.parse(figure.querySelector("script").textContent);
const say = (text) => { document.getElementById("said").textContent = text; };

function shown(value) {
  if (value == null) return "–";
  if (value > 9e38) return "not finite";
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(+value.toPrecision(4));
}

// ---- tables: a click on a column's name sorts by it, numbers by their exact values
function key(cell) {
  const text = cell.dataset.v ?? cell.textContent.trim().replaceAll(",", "");
  const value = text === "" ? NaN : Number(text);
  return Number.isNaN(value) ? text : value;
}

function compare(a, b) {
  const missing = (value) => value === "–";
  if (missing(a) !== missing(b)) return missing(a) ? 1 : -1;
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(button) {
  const head = button.closest("th"), body = head.closest("table").tBodies[0];
  const column = head.cellIndex, up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
  rows.sort(([a], [b]) => (up ? compare(a, b) : compare(b, a)));
  body.append(...rows.map(([, row]) => row));
}

// ---- charts
const plots = new Map();

function bands(plot, lines) {
  const context = plot.ctx;
  lines.forEach((line, number) => {
    if (!line.low || !plot.series[number + 1].show) return;
    const points = plot.data[0].map((x, i) => [x, line.low[i], line.high[i]]).filter((p) => p[1] != null);
    const place = ([x, y]) => [plot.valToPos(x, "x", true), plot.valToPos(y, "y", true)];
    context.save();
    context.beginPath();
    context.rect(plot.bbox.left, plot.bbox.top, plot.bbox.width, plot.bbox.height);
    context.clip();
    context.beginPath();
    for (const [x, low] of points) context.lineTo(...place([x, low]));
    for (const [x, , high] of points.reverse()) context.lineTo(...place([x, high]));
    context.globalAlpha = 0.13;
    context.fillStyle = colour("c" + (line.colour ?? number % 8));
    context.fill();
    context.restore();
  });
}

function interval(line, i) {
  return line.low?.[i] == null ? "" : ` (${shown(line.low[i])} to ${shown(line.high[i])})`;
}

function options(spec, width) {
  const log = spec.log ?? "", names = spec.names;
  // Of a logarithmic axis powers of ten alone have lines.
  const whole = (plot, splits) => splits.map((value) => (!log || Math.abs(Math.log10(value) % 1) < 1e-9 ? value : null));
  const line = { stroke: () => colour("line"), width: 1 }, axis = { stroke: () => colour("text"), grid: line, ticks: line };
  const values = (plot, splits) => splits.map((value) => (value == null ? "" : shown(value)));
  const x = { ...axis, label: spec.xlabel, values };
  if (names) Object.assign(x, { values: (plot, splits) => splits.map((i) => names[i] ?? ""), splits: () => spec.x, rotate: -50, size: 90 });
  if (log === "xy") Object.assign(x, { splits: () => spec.x, filter: (plot, splits) => splits });
  const beside = log === "xy" ? (plot, low, high) => [low / 1.1, high * 1.1] : undefined;
  const top = spec.top;
  const range = top && log !== "y" ? (plot, low, high) => [Math.min(low, 0), Math.min(high, top) || 1] : undefined;
  return {
    width, height: 300, padding: [12, 16, 0, 0],
    scales: { x: { time: false, distr: log === "xy" ? 3 : 1, range: beside }, y: { distr: log ? 3 : 1, range } },
    axes: [x, { ...axis, label: spec.ylabel, size: 64, values, grid: { ...line, filter: whole } }],
    cursor: { drag: { x: false, y: false } },
    hooks: { draw: [(plot) => bands(plot, spec.series)] },
    series: [
      { label: spec.xlabel, value: (plot, value) => (value == null ? "–" : names ? names[value] : shown(value)) },
      ...spec.series.map((line, number) => ({
        label: line.label, show: !line.hidden, spanGaps: true, width: 2, points: { size: 5 },
        dash: line.dash ? [6, 4] : undefined, stroke: colour("c" + (line.colour ?? number % 8)),
        value: (plot, value, series, i) => (value == null ? "–" : shown(value) + interval(line, i)),
      })),
    ],
  };
}

function draw(figure, width) {
  const place = figure.querySelector(".plot"), spec = data(figure), slider = figure.querySelector(".frames");
  const room = width ?? Math.min(place.clientWidth, 860);
  if (!room) return; // in a closed part: drawn when that opens
  plots.get(figure)?.destroy();
  // A training's val and train lines have one colour.
  if (spec.series.some((line) => line.dash) && spec.xlabel === "epoch") spec.series.forEach((line, i) => { line.colour = (i >> 1) % 8; });
  const lines = spec.frames ? spec.frames[slider ? +slider.value : 0].values : spec.series.map((line) => line.values);
  const plot = new uPlot(options(spec, room), [spec.x, ...lines], place);
  plots.set(figure, plot);
  all("canvas", place).forEach((canvas) => { canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", place.getAttribute("aria-label")); });
  all(".u-legend tr:not(:first-child) th", place).forEach((head) => {
    head.tabIndex = 0;
    head.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); head.click(); } });
  });
  let at = -1;
  place.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target !== place) return;
    event.preventDefault();
    at = Math.min(Math.max(at + step, 0), spec.x.length - 1);
    plot.setCursor({ left: plot.valToPos(spec.x[at], "x"), top: 10 });
  };
  figure.dataset.drawn = lines.length;
}

function drawAll(width) {
  for (const figure of all("figure.chart")) draw(figure, figure.querySelector(".plot").clientWidth ? width : undefined);
}

function step(slider) {
  const figure = slider.closest("figure"), frame = data(figure).frames[slider.value];
  figure.querySelector("output").textContent = frame.name;
  slider.setAttribute("aria-valuetext", frame.name);
  draw(figure);
}

// ---- 1.3: a photo at a dose
function dose(figure) {
  const spec = data(figure);
  for (const slider of all("input", figure)) {
    const kind = slider.dataset.kind, i = +slider.value, told = shown(spec[kind][i]);
    slider.nextElementSibling.textContent = told;
    slider.setAttribute("aria-valuetext", told);
    all(`td[data-kind=${kind}]`, figure).forEach((cell) => {
      const line = spec.losses[cell.parentNode.cells[0].textContent][kind];
      cell.textContent = shown(line.relative[i]) + interval(line, i);
    });
    for (const copy of all(`.copy-at[data-kind=${kind}]`, figure)) {
      const { first, of } = copy.dataset;
      copy.style.backgroundSize = `${of * 100}% 100%`;
      copy.style.backgroundPosition = `${(i ? (+first + i) / (of - 1) : 0) * 100}% 0`;
      copy.setAttribute("aria-label", `The photo, ${kind === "shift" ? `moved by ${told} px` : `under noise of sigma ${told}`}`);
    }
  }
}

// ---- copying and the theme
async function copy(button) {
  const text = button.parentNode.querySelector("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not from a file in every browser
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say("copied: " + text);
}

function theme(name) {
  root.dataset.theme = name;
  drawAll();
}

const isDark = () => getComputedStyle(root).colorScheme === "dark";
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.closest(".sortable thead")) sort(button);
  if (button?.matches(".copy")) copy(button);
  if (button?.id === "theme") theme(isDark() ? "light" : "dark");
});
document.addEventListener("input", ({ target }) => {
  if (target.matches(".frames")) step(target);
  if (target.closest(".doses")) dose(target.closest(".doses"));
  const filter = target.closest(".filter");
  for (const figure of filter ? all("figure[data-kind=right], figure[data-kind=wrong]", filter.parentNode) : []) figure.hidden = !["all", figure.dataset.kind].includes(target.value);
});
document.addEventListener("toggle", ({ target }) => { if (target.open) all("figure.chart:not([data-drawn])", target).forEach((figure) => draw(figure)); }, true);
let waiting, before;
addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawAll, 150); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());
addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; drawAll(640); });
addEventListener("afterprint", () => { if (before) root.dataset.theme = before; else delete root.dataset.theme; drawAll(); });
drawAll();
all(".doses").forEach(dose);
