// Markdown of particular elements: interactive ones, headings, lists, tables, code, images, frames.

Reader.prototype.addInteractive = function (element, role, context, inline) {
  const writer = this.writer;
  if (!inline) writer.block(false);
  const box = context.box ?? boxOf(element);
  if (role === "link") this.addLink(element, { ...context, mute: false });
  else if (role === "textbox" && isEditable(element) && isCode(element)) this.addEditor(element, element, context);
  else if (this.isCompleteMark(element, role)) writer.add(` ${markOf(element, role)} `, box);
  else {
    writer.add(` ${openMark(element, role)} `, box);
    this.addChildren(element, { ...context, icons: role !== "clickable" });
  }
  if (!inline) writer.block(false);
};

// Return whether there are interactive elements inside an element. Those in the icon of a button are parts of it.
function hasInteractiveParts(element, role) {
  const own = innerField(element);
  for (const each of findAll(element, INTERACTIVE)) {
    if (each !== own && (role === "clickable" || !(each instanceof SVGElement))) return true;
  }
  return false;
}

// Return whether the mark shows all of the element: a field, or a short element without other interactive ones inside.
Reader.prototype.isCompleteMark = function (element, role) {
  const native = /^(input|select|textarea|canvas|video|audio)$/.test(tagOf(element));
  if (native) return true;
  const isField = FIELDS.has(role) && plainText(element, 201).length <= 200;
  if (isField && role !== "combobox") return true;
  return !hasInteractiveParts(element, role) && (isField || plainText(element, 121).length <= 120);
};

Reader.prototype.addLink = function (element, context) {
  const writer = this.writer;
  const number = numberOf(element);
  const target = destination(element);
  const start = writer.position();
  const size = writer.size;
  this.addChildren(element, { ...context, box: context.box ?? boxOf(element), icons: true });
  const written = writer.lines.length > start[0] || writer.buffer.slice(start[1]).trim();
  const name = written ? "" : shorten(nameOf(element, "link") || target, 100);
  const states = statesOf(element, "link").map((state) => ` ${state}`).join("");
  if (size === writer.size && !written) writer.add(" ", boxOf(element));
  if (target) writer.wrap(start, `[${number}${states} `, `](${target})`, `[${number}${states}](${target})`, name);
  else writer.wrap(start, `[${number} link${states} "`, '"]', `[${number} link${states}]`, name || "link");
};

function heading(element, context, level) {
  const writer = this.writer;
  writer.block(true);
  writer.prefix = (writer.prefix ?? writer.indent) + "#".repeat(level) + " ";
  this.addChildren(element, { ...context, strong: true });
  writer.flush();
  writer.prefix = null;
  writer.gap = true;
}

function list(element, context) {
  const nested = context.list !== undefined;
  const counter = { next: tagOf(element) === "ol" ? element.start : 0 };
  this.writer.block(!nested);
  this.addChildren(element, { ...context, list: counter });
  this.writer.block(!nested);
}

function item(element, context) {
  const writer = this.writer;
  const numbered = context.list?.next > 0;
  const marker = numbered ? `${context.list.next++}. ` : "- ";
  writer.block(false);
  const outer = writer.indent;
  writer.prefix = (writer.prefix ?? outer) + marker;
  writer.indent = outer + " ".repeat(marker.length);
  this.addChildren(element, context);
  writer.flush();
  writer.indent = outer;
  writer.prefix = null;
}

function quotation(element, context) {
  const writer = this.writer;
  writer.block(true);
  const outer = writer.indent;
  writer.indent = outer + "> ";
  this.addChildren(element, context);
  writer.flush();
  writer.indent = outer;
  writer.gap = true;
}

function preformatted(element, context) {
  const writer = this.writer;
  writer.block(true);
  // A list of links in <pre> is no code; in a fence, the marks would count as part of the code.
  const fence = !writer.inline && !find(element, INTERACTIVE);
  const language = /\blang(?:uage)?-([\w+#-]+)/.exec(`${attribute(element, "class")} ` +
    `${attribute(find(element, "code") ?? element, "class")}`)?.[1] ?? "";
  const box = boxOf(element);
  const edge = (text, y) => {
    writer.add(text, { top: y, bottom: y });
    writer.flush();
  };
  if (fence) edge("```" + language, Math.max(box.top, this.from));
  this.addChildren(element, { ...context, pre: true, code: fence, box: null });
  writer.flush();
  if (fence) edge("```", Math.min(box.bottom, this.to));
  writer.gap = true;
}

function isDataTable(table) {
  if (/^(presentation|none)$/.test(attribute(table, "role") ?? "") || find(table, "table")) return false;
  const rows = [...table.rows].slice(0, 20);
  return rows.some((row) => row.cells.length > 1) && !rows.some((row) => boxOf(row).height > innerHeight / 2);
}

function table(element, context, inline, style) {
  if (this.writer.inline || !isDataTable(element)) return this.addBlock(element, context);
  const writer = this.writer;
  writer.block(true);
  if (element.caption) this.addElement(element.caption, context);
  writer.block(true);
  let header = true;
  for (const row of element.rows) {
    if (this.isOverLimit()) break;
    const box = boxOf(row);
    if (!box.height || (!header && this.isOutOfRange(row, box))) continue;
    const rowStyle = getComputedStyle(row);
    const role = roleOf(row, rowStyle, context.cursor);
    const mark = role ? `${openMark(row, role)} ` : "";
    const inner = { ...context, box, cursor: rowStyle.cursor, strong: header };
    const cells = [...row.cells].map((cell) => this.cellText(cell, inner));
    writer.add(`| ${mark}${cells.join(" | ")} |`, box);
    if (header) {
      writer.flush();
      writer.add("|" + "---|".repeat(cells.length), box);
    }
    writer.flush();
    header = false;
  }
  writer.gap = true;
}

Reader.prototype.cellText = function (cell, context) {
  const outer = this.writer;
  this.writer = new Writer(true);
  const cellStyle = getComputedStyle(cell);
  const role = roleOf(cell, cellStyle, context.cursor);
  const inner = { ...context, cursor: cellStyle.cursor };
  if (role) this.addInteractive(cell, role, inner, true);
  else this.addChildren(cell, inner);
  const text = this.writer.buffer.replaceAll("|", "\\|").trim();
  outer.size += text.length;
  this.writer = outer;
  return text;
};

Reader.prototype.addBlock = function (element, context) {
  this.writer.block(true);
  this.addChildren(element, context);
  this.writer.block(true);
};

function label(element, context, inline, style) {
  const control = element.control;
  if (!control) return inline ? this.addInlineContent(element, "", context, style) : this.addBlock(element, context);
  const box = boxOf(control);
  if (checkVisibility(control) && box.width && box.height) {
    const isShort = plainText(element, 201).length <= 200; // then the mark of the control shows it
    if (!inline) this.writer.block(false);
    this.addChildren(element, { ...context, mute: isShort || context.mute });
    if (!inline) this.writer.block(false);
  } else if (!context.invisible && /^(checkbox|radio)$/.test(control.type)) {
    const role = roleOf(control, getComputedStyle(control), "");
    this.writer.add(` ${markOf(element, role || "button", control)} `, context.box ?? boxOf(element));
  } else this.addBlock(element, context);
}

function image(element, context) {
  if (context.invisible) return;
  const name = collapse(attribute(element, "alt") || attribute(element, "aria-label") || "");
  const box = boxOf(element);
  if (name && box.width >= 8 && box.height >= 8) this.addText(`![${shorten(name, 150)}]`, context, context.box ?? box);
}

function frame(element, context) {
  const box = boxOf(element);
  if (context.invisible || box.width < 20 || box.height < 20 || this.frames.length >= MAX_FRAMES) return;
  const writer = this.writer;
  writer.flush();
  if (writer.inline) return;
  this.frames.push(element);
  writer.add(".", box);
  writer.push(this.frames.length - 1);
  writer.clear();
}

const HANDLERS = {
  ul: list, ol: list, menu: list, li: item, blockquote: quotation, pre: preformatted, table, label, img: image,
  iframe: frame, frame, object: frame, embed: frame,
  br() {
    this.writer.flush();
  },
  hr() {
    this.writer.block(true);
    this.writer.gap = true;
  },
  textarea() {},
  details(element, context) {
    if (element.open) return this.addBlock(element, context);
    this.writer.block(true);
    for (const child of childNodesOf(element)) {
      if (typeOf(child) === ELEMENT && tagOf(child) === "summary") this.addElement(child, context);
    }
    this.writer.block(true);
  },
  progress(element, context) {
    this.writer.add(` (${Math.round(element.position * 100)} %) `, context.box);
  },
};
for (const [tag, level] of Object.entries(HEADINGS)) {
  HANDLERS[tag] = function (element, context) {
    heading.call(this, element, context, level);
  };
}
