// Actions on a page's elements, and the functions that the service calls (`api`).

// Thrown if an action is impossible. The model reads the message; the status is that of a `BrowserFailure`.
class Refusal extends Error {
  constructor(message, status = CONFLICT) {
    super(message);
    this.status = status;
  }
}

// Thrown if no element has the number, or the frame element is gone.
class Gone extends Error {}

const BAD_REQUEST = 400;
const NOT_FOUND = 404;
const CONFLICT = 409;

const frameKeys = new WeakMap(); // frame element → its key, which is valid as long as the document
const framesByKey = []; // references to the frame elements, by key
let suspects = []; // elements of the last reading that may have a closed shadow root

function keyOf(frame) {
  if (!frameKeys.has(frame)) frameKeys.set(frame, framesByKey.push(new WeakRef(frame)) - 1);
  return frameKeys.get(frame);
}

function frameByKey(key) {
  const frame = framesByKey[key]?.deref();
  return frame && isConnected(frame) ? frame : null;
}

function requireElement(number) {
  const element = elementByNumber(number);
  if (!element) throw new Gone();
  return element;
}

// Return the element that takes the text for an element: itself, or the field inside it. Without a number: the focus.
function requireField(number) {
  if (number === null) return innermostFocus() ?? ofDocument("body");
  const element = requireElement(number);
  return innerField(element) ?? element;
}

function nextFrame() {
  return new Promise((resolve) => {
    requestAnimationFrame(() => resolve());
    setTimeout(resolve, 100); // a page that is not in front draws no frames
  });
}

// Return `element`, or what is drawn in its place (the box of a field, a label); null if neither is visible.
function drawnElement(element) {
  if (isUndrawn(element)) return drawingBox(element);
  const box = boxOf(element);
  if (box.width && box.height && checkVisibility(element, { visibilityProperty: true })) return element;
  const labels = element.labels ? [...element.labels] : [];
  return labels.find((label) => boxOf(label).width && checkVisibility(label)) ?? null;
}

function isInViewport(box) {
  return box.top >= 0 && box.left >= 0 && box.bottom <= innerHeight && box.right <= innerWidth;
}

async function bringIntoViewport(element, options) {
  if (isInViewport(boxOf(element))) return;
  scrollIntoView(element, { ...options, behavior: "instant" });
  await nextFrame();
}

const GRID = 9; // number of points of a shape to try in each direction

// Yield points of the visible part of `element`. Those that are most likely not covered come first.
function* visiblePoints(element) {
  const shares = [[0.5, 0.5], [0.2, 0.5], [0.8, 0.5], [0.5, 0.2], [0.5, 0.8], [0.05, 0.1], [0.95, 0.9]];
  for (const box of [...boxesOf(element)].slice(0, 8)) {
    const left = Math.max(box.left, 0), top = Math.max(box.top, 0);
    const width = Math.min(box.right, innerWidth) - left, height = Math.min(box.bottom, innerHeight) - top;
    if (width <= 0 || height <= 0) continue;
    for (const [across, down] of shares) yield [left + width * across, top + height * down];
    if (element instanceof SVGElement) yield* shapePoints(element, left, top, width, height);
  }
}

// Yield more points for a shape that fills little of its box: a grid, then points on the outlines.
function* shapePoints(element, left, top, width, height) {
  for (let across = 0.5; across < GRID; across += 1) {
    for (let down = 0.5; down < GRID; down += 1) yield [left + (width * across) / GRID, top + (height * down) / GRID];
  }
  const isOutline = (each) => each instanceof SVGGeometryElement;
  for (const outline of [element, ...findAll(element, "*")].filter(isOutline).slice(0, 20)) {
    const toViewport = outline.getScreenCTM(), length = outline.getTotalLength();
    for (let step = 0.5; toViewport && step < GRID; step += 1) {
      const point = outline.getPointAtLength((length * step) / GRID).matrixTransform(toViewport);
      yield [point.x, point.y];
    }
  }
}

// Return whether a click on `found` is a click on `element`.
function reaches(found, element) {
  if (isWithin(found, element)) return true;
  for (let each = found; each; each = parentOf(each)) {
    if (each instanceof HTMLLabelElement) return each.control === element || element.contains(each);
  }
  return element instanceof HTMLLabelElement && element.control === found;
}

// Describe an element that covers another: the nearest interactive element, or the box with its first words.
function describe(found) {
  for (let each = found; each && typeOf(each) === ELEMENT; each = parentOf(each)) {
    const role = roleOf(each, getComputedStyle(each), "pointer");
    if (role) return markOf(each, role);
  }
  const text = plainText(found, 60);
  return `a <${tagOf(found)}>` + (text ? ` with the text ${quote(text, 60)}` : "");
}

function refuseCovered(number, cover) {
  throw new Refusal(`Element [${number}] is covered by ${describe(cover)}: close or move that first.`);
}

const MOVED = /^(slider|spinbutton)$/; // roles of elements without text that are moved with the arrow keys

function typeOfField(element) {
  if (element instanceof HTMLInputElement) return element.type;
  if (isEditable(element) || element.editContext) return "editable";
  return tagOf(element);
}

// Describe how an element takes text. `method`: "type" (key by key), "set" (its value is assigned), "file", or what it
// is instead of a text field ("select", "checkbox", …, "none").
function textInput(element) {
  if (!element || typeOf(element) !== ELEMENT) return { method: "none", role: "" };
  const type = typeOfField(element);
  const role = roleOf(element, getComputedStyle(element), "") || `<${type}>`;
  if (isDisabled(element)) return { method: "disabled", role };
  if (type === "file") return { method: "file", role };
  if (element.readOnly === true) return { method: "read-only", role };
  if (type in INPUTS && INPUTS[type] in FORMATS) return { method: "set", role, format: FORMATS[INPUTS[type]] };
  if (type === "range") return { method: "set", role, format: formatOf(element) };
  if (/^(checkbox|radio|button|submit|reset|image|select)$/.test(type)) return { method: type, role };
  const isInput = element instanceof HTMLInputElement;
  const isText = isInput || type === "textarea" || type === "editable";
  return isText ? { method: "type", role, multiline: !isInput } : { method: "none", role };
}

function refuseText({ method, role, format }) {
  switch (method) {
    case "disabled":
      throw new Refusal(`The ${role} is disabled.`);
    case "read-only":
      throw new Refusal(`The ${role} is read-only: click it, if the page offers a choice then.`);
    case "select":
      throw new Refusal("That is a select box: choose with browser_select_option.", BAD_REQUEST);
    case "checkbox":
    case "radio":
      throw new Refusal(`That is a ${role}: click it.`, BAD_REQUEST);
    case "set":
      throw new Refusal(`Give the index of this ${role}; it wants ${format}.`, BAD_REQUEST);
    case "file":
      throw new Refusal("Give the index of the file field.", BAD_REQUEST);
    default:
      if (MOVED.test(role)) throw new Refusal(`Give the index of this ${role}, and a number.`, BAD_REQUEST);
      throw new Refusal(`Nothing can be typed into that ${role || "place"}.`, BAD_REQUEST);
  }
}

function selectAll(element) {
  if (typeof element.select === "function") return element.select();
  const selection = getSelection();
  selection.selectAllChildren(element);
}

function dispatchChange(element) {
  element.dispatchEvent(new Event("input", { bubbles: true, composed: true }));
  element.dispatchEvent(new Event("change", { bubbles: true }));
}

function innermostFocus() {
  let focus = ofDocument("activeElement");
  while (focus && rootOf(focus)?.activeElement) focus = rootOf(focus).activeElement;
  return focus;
}

const api = {
  ...SCROLLING,
  ...FILES,
  isAlive: () => true,
  viewportSize: () => ({ width: innerWidth, height: innerHeight }),

  // Read the document as Markdown lines. `options`: see `Reader`; `next` is the number for the next element.
  read(options) {
    nextNumber = Math.max(nextNumber, options.next);
    const reader = new Reader(options);
    const root = ofDocument("documentElement");
    const context = { box: null, cursor: "", transparent: false, invisible: false, mute: false, pre: false };
    if (root) reader.addElement(root, context);
    reader.writer.flush();
    ({ suspects } = reader);
    const { scroller } = reader;
    const isPage = scroller === (ofDocument("scrollingElement") ?? root);
    const scrolled = scroller?.scrollTop ?? 0;
    const top = isPage ? -scrolled : boxOf(scroller).top - scrolled;
    return {
      url: location.href, title: collapse(ofDocument("title")).slice(0, 300), type: ofDocument("contentType"),
      ready: ofDocument("readyState"), status: performance.getEntriesByType("navigation")[0]?.responseStatus ?? 0,
      lines: reader.writer.lines, cut: reader.cut, next: nextNumber, asked: takeOtherPrompts(), suspects: suspects.length,
      frames: reader.frames.map((frame, position) => ({ ...api.frameBox(keyOf(frame)), position })),
      height: innerHeight, top, bottom: top + (scroller ? scrollHeightOf(scroller) : 0),
    };
  },

  // Return where the inside of a frame is drawn, its scale, and its name.
  frameBox(key) {
    const element = frameByKey(key);
    if (!element) throw new Gone();
    const box = boxOf(element);
    const style = getComputedStyle(element);
    const scale = element.offsetWidth ? box.width / element.offsetWidth : 1;
    const edge = (name) => (parseFloat(style[`border${name}Width`]) + parseFloat(style[`padding${name}`])) * scale;
    return { key, x: box.x + edge("Left"), y: box.y + edge("Top"), width: box.width, height: box.height, scale,
      name: collapse(attribute(element, "title") || attribute(element, "name") || "").slice(0, 100) };
  },

  frameByKey: (key) => frameByKey(key),
  suspectElement: (position) => suspects[position] ?? null,
  markExamined() {
    for (const each of suspects) examined.add(each);
  },
  addShadowRoot(host, root) {
    closedRoots.set(host, root);
  },
  elementByNumber: (number) => elementByNumber(number),

  // Scroll an element into view and return a point of it that nothing covers.
  async locate(number, forClick) {
    const element = requireElement(number);
    if (isDisabled(element)) {
      const role = roleOf(element, getComputedStyle(element), "");
      throw new Refusal(`It is disabled: ${markOf(element, role)}.`);
    }
    if (forClick && typeOfField(element) === "select") {
      throw new Refusal(`[${number}] is a select box: choose with browser_select_option.`, BAD_REQUEST);
    }
    const drawn = drawnElement(element);
    let cover = null;
    if (drawn) {
      await bringIntoViewport(drawn, { block: "center", inline: "center" });
      for (const [x, y] of visiblePoints(drawn)) {
        const found = innermostElementAt(x, y);
        if (found && reaches(found, drawn)) return { x, y };
        cover ??= found;
      }
    }
    if (cover) refuseCovered(number, cover);
    throw new Refusal(`Element [${number}] cannot be seen at present.`);
  },

  // Convert a point inside a frame to a point of this document. `number`: the element that is located.
  pointThroughFrame(key, x, y, number) {
    const box = api.frameBox(key);
    const point = { x: box.x + x * box.scale, y: box.y + y * box.scale };
    const found = innermostElementAt(point.x, point.y);
    if (found && !isWithin(found, frameByKey(key))) refuseCovered(number, found);
    return point;
  },

  async scrollFrameIntoView(key) {
    const frame = frameByKey(key);
    if (frame) await bringIntoViewport(frame, { block: "nearest" });
  },

  // Return "file", "text", or "other" if the element takes neither.
  fieldKind(number) {
    const { method } = textInput(requireField(number));
    return { kind: method === "file" ? "file" : ["type", "set"].includes(method) ? "text" : "other" };
  },

  // Assign the value of a field that is not typed into (a date, a slider). Otherwise return the value to which to move
  // a slider or spinbutton that the page draws itself, or whether the field, which must be typed into, takes several lines.
  setValue(number, value) {
    const element = requireField(number);
    const input = textInput(element);
    if (input.method === "type") {
      checkTyped(element, number, value);
      return { multiline: input.multiline };
    }
    if (input.method === "none" && MOVED.test(input.role)) {
      const wanted = movedValue(element, input.role, number, value);
      focusOn(element);
      return { isMoved: true, wanted };
    }
    if (input.method !== "set") refuseText(input);
    const wanted = valueFor(element, number, value);
    focusOn(element);
    setter(HTMLInputElement.prototype, "value")(element, wanted);
    dispatchChange(element);
    const state = isConnected(element) ? typedState(element, number, wanted) : "";
    return { isSet: true, state };
  },

  // Return the value of a slider or spinbutton that the page draws itself, once the page has taken the last key.
  async movedValue(number) {
    await api.waitForQuiet(30, 300);
    return { value: Number(attribute(requireElement(number), "aria-valuenow")) };
  },

  // Describe what of a typed text a field does not hold or accept; "" if there is nothing to say.
  typedState(number, value) {
    const element = elementByNumber(number);
    return { state: element ? typedState(innerField(element) ?? element, number, value) : "" };
  },

  // Refuse a point where a click would not make it possible to type, before it is clicked.
  checkPoint(x, y) {
    let found = innermostElementAt(x, y);
    while (found && !matches(found, "input,select,textarea,label")) found = parentOf(found);
    const input = textInput(found instanceof HTMLLabelElement ? found.control : found);
    if (!/^(none|type|button|submit|reset|image)$/.test(input.method)) refuseText(input);
  },

  // Focus an element and select its content, so that typing replaces it.
  focusAndSelect(number) {
    const element = requireField(number);
    focusOn(element);
    selectAll(element);
  },

  // Prepare typing where the focus is; with `replace`, select the text there. Return whether it takes several lines, or
  // the key of the frame that has the focus.
  prepareFocus(replace) {
    const focus = innermostFocus();
    if (frameKeys.has(focus)) return { frame: keyOf(focus) };
    const input = textInput(focus);
    if (replace && input.method === "type") selectAll(focus);
    else if (replace && input.method !== "none") refuseText(input);
    return { multiline: input.multiline ?? true, editor: input.method === "type" ? editorKind(focus) : "" };
  },

  chooseOption(number, position) {
    const element = requireElement(number);
    if (!(element instanceof HTMLSelectElement)) {
      throw new Refusal(`[${number}] is no select box but ${describe(element)}: click it.`, BAD_REQUEST);
    }
    const option = element.options[position];
    if (!isDisabled(element) && !option) {
      const count = element.options.length;
      const range = count ? `its options are 0 to ${count - 1}` : "it has none";
      throw new Refusal(`[${number}] has no option ${position}: ${range}.`, NOT_FOUND);
    }
    if (isDisabled(element) || matches(option, ":disabled")) {
      throw new Refusal(`Option ${position} of [${number}] is disabled.`);
    }
    focusOn(element);
    const wanted = element.multiple ? !option.selected : true;
    option.selected = wanted;
    dispatchChange(element);
    if (isConnected(element) && option.selected !== wanted) {
      throw new Refusal(`The page did not keep option ${position}: ${describe(element)}.`);
    }
  },

  // Wait until nothing in the document has changed for `idle` ms, for at most `longest` ms.
  waitForQuiet(idle, longest) {
    return new Promise((resolve) => {
      const end = performance.now() + longest;
      let timer = 0;
      const observer = new MutationObserver(() => restart());
      const finish = () => {
        observer.disconnect();
        resolve();
      };
      const restart = () => {
        clearTimeout(timer);
        timer = setTimeout(finish, Math.max(0, Math.min(idle, end - performance.now())));
      };
      observer.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
      restart();
    });
  },
};

// Call a function of `api`. Return its value, a refusal, or that the element is gone.
async function run(name, args) {
  try {
    return { value: await api[name](...args) };
  } catch (error) {
    if (error instanceof Refusal) return { refusal: error.message, status: error.status };
    if (error instanceof Gone) return { gone: true };
    throw error;
  }
}
