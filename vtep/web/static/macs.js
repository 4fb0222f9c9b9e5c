// The MACs of a VNI: some 500 of them at a time, and one by its address.

import { h, setAttribute, setText } from "./dom.js";
import { ago, count, duration } from "./format.js";
import { Table } from "./table.js";

// The server keeps an answer as long as this.
const INTERVAL_MS = 5000;
const RETRY_MS = 700;
const MAC = /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/;

function stateOf(entry) {
  const parts = [entry.state];
  if (entry.held !== null) parts.push(`held for ${duration(entry.held)}`);
  if (entry.moves > 0) parts.push(`${entry.moves} ${entry.moves === 1 ? "move" : "moves"}`);
  return parts.join(", ");
}

export class Macs {
  #vni = null;
  #pages = [0]; // The pages from the first to the one that is shown.
  #next = null;
  #timer = null;
  #entries = [];
  #said = "";

  constructor() {
    this.filter = h("input", { type: "search", placeholder: "Find a MAC or an address", "aria-label": "Find a MAC or an address among these", autocomplete: "off", spellcheck: "false" });
    this.filter.addEventListener("input", () => {
      this.#draw();
      if (MAC.test(this.#wanted())) this.#ask();
    });
    this.table = new Table(
      "MACs of this VNI",
      [
        { title: "MAC", className: "code", text: (entry) => entry.mac },
        { title: "Remote", className: "code", text: (entry) => entry.dst ?? "" },
        { title: "State", text: stateOf },
        { title: "Last frame", className: "number", text: (entry) => (entry.age === null ? "" : ago(entry.age)) },
        { title: "Received", className: "number", text: (entry) => count(entry.rx_frames) },
        { title: "Sent", className: "number", text: (entry) => count(entry.tx_frames) },
      ],
      (entry) => entry.mac,
      { stackBelow: 360 },
    );
    this.back = h("button", { type: "button" }, "Previous");
    this.forth = h("button", { type: "button" }, "Next");
    this.back.addEventListener("click", () => this.#turn(() => this.#pages.pop()));
    this.forth.addEventListener("click", () => this.#turn(() => this.#pages.push(this.#next)));
    this.note = h("p", { class: "muted", role: "status" });
    this.pager = h("p", { class: "pager" }, this.back, this.forth);
    this.heading = h("h2");
    this.element = h("section", { class: "panel macs", hidden: true }, h("div", { class: "panel-head" }, this.heading, this.filter), this.table.element, this.pager, this.note);
  }

  // Show those of a VNI, or stop with null.
  show(vni) {
    if (vni === this.#vni) return;
    clearTimeout(this.#timer);
    this.#vni = vni;
    this.#pages = [0];
    this.#next = null;
    this.#entries = [];
    this.filter.value = "";
    this.#said = "";
    if (vni !== null) {
      setText(this.heading, `MACs of VNI ${vni}`);
      this.#draw("asking");
      this.#ask();
    }
  }

  #wanted() {
    return this.filter.value.trim().toLowerCase();
  }

  #turn(change) {
    change();
    this.#ask();
  }

  async #ask() {
    clearTimeout(this.#timer);
    const [vni, wanted] = [this.#vni, this.#wanted()];
    const query = MAC.test(wanted) ? `mac=${wanted}` : `page=${this.#pages.at(-1)}`;
    let delay = INTERVAL_MS;
    try {
      const response = await fetch(`/api/fdb?vni=${vni}&${query}`);
      if (response.status === 503) delay = RETRY_MS;
      else if (!response.ok) throw new Error(await response.text());
      else {
        const sample = await response.json();
        if (vni !== this.#vni) return;
        this.#entries = sample.entries;
        this.#next = sample.next_page;
        this.#said = `${count(sample.fdb_entries)} in all`;
      }
    } catch (error) {
      this.#said = error.message.trim();
    }
    // Meanwhile, another VNI may have been selected, which asks for itself.
    if (vni !== this.#vni) return;
    this.#draw();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(), delay);
  }

  #draw(empty = "none") {
    const wanted = this.#wanted();
    const shown = this.#entries.filter(
      ({ mac, dst }) => !wanted || mac.includes(wanted) || String(dst ?? "").includes(wanted),
    );
    this.table.update(shown, { empty: wanted ? "none of these matches" : empty });
    setText(this.note, this.#said);
    setAttribute(this.back, "disabled", this.#pages.length === 1);
    setAttribute(this.forth, "disabled", this.#next === null);
    setAttribute(this.pager, "hidden", this.#pages.length === 1 && this.#next === null);
  }
}
