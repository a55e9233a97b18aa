// The status page: asks for the status document once a second and shows it. Asking, not a stream of events, because
// an EventSource cannot send an API key, and because a question that fails is simply asked again.

import { Chart } from "./charts.js";
import { icon, keep, make, pairs, put, say, showState } from "./dom.js";
import { show as showReplicas } from "./replicas.js";
import { snippets, Tabs } from "./snippets.js";
import { clock, count, lasted, look, rate, seconds, UNKNOWN } from "./words.js";

const POLL_MS = 1000, HIDDEN_POLL_MS = 15000, MAX_RETRY_MS = 5000, TIMEOUT_MS = 8000;
const KEY = "orch-api-key", THEME = "orch-theme";
const THEMES = ["system", "light", "dark"];
const PRIORITIES = ["HIGH", "NORMAL", "LOW"];
const OUTCOMES = [
  ["answered", "answered"], ["failed", "failed in the model"], ["rejected", "refused, overloaded"], ["expired", "too late"],
  ["cancelled", "cancelled"], ["lost", "lost with a worker"], ["poisoned", "poisonous"], ["retried", "runs repeated"],
];
const STAGES = [["queue", "in the queue"], ["batch", "at the worker"], ["compute", "in the model"]], STAGES_POLLS = 10;
const SEVERITIES = { info: ["info", "info"], warning: ["warning", "warning"], error: ["cross", "error"] };

const $ = (id) => document.getElementById(id);
const base = new URL(".", location.href).href;
const number = (value) => seconds(value).join(" ").trim();
const tabs = new Tabs($("tabs"), $("panels"));
const charts = [
  new Chart($("rate"), [
    { key: "answered_per_s", name: "answered", look: "", area: true },
    { key: "rejected_per_s", name: "refused", look: "refused", optional: true },
  ], rate, "no figures yet"),
  new Chart($("latency"), [
    { key: "p99_s", name: "p99", look: "second" },
    { key: "p50_s", name: "p50", look: "", area: true },
  ], number, "nothing was answered"),
];

const seen = []; // of the latest polls, by stage: how many, and their sum
let timer = null, isAsking = false, failures = 0, lastSeen = null, needsKey = false, lastEvent = null;
let model = null, modelOf = null; // what the model declares, and the process of the instance that said so

// What is remembered in this tab, or in this browser, where the browser allows it: it may refuse with an error.
function recall(store, name) {
  try { return window[store].getItem(name); } catch { return null; }
}

function remember(store, name, value) {
  try { value == null ? window[store].removeItem(name) : window[store].setItem(name, value); } catch { /* not kept */ }
}

// --- asking

function get(path) {
  const key = recall("sessionStorage", KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  return fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
}

async function ask() {
  if (isAsking) return;
  isAsking = true;
  clearTimeout(timer);
  try {
    const hadKey = Boolean(recall("sessionStorage", KEY)), answer = await get("v1/status");
    if (answer.status === 401 || answer.status === 403) {
      failures = 0;
      askForKey(hadKey);
      return;
    }
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    const status = await answer.json();
    if (!model || modelOf !== status.pid) {
      model = await declared(status);
      modelOf = status.pid;
    }
    failures = 0;
    lastSeen = new Date();
    $("key-form").hidden = true;
    connected(true);
    show(status);
  } catch (error) {
    failures += 1;
    connected(false, error.name === "TimeoutError" ? "no answer in time" : error instanceof TypeError ? "it cannot be reached" : error.message);
  } finally {
    isAsking = false;
  }
  timer = setTimeout(ask, document.hidden ? HIDDEN_POLL_MS : Math.min(MAX_RETRY_MS, POLL_MS * 2 ** Math.max(0, failures - 1)));
}

// What the model has declared that it takes and gives, for the snippets; null as long as nobody can say.
async function declared({ model: wanted }) {
  const answer = await get("v1/models");
  if (!answer.ok) return null;
  const { models } = await answer.json();
  return models.find(({ name }) => name === wanted) ?? null;
}

function askForKey(wasWrong) {
  needsKey = true;
  remember("sessionStorage", KEY, null);
  pulse("lost", "warning", "needs a key");
  $("banner").hidden = true;
  const form = $("key-form");
  say($("key-label"), wasWrong ? "That API key is not accepted. Another one?" : "This instance asks for an API key.");
  if (form.hidden || wasWrong) {
    form.hidden = false;
    $("key").focus();
  }
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  remember("sessionStorage", KEY, $("key").value.trim());
  $("key").value = "";
  ask();
});

document.addEventListener("visibilitychange", () => document.hidden || ask());
addEventListener("online", ask);

function connected(isLive, why) {
  const banner = $("banner"), wasLive = banner.hidden;
  document.body.classList.toggle("stale", !isLive);
  banner.hidden = isLive;
  if (isLive) {
    pulse("live", "check", "live");
    if (!wasLive) announce("Connected again.");
    return;
  }
  pulse("lost", "warning", "no connection");
  const since = lastSeen ? ` What is below is from ${clock(lastSeen / 1000)}.` : "";
  say(banner, `${location.host} does not answer: ${why}. Trying again.${since}`);
  if (wasLive) announce(`No connection: ${why}. Trying again.`);
}

function pulse(kind, iconName, word) {
  put($("pulse"), "class", `pulse ${kind}`);
  if ($("pulse-word").textContent === word) return;
  $("pulse-icon").replaceChildren(icon(iconName));
  say($("pulse-word"), word);
}

const announce = (text) => say($("said"), text);

// --- showing

function show(status) {
  const now = performance.now() / 1000, ready = status.replicas.filter(({ state }) => state === "READY").length;
  document.body.classList.remove("empty");
  document.title = `${status.state === "READY" ? "" : `${status.state} · `}${status.name} · orch`;
  say($("name"), status.name);
  const state = $("state");
  state.hidden = false;
  showState(state, status.state, ...look(status.state));
  say($("facts"), [
    `serves ${status.model}`, `${ready} of ${status.replicas.length} replicas ready`, `up ${lasted(status.uptime_s)}`,
    status.plan?.limit && `planned ${status.plan.total} (limit: ${status.plan.limit})`,
    status.search?.state && `search: ${status.search.state}`,
    status.mps?.state === "on" && "MPS on",
  ].filter(Boolean).join(" · "));
  showFigures(status, now);
  for (const chart of charts) if (status.history) chart.show(status.history);
  showStages(status);
  showQueue(status.queue);
  showPlan(status.plan?.because ?? []);
  showReplicas($("devices"), status, now);
  showEvents(status.events ?? []);
  tabs.show(snippets(base, { ...status, inputs: model?.inputs, outputs: model?.outputs }, needsKey));
  say($("version"), status.version ? `orch ${status.version}, process ${status.pid}` : "");
}

function showFigures({ queue, history }) {
  const latest = (column) => history?.[column]?.at(-1) ?? null;
  const [p50, p50Unit] = seconds(latest("p50_s")), [p99, p99Unit] = seconds(latest("p99_s"));
  const figures = [
    ["Requests/s", rate(latest("answered_per_s")), "", `${count(queue.answered)} answered`],
    ["Latency, median", p50, p50Unit, "queue to answer"],
    ["Latency, p99", p99, p99Unit, "99 % are faster"],
    ["Waiting", count(queue.queued), "", "in the queue"],
    ["With workers", count(queue.outstanding), "", "running, or next"],
    ["Refused", count(queue.rejected), "", "for lack of room"],
  ];
  const create = () => make("div", {}, make("dt"), make("dd", { class: "value" }, make("span"), make("span", { class: "unit" })), make("dd", { class: "note" }));
  keep($("figures"), figures, ([name]) => name, create, (box, [name, value, unit, note]) => {
    say(box.children[0], name);
    say(box.children[1].children[0], value);
    say(box.children[1].children[1], unit);
    say(box.children[2], note);
  });
}

// Where the time of the last requests went, by what the sums have grown since some polls ago.
function showStages({ latency, batch_rows: batches }) {
  const now = Object.fromEntries(Object.entries(latency ?? {}).filter(([, each]) => each.counts).map(([name, each]) => [name, [total(each.counts), each.sum_s]]));
  if (batches) now.rows = [total(batches.counts), batches.sum];
  if (seen.length && (now.total?.[0] ?? 0) < (seen.at(-1).total?.[0] ?? 0)) seen.length = 0; // another balancer counts
  seen.push(now);
  if (seen.length > STAGES_POLLS) seen.shift();
  const mean = (name) => {
    const [[before, old], [after, sum]] = [seen[0][name] ?? [0, 0], now[name] ?? [0, 0]];
    return after > before ? (sum - old) / (after - before) : null;
  };
  if (mean("compute") == null) return;
  const parts = STAGES.map(([name, where]) => `${number(Math.max(0, mean(name) ?? 0))} ${where}`).join(", ");
  say($("stages"), `Lately, on average: ${parts}; ${rate(mean("rows"))} rows in a batch.`);
}

const total = (counts) => counts.reduce((sum, each) => sum + each, 0);

function showQueue(queue) {
  const lanes = queue.by_priority ? PRIORITIES.map((name) => [name, queue.by_priority[name] ?? 0]) : [["any", queue.queued]];
  const most = Math.max(10, ...lanes.map(([, waiting]) => waiting));
  const create = () => make("div", { class: "lane" }, make("span"), make("div", { class: "track" }, make("span", { class: "fill" })), make("span", { class: "count" }));
  keep($("queue"), lanes, ([name]) => name, create, (lane, [name, waiting]) => {
    say(lane.children[0], name.toLowerCase());
    lane.querySelector(".fill").style.width = `${(100 * waiting) / most}%`;
    say(lane.children[2], count(waiting));
  });
  pairs($("outcomes"), OUTCOMES.filter(([key]) => queue[key] != null).map(([key, name]) => [key, name, count(queue[key])]));
}

function showPlan(because) {
  $("plan").hidden = !because.length;
  keep($("because"), because.map((text, n) => [n, text]), ([n]) => n, () => make("li"), (line, [, text]) => say(line, text));
}

function showEvents(events) {
  const list = $("events"), newest = [...events].reverse();
  const create = (event) => {
    if (!event.text) return make("li", { class: "empty" }, "nothing yet");
    const [iconName, word] = SEVERITIES[event.severity] ?? SEVERITIES.info;
    const when = make("time", { datetime: new Date(event.at * 1000).toISOString() }, clock(event.at));
    const severity = make("span", { class: "severity" }, make("span", { class: "icon" }, icon(iconName)), word);
    return make("li", { class: event.severity }, when, severity, make("span", { class: "text" }, event.text));
  };
  keep(list, newest.length ? newest : [{ number: 0, at: 0 }], ({ number: each, at }) => `${each} ${at}`, create, () => {});
  const fresh = newest.filter(({ number: each, severity }) => lastEvent != null && each > lastEvent && severity !== "info");
  if (fresh.length) announce(fresh.map(({ text }) => text).join(". "));
  lastEvent = newest[0]?.number ?? 0;
}

// --- light and dark

let theme = "system";

function setTheme(name) {
  remember("localStorage", THEME, name);
  theme = name;
  put(document.documentElement, "data-theme", name === "system" ? null : name);
  say($("theme"), `Theme: ${name}`);
}

$("theme").addEventListener("click", () => {
  setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
});

const chosen = recall("localStorage", THEME);
setTheme(THEMES.includes(chosen) ? chosen : "system");
ask();
