// Drawings (SVG): those with interactive shapes are read like HTML, all others are shown as a picture with a name.

const UNDRAWN = new Set(
  ("clipPath defs desc filter linearGradient marker mask metadata pattern radialGradient script style symbol title")
    .split(" "),
);
const SHAPES = `${INTERACTIVE},a,[tabindex]`;
const MAX_SHAPES = 1500; // maximum number of shapes of a drawing to examine
const MIN_SERIES_PIXELS = 48; // width or height above which a group of shapes without a name is no icon
const MAX_LINE_CHARS = 160; // length after which the marks of a drawing continue on a new line

function hasInteractiveShapes(svg, cursor) {
  const shapes = findAll(svg, SHAPES);
  for (const each of shapes) if (roleOf(each, getComputedStyle(each), "pointer")) return true;
  if (cursor === "pointer") return false; // every shape inherits it
  return [...findAll(svg, "*")].slice(0, MAX_SHAPES).some((each) => getComputedStyle(each).cursor === "pointer");
}

function drawing(element, context) {
  if (context.invisible) return;
  const box = boxOf(element);
  const named = collapse(attribute(element, "aria-label") ?? "");
  if (context.icons || !hasInteractiveShapes(element, context.cursor)) {
    const name = named || plainText(element, 300);
    if (name && box.width >= 8 && box.height >= 8) this.addText(`![${name}]`, context, context.box ?? box);
    return;
  }
  const title = named || collapse(textOf(find(element, ":scope > title") ?? document.createTextNode("")));
  if (title) this.addText(` ![${shorten(title, 150)}] `, context, context.box ?? box);
  this.addShapes(element, context);
}

Reader.prototype.addShapes = function (parent, context) {
  for (const each of childNodesOf(parent)) {
    if (typeOf(each) !== ELEMENT || UNDRAWN.has(tagOf(each))) continue;
    if (this.isOverLimit()) return;
    const style = getComputedStyle(each);
    if (style.display !== "none") this.addShape(each, style, { ...context, cursor: style.cursor }, context.cursor);
  }
};

Reader.prototype.addShape = function (shape, style, context, parentCursor) {
  const writer = this.writer;
  const box = boxOf(shape);
  const isVisible = style.visibility === "visible" && (box.width > 0 || box.height > 0);
  if (tagOf(shape) === "foreignObject") return this.addChildren(shape, context);
  const role = isVisible ? roleOf(shape, style, parentCursor) : "";
  if (role && isSeries(shape, role, box)) return this.addShapes(shape, { ...context, cursor: "" });
  if (role) {
    const target = role === "link" ? destination(shape) : "";
    const name = shorten(nameOf(shape, role), 100);
    writer.add(target ? ` [${numberOf(shape)} ${name}](${target}) ` : ` ${markOf(shape, role)} `, context.box ?? box);
    if (writer.buffer.length > MAX_LINE_CHARS) writer.flush();
  }
  if (tagOf(shape) === "text") {
    if (!role && isVisible) this.addText(` ${plainText(shape, 200)} `, context, context.box ?? box);
  } else if (!role || hasInteractiveParts(shape, "clickable")) this.addShapes(shape, context);
};

// Return whether a group only passes its mouse cursor on to the shapes in it, as the bars of a chart.
function isSeries(group, role, box) {
  const isGroup = role === "clickable" && tagOf(group) === "g" && group.childElementCount > 1;
  if (!isGroup || hasAttribute(group, "onclick") || hasAttribute(group, "tabindex")) return false;
  return Math.max(box.width, box.height) > MIN_SERIES_PIXELS && !collapse(nameOf(group, role));
}

HANDLERS.svg = drawing;
