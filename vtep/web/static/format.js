// Numbers, times and liveness in words.

export const UNKNOWN = "–";

const PREFIXES = ["", "k", "M", "G", "T", "P", "E"];

// 1234567 as "1.23 M", with three digits.
export function scaled(value) {
  if (value === null || value === undefined) return UNKNOWN;
  let exponent = 0;
  let rest = value;
  while (rest >= 999.5 && exponent < PREFIXES.length - 1) {
    rest /= 1000;
    exponent += 1;
  }
  const digits = exponent === 0 && (Number.isInteger(rest) || rest >= 9.95) ? 0 : rest < 9.995 ? 2 : rest < 99.95 ? 1 : 0;
  const number = exponent === 0 && rest < 9.95 && !Number.isInteger(rest) ? rest.toFixed(1) : rest.toFixed(digits);
  return PREFIXES[exponent] ? `${number} ${PREFIXES[exponent]}` : number;
}

function withUnit(value, unit) {
  const text = scaled(value);
  if (text === UNKNOWN) return text;
  return text.includes(" ") ? text + unit : `${text} ${unit}`;
}

export const bits = (value) => withUnit(value, "bit/s");
export const octets = (value) => withUnit(value, "B");
export function perSecond(value) {
  const text = scaled(value);
  return text === UNKNOWN ? text : `${text}/s`;
}

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (value) => (value === null || value === undefined ? UNKNOWN : grouped.format(value));

export function frames(value) {
  const text = value >= 10 && value < 999_999.5 ? count(value) : scaled(value);
  return text === UNKNOWN ? text : `${text} frames/s`;
}

export function duration(seconds) {
  if (seconds < 1) return "less than a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function ago(seconds) {
  if (seconds === null || seconds === undefined) return "never";
  return seconds < 1 ? "just now" : `${duration(seconds)} ago`;
}

export function milliseconds(seconds) {
  if (seconds === null || seconds === undefined) return UNKNOWN;
  return seconds < 0.01 ? `${(seconds * 1000).toFixed(2)} ms` : `${(seconds * 1000).toFixed(0)} ms`;
}

const WORDS = { "never-seen": "never seen", "fast-path-failed": "fast path failed" };

export const words = (name) => WORDS[name] ?? String(name).replaceAll("-", " ").replaceAll("_", " ");

const LIVENESS = {
  seen: "Something was received from it lately.",
  silent: "It has answered before, and no longer does.",
  refused: "It refuses datagrams: no VTEP listens there.",
  "never-seen": "Nothing was received from it so far.",
};

export const liveness = (name) => LIVENESS[name] ?? "";

// A group receives nothing by itself, so it is never seen, and nothing is wrong with it.
export const livenessWord = (name, isGroup) => (isGroup && name === "never-seen" ? "group" : words(name));

// Of several VNIs with one remote, the worst counts.
const ORDER = ["refused", "silent", "never-seen", "seen"];

export function worst(names) {
  return ORDER.find((name) => names.includes(name)) ?? names[0] ?? "never-seen";
}
