// Sorts, filters and draws what the page's data say. `render` draws all of the chosen group anew.
"use strict";
const groups = JSON.parse(document.getElementById("data").textContent);
const ROWS_DRAWN = 60, LABELLED = 40, SAMPLES_AT_ONCE = 10;
const state = { column: null, down: true, samples: SAMPLES_AT_ONCE };
const $ = (id) => document.getElementById(id);
const group = () => groups[+$("panel").value];
const metric = () => +$("metric").value;

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
  node.append(...children.filter((child) => child != null));
  return node;
}

function draw(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value }, text)));
  if (chosen != null) select.value = chosen;
}

// The arms that the filter leaves, in the order of the table.
function arms() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = group().arms.map((arm, index) => ({ ...arm, index }))
    .filter((arm) => words.every((word) => arm.label.toLowerCase().includes(word)));
  const key = (arm) => state.column === "label" ? arm.label : state.column === "runs" ? arm.runs : arm.cells[state.column][0];
  if (state.column == null) return found;
  const sign = state.down ? -1 : 1;
  return found.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x == null || y == null) return (x == null) - (y == null); // what is missing stands last either way
    return sign * (typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y);
  });
}

// "good" or "bad" for a significant difference of a metric that has a better side.
function judged(difference, direction) {
  if (!difference || !difference[3] || !direction) return "";
  return difference[0] * direction > 0 ? "good" : "bad";
}

function table() {
  const { metrics, before } = group(), side = +$("against").value, shown = arms();
  const columns = metrics.map((item, index) => index).filter((index) => $("all").checked || metrics[index].main);
  const head = (key, text, words) => {
    const sorted = state.column === key ? (state.down ? "descending" : "ascending") : "none";
    const button = make("button", { type: "button", title: words || null }, text + { descending: " ▼", ascending: " ▲", none: "" }[sorted]);
    button.onclick = () => {
      state.down = state.column === key ? !state.down : key !== "label" && !(metrics[key] && metrics[key].direction < 0);
      state.column = key;
      render();
      $("table").querySelector(`[data-key="${key}"] button`).focus();
    };
    return make("th", { scope: "col", "aria-sort": sorted, "data-key": key }, button);
  };
  const heads = [head("label", "Arm"), head("runs", "Runs"), ...columns.map((index) => head(index, metrics[index].label, metrics[index].words))];
  const first = make("tr", {}, make("th", { scope: "row" }, "before"), make("td"), ...columns.map((index) => make("td", {}, before[index][1])));
  const rows = shown.map((arm) => make("tr", {},
    make("th", { scope: "row", title: `runs: ${arm.folders}` }, `${arm.index + 1}. ${arm.label}`), make("td", {}, String(arm.runs)),
    ...columns.map((index) => {
      const cell = arm.cells[index], difference = cell[side];
      return make("td", {}, cell[1], difference && make("small", { class: judged(difference, metrics[index].direction) }, difference[4]));
    })));
  $("table").replaceChildren(make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, first, ...rows));
  $("count").textContent = `${shown.length} of ${group().arms.length} arms`;
}

function ticks(low, high, count) {
  const raw = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= raw);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(+(at * step).toPrecision(10));
  return found;
}

const shorten = (text, width) => { const most = Math.max(8, Math.floor(width / 6.6)); return text.length > most ? text.slice(0, most - 1) + "…" : text; };

function forest() {
  const { metrics } = group(), item = metrics[metric()], side = +$("against").value;
  const rows = arms().map((arm) => [arm, arm.cells[metric()][side]]).filter(([, cell]) => cell), shown = rows.slice(0, ROWS_DRAWN);
  const width = Math.max(260, $("forest").clientWidth), height = 34, bottom = shown.length * height + 8;
  const ends = shown.flatMap(([, cell]) => cell.slice(0, 3)).filter((value) => value != null).map((value) => value * item.scale).concat(0);
  const low = Math.min(...ends), high = Math.max(...ends), pad = (high - low || 1) * 0.04;
  const x = (value) => 4 + (width - 8) * (value - low + pad) / (high - low + 2 * pad);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${bottom + 24}`, height: bottom + 24, role: "img", "aria-label": `Differences of ${item.label}` });
  for (const at of ticks(low, high, Math.min(8, width / 90))) svg.append(
    draw("line", { class: at === 0 ? "zero" : "grid", x1: x(at), x2: x(at), y1: 0, y2: bottom }),
    draw("text", { class: "soft", x: x(at), y: bottom + 16, "text-anchor": "middle" }, String(at)));
  shown.forEach(([arm, cell], row) => {
    const y = row * height + 22, [mean, from, to] = cell.map((value) => value * item.scale);
    const mark = draw("g", { class: judged(cell, item.direction) }, draw("title", {}, `${arm.label}: ${cell[4]}`));
    if (cell[1] != null && cell[2] != null) mark.append(draw("line", { class: "bar", x1: x(from), x2: x(to), y1: y, y2: y }));
    mark.append(draw("circle", { class: "point", cx: x(mean), cy: y, r: 5 }));
    svg.append(draw("text", { x: 0, y: y - 9 }, shorten(`${arm.index + 1}. ${cell[4]}  ${arm.label}`, width)), mark);
  });
  $("forest").replaceChildren(shown.length ? svg : make("p", {}, "No arm has such a difference."));
  const left = rows.length > shown.length ? ` ${shown.length} of ${rows.length} arms are drawn: filter or sort for others.` : "";
  const colours = item.direction ? " Coloured where it is significant: green for the better, red for the worse." : "";
  $("forest-words").textContent = `${item.label}: difference from ${side === 2 ? "before training" : "arm 1"}.${colours}${left}`;
}

// Arms that no other one beats in the metric without more of the cost.
function front(points, direction) {
  const sorted = [...points].sort((a, b) => a.x - b.x || direction * (b.y - a.y));
  let best = -Infinity;
  return sorted.filter((point) => direction * point.y > best && ((best = direction * point.y), true));
}

function scatter(name, across, up, pareto) {
  const { metrics, before } = group(), [ix, iy] = [across, up].map((key) => metrics.findIndex((item) => item.name === key));
  if (ix < 0 || iy < 0 || ix === iy) return null;
  const [mx, my] = [metrics[ix], metrics[iy]];
  const points = arms().map((arm) => ({ arm, x: arm.cells[ix][0], y: arm.cells[iy][0] })).filter((point) => point.x != null && point.y != null)
    .map((point) => ({ ...point, x: point.x * mx.scale, y: point.y * my.scale }));
  if (!points.length) return null;
  const start = before[ix][0] == null || before[iy][0] == null ? null : { x: before[ix][0] * mx.scale, y: before[iy][0] * my.scale };
  const all = start ? [...points, start] : points, box = { left: 44, right: 14, top: 14, bottom: 40 }, width = 360, height = 280;
  const scale = (values, from, to) => {
    const low = Math.min(...values), high = Math.max(...values), pad = (high - low || Math.abs(high) || 1) * 0.08;
    return [(value) => from + (to - from) * (value - low + pad) / (high - low + 2 * pad), ticks(low - pad, high + pad, 5)];
  };
  const [x, xs] = scale(all.map((point) => point.x), box.left, width - box.right), [y, ys] = scale(all.map((point) => point.y), height - box.bottom, box.top);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name });
  for (const at of xs) svg.append(draw("line", { class: "grid", x1: x(at), x2: x(at), y1: box.top, y2: height - box.bottom }), draw("text", { class: "soft", x: x(at), y: height - 24, "text-anchor": "middle" }, String(at)));
  for (const at of ys) svg.append(draw("line", { class: "grid", x1: box.left, x2: width - box.right, y1: y(at), y2: y(at) }), draw("text", { class: "soft", x: box.left - 5, y: y(at) + 4, "text-anchor": "end" }, String(at)));
  svg.append(draw("text", { class: "soft", x: width / 2, y: height - 6, "text-anchor": "middle" }, mx.label));
  const best = pareto ? front(points, my.direction || 1) : points;
  if (pareto) svg.append(draw("polyline", { class: "front", points: best.map((point) => `${x(point.x)},${y(point.y)}`).join(" ") }));
  if (start) svg.append(draw("circle", { class: "start", cx: x(start.x), cy: y(start.y), r: 6 }, draw("title", {}, "before training")));
  for (const point of points) {
    const words = `${point.arm.index + 1}. ${point.arm.label}: ${my.label} ${point.arm.cells[iy][1]}, ${mx.label} ${point.arm.cells[ix][1]}`;
    svg.append(draw("circle", { class: best.includes(point) ? "dot" : "dot off", cx: x(point.x), cy: y(point.y), r: 5 }, draw("title", {}, words)));
    if (points.length <= LABELLED) svg.append(draw("text", { class: "soft", x: x(point.x) + 7, y: y(point.y) - 5 }, String(point.arm.index + 1)));
  }
  const words = pareto ? ` The line joins the arms that none beats with less: ${best.map((point) => point.arm.index + 1).slice(0, 30).join(", ")}.` : "";
  return make("figure", {}, make("h3", {}, name), svg, make("figcaption", {}, `Up: ${my.label}. Numbers are those of the table; the ring is the model before training.${words}`));
}

function trade() {
  const { metrics, of } = group(), gain = metrics[metric()].name;
  const found = [
    scatter(`Information about the ${of} and about the request`, "mi/prompt/nats", "mi/base/nats", false),
    scatter("The metric against the KL divergence", "response/kl_to_base", gain, true),
    scatter("The metric against the length of responses", "response/tokens", gain, true),
  ].filter(Boolean);
  $("trade").replaceChildren(...(found.length ? found : [make("p", {}, "These runs have no such metrics.")]));
}

// Keys that differ between arms, with their values.
function swept() {
  const keys = new Map();
  for (const arm of group().arms) for (const key of Object.keys(arm.keys)) keys.set(key, new Set());
  for (const [key, values] of keys) for (const arm of group().arms) values.add(arm.keys[key] ?? "default");
  return new Map([...keys].filter(([, values]) => values.size > 1));
}

function heat() {
  const keys = swept(), item = group().metrics[metric()], [down, across] = [$("heat-rows").value, $("heat-columns").value];
  $("heat-section").hidden = keys.size < 2;
  if (keys.size < 2 || down === across) return $("heat").replaceChildren();
  const order = (key) => [...keys.get(key)].sort((a, b) => a - b || a.localeCompare(b, undefined, { numeric: true }));
  const at = (row, column) => arms().filter((arm) => (arm.keys[down] ?? "default") === row && (arm.keys[across] ?? "default") === column && arm.cells[metric()][0] != null);
  const cells = order(down).map((row) => [row, order(across).map((column) => at(row, column))]);
  const mean = (found) => found.reduce((sum, arm) => sum + arm.cells[metric()][0], 0) / found.length;
  const means = cells.flatMap(([, row]) => row.filter((found) => found.length).map(mean)), low = Math.min(...means), high = Math.max(...means);
  const shade = (found) => {
    if (!found.length) return make("td", {}, "–");
    const share = Math.round(55 * (mean(found) - low) / (high - low || 1));
    const text = found.length === 1 ? found[0].cells[metric()][1] : `${+(mean(found) * item.scale).toPrecision(4)} (mean of ${found.length} arms)`;
    return make("td", { style: `background: color-mix(in srgb, var(--accent) ${share}%, var(--card))`, title: found.map((arm) => arm.label).join("; ") }, text);
  };
  $("heat").replaceChildren(
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, `${down} \\ ${across}`), ...order(across).map((value) => make("th", { scope: "col" }, value)))),
    make("tbody", {}, ...cells.map(([row, found]) => make("tr", {}, make("th", { scope: "row" }, row), ...found.map(shade)))));
}

function marked(text, word) {
  const node = make("p", { class: "text" });
  if (text == null) return make("p", { class: "note" }, "not on this machine");
  if (!word) { node.textContent = text; return node; }
  let at = 0;
  for (let found; (found = text.toLowerCase().indexOf(word, at)) >= 0; at = found + word.length)
    node.append(text.slice(at, found), make("mark", {}, text.slice(found, found + word.length)));
  node.append(text.slice(at));
  return node;
}

function responses() {
  const { samples, arms: every } = group();
  $("pick").hidden = !samples;
  $("more").hidden = true;
  if (!samples) {
    $("found").textContent = "The responses lie in the runs' cache (paths.cache), which is not on this machine.";
    return $("responses").replaceChildren();
  }
  const picked = [...document.querySelectorAll(".side-arm")].map((select) => select.value).filter(Boolean), sides = ["before", ...new Set(picked)];
  const word = $("search").value.trim().toLowerCase(), show = $("show").value;
  const value = (row, side) => row.values[0] && row.values[0][side];
  const direction = (group().metrics.find((item) => item.name === samples.metrics[0]?.name) || {}).direction || 1;
  const tests = {
    all: () => true,
    differ: (row) => new Set(sides.map((side) => value(row, side))).size > 1,
    better: (row) => sides.some((side) => direction * (value(row, side) - value(row, "before")) > 0),
    worse: (row) => sides.some((side) => direction * (value(row, side) - value(row, "before")) < 0),
  };
  const found = samples.rows.filter(tests[show]).filter((row) => !word || [row.prompt, row.context, ...sides.map((side) => row.texts[side])]
    .some((text) => text && text.toLowerCase().includes(word)));
  const left = samples.rows.length < samples.all ? ` (of ${samples.all}; the others do not fit into the page)` : "";
  $("found").textContent = `${found.length} of ${samples.rows.length} examples${left}. Of each arm its first run; “better” and “differ” go by ${samples.metrics[0]?.label ?? "nothing"}.`;
  $("responses").replaceChildren(...found.slice(0, state.samples).map((row) => make("article", { class: "sample" },
    make("h3", {}, "Request"), marked(row.prompt, word),
    row.context == null ? null : make("details", {}, make("summary", {}, "Context"), marked(row.context, word)),
    make("details", {}, make("summary", {}, "Reference"), marked(row.reference, "")),
    make("div", { class: "sides" }, ...sides.map((side) => make("div", { class: "side" },
      make("h4", {}, side === "before" ? "before training" : `${+side + 1}. ${every[side].label}`),
      make("p", { class: "note" }, samples.metrics.map((item, index) => `${item.label} ${row.values[index][side] == null ? "–" : +row.values[index][side].toFixed(3)}`).join("; ")),
      marked(row.texts[side], word)))))));
  $("more").hidden = found.length <= state.samples;
}

function render() { table(); forest(); trade(); heat(); }

function choose() {
  const { metrics, decisive, arms: every, samples } = group();
  state.column = null;
  options($("metric"), metrics.map((item, index) => [index, item.label]), decisive ?? 0);
  const keys = [...swept().keys()];
  options($("heat-rows"), keys.map((key) => [key, key]), keys[0]);
  options($("heat-columns"), keys.map((key) => [key, key]), keys[1]);
  const known = samples ? every.map((arm, index) => [index, `${index + 1}. ${arm.label}`]).filter(([index]) => index in (samples.rows[0]?.texts ?? {})) : [];
  document.querySelectorAll(".side-arm").forEach((select, place) => options(select, [["", "–"], ...known], known[place]?.[0] ?? ""));
  state.samples = SAMPLES_AT_ONCE;
  render();
  responses();
}

$("panel").onchange = choose;
for (const id of ["metric", "against", "all", "heat-rows", "heat-columns"]) $(id).onchange = render;
$("filter").oninput = render;
for (const select of [$("show"), ...document.querySelectorAll(".side-arm")]) select.onchange = () => { state.samples = SAMPLES_AT_ONCE; responses(); };
$("search").oninput = () => { state.samples = SAMPLES_AT_ONCE; responses(); };
$("more").onclick = () => { state.samples += SAMPLES_AT_ONCE; responses(); };
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; forest(); } });
choose();
