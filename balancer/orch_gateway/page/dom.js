// The few things that every part of the page does with elements. No text is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  check: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm3.6 5.2-4.2 4.6a.8.8 0 0 1-1.2 0L4.4 8.9l1.2-1.1 1.2 1.3 3.6-4Z",
  half: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.6v10.8A5.4 5.4 0 0 1 8 2.6Z",
  ring: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm0 1.7a5.3 5.3 0 1 1 0 10.6A5.3 5.3 0 0 1 8 2.7Z",
  down: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm-.9 3h1.8v4.6h2.3L8 12 4.8 8.6h2.3Z",
  cross: "M5 1h6l4 4v6l-4 4H5l-4-4V5Zm.6 3.4L4.4 5.6 6.8 8l-2.4 2.4 1.2 1.2L8 9.2l2.4 2.4 1.2-1.2L9.2 8l2.4-2.4-1.2-1.2L8 6.8Z",
  warning: "M8 1.2 15.4 14.6H.6ZM7.1 6v4.3h1.8V6Zm0 5.3v1.6h1.8v-1.6Z",
  info: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm-.9 2.8h1.8v1.8H7.1Zm0 2.9h1.8v5.4H7.1Z",
};

// An element with attributes, and children that are elements or texts.
export function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  element.append(...children.filter((child) => child != null));
  return element;
}

export function icon(name) {
  const shape = draw("path", { d: ICONS[name] ?? ICONS.ring, fill: "currentColor", "fill-rule": "evenodd" });
  return draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, shape);
}

// Change what is shown only where it differs, so that a selection or a screen reader is not disturbed.
export function say(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

export function put(element, name, value) {
  if (value == null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

// One child of `parent` for each item, in their order; those that stay are updated and keep their focus.
export function keep(parent, items, keyOf, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, place) => {
    const key = String(keyOf(item));
    let child = old.get(key);
    old.delete(key);
    if (!child) {
      child = create(item);
      child.dataset.key = key;
    }
    if (parent.children[place] !== child) parent.insertBefore(child, parent.children[place] ?? null);
    update(child, item);
  });
  for (const child of old.values()) child.remove();
}

// A list of names and figures: rows of [key, name, figure].
export function pairs(list, rows) {
  keep(list, rows, ([key]) => key, () => make("div", {}, make("dt"), make("dd")), (row, [, name, figure]) => {
    say(row.children[0], name);
    say(row.children[1], figure);
  });
}

// A state as an icon and its word.
export function showState(element, word, iconName, look) {
  put(element, "class", `state ${look}`.trim());
  if (element.dataset.word === word) return;
  element.dataset.word = word;
  element.replaceChildren(make("span", { class: "icon" }, icon(iconName)), make("span", {}, word));
}
