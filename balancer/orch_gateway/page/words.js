// How figures are written. Pure: a value in, a text out; null is what is not known.

export const UNKNOWN = "–";
const KIB = 1024;
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(value) {
  return value == null ? UNKNOWN : whole.format(value);
}

// Bytes in powers of 1024 with one decimal: "7.0 GiB".
export function size(bytes) {
  if (bytes == null) return UNKNOWN;
  let value = bytes, step = 0;
  while (Math.abs(value) >= (step ? 1023.95 : KIB) && step < UNITS.length - 1) { value /= KIB; step += 1; }
  return `${step ? value.toFixed(1) : value} ${UNITS[step]}`;
}

// [number, unit] of seconds, with two or three digits that matter.
export function seconds(value) {
  if (value == null) return [UNKNOWN, ""];
  if (value === 0) return ["0", ""];
  if (value < 0.001) return [(value * 1e6).toFixed(0), "µs"];
  if (value < 0.01) return [(value * 1e3).toFixed(1), "ms"];
  if (value < 1) return [(value * 1e3).toFixed(0), "ms"];
  return [value < 10 ? value.toFixed(1) : value.toFixed(0), "s"];
}

export function rate(value) {
  if (value == null) return UNKNOWN;
  return value > 0 && value < 10 ? value.toFixed(1) : whole.format(value);
}

export function percent(share) {
  return share == null ? UNKNOWN : `${Math.round(share * 100)} %`;
}

// The same in little room: "4.81M".
const little = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const MUCH = 100_000;

export function briefly(value) {
  return value == null || value < MUCH ? count(value) : little.format(value);
}

// How long something has lasted: its largest units.
export function lasted(total, numUnits = 2) {
  if (total == null) return UNKNOWN;
  const s = Math.max(0, Math.floor(total));
  const parts = [[Math.floor(s / 86400), "d"], [Math.floor(s / 3600) % 24, "h"], [Math.floor(s / 60) % 60, "min"], [s % 60, "s"]];
  const first = parts.findIndex(([number]) => number);
  if (first < 0) return "0 s";
  return parts.slice(first, first + numUnits).filter(([number]) => number).map(([number, unit]) => `${number} ${unit}`).join(" ");
}

// A wall clock's time of unix seconds; with the date, unless it is today's.
export function clock(at, now = new Date()) {
  const when = new Date(at * 1000);
  const time = when.toLocaleTimeString("en-GB");
  return when.toDateString() === now.toDateString() ? time : `${when.toLocaleDateString("sv-SE")} ${time}`;
}

// What a state looks like: an icon of icons.js, and a class that colours it. The word itself is always shown.
const LOOKS = {
  READY: ["check", "good"],
  DEGRADED: ["warning", "warn"],
  PLANNED: ["ring", ""],
  STARTING: ["half", "warn"],
  LOADING: ["half", "warn"],
  DRAINING: ["down", "warn"],
  BACKOFF: ["cross", "bad"],
  QUARANTINED: ["cross", "bad"],
  STOPPED: ["ring", ""],
};

export function look(state) {
  return LOOKS[state] ?? ["ring", ""];
}
