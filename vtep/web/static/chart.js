// Plots of rates over the last five minutes, as SVG.

import { h, s, setAttribute, setText } from "./dom.js";
import { UNKNOWN } from "./format.js";
import { GAP_S, WINDOW_S, runs } from "./rates.js";

const HEIGHT = 132;
const TOP = 16;
const BOTTOM = 18;

export function niceMaximum(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 3, 5, 10].find((each) => each * power >= value * 0.999999);
  return step * power;
}

// A path through the runs; a sample alone between two gaps is a dot, by a line of no length.
function line(parts, x, y) {
  return parts
    .map((run) => {
      const points = run.map(({ t, value }) => `${x(t).toFixed(1)} ${y(value).toFixed(1)}`);
      return points.length === 1 ? `M${points[0]}h0` : `M${points.join("L")}`;
    })
    .join("");
}

function area(parts, x, y) {
  return parts
    .filter((run) => run.length > 1)
    .map((run) => {
      const points = run.map(({ t, value }) => `L${x(t).toFixed(1)} ${y(value).toFixed(1)}`);
      return `M${x(run[0].t).toFixed(1)} ${y(0)}${points.join("")}L${x(run.at(-1).t).toFixed(1)} ${y(0)}Z`;
    })
    .join("");
}

let number = 0;

export class Chart {
  #samples = [];
  #now = 0;
  #cursor = null; // The time of the sample whose values are shown.
  #lines;

  // `lines`: [{field, label, name}], where name is a class of the style sheet.
  constructor(title, format, lines) {
    this.title = title;
    this.format = format;
    this.#lines = lines.map((each) => ({
      ...each,
      area: s("path", { class: `area ${each.name}` }),
      line: s("path", { class: `line ${each.name}` }),
      dot: s("circle", { class: `dot ${each.name}`, r: 3.5 }),
      value: h("b"),
    }));
    number += 1;
    const heading = h("h4", { id: `chart-${number}` }, title);
    const legend = h("p", { class: "chart-legend" });
    for (const each of this.#lines) {
      legend.append(h("span", { class: `key ${each.name}` }, h("i", { "aria-hidden": "true" }), `${each.label} `, each.value));
    }
    this.when = h("span", { class: "when muted" });
    legend.append(this.when);
    this.grid = s("g", { class: "grid" });
    this.rule = s("line", { class: "rule" });
    this.svg = s("svg", { "aria-hidden": "true" });
    this.svg.append(this.grid, ...this.#lines.map((each) => each.area), ...this.#lines.map((each) => each.line));
    // Above the lines, which would cross the figures out.
    this.labels = s("g", { class: "grid" });
    this.svg.append(this.labels, this.rule, ...this.#lines.map((each) => each.dot));
    this.spoken = h("p", { class: "visually-hidden", "aria-live": "polite" });
    this.plot = h("div", { class: "plot", tabindex: "0", role: "img" }, this.svg);
    this.element = h("div", { class: "chart" }, h("div", { class: "chart-head" }, heading, legend), this.plot, this.spoken);
    this.plot.addEventListener("pointermove", (event) => this.#point(event));
    this.plot.addEventListener("pointerdown", (event) => this.#point(event));
    this.plot.addEventListener("pointerleave", () => this.#move(null));
    this.plot.addEventListener("blur", () => this.#move(null));
    this.plot.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#draw()).observe(this.plot);
  }

  update(samples, now) {
    this.#samples = samples;
    this.#now = now;
    this.#draw();
  }

  #x(width) {
    return (t) => width - ((this.#now - t) / WINDOW_S) * width;
  }

  #point(event) {
    const box = this.plot.getBoundingClientRect();
    const t = this.#now - ((box.right - event.clientX) / box.width) * WINDOW_S;
    let nearest = null;
    for (const sample of this.#samples) {
      if (nearest === null || Math.abs(sample.t - t) < Math.abs(nearest.t - t)) nearest = sample;
    }
    // Where there is no data, there is no value.
    this.#move(nearest !== null && Math.abs(nearest.t - t) <= GAP_S ? nearest.t : null);
  }

  #key(event) {
    const at = this.#samples.findIndex(({ t }) => t === this.#cursor);
    const last = this.#samples.length - 1;
    const from = at < 0 ? last + 1 : at;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.#move(null);
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.#move(this.#samples[Math.max(0, Math.min(last, to))].t);
    setText(this.spoken, `${this.when.textContent}: ${this.#said()}`);
  }

  #move(t) {
    this.#cursor = t;
    this.#draw();
  }

  #said() {
    return this.#lines.map((each) => `${each.label} ${each.value.textContent}`).join(", ");
  }

  #draw() {
    const width = this.plot.clientWidth;
    if (width === 0) return;
    const samples = this.#samples;
    const parts = this.#lines.map((each) => runs(samples, each.field));
    const highest = Math.max(0, ...parts.flat(2).map((each) => each.value));
    const maximum = niceMaximum(highest);
    const x = this.#x(width);
    const y = (value) => HEIGHT - BOTTOM - (value / maximum) * (HEIGHT - TOP - BOTTOM);
    setAttribute(this.svg, "viewBox", `0 0 ${width} ${HEIGHT}`);
    setAttribute(this.svg, "height", HEIGHT);
    this.#drawGrid(width, maximum, highest, x, y);
    const cursor = samples.find(({ t }) => t === this.#cursor) ?? null;
    const shown = cursor ?? samples.at(-1) ?? null;
    this.#lines.forEach((each, index) => {
      setAttribute(each.line, "d", line(parts[index], x, y));
      setAttribute(each.area, "d", area(parts[index], x, y));
      const value = shown?.rates?.[each.field];
      setText(each.value, value === undefined ? UNKNOWN : this.format(value));
      const visible = cursor !== null && value !== undefined;
      setAttribute(each.dot, "visibility", visible ? null : "hidden");
      if (visible) {
        setAttribute(each.dot, "cx", x(cursor.t));
        setAttribute(each.dot, "cy", y(value));
      }
    });
    setText(this.when, cursor === null ? "" : `${Math.round(this.#now - cursor.t)} s ago`);
    setAttribute(this.rule, "visibility", cursor === null ? "hidden" : null);
    if (cursor !== null) {
      setAttribute(this.rule, "x1", x(cursor.t));
      setAttribute(this.rule, "x2", x(cursor.t));
      setAttribute(this.rule, "y1", TOP);
      setAttribute(this.rule, "y2", HEIGHT - BOTTOM);
    }
    setAttribute(this.plot, "aria-label", `${this.title}: ${this.#said()}; highest of the last five minutes ${this.format(highest)}. Left and right arrow keys read earlier values.`);
  }

  #drawGrid(width, maximum, highest, x, y) {
    const made = [];
    const labels = [];
    for (const part of [0, 0.5, 1]) {
      const at = y(maximum * part);
      made.push(s("line", { x1: 0, x2: width, y1: at, y2: at }));
      if (part > 0 && highest > 0) labels.push(s("text", { x: 0, y: at - 4 }, this.format(maximum * part)));
    }
    for (let minute = 1; minute <= 5; minute += 1) {
      const at = x(this.#now - minute * 60);
      const anchor = minute === 5 ? "start" : "middle";
      made.push(s("text", { x: at, y: HEIGHT - 4, "text-anchor": anchor }, `−${minute} min`));
    }
    made.push(s("text", { x: width, y: HEIGHT - 4, "text-anchor": "end" }, "now"));
    this.grid.replaceChildren(...made);
    this.labels.replaceChildren(...labels);
  }
}

const SPARK_WIDTH = 140;
const SPARK_HEIGHT = 28;

// A plot without axes, of the sum of both directions.
export class Sparkline {
  constructor() {
    this.area = s("path", { class: "area rx" });
    this.line = s("path", { class: "line rx" });
    const size = { width: SPARK_WIDTH, height: SPARK_HEIGHT, viewBox: `0 0 ${SPARK_WIDTH} ${SPARK_HEIGHT}` };
    this.element = s("svg", { class: "spark", "aria-hidden": "true", ...size }, this.area, this.line);
  }

  update(samples, now) {
    const both = samples.map(({ t, rates }) => ({
      t,
      rates: rates && { bits: rates.rx_bits + rates.tx_bits },
    }));
    const parts = runs(both, "bits");
    const highest = Math.max(1, ...parts.flat().map((each) => each.value));
    const x = (t) => SPARK_WIDTH - ((now - t) / WINDOW_S) * SPARK_WIDTH;
    const y = (value) => SPARK_HEIGHT - 2 - (value / highest) * (SPARK_HEIGHT - 4);
    setAttribute(this.line, "d", line(parts, x, y));
    setAttribute(this.area, "d", area(parts, x, y));
  }
}
