// Interactive elements: which they are, their numbers, and how they are told (role, name, value, state).

const numbers = new WeakMap(); // element → its number, for as long as the document lives
const numbered = new Map(); // number → WeakRef of the element
let nextNumber = 1;

function numberOf(element) {
  let number = numbers.get(element);
  if (number === undefined) {
    number = nextNumber++;
    numbers.set(element, number);
    numbered.set(number, new WeakRef(element));
  }
  return number;
}

function elementOf(number) {
  const element = numbered.get(number)?.deref();
  return element && isConnected(element) ? element : null;
}

const INPUTS = {
  button: "button", checkbox: "checkbox", color: "color", date: "date", "datetime-local": "datetime", file: "file",
  image: "button", month: "month", number: "number", password: "password", radio: "radio", range: "slider",
  reset: "button", submit: "button", time: "time", week: "week",
};
const FORMATS = {
  color: "#rrggbb", date: "yyyy-mm-dd", datetime: "yyyy-mm-ddThh:mm", month: "yyyy-mm", time: "hh:mm", week: "yyyy-Www",
};
const ROLES = new Set(
  ("button checkbox combobox link menuitem menuitemcheckbox menuitemradio option radio searchbox slider spinbutton " +
    "switch tab textbox treeitem").split(" "),
);
const FIELDS = new Set(["combobox", "searchbox", "textbox", "spinbutton", "number", "password", "select", "slider",
  ...Object.keys(FORMATS)]);
const INTERACTIVE = "a[href],button,input,select,textarea,summary,[contenteditable],[onclick]," +
  [...ROLES].map((role) => `[role=${role}]`).join(",");

// The role of an element that a person could act on, "" of any other. `parentCursor`: the cursor over its parent.
function roleOf(element, style, parentCursor) {
  const tag = tagOf(element);
  const told = (attribute(element, "role") ?? "").trim().toLowerCase().split(/\s+/)[0];
  if (element instanceof HTMLInputElement) {
    if (element.type === "hidden") return "";
    return ROLES.has(told) ? told : (INPUTS[element.type] ?? "textbox");
  }
  if (tag === "select") return "select";
  if (tag === "textarea") return "textbox";
  if (ROLES.has(told)) return told;
  if ((tag === "a" || tag === "area") && hasAttribute(element, "href")) return "link";
  if (tag === "button" || (tag === "summary" && parentNodeOf(element) instanceof HTMLDetailsElement)) return "button";
  if (tag === "canvas") return "canvas";
  if ((tag === "video" || tag === "audio") && hasAttribute(element, "controls")) return tag;
  if (["", "true", "plaintext-only"].includes(attribute(element, "contenteditable"))) return "textbox";
  if (tag === "html" || tag === "body" || tag === "label") return "";
  return hasAttribute(element, "onclick") || (style.cursor === "pointer" && parentCursor !== "pointer")
    ? "clickable"
    : "";
}

function byIds(element, name) {
  const ids = (attribute(element, name) ?? "").split(/\s+/).filter(Boolean).slice(0, 5);
  const tree = treeOf(element);
  const found = ids.map((id) => tree.querySelector?.(`[id="${CSS.escape(id)}"]`)).filter(Boolean);
  return collapse(found.map((each) => plainText(each, 100)).join(" "));
}

function labelText(element) {
  const labels = element.labels ? [...element.labels].slice(0, 3) : [];
  return collapse(labels.map((label) => plainText(label, 200)).join(" "));
}

function nameOf(element, role) {
  const told = byIds(element, "aria-labelledby") || collapse(attribute(element, "aria-label") ?? "");
  if (told) return told;
  if (element instanceof HTMLInputElement || FIELDS.has(role)) {
    if (role === "button") return collapse(element.value || attribute(element, "alt") || attribute(element, "title") ||
      element.type);
    for (const words of [labelText(element), attribute(element, "placeholder"), attribute(element, "title"),
      attribute(element, "aria-placeholder"), attribute(element, "name")]) {
      if (words && collapse(words)) return collapse(words);
    }
    return "";
  }
  return plainText(element, 200) || collapse(attribute(element, "title") ?? "");
}

function valueOf(element, role) {
  if (role === "password") return "•".repeat(Math.min(element.value.length, 8));
  if (role === "file") return [...element.files].map((file) => file.name).join(", ");
  if (typeof element.value === "string" && !(element instanceof HTMLButtonElement)) return element.value;
  if (role === "slider" || role === "spinbutton") {
    return attribute(element, "aria-valuetext") ?? attribute(element, "aria-valuenow") ?? "";
  }
  return editableOf(element) ? plainText(element, 300) : "";
}

function isDisabled(element) {
  return matches(element, ":disabled") || attribute(element, "aria-disabled") === "true";
}

function statesOf(element, role) {
  const is = (name) => attribute(element, `aria-${name}`);
  const states = [];
  const checked = element instanceof HTMLInputElement && ["checkbox", "radio"].includes(element.type)
    ? element.indeterminate ? "mixed" : String(element.checked)
    : is("checked");
  if (checked === "mixed") states.push("half checked");
  else if (checked === "true") states.push("checked");
  else if (checked !== null && role !== "option") states.push("unchecked");
  const open = tagOf(element) === "summary" ? String(parentNodeOf(element).open) : is("expanded");
  if (open === "true") states.push("expanded");
  if (open === "false") states.push("collapsed");
  if (is("selected") === "true") states.push("selected");
  if (is("pressed") === "true") states.push("pressed");
  if (is("current") && is("current") !== "false") states.push("current");
  if (isDisabled(element)) states.push("disabled");
  if (element.readOnly === true || is("readonly") === "true") states.push("read-only");
  if (element.required === true || is("required") === "true") states.push("required");
  if (is("invalid") === "true") states.push("invalid");
  if (element.multiple === true) states.push("multiple");
  if (element === ofDocument("activeElement") && element !== ofDocument("body")) states.push("focused");
  return states;
}

const MOST_OPTIONS = 40;

function optionsOf(select) {
  const options = [...select.options];
  const told = options.slice(0, MOST_OPTIONS).map((option, position) =>
    `${position} ${shorten(collapse(option.label), 60)}` + (isDisabled(option) ? " (disabled)" : ""));
  if (options.length > MOST_OPTIONS) told.push(`… ${options.length - MOST_OPTIONS} more`);
  return told.join(", ");
}

const quoted = (text, limit) => `"${shorten(collapse(text), limit).replaceAll('"', "'")}"`;

// `[5 textbox "Email" = "a@b.c" required]`; `about` is whose value and state are told when it is another's.
function mark(element, role, about = element) {
  const words = [numberOf(element), role];
  const name = nameOf(about, role);
  if (name && role !== "canvas") words.push(quoted(name, 120));
  if (role === "select") {
    words.push("=", quoted([...about.selectedOptions].map((option) => option.label).join(", "), 120));
  } else if (FIELDS.has(role) || role === "file" || (role !== "button" && editableOf(element))) {
    const value = valueOf(about, role);
    if (value) words.push("=", quoted(value, 200));
    if (FORMATS[role]) words.push(`(${FORMATS[role]})`);
    if (role === "slider" && about instanceof HTMLInputElement) words.push(`(${about.min || 0}-${about.max || 100})`);
  } else if (role === "canvas" || role === "video" || role === "audio") {
    const box = boxOf(element);
    words.push(`${Math.round(box.width)}x${Math.round(box.height)} at ${Math.round(box.x)},${Math.round(box.y)}`);
    if (role !== "canvas") words.push(about.paused ? "paused" : "playing");
  }
  words.push(...statesOf(about, role));
  return `[${words.join(" ")}` + (role === "select" ? `: ${optionsOf(about)}]` : "]");
}

// Where a link leads, as short as can be: a path within the site, "" when it only runs a script.
function destination(link) {
  const raw = attribute(link, "href") ?? link.href?.baseVal ?? "";
  if (!raw || raw.startsWith("#") || /^\s*javascript:/i.test(raw)) return "";
  try {
    const url = new URL(raw, getter(Node.prototype, "baseURI")(document));
    const text = url.origin === location.origin && url.origin !== "null" ? url.href.slice(url.origin.length) : url.href;
    return shorten(text.replaceAll(")", "%29").replaceAll(" ", "%20"), 100);
  } catch {
    return "";
  }
}
