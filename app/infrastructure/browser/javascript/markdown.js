// Reads a document as Markdown lines. Each line has its position, so that the service can select those near the
// viewport.

const HEADINGS = { h1: 1, h2: 2, h3: 3, h4: 4, h5: 5, h6: 6 };
const EMPHASIS = { b: "**", strong: "**", i: "*", em: "*", s: "~~", del: "~~" };
const CODE = new Set(["code", "kbd", "samp", "tt"]);
const GAPS = new Set(
  ("article aside blockquote details dialog dl fieldset figure footer form header main nav ol p pre section table " +
    "ul").split(" "),
);
const HOSTS = new Set("article aside blockquote body div footer header main nav p section span".split(" "));
const LONG_TEXT_CHARS = 4000; // length in characters above which only the part of a text node near the viewport is read
const PIECE_CHARS = 800; // length in characters of the lines into which such a text is split
const LONG_LINE_CHARS = 2000; // length in characters above which a line is ended after the next element
const LONG_LIST = 1000; // number of nodes above which those out of range are skipped without a look at each
const LIST_ENDS = 10; // number of nodes at the start and at the end of such a list to look at: overlays are put there
const SCREENS_ABOVE = 3;
const SCREENS_BELOW = 6;
const MAX_SUSPECTS = 60;
const MAX_FRAMES = 20;
const FILE_FIELD = "input[type=file]";
const GAP = 1; // a blank line comes before the line
const OUTSIDE = 2; // the line is scrolled out of view within its pane

class Writer {
  // `inline`: line breaks become spaces, for the cells of tables.
  constructor(inline = false) {
    this.lines = []; // [text (or the position of a frame), top, bottom, flags, length of the prefix]
    this.inline = inline;
    this.reached = 0; // lower edge of the last line
    this.clip = null; // the box of a pane that scrolls by itself
    this.indent = "";
    this.prefix = null;
    this.gap = false;
    this.size = 0;
    this.clear();
  }

  clear() {
    this.buffer = "";
    this.top = Infinity;
    this.bottom = -Infinity;
  }

  add(text, box) {
    if (this.buffer === "" || this.buffer.endsWith(" ")) text = text.replace(/^ +/, "");
    if (text) this.append(text, box);
  }

  append(text, box) {
    this.buffer += text;
    if (box) {
      this.top = Math.min(this.top, box.top);
      this.bottom = Math.max(this.bottom, box.bottom);
    }
  }

  // End the line. In code (`blank`), a blank line is a line too.
  newline(blank) {
    if (!blank || this.inline || this.buffer.trim()) return this.flush();
    this.push("");
    this.clear();
  }

  flush() {
    if (this.inline) return this.add(" ");
    const text = this.buffer.trimEnd();
    if (text) this.push(text);
    this.clear();
  }

  push(text) {
    const prefix = this.prefix ?? this.indent;
    this.prefix = null;
    this.size += text.length;
    // A line without a position of its own is placed below the line before it.
    const { top, bottom } = this.top < Infinity ? this : { top: this.reached, bottom: this.reached };
    this.reached = bottom;
    const { clip } = this;
    const outside = clip !== null && (top >= clip.bottom || bottom <= clip.top);
    this.lines.push([typeof text === "string" ? prefix + text : text, Math.round(top), Math.round(bottom),
      (this.gap ? GAP : 0) + (outside ? OUTSIDE : 0), prefix.length]);
    this.gap = false;
  }

  block(gap) {
    this.flush();
    if (gap) this.gap = true;
  }

  position() {
    return [this.lines.length, this.buffer.length];
  }

  // Put `open` and `close` around the text since `start`. If it has become several lines, put `before` in front.
  // `nothing`: the text to use if there is none.
  wrap(start, open, close, before, nothing) {
    const [line, at] = start;
    if (this.lines.length === line) {
      const written = this.buffer.slice(at);
      const text = written.trim() || nothing;
      if (!text) return;
      const space = /^\s/.test(written) ? " " : "";
      this.buffer = this.buffer.slice(0, at) + space + open + text + close + (/\S\s+$/.test(written) ? " " : "");
    } else if (before) {
      const first = this.lines.slice(line).find((each) => typeof each[0] === "string");
      if (!first) return;
      const insertAt = first[4] + (first === this.lines[line] ? at : 0);
      first[0] = first[0].slice(0, insertAt) + before + " " + first[0].slice(insertAt);
    }
  }
}

class Reader {
  // `from`, `to`: the range to read, in pixels from the viewport's upper edge; null: some screens above and below.
  constructor({ from, to, maxChars, seconds }) {
    this.writer = new Writer();
    this.frames = [];
    this.suspects = [];
    this.from = from ?? -SCREENS_ABOVE * innerHeight;
    this.to = to ?? (1 + SCREENS_BELOW) * innerHeight;
    this.maxChars = maxChars;
    this.end = performance.now() + seconds * 1000;
    this.visited = 0;
    this.scroller = mainScroller();
    this.cut = { above: false, below: false, short: false };
    this.kept = this.elementsInViewport();
    this.boxes = new Map(); // box → the field whose text it draws
    addDrawingBoxes(document, this.boxes);
  }

  // Return elements in the viewport and their ancestors. They are never skipped: an ancestor's box may be elsewhere.
  elementsInViewport() {
    const kept = new Set();
    for (let column = 1; column < 6; column += 1) {
      for (let row = 1; row < 6; row += 1) {
        let node = innermostElementAt((innerWidth * column) / 6, (innerHeight * row) / 6);
        for (; node && !kept.has(node); node = parentOf(node)) kept.add(node);
      }
    }
    return kept;
  }

  isOverLimit() {
    this.visited += 1;
    if (this.visited % 128 === 0 && performance.now() > this.end) this.cut.short = true;
    if (this.writer.size > this.maxChars) this.cut.short = true;
    return this.cut.short;
  }

  isOutOfRange(element, box) {
    if (this.kept.has(element) || (!box.width && !box.height)) return false;
    if (box.top > this.to) return (this.cut.below = true);
    if (box.bottom >= this.from || box.top + scrollHeightOf(element) >= this.from) return false;
    return (this.cut.above = true);
  }

  // Return those of `nodes` that may be in range. Of a long list, a sample shows whether it is in order, and where to
  // begin and to end.
  inRange(nodes) {
    if (nodes.length < LONG_LIST) return nodes;
    const all = [...nodes];
    const step = Math.ceil(Math.sqrt(all.length)) | 1; // odd: every other node may be white space
    let start = 0;
    let end = all.length;
    let last = -Infinity;
    for (let at = step; at < all.length; at += step) {
      const { width, height, top, bottom } = typeOf(all[at]) === ELEMENT ? boxOf(all[at]) : this.measure(all[at]);
      if (!width && !height) continue;
      if (top < last) return nodes;
      last = top;
      if (bottom < this.from) start = at;
      if (top > this.to) end = Math.min(end, at);
    }
    if (start > 0) this.cut.above = true;
    if (end < all.length) this.cut.below = true;
    const isEnd = (at) => at < LIST_ENDS || at >= all.length - LIST_ENDS;
    return all.filter((each, at) => (at >= start && at < end) || isEnd(at) || this.kept.has(each));
  }

  addChildren(element, context) {
    for (const child of this.inRange(childrenOf(element))) {
      if (this.cut.short) return;
      const type = typeOf(child);
      if (type === TEXT) this.addTextNode(child, context);
      else if (type === ELEMENT) this.addElement(child, context);
      if (this.writer.buffer.length > LONG_LINE_CHARS && !this.writer.inline && !context.pre) this.writer.flush();
    }
  }

  addTextNode(node, context) {
    if (context.invisible || context.mute || !node.data) return;
    if (node.data.length > LONG_TEXT_CHARS) return this.addLongText(node, context);
    const box = context.box ?? this.measure(node);
    this.addText(node.data, context, box);
  }

  // Escape `[` before a digit, which would look like a mark; code stays as it is.
  addText(data, context, box) {
    const text = context.code ? data : data.replace(/\[(?=\d|$)/g, "\\[");
    if (context.pre) this.addPreformattedText(text, context, box);
    else this.writer.add(text.replace(/\s+/g, " "), box);
  }

  addPreformattedText(text, context, box) {
    const pieces = text.split("\n");
    const height = (box.bottom - box.top) / pieces.length;
    pieces.forEach((piece, number) => {
      const top = box.top + height * number;
      if (number) this.writer.newline(context.code);
      this.writer.append(piece, { top, bottom: top + height });
    });
  }

  measure(node) {
    const range = document.createRange();
    range.selectNodeContents(node);
    return range.getBoundingClientRect();
  }

  // Lines of a text are about equally long, so the position of a character follows from its share of the text.
  addLongText(node, context) {
    const box = this.measure(node);
    const { data } = node;
    const { length } = data;
    const height = Math.max(box.bottom - box.top, 1);
    const offsetAt = (y) => Math.max(0, Math.min(length, Math.floor(((y - box.top) / height) * length)));
    let at = Math.max(0, offsetAt(this.from) - PIECE_CHARS);
    const stop = Math.min(length, offsetAt(this.to) + PIECE_CHARS, at + this.maxChars);
    if (at > 0) this.cut.above = true;
    if (stop < length) this.cut.below = true;
    const yOf = (offset) => box.top + (height * offset) / length;
    while (at < stop) {
      const aim = Math.min(at + PIECE_CHARS, length);
      const end = data.slice(aim, aim + PIECE_CHARS).search(context.pre ? /\n/ : /\s/);
      const next = end < 0 ? Math.min(aim + PIECE_CHARS, length) : aim + end + 1;
      this.addText(data.slice(at, next).trimEnd(), context, { top: yOf(at), bottom: yOf(next) });
      this.writer.flush();
      at = next;
    }
  }

  addElement(element, context) {
    const tag = tagOf(element);
    if (NOT_RENDERED.has(tag) || this.isOverLimit()) return;
    const style = getComputedStyle(element);
    if (style.display === "none") return this.addHiddenFileField(element);
    const inline = style.display.startsWith("inline") || style.display === "contents";
    const box = style.display === "contents" ? null : boxOf(element);
    if (box) {
      if (!inline && tag !== "html" && tag !== "body" && this.isOutOfRange(element, box)) return;
      if ((box.width <= 1 || box.height <= 1) && clips(element, style)) return;
      if (box.right + scrollX <= 0 && box.width) return; // beyond the left edge, where a page cannot scroll to
    }
    this.addSuspect(element, tag, box);
    if (style.contentVisibility === "hidden") return;
    const own = this.contextOf(element, style, inline, box, context);
    if (shadowRootOf(element)) addDrawingBoxes(shadowRootOf(element), this.boxes);
    const field = this.boxes.get(element);
    if (field && context.field !== field) return this.addUndrawnField(element, field, own, inline);
    if (element === context.field || isMargin(element) || isHelper(element)) return;
    const role = roleOf(element, style, context.cursor);
    if (role && box && box.width && box.height && !(own.invisible && !this.isStyledControl(element, own))) {
      return this.addInteractive(element, role, own, inline);
    }
    this.inScrollingPane(element, style, box, () => this.addContent(element, tag, own, inline, style));
  }

  inScrollingPane(element, style, box, read) {
    const pane = box && style.overflowY !== "visible" && element !== this.scroller &&
      scrollHeightOf(element) - clientHeightOf(element) > 4;
    if (!pane) return read();
    const outer = this.writer.clip;
    this.writer.flush();
    this.writer.clip = box;
    read();
    this.writer.flush();
    this.writer.clip = outer;
  }

  // Return whether this is a transparent check box or file field over a drawn one, which is a usual way to style it.
  isStyledControl(element, context) {
    return context.transparent && element instanceof HTMLInputElement && /^(checkbox|radio|file)$/.test(element.type);
  }

  // File fields are often hidden; they can be filled nevertheless.
  addHiddenFileField(element) {
    const field = matches(element, FILE_FIELD) ? element : find(element, FILE_FIELD);
    if (field) this.writer.add(` ${markOf(field, "file")} `, null);
  }

  addSuspect(element, tag, box) {
    if (rootOf(element) || examined.has(element) || this.suspects.length >= MAX_SUSPECTS) return;
    const empty = HOSTS.has(tag) && box && box.height >= 8 && box.width >= 8 && !childNodesOf(element).length;
    if (empty || tag.includes("-")) this.suspects.push(element);
  }

  contextOf(element, style, inline, box, context) {
    const transparent = context.transparent || style.opacity === "0";
    const space = style.whiteSpaceCollapse ?? style.whiteSpace;
    return {
      ...context,
      box: inline || !box ? context.box : box.height <= innerHeight ? box : null,
      cursor: style.cursor,
      transparent,
      invisible: transparent || style.visibility !== "visible",
      pre: /^(pre|preserve|break-spaces|pre-wrap)$/.test(space),
    };
  }

  addContent(element, tag, context, inline, style) {
    const special = HANDLERS[tag];
    if (special) return special.call(this, element, context, inline, style);
    if (inline) return this.addInlineContent(element, tag, context, style);
    const writer = this.writer;
    writer.block(GAPS.has(tag));
    this.addChildren(element, context);
    writer.block(GAPS.has(tag));
  }

  addInlineContent(element, tag, context, style) {
    const isPhrase = CODE.has(tag) || tag in EMPHASIS;
    const isSeparate = !isPhrase && style.display !== "inline" && style.display !== "contents";
    if (isSeparate) this.writer.add(" ");
    const marker = CODE.has(tag) ? "`" : context.strong ? undefined : EMPHASIS[tag];
    const start = this.writer.position();
    this.addChildren(element, CODE.has(tag) ? { ...context, code: true } : context);
    if (marker && !context.code) this.writer.wrap(start, marker, marker);
    if (isSeparate) this.writer.add(" ");
  }
}
