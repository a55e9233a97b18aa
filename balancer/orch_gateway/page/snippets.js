// What to type to call this instance: texts with its real address, in tabs.

import { make, put, say } from "./dom.js";

const SHOWN_ELEMENTS = 8; // of a tensor that is written out

const NUMPY = {
  BOOL: "bool", UINT8: "uint8", UINT16: "uint16", UINT32: "uint32", UINT64: "uint64", INT8: "int8", INT16: "int16",
  INT32: "int32", INT64: "int64", FP16: "float16", FP32: "float32", FP64: "float64",
};

// [name, text, note] of each way to call. base: the page's URL; status: the document, and what the model has
// declared that it takes and gives; needsKey: it asks for an API key.
export function snippets(base, status, needsKey) {
  return [
    ["curl", curl(base, status, needsKey), "A payload as JSON, its answer as JSON."],
    ["Python", python(status), status.listen ? "" : "On the same host, over shared memory for large arrays."],
    ["tritonclient", triton(base, status, needsKey), "pip install tritonclient[http]. Any client of the Open Inference Protocol v2 will do."],
  ];
}

function curl(base, { model, inputs }, needsKey) {
  const key = needsKey ? ` \\\n  -H "Authorization: Bearer $ORCH_API_KEY"` : "";
  if (!inputs?.length) return `curl ${base}v1/models/${encodeURIComponent(model)}:predict${key} \\\n  -H 'Content-Type: application/json' -d '"hello"'`;
  const isSmall = inputs.every((tensor) => elements(tensor) <= SHOWN_ELEMENTS);
  const where = `${base}v2/models/${encodeURIComponent(model)}`;
  if (!isSmall) return `curl ${where}${key}   # its inputs and outputs`;
  const body = { inputs: inputs.map((tensor) => ({ name: tensor.name, shape: shapeOf(tensor), datatype: tensor.datatype, data: Array(elements(tensor)).fill(tensor.datatype === "BYTES" ? "hello" : 0) })) };
  return `curl ${where}/infer${key} \\\n  -H 'Content-Type: application/json' -d '${JSON.stringify(body)}'`;
}

function python({ name, listen, inputs }) {
  const how = listen ? `"${listen}"` : name === "default" ? "" : `name="${name}"`;
  const payload = inputs?.length ? `{${inputs.map((tensor) => `"${tensor.name}": ${array(tensor, tensor.shape)}`).join(", ")}}` : `"hello"`;
  const numpy = inputs?.some(({ datatype }) => NUMPY[datatype]) ? "import numpy as np\n" : "";
  return `${numpy}from orch import Client\n\nwith Client(${how}) as client:\n    print(client.request(${payload}, timeout=5.0))`;
}

function triton(base, { model, inputs, outputs }, needsKey) {
  const address = new URL(base), isTls = address.protocol === "https:";
  const host = address.host.includes(":") ? address.host : `${address.host}:${isTls ? 443 : 80}`;
  const path = address.pathname.replace(/^\/|\/$/g, "");
  const where = path ? `${host}/${path}` : host;
  const key = needsKey ? `,\n    headers={"Authorization": "Bearer " + os.environ["ORCH_API_KEY"]}` : "";
  const tensors = inputs?.length ? inputs : [{ name: "input", datatype: "BYTES", shape: [], text: `'"hello"'` }];
  const lines = tensors.map((tensor, n) => `tensor${n} = http.InferInput("${tensor.name}", ${list(shapeOf(tensor))}, "${tensor.datatype}")\ntensor${n}.set_data_from_numpy(${array(tensor, shapeOf(tensor))})`);
  const results = (outputs?.length ? outputs : [{ name: "output" }]).map(({ name }) => `print(answer.as_numpy("${name}"))`);
  const names = tensors.map((_, n) => `tensor${n}`).join(", ");
  return `${needsKey ? "import os\n\n" : ""}import numpy as np\nimport tritonclient.http as http\n\nclient = http.InferenceServerClient("${where}"${isTls ? ", ssl=True" : ""})\n${lines.join("\n")}\nanswer = client.infer("${model}", [${names}]${key})\n${results.join("\n")}`;
}

const shapeOf = ({ shape }) => [1, ...shape.map((length) => Math.max(1, length))];
const list = (lengths) => `[${lengths.join(", ")}]`;
const elements = (tensor) => shapeOf(tensor).reduce((product, length) => product * length, 1);

function array({ datatype, text = `"hello"` }, shape) {
  const lengths = shape.map((length) => Math.max(1, length));
  if (NUMPY[datatype]) return `np.zeros(${list(lengths)}, np.${NUMPY[datatype]})`;
  return `np.full(${list(lengths)}, ${text}, dtype=object)`;
}

// Tabs as the ARIA practices describe them: arrow keys move, one of them is in the tab order.
export class Tabs {
  constructor(list, panels) {
    this.list = list;
    this.panels = panels;
    this.buttons = [];
    list.addEventListener("keydown", (event) => this.#key(event));
  }

  show(entries) {
    if (!this.buttons.length) this.#build(entries);
    entries.forEach(([, text, note], n) => {
      const panel = this.panels.children[n];
      say(panel.querySelector("code"), text);
      say(panel.querySelector("small"), note);
    });
  }

  #build(entries) {
    entries.forEach(([name], n) => {
      const button = make("button", { type: "button", role: "tab", id: `tab-${n}`, "aria-controls": `panel-${n}` }, name);
      button.addEventListener("click", () => this.#select(n));
      const copy = make("button", { type: "button", "aria-label": `Copy the ${name} snippet` }, "Copy");
      const code = make("code"), box = make("pre", { tabindex: "0", "aria-label": name }, code);
      copy.addEventListener("click", () => this.#copy(copy, code));
      const panel = make("div", { role: "tabpanel", id: `panel-${n}`, "aria-labelledby": `tab-${n}`, class: "snippet" }, box, make("div", { class: "row" }, make("small"), copy));
      this.buttons.push(button);
      this.list.append(button);
      this.panels.append(panel);
    });
    this.#select(0);
  }

  #select(chosen) {
    this.buttons.forEach((button, n) => {
      put(button, "aria-selected", n === chosen);
      put(button, "tabindex", n === chosen ? 0 : -1);
      this.panels.children[n].hidden = n !== chosen;
    });
  }

  #key(event) {
    const at = this.buttons.indexOf(document.activeElement), last = this.buttons.length - 1;
    const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    this.#select(to);
    this.buttons[to].focus();
  }

  // The clipboard is for secure pages only (https, or localhost); elsewhere the text is selected, to be copied by hand.
  async #copy(button, code) {
    let word = "Copied";
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      word = "Selected: press Ctrl+C";
    }
    say(button, word);
    setTimeout(() => say(button, "Copy"), 2000);
  }
}
