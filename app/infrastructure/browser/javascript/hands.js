// What is done to a page, and how it is watched until it has settled. `api` is what the other side may call.

const frameKeys = new WeakMap(); // frame element → its key, for as long as the document lives
const framesByKey = []; // the elements by their keys
let suspects = []; // elements of the last reading that may have a closed shadow root

function keyOf(frame) {
  if (!frameKeys.has(frame)) frameKeys.set(frame, framesByKey.push(new WeakRef(frame)) - 1);
  return frameKeys.get(frame);
}

function frameOf(key) {
  const frame = framesByKey[key]?.deref();
  return frame && isConnected(frame) ? frame : null;
}

function nextFrame() {
  return new Promise((resolve) => {
    requestAnimationFrame(() => resolve());
    setTimeout(resolve, 100); // no frames are drawn for a page that is not in front
  });
}

// `element` itself, or the label that is drawn in its place.
function drawn(element) {
  const box = boxOf(element);
  if (box.width && box.height && checkVisibility(element, { visibilityProperty: true })) return element;
  const labels = element.labels ? [...element.labels] : [];
  return labels.find((label) => boxOf(label).width && checkVisibility(label)) ?? null;
}

function insideView(box) {
  return box.top >= 0 && box.left >= 0 && box.bottom <= innerHeight && box.right <= innerWidth;
}

// Points of what is seen of `element`, the likeliest to be free first.
function* pointsOf(element) {
  const shares = [[0.5, 0.5], [0.2, 0.5], [0.8, 0.5], [0.5, 0.2], [0.5, 0.8], [0.05, 0.1], [0.95, 0.9]];
  for (const box of [...boxesOf(element)].slice(0, 8)) {
    const left = Math.max(box.left, 0), top = Math.max(box.top, 0);
    const width = Math.min(box.right, innerWidth) - left, height = Math.min(box.bottom, innerHeight) - top;
    if (width <= 0 || height <= 0) continue;
    for (const [across, down] of shares) yield [left + width * across, top + height * down];
  }
}

function belongs(found, element) {
  if (within(found, element)) return true;
  for (let each = found; each; each = parentOf(each)) {
    if (each instanceof HTMLLabelElement) return each.control === element || element.contains(each);
  }
  return element instanceof HTMLLabelElement && element.control === found;
}

// What lies on top, in words: the nearest thing that can be acted on, or the box with its first words.
function describe(found) {
  for (let each = found; each && typeOf(each) === ELEMENT; each = parentOf(each)) {
    const role = roleOf(each, getComputedStyle(each), "pointer");
    if (role) return mark(each, role);
  }
  const text = plainText(found, 60);
  return `a <${tagOf(found)}>` + (text ? ` with the text ${quoted(text, 60)}` : "");
}

function kindOf(element) {
  if (element instanceof HTMLInputElement) return element.type;
  if (editableOf(element)) return "editable";
  return tagOf(element);
}

// How text is given to an element: "type" it, "set" its value, hand over a "file", or why not.
function wayIn(element) {
  if (!element || typeOf(element) !== ELEMENT) return { way: "none" };
  const kind = kindOf(element);
  const role = roleOf(element, getComputedStyle(element), "") || `<${kind}>`;
  if (isDisabled(element)) return { way: "disabled", role };
  if (kind === "file") return { way: "file", role };
  if (element.readOnly === true) return { way: "read-only", role };
  if (kind in INPUTS && INPUTS[kind] in FORMATS) return { way: "set", role, format: FORMATS[INPUTS[kind]] };
  if (kind === "range") return { way: "set", role, format: `a number from ${element.min || 0} to ${element.max || 100}` };
  if (/^(checkbox|radio|button|submit|reset|image|select)$/.test(kind)) return { way: kind, role };
  const types = element instanceof HTMLInputElement || kind === "textarea" || kind === "editable";
  return types ? { way: "type", role, lines: !(element instanceof HTMLInputElement) } : { way: "none", role };
}

function selectAll(element) {
  if (typeof element.select === "function") return element.select();
  const selection = getSelection();
  selection.selectAllChildren(element);
}

function announce(element) {
  element.dispatchEvent(new Event("input", { bubbles: true, composed: true }));
  element.dispatchEvent(new Event("change", { bubbles: true }));
}

function innermostFocus() {
  let focus = ofDocument("activeElement");
  while (focus && rootOf(focus)?.activeElement) focus = rootOf(focus).activeElement;
  return focus;
}

const api = {
  alive: () => true,
  size: () => ({ width: innerWidth, height: innerHeight }),

  read(options) {
    nextNumber = Math.max(nextNumber, options.next);
    const reader = new Reader(options);
    const body = ofDocument("documentElement");
    if (body) reader.element(body, { box: null, cursor: "", faded: false, unseen: false, mute: false, pre: false });
    reader.writer.flush();
    ({ suspects } = reader);
    const { scroller } = reader;
    const page = scroller === (ofDocument("scrollingElement") ?? body);
    const scrolled = scroller?.scrollTop ?? 0;
    const top = page ? -scrolled : boxOf(scroller).top - scrolled;
    return {
      url: location.href, title: collapse(ofDocument("title")).slice(0, 300), type: ofDocument("contentType"),
      ready: ofDocument("readyState"), status: performance.getEntriesByType("navigation")[0]?.responseStatus ?? 0,
      lines: reader.writer.lines, cut: reader.cut, next: nextNumber, suspects: suspects.length,
      frames: reader.frames.map((each) => api.frameBox(keyOf(each))), seen: ofDocument("visibilityState"),
      width: innerWidth, height: innerHeight, top, bottom: top + (scroller ? scrollHeightOf(scroller) : 0),
    };
  },

  // Where the inside of a frame is drawn, and how much it is enlarged.
  frameBox(key) {
    const element = frameOf(key);
    if (!element) return null;
    const box = boxOf(element);
    const style = getComputedStyle(element);
    const scale = element.offsetWidth ? box.width / element.offsetWidth : 1;
    const edge = (name) => (parseFloat(style[`border${name}Width`]) + parseFloat(style[`padding${name}`])) * scale;
    return { key, x: box.x + edge("Left"), y: box.y + edge("Top"), width: box.width, height: box.height, scale,
      name: collapse(attribute(element, "title") || attribute(element, "name") || "").slice(0, 100) };
  },

  frameElements: (keys) => keys.map(frameOf),
  suspectElements: () => suspects,
  examined(elements) {
    for (const each of elements ?? suspects) examined.add(each);
  },
  adopt(host, root) {
    closedRoots.set(host, root);
  },
  element: (number) => elementOf(number),

  // Bring an element into view and find a point of it that is not covered.
  async locate(number) {
    const meant = elementOf(number);
    if (!meant) return { state: "gone" };
    if (isDisabled(meant)) return { state: "disabled", is: mark(meant, roleOf(meant, getComputedStyle(meant), "")) };
    const element = drawn(meant);
    if (!element) return { state: "unseen" };
    if (!insideView(boxOf(element))) {
      intoView(element, { block: "center", inline: "center", behavior: "instant" });
      await nextFrame();
    }
    let cover = null;
    for (const [x, y] of pointsOf(element)) {
      const found = hit(x, y);
      if (found && belongs(found, element)) return { state: "free", x, y, kind: kindOf(meant) };
      cover ??= found;
    }
    return cover ? { state: "covered", by: describe(cover) } : { state: "unseen" };
  },

  // Whether the frame itself is what is seen at a point of it.
  coverOf(key, x, y) {
    const found = hit(x, y);
    return !found || within(found, frameOf(key)) ? "" : describe(found);
  },

  async showFrame(key) {
    const frame = frameOf(key);
    if (!frame || insideView(boxOf(frame))) return;
    intoView(frame, { block: "nearest", behavior: "instant" });
    await nextFrame();
  },

  wayIn(number) {
    const element = elementOf(number);
    return element ? wayIn(element) : { way: "gone" };
  },

  // Focus an element and select what is in it, so that typing replaces it.
  hold(number) {
    const element = elementOf(number);
    if (!element) return false;
    focusOn(element);
    selectAll(element);
    return true;
  },

  // What has the focus, its text selected when it is to be replaced; a frame's key when the focus is inside one.
  holdFocus(select) {
    const focus = innermostFocus();
    if (frameKeys.has(focus)) return { way: "frame", frame: keyOf(focus) };
    const found = wayIn(focus);
    if (found.way === "type" && select) selectAll(focus);
    return found;
  },

  set(number, value) {
    const element = elementOf(number);
    if (!element) return { way: "gone" };
    focusOn(element);
    getSetter(HTMLInputElement.prototype, "value")(element, value);
    announce(element);
    return { way: "set", value: element.value };
  },

  select(number, position) {
    const element = elementOf(number);
    if (!element) return { state: "gone" };
    if (!(element instanceof HTMLSelectElement)) return { state: "other", is: describe(element) };
    if (isDisabled(element)) return { state: "disabled" };
    const option = element.options[position];
    if (!option) return { state: "missing", count: element.options.length };
    if (matches(option, ":disabled")) return { state: "option disabled" };
    focusOn(element);
    option.selected = element.multiple ? !option.selected : true;
    announce(element);
    return { state: "done" };
  },

  // Scroll by almost a screen or to the end; how far it went, and the frame to scroll instead when one fills the view.
  scroll(down, toEnd) {
    const middle = hit(innerWidth / 2, innerHeight / 2);
    const scroller = mainScroller();
    if (!scroller) return { moved: 0 };
    const inFrame = middle && frameKeys.has(middle) && boxOf(middle).height > innerHeight / 2;
    if (inFrame && !scrollable(scroller)) return { moved: 0, frame: keyOf(middle) };
    const before = scroller.scrollTop;
    const step = toEnd ? scrollHeightOf(scroller) : clientHeightOf(scroller) * 0.9;
    scroller.scrollBy({ top: down ? step : -step, behavior: "instant" });
    return { moved: Math.round(scroller.scrollTop - before) };
  },

  // Resolves when nothing in the document changed for `idle` ms, after `longest` ms at the latest.
  quiet(idle, longest) {
    return new Promise((resolve) => {
      const end = performance.now() + longest;
      let timer = 0;
      const observer = new MutationObserver(() => arm());
      const finish = () => {
        observer.disconnect();
        resolve(performance.now() < end);
      };
      const arm = () => {
        clearTimeout(timer);
        timer = setTimeout(finish, Math.max(0, Math.min(idle, end - performance.now())));
      };
      observer.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
      arm();
    });
  },
};
