// Lines over the last minutes, drawn as SVG. The legend tells the figures: the latest, or those under the cursor.

import { draw, make, put, say } from "./dom.js";

const WINDOW_S = 300;
const MARGIN = { left: 50, right: 8, top: 10, bottom: 22 };
const MAX_TICKS = 4;
// Two looks farther apart than this have nothing known between them.
const GAP_S = 15;

// Round steps that make at most MAX_TICKS above 0.
export function ticks(highest) {
  if (!(highest > 0)) return [0, 1];
  const rough = highest / MAX_TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
  return Array.from({ length: Math.ceil(highest / step - 1e-9) + 1 }, (_, number) => number * step);
}

// The path of a line, broken where a value is unknown or a gap too long. points: [x, y, age].
export function path(points) {
  let text = "", last = null;
  for (const [x, y, age] of points) {
    if (y == null) { last = null; continue; }
    text += `${last == null || last - age > GAP_S ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
    last = age;
  }
  return text;
}

export class Chart {
  // series: [{ key, name, look, area, optional }] of the history's columns. write: how a value is written.
  constructor(figure, series, write, none) {
    this.series = series;
    this.write = write;
    this.none = none;
    this.figure = figure;
    this.history = null;
    this.cursor = null; // the age that the legend tells of
    this.legend = make("figcaption", { class: "legend" });
    this.when = make("span");
    this.plot = draw("svg", { class: "plot", role: "img", tabindex: "0" });
    this.entries = series.map(({ name, look }) => {
      const sample = draw("svg", { viewBox: "0 0 24 10", "aria-hidden": "true" }, draw("path", { class: `line ${look}`, d: "M0 5H24" }));
      const value = make("b");
      return { value, entry: make("span", {}, sample, `${name} `, value) };
    });
    this.legend.append(...this.entries.map(({ entry }) => entry), this.when);
    figure.replaceChildren(this.legend, this.plot);
    this.plot.addEventListener("pointermove", (event) => this.#point(event.offsetX));
    this.plot.addEventListener("pointerleave", () => this.#move(null));
    this.plot.addEventListener("blur", () => this.#move(null));
    this.plot.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#draw()).observe(figure);
  }

  show(history) {
    this.history = history;
    this.#draw();
  }

  get #width() { return Math.max(160, this.plot.clientWidth || this.figure.clientWidth || 400); }
  get #height() { return this.plot.clientHeight || 176; }
  #x(age) { return MARGIN.left + (1 - age / WINDOW_S) * (this.#width - MARGIN.left - MARGIN.right); }

  #draw() {
    if (!this.history) return;
    const { age_s: ages } = this.history, width = this.#width, height = this.#height;
    const shown = this.series.map(({ key, optional }) => !optional || this.history[key].some((value) => value > 0));
    const values = this.series.flatMap(({ key }, n) => (shown[n] ? this.history[key].filter((value) => value != null) : []));
    const isEmpty = !values.length;
    const steps = ticks(Math.max(0, ...values)), highest = steps.at(-1), floor = height - MARGIN.bottom;
    const y = (value) => (value == null ? null : floor - (value / highest) * (floor - MARGIN.top));
    const parts = [];
    for (const step of steps) {
      const at = y(step);
      parts.push(draw("line", { class: step ? "grid" : "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
      if (!isEmpty) parts.push(draw("text", { x: MARGIN.left - 7, y: at + 4, "text-anchor": "end" }, this.write(step)));
    }
    for (let minute = 0; minute <= WINDOW_S / 60; minute += 1) {
      const anchor = minute ? "middle" : "end";
      parts.push(draw("text", { x: this.#x(minute * 60), y: height - 5, "text-anchor": anchor }, minute ? `−${minute} min` : "now"));
    }
    this.series.forEach(({ key, look, area }, n) => {
      if (!shown[n]) return;
      const points = ages.map((age, place) => [this.#x(age), y(this.history[key][place]), age]);
      const line = path(points), known = points.filter(([, at]) => at != null);
      if (area && known.length > 1 && line.lastIndexOf("M") === 0) {
        parts.push(draw("path", { class: "area", d: `${line}L${known.at(-1)[0]} ${floor}L${known[0][0]} ${floor}Z` }));
      }
      parts.push(draw("path", { class: `line ${look}`, d: line, "data-series": key }));
    });
    if (isEmpty) parts.push(draw("text", { class: "none", x: (MARGIN.left + width) / 2, y: height / 2, "text-anchor": "middle" }, this.none));
    const place = this.#place();
    if (this.cursor != null && place >= 0) {
      const at = this.#x(ages[place]);
      parts.push(draw("line", { class: "cursor", x1: at, x2: at, y1: MARGIN.top, y2: floor }));
    }
    put(this.plot, "viewBox", `0 0 ${width} ${height}`);
    this.plot.replaceChildren(...parts);
    this.#tell(place, shown);
  }

  // The place in the columns that the legend tells of: nearest to the cursor, or the latest.
  #place() {
    const { age_s: ages } = this.history;
    if (this.cursor == null) return ages.length - 1;
    return ages.reduce((best, age, n) => (Math.abs(age - this.cursor) < Math.abs(ages[best] - this.cursor) ? n : best), 0);
  }

  #tell(place, shown) {
    const told = [];
    this.series.forEach(({ key, name }, n) => {
      this.entries[n].entry.hidden = !shown[n];
      const text = this.write(this.history[key][place] ?? null);
      say(this.entries[n].value, text);
      if (shown[n]) told.push(`${name} ${text}`);
    });
    const age = this.history.age_s[place];
    const when = this.cursor == null || age == null ? "" : `${Math.round(age)} s ago`;
    say(this.when, when);
    put(this.plot, "aria-label", `The last five minutes. ${when || "Now"}: ${told.join(", ")}. Arrow keys move through time.`);
  }

  #point(x) {
    const share = (x - MARGIN.left) / (this.#width - MARGIN.left - MARGIN.right);
    this.#move(Math.min(WINDOW_S, Math.max(0, (1 - share) * WINDOW_S)));
  }

  #key(event) {
    const ages = this.history?.age_s ?? [], step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") this.#move(null);
    if (!step || !ages.length) return;
    event.preventDefault();
    this.#move(ages[Math.min(ages.length - 1, Math.max(0, this.#place() + step))]);
  }

  #move(age) {
    this.cursor = age;
    this.#draw();
  }
}
