// Fields that are not drawn. A code editor or a select box of a library types into a tiny or transparent field, and
// draws the text around it. Such a field is shown, clicked and described at the box that draws its text.

const TYPED = new Set(["text", "search", "email", "tel", "url", "number", "password"]);
const MIN_FIELD_PIXELS = 8; // width and height below which a field is not drawn
const MAX_BOX_DEPTH = 7; // maximum number of elements between a field and the box that draws its text
const MAX_BOX_GROWTH = 2.5; // maximum area of a box around a box, in relation to that box
const MAX_EDITOR_LINES = 200;
const MAX_TEXT_PIXELS = 500_000; // height above which the box around the lines is no measure of the text
const MAX_EDITOR_PARTS = 20; // maximum number of interactive elements to show inside an editor
const PARTS = "a[href],button,input,select,textarea,[role=button],[role=option],[role=menuitem]";

function isTyped(element) {
  return element instanceof HTMLTextAreaElement || Boolean(element.editContext) ||
    (element instanceof HTMLInputElement && TYPED.has(element.type));
}

function isUndrawn(element) {
  if (!isTyped(element) || attribute(element, "aria-hidden") === "true" || attribute(element, "tabindex") === "-1") {
    return false;
  }
  if (!checkVisibility(element, { visibilityProperty: true })) return false;
  if (!checkVisibility(element, { opacityProperty: true })) return true;
  let style = getComputedStyle(element);
  if (style.color === "rgba(0, 0, 0, 0)" && Number(style.zIndex) < 0) return true;
  let { left, right, top, bottom } = boxOf(element);
  for (let each = parentOf(element), depth = 0; each && depth < 2; each = parentOf(each), depth += 1) {
    if (typeOf(each) !== ELEMENT) continue;
    if (style.position === "fixed") break; // what is around a fixed element does not clip it
    style = getComputedStyle(each);
    if (!clips(each, style)) continue;
    const box = boxOf(each);
    left = Math.max(left, box.left), right = Math.min(right, box.right);
    top = Math.max(top, box.top), bottom = Math.min(bottom, box.bottom);
  }
  return right - left < MIN_FIELD_PIXELS || bottom - top < MIN_FIELD_PIXELS || isWrittenOver(element);
}

// Return whether the value of an empty combobox is drawn over it by another element.
function isWrittenOver(field) {
  if (field.value !== "" || attribute(field, "role") !== "combobox" || attribute(field, "placeholder")) return false;
  const box = drawingBox(field);
  const { left, right, top, bottom } = boxOf(field);
  return box !== null && drawnLines(box).some((line) => !isInside(line.block, "label", box) &&
    line.left >= left - 4 && line.left < right && line.top < bottom - 4 && line.bottom > top + 4);
}

// Return whether a box has interactive elements besides its field.
function hasOtherParts(box, field) {
  return [...findAll(box, "*")].slice(0, 300).some((each) => {
    const isPart = matches(each, INTERACTIVE) || (getComputedStyle(each).cursor === "pointer" &&
      getComputedStyle(parentOf(each)).cursor !== "pointer");
    return isPart && each !== field && !isWithin(field, each) && boxOf(each).width >= MIN_FIELD_PIXELS &&
      checkVisibility(each, { visibilityProperty: true, opacityProperty: true });
  });
}

// Return the box that draws the text of a field that is not drawn itself; null if there is none.
function drawingBox(field) {
  let found = null;
  let size = 0;
  let each = parentOf(field);
  for (let depth = 0; each instanceof HTMLElement && depth < MAX_BOX_DEPTH; depth += 1, each = parentOf(each)) {
    if (matches(each, "html,body,form,main,dialog,[role=dialog],[role=main]")) break;
    const { width, height } = boxOf(each);
    if (width < 24 || height < 12) continue;
    if (!checkVisibility(each, { visibilityProperty: true, opacityProperty: true })) continue;
    if (found && (width * height > size * MAX_BOX_GROWTH || (plainText(found, 5) && hasOtherParts(each, field)))) break;
    found = each;
    size = width * height;
  }
  return found;
}

// Add the boxes of the fields below `root` that are not drawn to `boxes`: box → field.
function addDrawingBoxes(root, boxes) {
  for (const field of root.querySelectorAll("textarea,input,[role=textbox]")) {
    const box = isUndrawn(field) && !isHelper(field) ? drawingBox(field) : null;
    if (box && !boxes.has(box)) boxes.set(box, field);
  }
}

// Return whether a field is a tool of an editor: neither drawn nor able to take text.
function isHelper(field) {
  const isReadOnly = field instanceof HTMLTextAreaElement && field.readOnly;
  return isReadOnly && (attribute(field, "aria-hidden") === "true" || isUndrawn(field));
}

// Return whether an element that can be edited is for code: monospaced, with the spaces of its lines preserved.
function isCode(element) {
  const isMonospaced = /mono|courier|consolas|menlo/i.test(getComputedStyle(element).fontFamily);
  const line = element.firstElementChild ?? element;
  return isMonospaced && [element, line, line.lastElementChild ?? line].some((each) =>
    /preserve|break/.test(getComputedStyle(each).whiteSpaceCollapse));
}

// Return whether an element is the margin of a code editor, with the numbers of its lines.
function isMargin(element) {
  if (attribute(element, "aria-hidden") !== "true") return false;
  const siblings = [...childNodesOf(parentOf(element))];
  return siblings.some((each) => each instanceof HTMLElement && isEditable(each) && isCode(each));
}

function blockOf(node) {
  let block = parentOf(node);
  while (/^(inline|contents)/.test(getComputedStyle(block).display)) block = parentOf(block);
  return block;
}

// Return the lines of text that an editor draws, from top to bottom: `{ text, top, bottom, left, block }`.
function drawnLines(editor) {
  const view = boxOf(editor);
  const found = new Map();
  const walker = document.createTreeWalker(editor, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  while (found.size < MAX_EDITOR_LINES * 2 && walker.nextNode()) {
    const node = walker.currentNode;
    const parent = parentOf(node);
    if (!node.data || NOT_RENDERED.has(tagOf(parent))) continue;
    range.selectNodeContents(node);
    const { top, bottom, left, height } = range.getBoundingClientRect();
    const middle = (top + bottom) / 2;
    if (!height || middle < view.top || middle > view.bottom || left > view.right) continue;
    if (!checkVisibility(parent, { visibilityProperty: true, opacityProperty: true })) continue;
    if (isInside(parent, `${POPUPS},${PARTS},[role=tooltip],[role=alert],[aria-live]`, editor)) continue;
    const block = blockOf(node);
    const line = found.get(block) ?? { text: "", top, bottom, left, block };
    line.text += node.data;
    line.left = Math.min(line.left, left);
    line.top = Math.min(line.top, top);
    line.bottom = Math.max(line.bottom, bottom);
    found.set(block, line);
  }
  const lines = [...found.values()].flatMap(splitLine);
  return lines.sort((one, other) => one.top - other.top || one.left - other.left);
}

// Return the lines of a block whose text has line breaks.
function splitLine(line) {
  const pieces = line.text.split("\n");
  const height = (line.bottom - line.top) / pieces.length;
  const topOf = (number) => line.top + height * number;
  return pieces.map((text, number) => ({ ...line, text, top: topOf(number), bottom: topOf(number + 1) }));
}

function isInside(element, selector, limit) {
  for (let each = element; each && each !== limit; each = parentOf(each)) {
    if (typeOf(each) === ELEMENT && matches(each, selector)) return true;
  }
  return false;
}

// Return what an editor draws: its lines, the numbers in its margin, and whether there is more above and below.
function drawnText(editor) {
  const drawn = drawnLines(editor).map((line) => ({ ...line, text: line.text.replace(/[\u200b\ufeff]/g, "") }));
  const isNumber = (line) => /^\s*\d+\s*$/.test(line.text);
  const edge = Math.min(...drawn.filter((line) => !isNumber(line)).map((line) => line.left));
  const isCount = (line) => isNumber(line) && line.left < edge;
  const numbers = drawn.filter(isCount).map((line) => Number(line.text));
  const lines = drawn.filter((line) => !isCount(line));
  const height = Math.min(...drawn.map((line) => line.bottom - line.top));
  const spaced = [];
  for (const line of lines) {
    const before = spaced.at(-1);
    if (before && line.top < before.bottom - height / 2) {
      if (line.text.trim()) before.text += ` ${line.text.trim()}`; // beside it, as the caret is
      continue;
    }
    const rows = before ? Math.round((line.top - before.bottom) / height) : 0;
    for (let row = 0; row < Math.min(rows, 20); row += 1) spaced.push({ text: "", top: line.top, bottom: line.top });
    spaced.push({ ...line, text: line.text.replaceAll("\u00a0", " ").trimEnd() });
  }
  return { lines: spaced.slice(0, MAX_EDITOR_LINES), numbers, ...hiddenText(editor, lines, height) };
}

// Return whether an editor has text above or below what it draws.
function hiddenText(editor, lines, lineHeight) {
  const view = boxOf(editor);
  const least = Number.isFinite(lineHeight) ? lineHeight * 1.5 : 30;
  const more = { above: false, below: false };
  for (const each of [editor, ...findAll(editor, "*")].slice(0, 3000)) {
    const rest = scrollHeightOf(each) - clientHeightOf(each) - each.scrollTop;
    if (scrollHeightOf(each) - clientHeightOf(each) < least || clientHeightOf(each) < least) continue;
    if (!/auto|scroll/.test(getComputedStyle(each).overflowY)) continue;
    more.above ||= each.scrollTop > least;
    more.below ||= rest > least;
  }
  const first = lines[0], last = lines.at(-1);
  let text = first ? parentOf(first.block) : null;
  while (text && !isWithin(last.block, text)) text = parentOf(text);
  if (text && isWithin(text, editor) && boxOf(text).height < MAX_TEXT_PIXELS) {
    // The box of all lines is larger than the editor, or larger than the lines although they leave the viewport.
    const { top, bottom } = boxOf(text);
    more.above ||= top < view.top - least || (first.top < 0 && top < first.top - least);
    more.below ||= bottom > view.bottom + least || (last.bottom > innerHeight && bottom > last.bottom + least);
  }
  return more;
}

// Return `lines 5 to 20, more above and below` as far as it applies.
function describeExtent({ lines, numbers, above, below }) {
  const parts = [];
  if (numbers.length > 1 && (above || below)) parts.push(`lines ${numbers[0]} to ${numbers.at(-1)}`);
  const sides = [above && "above", below && "below"].filter(Boolean);
  if (sides.length && lines.length) parts.push(`more ${sides.join(" and ")}`);
  return parts.length ? `(${parts.join(", ")})` : "";
}

// A field that is not drawn, at the box that draws its text.
Reader.prototype.addUndrawnField = function (box, field, context, inline) {
  const writer = this.writer;
  const role = roleOf(field, getComputedStyle(field), "");
  if (!inline) writer.block(false);
  if (tagOf(field) !== "input") this.addEditor(box, field, context);
  else if (hasOtherParts(box, field) || attribute(field, "aria-expanded") === "true") { // options may be slotted
    writer.add(` ${openMark(field, role)} `, context.box ?? boxOf(box));
    this.addChildren(box, { ...context, field });
  } else writer.add(` ${markOf(field, role)} `, context.box ?? boxOf(box));
  if (!inline) writer.block(false);
};

// An editor for code. `field` takes the text, `box` draws it.
Reader.prototype.addEditor = function (box, field, context) {
  const writer = this.writer;
  const text = drawnText(box);
  const { lines } = text;
  const extent = describeExtent(text);
  if (lines.length < 2 && !extent) writer.add(` ${markOf(field, "textbox")} `, boxOf(box));
  else {
    writer.add(` ${openMark(field, "textbox", extent)} `, boxOf(box));
    if (!writer.inline) this.addFence(lines);
    else for (const line of lines) this.addText(` ${line.text} `, context, line);
  }
  const parts = [...findAll(box, PARTS)].filter((each) => each !== field && each !== box && boxOf(each).width >= 8);
  for (const part of parts.slice(0, MAX_EDITOR_PARTS)) this.addElement(part, context);
};

Reader.prototype.addFence = function (lines) {
  const writer = this.writer;
  writer.block(false);
  const first = lines[0] ?? { top: 0, bottom: 0 };
  const last = lines.at(-1) ?? first;
  const fenced = [{ ...first, text: "```" }, ...lines, { ...last, text: "```" }];
  for (const line of fenced) {
    writer.append(line.text, line);
    writer.newline(true);
  }
};
