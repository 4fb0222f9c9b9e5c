// The page: asks the server for the status once a second, and shows it.

import { Sparkline } from "./chart.js";
import { Detail } from "./detail.js";
import { h, keyed, setAttribute, setText } from "./dom.js";
import { Drops, dropsOf } from "./drops.js";
import { ago, bits, count, duration, frames, livenessWord, perSecond, scaled, words } from "./format.js";
import { NetworkMap } from "./map.js";
import { remoteMatches, remotesOf, segmentMatches } from "./model.js";
import { ALL, History, remoteKey, vniKey } from "./rates.js";
import { Table } from "./table.js";

const TIMEOUT_MS = 10_000;
const RETRY_MS = 1000;

const byId = (id) => document.getElementById(id);

const history = new History();
let status = null;
let selection = { kind: "all" };

// --- selection: in the fragment of the address, so that it can be kept and sent ---------------

function parseFragment(fragment) {
  const [, kind, encoded] = /^#(\w+)=(.*)$/.exec(fragment) ?? [];
  const text = decodeURIComponent(encoded ?? "");
  if (kind === "vni" && /^\d+$/.test(text)) return { kind, vni: Number(text) };
  if (kind === "remote" && text) return { kind, remote: text };
  return { kind: "all" };
}

function select(wanted) {
  // A second click on the same card takes the selection back.
  const fragment = wanted.kind === "all" ? "" : `#${wanted.kind}=${encodeURIComponent(wanted[wanted.kind])}`;
  const same = fragment && fragment === location.hash;
  window.history.pushState(null, "", same || !fragment ? location.pathname : fragment);
  readSelection();
}

function readSelection() {
  try {
    selection = parseFragment(location.hash);
  } catch {
    selection = { kind: "all" }; // The fragment is no valid URL encoding.
  }
  draw();
}

// --- views -------------------------------------------------------------------------------------

const map = new NetworkMap(select, draw);
byId("map").append(map.element);
const detail = new Detail(byId("detail"), byId("related"), select);
const drops = new Drops("Drops in the last five minutes");
byId("drops").append(drops.element);

function nameColumn(title, nameOf, selectionOf) {
  return {
    title,
    node: (item) => {
      const node = h("button", { type: "button", class: "link-button" }, nameOf(item));
      node.addEventListener("click", () => {
        select(selectionOf(item));
        byId("detail-heading").focus();
      });
      return node;
    },
    update: (node, item) => setText(node, nameOf(item)),
  };
}

const stateColumn = (title, wordOf, classOf) => ({
  title,
  node: () => h("span"),
  update: (node, item) => {
    setText(node, wordOf(item));
    setAttribute(node, "class", `state ${classOf(item)}`);
  },
});

function rateColumns(keyOf) {
  const of = (item) => history.current(keyOf(item));
  return [
    { title: "Received", className: "number", text: (item) => bits(of(item)?.rx_bits) },
    { title: "Sent", className: "number", text: (item) => bits(of(item)?.tx_bits) },
    { title: "Frames/s in", className: "number", text: (item) => scaled(of(item)?.rx_frames) },
    { title: "Frames/s out", className: "number", text: (item) => scaled(of(item)?.tx_frames) },
    {
      title: "Last five minutes",
      className: "plot-cell",
      node: () => {
        const sparkline = new Sparkline();
        sparkline.element.sparkline = sparkline;
        return sparkline.element;
      },
      update: (node, item) => node.sparkline.update(history.samples(keyOf(item)), history.now),
    },
  ];
}

const stateClass = (state) => (state === "up" ? "seen" : state === "waiting" ? "refused" : "silent");

const vniTable = new Table(
  "VNIs with their rates",
  [
    nameColumn("VNI", ({ vni }) => String(vni), ({ vni }) => ({ kind: "vni", vni })),
    stateColumn("State", ({ state }) => words(state), ({ state }) => stateClass(state)),
    { title: "TAP", className: "code", text: ({ dev }) => dev },
    { title: "Bridge", className: "code", text: ({ bridge }) => bridge ?? "none" },
    { title: "Fast path", text: (segment) => segment.fast_path },
    { title: "MACs", className: "number", text: (segment) => count(segment.fdb_entries) },
    ...rateColumns(({ vni }) => vniKey(vni)),
    { title: "Drops/s", className: "number", text: ({ vni }) => scaled(history.current(vniKey(vni))?.drops) },
  ],
  ({ vni }) => vni,
  { empty: "There is no VNI." },
);
byId("vnis").append(vniTable.element);

const remoteTable = new Table(
  "Remotes with their rates",
  [
    nameColumn("Remote", ({ remote }) => remote, ({ remote }) => ({ kind: "remote", remote })),
    stateColumn("Liveness", (each) => livenessWord(each.liveness, each.isGroup), (each) => each.liveness),
    { title: "Last seen", className: "number", text: (each) => ago(each.lastSeen) },
    { title: "Underlay", className: "code", text: (each) => each.underlayDev ?? "no route" },
    { title: "VNIs", className: "number", text: (each) => String(each.in.length) },
    { title: "MACs", className: "number", text: (each) => count(each.fdbEntries) },
    ...rateColumns(({ remote }) => remoteKey(remote)),
  ],
  ({ remote }) => remote,
  { empty: "There is no remote." },
);
byId("remotes").append(remoteTable.element);

function drawProblems() {
  const problems = status.problems;
  setAttribute(byId("no-problem"), "hidden", problems.length > 0);
  // Announced when the number changes, and not with each second in the texts.
  setText(byId("problem-count"), problems.length === 0 ? "" : `Problems: ${problems.length}`);
  keyed(
    byId("problem-list"),
    problems,
    (each) => `${each.problem} ${each.vni} ${each.remote}`,
    (each) => {
      const where = each.remote !== null ? { kind: "remote", remote: each.remote } : each.vni !== null ? { kind: "vni", vni: each.vni } : null;
      const row = h("li", {}, h("b", {}, words(each.problem)), h("span"));
      if (where !== null) {
        const show = h("button", { type: "button", "aria-label": `Show ${each.remote ?? `VNI ${each.vni}`}` }, "Show");
        show.addEventListener("click", () => {
          select(where);
          byId("detail-heading").focus();
        });
        row.append(show);
      }
      return row;
    },
    (row, each) => setText(row.children[1], each.text),
  );
}

function drawTiles(remotes) {
  const rates = history.current(ALL);
  const seen = remotes.filter((each) => each.liveness === "seen").length;
  const tiles = [
    ["Received", bits(rates?.rx_bits), frames(rates?.rx_frames), "rx"],
    ["Sent", bits(rates?.tx_bits), frames(rates?.tx_frames), "tx"],
    ["Drops", perSecond(rates?.drops), `${count(Object.values(status.drops).reduce((one, other) => one + other, 0))} in all`, rates?.drops > 0 ? "bad" : ""],
    ["VNIs", count(status.segments.length), `${count(status.segments.filter(({ state }) => state === "up").length)} up`, ""],
    ["Remotes", count(remotes.length), `${count(seen)} seen`, ""],
    ["MACs", count(status.segments.reduce((sum, each) => sum + each.fdb_entries, 0)), "learned and configured", ""],
  ];
  keyed(
    byId("tiles"),
    tiles,
    ([title]) => title,
    ([title]) => h("div", { class: "tile" }, h("h3", {}, title), h("b"), h("span", { class: "muted" })),
    (node, [, value, more, name]) => {
      setAttribute(node, "class", `tile ${name}`);
      setText(node.children[1], value);
      setText(node.children[2], more);
    },
  );
}

// Those of what is selected: of a VNI, or with a remote as their last source.
function drawDrops(segments, filter) {
  const selected = selection.kind !== "all";
  const of = selection.kind === "vni" ? status.segments.filter(({ vni }) => vni === selection.vni) : segments;
  const rows = dropsOf(status, of, history, selection.kind === "remote" || !(selected || filter));
  const about = { all: "", vni: ` of VNI ${selection.vni}`, remote: ` with ${selection.remote} as the last source` };
  setText(byId("drops-heading"), `Drops${about[selection.kind]} in the last five minutes`);
  drops.update(selection.kind === "remote" ? rows.filter((row) => row.last_source === selection.remote) : rows);
}

function draw() {
  if (status === null) return;
  const remotes = remotesOf(status);
  const filter = byId("filter").value.trim().toLowerCase();
  const segments = status.segments.filter((each) => segmentMatches(each, filter));
  const shown = { status, remotes, history, selection, filter };
  setText(byId("about"), `${status.version}, process ${status.pid}, up for ${duration(Math.max(0, status.time - status.started))}`);
  drawProblems();
  drawTiles(remotes);
  map.update(shown);
  detail.update(shown);
  drawDrops(segments, filter);
  const empty = filter ? "Nothing matches the filter." : undefined;
  const isSelected = (is) => (item) => (is(item) ? "selected" : null);
  vniTable.update(segments, { empty, classOf: isSelected(({ vni }) => selection.vni === vni) });
  remoteTable.update(
    remotes.filter((each) => remoteMatches(each, filter)),
    { empty, classOf: isSelected(({ remote }) => selection.remote === remote) },
  );
}

// --- the connection ----------------------------------------------------------------------------

function drawLink(state, text) {
  const link = byId("link");
  setText(link, state);
  setAttribute(link, "class", `link ${state}`);
  setText(byId("banner"), text);
  setAttribute(byId("banner"), "hidden", !text);
  document.body.classList.toggle("stale", state !== "live" && status !== null);
}

async function poll() {
  let delay = RETRY_MS;
  try {
    const response = await fetch("/api/status", { signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!response.ok) throw new Error(await response.text());
    const answer = await response.json();
    // The server says when it asks again: so every page gets each answer, and none twice.
    delay = Math.max(50, Number(response.headers.get("X-Next")) * 1000 + 10);
    if (answer.state === "connected") {
      status = answer.status;
      drawLink("live", "");
      if (history.add(status)) draw();
    } else {
      drawLink("reconnecting", `Reconnecting to pyvtep. ${answer.error}`);
    }
  } catch (error) {
    const reason = error instanceof TypeError || error.name === "TimeoutError" ? "is it still running?" : error.message;
    drawLink("reconnecting", `Reconnecting: pyvtep web does not answer; ${reason}`);
  }
  setTimeout(poll, delay);
}

byId("filter").addEventListener("input", draw);
window.addEventListener("popstate", readSelection);
window.addEventListener("hashchange", readSelection);
readSelection();
poll();
