// How particular elements are told: interactive ones, headings, lists, tables, code, pictures, frames.

Reader.prototype.interactive = function (element, role, context, inline) {
  const writer = this.writer;
  if (!inline) writer.block(false);
  const box = context.box ?? boxOf(element);
  if (role === "link") this.link(element, { ...context, mute: false });
  else if (this.isWhole(element, role)) writer.put(` ${mark(element, role)} `, box);
  else {
    const words = [numberOf(element), role, ...statesOf(element, role)];
    writer.put(` [${words.join(" ")}] `, box);
    this.children(element, context);
  }
  if (!inline) writer.block(false);
};

// Whether the mark alone tells all of it: a field, or something short with nothing else to act on inside.
Reader.prototype.isWhole = function (element, role) {
  const native = /^(input|select|textarea|canvas|video|audio)$/.test(tagOf(element));
  if (native || (FIELDS.has(role) && plainText(element, 201).length <= 200)) return true;
  return !find(element, INTERACTIVE) && plainText(element, 121).length <= 120;
};

Reader.prototype.link = function (element, context) {
  const writer = this.writer;
  const number = numberOf(element);
  const where = destination(element);
  const start = writer.here();
  const size = writer.size;
  this.children(element, { ...context, box: context.box ?? boxOf(element) });
  const written = writer.lines.length > start[0] || writer.buffer.slice(start[1]).trim();
  const name = written ? "" : shorten(nameOf(element, "link") || where, 100);
  const states = statesOf(element, "link").map((state) => ` ${state}`).join("");
  if (size === writer.size && !written) writer.put(" ", boxOf(element));
  if (where) writer.wrap(start, `[${number}${states} `, `](${where})`, `[${number}${states}](${where})`, name);
  else writer.wrap(start, `[${number} link${states} "`, '"]', `[${number} link${states}]`, name || "link");
};

function heading(element, context, level) {
  const writer = this.writer;
  writer.block(true);
  writer.lead = (writer.lead ?? writer.indent) + "#".repeat(level) + " ";
  this.children(element, { ...context, strong: true });
  writer.flush();
  writer.lead = null;
  writer.gap = true;
}

function list(element, context) {
  const nested = context.list !== undefined;
  const counter = { next: tagOf(element) === "ol" ? element.start : 0 };
  this.writer.block(!nested);
  this.children(element, { ...context, list: counter });
  this.writer.block(!nested);
}

function item(element, context) {
  const writer = this.writer;
  const numbered = context.list?.next > 0;
  const sign = numbered ? `${context.list.next++}. ` : "- ";
  writer.block(false);
  const outer = writer.indent;
  writer.lead = (writer.lead ?? outer) + sign;
  writer.indent = outer + " ".repeat(sign.length);
  this.children(element, context);
  writer.flush();
  writer.indent = outer;
  writer.lead = null;
}

function quotation(element, context) {
  const writer = this.writer;
  writer.block(true);
  const outer = writer.indent;
  writer.indent = outer + "> ";
  this.children(element, context);
  writer.flush();
  writer.indent = outer;
  writer.gap = true;
}

function preformatted(element, context) {
  const writer = this.writer;
  writer.block(true);
  // A listing of links is no code, and in a fence its marks would be read as part of it.
  const fence = !writer.inline && !find(element, INTERACTIVE);
  const language = /\blang(?:uage)?-([\w+#-]+)/.exec(`${attribute(element, "class")} ` +
    `${attribute(find(element, "code") ?? element, "class")}`)?.[1] ?? "";
  const box = boxOf(element);
  const edge = (text, y) => {
    writer.put(text, { top: y, bottom: y });
    writer.flush();
  };
  if (fence) edge("```" + language, Math.max(box.top, this.from));
  this.children(element, { ...context, pre: true, code: fence, box: null });
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
  if (this.writer.inline || !isDataTable(element)) return this.plain(element, context);
  const writer = this.writer;
  writer.block(true);
  if (element.caption) this.element(element.caption, context);
  writer.block(true);
  let header = true;
  for (const row of element.rows) {
    if (this.over()) break;
    const box = boxOf(row);
    if (!box.height || (!header && this.away(row, box))) continue;
    const cells = [...row.cells].map((cell) => this.cell(cell, { ...context, box, strong: header }));
    writer.put(`| ${cells.join(" | ")} |`, box);
    if (header) {
      writer.flush();
      writer.put("|" + "---|".repeat(cells.length), box);
    }
    writer.flush();
    header = false;
  }
  writer.gap = true;
}

Reader.prototype.cell = function (cell, context) {
  const outer = this.writer;
  this.writer = new Writer(true);
  this.children(cell, { ...context, cursor: getComputedStyle(cell).cursor });
  const text = this.writer.buffer.replaceAll("|", "\\|").trim();
  outer.size += text.length;
  this.writer = outer;
  return text;
};

Reader.prototype.plain = function (element, context) {
  this.writer.block(true);
  this.children(element, context);
  this.writer.block(true);
};

function label(element, context, inline, style) {
  const control = element.control;
  if (!control) return inline ? this.inlineContent(element, "", context, style) : this.plain(element, context);
  const box = boxOf(control);
  if (checkVisibility(control) && box.width && box.height) {
    const told = plainText(element, 201).length <= 200;
    if (!inline) this.writer.block(false);
    this.children(element, { ...context, mute: told || context.mute });
    if (!inline) this.writer.block(false);
  } else if (!context.unseen && control.type !== "file") {
    const role = roleOf(control, getComputedStyle(control), "");
    this.writer.put(` ${mark(element, role || "button", control)} `, context.box ?? boxOf(element));
  } else this.plain(element, context);
}

function picture(element, context) {
  if (context.unseen) return;
  const name = collapse(attribute(element, "alt") || attribute(element, "aria-label") || "");
  const box = boxOf(element);
  if (name && box.width >= 8 && box.height >= 8) this.words(`![${shorten(name, 150)}]`, context, context.box ?? box);
}

function drawing(element, context) {
  if (context.unseen) return;
  const box = boxOf(element);
  const name = collapse(attribute(element, "aria-label") ?? "") || plainText(element, 300);
  if (name && box.width >= 8 && box.height >= 8) this.words(`![${name}]`, context, context.box ?? box);
}

function frame(element, context) {
  const box = boxOf(element);
  if (context.unseen || box.width < 20 || box.height < 20 || this.frames.length >= MOST_FRAMES) return;
  const writer = this.writer;
  writer.flush();
  if (writer.inline) return;
  this.frames.push(element);
  writer.put(".", box);
  writer.push(this.frames.length - 1);
  writer.clear();
}

const SPECIAL = {
  ul: list, ol: list, menu: list, li: item, blockquote: quotation, pre: preformatted, table, label, img: picture,
  svg: drawing, iframe: frame, frame, object: frame, embed: frame,
  br() {
    this.writer.flush();
  },
  hr() {
    this.writer.block(true);
    this.writer.gap = true;
  },
  textarea() {},
  details(element, context) {
    if (element.open) return this.plain(element, context);
    this.writer.block(true);
    for (const child of childNodesOf(element)) {
      if (typeOf(child) === ELEMENT && tagOf(child) === "summary") this.element(child, context);
    }
    this.writer.block(true);
  },
  progress(element, context) {
    this.writer.put(` (${Math.round(element.position * 100)} %) `, context.box);
  },
};
for (const [tag, level] of Object.entries(HEADINGS)) {
  SPECIAL[tag] = function (element, context) {
    heading.call(this, element, context, level);
  };
}
