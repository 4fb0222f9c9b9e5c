// What the views show, derived from a status: remotes over all VNIs, and the filter.

import { worst } from "./format.js";

// The remotes of all VNIs, one for each address: [{remote, liveness, in: [{segment, remote}], ...}].
export function remotesOf(status) {
  const found = new Map();
  for (const segment of status.segments) {
    for (const remote of segment.remotes) {
      const known = found.get(remote.remote);
      if (known) known.in.push({ segment, remote });
      else found.set(remote.remote, { remote: remote.remote, in: [{ segment, remote }] });
    }
  }
  return [...found.values()].map((each) => {
    const rows = each.in.map(({ remote }) => remote);
    const seen = rows.map((row) => row.last_seen).filter((age) => age !== null);
    return {
      ...each,
      liveness: worst(rows.map((row) => row.liveness)),
      isGroup: rows[0].is_group,
      isConfigured: rows.some((row) => row.is_configured),
      lastSeen: seen.length ? Math.min(...seen) : null,
      rtt: rows.find((row) => row.rtt !== null)?.rtt ?? null,
      pathMtu: rows.find((row) => row.path_mtu !== null)?.path_mtu ?? null,
      underlayDev: rows.find((row) => row.underlay_dev !== null)?.underlay_dev ?? null,
      fdbEntries: rows.reduce((sum, row) => sum + row.fdb_entries, 0),
    };
  });
}

const matches = (filter, ...texts) => texts.some((text) => String(text ?? "").toLowerCase().includes(filter));

const namesOf = (segment) => [`vni ${segment.vni}`, segment.dev, segment.bridge, ...segment.address];

// A VNI matches the filter by itself or by one of its remotes, and a remote likewise.
export function segmentMatches(segment, filter) {
  return !filter || matches(filter, ...namesOf(segment), ...segment.remotes.map(({ remote }) => remote));
}

export function remoteMatches(remote, filter) {
  return !filter || matches(filter, remote.remote) || remote.in.some(({ segment }) => matches(filter, ...namesOf(segment)));
}

export function problemOf(status, { vni, remote }) {
  return status.problems.some(
    (each) => (vni !== undefined && each.vni === vni) || (remote !== undefined && each.remote === remote),
  );
}
