// Replicas as tiles on their devices: one card for each GPU, or one for the CPU.

import { keep, make, pairs, put, say, showState } from "./dom.js";
import { briefly, count, lasted, look, percent, rate, size } from "./words.js";

// Room above what is held or was measured, in a bar that has no other end.
const BAR_FACTOR = 1.25;
// A death this old is told in the events only.
const TOLD_S = 60;
// Rates of a replica are taken over so many seconds.
const OVER_S = 5;

const seen = new Map(); // by replica and process: looks of the last OVER_S, [at_s, answered, cpu_s]

// The devices of a status with the replicas on each; a GPU that the plan does not name any more counts as one, too.
export function devices(status) {
  const cards = status.gpus.map((gpu) => ({ key: gpu.uuid, gpu }));
  for (const { gpu, device } of status.replicas) {
    const key = gpu ?? device;
    if (!cards.some((card) => card.key === key)) cards.push({ key, gpu: null, device });
  }
  return cards.map((card) => ({ ...card, replicas: status.replicas.filter(({ gpu, device }) => (gpu ?? device) === card.key) }));
}

export function show(parent, status, now) {
  for (const key of seen.keys()) if (!status.replicas.some((replica) => keyOf(replica) === key)) seen.delete(key);
  const deaths = new Map(status.events?.filter(({ kind, severity }) => kind === "replica" && severity !== "info").map((event) => [event.replica, event]));
  keep(parent, devices(status), ({ key }) => key, newDevice, (card, device) => {
    const parts = device.gpu ? cardParts(device) : hostParts(device, status.host);
    say(card.querySelector("h3"), device.gpu ? `GPU ${device.gpu.index} · ${device.gpu.name}` : nameOf(device));
    keep(card.querySelector("header"), [["", ""], ...details(device, status)], ([name]) => name, () => make("span", { class: "detail" }, make("b"), " ", make("span")), (span, [name, value]) => {
      if (!name) return;
      say(span.children[0], value);
      say(span.children[1], name);
    });
    memory(card, parts);
    keep(card.querySelector(".tiles"), device.replicas, ({ id }) => id, newTile, (tile, replica) => showTile(tile, replica, deaths.get(replica.id), now));
  });
}

function nameOf({ device }) {
  return device === "cpu" ? "CPU" : `${device} (not in the plan any more)`;
}

function newDevice() {
  const title = make("h3");
  title.dataset.key = "";
  const bar = make("div", { class: "track memory", role: "img" });
  return make("article", { class: "device" }, make("header", {}, title), bar, make("p", { class: "key" }), make("div", { class: "tiles", role: "list" }));
}

function details({ gpu, replicas }, status) {
  const ready = replicas.filter(({ state }) => state === "READY").length;
  const rows = [[`of ${count(replicas.length)} replicas ready`, count(ready)]];
  if (!gpu) return [...rows, ["cores", count(status.host?.cores)]];
  if (gpu.utilization_percent != null) rows.push(["busy", percent(gpu.utilization_percent / 100)]);
  if (gpu.power_w != null) rows.push([gpu.power_limit_w ? `of ${Math.round(gpu.power_limit_w)} W` : "W", Math.round(gpu.power_w)]);
  if (gpu.temperature_c != null) rows.push(["°C", gpu.temperature_c]);
  rows.push([gpu.mps ? "on: replicas run at the same time" : "off: replicas run in turns", "MPS"]);
  return rows;
}

// [name, look, bytes] of a GPU's memory, each replica's first.
function cardParts({ gpu, replicas }) {
  if (gpu.total_bytes == null) return [];
  const used = gpu.used_bytes;
  const told = replicas.filter(({ pid }) => pid).map((each) => [each.id, each.memory_bytes ?? each.footprint_bytes ?? 0]);
  const ours = Math.min(used, told.reduce((sum, [, bytes]) => sum + bytes, 0));
  return [
    ...told.map(([id, bytes]) => [id, "part-replica", bytes]),
    ["others", "part-others", used - ours],
    ["free", "part-free", gpu.free_bytes ?? Math.max(0, gpu.total_bytes - used - (gpu.reserved_bytes ?? 0))],
    ["reserved", "part-reserved", gpu.reserved_bytes ?? 0],
  ];
}

function hostParts({ device, replicas }, host) {
  if (!host || device !== "cpu") return [];
  const told = replicas.filter(({ pid }) => pid).map((each) => [each.id, each.memory_bytes ?? each.footprint_bytes ?? 0]);
  const used = host.memory_total_bytes - host.memory_available_bytes;
  const ours = told.reduce((sum, [, bytes]) => sum + bytes, 0);
  return [
    ...told.map(([id, bytes]) => [id, "part-replica", bytes]),
    ["others", "part-others", Math.max(0, used - ours)],
    ["free", "part-free", host.memory_available_bytes],
  ];
}

function memory(card, parts) {
  const bar = card.querySelector(".memory"), total = parts.reduce((sum, [, , bytes]) => sum + bytes, 0);
  bar.hidden = !total;
  keep(bar, parts, ([name]) => name, ([, kind]) => make("span", { class: kind }), (part, [, , bytes]) => {
    part.style.width = `${(100 * bytes) / (total || 1)}%`;
  });
  const groups = new Map([["part-replica", "replicas"], ["part-others", "other processes"], ["part-free", "free"], ["part-reserved", "kept by the driver"]]);
  const rows = [...groups].map(([kind, name]) => [kind, name, parts.filter(([, each]) => each === kind).reduce((sum, [, , bytes]) => sum + bytes, 0)]);
  const told = total ? rows.filter(([kind, , bytes]) => bytes || kind === "part-free") : [];
  keep(card.querySelector(".key"), told, ([kind]) => kind, ([kind]) => make("span", {}, make("i", { class: kind }), make("span")), (entry, [, name, bytes]) => {
    say(entry.children[1], `${name} ${size(bytes)}`);
  });
  put(bar, "aria-label", `Memory of ${size(total)}: ${told.map(([, name, bytes]) => `${name} ${size(bytes)}`).join(", ")}`);
}

function newTile() {
  const bar = make("div", { class: "track", role: "meter" }, make("span", { class: "fill" }), make("span", { class: "mark", title: "its footprint, as measured" }));
  const top = make("div", { class: "top" }, make("h4"), make("span", { class: "process" }), make("p", { class: "state" }));
  return make("article", { class: "tile", role: "listitem" }, top, bar, make("p", { class: "held" }), make("dl", { class: "small" }), make("p", { class: "why" }));
}

function showTile(tile, replica, death, now) {
  const [iconName, kind] = look(replica.state), [perSecond, cores] = rates(replica, now);
  put(tile, "class", `tile ${replica.state === "READY" ? "" : kind}`.trim());
  put(tile, "data-state", replica.state);
  say(tile.querySelector("h4"), replica.id);
  say(tile.querySelector(".process"), replica.pid ? `process ${replica.pid}` : "no process");
  showState(tile.querySelector(".state"), replica.state, iconName, kind);
  held(tile, replica);
  pairs(tile.querySelector(".small"), [
    ["rate", "requests/s", rate(perSecond)],
    ["outstanding", "with it", count(replica.outstanding)],
    ["answered", "answered", briefly(replica.answered)],
    ["cores", "CPU", percent(cores)],
    ["restarts", "restarts", count(replica.restarts)],
    ["up", "serving", lasted(replica.up_s, 1)],
  ]);
  const why = tile.querySelector(".why"), text = story(replica, death);
  why.hidden = !text;
  say(why, text);
}

function held(tile, { memory_bytes: now, footprint_bytes: footprint, fence_bytes: fence, pid }) {
  const bar = tile.querySelector(".track"), bytes = pid ? now ?? footprint : null;
  const whole = fence ?? BAR_FACTOR * Math.max(footprint ?? 0, bytes ?? 0);
  bar.classList.toggle("about", now == null);
  bar.querySelector(".fill").style.width = whole ? `${Math.min(100, (100 * (bytes ?? 0)) / whole)}%` : "0";
  const mark = bar.querySelector(".mark");
  mark.hidden = footprint == null || !whole;
  mark.style.left = whole ? `${Math.min(99, (100 * (footprint ?? 0)) / whole)}%` : "0";
  const first = bytes == null ? "no memory" : `${now == null ? "about " : ""}${size(bytes)}`;
  const measured = footprint == null ? "not measured yet" : `footprint ${size(footprint)}`;
  const second = fence == null || bytes == null ? measured : `of ${size(fence)} fenced`;
  const line = tile.querySelector(".held");
  if (!line.firstChild) line.append(make("b"), make("span"));
  say(line.children[0], first);
  say(line.children[1], `  ${second}`);
  put(bar, "aria-label", "memory");
  put(bar, "aria-valuemin", 0);
  put(bar, "aria-valuemax", Math.round(whole));
  put(bar, "aria-valuenow", Math.round(bytes ?? 0));
  put(bar, "aria-valuetext", `${first}, ${second}, ${measured}`);
}

// Why it does not serve, or why it did not a moment ago.
function story({ state, reason, starts_in_s: startsIn }, death) {
  const again = startsIn == null ? "" : `; starts again in ${startsIn.toFixed(1)} s`;
  if (["BACKOFF", "QUARANTINED", "DRAINING"].includes(state)) return reason + again;
  const age = death ? Date.now() / 1000 - death.at : Infinity;
  return age < TOLD_S ? `${Math.max(0, Math.round(age))} s ago: ${death.text}` : "";
}

const keyOf = ({ id, pid }) => `${id} ${pid}`;

// Requests a second, and cores in use, since the oldest look of the last seconds.
function rates(replica, now) {
  const key = keyOf(replica), looks = seen.get(key) ?? [];
  const last = looks.at(-1);
  if (last && replica.answered < last[1]) looks.length = 0; // a new balancer counts from 0
  looks.push([now, replica.answered, replica.cpu_s]);
  while (looks.length > 2 && now - looks[1][0] > OVER_S) looks.shift();
  seen.set(key, looks);
  const [since, answered, cpu] = looks[0], took = now - since;
  if (!replica.pid || took < 0.5) return [null, null];
  return [(replica.answered - answered) / took, cpu == null || replica.cpu_s == null ? null : (replica.cpu_s - cpu) / took];
}
