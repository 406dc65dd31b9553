// Access to the DOM as it is drawn: shadow trees and slots in their places.
//
// The scripts of the isolated world are joined into one function body. The page's JavaScript can neither see nor change
// it. But the DOM is shared, and the fields of a form hide the form's own properties (<input name="childNodes">). So
// properties that a field name can hide are read through the accessors of the prototypes.

const getter = (prototype, name) => {
  const { get } = Object.getOwnPropertyDescriptor(prototype, name);
  return (node) => get.call(node);
};
const setter = (prototype, name) => {
  const { set } = Object.getOwnPropertyDescriptor(prototype, name);
  return (node, value) => set.call(node, value);
};
const method = (prototype, name) => {
  const call = prototype[name];
  return (node, ...values) => call.apply(node, values);
};

const typeOf = getter(Node.prototype, "nodeType");
const childNodesOf = getter(Node.prototype, "childNodes");
const parentNodeOf = getter(Node.prototype, "parentNode");
const textOf = getter(Node.prototype, "textContent");
const isConnected = getter(Node.prototype, "isConnected");
const tagOf = getter(Element.prototype, "localName");
const shadowRootOf = getter(Element.prototype, "shadowRoot");
const slotOf = getter(Element.prototype, "assignedSlot");
const scrollHeightOf = getter(Element.prototype, "scrollHeight");
const clientHeightOf = getter(Element.prototype, "clientHeight");
const isContentEditable = getter(HTMLElement.prototype, "isContentEditable");
const isEditable = (element) => element instanceof HTMLElement && isContentEditable(element);
const attribute = method(Element.prototype, "getAttribute");
const hasAttribute = method(Element.prototype, "hasAttribute");
const boxOf = method(Element.prototype, "getBoundingClientRect");
const boxesOf = method(Element.prototype, "getClientRects");
const find = method(Element.prototype, "querySelector");
const findAll = method(Element.prototype, "querySelectorAll");
const matches = method(Element.prototype, "matches");
const closest = method(Element.prototype, "closest");
const checkVisibility = method(Element.prototype, "checkVisibility");
const scrollIntoView = method(Element.prototype, "scrollIntoView");
const focusOn = method(HTMLElement.prototype, "focus");
const treeOf = method(Node.prototype, "getRootNode");
const ofDocument = (name) => getter(Document.prototype, name)(document);
const elementAt = method(Document.prototype, "elementFromPoint");

const ELEMENT = 1;
const TEXT = 3;
const NOT_RENDERED = new Set(
  ("base col colgroup datalist defs head link meta noscript optgroup option param script source style template title " +
    "track").split(" "),
);

const closedRoots = new WeakMap(); // host → its closed shadow root, which only CDP can provide
const examined = new WeakSet(); // elements that were already checked for a closed shadow root

function rootOf(element) {
  return shadowRootOf(element) ?? closedRoots.get(element) ?? null;
}

function childrenOf(element) {
  const root = rootOf(element);
  if (root) return childNodesOf(root);
  if (element instanceof HTMLSlotElement) {
    const assigned = element.assignedNodes();
    if (assigned.length) return assigned;
  }
  return childNodesOf(element);
}

function parentOf(node) {
  const slot = typeOf(node) === ELEMENT ? slotOf(node) : node.assignedSlot;
  if (slot) return slot;
  const parent = parentNodeOf(node);
  return parent instanceof ShadowRoot ? parent.host : parent;
}

function isWithin(node, ancestor) {
  for (let each = node; each; each = parentOf(each)) if (each === ancestor) return true;
  return false;
}

function collapse(text) {
  return text.replace(/\s+/gu, " ").trim();
}

function shorten(text, limit) {
  if (text.length <= limit) return text;
  const cut = text.slice(0, limit);
  return (/[\uD800-\uDBFF]$/.test(cut) ? cut.slice(0, -1) : cut) + "…";
}

// Return the rendered text below `element` on one line, cut to about `limit` characters. `omitted`: a selector.
function plainText(element, limit, omitted = "") {
  const parts = [];
  let size = 0;
  const visit = (node) => {
    if (size > limit) return;
    if (typeOf(node) === TEXT) {
      const text = node.data.length > limit * 4 ? node.data.slice(0, limit * 4) : node.data;
      parts.push(text);
      size += text.trim().length;
    } else if (typeOf(node) === ELEMENT) {
      const tag = tagOf(node);
      const named = tag === "title" && node instanceof SVGElement; // not drawn, but the name of the drawing
      const { display } = getComputedStyle(node);
      const isDrawn = display === "contents" || checkVisibility(node);
      const hidden = NOT_RENDERED.has(tag) || attribute(node, "aria-hidden") === "true" || !isDrawn;
      if ((hidden && !named) || (omitted && matches(node, omitted))) return;
      const label = tag === "img" ? attribute(node, "alt") : attribute(node, "aria-label");
      if (label) {
        parts.push(" ", label, " ");
        size += label.length;
        return;
      }
      const inline = display === "inline" || display === "contents";
      if (!inline) parts.push(" ");
      for (const child of childrenOf(node)) visit(child);
      if (!inline) parts.push(" ");
    }
  };
  for (const child of childrenOf(element)) visit(child);
  return shorten(collapse(parts.join("")), limit);
}

// Return the innermost element at a point of the viewport, inside shadow trees too.
function innermostElementAt(x, y) {
  let found = elementAt(document, x, y);
  while (found) {
    const inner = rootOf(found)?.elementFromPoint(x, y);
    if (!inner || inner === found || !isWithin(inner, found)) break;
    found = inner;
  }
  return found;
}

// Return whether an element hides what is outside of its box. The overflow of the root, or else that of the body, applies
// to the viewport instead (https://www.w3.org/TR/css-overflow-3/#overflow-propagation).
function clips(element, style) {
  const root = ofDocument("documentElement");
  const isViewport = element === root || (element === ofDocument("body") && getComputedStyle(root).overflow === "visible");
  return (style.overflow !== "visible" && !isViewport) || style.clipPath !== "none" || style.clip !== "auto";
}

function isScrollable(element) {
  if (scrollHeightOf(element) - clientHeightOf(element) < 4 || clientHeightOf(element) < 40) return false;
  if (element === ofDocument("scrollingElement")) return true;
  return /auto|scroll/.test(getComputedStyle(element).overflowY);
}

// Return what scrolls when a person scrolls: the page, or the pane in the middle of it.
function mainScroller() {
  const page = ofDocument("scrollingElement") ?? ofDocument("documentElement");
  if (!page || isScrollable(page)) return page; // a document that is being opened has no elements yet
  for (let each = innermostElementAt(innerWidth / 2, innerHeight / 2); each; each = parentOf(each)) {
    if (typeOf(each) === ELEMENT && isScrollable(each)) return each;
  }
  return page;
}

// Return what `page.js` refused since the last call, one a line.
function takePrompts() {
  let found = "";
  const onAnswer = (event) => {
    found = event.detail;
  };
  addEventListener("PROMPTS-answer", onAnswer, { once: true });
  dispatchEvent(new Event("PROMPTS-ask"));
  removeEventListener("PROMPTS-answer", onAnswer);
  return found;
}
