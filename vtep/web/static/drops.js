// Recent drops: the reason in words, where, how many, the last source, and the remedy.

import { h, setText } from "./dom.js";
import { ago, count, perSecond } from "./format.js";
import { Table } from "./table.js";

// Those of some VNIs and, with `withProcess`, those that belong to none, the latest first.
export function dropsOf(status, segments, history, withProcess) {
  const rows = segments.flatMap((segment) =>
    segment.recent_drops.map((drop) => ({ ...drop, vni: segment.vni })),
  );
  if (withProcess) rows.push(...status.recent_drops.map((drop) => ({ ...drop, vni: null })));
  return rows
    .map((drop) => ({ ...drop, rate: history.dropRate(drop.vni, drop.reason) }))
    .sort((one, other) => one.age - other.age);
}

export class Drops {
  constructor(caption) {
    this.table = new Table(
      caption,
      [
        {
          title: "Reason",
          className: "reason",
          node: () => h("div", {}, h("code"), h("span", { class: "meaning" })),
          update: (node, drop) => {
            setText(node.children[0], drop.reason);
            setText(node.children[1], drop.meaning);
          },
        },
        { title: "VNI", className: "number", text: (drop) => drop.vni ?? "any" },
        {
          title: "Since start",
          className: "number",
          text: (drop) => (drop.rate > 0 ? `${count(drop.count)} (${perSecond(drop.rate)})` : count(drop.count)),
        },
        { title: "Last", className: "number", text: (drop) => ago(drop.age) },
        {
          title: "Last source",
          node: () => h("div", {}, h("code"), h("span", { class: "meaning" })),
          update: (node, drop) => {
            setText(node.children[0], drop.last_source ?? "");
            setText(node.children[1], drop.detail ?? "");
          },
        },
        { title: "Remedy", className: "remedy", text: (drop) => drop.remedy },
      ],
      (drop) => `${drop.vni} ${drop.reason}`,
      { empty: "Nothing was dropped.", stackBelow: 760 },
    );
    this.element = this.table.element;
  }

  update(rows) {
    this.table.update(rows, { classOf: (drop) => (drop.rate > 0 ? "increasing" : null) });
  }
}
