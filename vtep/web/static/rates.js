// Rates from differences of counters, and their last five minutes. Knows neither the DOM nor a
// clock: time is that of the status.

export const WINDOW_S = 300;

// Two samples further apart than this have a gap between them in a plot. A browser delays the
// timers of a page in the background to a second or more.
export const GAP_S = 4;

const FIELDS = ["rx_frames", "rx_bytes", "tx_frames", "tx_bytes", "drops"];

export const total = (counts) => Object.values(counts).reduce((sum, each) => sum + each, 0);

function counts(counters, drops) {
  return {
    rx_frames: counters.rx_frames ?? 0,
    rx_bytes: counters.rx_bytes ?? 0,
    tx_frames: counters.tx_frames ?? 0,
    tx_bytes: counters.tx_bytes ?? 0,
    drops,
  };
}

// The rates between two counts; null if a counter has shrunk: then it is another process, and
// nothing is known.
export function ratesBetween(before, after, seconds) {
  if (!before || !(seconds > 0)) return null;
  const rates = {};
  for (const field of FIELDS) {
    const difference = after[field] - before[field];
    if (difference < 0) return null;
    rates[field] = difference / seconds;
  }
  rates.rx_bits = rates.rx_bytes * 8;
  rates.tx_bits = rates.tx_bytes * 8;
  return rates;
}

export function sum(rates) {
  const known = rates.filter((each) => each !== null && each !== undefined);
  if (known.length === 0) return null;
  const made = {};
  for (const name of Object.keys(known[0])) {
    made[name] = known.reduce((before, each) => before + each[name], 0);
  }
  return made;
}

export const pairKey = (vni, remote) => `pair/${vni}/${remote}`;
export const vniKey = (vni) => `vni/${vni}`;
export const remoteKey = (remote) => `remote/${remote}`;
export const ALL = "all";

export class History {
  #series = new Map(); // By key: samples {t, rates}, of which rates may be null.
  #current = new Map(); // By key: the last rates.
  #counts = new Map();
  #monotonic = null;
  #started = null;
  #drops = new Map(); // By VNI (null: of the process) and reason: drops a second.

  now = null;

  // Take a status in. Returns false if it is one that is known already.
  add(status) {
    if (status.monotonic === this.#monotonic && status.started === this.#started) return false;
    if (this.#monotonic !== null && status.monotonic < this.#monotonic) {
      // The clock has begun again: it is another host, or another boot.
      this.#series.clear();
      this.#counts.clear();
    } else if (status.started !== this.#started) {
      this.#counts.clear();
    }
    const seconds = this.#monotonic === null ? 0 : status.monotonic - this.#monotonic;
    const counted = new Map();
    const current = new Map();
    const rate = (key, after) => {
      counted.set(key, after);
      const rates = ratesBetween(this.#counts.get(key), after, seconds);
      current.set(key, rates);
      return rates;
    };
    const byRemote = new Map();
    const drops = new Map();
    const dropRates = (of, vni) => {
      for (const drop of of.recent_drops) {
        const key = `drop/${vni}/${drop.reason}`;
        const after = drop.count;
        const before = this.#counts.get(key);
        counted.set(key, after);
        drops.set(key, before === undefined || !(seconds > 0) || after < before ? null : (after - before) / seconds);
      }
    };
    rate(ALL, counts(status.counters, total(status.drops)));
    dropRates(status, null);
    for (const segment of status.segments) {
      rate(vniKey(segment.vni), counts(segment.counters, total(segment.drops)));
      dropRates(segment, segment.vni);
      for (const remote of segment.remotes) {
        const rates = rate(pairKey(segment.vni, remote.remote), counts(remote, 0));
        const key = remoteKey(remote.remote);
        byRemote.set(key, [...(byRemote.get(key) ?? []), rates]);
      }
    }
    for (const [key, rates] of byRemote) current.set(key, sum(rates));
    this.#counts = counted;
    this.#current = current;
    this.#drops = drops;
    this.#monotonic = this.now = status.monotonic;
    this.#started = status.started;
    for (const [key, rates] of current) {
      // Pairs have no plot: 50 VNIs with 64 remotes each would be a million samples.
      if (key.startsWith("pair/")) continue;
      let samples = this.#series.get(key);
      if (!samples) this.#series.set(key, (samples = []));
      samples.push({ t: status.monotonic, rates });
    }
    for (const [key, samples] of this.#series) {
      while (samples.length && samples[0].t < status.monotonic - WINDOW_S - GAP_S) samples.shift();
      if (samples.length === 0) this.#series.delete(key);
    }
    return true;
  }

  samples(key) {
    return this.#series.get(key) ?? [];
  }

  current(key) {
    return this.#current.get(key) ?? null;
  }

  dropRate(vni, reason) {
    return this.#drops.get(`drop/${vni}/${reason}`) ?? null;
  }
}

// The runs of samples without a gap between them, for one field.
export function runs(samples, field) {
  const made = [];
  let run = [];
  let before = null;
  for (const { t, rates } of samples) {
    if (rates === null || (before !== null && t - before > GAP_S)) {
      if (run.length) made.push(run);
      run = [];
    }
    if (rates !== null) run.push({ t, value: rates[field] });
    before = t;
  }
  if (run.length) made.push(run);
  return made;
}
