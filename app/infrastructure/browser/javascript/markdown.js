// A document as Markdown lines, each with where it is drawn, so that the caller can choose those around the viewport.

const HEADINGS = { h1: 1, h2: 2, h3: 3, h4: 4, h5: 5, h6: 6 };
const EMPHASIS = { b: "**", strong: "**", i: "*", em: "*", s: "~~", del: "~~" };
const CODE = new Set(["code", "kbd", "samp", "tt"]);
const GAPS = new Set("article aside blockquote details dialog dl fieldset figure footer form header main nav ol p pre section table ul"
  .split(" "));
const HOSTS = new Set("article aside blockquote body div footer header main nav p section span".split(" "));
const LONG_TEXT = 4000; // characters of one text node from which only what is near the viewport is taken
const PIECE = 800; // characters of the pieces that it is cut into
const SCREENS_ABOVE = 3;
const SCREENS_BELOW = 6;
const MOST_SUSPECTS = 60;
const MOST_FRAMES = 20;
const FILE_FIELD = "input[type=file]";
const GAP = 1; // a blank line comes before the line
const OUTSIDE = 2; // the line is scrolled away within its pane

class Writer {
  // `inline`: line breaks become spaces, for the cells of tables.
  constructor(inline = false) {
    this.lines = []; // [text, top, bottom, signs, length of what leads in]; a frame's number instead of a text
    this.inline = inline;
    this.reached = 0; // where the last line ends
    this.clip = null; // the box of a pane that scrolls by itself
    this.indent = "";
    this.lead = null;
    this.gap = false;
    this.size = 0;
    this.clear();
  }

  clear() {
    this.buffer = "";
    this.top = Infinity;
    this.bottom = -Infinity;
  }

  put(text, box) {
    if (this.buffer === "" || this.buffer.endsWith(" ")) text = text.replace(/^ +/, "");
    if (text) this.raw(text, box);
  }

  raw(text, box) {
    this.buffer += text;
    if (box) {
      this.top = Math.min(this.top, box.top);
      this.bottom = Math.max(this.bottom, box.bottom);
    }
  }

  // In code a blank line is a line too.
  newline(blank) {
    if (!blank || this.inline || this.buffer.trim()) return this.flush();
    this.push("");
    this.clear();
  }

  flush() {
    if (this.inline) return this.put(" ");
    const text = this.buffer.trimEnd();
    if (text) this.push(text);
    this.clear();
  }

  push(text) {
    const lead = this.lead ?? this.indent;
    this.lead = null;
    this.size += text.length;
    // What is not drawn itself stands where the line before it ends.
    const { top, bottom } = this.top < Infinity ? this : { top: this.reached, bottom: this.reached };
    this.reached = bottom;
    const { clip } = this;
    const outside = clip !== null && (top >= clip.bottom || bottom <= clip.top);
    this.lines.push([typeof text === "string" ? lead + text : text, Math.round(top), Math.round(bottom),
      (this.gap ? GAP : 0) + (outside ? OUTSIDE : 0), lead.length]);
    this.gap = false;
  }

  block(gap) {
    this.flush();
    if (gap) this.gap = true;
  }

  here() {
    return [this.lines.length, this.buffer.length];
  }

  // Put `open` and `close` around what was written since `start`; what became several lines gets `before` instead.
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
      const place = first[4] + (first === this.lines[line] ? at : 0);
      first[0] = first[0].slice(0, place) + before + " " + first[0].slice(place);
    }
  }
}

class Reader {
  // `from`, `to`: what is read of the document, in pixels from the viewport's upper edge; some screens when null.
  constructor({ from, to, most, seconds }) {
    this.writer = new Writer();
    this.frames = [];
    this.suspects = [];
    this.from = from ?? -SCREENS_ABOVE * innerHeight;
    this.to = to ?? (1 + SCREENS_BELOW) * innerHeight;
    this.most = most;
    this.end = performance.now() + seconds * 1000;
    this.visited = 0;
    this.scroller = mainScroller();
    this.cut = { above: false, below: false, short: false };
    this.kept = this.drawnNow();
  }

  // Elements that are drawn in the viewport, with what they are in: never passed over, wherever the box around them is.
  drawnNow() {
    const kept = new Set();
    for (let column = 1; column < 6; column += 1) {
      for (let row = 1; row < 6; row += 1) {
        let node = hit((innerWidth * column) / 6, (innerHeight * row) / 6);
        for (; node && !kept.has(node); node = parentOf(node)) kept.add(node);
      }
    }
    return kept;
  }

  over() {
    this.visited += 1;
    if (this.visited % 128 === 0 && performance.now() > this.end) this.cut.short = true;
    if (this.writer.size > this.most) this.cut.short = true;
    return this.cut.short;
  }

  away(element, box) {
    if (this.kept.has(element) || (!box.width && !box.height)) return false;
    if (box.top > this.to) return (this.cut.below = true);
    if (box.bottom >= this.from || box.top + scrollHeightOf(element) >= this.from) return false;
    return (this.cut.above = true);
  }

  children(element, context) {
    for (const child of childrenOf(element)) {
      if (this.cut.short) return;
      const type = typeOf(child);
      if (type === TEXT) this.text(child, context);
      else if (type === ELEMENT) this.element(child, context);
    }
  }

  text(node, context) {
    if (context.unseen || context.mute || !node.data) return;
    if (node.data.length > LONG_TEXT) return this.longText(node, context);
    const box = context.box ?? this.measure(node);
    this.words(node.data, context, box);
  }

  // A `[` before a digit would look like one of our marks; in code it is left as it is.
  words(data, context, box) {
    const text = context.code ? data : data.replace(/\[(?=\d|$)/g, "\\[");
    if (context.pre) this.rawLines(text, context, box);
    else this.writer.put(text.replace(/\s+/g, " "), box);
  }

  rawLines(text, context, box) {
    const pieces = text.split("\n");
    const height = (box.bottom - box.top) / pieces.length;
    pieces.forEach((piece, number) => {
      const top = box.top + height * number;
      if (number) this.writer.newline(context.code);
      this.writer.raw(piece, { top, bottom: top + height });
    });
  }

  measure(node) {
    const range = document.createRange();
    range.selectNodeContents(node);
    return range.getBoundingClientRect();
  }

  // Lines of a text are about equally long, so a character's share of the text tells where it is drawn.
  longText(node, context) {
    const box = this.measure(node);
    const { data } = node;
    const { length } = data;
    const height = Math.max(box.bottom - box.top, 1);
    const place = (y) => Math.max(0, Math.min(length, Math.floor(((y - box.top) / height) * length)));
    let at = Math.max(0, place(this.from) - PIECE);
    const stop = Math.min(length, place(this.to) + PIECE, at + this.most);
    if (at > 0) this.cut.above = true;
    if (stop < length) this.cut.below = true;
    const y = (place) => box.top + (height * place) / length;
    while (at < stop) {
      const aim = Math.min(at + PIECE, length);
      const end = data.slice(aim, aim + PIECE).search(context.pre ? /\n/ : /\s/);
      const next = end < 0 ? Math.min(aim + PIECE, length) : aim + end + 1;
      this.words(data.slice(at, next).trimEnd(), context, { top: y(at), bottom: y(next) });
      this.writer.flush();
      at = next;
    }
  }

  element(element, context) {
    const tag = tagOf(element);
    if (UNSEEN.has(tag) || this.over()) return;
    const style = getComputedStyle(element);
    if (style.display === "none") return this.hidden(element);
    const inline = style.display.startsWith("inline") || style.display === "contents";
    const box = style.display === "contents" ? null : boxOf(element);
    if (box) {
      if (!inline && tag !== "html" && tag !== "body" && this.away(element, box)) return;
      if ((box.width <= 1 || box.height <= 1) && clips(style)) return;
      if (box.right + scrollX <= 0 && box.width) return; // beyond the left edge, where nobody can scroll to
    }
    this.suspect(element, tag, box);
    if (style.contentVisibility === "hidden") return;
    const own = this.contextOf(element, style, inline, box, context);
    const role = roleOf(element, style, context.cursor);
    if (role && box && box.width && box.height && !(own.unseen && !this.overlaid(element, own))) {
      return this.interactive(element, role, own, inline);
    }
    this.inPane(element, style, box, () => this.content(element, tag, own, inline, style));
  }

  inPane(element, style, box, tell) {
    const pane = box && style.overflowY !== "visible" && element !== this.scroller &&
      scrollHeightOf(element) - clientHeightOf(element) > 4;
    if (!pane) return tell();
    const outer = this.writer.clip;
    this.writer.flush();
    this.writer.clip = box;
    tell();
    this.writer.flush();
    this.writer.clip = outer;
  }

  // A transparent check box or file field over something drawn is the usual way to style one.
  overlaid(element, context) {
    return context.faded && element instanceof HTMLInputElement && /^(checkbox|radio|file)$/.test(element.type);
  }

  // Fields for files are often not rendered at all; they can be filled in all the same.
  hidden(element) {
    const field = matches(element, FILE_FIELD) ? element : find(element, FILE_FIELD);
    if (field) this.writer.put(` ${mark(field, "file")} `, null);
  }

  suspect(element, tag, box) {
    if (rootOf(element) || examined.has(element) || this.suspects.length >= MOST_SUSPECTS) return;
    const empty = HOSTS.has(tag) && box && box.height >= 8 && box.width >= 8 && !childNodesOf(element).length;
    if (empty || tag.includes("-")) this.suspects.push(element);
  }

  contextOf(element, style, inline, box, context) {
    const faded = context.faded || style.opacity === "0";
    const space = style.whiteSpaceCollapse ?? style.whiteSpace;
    return {
      ...context,
      box: inline || !box ? context.box : box.height <= innerHeight ? box : null,
      cursor: style.cursor,
      faded,
      unseen: faded || style.visibility !== "visible",
      pre: /^(pre|preserve|break-spaces|pre-wrap)$/.test(space),
    };
  }

  content(element, tag, context, inline, style) {
    const special = SPECIAL[tag];
    if (special) return special.call(this, element, context, inline, style);
    if (inline) return this.inlineContent(element, tag, context, style);
    const writer = this.writer;
    writer.block(GAPS.has(tag));
    this.children(element, context);
    writer.block(GAPS.has(tag));
  }

  inlineContent(element, tag, context, style) {
    const wording = CODE.has(tag) || tag in EMPHASIS;
    const apart = !wording && style.display !== "inline" && style.display !== "contents";
    if (apart) this.writer.put(" ");
    const sign = CODE.has(tag) ? "`" : context.strong ? undefined : EMPHASIS[tag];
    const start = this.writer.here();
    this.children(element, CODE.has(tag) ? { ...context, code: true } : context);
    if (sign && !context.code) this.writer.wrap(start, sign, sign);
    if (apart) this.writer.put(" ");
  }
}
