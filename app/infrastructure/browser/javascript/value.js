// Returns the value of a script (`this`) as JSON, cut to `maxChars` characters. It runs in the page's own world, whose
// built-in functions the page may have changed; if it throws, the service uses the value's description.
function (maxChars) {
  const seen = new Set();
  let left = 2000; // maximum number of objects to convert
  const plain = (value, depth) => {
    if (typeof value === "bigint") return `${value}n`;
    if (typeof value === "function") return `[function ${value.name}]`;
    if (typeof value === "symbol") return String(value);
    if (typeof value === "number" && !Number.isFinite(value)) return String(value);
    if (value === null || typeof value !== "object") return value;
    if (value instanceof Node) {
      const html = value.outerHTML ?? value.nodeValue ?? value.nodeName;
      return html.length > 500 ? html.slice(0, 500) + "…" : html;
    }
    if (value instanceof Error) return String(value);
    if (typeof value.toJSON === "function") return value.toJSON();
    if (seen.has(value)) return "[circular]";
    if (depth > 8 || --left < 0) return "[…]";
    seen.add(value);
    try {
      if (value instanceof Map) return plain(Object.fromEntries(value), depth);
      if (Symbol.iterator in value) {
        const shown = [];
        for (const each of value) {
          if (shown.length === 500) {
            shown.push(value.length ? `… ${value.length - 500} more` : "…");
            break;
          }
          shown.push(plain(each, depth + 1));
        }
        return shown;
      }
      const keys = Object.keys(value);
      const entries = keys.slice(0, 200).map((key) => [key, plain(value[key], depth + 1)]);
      if (keys.length > 200) entries.push(["…", `${keys.length - 200} more`]);
      return Object.fromEntries(entries);
    } finally {
      seen.delete(value);
    }
  };
  return JSON.stringify(plain(this, 0)).slice(0, maxChars);
}
