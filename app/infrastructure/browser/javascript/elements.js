// Interactive elements: which elements are interactive, their numbers, and their marks (role, name, value, state).

const numbers = new WeakMap(); // element → its number, which is valid as long as the document
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

function elementByNumber(number) {
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

// Return the role of an interactive element, or "". `parentCursor`: the mouse cursor over its parent.
function roleOf(element, style, parentCursor) {
  const tag = tagOf(element);
  const declared = (attribute(element, "role") ?? "").trim().toLowerCase().split(/\s+/)[0];
  if (element instanceof HTMLInputElement) {
    if (element.type === "hidden") return "";
    return ROLES.has(declared) ? declared : (INPUTS[element.type] ?? "textbox");
  }
  if (tag === "select") return "select";
  if (tag === "textarea") return "textbox";
  if (ROLES.has(declared)) return declared;
  const isShape = element instanceof SVGElement && tag !== "svg";
  const isLink = hasAttribute(element, "href") || (isShape && hasAttribute(element, "xlink:href"));
  if ((tag === "a" || tag === "area") && isLink) return "link";
  if (tag === "button" || (tag === "summary" && parentNodeOf(element) instanceof HTMLDetailsElement)) return "button";
  if (tag === "canvas") return "canvas";
  if ((tag === "video" || tag === "audio") && hasAttribute(element, "controls")) return tag;
  if (["", "true", "plaintext-only"].includes(attribute(element, "contenteditable"))) return "textbox";
  if (tag === "body" && ofDocument("designMode") === "on") return "textbox";
  if (tag === "html" || tag === "body" || tag === "label") return "";
  const isReached = !isShape || style.pointerEvents !== "none";
  const isTarget = style.cursor === "pointer" && parentCursor !== "pointer" && isReached;
  const isFocusable = isShape && Number(attribute(element, "tabindex") ?? -1) >= 0;
  return hasAttribute(element, "onclick") || isTarget || isFocusable ? "clickable" : "";
}

// Return whether the element shows a value that is chosen in a popup.
function showsChoice(element, role) {
  return role === "combobox" || /^(listbox|tree|grid)$/.test(attribute(element, "aria-haspopup") ?? "");
}

// Return the text field of a combobox that is a box around one, or null.
function innerField(element) {
  return element instanceof HTMLInputElement || attribute(element, "role") !== "combobox"
    ? null
    : find(element, "input:not([type=hidden]),textarea,[contenteditable],[role=textbox]");
}

const POPUPS = "[role=listbox],[role=tree],[role=grid],[role=menu],[role=dialog]";

const NO_CHOICE = `${POPUPS},[role=option],button,[role=button],a[href],label,input,select,textarea,[aria-live]`;

function choiceOf(element) {
  const box = isUndrawn(element) ? drawingBox(element) : null;
  const shown = element.value || innerField(element)?.value || plainText(box ?? element, 300, NO_CHOICE);
  if (shown || element instanceof HTMLInputElement) return shown;
  const selected = [...findAll(element, "[role=option][aria-selected=true]")].filter((each) => checkVisibility(each));
  return [...new Set(selected.slice(0, 10).map((option) => plainText(option, 60, "button")))].join(", ");
}

// Return the text of the elements that the attribute `name` refers to, without those within `except`.
function byIds(element, name, except = null) {
  const ids = (attribute(element, name) ?? "").split(/\s+/).filter(Boolean).slice(0, 5);
  const tree = treeOf(element);
  const found = ids.map((id) => tree.querySelector?.(`[id="${CSS.escape(id)}"]`)).filter(Boolean);
  const others = found.filter((each) => !except || !isWithin(each, except));
  return collapse(others.map((each) => plainText(each, 100)).join(" "));
}

function labelText(element) {
  // `labels` searches the whole document; only an element that has an id or is within a label can have one.
  if (!attribute(element, "id") && !closest(element, "label")) return "";
  const labels = element.labels ? [...element.labels].slice(0, 3) : [];
  return collapse(labels.map((label) => plainText(label, 200)).join(" "));
}

function nameOf(element, role) {
  // A combobox often counts its own value as a part of its label.
  const own = showsChoice(element, role) ? element : null;
  const label = byIds(element, "aria-labelledby", own) || collapse(attribute(element, "aria-label") ?? "");
  if (label) return label;
  if (element instanceof HTMLInputElement || FIELDS.has(role)) {
    if (role === "button") return collapse(element.value || attribute(element, "alt") || attribute(element, "title") ||
      element.type);
    for (const candidate of [labelText(element), attribute(element, "placeholder"), attribute(element, "title"),
      attribute(element, "aria-placeholder"), attribute(element, "data-placeholder"), attribute(element, "name")]) {
      if (candidate && collapse(candidate)) return collapse(candidate);
    }
    return replacedName(element);
  }
  const text = plainText(element, 200);
  const named = collapse(own ? labelText(element) || text : `${labelText(element)} ${text}`);
  return named || collapse(attribute(element, "title") ?? "") || shapeName(element);
}

// Return the name of the hidden field that the editor around `element` stands for.
function replacedName(element) {
  const box = isUndrawn(element) ? drawingBox(element) : element;
  for (let each = box, depth = 0; each && depth < 3; each = parentOf(each), depth += 1) {
    const field = each.previousElementSibling;
    if (!field || !matches(field, "textarea,select,input")) continue;
    if (!checkVisibility(field) || boxOf(field).width <= 1) return labelText(field) || collapse(attribute(field, "name") ?? "");
  }
  return "";
}

// Return a name for a shape of a drawing that has no text: maps and charts have identifiers.
function shapeName(element) {
  if (!(element instanceof SVGElement)) return "";
  return shorten(collapse(attribute(element, "data-name") || attribute(element, "id") || ""), 40);
}

function valueOf(element, role) {
  if (role === "password") return "•".repeat(Math.min(element.value.length, 8));
  if (role === "file") return [...element.files].map((file) => file.name).join(", ");
  if (showsChoice(element, role)) return choiceOf(element);
  if (!(element instanceof HTMLInputElement) && isUndrawn(element)) {
    return drawnText(drawingBox(element) ?? element).lines.map((line) => line.text).join("\n");
  }
  if (typeof element.value === "string" && !(element instanceof HTMLButtonElement)) return element.value;
  if (role === "slider" || role === "spinbutton") {
    return attribute(element, "aria-valuetext") ?? attribute(element, "aria-valuenow") ?? "";
  }
  return isEditable(element) ? plainText(element, 300) : "";
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
  const isReadOnly = element.readOnly === true || is("readonly") === "true";
  if (isReadOnly && !showsChoice(element, role)) states.push("read-only");
  if (element.required === true || is("required") === "true") states.push("required");
  if (is("invalid") === "true") states.push("invalid");
  if (element.multiple === true) states.push("multiple");
  if (element === ofDocument("activeElement") && element !== ofDocument("body")) states.push("focused");
  return states;
}

const MAX_OPTIONS = 40;

function optionsOf(select) {
  const options = [...select.options];
  const shown = options.slice(0, MAX_OPTIONS).map((option, position) =>
    `${position} ${shorten(collapse(option.label), 60)}` + (isDisabled(option) ? " (disabled)" : ""));
  if (options.length > MAX_OPTIONS) shown.push(`… ${options.length - MAX_OPTIONS} more`);
  return shown.join(", ");
}

const quote = (text, limit) => `"${shorten(collapse(text), limit).replaceAll('"', "'")}"`;

// Return the mark of an element: `[5 textbox "Email" = "a@b.c" required]`. `about` is the element whose name, value and
// state are shown, if it is another one (a check box behind its label).
function markOf(element, role, about = element) {
  const parts = [numberOf(element), role];
  const name = nameOf(about, role);
  if (name && role !== "canvas") parts.push(quote(name, 120));
  if (role === "select") {
    parts.push("=", quote([...about.selectedOptions].map((option) => option.label).join(", "), 120));
  } else if (FIELDS.has(role) || role === "file" || showsChoice(about, role) ||
    (role !== "button" && isEditable(about))) {
    const value = valueOf(about, role);
    if (value && (FIELDS.has(role) || value !== name)) parts.push("=", quote(value, 200));
    if (role === "file" && !value) parts.push("(browser_input with a path)");
    if (FORMATS[role]) parts.push(`(${FORMATS[role]})`);
    if (role === "slider" && about instanceof HTMLInputElement) parts.push(`(${about.min || 0}-${about.max || 100})`);
  } else if (role === "canvas" || role === "video" || role === "audio") {
    const box = boxOf(element);
    parts.push(`${Math.round(box.width)}x${Math.round(box.height)} at ${Math.round(box.x)},${Math.round(box.y)}`);
    if (role !== "canvas") parts.push(about.paused ? "paused" : "playing");
  } else if (element instanceof SVGElement && !name) {
    const box = boxOf(element);
    parts.push(`${tagOf(element)} at ${Math.round(box.x + box.width / 2)},${Math.round(box.y + box.height / 2)}`);
  }
  parts.push(...statesOf(about, role));
  return `[${parts.join(" ")}` + (role === "select" ? `: ${optionsOf(about)}]` : "]");
}

// Return the mark of an element whose content follows it: `[5 combobox "Tags" expanded]`.
function openMark(element, role, note = "") {
  const name = FIELDS.has(role) ? nameOf(element, role) : "";
  const value = showsChoice(element, role) ? choiceOf(element) : "";
  const shown = [name && quote(name, 120), value && `= ${quote(value, 200)}`];
  const parts = [numberOf(element), role, ...shown, ...statesOf(element, role), note];
  return `[${parts.filter(Boolean).join(" ")}]`;
}

// Return the target of a link: a path if it is on the same site, "" if it only runs a script.
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
