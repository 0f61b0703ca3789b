// The page of a node's daemon: the cluster as this node sees it. It reads `status` and `pods` from the server that sent it.
// Names, addresses and problems of other nodes are foreign text: they are only ever set as `textContent`.
"use strict";

/** Up to this number of nodes each one is drawn with its name, above with a mark only. */
const DRAWN_WITH_NAMES = 60;
/** The most rows of a table. */
const MOST_ROWS = 100;
/** The most groups of nodes that are reached over tunnels. More are joined under shorter prefixes. */
const MOST_GROUPS = 64;
/** The states of a node, the worst first. `mark` is what tells them apart without colours. */
const STATES = {
  problem: {title: "problem", mark: "!"},
  silent: {title: "silent", mark: "×"},
  unanswered: {title: "no answer", mark: "–"},
  unprobed: {title: "not probed", mark: "?"},
  well: {title: "answers", mark: ""},
};
const EXPLAINED = {
  problem: "this node does not follow the node's record as a whole, or has no path to it",
  silent: "the node's lease has ended; its routes stay",
  unanswered: "the node's daemon did not answer the last probe",
  unprobed: "no probe has been sent to the node yet",
  well: "the node's daemon answered the last probe",
};
const COLUMNS = [
  ["name", "Node"], ["state", "State"], ["path", "Path"], ["rtt", "Round trip"], ["addresses", "Addresses"], ["blocks", "Blocks"],
  ["problem", "Problem"],
];

const at = id => document.getElementById(id);
const number = new Intl.NumberFormat("en-GB");
const order = new Intl.Collator("en", {numeric: true}).compare;
const count = (amount, one, many) => `${number.format(amount)} ${amount === 1 ? one : many}`;

/* What is shown. */
let status = null, nodes = [], etag = null, received = 0, lost = null, pods = null;
/* What the operator has chosen. */
let selected = null, wanted = null, sortedBy = "state", backwards = false, current = null;

// Elements ------------------------------------------------------------------------------------------------------------------------

function make(kind, className, text) {
  const element = document.createElement(kind);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
/** Sets a text if it differs, so that a selection of it stays. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
function set(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}
/** Makes elements the children of another. Those that are in place are not moved: they keep focus and scroll position. */
function place(parent, children) {
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}
/** Returns a function that returns the same element for the same key, and forgets elements that `keep` does not name. */
function elements(create) {
  const known = new Map();
  const get = key => {
    let element = known.get(key);
    if (!element) known.set(key, element = create(key));
    return element;
  };
  get.keep = keys => { for (const key of known.keys()) if (!keys.has(key)) known.delete(key); };
  return get;
}
/** Fills an element with items, each with some texts. Items are used again. */
function fill(parent, [kind, kindOfText], items) {
  place(parent, items.map((texts, index) => {
    const item = parent.children[index] ?? make(kind);
    place(item, texts.map((text, position) => {
      const element = item.children[position] ?? make(kindOfText(position));
      say(element, text);
      return element;
    }));
    return item;
  }));
}

// Addresses -----------------------------------------------------------------------------------------------------------------------

/** Parses an address or a prefix: the family, and the first and the last address as numbers. Returns null for any other text. */
function range(text) {
  const [, address, length] = /^([0-9a-f.:]+)(?:\/(\d{1,3}))?$/i.exec(text) ?? [];
  if (address === undefined) return null;
  const family = address.includes(":") ? 6 : 4;
  const groups = family === 4 ? parts4(address) : parts6(address);
  const bits = family === 4 ? 32 : 128;
  if (!groups || Number(length ?? bits) > bits) return null;
  const width = family === 4 ? 8n : 16n;
  const value = groups.reduce((sum, group) => (sum << width) | BigInt(group), 0n);
  const host = BigInt(bits - Number(length ?? bits));
  const first = (value >> host) << host;
  return {family, first, last: first + (1n << host) - 1n};
}
function parts4(text) {
  const parts = text.split(".");
  return parts.length === 4 && parts.every(part => /^\d{1,3}$/.test(part) && part < 256) ? parts.map(Number) : null;
}
function parts6(text) {
  const sides = text.split("::");
  if (sides.length > 2) return null;
  const [before, after] = [sides[0], sides[1] ?? ""].map(side => side ? side.split(":") : []);
  const missing = 8 - before.length - after.length;
  if (sides.length === 2 ? missing < 1 : missing !== 0) return null;
  const parts = [...before, ...Array(missing).fill("0"), ...after];
  return parts.every(part => /^[0-9a-f]{1,4}$/i.test(part)) ? parts.map(part => parseInt(part, 16)) : null;
}
/** Returns the prefix of a length that an address is in, as a text. */
function prefixOf(address, lengths) {
  const found = range(address);
  if (!found) return "unknown addresses";
  const length = lengths[found.family];
  const host = BigInt((found.family === 4 ? 32 : 128) - length);
  let first = (found.first >> host) << host;
  const parts = [];
  const [amount, width] = found.family === 4 ? [4, 8n] : [8, 16n];
  for (let part = 0; part < amount; part++, first >>= width) parts.unshift(Number(first & ((1n << width) - 1n)));
  if (found.family === 4) return `${parts.join(".")}/${length}`;
  return `${parts.map(part => part.toString(16)).join(":").replace(/(^|:)0(:0)+$/, "::")}/${length}`;
}

// Nodes ---------------------------------------------------------------------------------------------------------------------------

function stateOf(peer) {
  if (peer.silentSeconds !== null) return "silent";
  if (peer.problem !== null || !peer.path) return "problem";
  return peer.answers === null ? "unprobed" : peer.answers ? "well" : "unanswered";
}
const byState = (() => {
  const rank = Object.fromEntries(Object.keys(STATES).map((state, index) => [state, index]));
  return (a, b) => rank[a.state] - rank[b.state];
})();
/** Returns all nodes, this one included, by name. */
function nodesOf(status) {
  const own = {
    name: status.node, own: true, state: status.ready ? "well" : "problem", path: null, rttUs: null, silentSeconds: null, answers: null,
    addresses: status.addresses, blocks: status.blocks.map(block => block.prefix), problem: status.problems.join("; ") || null,
  };
  const peers = status.peers.map(peer => Object.assign(peer, {own: false, state: stateOf(peer)}));
  return [own, ...peers].sort((a, b) => order(a.name, b.name));
}
function stateTitle(node) {
  if (!node.own) return STATES[node.state].title;
  return node.state === "well" ? "ready" : "not ready";
}
const rtt = node => node.rttUs === null ? "" : `${(node.rttUs / 1000).toFixed(2)} ms`;
const pathTitle = node => node.own ? "this node" : node.path ?? "none";

/** Returns whether a node matches the search: an address or a prefix by what it contains, any other text by its characters. */
function matcher(text) {
  const sought = text.trim().toLowerCase();
  if (!sought) return () => true;
  const net = range(sought);
  if (!net) return node => [node.name, ...node.addresses, ...node.blocks, node.problem ?? ""].some(it => it.toLowerCase().includes(sought));
  const overlaps = other => other && other.family === net.family && other.first <= net.last && net.first <= other.last;
  return node => [...node.addresses, ...node.blocks].some(it => overlaps(known(it)));
}
const known = (() => {
  const parsed = new Map();
  return text => {
    if (parsed.size > 100000) parsed.clear();
    if (!parsed.has(text)) parsed.set(text, range(text));
    return parsed.get(text);
  };
})();

/** Groups peers by the path to them, and those that are reached over tunnels by the prefix of their first address as well. */
function groupsOf(peers) {
  const tunnelled = peers.filter(peer => peer.path?.includes("tunnel"));
  // The longest prefixes that do not make too many groups.
  const steps = [[24, 64], [22, 60], [20, 56], [16, 48], [12, 40], [8, 32], [0, 0]].map(([four, six]) => ({4: four, 6: six}));
  const few = lengths => {
    const prefixes = new Set();
    for (const peer of tunnelled) {
      prefixes.add(prefixOf(peer.addresses[0] ?? "", lengths));
      if (prefixes.size > MOST_GROUPS) return false;
    }
    return true;
  };
  const lengths = steps.find(few) ?? steps.at(-1);
  const groups = new Map();
  for (const peer of peers) {
    const prefix = peer.path?.includes("tunnel") ? prefixOf(peer.addresses[0] ?? "", lengths) : "";
    const key = `${peer.path ?? "none"} ${prefix}`;
    if (!groups.has(key)) groups.set(key, {key, path: peer.path, prefix, nodes: []});
    groups.get(key).nodes.push(peer);
  }
  const rank = group => !group.path ? 0 : group.path.includes("tunnel") ? 2 : 1;
  return [...groups.values()].sort((a, b) => rank(a) - rank(b) || order(a.key, b.key));
}
function groupTitle(group) {
  const titles = {direct: "route, same segment", learnt: "learnt route", segment: "pods on the segment"};
  if (!group.path) return "no path";
  return group.prefix ? `${group.path} to ${group.prefix}` : titles[group.path] ?? group.path;
}

// The map -------------------------------------------------------------------------------------------------------------------------

const cellOf = elements(name => {
  const cell = make("span", "cell");
  cell.id = `cell ${name}`.replaceAll(/\s/g, "_");
  cell.dataset.name = name;
  cell.setAttribute("role", "option");
  cell.append(make("span", "mark"), make("span", "label"), make("span", "note"));
  return cell;
});
const groupOf = elements(() => {
  const group = make("section", "group");
  const head = make("h3");
  head.append(make("span", "title"), make("span", "counts"));
  const cells = make("div", "cells");
  cells.setAttribute("role", "listbox");
  cells.tabIndex = 0;
  group.append(head, cells);
  return group;
});
/** Brings a node's mark up to date. */
function showCell(node, withNames) {
  const cell = cellOf(node.name);
  const [mark, label, note] = cell.children;
  const className = `cell ${node.state}`;
  if (cell.dataset.shown !== className) {
    cell.dataset.shown = className;
    for (const state of Object.keys(STATES)) cell.classList.toggle(state, state === node.state);
    say(mark, STATES[node.state].mark);
  }
  const title = `${node.name}: ${stateTitle(node)}`;
  if (cell.title !== title) {
    cell.title = title;
    cell.setAttribute("aria-label", title);
  }
  say(label, withNames ? node.name : "");
  say(note, withNames ? node.blocks.join("\n") : "");
  return cell;
}
function showMap() {
  const withNames = nodes.length <= DRAWN_WITH_NAMES;
  const groups = groupsOf(nodes.filter(node => !node.own));
  at("map").classList.toggle("tree", withNames);
  const own = nodes.find(node => node.own);
  const root = groupOf("this node");
  root.classList.add("root");
  const shown = [root, ...groups.map(group => {
    const element = groupOf(group.key), [head, cells] = element.children;
    element.classList.toggle("tunnel", group.path?.includes("tunnel") ?? false);
    element.classList.toggle("none", !group.path);
    const title = groupTitle(group);
    say(head.children[0], title);
    const unwell = Object.keys(STATES).filter(state => state !== "well")
      .map(state => [state, group.nodes.filter(node => node.state === state).length]).filter(([, amount]) => amount > 0);
    say(head.children[1], [count(group.nodes.length, "node", "nodes"),
      ...unwell.map(([state, amount]) => `${number.format(amount)} ${STATES[state].title}`)].join(", "));
    element.classList.toggle("unwell", unwell.some(([state]) => state !== "unprobed"));
    set(cells, "aria-label", title);
    place(cells, group.nodes.map(node => showCell(node, withNames)));
    return element;
  })];
  const [head, cells] = root.children;
  say(head.children[0], "this node");
  set(cells, "aria-label", "this node");
  place(cells, [showCell(own, true)]);
  place(at("map"), shown);
  cellOf.keep(new Set(nodes.map(node => node.name)));
  groupOf.keep(new Set(["this node", ...groups.map(group => group.key)]));
}
/** Marks the selected node, and hides nodes that do not match, and groups without any that does. */
function markCells(matching) {
  for (const node of nodes) {
    const cell = cellOf(node.name), isSelected = node.name === selected;
    cell.classList.toggle("out", !matching.has(node.name));
    if (cell.classList.contains("selected") !== isSelected) {
      cell.classList.toggle("selected", isSelected);
      set(cell, "aria-selected", String(isSelected));
    }
  }
  for (const group of at("map").children) group.classList.toggle("out", !group.querySelector(".cell:not(.out)"));
}
/** Makes a node the one that arrow keys start from. */
function moveTo(cell) {
  current?.classList.remove("current");
  current = cell;
  cell.classList.add("current");
  cell.parentElement.setAttribute("aria-activedescendant", cell.id);
  cell.scrollIntoView({block: "nearest"});
}
function onKey(event) {
  const list = event.target.closest("[role=listbox]");
  if (!list) return;
  const cells = [...list.children].filter(cell => !cell.classList.contains("out"));
  const from = current?.parentElement === list ? cells.indexOf(current) : -1;
  const perRow = Math.max(cells.findIndex(cell => cell.offsetTop > cells[0].offsetTop), 1);
  const to = {ArrowRight: from + 1, ArrowLeft: from - 1, ArrowDown: from < 0 ? 0 : from + perRow, ArrowUp: from - perRow, Home: 0,
    End: cells.length - 1}[event.key];
  if (to !== undefined) {
    event.preventDefault();
    moveTo(cells[Math.min(Math.max(to, 0), cells.length - 1)]);
  } else if ((event.key === "Enter" || event.key === " ") && from >= 0) {
    event.preventDefault();
    select(current.dataset.name);
  }
}

// The table -----------------------------------------------------------------------------------------------------------------------

const rowOf = elements(name => {
  const row = make("tr");
  for (const [key] of COLUMNS) row.append(make("td", key));
  const button = make("button", "link");
  button.type = "button";
  button.dataset.name = name;
  row.firstElementChild.append(button);
  row.children[1].append(make("span", "mark"), make("span"));
  return row;
});
function showRow(node) {
  const row = rowOf(node.name), [name, state, ...others] = row.children;
  say(name.firstElementChild, node.name);
  state.firstElementChild.className = `mark ${node.state}`;
  say(state.firstElementChild, STATES[node.state].mark);
  say(state.lastElementChild, stateTitle(node));
  [pathTitle(node), rtt(node), node.addresses.join("\n"), node.blocks.join("\n"), node.problem ?? ""]
    .forEach((text, index) => say(others[index], text));
  row.classList.toggle("selected", node.name === selected);
  return row;
}
function compare(a, b) {
  switch (sortedBy) {
    case "state": return byState(a, b);
    case "path": return order(pathTitle(a), pathTitle(b));
    case "rtt": return (a.rttUs ?? Infinity) === (b.rttUs ?? Infinity) ? 0 : (a.rttUs ?? Infinity) - (b.rttUs ?? Infinity);
    case "addresses": case "blocks": return order(a[sortedBy][0] ?? "", b[sortedBy][0] ?? "");
    case "problem": return order(b.problem ?? "", a.problem ?? "");
    default: return 0;
  }
}
function showTable() {
  const found = nodes.filter(matcher(at("search").value));
  const matching = found.filter(node => !wanted || node.state === wanted);
  const sorted = sortedBy === "name" ? [...matching] : [...matching].sort(compare);
  if (backwards) sorted.reverse();
  const shown = sorted.slice(0, MOST_ROWS);
  place(at("rows"), shown.map(showRow));
  rowOf.keep(new Set(shown.map(node => node.name)));
  const more = sorted.length - shown.length;
  say(at("shown"), !sorted.length ? "No node matches."
    : `${count(sorted.length, "node", "nodes")} of ${number.format(nodes.length)}${more ? `: the first ${shown.length} are listed, ${number.format(more)} more match` : ""}`);
  for (const button of at("states").children) {
    const state = button.dataset.state, amount = found.filter(node => !state || node.state === state).length;
    say(button.lastElementChild, number.format(amount));
    set(button, "aria-pressed", String((wanted ?? "") === state));
  }
  for (const head of at("heads").children) {
    if (head.dataset.key === sortedBy) set(head, "aria-sort", backwards ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  markCells(new Set(matching.map(node => node.name)));
}

// Details -------------------------------------------------------------------------------------------------------------------------

const time = new Intl.DateTimeFormat("en-GB", {dateStyle: "medium", timeStyle: "medium"});
const when = seconds => time.format(new Date(seconds * 1000));
function duration(seconds) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"]];
  const [size, unit] = units.find(([size]) => seconds >= size) ?? [1, "s"];
  return `${Math.floor(seconds / size)} ${unit}`;
}
function describe(changes) {
  const kinds = {routes: ["route", "routes"], neighbours: ["neighbour", "neighbours"], devices: ["change of a device", "changes of devices"],
    forwardingEntries: ["forwarding entry", "forwarding entries"], settings: ["setting", "settings"]};
  const texts = Object.entries(changes).map(([kind, amount]) => kinds[kind] ? count(amount, ...kinds[kind]) : "the ruleset");
  return texts.join(", ");
}
function facts(node) {
  const facts = [["State", node.own ? stateTitle(node) : `${stateTitle(node)}: ${EXPLAINED[node.state]}`]];
  if (node.own) {
    facts.push(...status.networks.map(it => [`Network ${it.name}`, `mode ${it.mode}, MTU ${it.mtu}`]));
    facts.push(["Store", `${status.store.kind}, ${status.store.connected ? "connected" : status.store.problem ?? "not connected"}`]);
  } else {
    facts.push(["Path", pathTitle(node)], ["Round trip", rtt(node) || "unknown"]);
    if (node.silentSeconds !== null) facts.push(["Silent for", duration(node.silentSeconds + (Date.now() - received) / 1000)]);
    if (node.problem) facts.push(["Problem", node.problem]);
  }
  facts.push(["Addresses", node.addresses.join("\n") || "none"]);
  if (!node.own) facts.push(["Blocks", node.blocks.join("\n") || "none"]);
  return facts;
}
const blockOf = elements(() => {
  const item = make("li");
  item.append(make("span"), make("meter"));
  return item;
});
function showDetails() {
  const node = nodes.find(node => node.name === selected) ?? nodes.find(node => node.own);
  say(at("details-name"), node.own ? `This node: ${node.name}` : node.name);
  at("close").hidden = node.own;
  at("own").hidden = !node.own;
  at("details").classList.toggle("peer", !node.own);
  const list = at("details-facts");
  place(list, facts(node).flatMap(([name, text], index) => {
    const pair = [list.children[2 * index] ?? make("dt"), list.children[2 * index + 1] ?? make("dd")];
    say(pair[0], name);
    say(pair[1], text);
    return pair;
  }));
  if (node.own) showOwn();
}
/** Returns the pods' attachments, each with all its addresses. */
function attachmentsOf(pods) {
  const attachments = new Map();
  for (const pod of pods) {
    const key = JSON.stringify([pod.network, pod.container || pod.address, pod.interface]);
    if (!attachments.has(key)) attachments.set(key, {...pod, addresses: []});
    attachments.get(key).addresses.push(pod.address);
  }
  return [...attachments.values()];
}
function showOwn() {
  place(at("blocks"), status.blocks.map(block => {
    const item = blockOf(block.prefix), [text, meter] = item.children;
    const used = block.used === null ? "unknown number" : number.format(block.used);
    // Of the addresses of an IPv6 block the number says nothing.
    say(text, `${block.prefix}: ${used} ${block.size < 1e6 ? `of ${number.format(block.size)} ` : ""}addresses in use`);
    Object.assign(meter, {max: block.size || 1, value: block.used ?? 0, high: 0.8 * block.size, hidden: block.used === null});
    meter.setAttribute("aria-label", `use of ${block.prefix}`);
    return item;
  }));
  if (typeof pods === "string") {
    say(at("pod-count"), pods);
  } else if (pods) {
    const attachments = attachmentsOf(pods), more = attachments.length - MOST_ROWS;
    say(at("pod-count"), number.format(attachments.length) + (more > 0 ? `: the first ${MOST_ROWS} are listed` : ""));
    fill(at("pods"), ["tr", () => "td"], attachments.slice(0, MOST_ROWS).map(pod => [pod.addresses.join("\n"), pod.container, pod.interface, pod.network]));
    for (const row of at("pods").children) set(row.children[1], "title", row.children[1].textContent);
  }
  const table = at("pods").parentElement;
  table.hidden = typeof pods === "string" || !pods?.length;
  table.classList.toggle("one-network", status.networks.length < 2);
  say(at("repair-count"), count(status.counters.repairs, "change since the start", "changes since the start"));
  const entry = ["li", position => position ? "div" : "span"];
  const repairs = status.repairs.toReversed().map(repair => [when(repair.at), describe(repair.changes)]);
  fill(at("repairs"), entry, repairs.length ? repairs : [["none since the start"]]);
  const faults = status.faults.toReversed().map(fault => [
    `${when(fault.since)}, ${fault.until === null ? "continues" : `lasted ${duration(fault.until - fault.since)}`}`, fault.problem]);
  fill(at("faults"), entry, faults.length ? faults : [["none since the start"]]);
}
function select(name) {
  selected = nodes.find(node => node.name === name)?.own ? null : name;
  showTable();
  showDetails();
  at("details").scrollTop = 0;
}

// Refreshing ----------------------------------------------------------------------------------------------------------------------

function draw(newer) {
  status = newer;
  nodes = nodesOf(status);
  say(at("name"), status.node);
  say(at("facts"), [`${count(nodes.length, "node", "nodes")}`, ...status.networks.map(it => `network ${it.name}: mode ${it.mode}, MTU ${it.mtu}`),
    `store ${status.store.kind} ${status.store.connected ? "connected" : "not reachable"}`].join(" · "));
  const problems = [...status.problems, ...status.notes, ...status.store.refused];
  fill(at("problems"), ["li", () => "span"], problems.map(text => [text]));
  showMap();
  showTable();
  showDetails();
}
function showReady() {
  const pill = at("ready");
  say(pill, lost ? `the daemon does not answer since ${time.format(lost)}` : status.ready ? "ready" : "not ready");
  pill.className = `pill ${!lost && status.ready ? "well" : "problem"}`;
}
async function load() {
  const answer = await fetch("status", {headers: etag ? {"if-none-match": etag} : {}});
  if (answer.status !== 304) {
    if (!answer.ok) throw new Error(answer.statusText);
    const newer = await answer.json();
    etag = answer.headers.get("etag");
    received = Date.now();
    draw(newer);
  }
  lost = null;
  showReady();
  if (!selected) {
    const answer = await fetch("pods");
    pods = answer.ok ? await answer.json() : await answer.text();
    showDetails();
  }
}
async function refresh() {
  clearTimeout(refresh.timer);
  // A page that nobody sees asks for nothing.
  if (document.hidden) return;
  try {
    await load();
  } catch {
    lost ??= new Date();
    showReady();
  }
  // A large document takes longer to send and to draw.
  refresh.timer = setTimeout(refresh, 2000 + 2 * nodes.length);
}
function start() {
  place(at("states"), ["", ...Object.keys(STATES)].map(state => {
    const button = make("button");
    button.type = "button";
    button.dataset.state = state;
    if (state) button.append(make("span", `mark ${state}`, STATES[state].mark));
    button.append(make("span", "", state ? STATES[state].title : "all"), make("span", "amount"));
    button.addEventListener("click", () => { wanted = state || null; showTable(); });
    return button;
  }));
  place(at("heads"), COLUMNS.map(([key, title]) => {
    const head = make("th", key), button = make("button", "link", title);
    head.dataset.key = key;
    head.scope = "col";
    button.type = "button";
    button.addEventListener("click", () => {
      backwards = sortedBy === key && !backwards;
      sortedBy = key;
      showTable();
    });
    head.append(button);
    return head;
  }));
  at("search").addEventListener("input", showTable);
  at("map").addEventListener("click", event => {
    const cell = event.target.closest(".cell");
    if (cell) { moveTo(cell); select(cell.dataset.name); }
  });
  at("map").addEventListener("keydown", onKey);
  at("rows").addEventListener("click", event => {
    const row = event.target.closest("tr");
    if (row) select(row.querySelector("button").dataset.name);
  });
  at("close").addEventListener("click", () => select(null));
  document.addEventListener("keydown", event => { if (event.key === "Escape" && selected) select(null); });
  document.addEventListener("visibilitychange", refresh);
  refresh();
}
start();
