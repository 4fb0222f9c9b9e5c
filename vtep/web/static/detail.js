// The details of what is selected: the whole process, a VNI, or a remote.

import { Chart } from "./chart.js";
import { h, keyed, setAttribute, setText } from "./dom.js";
import { UNKNOWN, ago, bits, count, frames, liveness, livenessWord, milliseconds, octets, words } from "./format.js";
import { Macs } from "./macs.js";
import { ALL, pairKey, remoteKey, vniKey } from "./rates.js";
import { Table } from "./table.js";

const LINES = (of) => [
  { field: `rx_${of}`, label: "received", name: "rx" },
  { field: `tx_${of}`, label: "sent", name: "tx" },
];

const list = (items) => (items.length ? items.join(", ") : "none");
const mtu = (value) => (value === null ? UNKNOWN : `${value} octets`);

function factsOfVni(segment) {
  const reason = segment.fast_path_reason;
  const facts = [
    ["State", words(segment.state)],
    ["TAP", segment.dev],
    ["Bridge", segment.bridge ?? "none"],
    ["Addresses", list(segment.address)],
    ["MTU of the tunnel", mtu(segment.mtu)],
    ["MTU of the TAP", mtu(segment.tap_mtu ?? null)],
    ["MTU of the underlay", mtu(segment.underlay_mtu)],
    ["Underlay", `${list(segment.underlay_devices)}, UDP port ${segment.dstport}`],
    ["Offloads", list(segment.offload)],
    ["Fast path", reason ? `${segment.fast_path}: ${reason}` : segment.fast_path],
    ["MACs", segment.fdb_limit === null ? count(segment.fdb_entries) : `${count(segment.fdb_entries)} of at most ${count(segment.fdb_limit)}`],
  ];
  if (segment.names?.length) {
    const of = ({ name, addresses, error }) => `${name}: ${list(addresses)}${error ? ` (${error})` : ""}`;
    facts.splice(1, 0, ["Names", list(segment.names.map(of))]);
  }
  if (segment.underlay_missing.length) facts.splice(1, 0, ["Missing", list(segment.underlay_missing)]);
  return facts;
}

function factsOfRemote(each) {
  const kind = each.isGroup ? "multicast group" : each.in.some(({ remote }) => remote.is_pyvtep) ? "pyvtep: answers echo requests" : "another VTEP, or one that has not answered yet";
  return [
    ["Liveness", each.isGroup ? livenessWord(each.liveness, true) : `${words(each.liveness)}. ${liveness(each.liveness)}`],
    ["Last seen", ago(each.lastSeen)],
    ["Kind", kind],
    ["Configured", each.isConfigured ? "yes" : "no: known by its MACs, or accepted"],
    ["Round trip", milliseconds(each.rtt)],
    ["Path MTU", mtu(each.pathMtu)],
    ["Underlay device", each.underlayDev ?? "none: there is no route"],
    ["MACs", count(each.fdbEntries)],
  ];
}

function factsOfProcess(status) {
  const reload = status.reload;
  return [
    ["Version", status.version],
    ["Process", String(status.pid)],
    ["Forwarding since", new Date(status.started * 1000).toLocaleString()],
    ["Last reload", reload === null ? "none" : `${reload.successful ? "successful" : "failed"}, ${ago(status.time - reload.time)}`],
  ];
}

export class Detail {
  // `element` gets the plots and the facts, and `related` the tables, which need more width.
  constructor(element, related, select) {
    this.heading = h("h2", { id: "detail-heading", tabindex: "-1" });
    this.close = h("button", { type: "button", class: "close" }, "Show all");
    this.close.addEventListener("click", () => select({ kind: "all" }));
    this.facts = h("dl", { class: "facts" });
    this.charts = [new Chart("Bits per second", bits, LINES("bits")), new Chart("Frames per second", frames, LINES("frames"))];
    this.macs = new Macs();
    this.peers = new Table(
      "Traffic by pair of VNI and remote",
      [
        {
          title: "Name",
          node: () => {
            const node = h("button", { type: "button", class: "link-button" });
            node.addEventListener("click", () => select(node.selection));
            return node;
          },
          update: (node, { name, selection }) => {
            setText(node, name);
            node.selection = selection;
          },
        },
        { title: "State", node: () => h("span"), update: (node, { remote }) => {
          setText(node, livenessWord(remote.liveness, remote.is_group));
          setAttribute(node, "class", `state ${remote.liveness}`);
        } },
        { title: "Received", className: "number", text: ({ rates }) => bits(rates?.rx_bits) },
        { title: "Sent", className: "number", text: ({ rates }) => bits(rates?.tx_bits) },
        { title: "In all", className: "number", text: ({ remote }) => `${octets(remote.rx_bytes)} / ${octets(remote.tx_bytes)}` },
        { title: "MACs", className: "number", text: ({ remote }) => count(remote.fdb_entries) },
      ],
      ({ name }) => name,
    );
    this.peersHeading = h("h2");
    this.peersPart = h("section", { class: "panel", hidden: true }, h("div", { class: "panel-head" }, this.peersHeading), this.peers.element);
    this.counters = h("dl", { class: "facts counters" });
    this.countersPart = h("details", {}, h("summary", {}, "Counters"), this.counters);
    element.append(
      h("div", { class: "panel-head" }, this.heading, this.close),
      h("div", { class: "charts" }, ...this.charts.map((each) => each.element)),
      this.facts,
      this.countersPart,
    );
    this.columns = related.parentElement;
    related.append(this.peersPart, this.macs.element);
  }

  update({ status, remotes, history, selection }) {
    const segment = selection.kind === "vni" ? status.segments.find(({ vni }) => vni === selection.vni) : undefined;
    const remote = selection.kind === "remote" ? remotes.find((each) => each.remote === selection.remote) : undefined;
    setAttribute(this.close, "hidden", selection.kind === "all");
    this.columns.classList.toggle("all", !segment && !remote);
    setAttribute(this.peersPart, "hidden", !segment && !remote);
    setAttribute(this.macs.element, "hidden", !segment);
    this.macs.show(segment ? segment.vni : null);
    if (segment) this.#showVni(segment, history);
    else if (remote) this.#showRemote(remote, history);
    else this.#showAll(status, history, selection);
  }

  #showVni(segment, history) {
    setText(this.heading, `VNI ${segment.vni}`);
    this.#show(factsOfVni(segment), vniKey(segment.vni), history, { ...segment.counters, ...segment.drops });
    setText(this.peersHeading, `Remotes of VNI ${segment.vni}`);
    this.peers.update(
      segment.remotes.map((remote) => ({
        name: remote.remote,
        remote,
        rates: history.current(pairKey(segment.vni, remote.remote)),
        selection: { kind: "remote", remote: remote.remote },
      })),
    );
  }

  #showRemote(each, history) {
    setText(this.heading, `Remote ${each.remote}`);
    this.#show(factsOfRemote(each), remoteKey(each.remote), history, null);
    setText(this.peersHeading, `VNIs with ${each.remote}`);
    this.peers.update(
      each.in.map(({ segment, remote }) => ({
        name: `VNI ${segment.vni}`,
        remote,
        rates: history.current(pairKey(segment.vni, remote.remote)),
        selection: { kind: "vni", vni: segment.vni },
      })),
    );
  }

  #showAll(status, history, selection) {
    const gone = selection.kind === "vni" ? `VNI ${selection.vni} is gone` : `Remote ${selection.remote} is gone`;
    setText(this.heading, selection.kind === "all" ? "All VNIs" : gone);
    this.#show(factsOfProcess(status), ALL, history, { ...status.counters, ...status.drops });
  }

  #show(facts, key, history, counters) {
    showFacts(this.facts, facts);
    for (const chart of this.charts) chart.update(history.samples(key), history.now);
    setAttribute(this.countersPart, "hidden", counters === null);
    showFacts(
      this.counters,
      Object.entries(counters ?? {})
        .filter(([, value]) => value !== 0)
        .map(([name, value]) => [name, count(value)]),
    );
  }
}

function showFacts(node, facts) {
  keyed(
    node,
    facts,
    ([name]) => name,
    ([name]) => h("div", {}, h("dt", {}, name), h("dd")),
    (row, [, value]) => setText(row.children[1], value),
  );
}
