// Small helpers for the DOM. Every text goes through textContent or an attribute that is no URL and
// no handler, so names from the network are never parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) setAttribute(node, name, value);
  node.append(...children);
  return node;
}

export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

// Both setters leave an equal value alone: a screen reader announces what is set, and the browser
// lays out again.
export function setText(node, text) {
  const value = String(text);
  if (node.textContent !== value) node.textContent = value;
}

export function setAttribute(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else {
    const text = value === true ? "" : String(value);
    if (node.getAttribute(name) !== text) node.setAttribute(name, text);
  }
}

const shownIn = new WeakMap();

// Make the children of `parent` those of `items`, in order. Nodes of known keys are kept, and not
// even moved unless they have to be: so the focus stays where it is.
export function keyed(parent, items, keyOf, create, update) {
  const before = shownIn.get(parent) ?? new Map();
  const after = new Map();
  let at = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    if (after.has(key)) continue;
    const node = before.get(key) ?? create(item);
    before.delete(key);
    after.set(key, node);
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
    update(node, item);
  }
  for (const node of before.values()) node.remove();
  shownIn.set(parent, after);
}
