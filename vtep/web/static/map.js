// The map: what is in front of each TAP at the left, the VNIs in the middle, the remotes right.

import { h, keyed, s, setAttribute, setText } from "./dom.js";
import { UNKNOWN, bits, liveness, livenessWord, scaled, words } from "./format.js";
import { problemOf, remoteMatches, segmentMatches } from "./model.js";
import { pairKey, remoteKey, vniKey } from "./rates.js";

// Cards of a column until it is expanded.
const COLLAPSED = 8;

// From 1.5 pixels at rest to 8 at a Gbit/s, by the logarithm.
export function thickness(rate) {
  if (!(rate > 0)) return 1.5;
  return 1.5 + Math.max(0, Math.min(6, Math.log10(rate / 1e3))) * 1.1;
}

function traffic(rates) {
  if (rates === null) return UNKNOWN;
  return rates.rx_bits + rates.tx_bits === 0 ? "idle" : `↓ ${scaled(rates.rx_bits)}  ↑ ${bits(rates.tx_bits)}`.replaceAll(/(?<=\S) (?=\S)/g, "\u00a0");
}

function card(onSelect) {
  const node = h("button", { type: "button", class: "card" }, h("span", { class: "card-title" }), h("span", { class: "card-state" }), h("span", { class: "card-text" }), h("span", { class: "card-rate" }));
  node.addEventListener("click", onSelect);
  return node;
}

function fill(node, { title, state, stateClass, text, rate, pressed, faded, kind }) {
  const [titleNode, stateNode, textNode, rateNode] = node.children;
  setText(titleNode, title);
  setText(stateNode, state);
  setAttribute(stateNode, "class", `card-state ${stateClass}`);
  setText(textNode, text);
  setText(rateNode, rate);
  setAttribute(node, "aria-pressed", pressed);
  setAttribute(node, "class", `card ${kind} ${stateClass}${faded ? " faded" : ""}`);
}

class Column {
  constructor(title, name) {
    this.list = h("div", { class: "cards", role: "group", "aria-label": title });
    this.more = h("button", { type: "button", class: "more" });
    this.expanded = false;
    this.element = h("div", { class: `column ${name}` }, h("h3", {}, title), this.list, this.more);
  }

  // Those of the items that are shown: all, or the first ones.
  shown(items) {
    const hidden = items.length - COLLAPSED;
    setAttribute(this.more, "hidden", hidden <= 0);
    setAttribute(this.more, "aria-expanded", String(this.expanded));
    setText(this.more, this.expanded ? "Show fewer" : `Show ${Math.max(0, hidden)} more`);
    return this.expanded || hidden <= 0 ? items : items.slice(0, COLLAPSED);
  }
}

export class NetworkMap {
  #wires = [];
  #locals = [];
  #faded = new Set();

  constructor(select, redraw) {
    this.select = select;
    this.local = new Column("This host", "local");
    this.vnis = new Column("VNIs", "vnis");
    this.remotes = new Column("Remotes", "remotes");
    for (const column of [this.vnis, this.remotes]) {
      column.more.addEventListener("click", () => {
        column.expanded = !column.expanded;
        redraw();
      });
    }
    this.local.more.hidden = true;
    this.svg = s("svg", { class: "wires", "aria-hidden": "true" });
    this.element = h("div", { class: "map" }, this.svg, this.local.element, this.vnis.element, this.remotes.element);
    new ResizeObserver(() => this.#drawWires()).observe(this.element);
  }

  update({ status, remotes, history, selection, filter }) {
    const isVni = (segment) => selection.kind === "vni" && selection.vni === segment.vni;
    const isRemote = (each) => selection.kind === "remote" && selection.remote === each.remote;
    const ofVni = (each) => each.in.some(({ segment }) => isVni(segment));
    const ofRemote = (segment) => segment.remotes.some(isRemote);
    // Most relevant first, so that a collapsed column shows these; else in the order of the status.
    const order = (items, ...relevance) =>
      items
        .map((item, index) => [item, relevance.findIndex((is) => is(item)) >>> 0, index])
        .sort((one, other) => one[1] - other[1] || one[2] - other[2])
        .map(([item]) => item);
    const segments = this.vnis.shown(
      order(
        status.segments.filter((each) => segmentMatches(each, filter)),
        ...(status.segments.length > COLLAPSED
          ? [isVni, ofRemote, ({ vni }) => problemOf(status, { vni })]
          : []),
      ),
    );
    const shownRemotes = this.remotes.shown(
      order(
        remotes.filter((each) => remoteMatches(each, filter)),
        ...(remotes.length > COLLAPSED
          ? [isRemote, ofVni, ({ remote }) => problemOf(status, { remote })]
          : []),
      ),
    );
    this.#drawVnis(segments, history, { isVni, ofRemote, selection });
    this.#drawRemotes(shownRemotes, history, { isRemote, ofVni, selection });
    this.#drawLocals(segments, { isVni, ofRemote, selection });
    const known = new Set(shownRemotes.map(({ remote }) => remote));
    this.#wires = segments.flatMap((segment) =>
      segment.remotes
        .filter(({ remote }) => known.has(remote))
        .map((remote) => {
          const rates = history.current(pairKey(segment.vni, remote.remote));
          const related = selection.kind === "all" || isVni(segment) || isRemote(remote);
          return {
            from: vniKey(segment.vni),
            to: remoteKey(remote.remote),
            className: `wire ${remote.liveness}${related ? "" : " faded"}`,
            width: thickness(rates === null ? 0 : rates.rx_bits + rates.tx_bits),
          };
        }),
    );
    this.#drawWires();
  }

  #drawVnis(segments, history, { isVni, ofRemote, selection }) {
    keyed(
      this.vnis.list,
      segments,
      ({ vni }) => vni,
      ({ vni }) => {
        const node = card(() => this.select({ kind: "vni", vni }));
        node.dataset.key = vniKey(vni);
        return node;
      },
      (node, segment) =>
        fill(node, {
          kind: "vni",
          title: `VNI ${segment.vni}`,
          state: words(segment.state),
          stateClass: segment.state === "up" ? "seen" : segment.state === "waiting" ? "refused" : "silent",
          text: segment.bridge ? `${segment.dev} on ${segment.bridge}` : segment.dev,
          rate: traffic(history.current(vniKey(segment.vni))),
          pressed: String(isVni(segment)),
          faded: selection.kind === "remote" ? !ofRemote(segment) : selection.kind === "vni" && !isVni(segment),
        }),
    );
  }

  #drawRemotes(remotes, history, { isRemote, ofVni, selection }) {
    keyed(
      this.remotes.list,
      remotes,
      ({ remote }) => remote,
      ({ remote }) => {
        const node = card(() => this.select({ kind: "remote", remote }));
        node.dataset.key = remoteKey(remote);
        return node;
      },
      (node, each) => {
        setAttribute(node, "title", liveness(each.liveness));
        fill(node, {
          kind: "remote",
          title: each.remote,
          state: livenessWord(each.liveness, each.isGroup),
          stateClass: each.liveness,
          text: `${each.isGroup ? "multicast group, " : ""}${each.fdbEntries} ${each.fdbEntries === 1 ? "MAC" : "MACs"}${each.isConfigured ? "" : ", not configured"}`,
          rate: traffic(history.current(remoteKey(each.remote))),
          pressed: String(isRemote(each)),
          faded: selection.kind === "vni" ? !ofVni(each) : selection.kind === "remote" && !isRemote(each),
        });
      },
    );
  }

  // A bridge with the TAPs that are its ports, or the TAP alone with its addresses.
  #drawLocals(segments, { isVni, ofRemote, selection }) {
    const found = new Map();
    for (const segment of segments) {
      const key = segment.bridge === null ? `tap/${segment.vni}` : `bridge/${segment.bridge}`;
      const known = found.get(key) ?? { key, bridge: segment.bridge, segments: [] };
      known.segments.push(segment);
      found.set(key, known);
    }
    this.#locals = [...found.values()];
    this.#faded.clear();
    keyed(
      this.local.list,
      this.#locals,
      ({ key }) => key,
      ({ key }) => {
        const node = h("div", { class: "card plain" }, h("span", { class: "card-title" }), h("span", { class: "card-text" }));
        node.dataset.key = key;
        return node;
      },
      (node, { bridge, segments: members }) => {
        const related = selection.kind === "all" || members.some((each) => isVni(each) || ofRemote(each));
        if (!related) this.#faded.add(node.dataset.key);
        setAttribute(node, "class", `card plain${related ? "" : " faded"}`);
        const [title, text] = node.children;
        setText(title, bridge ?? members[0].dev);
        const addresses = members.flatMap(({ address }) => address).filter((each) => !each.startsWith("fe80:"));
        setText(text, bridge === null ? addresses.join(" ") || "TAP, no bridge" : "bridge");
      },
    );
  }

  #drawWires() {
    const box = this.element.getBoundingClientRect();
    if (box.width === 0) return;
    const boxes = new Map();
    for (const node of this.element.querySelectorAll("[data-key]")) {
      const rectangle = node.getBoundingClientRect();
      if (rectangle.width > 0) {
        boxes.set(node.dataset.key, {
          left: rectangle.left - box.left,
          right: rectangle.right - box.left,
          middle: (rectangle.top + rectangle.bottom) / 2 - box.top,
        });
      }
    }
    const plain = this.#locals.flatMap(({ key, segments }) =>
      segments.map(({ vni, state }) => ({
        from: key,
        to: vniKey(vni),
        className: `wire port${state === "up" ? "" : " down"}${this.#faded.has(key) ? " faded" : ""}`,
        width: 1.5,
      })),
    );
    const wires = [...plain, ...this.#wires].filter(({ from, to }) => boxes.has(from) && boxes.has(to));
    setAttribute(this.svg, "viewBox", `0 0 ${box.width} ${box.height}`);
    setAttribute(this.svg, "width", box.width);
    setAttribute(this.svg, "height", box.height);
    keyed(
      this.svg,
      wires,
      ({ from, to }) => `${from} ${to}`,
      () => s("path"),
      (path, { from, to, className, width }) => {
        const [one, other] = [boxes.get(from), boxes.get(to)];
        const bend = (other.left - one.right) / 2;
        setAttribute(path, "class", className);
        setAttribute(path, "stroke-width", width.toFixed(2));
        setAttribute(path, "d", `M${one.right} ${one.middle}C${one.right + bend} ${one.middle} ${other.left - bend} ${other.middle} ${other.left} ${other.middle}`);
      },
    );
  }
}
